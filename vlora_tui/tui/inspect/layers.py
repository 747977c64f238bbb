"""Inspect's layers pane: one figure per layer, of an adapter or task, or of a pair."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from rich.text import Text
from textual import work
from textual.app import ComposeResult
from textual.message import Message
from textual.widgets import Static

from vlora_engine.errors import VLoRAError
from vlora_engine.manifest.task_errors import TaskFigures, task_figures
from vlora_engine.utils.ranking import worst
from vlora_tui.tui.inspect import data as inspect_data
from vlora_tui.tui.inspect.data import Coverage, Diff
from vlora_tui.tui.inspect.module import ModuleBox
from vlora_tui.tui.inspect.queries import Arguments, AskingPane, shell_command
from vlora_tui.tui.inspect.rows import (
    COSINE,
    COVERAGE,
    DIFFERENCE,
    LOSS,
    SIZE,
    Measure,
    Subject,
    figure,
    layer_words,
)
from vlora_tui.tui.text import clean
from vlora_tui.tui.widgets.heatmap import Cell, Heatmap, arrange

if TYPE_CHECKING:
    from vlora_tui.tui.core.session import Session

FRAME = 5  # lines of the pane that are no layers: borders, head, what is said
SHORT = {
    LOSS: "loss",
    SIZE: "size",
    COVERAGE: "coverage",
    COSINE: "cosine",
    DIFFERENCE: "difference",
}


class LayersPane(AskingPane):
    """A cell for each layer and kind of module, and in words the layer under the cursor.

    What one adapter loses comes from the spectra, what a task loses from its file. Two are
    compared, and an adapter is held against the bases of a subspace, by processes of their own.
    """

    class Drawn(Message):
        """The pane shows something else; it may need another height."""

    class FiguresRead(Message):
        """The figures of a task were read."""

        def __init__(self, key: tuple[str, str], figures: TaskFigures | None, problem: str) -> None:
            super().__init__()
            self.key, self.figures, self.problem = key, figures, problem

    def __init__(self, session: Session, *, ascii_only: bool = False) -> None:
        super().__init__(id="inspect-layers")
        self.session = session
        self._ascii_only = ascii_only
        self._subject: Subject | None = None
        self._measures: dict[str, Measure] = {}  # by the kind of subject
        self._layer: str | None = None
        self._figures: dict[tuple[str, str], TaskFigures | str] = {}

    def compose(self) -> ComposeResult:
        yield Heatmap(ascii_only=self._ascii_only, id="layer-map")
        yield Static(id="layers-said", classes="said", markup=False)

    # what the step asks

    def show(self, subject: Subject | None) -> None:
        """Show the layers of one adapter or task, or of a pair."""
        self._subject = subject
        self._draw()

    def point(self, layer: str | None, measure: Measure | None = None) -> None:
        """Put the cursor on a layer, and show this figure of one adapter."""
        self._layer = layer
        if measure is not None:
            self._measures["adapter"] = measure
        self._draw()

    def compare(self, pair: Subject) -> None:
        """Have two compared, unless that is known already; ``pair`` says where they lie."""
        if pair.pair_refs is not None:
            self.ask(inspect_data.diff_arguments(*pair.pair_refs), Diff.of)
            self._draw()

    def cover(self) -> None:
        """Have it measured how much of the adapter the open subspace holds."""
        arguments = self._coverage_arguments
        self._measures["adapter"] = COVERAGE
        if arguments is not None:
            self.ask(arguments, Coverage.of)
        self._draw()

    def knows(self, refs: tuple[str, str] | None) -> bool:
        """Whether the two at these places were compared."""
        return refs is not None and self._diff(refs) is not None

    def turn_measure(self) -> None:
        """Another figure for what is shown."""
        if self._subject is not None:
            self._measures[self._subject.kind] = self._next_measure
            self._draw()

    def look_closer(self) -> None:
        """Show the layer under the cursor in a box of its own."""
        subject, layer = self._subject, self._layer
        if subject is None or layer is None or isinstance(self._values(), str):
            return
        if not subject.refs:
            self.notify("Where this adapter lies is not known.", severity="warning")
            return
        self.app.push_screen(ModuleBox(layer, subject.names, subject.refs))

    @property
    def full_height(self) -> int:
        """The lines that the pane can use."""
        return len(self._heatmap.grid.rows) + FRAME

    @property
    def measure(self) -> Measure:
        """The figure that is shown."""
        chosen = self._measures.get("" if self._subject is None else self._subject.kind)
        return chosen if chosen in self._ring else self._ring[0]

    @property
    def command(self) -> str | None:
        """The command that tells what is shown, where there is one for it."""
        subject = self._subject
        if subject is not None and subject.pair_refs is not None:
            return shell_command(inspect_data.diff_arguments(*subject.pair_refs))
        if self.measure is COVERAGE and self._coverage_arguments is not None:
            return shell_command(self._coverage_arguments)
        return None

    def text(self) -> Text:
        """What the layer under the cursor says."""
        return layer_words(self._values(), self._layer, self.measure, self._whole)

    # drawing

    @property
    def _heatmap(self) -> Heatmap:
        return self.query_one("#layer-map", Heatmap)

    @property
    def _ring(self) -> tuple[Measure, ...]:
        """The figures that a key goes through."""
        kind = "" if self._subject is None else self._subject.kind
        if kind == "pair":
            return COSINE, DIFFERENCE
        if kind == "adapter" and self.session.manifest is not None:
            return LOSS, SIZE, COVERAGE
        return LOSS, SIZE

    @property
    def _next_measure(self) -> Measure:
        ring = self._ring
        return ring[(ring.index(self.measure) + 1) % len(ring)]

    def _draw(self) -> None:
        subject, measure, values = self._subject, self.measure, self._values()
        names = " and ".join(clean(name) for name in subject.names) if subject else ""
        self.border_title = f"Layers of {names}: {measure.title}" if subject else "Layers"
        self.border_subtitle = f"m: {SHORT[self._next_measure]}"
        if isinstance(values, str):
            self._heatmap.show(arrange(()), {}, None)
        else:
            top = measure.top or max([measure.floor, *values.values()]) or 1.0
            cells = {
                name: Cell(measure.text(value), max(0.0, min(1.0, value / top)))
                for name, value in values.items()
            }
            if self._layer not in values:
                self._layer = worst(values)
            self._heatmap.show(arrange(inspect_data.natural(values)), cells, self._layer)
        self._say()
        self.post_message(self.Drawn())

    def _say(self) -> None:
        self.query_one("#layers-said", Static).update(self.text())

    def on_heatmap_focused(self, event: Heatmap.Focused) -> None:
        event.stop()
        self._layer = event.layer
        self._say()

    # figures

    def _values(self) -> Mapping[str, float] | str:
        """The figures per layer, or why there are none."""
        subject, spectra = self._subject, self.session.spectra
        if subject is None:
            return "Nothing is chosen."
        if subject.kind == "pair":
            return self._compared(subject)
        if subject.kind == "task":
            return self._stored(subject.names[0])
        if self.measure is COVERAGE:
            return self._covered()
        if spectra is None:
            return "Nothing is measured yet."
        if self.measure is SIZE:
            return inspect_data.sizes_of(spectra, subject.index)
        method = self.session.choosing.method
        if self.session.choosing.is_coded:
            return f"{method} has no k; what each adapter loses with it stands on step 2 (S)."
        figures = self.session.figures()
        if figures.choice is None:
            return figures.problem or "There is no choice of k yet: 2."
        return inspect_data.losses_of(spectra, figures.choice, subject.index)

    @property
    def _whole(self) -> str:
        """What is known of all layers together."""
        subject = self._subject
        diff = self._diff(subject.pair_refs) if subject is not None else None
        if diff is not None:
            return f"in all {figure(self.measure, diff.total.get(self.measure.key, 0.0))}"
        coverage = self._coverage
        return coverage.words if coverage is not None and self.measure is COVERAGE else ""

    def _compared(self, pair: Subject) -> Mapping[str, float] | str:
        """The figures of two."""
        if pair.pair_refs is None:
            return "Where these adapters lie is not known."
        diff = self._diff(pair.pair_refs)
        if diff is not None:
            return diff.measure(self.measure.key)
        arguments = inspect_data.diff_arguments(*pair.pair_refs)
        problem = self.problem_of(arguments)
        if problem is not None:
            return f"The comparison failed: {problem}"
        if self.asking == tuple(arguments):
            return "Comparing, layer by layer; x stops it."
        return "Not compared; enter on the pair compares them."

    def _diff(self, refs: tuple[str, str] | None) -> Diff | None:
        answer = None if refs is None else self.answer_to(inspect_data.diff_arguments(*refs))
        return answer if isinstance(answer, Diff) else None

    @property
    def _coverage_arguments(self) -> Arguments | None:
        """The command that holds the adapter against the open subspace, where both are known."""
        subject, manifest = self._subject, self.session.manifest
        if subject is None or subject.kind != "adapter" or not subject.ref or manifest is None:
            return None
        return ("coverage", str(manifest.path), subject.ref)

    @property
    def _coverage(self) -> Coverage | None:
        arguments = self._coverage_arguments
        answer = None if arguments is None else self.answer_to(arguments)
        return answer if isinstance(answer, Coverage) else None

    def _covered(self) -> Mapping[str, float] | str:
        """What the bases of the open subspace hold of an adapter."""
        arguments, coverage = self._coverage_arguments, self._coverage
        if coverage is not None:
            return coverage.modules
        if arguments is None:
            return "Where this adapter lies is not known."
        problem = self.problem_of(arguments)
        if problem is not None:
            return f"Its coverage could not be measured: {problem}"
        if self.asking == arguments:
            return "Held against the bases, layer by layer; x stops it."
        return "c measures how much of it the bases of the open subspace hold."

    def _stored(self, task: str) -> Mapping[str, float] | str:
        """A task's figures, as the open subspace keeps them."""
        manifest = self.session.manifest
        if manifest is None:
            return "No subspace is open."
        key = (str(manifest.path), task)
        figures = self._figures.get(key)
        if figures is None:
            figures = self._figures[key] = "Reading."
            self._read_figures(key)
        if isinstance(figures, str):
            return figures
        values = figures.errors if self.measure is LOSS else figures.norms
        return dict(zip(figures.layers, values.tolist(), strict=True))

    # work off the screen

    def answered(self) -> None:
        self._draw()

    def stopped(self) -> None:
        self._draw()

    @work(thread=True, group="figures")
    def _read_figures(self, key: tuple[str, str]) -> None:
        manifest = self.session.manifest
        if manifest is None:
            return
        try:
            self.post_message(self.FiguresRead(key, task_figures(manifest, key[1]), ""))
        except VLoRAError as error:
            self.post_message(self.FiguresRead(key, None, str(error)))

    def on_layers_pane_figures_read(self, event: FiguresRead) -> None:
        event.stop()
        self._figures[event.key] = event.figures or event.problem
        self._draw()
