"""Starts, cancels, resumes and removes jobs. The work itself is in `runner`."""

from __future__ import annotations

import glob
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from vlora_engine import __version__
from vlora_engine.errors import InputError, ParameterError, StorageError
from vlora_engine.utils.files import write_file
from vlora_engine.utils.locks import writing
from vlora_engine.utils.outputs import sole_writer
from vlora_engine.utils.partials import output_of, partial_path
from vlora_tui.jobs.devices import DeviceQueue, device_key
from vlora_tui.jobs.identity import send
from vlora_tui.jobs.joblock import HEARTBEAT_SECONDS, JobLock
from vlora_tui.jobs.store import Job, JobStore, goes_first, torch_version
from vlora_tui.jobs.watch import FOLLOW_SECONDS, JobView, State, look
from vlora_tui.jobs.worker import WarmWorker
from vlora_tui.pipeline import events
from vlora_tui.pipeline.actions import Action
from vlora_tui.recipe.model import Recipe

KEEP, DISCARD = "keep", "discard"
LIMIT_BYTES = 1_000_000_000
START_SECONDS = 20.0  # so long a new process may take until it hears signals


class JobStateError(InputError):
    """The job is not in a state in which that can be done."""


def start(
    store: JobStore,
    recipe: Recipe,
    *,
    spectra: Path | None = None,
    device: str | None = None,
    force: bool = False,
    worker: WarmWorker | None = None,
    action: Action | None = None,
) -> Job:
    """Make a job of a recipe and start its process; a recipe of inputs alone computes spectra.

    Args:
        spectra: Where spectra go; None is the cache.
        device: For spectra; a build's stands in its recipe.
        force: Replace outputs that exist.
        worker: Runs the job if it is ready and the device is free; else a new process does.
        action: What is done instead of the recipe (`start_action`).

    Raises:
        NotFoundError, ParameterError: The inputs are not there, or a running job writes there.
        StorageError: The state directory refuses, or no process can be started.
    """
    prune(store)
    job, lock = store.create(recipe, spectra=spectra, device=device, force=force, action=action)
    try:
        _require_own_outputs(store, job)
    except BaseException:
        store.delete(job)
        lock.release()
        raise
    _launch(job, lock, worker)
    return job


def start_action(store: JobStore, action: Action, *, force: bool = False) -> Job:
    """Make a job of an action and start its process; raises as `start`."""
    return start(store, action.recipe, force=force, action=action)


def resume(store: JobStore, job: Job, *, gone: bool = False) -> Job:
    """Start a job again that vanished, was cancelled or failed; it keeps its id and its layers.

    Args:
        gone: The job's machine is known to be gone for good.

    Raises:
        JobStateError: It runs, has finished, or belongs to another machine.
    """
    view = look(job)
    if view.state is State.FINISHED:
        raise JobStateError("The job has finished.", where=job.id, remedy="start a new one")
    _require_over(view, "resumed", gone=gone)
    _require_own_outputs(store, job)
    lock = JobLock.take(job.lock_path)
    lock.clear()
    with suppress(OSError):
        (job.folder / "cancel").unlink(missing_ok=True)
    try:
        job = store.take_over(job)
    except BaseException:
        lock.release()
        raise
    _launch(job, lock)
    return job


def resume_notes(job: Job) -> list[str]:
    """Why a resume would begin anew instead of going on: other versions make other bytes."""
    notes = []
    for name, then, now in (
        ("vlora-tui", job.info.program, __version__),
        ("torch", job.info.torch, torch_version()),
    ):
        if then != now and job.kept_layers():
            notes.append(f"the modules were built by {name} {then}, not {now}: it begins anew")
    return notes


