"""The interface's view of the jobs: it starts them, asks them to stop, and reads what they write.

Everything that touches a disk runs in a worker thread: a home directory on a slow network file
system must not hold the screen. Nothing is polled while no job is under way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlora_engine.errors import VLoRAError
from vlora_tui.tui.core.job_news import waiting_words
from vlora_tui.tui.core.messages import (
    Complaint,
    DiskTooSmall,
    JobsChanged,
    MeasuringFailed,
    SpectraChanged,
)
from vlora_tui.tui.text import problem_words

if TYPE_CHECKING:
    from textual.app import App
    from textual.timer import Timer

    from vlora_engine.spectra.tables import Spectra
    from vlora_tui.jobs import Job, JobStore, JobView, JobWatcher
    from vlora_tui.pipeline.actions import Action
    from vlora_tui.recipe.model import Recipe
    from vlora_tui.tui.core.session import Session


POLL_SECONDS = 0.5
WORKERS = "jobs"  # the group of the threads that ask and read


class JobClient:
    """Starts jobs for one application, asks them to stop, and reads what they write.

    What is new it posts to the application.

    Attributes:
        views: All jobs as of the last look, the newest first.
        problem: Why there can be no jobs (a state directory that cannot be written), or None.
        spectra_problem: Why the marked adapters could not be measured, or None.
        started: The ids of the jobs that this session started.
    """

    def __init__(self, app: App[Any], session: Session, state_dir: Path | None = None) -> None:
        self.views: list[JobView] = []
        self.problem: str | None = None
        self.spectra_problem: str | None = None
        self.spectra_job: str | None = None
        self.spectra_of: tuple[str, ...] = ()
        self.started: set[str] = set()
        self._app = app
        self._session = session
        self._state_dir = state_dir
        self._store: JobStore | None = None
        self._watcher: JobWatcher | None = None
        self._timer: Timer | None = None
        self._busy = False

    def open(self) -> None:
        """Look for jobs of earlier sessions."""
        self._later(self._look, "looking for jobs")

    def store(self) -> JobStore:
        """The job store.

        Raises:
            StorageError: The state directory cannot be used.
        """
        from vlora_tui.jobs import JobStore

        if self._store is None:
            self._store = JobStore.open(self._state_dir)
        return self._store

    @property
    def running(self) -> list[JobView]:
        """Jobs that run or wait on this machine."""
        return [view for view in self.views if not view.state.is_over]

    @property
    def is_measuring(self) -> bool:
        """Whether a job measures the marked adapters."""
        view = self.view(self.spectra_job or "")
        return view is not None and not view.state.is_over

    def waiting_words(self, job_id: str | None) -> str:
        """Whom a job waits for; nothing where it does not wait."""
        return waiting_words(self.view(job_id or ""), self.views)

    def is_own(self, view: JobView) -> bool:
        """Whether this window started a job; of one that does not say who did, it did not."""
        starter = view.job.info.started_by
        return starter is not None and starter.is_this_process

    def view(self, job_id: str) -> JobView | None:
        """One job by its id."""
        return next((view for view in self.views if view.job.id == job_id), None)

    def start(
        self, recipe: Recipe, *, force: bool = False, subspace_bytes: int | None = None
    ) -> None:
        """Start a job; `JobsChanged` tells of it.

        Args:
            subspace_bytes: What it is going to write, where that was predicted; what does not fit
                on its disk is not started.
        """
        from vlora_tui.pipeline.disk_space import shortage_of

        def work() -> None:
            shortage = None
            if not self._takes_torch(recipe):  # else the job finds out, and says so
                shortage = shortage_of(recipe, subspace=subspace_bytes)
            if shortage is not None:
                self._app.post_message(DiskTooSmall(shortage))
                return
            self._start(recipe, force, "Started. It keeps running when the terminal is closed.")

        self._later(work, "starting the job")

    def start_without_bad(self, job_id: str) -> None:
        """Start the recipe of a job again as a new one that leaves bad adapters out."""

        def work() -> None:
            job = self.store().find(job_id)
            recipe = job.recipe()
            recipe = replace(recipe, input=replace(recipe.input, skip_bad=True))
            self._start(recipe, job.info.force, "Started again without the bad adapters.")

        self._later(work, "starting the job")

    def start_action(self, action: Action, *, force: bool = False) -> None:
        """Start a job of an action; `JobsChanged` tells of it."""
        from vlora_tui.jobs import start_action

        def work() -> None:
            self.started.add(start_action(self.store(), action, force=force).id)
            self._look()

        self._later(work, "starting the job")

    def _start(self, recipe: Recipe, force: bool, text: str) -> None:
        from vlora_tui.jobs import start

        self.started.add(start(self.store(), recipe, force=force).id)
        self._app.call_from_thread(self._app.notify, text)
        self._look()

    def cancel(self, job_id: str, *, discard: bool) -> None:
        """Ask a job to stop at the next layer."""
        from vlora_tui.jobs import cancel

        self._change(lambda job: cancel(job, discard=discard), job_id, "cancelling the job")

    def resume(self, job_id: str) -> None:
        """Go on with a job that stopped."""
        from vlora_tui.jobs import resume

        self._change(lambda job: self.started.add(resume(self.store(), job).id), job_id, "resuming")

    def remove(self, job_id: str) -> None:
        """Forget a job that is over, and the layers it left."""
        from vlora_tui.jobs import remove

        self._change(lambda job: remove(self.store(), job), job_id, "removing the job")

    def _change(self, act: Callable[[Job], object], job_id: str, what: str) -> None:
        """In a thread: do something to a job, then look at what became of it."""

        def work() -> None:
            act(self.store().find(job_id))
            self._look()

        self._later(work, what)

    def want_spectra(self) -> None:
        """Have the spectra of the marked adapters: from the cache, or by a job that is started."""
        from vlora_tui.jobs import start
        from vlora_tui.recipe.model import AdapterInput, Input, Recipe

        session = self._session
        chosen = tuple(sorted(path for path in session.marked if path in session.infos))
        if not chosen or chosen == self.spectra_of:
            return
        self.spectra_of, self.spectra_job, self.spectra_problem = chosen, None, None
        session.set_spectra(None)
        adapters = tuple(AdapterInput(str(info.path), info.name) for info in session.chosen)
        recipe = Recipe(input=Input(adapters=adapters, skip_bad=True))

        def work() -> None:
            cached = None if self._takes_torch(recipe) else cached_spectra(recipe)
            if cached is not None:
                self._show(cached, chosen)
                return
            job = start(self.store(), recipe, device=session.device)
            self.started.add(job.id)
            if self.spectra_of == chosen:
                self.spectra_job = job.id
            self._look()

        def measured() -> None:
            try:
                work()
            except VLoRAError as error:
                self._app.call_from_thread(self._not_measured, chosen, problem_words(error))
            except Exception as error:  # a fault of ours: the step does not wait for it
                told = f"A bug in vlora-tui, not in your input: {type(error).__name__}: {error}"
                self._app.call_from_thread(self._not_measured, chosen, told)
                raise

        self._later(measured, "measuring the adapters")

    def _takes_torch(self, recipe: Recipe) -> bool:
        """Whether inputs lie in pickles: only torch opens those, which has no place in here.

        What their headers would tell (how many modules, say) is then not known.
        """
        infos = (self._session.infos.get(entry.path) for entry in recipe.input.adapters)
        return any(info is not None and info.modules is None for info in infos)

    def stop_spectra(self, why: str) -> None:
        """Let go of the spectra, and cancel the job that computes them; opening step 2 asks anew.

        Args:
            why: What step 2 says until then.
        """
        job_id, self.spectra_job = self.spectra_job, None
        self.spectra_of, self.spectra_problem = (), why
        self._session.set_spectra(None)
        self._app.post_message(SpectraChanged())
        self._app.post_message(JobsChanged())
        view = self.view(job_id or "")
        if job_id is not None and (view is None or not view.state.is_over):
            self.cancel(job_id, discard=True)

    def forget_spectra(self) -> None:
        """Files may have changed: look at the marked adapters anew when step 2 is next opened."""
        self.spectra_of, self.spectra_job = (), None

    def _not_measured(self, chosen: tuple[str, ...], problem: str) -> None:
        """Say why on the step itself, and try again when it is next opened."""
        if self.spectra_of == chosen:
            self.spectra_of, self.spectra_problem = (), problem
            self._app.post_message(JobsChanged())
        self._app.post_message(MeasuringFailed(problem))

    def _show(self, spectra: Spectra, chosen: tuple[str, ...]) -> None:
        def show() -> None:
            if self.spectra_of == chosen:
                self._session.set_spectra(spectra)
                self._app.post_message(SpectraChanged())

        self._app.call_from_thread(show)

    def _look(self) -> None:
        """Read what changed; in a worker thread."""
        from vlora_tui.jobs import JobWatcher

        try:
            if self._watcher is None:
                self._watcher = JobWatcher(self.store())
            changed = self._watcher.poll()
            views = list(reversed(self._watcher.views.values()))
        except VLoRAError as error:
            self.problem = problem_words(error)
            return
        self.problem = None
        self._read_spectra(views)
        if changed or len(views) != len(self.views):
            self._app.call_from_thread(self._looked, views)

    def _looked(self, views: list[JobView]) -> None:
        self.views = views
        active = bool(self.running)
        if active and self._timer is None:
            self._timer = self._app.set_interval(POLL_SECONDS, self._tick)
        elif not active and self._timer is not None:
            self._timer.stop()
            self._timer = None
        self._app.post_message(JobsChanged())

    def _tick(self) -> None:
        if not self._busy:
            self._later(self._look, "looking at the jobs")

    def _read_spectra(self, views: list[JobView]) -> None:
        """Take layers that arrived since the last look into the session."""
        chosen, job_id = self.spectra_of, self.spectra_job
        view = next((v for v in views if v.job.id == job_id), None)
        if view is None or view.spectra is None:
            return
        from vlora_engine.spectra.tables import Spectra

        path, current = Path(view.spectra), self._session.spectra
        try:
            moved = current is not None and current.path != path
            if current is None or (moved and not current.move(path)):
                self._show(Spectra.load(path), chosen)
            elif not current.is_whole and current.refresh():
                self._show(current, chosen)
        except VLoRAError as error:
            if view.state.is_over:  # nobody moves it any more
                self.spectra_job = None
                self._app.call_from_thread(self._not_measured, chosen, problem_words(error))
            return  # it moves to its final place this moment; the next look finds it
        if view.state.is_over:
            self.spectra_job = None

    def _later(self, work: Callable[[], None], what: str) -> None:
        def guarded() -> None:
            try:
                work()
            except VLoRAError as error:
                self._app.post_message(Complaint(f"While {what}: {problem_words(error)}"))
            except RuntimeError:
                if self._app.is_running:
                    raise
                return  # the application has ended meanwhile
            finally:
                self._busy = False

        self._busy = True
        self._app.run_worker(guarded, thread=True, group=WORKERS)


def cached_spectra(recipe: Recipe) -> Spectra | None:
    """The cached spectra of a recipe's inputs, if nothing of them is missing."""
    from vlora_tui.pipeline.inputs import gather
    from vlora_tui.recipe.resolve import resolve

    spectra = gather(resolve(recipe)).cached_spectra()
    return spectra if spectra is not None and spectra.is_whole else None
