"""Step 2: how much to keep. Every key answers from the exact error surface, none from a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from rich.text import Text
from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.markup import escape
from textual.widget import Widget
from textual.widgets import Static

from vlora_engine.spectra.k_curves import has_sides
from vlora_tui.pipeline.forecast import Loss
from vlora_tui.tui.charts.variance_plot import prepare
from vlora_tui.tui.choose.advice import AdvicePane
from vlora_tui.tui.choose.curve_pane import ChartPane, CurvePane, SizesPane
from vlora_tui.tui.choose.data import LayerTables
from vlora_tui.tui.choose.editor import ChoiceEditor
from vlora_tui.tui.choose.figures_pane import FiguresPane, brief_lines
from vlora_tui.tui.choose.keys import HELP, KEYS
from vlora_tui.tui.choose.packings import AskPacking
from vlora_tui.tui.choose.sizes import BAR, loss_cells
from vlora_tui.tui.choose.worker import BackgroundFigures, FiguresComputed
from vlora_tui.tui.core.messages import JobsChanged, SessionChanged, SpectraChanged
from vlora_tui.tui.core.session import Figures
from vlora_tui.tui.core.view import View
from vlora_tui.tui.key_names import keyed
from vlora_tui.tui.text import clean, plural
from vlora_tui.tui.widgets.ask import AskLine
from vlora_tui.tui.widgets.folding import Hanging
from vlora_tui.tui.widgets.heatmap import Heatmap
from vlora_tui.tui.widgets.table import Column, Table
from vlora_tui.tui.widgets.tabs import PaneTabs, Tab
from vlora_tui.utils.formatting import how_much, stage_words

BESIDE = ("layers", "sizes")  # right of the curve, one at a time
LOWER = ("figures", "sharing", "losses")  # below it, one at a time
PANES = ("curve", *BESIDE, *LOWER)
PANE_NAMES = {
    **{"curve": "Curve", "layers": "Layers", "sizes": "Size"},
    **{"figures": "Figures", "sharing": "Sharing", "losses": "Adapters"},
}
CONTROLS = ("choose.build", "choose.fine", "choose.normal", "choose.rough")
OF_A_CHOICE = ("build", "k", "ask", "method", "sizes")  # keys that need something measured
LOSSES = (
    Column("task", "adapter", least=10, keep=5, lost="middle"),
    Column("error", "error", right=True, keep=4),
    Column("error-bar", "", least=BAR, keep=2),
    Column("nbytes", "own bytes", right=True, keep=3),
    Column("bytes-bar", "", least=BAR, keep=1),
    Column("layer", "worst module", least=12, keep=2, lost="start"),
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
        self._lower = "figures"
        self._sharing = Text()
        self._title = ""  # of the layers, as it was written last
        self._doing = ""
        self._most = 0.0, 0  # the largest error and the most bytes of any adapter

    def on_mount(self) -> None:
        self.figures = BackgroundFigures(self, self.redraw, self._wants_curves)
        self.editor = ChoiceEditor(self.session, self.figures, self._say, self.redraw)
        self.query_one(AdvicePane).keys = tuple(map(self._key, CONTROLS))
        self.run_worker(prepare, thread=True, group="plots")

    def compose(self) -> ComposeResult:
        ascii_only = self.host.ascii_only
        sized = _sized(*self.app.size)
        if not sized["-narrow"]:
            self._front = BESIDE[0]  # where the focus goes
        # Before there are panes, so that these are styled once.
        self._arrange({"-ascii": ascii_only, **sized}, update=False)
        yield Static("", id="choose-wait", markup=False)
        yield AdvicePane(ascii_only=ascii_only, id="choose-advice")
        yield PaneTabs(id="choose-tabs")
        with Horizontal(id="choose-top"):
            yield CurvePane(ascii_only=ascii_only, id="curve")
            yield Heatmap(ascii_only=ascii_only, id="layers")
            yield SizesPane(ascii_only=ascii_only, id="sizes")
        yield PaneTabs(id="choose-lower-tabs")
        with Vertical(id="choose-lower"):
            yield FiguresPane(ascii_only=ascii_only, id="figures")
            with VerticalScroll(id="sharing", can_focus=True):
                yield Static("", id="sharing-text", markup=False)
            yield Table(LOSSES, self._loss_cells, key=lambda loss: loss.task, id="losses")
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
            return "No adapters are marked.\n\n" + keyed(
                "Press <step.adapters> and mark the adapters to compress together\n"
                "(<adapters.mark> marks one, <adapters.group> the whole group), "
                "then press <step.choose>."
            )
        view = self.host.jobs.view(self.host.jobs.spectra_job or "")
        count = plural(len(self.session.chosen), "adapter")
        problem = self.host.jobs.spectra_problem
        if problem is not None:
            again = keyed("Press <step.adapters>, then <step.choose> to try again.")
            return f"{count} could not be measured.\n\n{problem}\n\n{again}"
        doing = f"Measuring {count}: no module is done yet."
        if view is not None and view.state.is_over:
            why = keyed("Press <step.run> to see why.")
            return f"Measuring {count}: the job is {view.state}. {why}"
        if view is not None and view.progress is not None:
            at = view.progress
            far = f"{stage_words(clean(at.stage))} {how_much(at.stage, at.done, at.total, ' of ')}"
            doing = f"Measuring {count}: {far}."
        doing = self.host.jobs.waiting_words(self.host.jobs.spectra_job) or doing
        more = keyed("The curve fills module by module. <step.run> shows the job and its log.")
        return f"{doing}\n\n{more}"

    def is_of_use(self, action: str) -> bool:
        return self.not_ready() is None or action not in OF_A_CHOICE

    def row_text(self) -> str | None:
        figures = self.query_one(FiguresPane)
        if self.figures.tables is None:
            return None
        if figures.has_focus:
            return figures.row_text()
        if self._pane("sizes").has_focus:
            return "\n".join(self._brief_lines(200))
        if self._pane("sharing").has_focus:
            return self._sharing.plain
        losses: Table[Loss] = self.query_one("#losses", Table)
        if losses.has_focus and losses.row is not None:
            cells = self._loss_row(losses.row)
            return "\t".join(cells[i][0] for i in (0, 1, 3, 5, 6))
        return self.figures.tables.layer_words(self.editor.shown, self.figures.last)

    def open_filter(self) -> None:
        self.action_ask("filter")

    # keys that change the choice

    def action_k(self, step: int) -> None:
        """Move k, or the focused layer's own; where there is no k, the target."""
        self.editor.move_k(step)

    def action_ask(self, what: str) -> None:
        """Open the line that asks for a value; from a coded choice k is gone to."""
        if what == "k" and self.session.choosing.is_coded:
            self.editor.go_to_k()
            return
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
        """Show what each way of packing costs, and take one."""
        if self.editor.ready() is None:
            return
        form = AskPacking(self.session, self.session.choosing)

        def taken(_: str | None) -> None:
            if form.taken is not None:
                self.editor.choose(form.taken)

        self.app.push_screen(form, taken)

    def action_preset(self, number: int) -> None:
        """Aim at the error of a preset."""
        self.editor.take_preset(number)

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

    async def action_build(self) -> None:
        """Start to build what is on screen, and show Run."""
        if not self.session.marked or self.editor.ready() is None:
            self._say(keyed("Nothing to build yet: mark adapters (<step.adapters>)."))
            return
        await self.host.show_step("run")
        view = self.host.view
        if view is not None:
            await view.run_action("start")

    def action_open(self) -> None:
        """Open what the cursor is on: a layer's k or figures, an adapter's worst module."""
        losses: Table[Loss] = self.query_one("#losses", Table)
        if losses.has_focus:
            self._open_loss(losses.row)
        elif self._pane("layers").has_focus or self._pane("curve").has_focus:
            if self.session.choosing.is_coded:
                if self.has_class("-narrow"):
                    self._focus_front("figures")
                self._lower = "figures"
                self._arrange()
                self.editor.show_as(opened=not self.editor.shown.opened, editing=False)
            else:
                self.editor.toggle_layer_k()

    def _open_loss(self, loss: Loss | None) -> None:
        """Go to the module in which an adapter loses most."""
        if loss is None or not loss.worst_layer:
            return
        self.editor.show_as(layer=loss.worst_layer, sizes=False, pattern="", cells="error")
        self._focus_front("layers")

    # keys that change what is shown

    def action_sizes(self) -> None:
        """Size against error in place of the layers, or those again."""
        sizes = not self.editor.shown.sizes
        self.editor.show_as(sizes=sizes)
        if self.not_ready() is None:
            self._focus_front("sizes" if sizes else "layers")

    def action_again(self) -> None:
        """Measure the adapters again, where something is missing."""
        spectra = self.session.spectra
        if spectra is not None and spectra.complete and (spectra.codec or spectra.is_coded):
            self._say("Everything is measured.")
        elif self.host.jobs.is_measuring:
            self._say(keyed("Measuring: <step.run> shows the job."))
        else:
            self.host.jobs.forget_spectra()
            self.host.jobs.want_spectra()
            self.redraw()

    def action_done(self) -> None:
        """Leave what is transient."""
        if self.editor.shown.editing or self.editor.shown.opened:
            self.editor.show_as(editing=False, opened=False)
        elif self.editor.shown.pattern:
            self.editor.show_as(pattern="")
        else:
            self.host.action_escape()

    def action_cells(self) -> None:
        """What the cells show; with the keys on size against error, whose errors that is about."""
        shown = self.editor.shown
        if self._pane("sizes").has_focus:
            self.editor.show_as(worst=not shown.worst)
            return
        self.editor.show_as(cells=shown.next_cells(self.session.choosing))

    def action_share(self) -> None:
        """The share that the cells are about."""
        if self.session.choosing.is_coded:
            self._say(f"{self.session.choosing.method} has no k: its cells show errors.")
            return
        self.editor.show_as(cells="needs", share=self.editor.shown.next_share())

    def action_side(self) -> None:
        """Both sides, A alone, B alone."""
        if self.session.choosing.is_coded:
            self._say(f"{self.session.choosing.method} codes both sides together.")
            return
        if not has_sides(self.session.choosing.method):
            self._say("flat approximates both sides together.")
            return
        self.editor.show_as(side=self.editor.shown.next_side())

    def action_axes(self) -> None:
        """Linear scale, or as much room for each nine."""
        self.editor.show_as(stretched=not self.editor.shown.stretched)

    def action_pane(self, step: int) -> None:
        """The next pane."""
        panes = self.panes
        here = next((i for i, name in enumerate(panes) if self._pane(name).has_focus), 0)
        self._focus_front(panes[(here + step) % len(panes)])

    def _say(self, text: str) -> None:
        """A word about a key that did nothing."""
        self.notify(text, severity="warning", markup=False)

    # what the panes say

    def on_figures_computed(self, event: FiguresComputed) -> None:
        event.stop()
        self.figures.computed(event)

    def on_heatmap_focused(self, event: Heatmap.Focused) -> None:
        event.stop()
        self.editor.show_as(layer=event.layer, editing=False, opened=False)

    def on_chart_pane_stepped(self, event: ChartPane.Stepped) -> None:
        event.stop()
        if event.smaller:
            self.editor.move_target(event.step)
        else:
            self.action_k(event.step)

    def on_curve_pane_layer_stepped(self, event: CurvePane.LayerStepped) -> None:
        event.stop()
        self.query_one(Heatmap).action_move(event.step, 0)

    def on_figures_pane_taken(self, event: FiguresPane.Taken) -> None:
        event.stop()
        self.editor.choose(event.choosing)

    def on_advice_pane_pressed(self, event: AdvicePane.Pressed) -> None:
        event.stop()
        if event.what == "build":
            self.run_worker(self.action_build(), group="build", exclusive=True)
        else:
            self.action_preset(event.number)

    def on_table_pressed(self, event: Table.Pressed) -> None:
        event.stop()
        self._open_loss(event.table.row)

    def on_pane_tabs_chosen(self, event: PaneTabs.Chosen) -> None:
        event.stop()
        self._focus_front(event.pane)

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

    def fit_to(self, width: int, height: int) -> None:
        if self.is_mounted:
            self._size_classes(width, height)

    def _size_classes(self, width: int, height: int) -> None:
        """Three panes, one pane with tabs, or one without borders: by the terminal's size."""
        self._arrange(_sized(width, height))

    def on_descendant_focus(self, event: events.DescendantFocus) -> None:
        if event.widget.id in PANES:
            self._bring_up(event.widget.id)

    def on_click(self, event: events.Click) -> None:
        free = event.widget is not None and not event.widget.focusable and not self._asking
        if free and not isinstance(event.widget, PaneTabs):
            self._focus_front(self._front)  # the keys belong to this step wherever one clicks

    # drawing

    def redraw(self) -> None:
        """Draw everything from the session, as far as it is known."""
        problem = self.not_ready()
        arrived = problem is None and self.has_class("-wait")
        if arrived or (problem is not None and not self.has_class("-wait")):
            self.set_class(problem is not None, "-wait")
            self.call_after_refresh(self.screen.refresh_bindings)
        if problem is not None:
            self.figures.forget()
            self.query_one("#choose-wait", Static).update(problem)
            return
        spectra = self.session.spectra
        if spectra is None:
            return
        figures = self.figures.look_up(spectra)
        self._draw(figures)
        self.figures.work()
        if arrived and self.is_in_view and self.screen.focused is None:
            self._focus_first()

    def _draw(self, figures: Figures | None) -> None:
        tables, sizes, choosing = self.figures.tables, self.figures.sizes, self.session.choosing
        if tables is None or sizes is None:
            return
        self.editor.shown = tables.settle(self.editor.shown, choosing)
        shown = self.editor.shown
        self.set_class(shown.sizes, "-sizes")
        known = sizes.curves(choosing.method) if choosing.is_coded else None
        sheet = tables.sheet(shown, self.session, figures, known, sizes.estimate)
        self.query_one(FiguresPane).show(sheet)
        advice = tables.advice(self.session, figures, sizes.estimate)
        if self.host.ascii_only:
            advice = replace(advice, words=advice.words.replace("…", "..."))
        self.query_one(AdvicePane).show(advice)
        now = figures or self.figures.last
        curve = self.query_one(CurvePane)
        curve.show(*tables.curve(shown, self.session, now, known))
        title = tables.curve_title(shown, choosing, in_bytes=known is not None)
        curve.entitle(self._words(title), self._words(tables.layer_words(shown, now)))
        self._draw_layers(tables, now)
        if shown.sizes or self.has_class("-narrow"):
            self._draw_sizes(figures)
        if self._lower != "figures":
            self._draw_sharing(tables, figures)
        self._draw_tabs(figures)
        if self.has_class("-narrow"):
            lines = self._brief_lines(self.size.width - 2)
            self.query_one("#choose-brief", Static).update("\n".join(lines))

    def _brief_lines(self, width: int) -> list[str]:
        sheet = self.query_one(FiguresPane).sheet
        return brief_lines(sheet, width, ascii_only=self.host.ascii_only)

    def _draw_layers(self, tables: LayerTables, figures: Figures | None) -> None:
        """The heat map, with what its colours stand for in its last line."""
        layers, shown, choosing = self.query_one(Heatmap), self.editor.shown, self.session.choosing
        layers.show(*tables.cells(shown, choosing, figures))
        title = self._words(tables.cells_title(shown, choosing))
        if title != self._title:  # setting it paints all of the pane
            self._title = layers.border_title = title

    def _draw_sizes(self, figures: Figures | None) -> None:
        """Error against size of every method."""
        sizes, shown = self.figures.sizes, self.editor.shown
        if sizes is None:
            return
        sizes.is_measured_now = self.host.jobs.is_measuring
        chart = self.query_one(SizesPane)
        marks = sizes.marks(self.session, figures or self.figures.last, worst=shown.worst)
        if self.host.ascii_only:
            marks = replace(marks, note=marks.note.replace("…", "..."))
        chart.show(sizes.data(worst=shown.worst), marks)
        chart.entitle(self._words(sizes.title(worst=shown.worst)), keyed("<choose.sizes>: layers"))

    def _draw_sharing(self, tables: LayerTables, figures: Figures | None) -> None:
        """Who shares what, and what each adapter loses."""
        sizes = self.figures.sizes
        if sizes is None:
            return
        sizes.is_measured_now = self.host.jobs.is_measuring
        figures_of_rivals = (
            self.session.cached_figures(rival) or sizes.estimate(rival)
            for rival in (
                [] if self.figures.last is None else self.session.rivals(self.figures.last)
            )
        )
        methods = [self.figures.last, *figures_of_rivals]
        text = sizes.sharing(self._auto(), methods, tables.short)
        if self.host.ascii_only:
            text = Text(text.plain.replace("…", "..."))
        if text != self._sharing:
            self._sharing = text
            self.query_one("#sharing-text", Static).update(Hanging(text))
        losses: Table[Loss] = self.query_one("#losses", Table)
        rows = sizes.losses(self.figures.last)
        if rows is not losses.rows:
            self._most = (
                max((row.error for row in rows), default=0.0),
                max((row.nbytes or 0 for row in rows), default=0),
            )
            known = any(row.nbytes is not None for row in rows)
            losses.columns = [c for c in LOSSES if known or "bytes" not in c.key]
            losses.show(rows, cursor=None if losses.has_focus else 0)

    def _auto(self) -> Figures | None:
        """What is known of auto: the present choice, or auto at its error."""
        last = self.figures.last
        if last is None or last.choosing.method == "auto":
            return last
        rivals = self.session.rivals(last)
        auto = next((rival for rival in rivals if rival.method == "auto"), None)
        return None if auto is None else self.session.cached_figures(auto)

    def _loss_cells(self, loss: Loss) -> list[tuple[str, str]]:
        """The cells of the columns that there are: a basis has no bytes of one adapter."""
        cells = dict(zip((column.key for column in LOSSES), self._loss_row(loss), strict=True))
        losses: Table[Loss] = self.query_one("#losses", Table)
        return [cells[column.key] for column in losses.columns]

    def _loss_row(self, loss: Loss) -> list[tuple[str, str]]:
        return loss_cells(
            loss,
            {} if self.figures.tables is None else self.figures.tables.short,
            exact=self.figures.last is not None and self.figures.last.is_exact,
            most=self._most,
            ascii_only=self.host.ascii_only,
        )

    # small things

    @property
    def _lacks_tables(self) -> bool:
        """Whether what is in sight waits for the tables of the codec."""
        spectra = self.session.spectra
        return spectra is not None and spectra.codec is None and self.editor.shown.sizes

    def _wants_curves(self) -> bool:
        return self.editor.shown.sizes or self._front == "sizes"

    @property
    def _asking(self) -> bool:
        return self.query_one(AskLine).open

    def _words(self, text: str) -> str:
        """``text`` for a border: no markup, and plain where only ASCII is drawn."""
        plain = text.replace(" · ", " - ") if self.host.ascii_only else text
        return escape(plain)

    def _key(self, binding_id: str) -> str:
        """How the key of a binding is written, the user's own where there is one."""
        binding = next(b for b in KEYS if isinstance(b, Binding) and b.id == binding_id)
        given = self.host.config.keys.get(binding_id)
        if given:
            binding = replace(binding, key=given.split(",")[0].strip())
        return self.app.get_key_display(binding)

    @property
    def panes(self) -> tuple[str, ...]:
        """The panes that Tab goes through."""
        if self.has_class("-narrow"):
            return PANES
        return ("curve", BESIDE[self.editor.shown.sizes], *LOWER)

    def _pane(self, name: str) -> Widget:
        return self.query_one(f"#{name}")

    def _focus_front(self, name: str) -> None:
        name = name if name in self.panes else self.panes[0]
        self._bring_up(name)
        self._pane(name).focus(scroll_visible=False)

    def _focus_first(self) -> None:
        """Where the keys go when the step comes into view."""
        narrow = self.has_class("-narrow")
        self._focus_front(self._front if narrow else BESIDE[self.editor.shown.sizes])

    def _bring_up(self, name: str) -> None:
        """Have a pane in sight, whichever of them shares its place."""
        before = self._front, self._lower
        self._front = name
        if name in LOWER:
            self._lower = name
        self._arrange()
        if (self._front, self._lower) != before and self.figures.tables is not None:
            self.redraw()

    def _arrange(self, also: Mapping[str, bool] | None = None, *, update: bool = True) -> None:
        """Set the classes that say which panes are in sight, all at once: each time every pane is
        styled anew.
        """
        front = {f"-front-{name}": name == self._front for name in PANES}
        lower = {f"-lower-{name}": name == self._lower for name in LOWER}
        self.update_classes({**front, **lower, **(also or {})}, update=update)

    def _draw_tabs(self, figures: Figures | None) -> None:
        tabs = [Tab(name, PANE_NAMES[name]) for name in PANES]
        self.query_one("#choose-tabs", PaneTabs).show(tabs, self._front)
        lower = [Tab(name, PANE_NAMES[name]) for name in LOWER]
        self.query_one("#choose-lower-tabs", PaneTabs).show(lower, self._lower)
        doing = "Calculating" if figures is None or figures.estimate is not None else ""
        if figures is not None and figures.so_far:
            doing = "Measuring"
        dots = "..." if self.host.ascii_only else "…"
        if doing != self._doing:
            self._doing = doing
            for name in LOWER:
                self._pane(name).border_title = doing and doing + dots


def _sized(width: int, height: int) -> dict[str, bool]:
    """The classes that a terminal of this size asks for: three panes, one pane with tabs, or one
    without borders.
    """
    return {"-narrow": width < 100 or height < 26, "-tiny": width < 70 or height < 18}
