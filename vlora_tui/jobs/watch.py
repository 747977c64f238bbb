"""Reads a job's events and lock into a view of its state, cheaply enough for a screen's timer."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from vlora_engine.utils.reading import open_file
from vlora_tui.jobs.identity import resident_bytes
from vlora_tui.jobs.joblock import SILENT_SECONDS, LockState
from vlora_tui.jobs.overall import Part, parts_of, share_of
from vlora_tui.jobs.store import Job, JobStore, counted_title
from vlora_tui.pipeline import events
from vlora_tui.pipeline.events import decode_timed

E = TypeVar("E", bound=events.Event)

POLL_BYTES = 1_000_000
FOLLOW_SECONDS = 0.2
MAX_EVENTS = 20_000  # each export of a task is two


class TimedEvent(NamedTuple):
    """One event as it stands in the file."""

    seq: int
    time: float  # seconds since 1970
    event: events.Event


class EventReader:
    """Reads a growing events file: each poll gives what came since the last.

    A last line without its end is left for the next poll; a line that is no event is skipped.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset = 0
        self._file: tuple[int, int] | None = None

    def poll(self, limit: int = POLL_BYTES) -> list[TimedEvent]:
        """The new events, of at most about ``limit`` bytes; one stat where nothing is new."""
        try:
            found = os.stat(self.path)
        except OSError:
            return []
        if (found.st_dev, found.st_ino) != self._file or found.st_size < self._offset:
            self._file, self._offset = (found.st_dev, found.st_ino), 0
        if found.st_size == self._offset:
            return []
        try:
            with open_file(self.path) as file:
                file.seek(self._offset)
                chunk = file.read(limit)
                if b"\n" not in chunk and len(chunk) == limit:
                    chunk += file.readline()  # a line longer than the limit
        except OSError:
            return []
        whole = chunk[: chunk.rfind(b"\n") + 1]
        self._offset += len(whole)
        rows = (decode_timed(line.decode("utf-8", "replace")) for line in whole.splitlines())
        return [TimedEvent(*row) for row in rows if row is not None]


class State(StrEnum):
    """How a job stands."""

    QUEUED = "queued"
    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"
    VANISHED = "vanished"  # nobody holds its lock, and it never said how it ended
    ELSEWHERE = "elsewhere"  # another machine's: only watched

    @property
    def is_over(self) -> bool:
        """Whether nothing more is going to happen by itself."""
        return self not in (State.QUEUED, State.RUNNING, State.ELSEWHERE)


_ENDS: dict[str, State] = {
    events.Finished.type: State.FINISHED,
    events.Failed.type: State.FAILED,
    events.Cancelled.type: State.CANCELLED,
}


