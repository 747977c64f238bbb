"""Driving the interface in tests: an application, a size, what a user does."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from textual.app import App
from textual.pilot import Pilot
from textual.strip import Strip

from vlora_tui.tui.widgets.table import Table

Steps = Callable[[Pilot[Any]], Awaitable[None]]


def run(app: App[Any], steps: Steps, size: tuple[int, int] = (120, 36)) -> None:
    """Start ``app`` on a terminal of this size and let ``steps`` use it."""

    async def go() -> None:
        async with app.run_test(size=size) as pilot:
            await pilot.pause()
            await steps(pilot)

    asyncio.run(go())


def screen_strips(app: App[Any]) -> list[Strip]:
    """The lines of the screen as they are drawn, with their styles.

    Textual has no public way to them but a picture; this is the one place that reaches for them.
    """
    return app.screen._compositor.render_strips()


def screen_lines(app: App[Any]) -> list[str]:
    """The texts of the lines of the screen."""
    return [strip.text for strip in screen_strips(app)]


def cells(table: Table[Any]) -> list[list[str]]:
    """The texts of all rows of a table, whole, whatever there is room for."""
    return [[text for text, _ in table.cells_of(row)] for row in table.rows]
