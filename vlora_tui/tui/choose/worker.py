"""Figures that take longer than a key may: worked out in a thread, the latest wish first."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from textual.message import Message

from vlora_engine.compression_target import CompressionTarget
from vlora_tui.tui.choose.data import Atlas, Shown
from vlora_tui.tui.choose.sizes import Sizes
from vlora_tui.tui.core.session import Figures
from vlora_tui.tui.core.view import View

if TYPE_CHECKING:
    from textual.timer import Timer

    from vlora_engine.spectra.tables import Spectra

QUIET_SECONDS = 0.2  # after the last key, before what stands beside the choice is worked out
ARRIVING_SECONDS = 2.0  # at most one repaint in this time while spectra arrive


class Figuring(View):
    """A view of the present choice that is drawn from what is known, and again when more is.

    Subclasses draw in ``redraw``, which calls ``look_up`` first and ``work`` afterwards.
    """

    class Computed(Message):
        """A worker has figures: of the present choice, or of what stands beside it."""

        def __init__(self, done: bool) -> None:
            super().__init__()
            self.done = done

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.shown_as = Shown()
        self._atlas: Atlas | None = None
        self._sizes: Sizes | None = None
        self._last: Figures | None = None  # of the present choice, or of the one before it
        self._working = False
        self._wanted: tuple[CompressionTarget, bool] | None = None
        self._quiet: Timer | None = None
        self._more_arrived = False
        self._arriving: Timer | None = None

    def redraw(self) -> None:
        """Draw everything from the session, as far as it is known."""
        raise NotImplementedError

    def look_up(self, spectra: Spectra) -> Figures | None:
        """The figures of the present choice, about or exactly; None where nothing is known."""
        if self._atlas is None or self._atlas.version != self.session.version:
            self._atlas = Atlas(spectra, self.session.version)
            self._sizes = Sizes(spectra, self.session.version)
        figures, last = self.session.known_figures(), self._last
        if figures is not None:
            self._last = figures
        elif last is not None:
            same = last.choosing.method == self.session.choosing.method
            known = last.choice is None or last.choice.k.keys() <= spectra.layers.keys()
            self._last = last if known and same else None
        if figures is None and self._sizes is not None:
            return self._sizes.estimate(self.session.choosing)
        return figures

    def work(self) -> None:
        """Have what is missing worked out: the choice at once, the rest when keys are quiet.

        A choice that is about known can wait for that quiet, too.
        """
        if self._quiet is not None:
            self._quiet.stop()
            self._quiet = None
        if self.session.known_figures() is None:
            about = self._sizes is not None and self._sizes.estimate(self.session.choosing)
            if about is None:
                self._compute(beside=False)
            else:
                self._quiet = self.set_timer(QUIET_SECONDS, self._compute)
        elif not self._is_arriving and self._lacks():
            self._quiet = self.set_timer(QUIET_SECONDS, self._compute)

    def beside(self) -> list[CompressionTarget]:
        """What stands beside the present choice: pins, and other methods at its bytes."""
        figures = self.session.known_figures()
        rivals = self.session.rivals(figures) if figures is not None else []
        return [*self.session.pins, *rivals]

    @property
    def at_work(self) -> bool:
        """Whether anything is still to be worked out."""
        return self._working or self._quiet is not None or self._lacks()

    def _lacks(self) -> bool:
        """Whether anything beside the present choice is not worked out."""
        unread = self._sizes is not None and self._sizes.is_unread
        curves = self._wants_curves and self._sizes is not None and self._sizes.has_more
        return unread or curves or any(self.session.known_figures(c) is None for c in self.beside())

    @property
    def _wants_curves(self) -> bool:
        return self.shown_as.sizes or self.session.choosing.is_coded

    def _compute(self, beside: bool = True) -> None:
        self._quiet = None
        self._wanted = (self.session.choosing, beside)
        if not self._working:
            self._working = True
            self.run_worker(self._computing, thread=True, group="figures", exit_on_error=False)

    def _computing(self) -> None:
        """In a thread: the choice that is wanted, then what stands beside it, then curves."""
        try:
            while (wanted := self._wanted) is not None:
                self.session.figures(wanted[0])
                self.post_message(self.Computed(False))
                if wanted[1]:
                    self._compute_beside(wanted)
                if self._wanted is wanted:
                    self._wanted = None
        finally:
            self._working = False
            self.post_message(self.Computed(True))

    def _compute_beside(self, wanted: tuple[CompressionTarget, bool]) -> None:
        sizes = self._sizes
        if sizes is None:
            return

        def changed() -> bool:
            return self._wanted is not wanted

        sizes.read()
        for choosing in self.beside():
            if changed():
                return
            self.session.figures(choosing)
        while self._wants_curves and not changed() and sizes.work(changed):
            self.post_message(self.Computed(False))

    def on_figuring_computed(self, event: Computed) -> None:
        event.stop()
        # What stands beside the choice is old with the next layer: it is drawn once all are there.
        if self.vlora.view is self and not (event.done and self._is_arriving):
            self.redraw()

    # layers that arrive

    @property
    def _is_arriving(self) -> bool:
        spectra = self.session.spectra
        return spectra is not None and not spectra.complete

    def spectra_changed(self, spectra: Spectra) -> None:
        """Draw layers that came, now and then while more are coming."""
        if spectra.complete:
            self.redraw()
        elif self._arriving is None:
            self._arriving = self.set_timer(ARRIVING_SECONDS, self._arrived)
            self._draw_arrived()
        else:
            self._more_arrived = True

    def _arrived(self) -> None:
        """The time between two repaints is over; layers that came meanwhile are drawn now."""
        self._arriving = None
        if self._more_arrived and self.vlora.view is self:
            self._more_arrived = False
            self.changed("spectra")

    def _draw_arrived(self) -> None:
        """Draw new layers once, together with their figures."""
        if self._atlas is None or self.session.known_figures() is not None:
            self.redraw()
        else:
            self.work()
