"""Step 2: how much to keep. Every key answers from the exact error surface, none from a model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal
from textual.markup import escape
from textual.widget import Widget
from textual.widgets import Static

from vlora_engine.packing import QUANTIZATIONS
from vlora_tui.tui.plots import prepare
from vlora_tui.tui.screens.base import View
from vlora_tui.tui.screens.choose_data import Atlas, Shown
from vlora_tui.tui.screens.choose_questions import question
from vlora_tui.tui.screens.choose_working import Computed, Working
from vlora_tui.tui.session import MAX_PINS, Choosing, Figures
from vlora_tui.tui.widgets.ask import AskLine
from vlora_tui.tui.widgets.curve import CurvePane
from vlora_tui.tui.widgets.figures import FiguresPane, brief_lines
from vlora_tui.tui.widgets.heatmap import Heatmap
from vlora_tui.tui.words import clean, plural

if TYPE_CHECKING:
    from textual.timer import Timer

PANES = ("curve", "layers", "figures")
PANE_NAMES = {"curve": "Curve", "layers": "Layers", "figures": "Figures"}
DTYPES = ("auto", "fp16", "fp32", "bf16")
PACKINGS = ("none", *QUANTIZATIONS)
ARRIVING_SECONDS = 2.0  # at most one repaint in this time while spectra arrive


class ChooseView(View):
    """The curve, the layers, and the figures of the present choice."""

    step = 2
    title = "Choose k"
    help_text = (
        "How many directions (k) of the adapters' weight changes to keep. The curve shows how much "
        "of dW each k captures: the median over the layers, from the lowest to the highest of "
        "them, and the layer under the cursor. Its left axis gives every further nine the same "
        "room; the right axis is the relative error that this means. The rule is the present "
        "choice, diamonds are the k that 90, 95 and 99 % need over all layers.\n"
        "[ ] move k by one, { } by eight, = types k.\n"
        "e sets the largest error that any adapter may have, E their mean, v the least variance, "
        "b the bytes on disk: k is then chosen for each layer and side.\n"
        "m changes the method, d the dtype that is stored, c how it is packed: not, int8, int4, "
        "nf4. What packing costs is an estimate until it is built, and has a ~. u takes the last "
        "change back.\n"
        "In the layers: arrows move, space starts a k of its own for that layer (edited with the "
        "same keys; space again is done), backspace clears it. t changes what the cells show, T "
        "the share that they are about, s looks at side A or B alone.\n"
        "p pins the choice for comparison, or lets go of it. In the figures space takes the row "
        "under the cursor. x makes the axes even, / narrows the curve and the layers to names "
        "that match. Enter goes on to Run with what is on screen."
    )
    DEFAULT_CSS = Path(__file__).with_suffix(".tcss").read_text("utf-8")

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("left_square_bracket", "k(-1)", "k", id="choose.k_down", key_display="[ ]",
                tooltip="[ one direction fewer, ] one more"),
        Binding("right_square_bracket", "k(1)", "k up", show=False, id="choose.k_up",
                tooltip="One direction more"),
        Binding("left_curly_bracket", "k(-8)", "k by 8", show=False, id="choose.k_down_8",
                tooltip="Eight directions fewer"),
        Binding("right_curly_bracket", "k(8)", "k by 8", show=False, id="choose.k_up_8",
                tooltip="Eight directions more"),
        Binding("equals_sign", "ask('k')", "Type k", show=False, id="choose.k",
                tooltip="Type k"),
        Binding("e", "ask('max_error')", "Error", id="choose.error",
                tooltip="The largest error that any adapter may have"),
        Binding("E", "ask('mean_error')", "Mean error", show=False, id="choose.mean_error",
                tooltip="The mean error that the adapters may have"),
        Binding("v", "ask('variance')", "Variance", show=False, id="choose.variance",
                tooltip="The least share of variance to keep"),
        Binding("b", "ask('budget')", "Bytes", id="choose.budget",
                tooltip="How much it may take on disk"),
        Binding("m", "method", "Method", id="choose.method", tooltip="Another method"),
        Binding("d", "dtype", "Dtype", show=False, id="choose.dtype",
                tooltip="What numbers are stored as"),
        Binding("c", "packing", "Packing", show=False, id="choose.packing",
                tooltip="Whether numbers are packed: not, int8, int4, nf4"),
        Binding("p", "pin", "Pin", show=False, id="choose.pin",
                tooltip="Keep this choice beside the next ones"),
        Binding("u", "undo", "Undo", show=False, id="choose.undo",
                tooltip="Take the last change back"),
        Binding("space", "own", "Own k", show=False, id="choose.own",
                tooltip="Give the layer under the cursor a k of its own"),
        Binding("backspace", "clear_own", "Clear own k", show=False, id="choose.clear_own",
                tooltip="Let the layer under the cursor follow the others again"),
        Binding("t", "cells", "Cells", show=False, id="choose.cells",
                tooltip="What the cells show: k for a share, error, k chosen"),
        Binding("T", "share", "Share", show=False, id="choose.share",
                tooltip="The share that cells and marks are about: 90, 95, 99 %"),
        Binding("s", "side", "Side", show=False, id="choose.side",
                tooltip="Both sides, A alone, B alone"),
        Binding("x", "axes", "Axes", show=False, id="choose.axes",
                tooltip="Even axes, or as much room for each nine"),
        Binding("tab", "pane(1)", "Next pane", show=False, id="choose.next_pane"),
        Binding("shift+tab", "pane(-1)", "Previous pane", show=False, id="choose.previous_pane"),
        Binding("escape", "done", "Done", show=False, id="choose.done"),
        Binding("enter", "run", "Run", id="choose.run", tooltip="Go on to Run with this choice"),
    ]  # fmt: skip

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.shown_as = Shown()
        self._atlas: Atlas | None = None
        self._last: Figures | None = None  # of the present choice, or of the one before it
        self._more_arrived = False
        self._arriving: Timer | None = None
        self._front = "curve"

    def on_mount(self) -> None:
        self._working = Working(self, self.session)
        self.set_class(self.vlora.ascii_only, "-ascii")
        self.run_worker(prepare, thread=True, group="plots", exit_on_error=False)

    def compose(self) -> ComposeResult:
        ascii_only = self.vlora.ascii_only
        yield Static("", id="choose-wait", markup=False)
        yield Static("", id="choose-tabs", markup=False)
        with Horizontal(id="choose-top"):
            yield CurvePane(ascii_only=ascii_only, id="curve")
            yield Heatmap(ascii_only=ascii_only, id="layers")
        yield FiguresPane(ascii_only=ascii_only, id="figures")
        yield Static("", id="choose-brief", markup=False)
        yield AskLine(id="choose-ask")

    # what the application calls

    def shown(self) -> None:
        if self.session.marked:
            self.vlora.desk.want_spectra()
        self._size_classes(*self.app.size)
        self._redraw()
        if self.not_ready() is None:
            self._focus_front(self._front if self.has_class("-narrow") else "layers")

    def changed(self, what: str) -> None:
        if what == "spectra" and self.session.spectra is not None:
            if self.session.spectra.complete:
                self._redraw()
            elif self._arriving is None:
                self._arriving = self.set_timer(ARRIVING_SECONDS, self._arrived)
                self._draw_arrived()
            else:
                self._more_arrived = True
        elif what != "jobs" or self.not_ready() is not None:
            self._redraw()

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
        view = self.vlora.desk.view(self.vlora.desk.spectra_job or "")
        count = plural(len(self.session.chosen), "adapter")
        problem = self.vlora.desk.spectra_problem
        if problem is not None:
            return f"{count} could not be measured.\n\n{problem}\n\n1, then 2 tries again."
        doing = f"Measuring {count}: no layer is done yet."
        if view is not None and view.state.is_over:
            return f"The job that measures {count} is {view.state}: press 3 to see why."
        if view is not None and view.progress is not None:
            far = f"{clean(view.progress.stage)} {view.progress.done} of {view.progress.total}"
            doing = f"Measuring {count}: {far}."
        return f"{doing}\n\nThe curve fills in layer by layer. 3 shows the job and its log."

    def row_text(self) -> str | None:
        figures = self.query_one(FiguresPane)
        if self._atlas is None:
            return None
        if figures.has_focus:
            return figures.row_text()
        return self._atlas.layer_words(self.shown_as, self._last)

    def open_filter(self) -> None:
        self._ask("filter")

    # keys that change the choice

    def action_k(self, step: int) -> None:
        """Move k, or the focused layer's own."""
        atlas = self._ready()
        if atlas is None:
            return
        now, top = self.session.choosing, atlas.top(self.session.choosing.method)
        layer = self.shown_as.layer
        if self.shown_as.editing and layer is not None:
            own = dict(now.layers).get(layer) or atlas.k_of(layer, self._last)
            top = atlas.layer_top(layer, now.method)
            self._choose(now.with_layer(layer, min(max(1, own + step), top)))
            return
        k = int(now.goal[1]) if now.goal[0] == "k" else atlas.middle(self._last)
        self._choose(replace(now, goal=("k", min(max(1, k + step), top))))

    def action_ask(self, what: str) -> None:
        """Ask for a value."""
        if self._ready() is not None:
            self._ask(what)

    def action_method(self) -> None:
        """The next method that the spectra were computed for."""
        atlas = self._ready()
        if atlas is None:
            return
        now, methods = self.session.choosing, atlas.spectra.methods
        method = methods[(methods.index(now.method) + 1) % len(methods)]
        self._choose(atlas.within(replace(now, method=method)))

    def action_dtype(self) -> None:
        """The next dtype to store in."""
        if self._ready() is not None:
            now = self.session.choosing
            dtype = DTYPES[(DTYPES.index(now.dtype) + 1) % len(DTYPES)]
            self._choose(replace(now, dtype=dtype))

    def action_packing(self) -> None:
        """The next way of packing."""
        if self._ready() is not None:
            now = self.session.choosing
            packing = PACKINGS[(PACKINGS.index(now.quantize) + 1) % len(PACKINGS)]
            self._choose(replace(now, quantize=packing))

    def action_own(self) -> None:
        """Start or end giving the focused layer a k of its own."""
        atlas = self._ready()
        layer = self.shown_as.layer
        if atlas is None or layer is None:
            return
        self.shown_as = replace(self.shown_as, editing=not self.shown_as.editing)
        if self.shown_as.editing and layer not in dict(self.session.choosing.layers):
            k = max(1, atlas.k_of(layer, self._last))
            self._choose(self.session.choosing.with_layer(layer, k))
        else:
            self._redraw()

    def action_clear_own(self) -> None:
        """Let the focused layer follow the others again."""
        layer = self.shown_as.layer
        self.shown_as = replace(self.shown_as, editing=False)
        if layer is not None and layer in dict(self.session.choosing.layers):
            self._choose(self.session.choosing.with_layer(layer, None))
        else:
            self._say("This layer has no k of its own; space gives it one.")
            self._redraw()

    def action_done(self) -> None:
        """Leave what is transient."""
        if self.shown_as.editing:
            self.shown_as = replace(self.shown_as, editing=False)
            self._redraw()
        elif self.shown_as.pattern:
            self.shown_as = replace(self.shown_as, pattern="")
            self._redraw()

    def action_undo(self) -> None:
        """Take the last change of the choice back."""
        if self.session.undo():
            self._chosen()
        else:
            self._say("There is nothing to take back.")

    def action_pin(self) -> None:
        """Keep the present choice for comparison, or let go of it."""
        if self._ready() is None:
            return
        if not self.session.pin():
            self._say(
                f"{MAX_PINS} choices are pinned. Take one (Tab to the figures, space) "
                "and press p to let go of it."
            )
        self._redraw()

    async def action_run(self) -> None:
        """Go on to Run with what is on screen."""
        if self._ready() is not None:
            await self.vlora.show_step("run")

    # keys that change what is shown

    def action_cells(self) -> None:
        """What the cells show."""
        self._show_as(cells=self.shown_as.next_cells())

    def action_share(self) -> None:
        """The share that the cells are about."""
        self._show_as(cells="needs", share=self.shown_as.next_share())

    def action_side(self) -> None:
        """Both sides, A alone, B alone."""
        from vlora_engine.profile import has_sides

        if not has_sides(self.session.choosing.method):
            self._say("flat approximates both factors at once: a side has no error of its own.")
            return
        self._show_as(side=self.shown_as.next_side())

    def action_axes(self) -> None:
        """Even axes, or stretched ones."""
        self._show_as(stretched=not self.shown_as.stretched)

    def action_pane(self, step: int) -> None:
        """The next pane."""
        panes = list(PANES)
        here = next((i for i, name in enumerate(panes) if self._pane(name).has_focus), 0)
        self._focus_front(panes[(here + step) % len(panes)])

    def _show_as(self, **changes: Any) -> None:
        self.shown_as = replace(self.shown_as, **changes)
        self._redraw()

    # what the panes say

    def on_heatmap_focused(self, event: Heatmap.Focused) -> None:
        event.stop()
        self.shown_as = replace(self.shown_as, layer=event.layer, editing=False)
        self._redraw()

    def on_curve_pane_stepped(self, event: CurvePane.Stepped) -> None:
        event.stop()
        self.action_k(event.step)

    def on_curve_pane_layer_stepped(self, event: CurvePane.LayerStepped) -> None:
        event.stop()
        self.query_one(Heatmap).action_move(event.step, 0)

    def on_figures_pane_taken(self, event: FiguresPane.Taken) -> None:
        event.stop()
        self._choose(event.choosing)

    def on_ask_line_answered(self, event: AskLine.Answered) -> None:
        event.stop()
        self._focus_front(self._front)
        now = self.session.choosing
        value: Any = event.value
        layer = self.shown_as.layer
        if event.name == "filter":
            self._show_as(pattern=value, editing=False)
        elif event.name == "k" and self.shown_as.editing and layer is not None:
            self._choose(now.with_layer(layer, value))
        else:
            self._choose(replace(now, goal=(event.name, value)))

    def on_ask_line_left(self, event: AskLine.Left) -> None:
        event.stop()
        self._focus_front(self._front)

    def on_resize(self, event: events.Resize) -> None:
        self._size_classes(*self.app.size)
        self._redraw()

    def _size_classes(self, width: int, height: int) -> None:
        """Three panes, one pane with tabs, or one without borders: by the terminal's size."""
        self.set_class(width < 100 or height < 26, "-narrow")
        self.set_class(width < 70 or height < 18, "-tiny")
        self._front_classes()

    def on_descendant_focus(self, event: events.DescendantFocus) -> None:
        if event.widget.id in PANES:
            self._front = event.widget.id
            self._front_classes()

    def on_click(self, event: events.Click) -> None:
        tabs = self.query_one("#choose-tabs", Static)
        if event.widget is tabs:
            place = event.x
            for name in PANES:
                place -= len(PANE_NAMES[name]) + 4
                if place < 0:
                    self._focus_front(name)
                    return
        elif event.widget is not None and not event.widget.focusable and not self._asking:
            self._focus_front(self._front)  # the keys belong to this step wherever one clicks

    # drawing

    def _redraw(self) -> None:
        """Draw everything from the session, as far as it is known."""
        problem = self.not_ready()
        arrived = problem is None and self.has_class("-wait")
        self.set_class(problem is not None, "-wait")
        if problem is not None:
            self._atlas = None
            self.query_one("#choose-wait", Static).update(problem)
            return
        spectra = self.session.spectra
        if spectra is None:
            return
        if self._atlas is None or self._atlas.version != self.session.version:
            self._atlas = Atlas(spectra, self.session.version)
        figures = self.session.known_figures()
        if figures is not None:
            self._last = figures
        elif self._last is not None and self._last.choice is not None:
            known = self._last.choice.k.keys() <= spectra.layers.keys()
            same = self._last.choosing.method == self.session.choosing.method
            self._last = self._last if known and same else None
        self._draw(figures)
        self._working.want(beside=not self._is_arriving)
        if arrived and self.vlora.view is self and self.screen.focused is None:
            self._focus_front(self._front if self.has_class("-narrow") else "layers")

    def _draw(self, figures: Figures | None) -> None:
        atlas = self._atlas
        if atlas is None:
            return
        self.shown_as = shown = atlas.settle(self.shown_as, self.session.choosing)
        curve, layers = self.query_one(CurvePane), self.query_one(Heatmap)
        pane = self.query_one(FiguresPane)
        last = self._last
        curve.show(*atlas.curve(shown, self.session, last))
        curve.border_title = self._words(atlas.curve_title(shown, self.session.choosing))
        layers.show(*atlas.cells(shown, self.session.choosing, last))
        layers.border_title = self._words(atlas.cells_title(shown))
        layers.border_subtitle = self._words(atlas.layer_words(shown, last))
        sheet = atlas.sheet(shown, self.session, figures)
        pane.show(sheet)
        pane.border_title = "This choice" if figures is not None else "This choice, working it out"
        if self.has_class("-narrow"):
            brief = self.query_one("#choose-brief", Static)
            lines = brief_lines(sheet, self.size.width - 2, ascii_only=self.vlora.ascii_only)
            brief.update("\n".join(lines))

    # layers that arrive

    def on_computed(self, event: Computed) -> None:
        event.stop()
        # What stands beside the choice is old with the next layer: it is drawn once all are there.
        if self.vlora.view is self and not (event.done and self._is_arriving):
            self._redraw()

    @property
    def _is_arriving(self) -> bool:
        spectra = self.session.spectra
        return spectra is not None and not spectra.complete

    def _arrived(self) -> None:
        """The time between two repaints is over; layers that came meanwhile are drawn now."""
        self._arriving = None
        if self._more_arrived and self.vlora.view is self:
            self._more_arrived = False
            self.changed("spectra")

    def _draw_arrived(self) -> None:
        """Draw new layers once, together with their figures."""
        if self._atlas is None or self.session.known_figures() is not None:
            self._redraw()
        else:
            self._working.want(beside=False)

    # small things

    def _choose(self, choosing: Choosing) -> None:
        self.session.choose(choosing)
        self._chosen()

    def _chosen(self) -> None:
        self.vlora.refresh_bar()
        self._redraw()

    def _ready(self) -> Atlas | None:
        """What the keys work on, or a word why they cannot."""
        if self._atlas is None:
            self._say("No layer is measured yet.")
        return self._atlas

    def _ask(self, what: str) -> None:
        atlas = self._ready()
        if atlas is not None:
            self.query_one(AskLine).ask(question(what, atlas, self.shown_as, self.session))

    @property
    def _asking(self) -> bool:
        return self.query_one(AskLine).open

    def _words(self, text: str) -> str:
        """``text`` for a border: no markup, and plain where only ASCII is drawn."""
        plain = text.replace(" · ", " - ") if self.vlora.ascii_only else text
        return escape(plain)

    def _say(self, text: str) -> None:
        self.notify(text, severity="warning", markup=False)

    def _pane(self, name: str) -> Widget:
        return self.query_one(f"#{name}")

    def _focus_front(self, name: str) -> None:
        self._front = name
        self._front_classes()
        self._pane(name).focus(scroll_visible=False)

    def _front_classes(self) -> None:
        for name in PANES:
            self.set_class(name == self._front, f"-front-{name}")
        names = [f"[{PANE_NAMES[n]}]" if n == self._front else f" {PANE_NAMES[n]} " for n in PANES]
        self.query_one("#choose-tabs", Static).update(
            "  ".join(names) + ("   tab" if self.app.size.width < 48 else "   tab: next")
        )
