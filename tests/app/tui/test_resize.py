"""A terminal that is enlarged or made smaller looks as one that had that size from the start."""

from __future__ import annotations

from typing import Any

from textual.pilot import Pilot

from tests.app.tui.drive import run
from tests.app.tui.test_snapshots import (  # noqa: F401  (fixtures)
    Collection,
    _frozen,
    collection,
    jobs,
    opened,
    picture,
    still,
)
from vlora_tui.tui.app.app import VLoRAApp
from vlora_tui.tui.core.messages import JobsChanged

SIZES = [(120, 36), (80, 24), (60, 20), (40, 12)]
STEP_IDS = ["adapters", "choose", "run", "inspect", "export"]


async def seen(app: VLoRAApp, pilot: Pilot[Any], step: str) -> list[str]:
    """The text of a step."""
    app.jobs.views = jobs()
    await app.show_step(step)
    app.show_change(JobsChanged())
    await still(pilot)
    return text_of(app, step)


def text_of(app: VLoRAApp, step: str) -> list[str]:
    """What is drawn; of Run without its keys, as the pane in front on a small screen keeps the
    focus, and keys are those of the focus.
    """
    lines = picture(app)
    return lines[: lines.index("") - (step == "run")]


_fresh: dict[tuple[int, int], dict[str, list[str]]] = {}


def fresh(collection: Collection, size: tuple[int, int]) -> dict[str, list[str]]:  # noqa: F811
    """The text of every step in an application that had this size from the start."""
    if size not in _fresh:
        app = opened(collection, "textual-dark")
        found: dict[str, list[str]] = {}

        async def steps(pilot: Pilot[Any]) -> None:
            await still(pilot)
            for step in STEP_IDS:
                found[step] = await seen(app, pilot, step)

        run(app, steps, size)
        _fresh[size] = found
    return _fresh[size]


def test_every_step_follows_every_resize(collection: Collection) -> None:  # noqa: F811
    wanted = {size: fresh(collection, size) for size in SIZES}
    app = opened(collection, "textual-dark")

    async def steps(pilot: Pilot[Any]) -> None:
        await still(pilot)
        for step in STEP_IDS:
            await seen(app, pilot, step)
            for size in [*SIZES[-2::-1], *SIZES[1:], SIZES[0], SIZES[-1]]:
                await pilot.resize_terminal(*size)
                await still(pilot)
                assert text_of(app, step) == wanted[size][step], (step, size)

    run(app, steps, SIZES[-1])


def test_a_step_out_of_view_follows_too(collection: Collection) -> None:  # noqa: F811
    large, small = SIZES[0], SIZES[-1]
    wanted = fresh(collection, large)
    app = opened(collection, "textual-dark")

    async def steps(pilot: Pilot[Any]) -> None:
        await still(pilot)
        for step in STEP_IDS[1:]:
            await seen(app, pilot, step)
            await app.show_step("adapters")
            await pilot.resize_terminal(*large)
            await still(pilot)
            assert await seen(app, pilot, step) == wanted[step], step
            await pilot.resize_terminal(*small)

    run(app, steps, small)


def test_no_step_is_drawn_in_the_arrangement_of_another_size(
    collection: Collection,  # noqa: F811
) -> None:
    app = opened(collection, "textual-dark")
    drawn: list[tuple[tuple[int, int], set[str]]] = []
    arranged = {"one", "short", "-narrow", "-tiny"}

    async def steps(pilot: Pilot[Any]) -> None:
        await still(pilot)
        lay_out = app.screen._refresh_layout

        def noted(size: Any = None, scroll: bool = False) -> None:
            drawn.append((tuple(size or app.size), set(app.view.classes)))
            lay_out(size, scroll)

        app.screen._refresh_layout = noted  # type: ignore[method-assign]
        for step in STEP_IDS[1:]:
            await seen(app, pilot, step)
            small = set(app.view.classes)
            drawn.clear()
            await pilot.resize_terminal(120, 36)
            await still(pilot)
            large = set(app.view.classes)
            assert large != small, step
            assert {frozenset(c & arranged) for size, c in drawn if size == (120, 36)} == {
                frozenset(large & arranged)
            }, step
            await pilot.resize_terminal(40, 12)
            await still(pilot)

    run(app, steps, (40, 12))
