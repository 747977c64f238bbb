"""Runs a job in its own process: takes the lock, waits for the device, runs the recipe."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from vlora_engine.adapters.address import is_address
from vlora_engine.errors import Cancelled, VLoRAError
from vlora_engine.utils.file_names import SUBSPACE_INDEX
from vlora_engine.utils.files import sha256_file
from vlora_tui.jobs.control import DISCARD, discard_partial, layers
from vlora_tui.jobs.devices import DeviceQueue, device_key
from vlora_tui.jobs.joblock import JobLock, probe
from vlora_tui.jobs.store import SPECTRA, Job, goes_first
from vlora_tui.jobs.watch import EventReader, TimedEvent, written_paths
from vlora_tui.pipeline import events

if TYPE_CHECKING:
    from vlora_tui.pipeline.run import Run

_ENDS = (events.Finished, events.Failed, events.Cancelled)


def run_job(
    folder: Path,
    *,
    listen: events.Emit,
    cancelled: Callable[[], bool],
    lock: int | None = None,
) -> None:
    """Run the job of this directory in this process, which hears signals already.

    Args:
        listen: Told every event besides the job's own file.
        lock: The descriptor of the job's lock, where it was handed down.

    Raises:
        VLoRAError: What stopped it, after an event that says the same.
    """
    job = Job.load(folder)
    with (
        JobLock.take(job.lock_path, inherited=lock) as job_lock,
        JobEventLog(job, job_lock, listen) as emit,
    ):
        job_lock.publish()
        try:
            with _turn(job, emit, cancelled):
                _make_run(job, emit, cancelled).execute()
        except BaseException as error:
            if not emit.is_over:  # before the run could say so itself
                emit(_end_of(error))
            raise


class JobEventLog:
    """Writes a job's events, and sees to what must not get lost when the disk is full.

    What found no room is written before the next event; progress is not. How it ended stands in
    the lock too, which needs no room. Where a cancel asked for it, the layers are discarded before
    the last event says so.
    """

    def __init__(self, job: Job, lock: JobLock, listen: events.Emit) -> None:
        self.is_over = False
        self._job, self._lock, self._listen = job, lock, listen
        self._writer: events.EventWriter | None = None
        self._owed: list[events.Event] = []

    def __enter__(self) -> JobEventLog:
        with suppress(OSError):
            self._writer = events.EventWriter(self._job.events_path)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if self._writer is not None:
            self._pay()
            self._writer.close()

    def __call__(self, event: events.Event) -> None:
        """Tell one event."""
        if isinstance(event, events.Cancelled):
            event = self._after_cancel(event)
        if isinstance(event, _ENDS):
            self.is_over = True
        written = self._pay() and self._write(event)
        if not written and not isinstance(event, events.Progress):
            self._owed.append(event)
        if isinstance(event, _ENDS):
            self._lock.end(event.type)
        with suppress(OSError):  # the log's disk may be full; the job goes on
            self._listen(event)

    def _after_cancel(self, event: events.Cancelled) -> events.Cancelled:
        if self._job.cancel_request() == DISCARD:
            count = discard_partial(self._job)
            text = f"{event.text} {layers(count)} discarded."
            return replace(event, text=text, resumable=False)
        count = self._job.kept_layers()
        if not count:
            return event
        return replace(event, text=f"{event.text} {layers(count)} kept for a resume.")

    def _pay(self) -> bool:
        while self._owed and self._write(self._owed[0]):
            del self._owed[0]
        return not self._owed

    def _write(self, event: events.Event) -> bool:
        if self._writer is None:
            return False
        before = self._writer.dropped
        self._writer(event)
        return self._writer.dropped == before


def _turn(
    job: Job, emit: JobEventLog, cancelled: Callable[[], bool]
) -> AbstractContextManager[None]:
    device = device_key(job.info.device)
    jobs = job.folder.parent

    def is_alive(other: str) -> bool:
        return probe(jobs / other / "lock").held

    return DeviceQueue(job.state_dir, device).turn(
        job.id,
        is_alive=is_alive,
        cancelled=cancelled,
        waiting=lambda ahead: emit(events.Queued(device, ahead)),
        first=goes_first(job),
    )


def _make_run(job: Job, emit: JobEventLog, cancelled: Callable[[], bool]) -> Run:
    from vlora_tui.pipeline.run import Run, SpectraRun

    recipe, info = job.recipe(), job.info
    action = job.action()
    if action is not None:
        from vlora_tui.pipeline.action_run import ActionRun

        return ActionRun(
            recipe, emit, force=info.force, job=job.id, cancelled=cancelled, action=action
        )
    if info.kind == SPECTRA:
        return SpectraRun(
            recipe,
            emit,
            force=info.force,
            job=job.id,
            cancelled=cancelled,
            target=None if info.spectra is None else Path(info.spectra),
            device=info.device,
        )
    done, again = _done_before(job)
    return Run(
        recipe, emit, force=info.force, job=job.id, cancelled=cancelled, done=done, again=again
    )


def _done_before(job: Job) -> tuple[frozenset[str], bool]:
    """What earlier attempts have put into its place, which is not made again; whether any began.

    A subspace that was complete counts where it lies in its place: the job was killed before it
    could say so.
    """
    reader, timed_events = EventReader(job.events_path), list[TimedEvent]()
    while new := reader.poll():
        timed_events += new
    told = [timed.event for timed in timed_events]
    written = written_paths(timed_events)
    for event in told:
        if isinstance(event, events.SubspaceMade):
            with suppress(VLoRAError):
                if sha256_file(Path(event.path) / SUBSPACE_INDEX) == event.digest:
                    written.add(event.path)
    done = frozenset(path for path in written if is_address(path) or os.path.lexists(path))
    return done, any(isinstance(event, events.Started) for event in told)


def _end_of(error: BaseException) -> events.Event:
    if isinstance(error, Cancelled):
        return events.Cancelled(error.what, resumable=True)
    if isinstance(error, KeyboardInterrupt):
        return events.Cancelled("Interrupted.", resumable=True)
    details = {"error": type(error).__name__, "what": str(error)}
    if isinstance(error, VLoRAError):
        details = error.as_json()
    return events.Failed(details, getattr(error, "exit_code", 1))
