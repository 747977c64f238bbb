"""The screen that the steps are on: Textual's, that paints what changed, and once."""

from __future__ import annotations

from typing import Any

from textual.reactive import Reactive
from textual.screen import Screen
from textual.widget import Widget

MOST_HELD = 3  # layouts in a row that wait for each other; then it is painted as it is


class StepScreen(Screen[Any]):
    """A screen that waits with painting until its widgets know of their sizes.

    Textual paints right after each layout and tells the widgets of their sizes then, so that all
    of those that fit their content to their size are painted twice.
    """

    # Textual's repaints the whole screen whenever the focus moves; the widgets do that themselves.
    focused: Reactive[Widget | None] = Reactive(None, repaint=False)

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._is_holding = False  # what is laid out now is not painted at once
        self._held = 0  # layouts in a row that were not painted yet

    def lay_out(self) -> None:
        """Have what is painted next laid out before: nothing of a step that went out of view."""
        self._layout_required = True
        self.check_idle()

    def _on_timer_update(self) -> None:
        before = self._held
        self._is_holding = self._layout_required and before < MOST_HELD
        try:
            super()._on_timer_update()
        finally:
            self._is_holding = False
        if not self._held or not self.is_current:
            return  # what comes back from behind a dialog is painted whole
        if self._held == before and not self.app._batch_count:
            self._compositor_refresh()  # nothing came meanwhile that had it painted
            self.call_next(self._invoke_and_clear_callbacks)
        else:
            self._update_timer.resume()

    def _compositor_refresh(self) -> None:
        if self._is_holding:
            self._held += 1  # the compositor keeps what has changed
            return
        self._held = 0
        super()._compositor_refresh()

    async def _invoke_and_clear_callbacks(self) -> None:
        if not self._held:  # what can wait until all is painted does
            await super()._invoke_and_clear_callbacks()
