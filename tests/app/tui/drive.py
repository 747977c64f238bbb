"""Driving the interface in tests: an application, a size, what a user does."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from textual.app import App
from textual.pilot import Pilot

Steps = Callable[[Pilot[Any]], Awaitable[None]]


def run(app: App[Any], steps: Steps, size: tuple[int, int] = (120, 36)) -> None:
    """Start ``app`` on a terminal of this size and let ``steps`` use it."""

    async def go() -> None:
        async with app.run_test(size=size) as pilot:
            await pilot.pause()
            await steps(pilot)

    asyncio.run(go())
