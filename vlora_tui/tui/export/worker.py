"""Reads folders and headers for Export, and finds its jobs, in threads."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from typing import TYPE_CHECKING

from textual.message import Message

from vlora_engine.catalog.read import read_manifest
from vlora_engine.errors import VLoRAError
from vlora_tui.pipeline import events
from vlora_tui.tui.export import plan as export_plan
from vlora_tui.tui.export.plan import Plan
from vlora_tui.tui.export.settings import Settings, Source
from vlora_tui.tui.export.verdicts import Headers

if TYPE_CHECKING:
    from textual.widget import Widget

    from vlora_engine.manifest.manifest import Manifest
    from vlora_tui.jobs import JobView
    from vlora_tui.tui.core.host import Host
    from vlora_tui.tui.core.view import View


class ExportPlanned(Message):
    """The places were looked at."""

    def __init__(self, plan: Plan, number: int) -> None:
        super().__init__()
        self.plan, self.number = plan, number


class SubspaceBuilt(Message):
    """A job has written the subspace of the marked adapters."""

    def __init__(self, manifest: Manifest) -> None:
        super().__init__()
        self.manifest = manifest


class ExportPlanner:
    """Keeps the plan of what would be written: a thread looks at places and headers.

    Args:
        view: Lends its threads, and hears `ExportPlanned`.
    """

    def __init__(self, view: Widget) -> None:
        self.plan = Plan()
        self._view = view
        self._headers = Headers()
        self._asked = 0

    def forget(self, headers: Headers | None = None) -> None:
        """Nothing is planned yet; ``headers``: of what is going to be written from now on."""
        self.plan = Plan()
        if headers is not None:
            self._headers = headers

    def replan(
        self, source: Source, marked: list[str], settings: Settings, written: Collection[str]
    ) -> None:
        """Have a new plan.

        Args:
            written: Paths that the job of the last plan has written.
        """
        self._asked += 1
        look = partial(self._look, source, marked, settings, self._headers, written, self._asked)
        self._view.run_worker(look, thread=True, exclusive=True, group="plan")

    def _look(
        self, source: Source, marked: list[str], settings: Settings, headers: Headers,
        written: Collection[str], number: int,
    ) -> None:  # fmt: skip
        """In a thread: look at the places."""
        plan = export_plan.plan(source, marked, settings, headers, written)
        self._view.post_message(ExportPlanned(plan, number))

    def take(self, event: ExportPlanned) -> bool:
        """Take a new plan; False if it is not the one that was asked for last."""
        if event.number != self._asked:
            return False
        self.plan = event.plan
        return True


class ExportJob:
    """The job that Export started last, found among all jobs by what it writes."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._before: set[str] | None = None  # jobs there were before ours was started
        self._id: str | None = None
        self._ended: str | None = None  # the last one whose end was told

    def expect(self) -> None:
        """A job is going to be started."""
        self._before, self._id = {view.job.id for view in self._host.job_views()}, None

    def forget(self) -> None:
        """Something else is asked for than what the last job did."""
        self._before = self._id = None

    @property
    def is_expected(self) -> bool:
        """Whether one was started, be it in the list already or not."""
        return self._before is not None

    @property
    def view(self) -> JobView | None:
        """The job, once it is in the list."""
        return next((v for v in self._host.job_views() if v.job.id == self._id), None)

    @property
    def written(self) -> frozenset[str]:
        """The paths that it has written, once it is over."""
        view = self.view
        if view is None or not view.state.is_over:
            return frozenset()
        return frozenset(event.path for event in view.all(events.Exported))

    def find(self, paths: Collection[str]) -> None:
        """It is the first that was not there before, and writes one of these paths."""
        if self._before is None or self._id is not None:
            return
        for view in self._host.job_views():
            if view.job.id not in self._before and set(paths) & set(view.job.info.outputs):
                self._id = view.job.id

    def has_just_ended(self) -> bool:
        """Whether it is over; says so once."""
        view = self.view
        if view is None or not view.state.is_over or self._ended == view.job.id:
            return False
        self._ended = view.job.id
        return True


class BuiltSubspace:
    """Finds the subspace that a job has built of the marked adapters, where none is open.

    Args:
        view: Lends its threads, and hears `SubspaceBuilt`.
    """

    def __init__(self, view: View) -> None:
        self._view = view
        self._looked: set[str] = set()

    def look(self) -> None:
        """Look at the next job that has written one."""
        session = self._view.session
        if session.manifest is not None or not session.marked:
            return
        for view in self._view.host.job_views():
            written = view.last(events.SubspaceWritten)
            if written is not None and view.job.id not in self._looked:
                self._looked.add(view.job.id)
                read = partial(self._read, view, written.path, frozenset(session.marked))
                self._view.run_worker(read, thread=True, group="subspace")
                return

    def _read(self, view: JobView, path: str, marked: frozenset[str]) -> None:
        """In a thread: read its index, if it was built of these adapters."""
        try:
            inputs = {adapter.path for adapter in view.job.recipe().input.adapters}
            if inputs == marked:
                self._view.post_message(SubspaceBuilt(read_manifest(path)))
        except VLoRAError:
            return  # it was moved away since