def cancel(job: Job, *, discard: bool = False) -> None:
    """Ask a job to stop at the next layer; `wait` waits until it has.

    Its last event says that it stopped and whether what was built is kept for `resume`. A job
    that is over without having finished has its layers discarded at once, if that is asked.

    Raises:
        JobStateError: It has finished, is another machine's, or cannot be told for sure.
    """
    view = look(job)
    if view.state is State.ELSEWHERE:
        raise _elsewhere(view, "cancelled")
    if view.state.is_over:
        if not discard or view.state is State.FINISHED:
            raise JobStateError(f"The job is over: {view.state}.", where=job.id)
        _discard_now(job, view)
        return
    write_file(job.folder / "cancel", DISCARD if discard else KEEP)
    end = time.monotonic() + START_SECONDS
    while not (lock := job.standing()).can_be_signalled:
        if not lock.held:
            break  # it ended by itself
        if lock.identity is not None or time.monotonic() > end:
            raise JobStateError(
                "The job's lock is held, but not by the process that it names; nothing was sent.",
                where=job.lock_path,
                remedy="it may run in another container: cancel it there",
            )
        time.sleep(0.02)
    if lock.identity is not None and send(lock.identity, signal.SIGTERM):
        send(lock.identity, signal.SIGCONT)  # a stopped process hears nothing until it goes on


def wait(
    job: Job, timeout: float | None = None, *, tick: Callable[[], None] = lambda: None
) -> JobView:
    """Wait until the job is over and its process has let go; returns how it stands then."""
    end = None if timeout is None else time.monotonic() + timeout
    while True:
        view = look(job)
        over = view.state.is_over and not view.lock.held
        if over or (end is not None and time.monotonic() > end):
            return view
        tick()
        time.sleep(FOLLOW_SECONDS / 4)


def remove(store: JobStore, job: Job, *, gone: bool = False) -> None:
    """Delete a job that is over, and the layers it left; what it wrote stays.

    Raises:
        JobStateError: It runs, or belongs to another machine and not ``gone``.
    """
    view = look(job)
    _require_over(view, "removed", gone=gone)
    with JobLock.take(job.lock_path):
        discard_partial(job)
        _discard_half_saved(view)
        store.delete(job)


def prune(store: JobStore, limit: int = LIMIT_BYTES) -> list[Job]:
    """Delete finished jobs, the oldest first, until all jobs together keep ``limit`` bytes.

    A job that can still be resumed stays, as its layers would be orphans.
    """
    sizes = list(store.sizes())
    total, gone = sum(nbytes for _, nbytes in sizes), []
    for job, nbytes in sizes:
        if total <= limit:
            break
        view = look(job)
        if not view.state.is_over or view.state is State.VANISHED or job.partial() is not None:
            continue
        with suppress(InputError, StorageError):
            remove(store, job)
            gone.append(job)
            total -= nbytes
    return gone


def discard_partial(job: Job) -> int:
    """Delete what an unfinished job has built; the number of its layers.

    Spectra that another process goes on with meanwhile stay.
    """
    folder = job.partial()
    if folder is not None:
        count = job.kept_layers()
        with suppress(StorageError), sole_writer(folder, folder):
            shutil.rmtree(folder, ignore_errors=True)
            with suppress(InputError), writing(output_of(folder)):
                pass  # the lock that a killed job left goes too
            return count
    return 0


def layers(count: int) -> str:
    """``1 module was``, ``3 modules were``."""
    return "1 module was" if count == 1 else f"{count} modules were"


def _discard_now(job: Job, view: JobView) -> None:
    with JobLock.take(job.lock_path):
        count = discard_partial(job)
        _discard_half_saved(view)
        if view.state is State.VANISHED or count:
            text = f"The job was {view.state}. {layers(count)} discarded."
            _append_event(job, events.Cancelled(text, resumable=False))


