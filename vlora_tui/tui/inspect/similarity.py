"""Inspect's matrix: every pair of adapters, by similarity or by interference."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from rich.text import Text
from textual.app import ComposeResult
from textual.widgets import Static

from vlora_engine.analysis.relations import Array
from vlora_tui.tui.core.likeness import Group, Likeness
from vlora_tui.tui.inspect.data import Interference
from vlora_tui.tui.inspect.queries import Arguments, AskingPane
from vlora_tui.tui.inspect.rows import interference_words, pair_words
from vlora_tui.tui.text import clean
from vlora_tui.tui.widgets.matrix import Matrix

MANY = 64  # adapters from which on only those that are marked are measured against each other
MEASURES = {
    "cosine": "How alike: cosine of dW",
    "sign_conflict": "Sign conflict: opposed share of what two have in common",
    "overlap": "Overlap: share of the row in both spaces of the column",
    "writes": "Writes: share of the row in the column's outputs",
    "reads": "Reads: share of the row in the column's inputs",
}


class AlikePane(AskingPane):
    """A matrix of cosines, of which ``turn`` makes one of each measure of interference.

    These need weights: one process measures all of them, once for a collection.
    """

    def __init__(self, *, ascii_only: bool = False) -> None:
        super().__init__(id="inspect-alike")
        self._ascii_only = ascii_only
        self._measure = "cosine"
        self._likeness: Likeness | None = None
        self._order: list[int] = []
        self._letters: dict[int, str] = {}
        self._at: list[int] = []  # whom interference is measured among
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

    @property
    def _why_not(self) -> str:
        """Why interference cannot be measured."""
        if self._likeness is None:
            return "The adapters have to be measured first: 2."
        if len(self._at) > 1:
            return "Where these adapters lie is not known."
        if len(self._likeness.names) > MANY:
            return f"Of more than {MANY} adapters only marked ones are measured: mark two (1)."
        return "Interference is between two adapters or more."

    @property
    def arguments(self) -> Arguments | None:
        """The command that measures interference; None where it cannot."""
        paths = [self._likeness.paths[i] for i in self._at] if self._likeness else []
        if len(paths) < 2 or not all(paths):
            return None
        return ("interference", *map(str, paths))

    @property
    def is_of_interference(self) -> bool:
        """Whether a measure of interference is shown."""
        return self._measure != "cosine"

    def answered(self) -> None:
        self._draw()

    def stopped(self) -> None:
        self._measure = "cosine"
        self._draw()

    @property
    def pair(self) -> tuple[int, int] | None:
        """The two adapters under the cursor, by their indices."""
        return self._matrix.pair

    def go_to(self, first: int, second: int) -> None:
        """Put the cursor on a pair."""
        self._matrix.go_to(first, second)

    @property
    def full_height(self) -> int:
        """Lines that the pane can use."""
        return self._matrix.full_height + (5 if self._interference is not None else 4)

    def text(self) -> Text:
        """What the cell under the cursor says."""
        if self._likeness is None:
            return Text(self._instead)
        pair, interference, more = self.pair, self._interference, ""
        if interference is not None and pair is not None and set(pair) <= set(self._at):
            first, second = (self._at.index(i) for i in pair)
            more = interference_words(interference, first, second, self._measure)
        return pair_words(self._likeness, pair, more).append_text(self._state())

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
        return Text(f"\nInterference of {len(self._at)} is being measured; x stops it.")

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
        names = () if likeness is None else likeness.names
        self._matrix.show(names, self._values, self._order, self._letters)
        self._say()

    def _say(self) -> None:
        self.query_one("#matrix-said", Static).update(self.text())

    def on_matrix_moved(self, event: Matrix.Moved) -> None:
        self._say()  # the step hears of it, too
