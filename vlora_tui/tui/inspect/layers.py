"""Inspect's layers pane: one figure per layer, of an adapter or task, or of a pair."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.text import Text
from textual import work
from textual.app import ComposeResult
from textual.message import Message
from textual.widgets import Static
from textual.worker import get_current_worker

from vlora_engine.errors import VLoRAError
from vlora_engine.manifest.layer_figures import LayerFigures, layer_figures
from vlora_engine.manifest.task_errors import TaskFigures, task_figures
from vlora_engine.utils.ranking import worst
from vlora_tui.tui.inspect import data as inspect_data
from vlora_tui.tui.inspect.data import Coverage, Diff, PairLayers
from vlora_tui.tui.inspect.module import ModuleBox
from vlora_tui.tui.inspect.queries import Arguments, AskingPane, shell_command
from vlora_tui.tui.inspect.rows import (
    BITS,
    CONTESTED,
    COSINE,
    COVERAGE,
    DIFFERENCE,
    LOSS,
    SIZE,
    Measure,
    Subject,
    figure,
    layer_words,
    share,
)
from vlora_tui.tui.key_names import key, keyed
from vlora_tui.tui.text import clean, problem_words
from vlora_tui.tui.widgets.cell_grid import Legend
from vlora_tui.tui.widgets.heatmap import Cell, Heatmap, arrange

if TYPE_CHECKING:
    from vlora_engine.manifest.manifest import Manifest
    from vlora_tui.tui.core.session import Session

FRAME = 6  # lines of the pane that are no layers: borders, head, legend, what is said
PARTS = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the brightest, that the legend shows
SHORT = {
    LOSS: "error",
    BITS: "bits",
    CONTESTED: "contested",
    SIZE: "norm",
    COVERAGE: "coverage",
    COSINE: "cosine",
    DIFFERENCE: "difference",
}


Key = tuple[str, str, str | None]  # a subspace and the digest of its index, the task; None: all


class LayersPane(AskingPane):
    """A cell for each layer and kind of module, and in words the layer under the cursor.

    What one adapter loses comes from the spectra, what a task loses from its file. Two are
    compared, and an adapter is held against the bases of a subspace, by processes of their own.
    """

    class Known(Message):
        """Figures came that others may want, too."""

    class FiguresRead(Message):
        """The figures of a task were read, or those of all tasks together."""

        def __init__(self, key: Key, figures: TaskFigures | LayerFigures | str) -> None:
            super().__init__()
            self.key, self.figures = key, figures

    def __init__(self, session: Session, *, ascii_only: bool = False) -> None:
        super().__init__(id="inspect-layers")
        self.session = session
        self._ascii_only = ascii_only
        self._subject: Subject | None = None
        self._measures: dict[str, Measure] = {}  # by the kind of subject
        self._layer: str | None = None
        self._figures: dict[Key, TaskFigures | LayerFigures | str] = {}

    def compose(self) -> ComposeResult:
        yield Heatmap(ascii_only=self._ascii_only, id="layer-map")
        yield Static(id="layers-said", classes="said", markup=False)

    # what the step asks

    def show(self, subject: Subject | None) -> None:
        """Show the layers of one adapter or task, or of a pair."""
        self._subject = subject
        self._draw()

    def point(
        self, layer: str | None, measure: Measure | None = None, kind: str = "adapter"
    ) -> None:
        """Put the cursor on a layer, and show this figure of one adapter, or of another kind."""
        self._layer = layer
        if measure is not None:
            self._measures[kind] = measure
        self._draw()

    def compare(self, pair: Subject) -> None:
        """Have two compared, unless that is known already; ``pair`` says where they lie."""
        if pair.pair_refs is not None:
            self._subject = pair
            self._ask_about_pair()
            self._draw()

    def _ask_about_pair(self) -> None:
        """Have measured what is shown of two."""
        refs = None if self._subject is None else self._subject.pair_refs
        if refs is None:
            return
        if self.measure is CONTESTED:
            self.ask(inspect_data.interference_arguments(refs), PairLayers.of)
        else:
            self.ask(inspect_data.diff_arguments(*refs), Diff.of)

    def cover(self) -> None:
        """Have it measured how much of the adapter the open subspace holds."""
        arguments = self._coverage_arguments
        self._measures["adapter"] = COVERAGE
        if arguments is not None:
            self.ask(arguments, Coverage.of)
        self._draw()

    def knows(self, refs: tuple[str, str] | None) -> bool:
        """Whether the two at these places were compared."""
        return refs is not None and (
            self._diff(refs) is not None or self._conflict(refs) is not None
        )

    def turn_measure(self) -> None:
        """Another figure for what is shown."""
        if self._subject is not None:
            self._measures[self._subject.kind] = self._next_measure
            if self._subject.kind == "pair":
                self._ask_about_pair()
            self._draw()

    def look_closer(self, walk: Sequence[Subject] = ()) -> str | None:
        """Show the layer under the cursor in a box of its own; why that cannot be, or None.

        Args:
            walk: The subjects that ``N`` and ``P`` go through there.
        """
        subject, layer, values = self._subject, self._layer, self._values()
        if subject is None or layer is None or isinstance(values, str):
            return None
        if subject.kind == "subspace":
            return "One task's layers lead to its modules: put the cursor on a task."
        if not subject.refs:
            return "Where this adapter lies is not known."
        others = [other for other in walk if other.refs]
        modules = inspect_data.natural(values)
        self.app.push_screen(ModuleBox(layer, subject, modules=modules, others=others))
        return None

    @property
    def full_height(self) -> int:
        """The lines that the pane can use, whatever it shows of the collection."""
        spectra, manifest = self.session.spectra, self.session.manifest
        if spectra is not None:
            names = spectra.layer_names
        else:
            names = [spec.name for spec in manifest.layers] if manifest is not None else []
        return len(arrange(inspect_data.natural(names)).rows) + FRAME

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
    def has_measures(self) -> bool:
        """Whether there is more than one figure to show."""
        return len(self._ring) > 1

    @property
    def _ring(self) -> tuple[Measure, ...]:
        """The figures that a key goes through."""
        kind = "" if self._subject is None else self._subject.kind
        if kind == "pair":
            return COSINE, DIFFERENCE, CONTESTED
        if kind in ("task", "subspace"):
            return LOSS, BITS, SIZE
        ring = (LOSS, SIZE) if self._loss_is_known else (SIZE,)
        return (*ring, COVERAGE) if self.session.manifest is not None else ring

    @property
    def _loss_is_known(self) -> bool:
        """Whether it can be told what the adapter in sight loses: by a k, or as it is stored."""
        return not self.session.choosing.is_coded or self._stored_task is not None

    @property
    def _stored_task(self) -> str | None:
        """The task of the open subspace that the adapter in sight became."""
        subject, manifest, spectra = self._subject, self.session.manifest, self.session.spectra
        if subject is None or manifest is None or manifest.peer or spectra is None:
            return None
        if subject.kind != "adapter":
            return None
        digest, tasks = spectra.tasks[subject.index].digest, manifest.tasks.values()
        return next((task.id for task in tasks if task.digest == digest), None)

    @property
    def _next_measure(self) -> Measure:
        ring = self._ring
        return ring[(ring.index(self.measure) + 1) % len(ring)]

    def _draw(self) -> None:
        subject, measure, values = self._subject, self.measure, self._values()
        names = " and ".join(clean(name) for name in subject.names) if subject else ""
        self.border_title = f"Layers of {names}: {measure.title}" if subject else "Layers"
        other = self._next_measure
        self.border_subtitle = (
            f"{key('inspect.measure')}: {SHORT[other]}" if other is not measure else ""
        )
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
            stops = tuple((measure.text(top * part), part) for part in PARTS)
            legend = Legend(measure.title, stops) if values else None
            self._heatmap.show(arrange(inspect_data.natural(values)), cells, self._layer, legend)
        self._say()

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
        if subject.kind == "subspace":
            return self._of_subspace()
        if subject.kind == "task":
            return self._stored(subject.names[0])
        if self.measure is COVERAGE:
            return self._covered()
        if spectra is None:
            return "Nothing is measured yet."
        if self.measure is SIZE:
            return inspect_data.sizes_of(spectra, subject.index)
        if self.session.choosing.is_coded:
            return self._stored(self._stored_task or "")
        figures = self.session.figures()
        if figures.choice is None:
            return figures.problem or keyed("No k is chosen yet: <step.choose>.")
        return inspect_data.losses_of(spectra, figures.choice, subject.index)

    @property
    def _whole(self) -> str:
        """What is known of all layers together."""
        subject = self._subject
        if subject is not None and subject.kind == "pair" and self.measure is CONTESTED:
            conflict = self._conflict(subject.pair_refs)
            return "" if conflict is None else f"in all {share(conflict.total)}"
        diff = self._diff(subject.pair_refs) if subject is not None else None
        if diff is not None:
            return f"in all {figure(self.measure, diff.total.get(self.measure.key, 0.0))}"
        coverage = self._coverage
        return coverage.words if coverage is not None and self.measure is COVERAGE else ""

    def _compared(self, pair: Subject) -> Mapping[str, float] | str:
        """The figures of two."""
        if pair.pair_refs is None:
            return "Where these adapters lie is not known."
        if self.measure is CONTESTED:
            conflict = self._conflict(pair.pair_refs)
            if conflict is not None:
                return conflict.contested
            arguments = list(inspect_data.interference_arguments(pair.pair_refs))
        else:
            diff = self._diff(pair.pair_refs)
            if diff is not None:
                return diff.measure(self.measure.key)
            arguments = inspect_data.diff_arguments(*pair.pair_refs)
        problem = self.problem_of(arguments)
        if problem is not None:
            return f"The comparison failed: {problem}"
        if self.asking == tuple(arguments):
            return keyed("Comparing… (<inspect.stop> to stop)")
        return keyed("Not compared. Press <inspect.enter> on the pair to compare them.")

    def _conflict(self, refs: tuple[str, str] | None) -> PairLayers | None:
        answer = None
        if refs is not None:
            answer = self.answer_to(inspect_data.interference_arguments(refs))
        return answer if isinstance(answer, PairLayers) else None

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
            return keyed("Measuring coverage… (<inspect.stop> to stop)")
        return keyed(
            "<inspect.coverage> measures how much of it the bases of the open subspace hold."
        )

    def _stored(self, task: str) -> Mapping[str, float] | str:
        """A task's figures, as the open subspace keeps them."""
        manifest = self.session.manifest
        if manifest is None:
            return "No subspace is open."
        figures = self._read_once(task)
        if isinstance(figures, str | LayerFigures):
            return figures if isinstance(figures, str) else {}
        if self.measure is BITS:
            return self._bits_of(manifest, task, figures)
        values = figures.errors if self.measure is LOSS else figures.norms
        return dict(zip(figures.layers, values.tolist(), strict=True))

    def _bits_of(self, manifest: Manifest, task: str, figures: TaskFigures) -> Mapping[str, float]:
        """What a task takes for itself, in bits for each of its numbers."""
        record, bits = manifest.task(task), {}
        for i, rank, nbytes in zip(record.layers, record.ranks, figures.nbytes, strict=True):
            spec = manifest.layers[i]
            bits[spec.name] = 8 * int(nbytes) / max(1, rank * (spec.d_in + spec.d_out))
        return bits

    @property
    def whole(self) -> LayerFigures | None:
        """What all tasks of the open subspace lost and take, once that is read."""
        figures = None if self.session.manifest is None else self._read_once(None)
        return figures if isinstance(figures, LayerFigures) else None

    def _of_subspace(self) -> Mapping[str, float] | str:
        """The figures of all tasks together."""
        figures = self._read_once(None)
        if isinstance(figures, str | TaskFigures):
            return figures if isinstance(figures, str) else {}
        values = {LOSS: figures.errors, BITS: figures.bits, SIZE: figures.norms}[self.measure]
        return figures.by_layer(values)

    def _read_once(self, task: str | None) -> TaskFigures | LayerFigures | str:
        """Figures of a task, or of all tasks together; read by a thread when first wanted."""
        manifest = self.session.manifest
        if manifest is None:
            return "No subspace is open."
        key = (str(manifest.path), manifest.digest, task)
        if key not in self._figures:
            self._figures[key] = "Loading…"
            self._read_figures(manifest, key)
        return self._figures[key]

    # work off the screen

    def answered(self) -> None:
        self._draw()

    def stopped(self) -> None:
        self._draw()

    @work(thread=True, group="figures")
    def _read_figures(self, manifest: Manifest, key: Key) -> None:
        worker, task = get_current_worker(), key[2]
        figures: TaskFigures | LayerFigures | None
        try:
            if task is None:
                figures = layer_figures(manifest, lambda: worker.is_cancelled)
            else:
                figures = task_figures(manifest, task)
        except VLoRAError as error:
            self.post_message(self.FiguresRead(key, problem_words(error)))
            return
        if figures is not None:
            self.post_message(self.FiguresRead(key, figures))

    def on_layers_pane_figures_read(self, event: FiguresRead) -> None:
        event.stop()
        self._figures[event.key] = event.figures
        self._draw()
        self.post_message(self.Known())