def _discard_half_saved(view: JobView) -> None:
    """Delete the hidden beginnings of exports and merges that a killed job left.

    What is younger than the job's last sign of life is somebody else's.
    """
    if view.state is not State.VANISHED or view.lock.heartbeat is None:
        return
    with suppress(InputError, OSError):
        recipe = view.job.recipe()
        for path in [step.path for step in recipe.written]:
            for unfinished in _half_saved(Path(path)):
                if unfinished.stat().st_mtime < view.lock.heartbeat + HEARTBEAT_SECONDS:
                    shutil.rmtree(unfinished, ignore_errors=True)


def _half_saved(path: Path) -> Iterator[Path]:
    """The hidden beginnings of what a step writes to ``path``, or to folders in it."""
    for final, writer in ((path, "save"), (path, "convert"), (path / "{task}", "save")):
        pattern = glob.escape(str(partial_path(final, writer))).replace("{task}", "*")
        yield from map(Path, glob.glob(pattern, include_hidden=True))


def _launch(job: Job, lock: JobLock, worker: WarmWorker | None = None) -> None:
    """Start the job's process and hand the lock down to it."""
    device = device_key(job.info.device)
    queue = DeviceQueue(job.state_dir, device)
    is_free = queue.is_free()  # a job that has to wait does so without torch in its memory
    queue.enter(job.id, first=goes_first(job))
    _append_event(job, events.Queued(device))
    if worker is not None and is_free and worker.hand_over(job, lock):
        lock.release()
        return
    try:
        with job.log_path.open("ab") as log:
            process = subprocess.Popen(
                command(job, lock.descriptor),
                cwd=job.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                pass_fds=(lock.descriptor,),
            )
    except OSError as error:
        fault = StorageError(
            f"The job's process could not be started: {error.strerror or error}.", where=job.folder
        )
        _append_event(job, events.Failed(fault.as_dict()))
        raise fault from None
    finally:
        lock.release()
    # Somebody has to ask for the exit status of a child, or it stays as a zombie.
    threading.Thread(target=process.wait, name=f"job {job.id}", daemon=True).start()


def command(job: Job, descriptor: int) -> list[str]:
    """What runs a job; ``descriptor`` is its lock, handed down."""
    words = [sys.executable, "-m", "vlora_tui", "run", "--headless", str(job.recipe_path)]
    words += ["--events", str(job.events_path)]
    return [*words, "--job", str(job.folder), "--job-lock", str(descriptor)]


def _append_event(job: Job, event: events.Event) -> None:
    """Append an event in the job's name; the caller holds its lock."""
    with suppress(OSError):
        writer = events.EventWriter(job.events_path)
        writer(event)
        writer.close()


def _require_over(view: JobView, done: str, *, gone: bool) -> None:
    if view.state is State.ELSEWHERE and not (gone and not view.lock.held):
        raise _elsewhere(view, done)
    if not view.state.is_over and view.state is not State.ELSEWHERE:
        raise JobStateError(
            f"The job is {view.state}; it cannot be {done}.",
            where=view.job.id,
            remedy=f"`{view.job.command('cancel')}` first",
        )


def _elsewhere(view: JobView, done: str) -> JobStateError:
    host = view.lock.identity.host if view.lock.identity is not None else view.job.info.host
    if_gone = "if that machine is gone for good, add --gone"
    return JobStateError(
        f"The job belongs to another machine; it cannot be {done} here.",
        where=view.job.id,
        found=host,
        remedy=f"do it on {host}" + ("" if done == "cancelled" else f", or, {if_gone}"),
    )


def _require_own_outputs(store: JobStore, job: Job) -> None:
    """Refuse a job that writes where another one is going to, so that neither fails late."""
    outputs = {os.path.realpath(path) for path in job.info.outputs}
    for other in store.jobs():
        if other.id == job.id or not outputs & {os.path.realpath(p) for p in other.info.outputs}:
            continue
        if not look(other).state.is_over:
            raise ParameterError(
                "Another job is writing there.",
                where=", ".join(
                    sorted(outputs & {os.path.realpath(p) for p in other.info.outputs})
                ),
                found=f"job {other.id}",
                remedy="choose another output, or wait for that job",
            )
