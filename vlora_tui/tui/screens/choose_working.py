"""Figures of Choose k that take longer than a key may: a thread works them out, nearest first."""

from __future__ import annotations

from typing import TYPE_CHECKING

from textual.message import Message

from vlora_tui.tui.session import Choosing, Session

if TYPE_CHECKING:
    from textual.timer import Timer
    from textual.widget import Widget

QUIET_SECONDS = 0.2  # after the last key, before what stands beside the choice is worked out


class Computed(Message):
    """There are new figures: of the present choice, or (``done``) of all that was wanted."""

    def __init__(self, done: bool) -> None:
        super().__init__()
        self.done = done


class Working:
    """What is missing of the present choice, then of what stands beside it.

    Args:
        widget: Whose thread it is, and who is told by ``Computed``.
        session: Keeps the figures.
    """

    def __init__(self, widget: Widget, session: Session) -> None:
        self._widget, self._session = widget, session
        self._running = False
        self._wanted: tuple[Choosing, bool] | None = None
        self._quiet: Timer | None = None

    @property
    def busy(self) -> bool:
        """Whether there are figures to come."""
        return self._running or self._quiet is not None

    def want(self, *, beside: bool) -> None:
        """Have the present choice worked out at once if it is not known.

        Args:
            beside: What stands beside it too, once the keys are quiet.
        """
        if self._quiet is not None:
            self._quiet.stop()
            self._quiet = None
        if self._session.known_figures() is None:
            self._start(beside=False)
        elif beside and any(self._session.known_figures(c) is None for c in self._beside()):
            self._quiet = self._widget.set_timer(QUIET_SECONDS, self._start)

    def _beside(self) -> list[Choosing]:
        """The pins, and the other methods at the same bytes."""
        figures = self._session.known_figures()
        rivals = self._session.rivals(figures) if figures is not None else []
        return [*self._session.pins, *rivals]

    def _start(self, beside: bool = True) -> None:
        self._quiet = None
        self._wanted = (self._session.choosing, beside)
        if not self._running:
            self._running = True
            self._widget.run_worker(self._work, thread=True, group="figures", exit_on_error=False)

    def _work(self) -> None:
        """In a thread: the choice that is wanted, then what stands beside it."""
        try:
            while self._wanted is not None:
                wanted = self._wanted
                self._session.figures(wanted[0])
                self._widget.post_message(Computed(False))
                if wanted[1]:
                    for choosing in self._beside():
                        if self._wanted is not wanted:
                            break
                        self._session.figures(choosing)
                if self._wanted is wanted:
                    self._wanted = None
        finally:
            self._running = False
            self._widget.post_message(Computed(True))
