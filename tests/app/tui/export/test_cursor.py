"""Step 5: details and keys are about the line that the cursor is on."""

from __future__ import annotations

from typing import Any

from textual.pilot import Pilot

from tests.app.tui.export.screen import buttons, settle, use, view, words
from vlora_tui.tui.app.keys import Keys
from vlora_tui.tui.core.session import Session


def last_line(pilot: Pilot[Any]) -> list[str]:
    return [f"{key.display} {key.name}" for key in pilot.app.query_one(Keys).shown]


def test_the_details_follow_the_cursor_of_the_list(marked: Session) -> None:
    async def steps(pilot: Pilot[Any]) -> None:
        names = [item.name for item in view(pilot)._items.table.rows]
        for name in names:
            assert words(pilot, "#details-said").splitlines()[0] == name
            await pilot.press("down")
            await settle(pilot)
        await pilot.press("g", "space", "g")
        await settle(pilot)
        assert words(pilot, "#details-said") == f"{names[0]} is not marked: Space marks it."
        await pilot.press("down")
        await settle(pilot)
        assert words(pilot, "#details-said").splitlines()[0] == names[1]

    use(marked, steps)


def test_the_key_that_writes_is_shown_where_it_writes(marked: Session) -> None:
    async def steps(pilot: Pilot[Any]) -> None:
        assert "w Write" in last_line(pilot)
        await pilot.press("plus")  # unmarks all
        await settle(pilot)
        assert "Nothing selected" in buttons(pilot)
        assert "w Write" not in last_line(pilot)
        await pilot.press("plus")
        await settle(pilot)
        assert "w Write" in last_line(pilot)

    use(marked, steps)


def test_a_pane_shows_no_key_that_does_nothing_there(marked: Session) -> None:
    async def steps(pilot: Pilot[Any]) -> None:
        assert "Space Mark" in last_line(pilot)
        view(pilot).go_to_pane("export-details")
        await settle(pilot)
        assert "Space Mark" not in last_line(pilot)
        assert "Enter Open" not in last_line(pilot)

    use(marked, steps)
