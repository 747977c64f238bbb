"""Computes figures that take longer than a key may, in a thread, the latest request first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from textual.message import Message

from vlora_engine.compression_target import CODED_METHODS, CompressionTarget
from vlora_engine.spectra.byte_curves import OwnRates
from vlora_tui.tui.choose.data import PRESETS, LayerTables
from vlora_tui.tui.choose.sizes import Sizes
from vlora_tui.tui.core.session import Figures
from vlora_tui.tui.core.view import View

if TYPE_CHECKING:
    from textual.timer import Timer

    from vlora_engine.spectra.tables import Spectra

QUIET_SECONDS = 0.2  # after the last key, before the choice itself is worked out exactly
RESTED = 5  # so many of these before what stands beside it is: each press makes that anew
ARRIVING_SECONDS = 2.0  # at most one repaint in this time while spectra arrive


@dataclass(frozen=True, eq=False)
class _Wanted:
    """A choice to work out; ``curves`` in sight and what stands ``beside`` it, too."""

    choosing: CompressionTarget
    curves: bool
    beside: bool


class FiguresComputed(Message):
    """A worker has figures: of the present choice, or of what stands beside it."""

    def __init__(self, done: bool) -> None:
        super().__init__()
        self.done = done


class BackgroundFigures:
    """Has the figures that Choose k draws: looks up what is known, and has the rest worked out.

    The view calls ``look_up`` before it draws and ``work`` afterwards; it is drawn again when more
    is known (`FiguresComputed`), and now and then while layers arrive.

    Args:
        view: Lends its threads and timers.
        redraw: Draws the view.
        wants_curves: Whether it shows curves of size against error.

    Attributes:
        tables: What is worked out once for these spectra; ``sizes``: the same of size and error.
        last: The figures of the present choice, or of the one before it.
    """

    def __init__(
        self, view: View, redraw: Callable[[], None], wants_curves: Callable[[], bool]
    ) -> None:
        self.tables: LayerTables | None = None
        self.sizes: Sizes | None = None
        self.last: Figures | None = None
        self._view = view
        self._session = view.session
        self._redraw = redraw
        self._wants_curves = wants_curves
        self._working = False
        self._wanted: _Wanted | None = None
        self._quiet: Timer | None = None
        self._more_arrived = False
        self._arriving: Timer | None = None
        self._rates: tuple[Spectra | None, OwnRates] = None, OwnRates()

    def forget(self) -> None:
        """There are no spectra to look anything up in."""
        self.tables = self.sizes = None

    @property
    def at_work(self) -> bool:
        """Whether anything is still to be worked out."""
        return (
            self._working or self._quiet is not None or self._lacks_curves() or self._lacks_beside()
        )

    def look_up(self, spectra: Spectra) -> Figures | None:
        """The figures of the present choice, about or exactly; None where nothing is known."""
        self._look_at(spectra)
        figures, last = self._known(), self.last
        if figures is not None:
            self.last = figures
        elif last is not None:
            same = last.choosing.method == self._session.choosing.method
            self.last = last if same and _is_of(last, spectra) else None
        if figures is None and self.sizes is not None:
            return self.sizes.estimate(self._session.choosing)
        return figures

    def _look_at(self, spectra: Spectra) -> None:
        """Have tables of these spectra as they are by now."""
        version = self._session.version
        if self.tables is None or self.tables.version != version:
            tables, self.tables = self.tables, LayerTables(spectra, version)
            if tables is not None and tables.version[0] == version[0]:
                self.tables.take_over(tables)
        if self._rates[0] is not spectra:
            self._rates = spectra, OwnRates()
        version = version[0], spectra.coding_arrived
        if self.sizes is None or self.sizes.version != version:
            before = self.sizes
            self.sizes = Sizes(spectra, version, self._rates[1])
            if before is not None and before.version[0] == version[0]:
                self.sizes.take_over(before)
        self.sizes.add_methods()

    def _known(self) -> Figures | None:
        """The exact figures of the present choice, where they are known or at once."""
        if self._is_under_way:
            return None
        return self._session.cached_figures()

    @property
    def _is_under_way(self) -> bool:
        """Whether the choice is of a method whose costs are being measured."""
        return self._session.choosing.is_coded and self._session.is_coding_under_way

    def work(self) -> None:
        """Have what is missing worked out: the choice at once, or when keys are quiet where it is
        about known; curves then, too; and what stands beside it once keys rest.
        """
        if self._quiet is not None:
            self._quiet.stop()
            self._quiet = None
        if self._is_under_way:
            if self.sizes is not None and self.sizes.is_unread:
                self._compute()
            elif self._lacks_beside():
                self._rest()
        elif self._session.cached_figures() is None:
            about = self.sizes is not None and self.sizes.estimate(self._session.choosing)
            if about is None:
                self._compute()
            else:
                self._quiet = self._view.set_timer(QUIET_SECONDS, self._compute)
        elif not self._is_arriving and self._lacks_curves():
            self._quiet = self._view.set_timer(QUIET_SECONDS, partial(self._compute, curves=True))
        elif self._lacks_beside():
            self._rest()

    def _rest(self) -> None:
        """Once keys rest, have what stands beside the choice worked out."""
        more = partial(self._compute, curves=not self._is_arriving, beside=True)
        self._quiet = self._view.set_timer(RESTED * QUIET_SECONDS, more)

    def when_known(self, choosing: CompressionTarget, then: Callable[[Figures], None]) -> None:
        """Hand on the figures of a choice: at once where they are known, else from a thread."""
        known = self._session.cached_figures(choosing)
        if known is not None:
            then(known)
            return

        def work() -> None:
            figures = self._session.figures(choosing)
            self._view.app.call_from_thread(then, figures)

        self._view.run_worker(work, thread=True, group="known", exclusive=True)

    def beside(self) -> list[CompressionTarget]:
        """What stands beside the present choice: pins, other methods at its error, presets.

        While layers arrive it is the other methods alone, as far as they are not told at once.
        """
        figures, choosing = self._known(), self._session.choosing
        if figures is None and self._is_under_way and self.sizes is not None:
            figures = self.sizes.estimate(choosing)
        rivals = self._session.rivals(figures) if figures is not None else []
        if self._is_arriving:
            return [rival for rival in rivals if not rival.is_coded]
        presets = []
        if self.tables is not None:
            presets = [self.tables.aimed(choosing, "max_error", error) for error in PRESETS]
        wanted = [*self._session.pins, *rivals, *presets]
        if self._session.is_coding_under_way:
            wanted = [choice for choice in wanted if not choice.is_coded]
        return wanted

    def _lacks_curves(self) -> bool:
        """Whether tables are not read yet, or curves that are in sight not worked out."""
        sizes, method = self.sizes, self._session.choosing.method
        if sizes is None:
            return False
        coded = method in CODED_METHODS and method in sizes.waiting
        return sizes.is_unread or (sizes.has_more and (coded or self._wants_curves()))

    def _lacks_beside(self) -> bool:
        """Whether anything beside the present choice is not worked out."""
        cached = self._session.cached_figures
        return any(cached(choice) is None for choice in self.beside())

    def _compute(self, *, curves: bool = False, beside: bool = False) -> None:
        self._quiet = None
        if beside and not self._view.is_in_view:
            return  # nobody sees it; the view asks again when it is shown
        self._wanted = _Wanted(self._session.choosing, curves, beside)
        if not self._working:
            self._working = True
            self._view.run_worker(self._computing, thread=True, group="figures")

    def _computing(self) -> None:
        """In a thread: the choice that is wanted, then curves, then what stands beside it."""
        try:
            while (wanted := self._wanted) is not None:
                sizes = self.sizes
                if sizes is not None and sizes.is_unread:
                    sizes.read()
                    self._view.post_message(FiguresComputed(False))
                if not (wanted.choosing.is_coded and self._session.is_coding_under_way):
                    self._session.figures(wanted.choosing)
                    self._view.post_message(FiguresComputed(False))
                self._compute_more(wanted)
                if self._wanted is wanted:
                    self._wanted = None
        finally:
            self._working = False
            self._view.post_message(FiguresComputed(True))

    def _compute_more(self, wanted: _Wanted) -> None:
        sizes = self.sizes
        if sizes is None:
            return

        def changed() -> bool:
            # Out of view nobody waits for it; the view asks again when it is shown.
            return self._wanted is not wanted or not self._view.display

        method = wanted.choosing.method
        while wanted.curves and method in CODED_METHODS and method in sizes.waiting:
            if changed() or not sizes.work(changed, method):
                break
            self._view.post_message(FiguresComputed(False))
        for choosing in self.beside() if wanted.beside else ():
            if changed():
                return
            self._session.figures(choosing)
        while wanted.curves and self._wants_curves() and not changed() and sizes.work(changed):
            self._view.post_message(FiguresComputed(False))

    def computed(self, event: FiguresComputed) -> None:
        """A worker has figures: draw them."""
        if self._view.is_in_view:
            self._redraw()

    # layers that arrive

    @property
    def _is_arriving(self) -> bool:
        spectra = self._session.spectra
        return spectra is not None and not spectra.complete

    def layers_came(self, spectra: Spectra) -> None:
        """Draw layers that came, now and then while more are coming."""
        if self.tables is not None and self.tables.version == self._session.version:
            return  # of methods that are not whole yet
        if spectra.complete:
            self._redraw()
        elif self._arriving is None:
            self._arriving = self._view.set_timer(ARRIVING_SECONDS, self._arrived)
            self._draw_arrived()
        else:
            self._more_arrived = True

    def _arrived(self) -> None:
        """The time between two repaints is over; layers that came meanwhile are drawn now."""
        self._arriving = None
        if self._more_arrived and self._view.is_in_view:
            self._more_arrived = False
            spectra = self._session.spectra
            if spectra is not None:
                self.layers_came(spectra)

    def _draw_arrived(self) -> None:
        """Draw new layers once, together with their figures."""
        spectra = self._session.spectra
        if self.tables is None or spectra is None or self._known() is not None:
            self._redraw()
        else:
            self._look_at(spectra)
            self.work()


def _is_of(figures: Figures, spectra: Spectra) -> bool:
    """Whether figures of a former choice are of these adapters, and of layers that are there."""
    choice = figures.choice
    if choice is None:
        return True
    names = {task.name for task in spectra.tasks}
    return (
        choice.prediction.task_errors.keys() == names and choice.k.keys() <= spectra.layers.keys()
    )
