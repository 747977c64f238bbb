"""Step 2: how much to keep. Every key answers from the exact error surface, none from a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from rich.text import Text
from textual import events
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.markup import escape
from textual.widget import Widget
from textual.widgets import Static

from vlora_engine.spectra.k_curves import has_sides
from vlora_tui.pipeline.forecast import Loss
from vlora_tui.tui.charts.variance_plot import prepare
from vlora_tui.tui.choose.curve_pane import ChartPane, CurvePane, SizesPane
from vlora_tui.tui.choose.data import LayerTables
from vlora_tui.tui.choose.editor import ChoiceEditor
from vlora_tui.tui.choose.figures_pane import FiguresPane, brief_lines
from vlora_tui.tui.choose.keys import HELP, KEYS
from vlora_tui.tui.choose.sizes import loss_cells
from vlora_tui.tui.choose.worker import BackgroundFigures, FiguresComputed
from vlora_tui.tui.core.messages import JobsChanged, SessionChanged, SpectraChanged
from vlora_tui.tui.core.session import Figures
from vlora_tui.tui.core.view import View
from vlora_tui.tui.text import clean, plural
from vlora_tui.tui.widgets.ask import AskLine
from vlora_tui.tui.widgets.folding import Hanging
from vlora_tui.tui.widgets.heatmap import Heatmap
from vlora_tui.tui.widgets.table import Column, Table
from vlora_tui.utils.formatting import how_much

PANES = ("curve", "layers", "figures")
SIZE_PANES = ("sizes", "sharing", "losses")  # of the second view
PANE_NAMES = {
    **{"curve": "Curve", "layers": "Layers", "figures": "Figures"},
    **{"sizes": "Size", "sharing": "Sharing", "losses": "Adapters"},
}
LOSSES = (
    Column("task", "adapter", least=10, keep=5, lost="start"),
    Column("error", "error", right=True, keep=4),
    Column("nbytes", "own bytes", right=True, keep=2),
    Column("layer", "worst module", least=12, keep=3, lost="start"),
    Column("its", "its error", right=True, keep=1),
)


class ChooseView(View):
    """The Choose k step: the curve, the layers, and the figures of the present choice."""

    step = 2
    title = "Choose k"
    help_text = HELP
    DEFAULT_CSS = Path(__file__).with_suffix(".tcss").read_text("utf-8")

    BINDINGS: ClassVar[list[BindingType]] = KEYS

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._front = "curve"
        self._sharing = Text()

    def on_mount(self) -> None:
        self.figures = BackgroundFigures(self, self.redraw, self._wants_curves)
        self.editor = ChoiceEditor(self.session, self.figures, self._say, self.redraw)
        self.set_class(self.host.ascii_only, "-ascii")
        self.run_worker(prepare, thread=True, group="plots")

    def compose(self) -> ComposeResult:
        ascii_only = self.host.ascii_only
        yield Static("", id="choose-wait", markup=False)
        yield Static("", id="choose-tabs", markup=False)
        with Horizontal(id="choose-top"):
            yield CurvePane(ascii_only=ascii_only, id="curve")
            yield Heatmap(ascii_only=ascii_only, id="layers")
        yield FiguresPane(ascii_only=ascii_only, id="figures")
        with Vertical(id="choose-sizes"):
            with Horizontal(id="choose-sizes-top"):
                yield SizesPane(ascii_only=ascii_only, id="sizes")
                with VerticalScroll(id="sharing", can_focus=True):
                    yield Static("", id="sharing-text", markup=False)
            yield Table(LOSSES, self._loss_row, key=lambda loss: loss.task, id="losses")
        yield Static("", id="choose-brief", markup=False)
        yield AskLine(id="choose-ask")

    # what the application calls

    def shown(self) -> None:
        if self.session.marked:
            self.host.jobs.want_spectra()
        self._size_classes(*self.app.size)
        self.redraw()
        if self.not_ready() is None:
            self._focus_first()

    def changed(self, change: SessionChanged) -> None:
        spectra, of_jobs = self.session.spectra, isinstance(change, JobsChanged)
        if isinstance(change, SpectraChanged) and spectra is not None:
            self.figures.layers_came(spectra)
        elif not of_jobs or self.not_ready() is not None or self._lacks_tables:
            self.redraw()

    def not_ready(self) -> str | None:
        spectra = self.session.spectra
        if spectra is not None and spectra.layers:
            return None
        if spectra is None and not self.session.chosen:
            return (
                "Nothing to choose for yet.\n\n"
                "Press 1 and mark the adapters that shall share a basis\n"
                "(space marks one, * the whole group), then come back with 2."
            )
        view = self.host.jobs.view(self.host.jobs.spectra_job or "")
        count = plural(len(self.session.chosen), "adapter")
        problem = self.host.jobs.spectra_problem
        if problem is not None:
            return f"{count} could not be measured.\n\n{problem}\n\n1, then 2 tries again."
        doing = f"Measuring {count}: no layer is done yet."
        if view is not None and view.state.is_over:
            return f"The job that measures {count} is {view.state}: press 3 to see why."
        if view is not None and view.progress is not None:
            at = view.progress
            far = f"{clean(at.stage)} {how_much(at.stage, at.done, at.total, ' of ')}"
            doing = f"Measuring {count}: {far}."
        return f"{doing}\n\nThe curve fills in layer by layer. 3 shows the job and its log."

    def row_text(self) -> str | None:
        figures = self.query_one(FiguresPane)
        if self.figures.tables is None:
            return None
        if figures.has_focus:
            return figures.row_text()
        if self.editor.shown.sizes:
            return self._size_row_text()
        return self.figures.tables.layer_words(self.editor.shown, self.figures.last)

    def _size_row_text(self) -> str | None:
        """The adapter under the cursor, or what is shared, or the present choice."""
        if self._pane("sharing").has_focus:
            return self._sharing.plain
        losses: Table[Loss] = self.query_one("#losses", Table)
        if losses.has_focus and losses.row is not None:
            return "\t".join(cell for cell, _ in self._loss_row(losses.row))
        return "\n".join(self._brief_lines(200))

    def open_filter(self) -> None:
        if self.editor.shown.sizes:
            self._say("Layers are filtered on the other view: S.")
        else:
            self.action_ask("filter")

    # keys that change the choice

    def action_k(self, step: int) -> None:
        """Move k, or the focused layer's own; where there is no k, the target."""
        self.editor.move_k(step)

    def action_ask(self, what: str) -> None:
        """Open the line that asks for a value."""
        question = self.editor.question(what)
        if question is not None:
            self.query_one(AskLine).ask(question)

    def action_method(self) -> None:
        """The next method that the spectra can tell of."""
        self.editor.next_method()

    def action_dtype(self) -> None:
        """The next dtype to store in."""
        self.editor.next_dtype()

    def action_packing(self) -> None:
        """The next way of packing."""
        self.editor.next_packing()

    def action_own(self) -> None:
        """Start or end giving the focused layer a k of its own."""
        self.editor.toggle_layer_k()

    def action_clear_own(self) -> None:
        """Let the focused layer follow the others again."""
        self.editor.clear_layer_k()

    def action_undo(self) -> None:
        """Take the last change of the choice back."""
        self.editor.undo()

    def action_pin(self) -> None:
        """Keep the present choice for comparison, or let go of it."""
        self.editor.pin()

    async def action_run(self) -> None:
        """Go on to Run with what is on screen."""
        if self.editor.ready() is not None:
            await self.host.show_step("run")

    # keys that change what is shown

    def action_sizes(self) -> None:
        """The other view: size against error, or k."""
        self.editor.show_as(sizes=not self.editor.shown.sizes, editing=False)
        if self.not_ready() is None:
            self._front = self.panes[0]
            self._focus_first()

    def action_again(self) -> None:
        """Measure the adapters again, where something is missing."""
        spectra = self.session.spectra
        if spectra is not None and spectra.codec is not None:
            self._say("Everything is measured.")
        elif self.host.jobs.is_measuring:
            self._say("They are being measured: 3 shows the job.")
        else:
            self.host.jobs.forget_spectra()
            self.host.jobs.want_spectra()
            self.redraw()

    def action_done(self) -> None:
        """Leave what is transient."""
        if self.editor.shown.editing:
            self.editor.show_as(editing=False)
        elif self.editor.shown.pattern:
            self.editor.show_as(pattern="")

    def action_cells(self) -> None:
        """What the cells show, or whose errors the curves are."""
        if self.editor.shown.sizes:
            self.editor.show_as(worst=not self.editor.shown.worst)
            return
        self.editor.show_as(cells=self.editor.shown.next_cells())

    def action_share(self) -> None:
        """The share that the cells are about."""
        if self._is_on_sizes():
            return
        self.editor.show_as(cells="needs", share=self.editor.shown.next_share())

    def action_side(self) -> None:
        """Both sides, A alone, B alone."""
        if self._is_on_sizes():
            return
        if self.session.choosing.is_coded:
            self._say(f"{self.session.choosing.method} codes both sides together.")
            return
        if not has_sides(self.session.choosing.method):
            self._say("flat approximates both factors at once: a side has no error of its own.")
            return
        self.editor.show_as(side=self.editor.shown.next_side())

    def action_axes(self) -> None:
        """Even axes, or stretched ones."""
        if self._is_on_sizes():
            return
        self.editor.show_as(stretched=not self.editor.shown.stretched)

    def action_pane(self, step: int) -> None:
        """The next pane."""
        panes = self.panes
        here = next((i for i, name in enumerate(panes) if self._pane(name).has_focus), 0)
        self._focus_front(panes[(here + step) % len(panes)])

    def _is_on_sizes(self) -> bool:
        """Whether a key is about the other view; then it says so."""
        if self.editor.shown.sizes:
            self._say("This key is about the other view: S.")
        return self.editor.shown.sizes

    def _say(self, text: str) -> None:
        """A word about a key that did nothing."""
        self.notify(text, severity="warning", markup=False)

    # what the panes say

    def on_figures_computed(self, event: FiguresComputed) -> None:
        event.stop()
        self.figures.computed(event)

    def on_heatmap_focused(self, event: Heatmap.Focused) -> None:
        event.stop()
        self.editor.show_as(layer=event.layer, editing=False)

    def on_chart_pane_stepped(self, event: ChartPane.Stepped) -> None:
        event.stop()
        if self.editor.shown.sizes:
            self.editor.move_target(event.step)
        else:
            self.action_k(event.step)

    def on_curve_pane_layer_stepped(self, event: CurvePane.LayerStepped) -> None:
        event.stop()
        self.query_one(Heatmap).action_move(event.step, 0)

    def on_figures_pane_taken(self, event: FiguresPane.Taken) -> None:
        event.stop()
        self.editor.choose(event.choosing)

    def on_ask_line_answered(self, event: AskLine.Answered) -> None:
        event.stop()
        self._focus_front(self._front)
        self.editor.answer(event.name, event.value)

    def on_ask_line_left(self, event: AskLine.Left) -> None:
        event.stop()
        self._focus_front(self._front)

    def on_resize(self, event: events.Resize) -> None:
        self._size_classes(*self.app.size)
        self.redraw()

    def _size_classes(self, width: int, height: int) -> None:
        """Three panes, one pane with tabs, or one without borders: by the terminal's size."""
        self.set_class(width < 100 or height < 26, "-narrow")
        self.set_class(width < 70 or height < 18, "-tiny")
        self._front_classes()

    def on_descendant_focus(self, event: events.DescendantFocus) -> None:
        if event.widget.id in self.panes:
            self._front = event.widget.id
            self._front_classes()

    def on_click(self, event: events.Click) -> None:
        tabs = self.query_one("#choose-tabs", Static)
        if event.widget is tabs:
            column = event.x
            for name in self.panes:
                column -= len(PANE_NAMES[name]) + 4
                if column < 0:
                    self._focus_front(name)
                    return
        elif event.widget is not None and not event.widget.focusable and not self._asking:
            self._focus_front(self._front)  # the keys belong to this step wherever one clicks

    # drawing

    def redraw(self) -> None:
        """Draw everything from the session, as far as it is known."""
        problem = self.not_ready()
        arrived = problem is None and self.has_class("-wait")
        self.set_class(problem is not None, "-wait")
        if problem is not None:
            self.figures.forget()
            self.query_one("#choose-wait", Static).update(problem)
            return
        spectra = self.session.spectra
        if spectra is None:
            return
        self.set_class(self.editor.shown.sizes, "-sizes")
        figures = self.figures.look_up(spectra)
        self._draw(figures)
        self.figures.work()
        if arrived and self.is_in_view and self.screen.focused is None:
            self._focus_first()

    def _draw(self, figures: Figures | None) -> None:
        tables, choosing = self.figures.tables, self.session.choosing
        if tables is None:
            return
        self.editor.shown = tables.settle(self.editor.shown, choosing)
        pane = self.query_one(FiguresPane)
        pane.show(tables.sheet(self.editor.shown, self.session, figures))
        exact = figures is not None and figures.estimate is None
        pane.border_title = "This choice" if exact else "This choice, working it out"
        if self.editor.shown.sizes:
            self._draw_sizes(tables, figures)
        else:
            self._draw_k(tables)
        if self.has_class("-narrow") or self.editor.shown.sizes:
            lines = self._brief_lines(self.size.width - 2)
            self.query_one("#choose-brief", Static).update("\n".join(lines))

    def _brief_lines(self, width: int) -> list[str]:
        sheet = self.query_one(FiguresPane).sheet
        return brief_lines(sheet, width, ascii_only=self.host.ascii_only)

    def _draw_k(self, tables: LayerTables) -> None:
        """Explained variance against k, and the layers."""
        curve, layers = self.query_one(CurvePane), self.query_one(Heatmap)
        shown, choosing, last = self.editor.shown, self.session.choosing, self.figures.last
        curve.show(*tables.curve(shown, self.session, last))
        curve.border_title = self._words(tables.curve_title(shown, choosing))
        curve.border_subtitle = "S: size against error"
        layers.show(*tables.cells(shown, choosing, last))
        layers.border_title = self._words(tables.cells_title(shown, choosing))
        layers.border_subtitle = self._words(tables.layer_words(shown, last))

    def _draw_sizes(self, tables: LayerTables, figures: Figures | None) -> None:
        """Error against size, who shares, who loses."""
        sizes, shown, choosing = self.figures.sizes, self.editor.shown, self.session.choosing
        if sizes is None:
            return
        sizes.is_measured_now = self.host.jobs.is_measuring
        chart, sharing = self.query_one(SizesPane), self._pane("sharing")
        marks = sizes.marks(self.session, figures or self.figures.last, worst=shown.worst)
        chart.show(sizes.data(worst=shown.worst), marks)
        chart.border_title = self._words(sizes.title(choosing, worst=shown.worst))
        chart.border_subtitle = "S: k and layers"
        subject, working = self._auto(), figures is None or figures.estimate is not None
        rivals = [] if self.figures.last is None else self.session.rivals(self.figures.last)
        figures_of_rivals = (
            self.session.cached_figures(rival) or sizes.estimate(rival) for rival in rivals
        )
        methods = [self.figures.last, *figures_of_rivals]
        self._sharing = sizes.sharing(subject, methods, tables.short)
        self.query_one("#sharing-text", Static).update(Hanging(self._sharing))
        same = "" if choosing.method == "auto" else ", same bytes"
        sharing.border_title = f"What auto does{same}{', working it out' if working else ''}"
        losses: Table[Loss] = self.query_one("#losses", Table)
        rows = sizes.losses(self.figures.last)
        if rows is not losses.rows:
            losses.show(rows, cursor=None if losses.has_focus else 0)
        losses.border_title = self._words(
            f"What each adapter loses · {choosing.method}{', working it out' if working else ''}"
        )

    def _auto(self) -> Figures | None:
        """What is known of auto: the present choice, or auto at its bytes."""
        last = self.figures.last
        if last is None or last.choosing.method == "auto":
            return last
        rivals = self.session.rivals(last)
        auto = next((rival for rival in rivals if rival.method == "auto"), None)
        return None if auto is None else self.session.cached_figures(auto)

    def _loss_row(self, loss: Loss) -> list[tuple[str, str]]:
        short = {} if self.figures.tables is None else self.figures.tables.short
        return loss_cells(
            loss, short, exact=self.figures.last is not None and self.figures.last.is_exact
        )

    # small things

    @property
    def _lacks_tables(self) -> bool:
        """Whether the view in sight waits for the tables of the codec."""
        spectra = self.session.spectra
        return self.editor.shown.sizes and spectra is not None and spectra.codec is None

    def _wants_curves(self) -> bool:
        return self.editor.shown.sizes or self.session.choosing.is_coded

    @property
    def _asking(self) -> bool:
        return self.query_one(AskLine).open

    def _words(self, text: str) -> str:
        """``text`` for a border: no markup, and plain where only ASCII is drawn."""
        plain = text.replace(" · ", " - ") if self.host.ascii_only else text
        return escape(plain)

    @property
    def panes(self) -> tuple[str, ...]:
        """The panes of the view in sight, in the order of Tab."""
        return SIZE_PANES if self.editor.shown.sizes else PANES

    def _pane(self, name: str) -> Widget:
        return self.query_one(f"#{name}")

    def _focus_front(self, name: str) -> None:
        self._front = name if name in self.panes else self.panes[0]
        self._front_classes()
        self._pane(self._front).focus(scroll_visible=False)

    def _focus_first(self) -> None:
        """Where the keys go when the step comes into view."""
        first = "sizes" if self.editor.shown.sizes else "layers"
        self._focus_front(self._front if self.has_class("-narrow") else first)

    def _front_classes(self) -> None:
        for name in (*PANES, *SIZE_PANES):
            self.set_class(name == self._front, f"-front-{name}")
        names = [
            f"[{PANE_NAMES[n]}]" if n == self._front else f" {PANE_NAMES[n]} " for n in self.panes
        ]
        width = self.app.size.width
        keys = "   tab" if width < 48 else "   tab: next" if width < 64 else "   tab: next  S: "
        if width >= 64:
            keys += "k" if self.editor.shown.sizes else "size"
        self.query_one("#choose-tabs", Static).update("  ".join(names) + keys)
