"""The writing commands that are tried, the files that they start from, and what they must give."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from tests.witnesses import make
from vlora_engine.demo import DEMO_ADAPTERS, DemoAdapter

WIDE = {f"transformer.h.{i}.attn.c_attn": (160, 160) for i in range(2)}
WIDE_CONFIG = make.config(r=8)  # coded in less than eight bits a number
GPT2 = {"model_type": "gpt2", "n_layer": 2, "n_head": 2, "n_embd": 12}
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
PLAIN_RECIPE = """
[input]
adapters = ["in"]
[[merge]]
adapters = ["task00", "task01"]
method = "ties"
path = "merged"
[[resize]]
rank = 2
path = "resized/{task}"
[[export]]
target = "llamacpp"
base = "base"
path = "exported/{task}"
[[convert]]
to = "mlx"
path = "converted"
"""
JOB_RECIPE = """
[input]
adapters = ["in"]
[compress]
method = "own"
max_error = 0.2
[output]
subspace = "out"
[[resize]]
rank = 2
path = "resized/{task}"
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
        loose: What it writes beside its outputs, and nobody compares.
    """

    words: str
    outputs: tuple[str, ...] = ("out",)
    in_place: str | None = None
    again: str | None = None
    done: tuple[int, ...] = (2,)
    moves: bool = False
    loose: tuple[str, ...] = ()

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
    for i in range(2):
        compiled = {f"_orig_mod.{key}": x for key, x in make.factors(seed=i).items()}
        make.write(root / "compiled" / f"task0{i}", compiled)
    (root / "base").mkdir()
    (root / "base" / "config.json").write_text(json.dumps(GPT2))
    (root / "recipe.toml").write_text(RECIPE)
    (root / "plain.toml").write_text(PLAIN_RECIPE)
    (root / "job.toml").write_text(JOB_RECIPE)
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
        "report in -o old-report.md -q",
        "diff in/task00 in/task02 --csv old.csv -q",
        "convert in/task01 --to gguf --base base -o gguf-old -q",
        "doctor compiled/task00 --fix --base base -o not-kept -q",  # it loads PEFT and transformers
    ):
        assert main(words.split()) == 0, words
    shutil.rmtree(root / "not-kept")
    _put_into_basis(root / "beside", "task02")
    put_job_that_is_over(root)


def demo_adapters_small() -> tuple[DemoAdapter, ...]:
    """Three adapters of the demo, with one module a layer."""
    chosen = [adapter for adapter in DEMO_ADAPTERS if adapter.name in DEMO_TASKS]
    return tuple(replace(adapter, targets=("q_proj",)) for adapter in chosen)


def make_demo_small() -> None:
    """Let the demo of this process be of three adapters, computed once."""
    from vlora_engine import demo

    demo.DEMO_ADAPTERS = demo_adapters_small()
    rendered = demo._render()
    demo._render = lambda: rendered  # type: ignore[assignment]


def put_job_that_is_over(root: Path) -> None:
    """A job that failed, in the state directory of ``!remove-job``."""
    from vlora_tui.jobs.store import JobStore
    from vlora_tui.pipeline.events import EventWriter, Failed
    from vlora_tui.recipe.reader import load_recipe

    job, lock = JobStore.open(root / STATE).create(load_recipe(root / "job.toml"))
    writer = EventWriter(job.events_path)
    writer(Failed({"what": "It failed.", "code": "corrupt-file"}))
    writer.close()
    lock.release()


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
DEMO_TASKS = ("french", "german", "italian")  # the demo is made of these here: the rest takes long
STATE = "state"  # holds one job that is over
RESIZED = tuple(f"resized/task0{i}" for i in range(3))
CONVERTED = tuple(f"converted/task0{i}" for i in range(3))
REPORT = ("old-report.md", "old-report-norms.svg", "old-report-similarity.svg")
PLAIN = ("merged", *RESIZED, *EXPORTED, *CONVERTED)
DEMO = ("small/adapters", "small/subspace", *(f"small/exported/{name}" for name in DEMO_TASKS))
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
    Command("report in/task00 in/task01 -o old-report.md --force", REPORT),
    Command("pull hf://org/plain -o out"),
    Command("pull hf://org/several -o out"),
    Command("pull hf://org/space -o old --force", ("old",)),
    Command("compress hf://org/plain in/task01 -o out -k 2"),
    Command("demo small --headless", DEMO, again="demo small --headless --force", done=(0,)),
    Command("analyze in --csv out.csv", ("out.csv",)),
    Command("interference in --csv out.csv", ("out.csv",)),
    Command("coverage basis in --csv out.csv", ("out.csv",)),
    Command("diff in/task00 in/task01 --csv old.csv --force", ("old.csv",)),
    Command("run --headless plain.toml", PLAIN, again="run --headless plain.toml --force"),
    Command("export in --target llamacpp --base base -o exported", EXPORTED, done=(0,)),
    Command("export basis task01 --target ollama --base base -o out"),
    Command("export in/task00 in/task01 in/task02 --dtype fp16 -o exported", EXPORTED, done=(0,)),
    Command("convert in --to gguf --base base -o exported", EXPORTED, done=(0,)),
    Command("convert in/task00 --to gguf --base base -o gguf-old --force", ("gguf-old",)),
    Command("convert in --to mlx -o exported", EXPORTED, done=(0,)),
    Command("doctor compiled/task00 --fix --base base -o out"),
    Command("doctor compiled --fix -o exported", EXPORTED[:2], done=(0,)),
    Command("doctor compiled/task00 --fix -o adapter --force", ("adapter",)),
    Command("resize in/task00 in/task01 in/task02 --target vllm -o exported", EXPORTED, done=(0,)),
    Command("quantize basis -o old --bits 4 --force", ("old",)),
    Command("spectra in", ()),
    Command("compress in -o out -k 2 --events events.jsonl", loose=("events.jsonl",)),
    Command("!save basis task01", (), in_place="basis"),
    Command("!save coded task01", (), in_place="coded"),
    Command("!job job.toml", ("out", *RESIZED), done=(0,), loose=("later",)),
    Command("!remove-job", (STATE,), done=(0,)),
]
