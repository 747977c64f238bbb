"""Conversion on Export: what the preview says is what the job writes, and the command too."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from tests.witnesses import make
from vlora_engine.catalog.read import read_manifest
from vlora_engine.catalog.scanner import scan
from vlora_tui.cli import main
from vlora_tui.pipeline import events
from vlora_tui.pipeline.run import Run
from vlora_tui.tui.export.form_rows import form_lines, turned
from vlora_tui.tui.export.plan import plan
from vlora_tui.tui.export.recipes import command_of, recipe_of
from vlora_tui.tui.export.settings import FORMATS, Settings, Source, adapters_of, tasks_of


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Source]:
    """Three adapters as they lie, and a subspace of them."""
    folder = tmp_path_factory.mktemp("convert")
    paths = make.collection(folder / "in", 3)
    assert main(["compress", *map(str, paths), "-o", str(folder / "out"), "-k", "8", "-q"]) == 0
    return {
        "adapters": adapters_of(scan([folder / "in"]).adapters),
        "subspace": tasks_of(read_manifest(folder / "out")),
    }


@pytest.mark.parametrize("kind", ["adapters", "subspace"])
@pytest.mark.parametrize("to", ["mlx", "vlora-dev", "lorashare"])
@pytest.mark.parametrize("many", [2, 3])
def test_the_job_writes_where_the_preview_says_and_the_command_the_same(
    sources: dict[str, Source], kind: str, to: str, many: int, tmp_path: Path
) -> None:
    source = sources[kind]
    marked = [item.name for item in source.items][:many]
    settings = Settings(doing="convert", to=to, converted=str(tmp_path / "made"))
    planned = plan(source, marked, settings)
    assert planned.problem is None
    told: list[events.Event] = []
    Run(recipe_of(source, marked, settings), told.append).execute()
    written = [event for event in told if isinstance(event, events.Converted)]
    assert [row.path for row in planned.rows] == [Path(event.path) for event in written]
    assert all(event.error < 1e-6 for event in written)
    before = tree(tmp_path / "made")
    assert before
    recipe = recipe_of(source, marked, settings)
    assert main(shlex.split(command_of(recipe, force=True))[1:]) == 0
    assert tree(tmp_path / "made").keys() == before.keys()


def tree(folder: Path) -> dict[str, int]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.stat().st_size for path in files}


def test_the_form_goes_through_every_format() -> None:
    settings = Settings(doing="convert", converted="/made")
    seen = []
    for _ in FORMATS:
        seen.append(settings.to)
        rows = {row.key: row for row in form_lines(settings, ["a"])}
        assert ("base" in rows) == (settings.to == "gguf")
        assert rows["allow_loss"].value == "refuse"
        settings = turned(settings, "to", 1)
    assert seen == list(FORMATS)
    assert turned(settings, "allow_loss", 1).allow_loss
