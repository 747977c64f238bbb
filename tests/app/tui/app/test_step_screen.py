"""The screen of the steps paints what is laid out once, and on a move of the focus what it moves.

Textual's own screen, beside it, shows that each test can fail.
"""

from __future__ import annotations

from typing import Any

import pytest
from textual.app import App, ComposeResult
from textual.geometry import Region, Size
from textual.screen import Screen
from textual.widget import Widget
from textual.widgets import ContentSwitcher

from tests.app.tui.drive import run, until
from tests.app.tui.inspect.test_inspect import settle
from vlora_tui.tui.app.app import STEPS, VLoRAApp
from vlora_tui.tui.app.step_screen import MOST_LOOKS, StepScreen

SCREENS = [StepScreen, pytest.param(Screen, marks=pytest.mark.xfail(strict=True))]


class Fitted(Widget):
    """What fits its content to its size when it is told of it, as tables and heat maps do."""

    DEFAULT_CSS = "Fitted { height: 3; }"

    def __init__(self) -> None:
        super().__init__()
        self.fitted = Size()
        self.painted: list[bool] = []  # whether it knew the size that it was painted at

    def on_resize(self) -> None:
        self.fitted = self.size
        self.refresh()

    def render(self) -> str:
        self.painted.append(self.fitted == self.size)
        return "words"


class Focusable(Widget, can_focus=True):
    DEFAULT_CSS = "Focusable { height: 2; &:focus { background: $primary; } }"


class OnScreen(App[None]):
    def __init__(self, screen: type[Screen[Any]]) -> None:
        super().__init__()
        self.kind = screen

    def get_default_screen(self) -> Screen[Any]:
        return self.kind(id="_default")

    def compose(self) -> ComposeResult:
        yield Focusable(id="first")
        yield Focusable(id="second")


@pytest.mark.parametrize("screen", SCREENS)
def test_nothing_is_painted_before_it_knows_its_size(screen: type[Screen[Any]]) -> None:
    app = OnScreen(screen)

    async def steps(pilot: Any) -> None:
        for _ in range(3):
            widget = Fitted()
            await app.mount(widget)
            await until(pilot, lambda: widget.painted, "it was painted")  # noqa: B023
            assert all(widget.painted)

    run(app, steps)


@pytest.mark.parametrize("screen", SCREENS)
def test_where_the_focus_moves_the_screen_is_not_painted_again(
    screen: type[Screen[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    app = OnScreen(screen)
    painted: list[str | None] = []
    refresh = Widget.refresh

    def counted(widget: Widget, *regions: Region, repaint: bool = True, **how: bool) -> Widget:
        if repaint and not regions:
            painted.append(widget.id)
        return refresh(widget, *regions, repaint=repaint, **how)

    async def steps(pilot: Any) -> None:
        await pilot.pause()
        with monkeypatch.context() as patch:
            patch.setattr(Widget, "refresh", counted)
            for name in ("#second", "#first"):
                app.query_one(name).focus()
                await until(pilot, lambda: app.focused is app.query_one(name), "focus")  # noqa: B023
                await pilot.pause()
        assert set(painted) == {"first", "second"}

    run(app, steps)


def test_what_waits_for_a_refresh_does_not_hold_up_the_paint(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    app = OnScreen(StepScreen)
    looks: list[int] = []
    refresh = StepScreen._compositor_refresh

    def noted(screen: StepScreen) -> None:
        looks.append(screen._looks)
        refresh(screen)

    async def steps(pilot: Any) -> None:
        monkeypatch.setattr(StepScreen, "_compositor_refresh", noted)
        called: list[int] = []
        widget = Fitted()
        await app.mount(widget)
        app.screen.call_after_refresh(called.append, 1)
        await until(pilot, lambda: called and widget.painted, "both came")
        assert max(looks) < MOST_LOOKS

    run(app, steps)


def test_a_layout_that_never_comes_to_rest_is_painted_all_the_same() -> None:
    app = OnScreen(StepScreen)

    class Restless(Widget):
        painted = 0

        def on_resize(self) -> None:
            self.styles.height = 2 if self.size.height == 3 else 3

        def render(self) -> str:
            self.painted += 1
            return "words"

    async def steps(pilot: Any) -> None:
        widget = Restless()
        await app.mount(widget)
        await until(pilot, lambda: widget.painted > 2, "it was painted")

    run(app, steps)


def test_the_other_steps_are_made_out_of_sight_once_the_list_is_there() -> None:
    app = VLoRAApp()

    async def steps(pilot: Any) -> None:
        await settle(pilot)
        app._make_ahead()  # a terminal's own application does once nothing else is to be done
        steps = app.query_one(ContentSwitcher)
        made = {step.id for step in STEPS}
        await until(pilot, lambda: {w.id for w in steps.children} == made, "all steps are made")
        assert [w.id for w in steps.children if w.display] == ["adapters"]
        inside = [w for w in app.screen.focus_chain if app.view not in w.ancestors_with_self]
        assert not inside, "keys go to what is in sight alone"
        for step in STEPS:
            await pilot.press(step.key)
            await until(pilot, lambda: app.view.id == step.id, "the step is shown")  # noqa: B023
        assert len(steps.children) == len(STEPS)

    run(app, steps)
