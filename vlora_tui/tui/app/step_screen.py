"""The screen that the steps are on: Textual's, that paints what changed, and once."""

from __future__ import annotations

from typing import Any

from textual.reactive import Reactive
from textual.screen import Screen
from textual.widget import Widget

MOST_HELD = 3  # layouts in a row that wait for each other; then it is painted as it is
MOST_LOOKS = 12  # at a sixtieth of a second each, until all widgets know of their sizes


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
        self._looks = 0  # at widgets that had something to do before they can be painted

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
        if not self.is_current:
            self._held = 0  # what comes back from behind a dialog is painted whole
        if not self._held:
            return
        nothing_came = self._held == before and not self.app._batch_count
        if nothing_came and (self._all_know_their_sizes or self._looks == MOST_LOOKS):
            self._compositor_refresh()
            self.call_next(self._invoke_and_clear_callbacks)
        else:
            self._looks += nothing_came
            self._update_timer.resume()

    def _compositor_refresh(self) -> None:
        if self._is_holding:
            self._held += 1  # the compositor keeps what has changed
            return
        self._held = self._looks = 0
        super()._compositor_refresh()

    async def _invoke_and_clear_callbacks(self) -> None:
        if not self._held:  # what can wait until all is painted does
            await super()._invoke_and_clear_callbacks()

    @property
    def _all_know_their_sizes(self) -> bool:
        """Whether nobody in sight has a message left to answer, such as that of a new size."""
        others = (w for w in self._compositor.visible_widgets if w is not self)
        return not any(widget.message_queue_size for widget in others)
