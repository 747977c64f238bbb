"""How the fuzzer reads each kind of input: all of it, as a user would."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.fuzz.examples import run
from tests.witnesses import make

refused: list[str] = []  # what parts of a call were refused, where others go on


@contextlib.contextmanager
def tolerated() -> Iterator[None]:
    """Go on after an error of the program's own, and remember it."""
    from vlora_engine.errors import VLoRAError

    try:
        yield
    except VLoRAError as error:
        refused.append(error.what)


def tensors(folder: Path) -> None:
    from vlora_engine.utils.safetensors_file import close_file, read_header, read_tensor

    header = read_header(folder / "x.safetensors")
    for name, entry in header.entries.items():
        assert tuple(read_tensor(header, name).shape) == entry.shape
    close_file(header.path)


def adapters(folder: Path) -> None:
    from vlora_engine.catalog.open import open_adapter
    from vlora_engine.catalog.scanner import scan

    for info in scan(folder).adapters:
        info.as_dict()
    for path in sorted(folder.iterdir()):
        with tolerated():
            source = open_adapter(path)
            for module in source.modules:
                a, b = source.read(module)
                assert a.shape[0] == b.shape[1]
            source.read_rest()
            source.digest()


def diagnosed(folder: Path) -> None:
    from vlora_engine.doctor.examine import diagnose

    adapters(folder)
    diagnose([str(path) for path in sorted(folder.iterdir())])


def subspaces(folder: Path) -> None:
    from vlora_engine.catalog.load import load_space
    from vlora_engine.catalog.scanner import scan
    from vlora_engine.doctor.subspace_check import check_subspace
    from vlora_engine.utils.safetensors_file import close_below

    scan(folder)
    for path in sorted(folder.iterdir()):
        with tolerated():
            check_subspace(path)
        with tolerated():
            space = load_space(path)
            for name in space.tasks:
                with tolerated():
                    _finite(space.reconstruct(name))
        close_below(path)


def in_basis(folder: Path) -> None:
    from vlora_engine.shared_subspace import SharedSubspace

    subspaces(folder)
    with tolerated():
        opened = SharedSubspace.load(folder / "s")
        for name in opened.tasks:
            with tolerated():
                opened.in_basis().tasks[name]
        with tolerated():
            opened.with_basis(k=1)


def _finite(weights: Any) -> None:
    from vlora_engine.subspace.soundness import distinct

    for name in weights.layer_names:
        for factor in (weights.lora_a[name], weights.lora_b[name]):
            numbers = distinct(factor).float()
            assert bool(make.torch.isfinite(numbers).all()), "it is not finite"


def spectra(folder: Path) -> None:
    from vlora_engine.compression_target import CompressionTarget
    from vlora_engine.spectra.choose import choose
    from vlora_engine.spectra.tables import Spectra

    spectra = Spectra.load(folder / "spectra")
    targets = [{"k": 2}, {"max_error": 0.1}, {"budget": 30_000}, {"variance": 0.9}]
    for target in targets:
        with tolerated():
            choose(spectra, CompressionTarget(method="delta", **target))


def recipe(folder: Path) -> None:
    from vlora_tui.recipe.reader import load_recipe

    recipe = load_recipe(folder / "r.toml")
    recipe.to_toml()


def settings(folder: Path) -> None:
    from vlora_tui.utils.config import load_config

    before = os.environ.get("XDG_CONFIG_HOME")
    os.environ["XDG_CONFIG_HOME"] = str(folder)
    try:
        config = load_config()
    finally:
        del os.environ["XDG_CONFIG_HOME"]
        if before is not None:
            os.environ["XDG_CONFIG_HOME"] = before
    refused.extend(problem.what for problem in config.problems)


def router(folder: Path) -> None:
    from vlora_engine.nn.router import TaskRouter

    router = TaskRouter.load(folder / "r")
    weights = router(make.torch.zeros(1, router.input_dim))
    assert weights.shape == (1, router.num_tasks)


def drafts(folder: Path) -> None:
    from vlora_tui.jobs.drafts import Drafts, load_draft

    for path in (folder / "drafts").glob("*.toml"):
        with tolerated():
            load_draft(path)
    for draft in Drafts(folder).offered():
        with tolerated():
            draft.recipe()


def base_model(folder: Path) -> None:
    from vlora_engine.formats.base_model_config import find_base

    base = find_base(folder, None)
    for count in (base.layers, base.heads, base.kv_heads, base.hidden, base.head_dim):
        assert type(count) is int
        assert count > 0
    assert type(base.model_type) is str
    assert base.class_name is None or type(base.class_name) is str


def mergekit(folder: Path) -> None:
    from vlora_tui.recipe.mergekit import read_config

    read_config(str(folder / "m.yml"))


def jobs(folder: Path) -> None:
    for words in (["jobs", "list"], ["jobs", "list", "--json"], ["jobs", "show", "abcd"]):
        code, said = run(*words, "--state-dir", folder)
        assert "A bug in vlora-tui" not in said, said
        assert "Traceback" not in said, said
        assert code in (0, 2), said
        if words[1] == "list":
            assert "beef" in said, said