@dataclass
class JobView:
    """A job as it can be shown.

    Args:
        history: Every event but progress and layers, of all attempts, without what nobody looks at
            here (`_slim`); the last `MAX_EVENTS`.
        attempts: How often it was started.
        progress: The last progress of this attempt.
        share: How much of the whole job is done, in this attempt; it never falls. None where that
            is not known.
        stage_since: When the stage under way began, by its first progress, and ``stage_from`` what
            was done then; together with ``progress_time`` they give the rate.
        lock: Who runs it, as of the last look.
    """

    job: Job
    state: State = State.QUEUED
    lock: LockState = field(default_factory=lambda: LockState(held=False))
    history: list[TimedEvent] = field(default_factory=list)
    seq: int = 0
    attempts: int = 0
    ahead: tuple[str, ...] = ()
    begun: float | None = None
    ended: float | None = None
    end: events.Event | None = None
    progress: events.Progress | None = None
    progress_time: float = 0.0
    share: float | None = None
    parts: tuple[Part, ...] = ()
    stage_since: float = 0.0
    stage_from: int = 0
    memory: int | None = None

    def last(self, kind: type[E]) -> E | None:
        """The last event of one type."""
        for timed in reversed(self.history):
            if isinstance(timed.event, kind):
                return timed.event
        return None

    def all(self, kind: type[E]) -> list[E]:
        """Every event of one type."""
        return [timed.event for timed in self.history if isinstance(timed.event, kind)]

    @property
    def title(self) -> str:
        """What it does, in a few words; of its adapters those count that can be used."""
        checked, found = self.last(events.Checked), self.last(events.AdaptersFound)
        if checked is not None:
            return counted_title(self.job.info.title, checked.good)
        if found is not None:
            return counted_title(self.job.info.title, len(found.names))
        return self.job.info.title

    @property
    def rate(self) -> float | None:
        """Units of the stage a second."""
        if self.progress is None or self.progress_time <= self.stage_since:
            return None
        done = self.progress.done - self.stage_from
        return done / (self.progress_time - self.stage_since) if done > 0 else None

    @property
    def eta(self) -> float | None:
        """Seconds that the stage under way still takes, at its rate, as of its last progress."""
        if self.progress is None or not self.rate:
            return None
        return (self.progress.total - self.progress.done) / self.rate

    @property
    def silent_for(self) -> float | None:
        """Seconds since the process last said that it lives; None where that is no news."""
        if self.state.is_over or self.lock.heartbeat is None:
            return None
        silent = time.time() - self.lock.heartbeat
        return silent if silent > SILENT_SECONDS else None

    @property
    def error(self) -> dict[str, Any] | None:
        """What went wrong: what, where, expected, found, remedy."""
        return self.end.error if isinstance(self.end, events.Failed) else None

    @property
    def outputs(self) -> list[str]:
        """What the job has written so far."""
        if isinstance(self.end, events.Finished):
            return list(self.end.outputs)
        return sorted(written_paths(self.history))

    @property
    def spectra(self) -> str | None:
        """Where spectra can be read now: the layers that are done, or all."""
        ready, begun = self.last(events.SpectraReady), self.last(events.SpectraBegun)
        if begun is not None and (ready is None or ready.path != begun.path):
            return begun.partial if os.path.isdir(begun.partial) else begun.path
        return None if ready is None else ready.path

    @property
    def can_resume(self) -> bool:
        """Whether starting it again makes sense."""
        return self.state in (State.VANISHED, State.CANCELLED, State.FAILED)

    def take(self, timed: TimedEvent) -> None:
        """Take one more event."""
        self.seq, event = timed.seq, timed.event
        match event:
            case events.Queued():
                if not event.ahead:
                    self._forget_attempt()
                self.ahead = event.ahead
            case events.Started():
                self._forget_attempt()
                self.parts = parts_of(event.recipe)
                self.attempts += 1
                self.begun = timed.time
            case events.Progress():
                self._progress(event, timed.time)
                return
            case events.LayerDone():
                self._progress(events.Progress("build", event.done, event.total, event.layer),
                               timed.time)  # fmt: skip
                return
            case events.Finished() | events.Failed() | events.Cancelled():
                self.end, self.ended, self.ahead = event, timed.time, ()
        self.history.append(timed._replace(event=_slim(event)))
        del self.history[:-MAX_EVENTS]

    def judge(self, lock: LockState) -> None:
        """Say how the job stands, by its events and its lock."""
        self.lock = lock
        if self.end is not None:
            self.state = _ENDS[self.end.type]
        elif not lock.held and lock.ended in _ENDS:  # the disk had no room for the last event
            self.state = _ENDS[lock.ended]
        elif not lock.is_here:
            self.state = State.ELSEWHERE
        elif not lock.held:
            self.state = State.VANISHED
        else:
            self.state = State.RUNNING if self.begun is not None else State.QUEUED
        self.memory = None
        if self.state is State.RUNNING and lock.identity is not None:
            self.memory = resident_bytes(lock.identity)

    def _forget_attempt(self) -> None:
        self.begun = self.ended = self.end = self.progress = self.share = None
        self.ahead = ()

    def _progress(self, event: events.Progress, at: float) -> None:
        same = self.progress is not None and self.progress.stage == event.stage
        if not same or (self.progress is not None and event.done < self.progress.done):
            self.stage_since, self.stage_from = at, event.done
        self.progress, self.progress_time = event, at
        share = share_of(self.parts, event)
        if share is not None:
            self.share = max(share, self.share or 0.0)


