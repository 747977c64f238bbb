"""The table: what it draws in a size that it has not heard of yet."""

from __future__ import annotations

from typing import Any

import pytest
from textual.app import App, ComposeResult
from textual.pilot import Pilot

from tests.app.tui.drive import run, screen_lines
from vlora_tui.tui.widgets.table import Column, Table

ROWS = ["a name of some length", "another one"]


class TableApp(App[None]):
    """A table that has its rows before it has a size."""

    def compose(self) -> ComposeResult:
        table: Table[str] = Table([Column("name", "name")], lambda row: [(row, "")], key=str)
        table.show(ROWS)
        yield table


def test_the_first_frame_has_the_cells_in_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Table, "on_resize", lambda self, event: None)  # not yet

    async def steps(pilot: Pilot[Any]) -> None:
        lines = screen_lines(pilot.app)
        assert [row for row in ROWS if any(row in line for line in lines)] == ROWS

    run(TableApp(), steps, size=(60, 10))
