"""Step 4, Inspect: which adapters are alike, who stands apart, where in the layers it lies."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from rich.text import Text
from textual import work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.message import Message
from textual.widgets import Input, Static
from textual.worker import get_current_worker

from vlora_engine.errors import VLoRAError
from vlora_tui.tui import inspecting
from vlora_tui.tui.inspecting import Alike, Apart, Diff, Likeness, Remark
from vlora_tui.tui.screens.inspect_lines import (
    APART_COLUMNS,
    COSINE,
    DIFFERENCE,
    FINDING_COLUMNS,
    GROUP_COLUMNS,
    LOSS,
    MARKS,
    SIZE,
    SORTS,
    TASK_COLUMNS,
    TONES,
    Measure,
    Subject,
    apart_cells,
    cosine_text,
    facts,
    finding_cells,
    layer_words,
    pair_words,
    remedy_words,
    task_cells,
)
from vlora_tui.tui.screens.panes import PaneView
from vlora_tui.tui.subcommand import ask_command
from vlora_tui.tui.widgets.heatmap import Cell as LayerCell
from vlora_tui.tui.widgets.heatmap import Heatmap, arrange
from vlora_tui.tui.widgets.matrix import Matrix
from vlora_tui.tui.widgets.table import Cell, Table
from vlora_tui.tui.widgets.tabs import PaneTabs, Tab
from vlora_tui.tui.words import clean, plural

if TYPE_CHECKING:
    from vlora_engine.figures import TaskFigures
    from vlora_engine.manifest import TaskRecord

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
        "(m: how strong it is there)."
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

    class Compared(Message):
        """A comparison ended."""

        def __init__(self, places: tuple[str, str], diff: Diff | None, problem: str | None) -> None:
            super().__init__()
            self.places, self.diff, self.problem = places, diff, problem

    class Read(Message):
        """The figures of a task were read."""

        def __init__(self, key: tuple[str, str], figures: TaskFigures | None, problem: str) -> None:
            super().__init__()
            self.key, self.figures, self.problem = key, figures, problem

    def compose(self) -> ComposeResult:
        ascii_only = self.vlora.ascii_only
        yield Static(id="nothing", markup=False)
        yield PaneTabs(id="inspect-tabs")
        with Horizontal(id="inspect-body"):
            with Vertical(id="inspect-left", classes="side"):
                with Vertical(id="inspect-alike", classes="pane"):
                    yield Matrix(ascii_only=ascii_only, id="matrix")
                    yield Static(id="matrix-said", classes="said", markup=False)
                with Vertical(id="inspect-tasks", classes="pane"):
                    yield Table(
                        TASK_COLUMNS, task_cells, key=lambda t: t.id, mark=self._task_mark,
                        id="task-table",
                    )  # fmt: skip
                    yield Static(id="task-facts", classes="said", markup=False)
                with Vertical(id="inspect-layers", classes="pane"):
                    yield Heatmap(ascii_only=ascii_only, id="layer-map")
                    yield Static(id="layers-said", classes="said", markup=False)
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
                with Vertical(id="inspect-findings", classes="pane"):
                    yield Table(
                        FINDING_COLUMNS, finding_cells, key=lambda r: f"{r.about} {r.what}",
                        mark=self._finding_mark, id="finding-table",
                    )  # fmt: skip
                    yield Static(id="findings-remedy", markup=False)
        line = Input(placeholder="part of a name", compact=True, id="inspect-filter")
        line.cursor_blink = False
        yield line

    def on_mount(self) -> None:
        self._threshold = THRESHOLD
        self._ordered = True
        self._sort = 0
        self._words: tuple[str, ...] = ()
        self._tasks_wanted: bool | None = None
        self._kept: str | None = None
        self._measures: dict[str, int] = {"one": 0, "pair": 0}
        self._layer: str | None = None
        self._pair: Subject | None = None
        self._diffs: dict[tuple[str, str], Diff | str] = {}
        self._comparing: tuple[str, str] | None = None
        self._figures: dict[tuple[str, str], TaskFigures | str] = {}
        self._likeness: Likeness | None = None
        self._of_inner: object = None
        self._remarks: list[Remark] = []
        titles = {
            "inspect-tasks": "Tasks of the subspace",
            "inspect-apart": "Standing apart",
            "inspect-findings": "Findings",
        }
        for pane, title in titles.items():
            self.query_one(f"#{pane}").border_title = title
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
                return str(self._layer_text()) or None
            case "inspect-tasks":
                task = self._record
                return None if task is None else "  ".join(t for t, _ in task_cells(task))
            case "inspect-groups":
                group = self._groups_table.row
                return None if group is None else ", ".join(self._names(group))
            case "inspect-apart":
                row = self._apart_table.row
                return None if row is None else f"{row.name}: {row.why}"
            case "inspect-findings":
                found = self._findings_table.row
                if found is None:
                    return None
                head = f"{found.severity}: {found.about}: {found.what}"
                return "\n  ".join(part for part in (head, found.where, found.remedy) if part)
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
    def _groups_table(self) -> Table[Alike]:
        return self.query_one("#group-table", Table)

    @property
    def _apart_table(self) -> Table[Apart]:
        return self.query_one("#apart-table", Table)

    @property
    def _findings_table(self) -> Table[Remark]:
        return self.query_one("#finding-table", Table)

    @property
    def _record(self) -> TaskRecord | None:
        table: Table[TaskRecord] = self.query_one("#task-table", Table)
        return table.row

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
        layers = min(len(self.query_one("#layer-map", Heatmap).grid.rows) + 5, height // 2)
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
        return pair_words(self._likeness, self._matrix.pair, self.session.spectra)

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
        rows = [r for r in self._remarks if self._found(f"{r.about} {r.what}")]
        self._findings_table.show(rows)
        counts = [
            plural(sum(r.severity == severity for r in rows), severity)
            for severity in inspecting.SEVERITIES
            if any(r.severity == severity for r in rows)
        ]
        self.query_one("#inspect-findings").border_subtitle = ", ".join(counts)
        self._draw_remedy()

    def _draw_remedy(self) -> None:
        headers_only = self.session.spectra is None and bool(self.session.infos)
        words = remedy_words(self._findings_table.row, headers_only=headers_only)
        self.query_one("#findings-remedy", Static).update(words)

    # tasks of a subspace

    def _draw_tasks(self) -> None:
        manifest = self.session.manifest
        if manifest is None:
            return
        table: Table[TaskRecord] = self.query_one("#task-table", Table)
        rows = [t for t in manifest.tasks.values() if self._found(clean(t.id).lower())]
        keys: tuple[Callable[[TaskRecord], object], ...] = (
            lambda task: -task.error,
            lambda task: -task.norm,
            lambda task: task.id.lower(),
        )
        rows.sort(key=keys[self._sort])  # type: ignore[arg-type]
        table.show(rows)
        by = ("error", "size", "name")[self._sort]
        self.query_one("#inspect-tasks").border_subtitle = f"by {by}"
        self.query_one("#inspect-tasks").border_title = f"Tasks of {clean(manifest.path.name)}"
        self.query_one("#task-facts", Static).update(facts(manifest))

    def _task_mark(self, task: TaskRecord) -> Cell:
        mark = "=" if self.vlora.ascii_only else "◆"
        return (mark, "accent") if task.id == self._kept else (" ", "")

    def _group_cells(self, group: Alike) -> list[Cell]:
        return [
            (group.letter, "accent"),
            (str(len(group.members)), ""),
            (cosine_text(group.least), ""),
            (", ".join(self._names(group)), ""),
        ]

    def _finding_mark(self, row: Remark) -> Cell:
        marks = {**MARKS, "error": "x", "note": "."} if self.vlora.ascii_only else MARKS
        return marks[row.severity], TONES[row.severity]

    # layers

    @property
    def subject(self) -> Subject | None:
        """What the layers pane shows: the pair that is compared, else what the cursor is on."""
        if self._pair is not None:
            return self._pair
        if self.on_tasks:
            task = self._record
            return None if task is None else Subject("task", (task.id,))
        pair = self._matrix.pair
        if pair is None or self._likeness is None:
            return None
        known = self._pair_here()
        if known is not None and isinstance(self._diffs.get(known.places or ("", "")), Diff):
            return known
        return Subject("adapter", (self._likeness.names[pair[0]],), index=pair[0])

    def _pair_here(self) -> Subject | None:
        """The two that the cursor means: a cell off the diagonal, or the kept task and this."""
        if self.on_tasks:
            task, manifest = self._record, self.session.manifest
            if task is None or manifest is None or self._kept in (None, task.id):
                return None
            names = (str(self._kept), task.id)
            first, second = (inspecting.task_place(manifest.path, name) for name in names)
            return Subject("pair", names, places=(first, second))
        pair, likeness = self._matrix.pair, self._likeness
        if pair is None or likeness is None or pair[0] == pair[1]:
            return None
        at = [likeness.paths[i] for i in pair]
        places = (at[0], at[1]) if at[0] and at[1] else None
        return Subject("pair", tuple(likeness.names[i] for i in pair), places=places)

    @property
    def measure(self) -> Measure:
        """The figure that the layers pane shows."""
        subject = self.subject
        if subject is not None and subject.kind == "pair":
            return (COSINE, DIFFERENCE)[self._measures["pair"]]
        return (LOSS, SIZE)[self._measures["one"]]

    def _layer_values(self) -> Mapping[str, float] | str:
        """The figures per layer, or why there are none."""
        subject, measure, spectra = self.subject, self.measure, self.session.spectra
        if subject is None:
            return "Nothing is chosen."
        if subject.kind == "pair":
            diff = self._diffs.get(subject.places or ("", ""))
            if isinstance(diff, Diff):
                return diff.measure(measure.key)
            return diff or "Comparing, layer by layer; x stops it."
        if subject.kind == "task":
            return self._stored_values(subject.names[0], measure)
        if spectra is None:
            return "Nothing is measured yet."
        if measure is SIZE:
            return inspecting.sizes_of(spectra, subject.index)
        figures = self.session.figures()
        if figures.choice is None:
            return figures.problem or "There is no choice of k yet: 2."
        return inspecting.losses_of(spectra, figures.choice, subject.index)

    def _stored_values(self, task: str, measure: Measure) -> Mapping[str, float] | str:
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
        values = figures.errors if measure is LOSS else figures.norms
        return dict(zip(figures.layers, values.tolist(), strict=True))

    def _draw_layers(self) -> None:
        if not self.is_mounted or self.has_class("empty"):
            return
        pane, heatmap = self.query_one("#inspect-layers"), self.query_one("#layer-map", Heatmap)
        subject, measure = self.subject, self.measure
        names = " and ".join(clean(name) for name in subject.names) if subject else ""
        pane.border_title = f"Layers of {names}: {measure.title}" if subject else "Layers"
        others = {"loss": "m: size", "size": "m: loss", "cosine_sim": "m: difference"}
        pane.border_subtitle = others.get(measure.key, "m: cosine")
        values = self._layer_values()
        if isinstance(values, str):
            heatmap.show(arrange(()), {}, None)
        else:
            top = measure.top or max([measure.floor, *values.values()]) or 1.0
            cells = {
                name: LayerCell(measure.text(value), max(0.0, min(1.0, value / top)))
                for name, value in values.items()
            }
            if self._layer not in values:
                self._layer = max(values, key=lambda name: values[name], default=None)
            heatmap.show(arrange(inspecting.natural(values)), cells, self._layer)
        self.query_one("#layers-said", Static).update(self._layer_text())
        self._share_out()

    def _layer_text(self) -> Text:
        subject = self.subject
        is_pair = subject is not None and subject.kind == "pair"
        diff = self._diffs.get(subject.places or ("", "")) if subject and is_pair else None
        diff = diff if isinstance(diff, Diff) else None
        return layer_words(self._layer_values(), self._layer, self.measure, diff)

    # what the widgets tell

    def on_matrix_moved(self) -> None:
        self._pair = None
        self._draw_matrix_said()
        self._draw_layers()

    def on_matrix_chosen(self) -> None:
        self.action_enter()

    def on_heatmap_focused(self, event: Heatmap.Focused) -> None:
        self._layer = event.layer
        self.query_one("#layers-said", Static).update(self._layer_text())

    def on_table_moved(self, event: Table.Moved) -> None:
        if event.table.id == "task-table":
            self._pair = None
            self._draw_layers()
        elif event.table.id == "finding-table":
            self._draw_remedy()
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
                pair = self._pair_here()
                self._pair = pair
                if pair is not None:
                    self._compare(pair)
                self._draw_layers()
                self.go_to_pane("inspect-layers")

    def action_threshold(self, by: float) -> None:
        """Another bound from which on adapters are alike."""
        self._threshold = round(min(1.0, max(0.0, self._threshold + by)), 2)
        self.draw_tabs()
        self._draw_matrix()

    def action_measure(self) -> None:
        """Another figure for the layers."""
        subject = self.subject
        kind = "pair" if subject is not None and subject.kind == "pair" else "one"
        self._measures[kind] = 1 - self._measures[kind]
        self._draw_layers()

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
        if self.pane == "inspect-tasks" and self._record is not None:
            self._kept = None if self._kept == self._record.id else self._record.id
            self.query_one("#task-table").refresh()
            if self._kept is not None:
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
        if self._comparing is not None:
            self.workers.cancel_group(self, "diff")
            self._comparing, self._pair = None, None
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

    # work off the screen

    def _compare(self, pair: Subject) -> None:
        if pair.places is None:
            self._pair = None
            self.notify("Where these adapters lie is not known.", severity="warning", markup=False)
            return
        if isinstance(self._diffs.get(pair.places), Diff):
            return
        self._diffs.pop(pair.places, None)
        self._comparing = pair.places
        self._ask_diff(pair.places)

    @work(thread=True, exclusive=True, group="diff", exit_on_error=False)
    def _ask_diff(self, places: tuple[str, str]) -> None:
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

    def on_inspect_view_compared(self, event: Compared) -> None:
        if self._comparing == event.places:
            self._comparing = None
        self._diffs[event.places] = event.diff or event.problem or "The comparison failed."
        self._draw_layers()

    @work(thread=True, group="figures", exit_on_error=False)
    def _read_figures(self, key: tuple[str, str]) -> None:
        from vlora_engine.figures import task_figures

        manifest = self.session.manifest
        if manifest is None:
            return
        try:
            self.post_message(self.Read(key, task_figures(manifest, key[1]), ""))
        except VLoRAError as error:
            self.post_message(self.Read(key, None, str(error)))

    def on_inspect_view_read(self, event: Read) -> None:
        self._figures[event.key] = event.figures or event.problem
        self._draw_layers()
