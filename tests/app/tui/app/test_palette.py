"""The palette: everything by its name, in groups, one line each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot

from tests.app.tui.adapters.test_adapters import app, marked, settle
from tests.app.tui.drive import run
from tests.app.tui.test_snapshots import jobs
from vlora_engine.catalog.read import read_manifest
from vlora_tui.tui.adapters.places import remember_folder
from vlora_tui.tui.app.palette import Entry, Palette, fitness, matching, palette_entries
from vlora_tui.tui.widgets.table import Table


def lines(pilot: Pilot[Any]) -> list[str]:
    table = pilot.app.screen.query_one(Table)
    shown = min(table.size.height, len(table.rows))
    return [table.render_line(y).text.rstrip() for y in range(shown)]


def test_everything_has_an_entry(runs: Path, subspace: Path, tmp_path: Path) -> None:
    remember_folder(str(tmp_path))

    async def steps(pilot: Pilot[Any]) -> None:
        await settle(pilot)
        pilot.app.session.manifest = read_manifest(subspace)
        pilot.app.jobs.views = jobs()
        found = palette_entries(pilot.app)
        by_group: dict[str, list[str]] = {}
        for entry in found:
            by_group.setdefault(entry.group, []).append(entry.title)
        assert "Mark all rows shown" in by_group["Here"]
        assert len(by_group["Steps"]) == 5
        assert "Export, merge, resize or convert" in by_group["Export"]  # a command of another step
        assert by_group["Jobs"][0] == "compress 5 adapters, running"
        assert by_group["Adapters"] == ["task00", "task01", "task02", "task03"]
        assert by_group["Tasks"] == ["task00", "task01", "task02", "task03"]
        assert any(str(tmp_path) in title or "~" in title for title in by_group["Folders"])
        assert "Guide: Coming from lorashare" in by_group["Guides"]
        assert "What is dW?" in by_group["Terms"]
        assert any(title.startswith("scan_depth:") for title in by_group["Settings"])
        assert all("\n" not in entry.title for entry in found)

    run(app(runs), steps)


@pytest.mark.parametrize("size", [(120, 36), (80, 24), (40, 12)])
def test_typing_finds_and_enter_goes_there(runs: Path, size: tuple[int, int]) -> None:
    async def steps(pilot: Pilot[Any]) -> None:
        await settle(pilot)
        pilot.app.jobs.views = jobs()
        await pilot.press("colon", *"tsk02")
        assert isinstance(pilot.app.screen, Palette)
        assert "task02" in lines(pilot)[0]
        await pilot.press("enter")
        await settle(pilot)
        assert pilot.app.view.table.row.name == "task02"
        await pilot.press("colon", *"export 2 tasks", "enter")
        await settle(pilot)
        assert pilot.app.view.id == "run"
        assert pilot.app.view.job.job.id == "b0"
        await pilot.press("colon", *"mark all rows", "enter")  # of step 1, from step 3
        await settle(pilot)
        assert pilot.app.view.id == "adapters"
        assert len(marked(pilot)) == 4

    run(app(runs), steps, size)


def test_keys_stand_at_the_right_on_one_line(runs: Path) -> None:
    async def steps(pilot: Pilot[Any]) -> None:
        await settle(pilot)
        await pilot.press("colon", *"invert")
        first = lines(pilot)[0]
        assert "Invert marks" in first
        assert first.endswith("-")

    run(app(runs), steps)


def test_parts_come_before_letters_and_groups_stay_together() -> None:
    entries = list(
        enumerate(
            Entry(group, title, "", print)
            for group, title in (
                ("A", "merge two"), ("B", "mark every row gently"),
                ("A", "unmerged"), ("B", "merge"),
            )
        )
    )  # fmt: skip
    found = [entry.title for _, entry in matching(entries, "merge", ["A", "B"])]
    assert found == ["merge two", "unmerged", "merge"]  # letters that lie apart are not asked for
    found = [entry.title for _, entry in matching(entries, "mrge", ["A", "B"])]
    assert found == ["merge two", "unmerged", "merge", "mark every row gently"]
    assert fitness(["zz"], "merge") is None
    # Letters that lie apart count only where no entry has the word as it is.
    rows = list(enumerate([Entry("A", "Next pane", "", print), Entry("B", "Export", "", print)]))
    assert [entry.title for _, entry in matching(rows, "exp", ["A", "B"])] == ["Export"]
    assert [entry.title for _, entry in matching(rows[:1], "exp", ["A", "B"])] == ["Next pane"]
    assert [number for number, _ in matching(entries, "", ["A", "B"])] == [0, 1, 2, 3]
