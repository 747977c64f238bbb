"""What Inspect shows: its panes, what is in them, and what the layers are about."""

from __future__ import annotations

from typing import TYPE_CHECKING

from textual import work
from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical
from textual.message import Message
from textual.widgets import Input, Static

from vlora_tui.report.comparison import CLUSTERED
from vlora_tui.tui.core.pane_view import PaneView
from vlora_tui.tui.inspect import data as inspect_data
from vlora_tui.tui.inspect.data import Group, Kin, Likeness
from vlora_tui.tui.inspect.finding_rows import Remark
from vlora_tui.tui.inspect.findings import FindingsPane
from vlora_tui.tui.inspect.groups import GroupsPane
from vlora_tui.tui.inspect.layers import LayersPane
from vlora_tui.tui.inspect.outliers import ApartPane
from vlora_tui.tui.inspect.rows import Subject, why_no_likeness
from vlora_tui.tui.inspect.similarity import AlikePane
from vlora_tui.tui.inspect.tasks import TasksPane
from vlora_tui.tui.widgets.tabs import PaneTabs, Tab

if TYPE_CHECKING:
    from vlora_engine.spectra.tables import Spectra


class InspectPanes(PaneView):
    """Draws all panes from the session; `InspectView` adds the keys.

    What takes a moment (outliers, copies, runs) is worked out by a thread and drawn when it is
    there; what needs weights the panes ask of processes.
    """

    class Related(Message):
        """It is known who stands apart, who is a copy, who comes of one run."""

        def __init__(self, likeness: Likeness, kin: Kin) -> None:
            super().__init__()
            self.likeness, self.kin = likeness, kin

    def compose(self) -> ComposeResult:
        ascii_only = self.vlora.ascii_only
        yield Static(id="nothing", markup=False)
        yield PaneTabs(id="inspect-tabs")
        with Horizontal(id="inspect-body"):
            with Vertical(id="inspect-left", classes="side"):
                yield AlikePane(ascii_only=ascii_only)
                yield TasksPane(ascii_only=ascii_only)
                yield LayersPane(self.session, ascii_only=ascii_only)
            with Vertical(id="inspect-right", classes="side"):
                yield GroupsPane(ascii_only=ascii_only)
                yield ApartPane()
                yield FindingsPane(self.session, ascii_only=ascii_only)
        line = Input(placeholder="part of a name", compact=True, id="inspect-filter")
        line.cursor_blink = False
        yield line

    def on_mount(self) -> None:
        self._threshold = CLUSTERED
        self._ordered = True
        self._sort = 0
        self._words: tuple[str, ...] = ()
        self._tasks_wanted: bool | None = None
        self._pair: Subject | None = None
        self._likeness: Likeness | None = None
        self._kin: Kin | None = None
        self._of_relations: object = None
        self._remarks: list[Remark] = []
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
            groups = len(self._all_groups) if self._likeness is not None else 0
            tabs = [
                Tab("inspect-alike", "Likeness"),
                Tab("inspect-layers", "Layers"),
                Tab("inspect-groups", "Groups", groups),
                Tab("inspect-apart", "Apart", len(self._kin.apart) if self._kin else 0),
            ]
        else:
            tabs = [Tab("inspect-alike", "Likeness")]
        return [*tabs, Tab("inspect-findings", "Findings", len(self._remarks))]

    @property
    def _alike(self) -> AlikePane:
        return self.query_one(AlikePane)

    @property
    def _layers(self) -> LayersPane:
        return self.query_one(LayersPane)

    @property
    def _groups(self) -> GroupsPane:
        return self.query_one(GroupsPane)

    @property
    def _apart(self) -> ApartPane:
        return self.query_one(ApartPane)

    @property
    def _tasks(self) -> TasksPane:
        return self.query_one(TasksPane)

    @property
    def _findings(self) -> FindingsPane:
        return self.query_one(FindingsPane)

    @property
    def _clusters(self) -> list[Group]:
        """Those that are alike at the present bound."""
        return self._likeness.groups(self._threshold) if self._likeness is not None else []

    @property
    def _all_groups(self) -> list[Group]:
        """The clusters, then copies and runs as far as they are known."""
        return [*self._clusters, *(self._kin.groups if self._kin is not None else ())]

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
        relations = session.spectra.relations if session.spectra is not None else None
        if relations is not self._of_relations:
            self._of_relations, self._kin = relations, None
            self._likeness = inspect_data.likeness_of(session.spectra)
            if self._likeness is not None and session.spectra is not None:
                self._relate(self._likeness, session.spectra)
        self.set_class(self._likeness is None and not self.on_tasks, "bare")
        self._remarks = self._findings.remarks(tasks=self.on_tasks)
        self.draw_tabs()
        self._draw_likeness()
        self._draw_apart()
        self._draw_tasks()
        self._findings.judge()
        self._findings.show(self._remarks, lambda r: self._found(f"{r.about} {r.what}"))
        self._draw_layers()

    def arranged(self) -> None:
        self._draw_layers()

    def _share_out(self) -> None:
        """Give the matrix and the layers the lines that each can use."""
        height = self.query_one("#inspect-left").size.height
        pane = self._alike
        if self.has_class("one") or self._likeness is None:
            pane.styles.height = "1fr"
            return
        layers = min(self._layers.wanted_height, height // 2)
        pane.styles.height = min(pane.wanted_height, max(9, height - max(8, layers)))

    def _draw_likeness(self) -> None:
        """The matrix, and the groups."""
        likeness, clusters = self._likeness, self._clusters
        order: list[int] = []
        if likeness is not None:
            order = likeness.by_likeness if self._ordered else list(range(len(likeness.names)))
        shown = [i for i in order if likeness is not None and self._found(likeness.names[i])]
        hidden = len(order) - len(shown)
        words = f"{len(shown)} adapters, {'the like together' if self._ordered else 'as found'}"
        self._alike.show(
            likeness,
            shown,
            clusters,
            marked=self.session.marked,
            subtitle=(words + (f", {hidden} filtered out" if hidden else "")) if likeness else "",
            instead=self._why_no_matrix if likeness is None else "",
        )
        rows = [g for g in self._all_groups if set(g.members) & set(shown)]
        self._groups.show(likeness, rows, self._kin, self._threshold)

    @property
    def _why_no_matrix(self) -> str:
        if self.session.spectra is None and self._measuring:
            return "Being measured. 2 shows the layers that are done, 3 the job."
        return why_no_likeness(self.session.spectra)

    @property
    def _measuring(self) -> bool:
        """Whether a job computes the spectra of what is marked."""
        desk = self.vlora.desk
        view = desk.view(desk.spectra_job or "")
        return view is not None and not view.state.is_over

    def _draw_apart(self) -> None:
        self._apart.show(
            self._kin, self._found, self._sort, measured=self._likeness is not None
        )  # fmt: skip

    def _draw_tasks(self) -> None:
        if self.session.manifest is not None:
            self._tasks.show(self.session.manifest, self._found, self._sort)

    def _draw_layers(self) -> None:
        if self.is_mounted and not self.has_class("empty"):
            self._layers.show(self.subject)

    # work off the screen

    @work(thread=True, exclusive=True, group="kin", exit_on_error=False)
    def _relate(self, likeness: Likeness, spectra: Spectra) -> None:
        self.post_message(self.Related(likeness, inspect_data.kin_of(likeness, spectra)))

    def on_inspect_panes_related(self, event: Related) -> None:
        if event.likeness is self._likeness:
            self._kin = event.kin
            self._draw()

    # what the layers are about

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
            return Subject(
                "task", (task.id,), place=inspect_data.task_place(manifest.path, task.id)
            )
        pair = self._alike.pair
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
            first, second = (inspect_data.task_place(manifest.path, name) for name in names)
            return Subject("pair", names, places=(first, second))
        pair, likeness = self._alike.pair, self._likeness
        if pair is None or likeness is None or pair[0] == pair[1]:
            return None
        at = [likeness.paths[i] for i in pair]
        places = (at[0], at[1]) if at[0] and at[1] else None
        return Subject("pair", tuple(likeness.names[i] for i in pair), places=places)
