"""What Export does off the screen: looking at places and headers, finding its jobs."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from textual import work
from textual.message import Message

from vlora_engine.errors import VLoRAError
from vlora_tui.pipeline import events
from vlora_tui.tui.core.pane_view import PaneView
from vlora_tui.tui.export import plan as export_plan
from vlora_tui.tui.export.plan import Plan
from vlora_tui.tui.export.recipes import recipe_of
from vlora_tui.tui.export.settings import Settings, Source
from vlora_tui.tui.export.verdicts import Headers

if TYPE_CHECKING:
    from vlora_engine.manifest.manifest import Manifest
    from vlora_tui.jobs import JobView
    from vlora_tui.recipe.model import Recipe


class ExportWork(PaneView):
    """A view with a source, marks and settings, a plan of them, and a job that carries it out.

    ``planned`` is called with every new plan.
    """

    class Planned(Message):
        """The places were looked at."""

        def __init__(self, plan: Plan, asked: int) -> None:
            super().__init__()
            self.plan, self.asked = plan, asked

    class Built(Message):
        """A job has written the subspace of the marked adapters."""

        def __init__(self, manifest: Manifest) -> None:
            super().__init__()
            self.manifest = manifest

    def begin(self) -> None:
        """Nothing is planned yet."""
        self._settings = Settings()
        self._headers = Headers()
        self._wanted: str | None = None  # the kind of source that was asked for
        self._plan = Plan()
        self._asked = 0
        self._known: set[str] | None = None  # jobs there were before ours was started
        self._job: str | None = None
        self._planned_for: str | None = None
        self._looked: set[str] = set()

    def planned(self) -> None:
        """There is a new plan."""
        raise NotImplementedError

    @property
    def _source(self) -> Source | None:
        raise NotImplementedError

    @property
    def _marked(self) -> list[str]:
        raise NotImplementedError

    @property
    def _job_view(self) -> JobView | None:
        """The job that this screen started last."""
        return next((v for v in self.vlora.job_views() if v.job.id == self._job), None)

    def _recipe(self) -> Recipe | None:
        if self._source is None:
            return None
        try:
            return recipe_of(self._source, self._marked, self._settings)
        except VLoRAError:
            return None

    # plans

    def _replan(self) -> None:
        if self._source is None:
            return
        view, written = self._job_view, frozenset[str]()
        if view is not None and view.state.is_over:
            written = frozenset(event.path for event in view.all(events.Exported))
        self._asked += 1
        self._look_at_places(
            self._source, self._marked, self._settings, self._headers, written, self._asked
        )

    @work(thread=True, exclusive=True, group="plan", exit_on_error=False)
    def _look_at_places(
        self, source: Source, marked: list[str], settings: Settings, headers: Headers,
        written: Collection[str], asked: int,
    ) -> None:  # fmt: skip
        plan = export_plan.plan(source, marked, settings, headers, written)
        self.post_message(self.Planned(plan, asked))

    def on_export_work_planned(self, event: Planned) -> None:
        if event.asked == self._asked:
            self._plan = event.plan
            self.planned()

    # jobs

    def _follow_job(self) -> None:
        """Find the job that was started here; once it is over, look at the places anew."""
        self._find_job()
        view = self._job_view
        if view is not None and view.state.is_over and self._planned_for != view.job.id:
            self._planned_for = view.job.id
            self._replan()  # what was new is there now

    def _find_job(self) -> None:
        """The job that was started here is the first one that was not there before."""
        if self._known is None or self._job is not None:
            return
        recipe = self._recipe()
        if recipe is None:
            return
        places = {step.path for step in recipe.written}
        for view in self.vlora.job_views():
            if view.job.id not in self._known and places & set(view.job.info.outputs):
                self._job = view.job.id

    # the subspace

    def _look_for_subspace(self) -> None:
        """Where none is open: the one that a job has built of the marked adapters."""
        session = self.session
        if session.manifest is not None or not session.marked:
            return
        for view in self.vlora.job_views():
            written = view.last(events.SubspaceWritten)
            if written is not None and view.job.id not in self._looked:
                self._looked.add(view.job.id)
                self._read_subspace(view, written.path, frozenset(session.marked))
                return

    @work(thread=True, group="subspace", exit_on_error=False)
    def _read_subspace(self, view: JobView, path: str, marked: frozenset[str]) -> None:
        from vlora_engine.catalog.read import read_manifest

        try:
            inputs = {adapter.path for adapter in view.job.recipe().input.adapters}
            if inputs == marked:
                self.post_message(self.Built(read_manifest(path)))
        except VLoRAError:
            return  # it was moved away since

    def on_export_work_built(self, event: Built) -> None:
        if self.session.manifest is None:
            self.session.manifest = event.manifest
            self._wanted = "subspace"
            self.vlora.tell("subspace")
