"""What ``Y`` copies, run in a shell, makes the same bytes as Enter."""

from __future__ import annotations

import shlex
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.app.tui.choose.coded.collection import related
from tests.app.tui.core.test_bad_adapters import with_nan
from tests.app.tui.run.test_run import session_of
from tests.witnesses import make
from vlora_engine.catalog.read import read_manifest
from vlora_engine.compression_target import CompressionTarget
from vlora_tui.cli import main
from vlora_tui.pipeline.run import Run
from vlora_tui.tui.export.recipes import command_of, recipe_of
from vlora_tui.tui.export.settings import Settings, Source, adapters_of, tasks_of

LAYER = next(iter(make.MODULES))


@pytest.mark.parametrize(
    "choosing",
    [
        CompressionTarget("delta", max_error=0.05),
        CompressionTarget(k=3, layers={LAYER: 5}),
        CompressionTarget(k=3, layers=dict.fromkeys(make.MODULES, (2, 4)), dtype="fp16"),
        CompressionTarget(k_a=3, k_b=5, refine=1),
        CompressionTarget(variance=0.9, adaptive=True),
        CompressionTarget(k=4, quantize="int4", block_size=16, double_quant=False),
        CompressionTarget("columns", variance=0.912345678, dtype="fp32"),
        CompressionTarget("delta", budget=30_000),
        CompressionTarget("flat", mean_error=0.3, dtype="bf16"),
        CompressionTarget("auto", max_error=0.05),
        CompressionTarget("own", mean_error=0.1),
    ],
    ids=lambda c: f"{c.method}-{c.goal[0]}",
)
def test_the_copied_command_makes_the_same_subspace(
    choosing: CompressionTarget, tmp_path: Path
) -> None:
    folder = tmp_path / "a b"
    session = session_of(related(folder) if choosing.is_coded else make.collection(folder, 4))
    session.choose(choosing)
    session.output = str(tmp_path / "by command")
    words = shlex.split(session.command())
    assert words[0] == "vlora-tui"
    assert main(words[1:]) == 0
    recipe = replace(session.recipe(), output=str(tmp_path / "by enter"))
    Run(recipe, lambda event: None).execute()
    assert_same(tmp_path / "by command", tmp_path / "by enter")


def assert_same(one: Path, two: Path) -> None:
    """Two folders hold the same bytes."""
    files = sorted(p.relative_to(one) for p in one.rglob("*") if p.is_file())
    assert files
    assert files == sorted(p.relative_to(two) for p in two.rglob("*") if p.is_file())
    for file in files:
        assert (one / file).read_bytes() == (two / file).read_bytes(), file


def test_the_copied_command_leaves_out_what_enter_leaves_out(tmp_path: Path) -> None:
    session = session_of([*make.collection(tmp_path / "in", 3), with_nan(tmp_path / "in")])
    session.choose(CompressionTarget(k=3))
    session.leave_out(path for path in session.infos if path.endswith("with-nan"))
    session.output = str(tmp_path / "out")
    assert main(shlex.split(session.command())[1:]) == 0
    assert len(read_manifest(tmp_path / "out").tasks) == 3


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Source]:
    """Tasks of a subspace, and adapters as they lie, one name with a blank and one twice."""
    folder = tmp_path_factory.mktemp("sources")
    paths = make.collection(folder / "a b", 3)
    place = folder / "subspace"
    assert main(["compress", *map(str, paths), "-o", str(place), "-k", "4", "-q"]) == 0
    twin = make.write(folder / "other" / paths[0].name, make.factors(seed=9))
    infos = session_of([*paths, twin]).included
    return {"subspace": tasks_of(read_manifest(place)), "adapters": adapters_of(infos)}


MERGES: dict[str, dict[str, Any]] = {
    "average": {"method": "average", "weights": {"task01": 0.7}, "dtype": "fp16"},
    "ties": {"method": "ties", "normalize": False, "scale": "1.5", "rank": "3"},
    "dare": {"method": "dare", "parameters": {"seed": "7", "drop_rate": "0.2"}, "energy": "0.9"},
    "breadcrumbs": {"method": "breadcrumbs", "parameters": {"gamma": "0.1"}, "normalize": True},
    "factors": {"method": "average", "space": "factors", "layers": "*.c_attn=1,-0.5"},
}


@pytest.mark.parametrize("kind", ["subspace", "adapters"])
@pytest.mark.parametrize("name", list(MERGES))
def test_the_copied_command_makes_the_same_merge(
    sources: dict[str, Source], kind: str, name: str, tmp_path: Path
) -> None:
    source = sources[kind]
    marked = [item.name for item in source.items][1:3]
    settings = Settings(doing="merge", merged=f"{tmp_path}/by enter", **MERGES[name])
    assert_command_does_the_same(source, marked, settings, tmp_path)


@pytest.mark.parametrize("kind", ["subspace", "adapters"])
@pytest.mark.parametrize(
    "asked",
    [
        {"rule": "rank", "new_rank": "2"},
        {"rule": "energy", "share": "0.9", "verify": False},
        {"rule": "server", "server": "vllm"},
    ],
    ids=lambda asked: asked["rule"],
)
def test_the_copied_commands_resize_the_same(
    sources: dict[str, Source], kind: str, asked: dict[str, Any], tmp_path: Path
) -> None:
    source = sources[kind]
    names = [item.name for item in source.items]
    settings = Settings(doing="resize", resized=f"{tmp_path}/by enter/{{task}}", **asked)
    for marked in (names, names[:1], names[:2]):
        assert_command_does_the_same(source, marked, settings, tmp_path)


@pytest.mark.parametrize("target", ["peft", "vllm", "portable"])
def test_the_copied_command_exports_the_same(
    sources: dict[str, Source], target: str, tmp_path: Path
) -> None:
    source = sources["subspace"]
    names = [item.name for item in source.items]
    out = f"{tmp_path}/by enter/{{task}}"
    for marked, dtype in ((names, "fp16"), (names[:2], None), (names[:1], "bf16")):
        settings = Settings(out=out, target=target, dtype=dtype)
        assert_command_does_the_same(source, marked, settings, tmp_path)


def assert_command_does_the_same(
    source: Source, marked: list[str], settings: Settings, folder: Path
) -> None:
    """Enter, then what ``Y`` copies, in the same place one after the other."""
    recipe = recipe_of(source, marked, settings)
    Run(recipe, lambda event: None, force=True).execute()
    (folder / "by enter").rename(folder / "kept")
    for command in command_of(recipe, [item.name for item in source.items]).split(" && "):
        words = shlex.split(command)
        assert words[0] == "vlora-tui"
        assert main(words[1:]) == 0
    assert_same(folder / "kept", folder / "by enter")
    shutil.rmtree(folder / "kept")
    shutil.rmtree(folder / "by enter")
