"""Driving the interface in tests: an application, a size, what a user does."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any

import pytest
from textual.app import App
from textual.pilot import Pilot
from textual.strip import Strip

from vlora_tui.tui.widgets.table import Table

Steps = Callable[[Pilot[Any]], Awaitable[None]]
PATIENCE = 60.0  # only a broken test waits so long
LOOK_SECONDS = 0.02


def run(app: App[Any], steps: Steps, size: tuple[int, int] = (120, 36)) -> None:
    """Start ``app`` on a terminal of this size and let ``steps`` use it."""

    async def go() -> None:
        async with app.run_test(size=size) as pilot:
            await pilot.pause()
            await steps(pilot)

    asyncio.run(go())


async def resized(
    pilot: Pilot[Any], sizes: Iterable[tuple[int, int]]
) -> AsyncIterator[tuple[int, int]]:
    """Give the terminal one size after the other, in one application; the size it has."""
    for size in sizes:
        await pilot.resize_terminal(*size)
        yield size


async def until(pilot: Pilot[Any], holds: Callable[[], object], what: str) -> None:
    """Look again and again until ``holds()``: for what a thread or another process does."""
    __tracebackhide__ = True
    end = time.monotonic() + PATIENCE
    while not holds():
        if time.monotonic() > end:
            pytest.fail(f"in {PATIENCE:.0f} s it never came to this: {what}")
        await asyncio.sleep(LOOK_SECONDS)  # the application goes on meanwhile
    await pilot.pause(0)


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
