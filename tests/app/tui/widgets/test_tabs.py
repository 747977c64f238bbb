"""The line of pane names on terminals that show one pane at a time."""

from __future__ import annotations

from typing import Any

import pytest
from textual.app import App, ComposeResult

from tests.app.tui.drive import run
from vlora_tui.tui.widgets.tabs import PaneTabs, Tab

TABS = [Tab(name, name.title(), 12) for name in ("likeness", "layers", "groups", "apart", "found")]


class Tabs(App[None]):
    def compose(self) -> ComposeResult:
        yield PaneTabs()


@pytest.mark.parametrize("width", [30, 40, 80])
def test_the_pane_in_view_is_always_named(width: int) -> None:
    app = Tabs()

    async def steps(pilot: Any) -> None:
        tabs = app.query_one(PaneTabs)
        for current in [tab.id for tab in TABS]:
            tabs.show(TABS, current)
            await pilot.pause()
            line = tabs.render_line(0).text
            assert current.title() in line
            assert ("12" in line) == (width == 80)  # numbers go first where room is short

    run(app, steps, (width, 3))