class JobWatcher:
    """All jobs of a store, for a screen: ``poll()`` as often as once a second costs little.

    A job that is over is looked at again only when its events file grows (it was resumed).
    """

    def __init__(self, store: JobStore) -> None:
        self.store = store
        self.views: dict[str, JobView] = {}
        self._readers: dict[str, EventReader] = {}

    def poll(self) -> list[JobView]:
        """The views that have changed since the last call, by their order of creation.

        Jobs that were removed disappear from ``views``.
        """
        jobs = self.store.jobs()
        alive = {job.id for job in jobs}
        self.views = {k: v for k, v in self.views.items() if k in alive}
        self._readers = {k: v for k, v in self._readers.items() if k in alive}
        return [view for job in jobs if (view := self._look(job)) is not None]

    def __getitem__(self, job_id: str) -> JobView:
        return self.views[job_id]

    def _look(self, job: Job) -> JobView | None:
        new = job.id not in self.views
        view = self.views.setdefault(job.id, JobView(job))
        reader = self._readers.setdefault(job.id, EventReader(job.events_path))
        queued = view.last(events.Queued)
        changed = _take_all(view, reader)
        if changed and not new and view.last(events.Queued) is not queued:
            view.job = self.store.renewed(job)  # a resume says who started it
        if not changed and not new and view.end is not None:
            return None
        before = (view.state, view.lock, view.memory)
        if _judge(view, reader):
            changed = True
        # A heartbeat alone is no change that anybody sees.
        still = (view.state, replace(view.lock, heartbeat=before[1].heartbeat), view.memory)
        return view if changed or new or still != before else None


def look(job: Job) -> JobView:
    """A job as it stands now."""
    view, reader = JobView(job), EventReader(job.events_path)
    _take_all(view, reader)
    _judge(view, reader)
    return view


def follow(
    job: Job, *, interval: float = FOLLOW_SECONDS, sleep: Callable[[float], None] = time.sleep
) -> Iterator[tuple[JobView, list[TimedEvent]]]:
    """The job with what is new of it, each time something is, until it is over."""
    view, reader = JobView(job), EventReader(job.events_path)
    first = True
    while True:
        before = view.state
        timed_events: list[TimedEvent] = []
        _take_all(view, reader, timed_events)
        _judge(view, reader, timed_events)
        if timed_events or first or view.state is not before:
            yield view, timed_events
        first = False
        if view.state.is_over:
            return
        sleep(interval)


def written_paths(timed_events: list[TimedEvent]) -> set[str]:
    """The outputs that are in their places, by the events of all attempts.

    What was pushed is there by its address on the Hub.
    """
    kinds = (
        *(events.SubspaceWritten, events.Exported, events.Merged, events.Resized),
        *(events.Converted, events.TaskAdded, events.TasksRemoved, events.Pulled),
    )
    written = {t.event.path for t in timed_events if isinstance(t.event, kinds)}
    return written | {t.event.to for t in timed_events if isinstance(t.event, events.Pushed)}


def _slim(event: events.Event) -> events.Event:
    """An event without its long parts: those stand in the job's files, and jobs may be many."""
    match event:
        case events.Started():
            return replace(event, recipe="")
        case events.SubspaceWritten():
            return replace(event, figures=_short(event.figures, keep=("before", "quantization")))
        case events.Merged():
            return replace(event, report=_short(event.report, keep=("kept",)))
        case events.Resized():
            return replace(event, report=_short(event.report))
        case events.Evaluated():
            return replace(event, report=_short(event.report, keep=("mean", "worst", "control")))
    return event


def _short(figures: dict[str, Any], keep: tuple[str, ...] = ()) -> dict[str, Any]:
    """Figures without tables and lists; how long a list was stands under ``<name>_count``."""
    counts = {f"{k}_count": len(v) for k, v in figures.items() if isinstance(v, list)}
    kept = {k: v for k, v in figures.items() if k in keep or not isinstance(v, dict | list)}
    return {**kept, **counts}


def _take_all(view: JobView, reader: EventReader, into: list[TimedEvent] | None = None) -> bool:
    changed = False
    while new := reader.poll():
        changed = True
        for timed in new:
            view.take(timed)
        if into is not None:
            into += new
    return changed


def _judge(view: JobView, reader: EventReader, into: list[TimedEvent] | None = None) -> bool:
    """Judge by the lock; events that came just before it was let go are read first."""
    lock = view.job.standing()
    changed = not lock.held and view.end is None and _take_all(view, reader, into)
    view.judge(lock)
    return changed
