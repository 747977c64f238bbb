"""The writing commands that are tried, the files that they start from, and what they must give."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from tests.witnesses import make

WIDE = {f"transformer.h.{i}.attn.c_attn": (160, 160) for i in range(2)}
WIDE_CONFIG = make.config(r=8)  # coded in less than eight bits a number
RECIPE = """
[input]
adapters = ["in"]
[compress]
method = "own"
max_error = 0.2
[output]
subspace = "out"
[[export]]
path = "exported/{task}"
"""


@dataclass(frozen=True)
class Command:
    """A command line, run in a copy of the start.

    Args:
        words: What follows the program's name.
        outputs: What it writes, new or replaced; each is old or new, never between.
        in_place: The subspace that it changes; its tasks are those before or those after.
        again: What is run after an interruption, if other than the same.
        done: Exit codes of running it again where it had done its work already.
        moves: Whether it makes something else again of what it has made.
    """

    words: str
    outputs: tuple[str, ...] = ("out",)
    in_place: str | None = None
    again: str | None = None
    done: tuple[int, ...] = (2,)
    moves: bool = False

    @property
    def name(self) -> str:
        return self.words


def prepare(root: Path, main: Callable[[list[str]], int]) -> None:
    """The start that each command gets a copy of: adapters, subspaces, outputs to replace."""
    make.collection(root / "in", 3)
    make.collection(root / "late", 4)
    for name in ("task00", "task01", "task02"):
        shutil.rmtree(root / "late" / name)
    (root / "late" / "task03").rename(root / "late" / "fresh")
    for i in range(2):
        make.write(root / "wide-in" / f"task0{i}", make.factors(WIDE, rank=8, seed=i), WIDE_CONFIG)
    (root / "recipe.toml").write_text(RECIPE)
    for words in (
        "compress in -o basis -k 2 -q",
        "compress in -o coded -q",
        "compress in -o beside -q",
        "basis beside -k 2 -q",
        "compress wide-in -o wide --max-error 0.001 -q",
        "compress in -o old --method own --max-error 0.3 -q",
        "export basis task00 -o adapter -q",
        "export basis --all -o exported-old -q",
        "convert basis --to lorashare -o share -q",
        "spectra in -o spectra-old -q",
    ):
        assert main(words.split()) == 0, words
    _put_into_basis(root / "beside", "task02")


def _put_into_basis(subspace: Path, task: str) -> None:
    """Make a task one that is loadings in the basis, as a trained one is."""
    from vlora_engine.shared_subspace import SharedSubspace

    opened = SharedSubspace.load(subspace)
    seen = opened.in_basis()
    opened.add_task(replace(seen.tasks[task], task_id="inside"))
    opened.remove_task(task)
    opened.save(subspace)


EXPORTED = tuple(f"exported/task0{i}" for i in range(3))
OLD_EXPORTED = tuple(f"exported-old/task0{i}" for i in range(3))
COMMANDS = [
    Command("compress in -o out -k 2"),
    Command("compress in -o out"),
    Command("compress in -o out --method own --max-error 0.2"),
    Command("compress in -o out -k 2 --quantize nf4"),
    Command("compress in -o old -k 2 --force", ("old",)),
    Command("compress in -o basis --force", ("basis",)),
    Command("spectra in -o out"),
    Command("spectra in -o spectra-old --force", ("spectra-old",)),
    Command("quantize basis -o out --bits 8"),
    Command("export basis task01 -o out"),
    Command("export coded task01 -o adapter --force", ("adapter",)),
    Command("export basis --all -o exported", EXPORTED, done=(0,)),
    Command("export coded --all -o exported-old --force", OLD_EXPORTED),
    Command("merge in/task00 in/task01 -o out"),
    Command("merge in/task00 in/task01 -o adapter --force", ("adapter",)),
    Command("resize in/task00 in/task01 in/task02 --rank 2 -o exported", EXPORTED, done=(0,)),
    Command("convert in/task00 --to mlx -o out"),
    Command("convert basis --to vlora-dev -o out"),
    Command("convert basis --to lorashare -o share --force", ("share",)),
    Command("convert share --to subspace -o out"),
    Command(
        "run --headless recipe.toml",
        ("out", *EXPORTED),
        again="run --headless recipe.toml --force",
    ),
    Command("run --headless in -k 2 -o out --quantize-bits 8"),
    Command("run --headless in -k 2 -o old --quantize-method nf4 --force", ("old",)),
    Command("run --headless basis --convert mlx --convert-path exported", EXPORTED, done=(0,)),
    Command("add basis late/fresh", (), in_place="basis"),
    Command("add basis late/fresh --project", (), in_place="basis"),
    Command("add basis late/fresh --incremental", (), in_place="basis"),
    Command("add coded late/fresh", (), in_place="coded"),
    Command("remove basis task01", (), in_place="basis"),
    Command("remove coded task01", (), in_place="coded"),
    Command("compact coded", (), in_place="coded"),
    Command("compact coded -o out"),
    Command("basis coded -k 2", (), in_place="coded"),
    # What is loadings loses with every basis, so that the next one is another.
    Command("basis beside -k 1", (), in_place="beside", moves=True),
    Command("quantize wide -o out --bits 8"),
    Command("add beside late/fresh", (), in_place="beside"),
    Command("add beside late/fresh --incremental", (), in_place="beside"),
    Command("remove beside inside", (), in_place="beside"),
    Command("compact beside", (), in_place="beside"),
    Command("report basis -o report.md", ("report.md",), done=(2, 0)),
]
