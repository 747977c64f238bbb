"""The seven panes of Inspect together: what is in them, and what the layers are about."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from textual.message import Message
from textual.widgets import Static

from vlora_tui.tui.core.likeness import Likeness
from vlora_tui.tui.inspect import data as inspect_data
from vlora_tui.tui.inspect.data import Kin
from vlora_tui.tui.inspect.findings import FindingsPane
from vlora_tui.tui.inspect.groups import GroupsPane
from vlora_tui.tui.inspect.layers import LayersPane
from vlora_tui.tui.inspect.outliers import OutliersPane
from vlora_tui.tui.inspect.rows import Subject, why_no_likeness
from vlora_tui.tui.inspect.sentences import (
    about_adapters,
    about_interference,
    about_subspace,
    about_unusable,
    not_measured,
)
from vlora_tui.tui.inspect.similarity import AlikePane
from vlora_tui.tui.inspect.state import InspectState
from vlora_tui.tui.inspect.summary import SummaryPane
from vlora_tui.tui.inspect.tasks import TasksPane
from vlora_tui.tui.key_names import key, keyed
from vlora_tui.tui.text import clean, plural
from vlora_tui.tui.widgets.tabs import Tab

if TYPE_CHECKING:
    from vlora_engine.spectra.tables import Spectra
    from vlora_tui.tui.core.pane_view import PaneView


class KinFound(Message):
    """It is known who stands apart, who is a copy, who comes of one run."""

    def __init__(self, likeness: Likeness, kin: Kin) -> None:
        super().__init__()
        self.likeness, self.kin = likeness, kin


class InspectPanes:
    """Draws the panes of Inspect from the session and from what Inspect is about.

    What takes a moment (outliers, copies, runs) is worked out by a thread, and drawn when it is
    there (`KinFound`); what needs weights the panes ask of processes.

    Args:
        view: The view that they are in; it lends its threads, and hears `KinFound`.
    """

    def __init__(self, view: PaneView, state: InspectState) -> None:
        self._view = view
        self._state = state
        self._session = state.session
        self.summary = view.query_one(SummaryPane)
        self.alike = view.query_one(AlikePane)
        self.layers = view.query_one(LayersPane)
        self.groups = view.query_one(GroupsPane)
        self.outliers = view.query_one(OutliersPane)
        self.tasks = view.query_one(TasksPane)
        self.findings = view.query_one(FindingsPane)

    def tabs(self) -> list[Tab]:
        """The panes that there are now, in the order of Tab."""
        if self._state.on_tasks:
            count = len(self._session.manifest.tasks) if self._session.manifest is not None else 0
            tabs = [
                Tab("inspect-summary", "Summary"),
                Tab("inspect-tasks", "Tasks", count),
                Tab("inspect-layers", "Layers"),
            ]
        elif self._session.spectra is not None:
            groups = len(self._state.groups) if self._state.likeness is not None else 0
            apart = len(self._state.kin.outliers) if self._state.kin else 0
            tabs = [Tab("inspect-summary", "Summary")] if self._state.likeness else []
            tabs += [
                Tab("inspect-alike", "Similarity"),
                Tab("inspect-layers", "Layers"),
                Tab("inspect-groups", "Groups", groups),
                Tab("inspect-apart", "Outliers", apart),
            ]
        else:
            tabs = [Tab("inspect-alike", "Similarity")]
        return [*tabs, Tab("inspect-findings", "Findings", len(self._state.rows))]

    # drawing

    def draw(self) -> None:
        """Draw everything."""
        session, state, view = self._session, self._state, self._view
        reason = view.not_ready()
        view.query_one("#nothing", Static).update(reason or "")
        if reason is not None:
            view.set_class(True, "empty")
            return
        if state.follow_spectra() and state.likeness is not None and session.spectra is not None:
            relate = partial(self._relate, state.likeness, session.spectra)
            view.run_worker(relate, thread=True, exclusive=True, group="kin")
        is_bare = state.likeness is None and not state.on_tasks
        view.update_classes({"empty": False, "bare": is_bare})  # at once: all is styled for each
        state.rows = self.findings.remarks(tasks=state.on_tasks)
        view.draw_tabs()
        self.draw_likeness()
        self.draw_outliers()
        self.draw_tasks()
        self.findings.judge()
        self.findings.show(state.rows, lambda row: state.keeps(f"{row.about} {row.what}"))
        self.draw_layers()
        self.measure_interference()
        self.draw_summary()

    def measure_interference(self) -> None:
        """Have it measured in the background how the adapters interfere, where that is cheap."""
        likeness = self._state.likeness
        if likeness is None or self._state.on_tasks:
            return
        infos = self._session.infos
        known = [infos.get(path) if path else None for path in likeness.paths]
        self.alike.measure_quietly([None if info is None else info.nbytes for info in known])

    def draw_summary(self) -> None:
        """What is worth knowing, in sentences."""
        state, session, alike = self._state, self._session, self.alike
        likeness, spectra, manifest = state.likeness, session.spectra, session.manifest
        if state.on_tasks and manifest is not None:
            self.summary.show(about_subspace(manifest, self.layers.whole))
            return
        if likeness is None or spectra is None:
            self.summary.show([], instead=self._why_no_matrix)
            return
        found, conflict = alike.interference, []
        if found is not None:
            at, layers = alike.measured, alike.worst_layers
            conflict = about_interference(found, at, likeness.names, layers)
        elif alike.asking is None and alike.arguments is not None:
            conflict = [not_measured(len(alike.measured))]
        measuring = alike.asking is not None and found is None
        words = keyed("Measuring interference… (<inspect.stop> to stop)") if measuring else ""
        rows = about_adapters(likeness, spectra, state.kin, conflict)
        bad = {
            session.infos[path].name: clean(finding.what)
            for path, finding in session.bad.items()
            if path in session.marked and path in session.infos
        }
        instead = "Nothing stands out among these adapters."
        if len(likeness.names) < 2:
            instead = keyed("One adapter alone. Mark more in step <step.adapters> to compare.")
        self.summary.show([*about_unusable(bad), *rows], state=words, instead=instead)

    def share_out(self) -> None:
        """Give the matrix and the layers the lines that each can use."""
        height = self._view.query_one("#inspect-left").size.height
        pane = self.alike
        if self._view.has_class("one") or self._state.likeness is None:
            pane.styles.height = "1fr"
            return
        layers = min(self.layers.full_height, height // 2)
        pane.styles.height = min(pane.full_height, max(8, height - max(8, layers)))

    def draw_likeness(self) -> None:
        """The matrix, and the groups."""
        likeness, ordered = self._state.likeness, self._state.ordered
        shown: list[int] = []
        subtitle = instead = ""
        if likeness is None:
            instead = self._why_no_matrix
        else:
            order = likeness.by_likeness if ordered else list(range(len(likeness.names)))
            shown = [i for i in order if self._state.keeps(likeness.names[i])]
            how = "similar ones adjacent" if ordered else "as found"
            subtitle = f"{len(shown)} adapters, {how}"
            hidden = len(order) - len(shown)
            subtitle += f", {hidden} filtered out" if hidden else ""
        self.alike.show(
            likeness,
            shown,
            self._state.clusters,
            marked=self._session.marked,
            subtitle=subtitle,
            instead=instead,
        )
        rows = [g for g in self._state.groups if set(g.members) & set(shown)]
        self.groups.show(likeness, rows, self._state.kin, self._state.threshold)

    @property
    def _why_no_matrix(self) -> str:
        if self._session.spectra is None and self._view.host.jobs.is_measuring:
            return keyed(
                "Measuring… <step.choose> shows the modules that are done, <step.run> the job."
            )
        if self._session.spectra is None and (count := len(self._session.included)):
            marked = plural(count, "marked adapter")
            return f"Not measured yet: {key('step.choose')} measures the {marked}."
        return why_no_likeness(self._session.spectra)

    def draw_outliers(self) -> None:
        """Who stands apart."""
        state = self._state
        measured = state.likeness is not None
        self.outliers.show(state.kin, state.keeps, state.sort, measured=measured)

    def draw_tasks(self) -> None:
        """The tasks of the open subspace."""
        if self._session.manifest is not None:
            self.tasks.show(self._session.manifest, self._state.keeps, self._state.sort)

    def draw_layers(self) -> None:
        """The layers of what the cursor is on."""
        if not self._view.has_class("empty"):
            self.layers.show(self.subject)

    # work off the screen

    def _relate(self, likeness: Likeness, spectra: Spectra) -> None:
        """In a thread: work out what takes a moment."""
        self._view.post_message(KinFound(likeness, inspect_data.kin_of(likeness, spectra)))

    def take_kin(self, event: KinFound) -> None:
        """Draw what was worked out, unless it is about other spectra."""
        if event.likeness is self._state.likeness:
            self._state.kin = event.kin
            self.draw()

    # what the layers are about

    @property
    def subject(self) -> Subject | None:
        """What the layers pane shows: the pair that is compared, else what the cursor is on."""
        if self._state.pair is not None:
            return self._state.pair
        if self._state.on_tasks:
            task = self.tasks.record
            manifest = self._session.manifest
            if manifest is not None and self.tasks.on_all:
                return Subject("subspace", ("all tasks",), ref=str(manifest.path))
            if task is None or manifest is None:
                return None
            return Subject("task", (task.id,), ref=inspect_data.task_ref(manifest.path, task.id))
        pair = self.alike.pair
        if pair is None or self._state.likeness is None:
            return None
        compared = self.pair_here()
        if compared is not None and self.layers.knows(compared.pair_refs):
            return compared
        return self.adapter(pair[0])

    def adapter(self, at: int) -> Subject:
        """One adapter, by its index."""
        likeness = self._state.likeness
        assert likeness is not None  # noqa: S101  (there are no indices without it)
        path = likeness.paths[at] if likeness.paths else None
        return Subject("adapter", (likeness.names[at],), index=at, ref=path)

    def walk(self) -> list[Subject]:
        """The subjects beside the one in sight: every adapter, pair or task, in their order."""
        subject, likeness, manifest = self.subject, self._state.likeness, self._session.manifest
        if subject is None:
            return []
        if subject.kind == "task" and manifest is not None:
            tasks = [t for t in self.tasks.ids if t]
            return [
                Subject("task", (task,), ref=inspect_data.task_ref(manifest.path, task))
                for task in tasks
            ]
        if subject.kind == "adapter" and likeness is not None:
            return [self.adapter(i) for i in self.alike.order]
        return [subject]

    def pair_here(self) -> Subject | None:
        """The two that the cursor means: a cell off the diagonal, or the kept task and this."""
        if self._state.on_tasks:
            task, manifest = self.tasks.record, self._session.manifest
            if task is None or manifest is None or self.tasks.compared_with in (None, task.id):
                return None
            names = (str(self.tasks.compared_with), task.id)
            first, second = (inspect_data.task_ref(manifest.path, name) for name in names)
            return Subject("pair", names, pair_refs=(first, second))
        pair, likeness = self.alike.pair, self._state.likeness
        if pair is None or likeness is None or pair[0] == pair[1]:
            return None
        at = [likeness.paths[i] for i in pair]
        refs = (at[0], at[1]) if at[0] and at[1] else None
        return Subject("pair", tuple(likeness.names[i] for i in pair), pair_refs=refs)
