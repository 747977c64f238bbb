"""Inspect's matrix: every pair of adapters, by similarity or by interference."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from rich.text import Text
from textual.app import ComposeResult
from textual.message import Message
from textual.widgets import Static

from vlora_engine.analysis.relations import Array
from vlora_tui.tui.core.likeness import Group, Likeness
from vlora_tui.tui.inspect import data as inspect_data
from vlora_tui.tui.inspect.data import Interference, PairLayers
from vlora_tui.tui.inspect.queries import Arguments, AskingPane, Read
from vlora_tui.tui.inspect.rows import interference_words, pair_words
from vlora_tui.tui.key_names import keyed
from vlora_tui.tui.text import clean
from vlora_tui.tui.widgets.matrix import Matrix

FRAME = 4  # lines of the pane that are no matrix: borders, what is said
MANY = 64  # adapters from which on only those that are marked are measured against each other
MEASURES = {
    "cosine": "Similarity: cosine of dW",
    "contested": "Interference: share of dW that the other contests",
    "sign_conflict": "Interference: conflicting share of what two have in common",
    "overlap": "Interference: share of the row in both spaces of the column",
    "writes": "Interference: share of the row in the column's outputs",
    "reads": "Interference: share of the row in the column's inputs",
}
LEGENDS = {
    "cosine": "cosine of dW, red below 0",
    "contested": "contested, in %",
    "sign_conflict": "conflicting, in %",
    "overlap": "of the row, in %",
    "writes": "of the row, in %",
    "reads": "of the row, in %",
}
LEAST_TOP = 0.02  # of the contested share, that is brightest
UNASKED_BYTES = 256 << 20  # of adapters: what takes longer is measured when it is asked for


class AlikePane(AskingPane):
    """A matrix of cosines, of which ``turn`` makes one of each measure of interference.

    These need weights: one process measures all of them, once for a collection.
    """

    class Measured(Message):
        """Something more is known of interference."""

    def __init__(self, *, ascii_only: bool = False) -> None:
        super().__init__(id="inspect-alike")
        self._ascii_only = ascii_only
        self._measure = "cosine"
        self._likeness: Likeness | None = None
        self._order: list[int] = []
        self._letters: dict[int, str] = {}
        self._at: list[int] = []  # whom interference is measured among
        self._asked_once: set[Arguments] = set()  # unasked, in the background
        self._subtitle = self._instead = ""

    def compose(self) -> ComposeResult:
        yield Matrix(ascii_only=self._ascii_only, id="matrix")
        yield Static(id="matrix-said", classes="said", markup=False)

    # what the step asks

    def show(
        self,
        likeness: Likeness | None,
        order: list[int],
        groups: Sequence[Group],
        *,
        marked: Collection[str] = (),
        subtitle: str = "",
        instead: str = "",
    ) -> None:
        """Show these adapters in this order.

        Args:
            marked: Places: of many adapters only those that lie there are measured.
            instead: Why there is nothing to show.
        """
        if likeness is not self._likeness:
            self.stop()
        self._likeness, self._order = likeness, order
        self._letters = {i: group.letter for group in groups for i in group.members}
        self._subtitle, self._instead = subtitle, instead
        self._at = list(range(len(likeness.names) if likeness is not None else 0))
        if likeness is not None and len(self._at) > MANY:
            self._at = [i for i in self._at if likeness.paths[i] in marked]
        if not self._is_asked_for:
            self._measure = "cosine"
        self._draw()

    def turn(self) -> str | None:
        """Show the next measure, measuring first where need be; why that cannot be, or None."""
        arguments = self.arguments
        if arguments is None:
            return self._why_not
        if self._measure != "cosine" and self.answer_to(arguments) is None:
            self._measure = "cosine"  # it failed, or takes its time
        else:
            measures = list(MEASURES)
            self._measure = measures[(measures.index(self._measure) + 1) % len(measures)]
        if self._measure != "cosine":
            self.ask(arguments, Interference.of)
        self._draw()
        return None

    def measure_quietly(self, nbytes: Sequence[int | None]) -> None:
        """Measure interference in the background, once, where that takes no more than a moment.

        Args:
            nbytes: Of each adapter; None where that is not known.
        """
        arguments = self.arguments
        sizes = [nbytes[i] for i in self._at]
        if arguments is None or None in sizes or sum(n or 0 for n in sizes) > UNASKED_BYTES:
            return
        self._ask_quietly(arguments, Interference.of)

    def measure_now(self) -> str | None:
        """Measure interference because somebody wants to know; why that cannot be, or None."""
        if self.arguments is None:
            return self._why_not
        self.ask(self.arguments, Interference.of)
        self._draw()
        return None

    def _ask_quietly(self, arguments: Arguments, read: Read) -> None:
        """Ask in the background what was not asked before, unless something is being asked."""
        if self.asking is None and arguments not in self._asked_once:
            self._asked_once.add(arguments)
            self.ask(arguments, read, background=True)

    @property
    def interference(self) -> Interference | None:
        """How the adapters interfere, once that is measured."""
        return self._interference

    @property
    def measured(self) -> list[int]:
        """The adapters that interference is measured among, by their indices."""
        return self._at

    @property
    def worst_layers(self) -> PairLayers | None:
        """Where the pair interferes that does so most, once that is measured."""
        arguments = self._worst_arguments
        answer = None if arguments is None else self.answer_to(arguments)
        return answer if isinstance(answer, PairLayers) else None

    @property
    def _worst_arguments(self) -> Arguments | None:
        found = self._interference
        if found is None or found.worst is None or self._likeness is None:
            return None
        paths = [self._likeness.paths[self._at[i]] for i in found.worst.pair]
        return inspect_data.interference_arguments(map(str, paths))

    def show_measure(self, measure: str) -> None:
        """Show one measure, if it is known."""
        if measure == "cosine" or self._interference is not None:
            self._measure = measure
            self._draw()

    @property
    def _why_not(self) -> str:
        """Why interference cannot be measured."""
        if self._likeness is None:
            return keyed("The adapters have to be measured first: <step.choose>.")
        if len(self._at) > 1:
            return "Where these adapters lie is not known."
        if len(self._likeness.names) > MANY:
            marks = keyed("mark some (<step.adapters>)")
            return f"Of more than {MANY} adapters only marked ones are measured: {marks}."
        return "Interference is between two adapters or more."

    @property
    def arguments(self) -> Arguments | None:
        """The command that measures interference; None where it cannot."""
        paths = [self._likeness.paths[i] for i in self._at] if self._likeness else []
        if len(paths) < 2 or not all(paths):
            return None
        return inspect_data.interference_arguments(map(str, paths))

    @property
    def is_of_interference(self) -> bool:
        """Whether a measure of interference is shown."""
        return self._measure != "cosine"

    def answered(self) -> None:
        self._draw()
        worst = self._worst_arguments
        if worst is not None and worst != self.arguments:
            self._ask_quietly(worst, PairLayers.of)
        self.post_message(self.Measured())

    def stopped(self) -> None:
        self._measure = "cosine"
        self._draw()
        self.post_message(self.Measured())

    @property
    def pair(self) -> tuple[int, int] | None:
        """The two adapters under the cursor, by their indices."""
        return self._matrix.pair

    @property
    def order(self) -> list[int]:
        """The adapters in the order of the rows, by their indices."""
        return self._matrix.order

    def walk(self, by: int) -> None:
        """The next adapter on the diagonal, or the one before; of a pair the next pair."""
        pair, order = self.pair, self.order
        if pair is None or not order:
            return
        if pair[0] == pair[1]:
            at = order[(order.index(pair[0]) + by) % len(order)]
            self.go_to(at, at)
        else:
            self._matrix.action_next(by)

    def go_to(self, first: int, second: int) -> None:
        """Put the cursor on a pair."""
        self._matrix.go_to(first, second)

    @property
    def full_height(self) -> int:
        """Lines that the pane can use."""
        return self._matrix.full_height + FRAME

    def text(self) -> Text:
        """What the cell under the cursor says."""
        if self._likeness is None:
            return Text(self._instead)
        pair, interference, more = self.pair, self._interference, ""
        if interference is not None and pair is not None and set(pair) <= set(self._at):
            first, second = (self._at.index(i) for i in pair)
            more = interference_words(interference, first, second, self._measure)
        words = pair_words(self._likeness, pair, more, leads=self.is_of_interference)
        return words.append_text(self._state())

    @property
    def _is_asked_for(self) -> bool:
        """Whether interference is known, is being measured, or failed."""
        arguments = self.arguments
        if arguments is None:
            return False
        outcome = (self.answer_to(arguments), self.problem_of(arguments))
        return outcome != (None, None) or arguments == self.asking

    def _state(self) -> Text:
        """Whether interference is being measured, or why it is not."""
        if not self.is_of_interference or self._interference is not None:
            return Text()
        problem = None if self.arguments is None else self.problem_of(self.arguments)
        if problem is not None:
            return Text(f"\nInterference could not be measured: {clean(problem)}")
        stops = keyed("(<inspect.stop> to stop)")
        return Text(f"\nMeasuring the interference of {len(self._at)}… {stops}")

    # drawing

    @property
    def _matrix(self) -> Matrix:
        return self.query_one(Matrix)

    @property
    def _interference(self) -> Interference | None:
        answer = None if self.arguments is None else self.answer_to(self.arguments)
        return answer if isinstance(answer, Interference) else None

    @property
    def _values(self) -> Array | None:
        """What the cells show; None while it is not known."""
        likeness, interference = self._likeness, self._interference
        if likeness is None:
            return None
        if not self.is_of_interference:
            return likeness.cosines
        if interference is None:
            return None
        return interference.spread(self._measure, self._at, len(likeness.names))

    def _draw(self) -> None:
        likeness = self._likeness
        self.border_title = MEASURES[self._measure]
        some = self.is_of_interference and len(self._at) < len(self._order)
        more = f", {len(self._at)} marked ones measured" if some else ""
        self.border_subtitle = self._subtitle + more
        self._matrix.styles.height = 1 if likeness is None else "1fr"
        self.set_class(likeness is None, "nothing")
        names = () if likeness is None else likeness.names
        legend = LEGENDS[self._measure]
        values, top = self._values, 1.0 if self.is_of_interference else None
        if self._measure == "contested" and values is not None:
            others = values[~np.eye(len(values), dtype=bool) & ~np.isnan(values)]
            top = max(LEAST_TOP, float(others.max(initial=0.0)))
        self._matrix.show(names, values, self._order, self._letters, legend, top)
        self._say()

    def _say(self) -> None:
        self.query_one("#matrix-said", Static).update(self.text())

    def on_matrix_moved(self, event: Matrix.Moved) -> None:
        self._say()  # the step hears of it, too
