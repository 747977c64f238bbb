"""Inspect's layers pane: where in the layers it lies, for one adapter or task, or between two."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from rich.text import Text
from textual import work
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.message import Message
from textual.widgets import Static
from textual.worker import get_current_worker

from vlora_engine.errors import VLoRAError
from vlora_tui.tui import inspecting
from vlora_tui.tui.inspecting import Diff
from vlora_tui.tui.screens.inspect_lines import (
    COSINE,
    DIFFERENCE,
    LOSS,
    SIZE,
    Measure,
    Subject,
    layer_words,
)
from vlora_tui.tui.subcommand import ask_command
from vlora_tui.tui.widgets.heatmap import Cell, Heatmap, arrange
from vlora_tui.tui.words import clean

if TYPE_CHECKING:
    from vlora_engine.figures import TaskFigures
    from vlora_tui.tui.session import Session

Places = tuple[str, str]
FRAME = 5  # lines of the pane that are no layers: borders, head, what is said


class LayersPane(Vertical):
    """A cell for each layer and kind of module, and in words the layer under the cursor.

    What one adapter loses comes from the spectra, what a task loses from its file. Two are compared
    by a process of its own, which may hold weights; what it said is kept.
    """

    class Drawn(Message):
        """The pane shows something else; it may need another height."""

    class Compared(Message):
        """A comparison ended."""

        def __init__(self, places: Places, diff: Diff | None, problem: str | None) -> None:
            super().__init__()
            self.places, self.diff, self.problem = places, diff, problem

    class Read(Message):
        """The figures of a task were read."""

        def __init__(self, key: Places, figures: TaskFigures | None, problem: str) -> None:
            super().__init__()
            self.key, self.figures, self.problem = key, figures, problem

    def __init__(self, session: Session, *, ascii_only: bool = False) -> None:
        super().__init__(id="inspect-layers", classes="pane")
        self.session = session
        self._ascii_only = ascii_only
        self._subject: Subject | None = None
        self._measures: dict[str, int] = {"one": 0, "pair": 0}
        self._layer: str | None = None
        self._diffs: dict[Places, Diff | str] = {}
        self._comparing: Places | None = None
        self._figures: dict[Places, TaskFigures | str] = {}

    def compose(self) -> ComposeResult:
        yield Heatmap(ascii_only=self._ascii_only, id="layer-map")
        yield Static(id="layers-said", classes="said", markup=False)

    # what the step asks

    def show(self, subject: Subject | None) -> None:
        """Show the layers of one adapter or task, or of a pair."""
        self._subject = subject
        self._draw()

    def compare(self, pair: Subject) -> None:
        """Have two compared, unless that is known already; ``pair`` says where they lie."""
        places = pair.places
        if places is None or self.knows(places):
            return
        self._diffs.pop(places, None)
        self._comparing = places
        self._ask_diff(places)

    def knows(self, places: Places | None) -> bool:
        """Whether the two at these places were compared."""
        return places is not None and isinstance(self._diffs.get(places), Diff)

    def stop(self) -> bool:
        """Stop comparing; whether there was a comparison to stop."""
        if self._comparing is None:
            return False
        self.workers.cancel_group(self, "diff")
        self._comparing = None
        return True

    def turn_measure(self) -> None:
        """Another figure for what is shown."""
        kind = "pair" if self._is_pair else "one"
        self._measures[kind] = 1 - self._measures[kind]
        self._draw()

    def look_closer(self) -> None:
        """Show the layer under the cursor in a box of its own."""
        subject, layer = self._subject, self._layer
        if subject is None or layer is None or isinstance(self._values(), str):
            return
        if not subject.known_places:
            self.notify("Where this adapter lies is not known.", severity="warning")
            return
        from vlora_tui.tui.screens.inspect_module import ModuleBox

        self.app.push_screen(ModuleBox(layer, subject.names, subject.known_places))

    @property
    def wanted_height(self) -> int:
        """The lines that the pane can use."""
        return len(self._heatmap.grid.rows) + FRAME

    @property
    def measure(self) -> Measure:
        """The figure that is shown."""
        if self._is_pair:
            return (COSINE, DIFFERENCE)[self._measures["pair"]]
        return (LOSS, SIZE)[self._measures["one"]]

    def text(self) -> Text:
        """What the layer under the cursor says."""
        subject = self._subject
        diff = self._diffs.get(subject.places) if subject and subject.places else None
        shown = diff if isinstance(diff, Diff) and self._is_pair else None
        return layer_words(self._values(), self._layer, self.measure, shown)

    # drawing

    @property
    def _heatmap(self) -> Heatmap:
        return self.query_one("#layer-map", Heatmap)

    @property
    def _is_pair(self) -> bool:
        return self._subject is not None and self._subject.kind == "pair"

    def _draw(self) -> None:
        subject, measure, values = self._subject, self.measure, self._values()
        names = " and ".join(clean(name) for name in subject.names) if subject else ""
        self.border_title = f"Layers of {names}: {measure.title}" if subject else "Layers"
        others = {"loss": "m: size", "size": "m: loss", "cosine_sim": "m: difference"}
        self.border_subtitle = others.get(measure.key, "m: cosine")
        if isinstance(values, str):
            self._heatmap.show(arrange(()), {}, None)
        else:
            top = measure.top or max([measure.floor, *values.values()]) or 1.0
            cells = {
                name: Cell(measure.text(value), max(0.0, min(1.0, value / top)))
                for name, value in values.items()
            }
            if self._layer not in values:
                self._layer = max(values, key=lambda name: values[name], default=None)
            self._heatmap.show(arrange(inspecting.natural(values)), cells, self._layer)
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
            diff = self._diffs.get(subject.places or ("", ""))
            if isinstance(diff, Diff):
                return diff.measure(self.measure.key)
            return diff or "Comparing, layer by layer; x stops it."
        if subject.kind == "task":
            return self._stored(subject.names[0])
        if spectra is None:
            return "Nothing is measured yet."
        if self.measure is SIZE:
            return inspecting.sizes_of(spectra, subject.index)
        method = self.session.choosing.method
        if self.session.choosing.is_coded:
            return f"{method} has no k; what each adapter loses with it stands on step 2 (S)."
        figures = self.session.figures()
        if figures.choice is None:
            return figures.problem or "There is no choice of k yet: 2."
        return inspecting.losses_of(spectra, figures.choice, subject.index)

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

    @work(thread=True, exclusive=True, group="diff", exit_on_error=False)
    def _ask_diff(self, places: Places) -> None:
        """Compare two adapters in a process of its own: this one holds no weights."""
        worker = get_current_worker()
        try:
            arguments = inspecting.diff_arguments(*places)
            answer = ask_command(arguments, lambda: worker.is_cancelled)
        except VLoRAError as error:
            self.post_message(self.Compared(places, None, f"The comparison failed: {error}"))
            return
        if answer is not None:
            self.post_message(self.Compared(places, Diff.of(answer), None))

    def on_layers_pane_compared(self, event: Compared) -> None:
        event.stop()
        if self._comparing == event.places:
            self._comparing = None
        self._diffs[event.places] = event.diff or event.problem or "The comparison failed."
        self._draw()

    @work(thread=True, group="figures", exit_on_error=False)
    def _read_figures(self, key: Places) -> None:
        from vlora_engine.figures import task_figures

        manifest = self.session.manifest
        if manifest is None:
            return
        try:
            self.post_message(self.Read(key, task_figures(manifest, key[1]), ""))
        except VLoRAError as error:
            self.post_message(self.Read(key, None, str(error)))

    def on_layers_pane_read(self, event: Read) -> None:
        event.stop()
        self._figures[event.key] = event.figures or event.problem
        self._draw()
