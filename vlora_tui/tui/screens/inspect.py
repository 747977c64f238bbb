"""Step 4, Inspect: which adapters are alike, who stands apart, where in the layers it lies."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.widgets import Input, Static

from vlora_tui.tui import inspecting
from vlora_tui.tui.inspecting import Alike, Apart, Likeness, Remark
from vlora_tui.tui.screens.inspect_findings import FindingsPane
from vlora_tui.tui.screens.inspect_layers import LayersPane
from vlora_tui.tui.screens.inspect_lines import (
    APART_COLUMNS,
    GROUP_COLUMNS,
    SORTS,
    Subject,
    apart_cells,
    cosine_text,
    pair_words,
)
from vlora_tui.tui.screens.inspect_tasks import TasksPane
from vlora_tui.tui.screens.panes import PaneView
from vlora_tui.tui.widgets.matrix import Matrix
from vlora_tui.tui.widgets.table import Cell, Table
from vlora_tui.tui.widgets.tabs import PaneTabs, Tab

if TYPE_CHECKING:
    pass

THRESHOLD = 0.9
STYLE = Path(__file__).with_suffix(".tcss").read_text("utf-8")


class InspectView(PaneView):
    """The Inspect step."""

    step = 4
    title = "Inspect"
    help_text = (
        "How alike adapters are (the cosine of their weight changes dW: 1 is the same direction, "
        "0 nothing in common), which form groups, which stand apart, and what was found wrong.\n"
        "Enter on a pair compares its layers: that needs the weights, so a process of its own "
        "reads them. On the diagonal you see one adapter: what the present k loses in each layer "
        "(m: how strong it is there). Enter on a layer shows its singular values, and what two "
        "adapters share there."
    )
    DEFAULT_CSS = STYLE
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "enter", "Layers", id="inspect.enter", tooltip="Look into the layers"),
        Binding(
            "left_square_bracket", "threshold(-0.01)", "Bound", key_display="[ ]",
            id="inspect.lower", tooltip="Count adapters as alike from a lower cosine on",
        ),
        Binding(
            "right_square_bracket", "threshold(0.01)", show=False, key_display="]",
            id="inspect.higher", tooltip="Count adapters as alike from a higher cosine on",
        ),
        Binding(
            "left_curly_bracket", "threshold(-0.1)", show=False, key_display="{",
            id="inspect.lower_much", tooltip="The same in steps of 0.1",
        ),
        Binding(
            "right_curly_bracket", "threshold(0.1)", show=False, key_display="}",
            id="inspect.higher_much", tooltip="The same in steps of 0.1",
        ),
        Binding("m", "measure", show=False, id="inspect.measure",
                tooltip="Another figure for the layers"),
        Binding("slash", "app.filter", "Filter", id="inspect.filter", tooltip="Filter by name"),
        Binding("tab", "next_pane(1)", "Pane", id="inspect.next_pane",
                tooltip="Go to the next pane"),
        Binding("shift+tab", "next_pane(-1)", show=False, id="inspect.pane_before",
                tooltip="Go to the pane before"),
        Binding("o", "order", show=False, id="inspect.order",
                tooltip="Order by likeness, or as found"),
        Binding("s", "sort", show=False, id="inspect.sort",
                tooltip="Sort by score, size or name"),
        Binding("space", "keep", show=False, id="inspect.keep",
                tooltip="Keep this task to compare another with"),
        Binding("t", "turn", show=False, id="inspect.turn",
                tooltip="Turn between the adapters and the tasks of the open subspace"),
        Binding("x,escape", "stop", show=False, id="inspect.stop",
                tooltip="Stop comparing, or clear the filter"),
    ]  # fmt: skip

    def compose(self) -> ComposeResult:
        ascii_only = self.vlora.ascii_only
        yield Static(id="nothing", markup=False)
        yield PaneTabs(id="inspect-tabs")
        with Horizontal(id="inspect-body"):
            with Vertical(id="inspect-left", classes="side"):
                with Vertical(id="inspect-alike", classes="pane"):
                    yield Matrix(ascii_only=ascii_only, id="matrix")
                    yield Static(id="matrix-said", classes="said", markup=False)
                yield TasksPane(ascii_only=ascii_only)
                yield LayersPane(self.session, ascii_only=ascii_only)
            with Vertical(id="inspect-right", classes="side"):
                with Vertical(id="inspect-groups", classes="pane"):
                    yield Table(
                        GROUP_COLUMNS, self._group_cells, key=lambda g: str(g.members),
                        id="group-table",
                    )  # fmt: skip
                    yield Static(id="groups-said", classes="said", markup=False)
                with Vertical(id="inspect-apart", classes="pane"):
                    yield Table(APART_COLUMNS, apart_cells, key=lambda a: a.name, id="apart-table")
                    yield Static(id="apart-said", classes="said", markup=False)
                yield FindingsPane(ascii_only=ascii_only)
        line = Input(placeholder="part of a name", compact=True, id="inspect-filter")
        line.cursor_blink = False
        yield line

    def on_mount(self) -> None:
        self._threshold = THRESHOLD
        self._ordered = True
        self._sort = 0
        self._words: tuple[str, ...] = ()
        self._tasks_wanted: bool | None = None
        self._pair: Subject | None = None
        self._likeness: Likeness | None = None
        self._of_inner: object = None
        self._remarks: list[Remark] = []
        self.query_one("#inspect-apart").border_title = "Standing apart"
        self.set_class(self.vlora.ascii_only, "ascii")

    # what the application asks

    def not_ready(self) -> str | None:
        session = self.session
        if session.infos or session.spectra is not None or session.manifest is not None:
            return None
        return "Nothing is open. 1 opens a folder of adapters, or a subspace."

    def shown(self) -> None:
        self._draw()
        if not self.has_class("empty"):
            self.go_to_pane(self.pane or self.panes()[0].id)

    def changed(self, what: str) -> None:
        if what != "jobs":
            self._draw()

    def row_text(self) -> str | None:
        match self.pane:
            case "inspect-alike":
                return str(self._pair_text()) or None
            case "inspect-layers":
                return str(self._layers.text()) or None
            case "inspect-tasks":
                return self._tasks.row_text()
            case "inspect-groups":
                group = self._groups_table.row
                return None if group is None else ", ".join(self._names(group))
            case "inspect-apart":
                row = self._apart_table.row
                return None if row is None else f"{row.name}: {row.why}"
            case "inspect-findings":
                return self._findings.row_text()
        return None

    def command_text(self) -> str | None:
        pair = self._pair_here()
        on_pair = self.pane in ("inspect-layers", "inspect-alike", "inspect-tasks")
        if on_pair and pair is not None and pair.places is not None:
            return shlex.join(["vlora-tui", *inspecting.diff_arguments(*pair.places)])
        if self.on_tasks and self.session.manifest is not None:
            return shlex.join(["vlora-tui", "info", str(self.session.manifest.path)])
        paths = [p for p in self._likeness.paths if p] if self._likeness is not None else []
        return inspecting.analyze_command(paths, self._threshold) if len(paths) > 1 else None

    def open_filter(self) -> None:
        line = self.query_one("#inspect-filter", Input)
        line.add_class("open")
        line.focus()

    def leave(self) -> bool:
        """``q``: first out of a comparison or a filter."""
        return self._step_back()

    # what is there

    @property
    def on_tasks(self) -> bool:
        """Whether the tasks of the subspace are shown, and not the adapters of the spectra."""
        session = self.session
        if session.manifest is None:
            return False
        if session.spectra is None:
            return True
        return (not session.marked) if self._tasks_wanted is None else self._tasks_wanted

    def panes(self) -> list[Tab]:
        if self.on_tasks:
            count = len(self.session.manifest.tasks) if self.session.manifest is not None else 0
            tabs = [Tab("inspect-tasks", "Tasks", count), Tab("inspect-layers", "Layers")]
        elif self.session.spectra is not None:
            likeness = self._likeness
            groups = likeness.groups(self._threshold) if likeness is not None else []
            apart = likeness.apart if likeness is not None else []
            tabs = [
                Tab("inspect-alike", "Likeness"),
                Tab("inspect-layers", "Layers"),
                Tab("inspect-groups", "Groups", len(groups)),
                Tab("inspect-apart", "Apart", len(apart)),
            ]
        else:
            tabs = [Tab("inspect-alike", "Likeness")]
        return [*tabs, Tab("inspect-findings", "Findings", len(self._remarks))]

    @property
    def _matrix(self) -> Matrix:
        return self.query_one("#matrix", Matrix)

    @property
    def _layers(self) -> LayersPane:
        return self.query_one(LayersPane)

    @property
    def _groups_table(self) -> Table[Alike]:
        return self.query_one("#group-table", Table)

    @property
    def _apart_table(self) -> Table[Apart]:
        return self.query_one("#apart-table", Table)

    @property
    def _tasks(self) -> TasksPane:
        return self.query_one(TasksPane)

    @property
    def _findings(self) -> FindingsPane:
        return self.query_one(FindingsPane)

    def _names(self, group: Alike) -> list[str]:
        return [self._likeness.names[i] for i in group.members] if self._likeness else []

    def _found(self, name: str) -> bool:
        return all(word in name.lower() for word in self._words)

    # drawing

    def _draw(self) -> None:
        session = self.session
        reason = self.not_ready()
        self.set_class(reason is not None, "empty")
        self.query_one("#nothing", Static).update(reason or "")
        if reason is not None:
            return
        inner = session.spectra.inner if session.spectra is not None else None
        if inner is not self._of_inner:
            self._of_inner = inner
            self._likeness = inspecting.likeness_of(session.spectra)
        self._remarks = inspecting.remarks_of(session)
        self.draw_tabs()
        self._draw_matrix()
        self._draw_apart()
        self._draw_tasks()
        self._draw_findings()
        self._draw_layers()

    def arranged(self) -> None:
        self._draw_layers()

    def _share_out(self) -> None:
        """Give the matrix and the layers the lines that each can use."""
        height = self.query_one("#inspect-left").size.height
        pane = self.query_one("#inspect-alike")
        if self.has_class("one") or self._likeness is None:
            pane.styles.height = "1fr"
            return
        layers = min(self._layers.wanted_height, height // 2)
        pane.styles.height = min(self._matrix.wanted_height + 4, max(9, height - max(8, layers)))

    def _draw_matrix(self) -> None:
        likeness, matrix = self._likeness, self._matrix
        pane = self.query_one("#inspect-alike")
        pane.border_title = "How alike: cosine of dW"
        matrix.styles.height = 1 if likeness is None else "1fr"
        if likeness is None:
            matrix.show((), None, [], {})
            pane.border_subtitle = ""
            self._groups_table.show([])
            self._draw_matrix_said()
            return
        order = likeness.by_likeness if self._ordered else list(range(len(likeness.names)))
        order = [i for i in order if self._found(likeness.names[i])]
        groups = likeness.groups(self._threshold)
        letters = {i: group.letter for group in groups for i in group.members}
        matrix.show(likeness.names, likeness.cosines, order, letters)
        sorted_by = "the like together" if self._ordered else "as found"
        hidden = len(likeness.names) - len(order)
        more = f", {hidden} filtered out" if hidden else ""
        pane.border_subtitle = f"{len(order)} adapters, {sorted_by}{more}"
        self._groups_table.show([g for g in groups if any(map(self._found, self._names(g)))])
        self.query_one("#inspect-groups").border_title = f"Alike from {self._threshold:.2f} on"
        self._draw_groups_said()
        self._draw_matrix_said()

    def _draw_groups_said(self) -> None:
        likeness, group = self._likeness, self._groups_table.row
        if likeness is None:
            said = ""
        elif group is None:
            said = "No two are that alike; [ moves the bound."
        else:
            alone = len(likeness.names) - sum(len(g.members) for g in self._groups_table.rows)
            said = f"{group.letter}: {', '.join(self._names(group))}; {alone} like no other"
        self.query_one("#groups-said", Static).update(said)

    def _draw_matrix_said(self) -> None:
        self.query_one("#matrix-said", Static).update(self._pair_text())

    def _pair_text(self) -> Text:
        if self._likeness is None and self.session.spectra is None and self._measuring:
            return Text("Being measured. 2 shows the layers that are done, 3 the job.")
        return pair_words(self._likeness, self._matrix.pair, self.session.spectra)

    @property
    def _measuring(self) -> bool:
        """Whether a job computes the spectra of what is marked."""
        desk = self.vlora.desk
        view = desk.view(desk.spectra_job or "")
        return view is not None and not view.state.is_over

    def _draw_apart(self) -> None:
        likeness = self._likeness
        rows = [row for row in likeness.apart if self._found(row.name)] if likeness else []
        keys: tuple[Callable[[Apart], object], ...] = (
            lambda row: -row.score,
            lambda row: -row.norm,
            lambda row: row.name.lower(),
        )
        rows.sort(key=keys[self._sort])  # type: ignore[arg-type]
        self._apart_table.show(rows)
        self.query_one("#inspect-apart").border_subtitle = f"by {SORTS[self._sort]}" if rows else ""
        if rows:
            said = "score: robust standard deviations from the others"
        else:
            said = "Nobody stands apart." if likeness else "Known when all layers are measured."
        self.query_one("#apart-said", Static).update(said)

    def _draw_findings(self) -> None:
        headers_only = self.session.spectra is None and bool(self.session.infos)
        rows = [r for r in self._remarks if self._found(f"{r.about} {r.what}")]
        self._findings.show(rows, headers_only=headers_only)

    def _draw_tasks(self) -> None:
        if self.session.manifest is not None:
            self._tasks.show(self.session.manifest, self._found, self._sort)

    def _group_cells(self, group: Alike) -> list[Cell]:
        return [
            (group.letter, "accent"),
            (str(len(group.members)), ""),
            (cosine_text(group.least), ""),
            (", ".join(self._names(group)), ""),
        ]

    # layers

    @property
    def subject(self) -> Subject | None:
        """What the layers pane shows: the pair that is compared, else what the cursor is on."""
        if self._pair is not None:
            return self._pair
        if self.on_tasks:
            task = self._tasks.record
            manifest = self.session.manifest
            if task is None or manifest is None:
                return None
            return Subject("task", (task.id,), place=inspecting.task_place(manifest.path, task.id))
        pair = self._matrix.pair
        if pair is None or self._likeness is None:
            return None
        known = self._pair_here()
        if known is not None and self._layers.knows(known.places):
            return known
        at = pair[0]
        place = self._likeness.paths[at] if self._likeness.paths else None
        return Subject("adapter", (self._likeness.names[at],), index=at, place=place)

    def _pair_here(self) -> Subject | None:
        """The two that the cursor means: a cell off the diagonal, or the kept task and this."""
        if self.on_tasks:
            task, manifest = self._tasks.record, self.session.manifest
            if task is None or manifest is None or self._tasks.kept in (None, task.id):
                return None
            names = (str(self._tasks.kept), task.id)
            first, second = (inspecting.task_place(manifest.path, name) for name in names)
            return Subject("pair", names, places=(first, second))
        pair, likeness = self._matrix.pair, self._likeness
        if pair is None or likeness is None or pair[0] == pair[1]:
            return None
        at = [likeness.paths[i] for i in pair]
        places = (at[0], at[1]) if at[0] and at[1] else None
        return Subject("pair", tuple(likeness.names[i] for i in pair), places=places)

    def _draw_layers(self) -> None:
        if self.is_mounted and not self.has_class("empty"):
            self._layers.show(self.subject)

    def on_layers_pane_drawn(self) -> None:
        self._share_out()

    # what the widgets tell

    def on_matrix_moved(self) -> None:
        self._pair = None
        self._draw_matrix_said()
        self._draw_layers()

    def on_matrix_chosen(self) -> None:
        self.action_enter()

    def on_table_moved(self, event: Table.Moved) -> None:
        if event.table.id == "task-table":
            self._pair = None
            self._draw_layers()
        elif event.table.id == "group-table":
            self._draw_groups_said()

    def on_table_pressed(self, event: Table.Pressed) -> None:
        self.action_enter()

    def on_input_changed(self, event: Input.Changed) -> None:
        self._words = tuple(event.value.lower().split())
        self._draw()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        if not event.value.strip():
            event.input.remove_class("open")
        self.go_to_pane(self.pane)

    # keys

    def action_enter(self) -> None:
        """Into the layers of what the cursor is on; two are compared first."""
        match self.pane:
            case "inspect-groups":
                group = self._groups_table.row
                if group is not None:
                    self._matrix.go_to(*group.members[:2])
                    self.go_to_pane("inspect-alike")
            case "inspect-apart":
                row = self._apart_table.row
                if row is not None:
                    self._matrix.go_to(row.index, row.index)
                    self.go_to_pane("inspect-alike")
            case "inspect-alike" | "inspect-tasks":
                self._pair = self._pair_here()
                self._compare()
                self._draw_layers()
                self.go_to_pane("inspect-layers")
            case "inspect-layers":
                self._layers.look_closer()

    def action_threshold(self, by: float) -> None:
        """Another bound from which on adapters are alike."""
        self._threshold = round(min(1.0, max(0.0, self._threshold + by)), 2)
        self.draw_tabs()
        self._draw_matrix()

    def action_measure(self) -> None:
        """Another figure for the layers."""
        self._layers.turn_measure()

    def action_order(self) -> None:
        """The like together, or as found."""
        self._ordered = not self._ordered
        self._draw_matrix()

    def action_sort(self) -> None:
        """By the next column."""
        self._sort = (self._sort + 1) % len(SORTS)
        self._draw_apart()
        self._draw_tasks()

    def action_keep(self) -> None:
        """Keep a task, to compare the next one with it."""
        if self.pane == "inspect-tasks":
            self._tasks.keep()
            if self._tasks.kept is not None:
                self.notify("Kept. Enter on another task compares the two.", markup=False)

    def action_turn(self) -> None:
        """Between the adapters and the tasks of the open subspace."""
        if self.session.manifest is None or self.session.spectra is None:
            self.notify("There is only one thing to look at: open a subspace (1).", markup=False)
            return
        self._tasks_wanted = not self.on_tasks
        self._pair = None
        self._draw()
        self.go_to_pane(self.panes()[0].id)

    def action_stop(self) -> None:
        """Stop comparing, leave the pair, or clear the filter."""
        self._step_back()

    def _step_back(self) -> bool:
        line = self.query_one("#inspect-filter", Input)
        if self._layers.stop():
            self._pair = None
            self._draw_layers()
            return True
        if line.has_class("open"):
            line.value = ""
            line.remove_class("open")
            self.go_to_pane(self.pane)
            return True
        if self._pair is not None:
            self._pair = None
            self._draw_layers()
            self.go_to_pane("inspect-tasks" if self.on_tasks else "inspect-alike")
            return True
        return False

    def _compare(self) -> None:
        """Have the pair compared."""
        if self._pair is None:
            return
        if self._pair.places is None:
            self._pair = None
            self.notify("Where these adapters lie is not known.", severity="warning", markup=False)
            return
        self._layers.compare(self._pair)
