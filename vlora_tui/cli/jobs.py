"""``jobs``: recipes that run in processes of their own, from the shell."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from vlora_engine.errors import ParameterError, told
from vlora_engine.utils.device import require_device
from vlora_engine.utils.reading import read_text
from vlora_tui.cli import options as o
from vlora_tui.cli.app import new_typer
from vlora_tui.cli.bundles import Command, unbundle
from vlora_tui.cli.declare import argument, option
from vlora_tui.cli.errors import FAILED, INTERRUPTED, OK
from vlora_tui.cli.output import Output, is_terminal
from vlora_tui.jobs import control
from vlora_tui.jobs.store import Job, JobStore, is_spectra
from vlora_tui.jobs.watch import JobView, State, follow, look
from vlora_tui.pipeline import events
from vlora_tui.recipe.reader import load_recipe
from vlora_tui.utils.formatting import how_much, plural, size, stage_words

JobId = Annotated[str, argument("Job id (its start or end is enough), or: last.", metavar="JOB")]
StateDir = Annotated[Path | None, option("--state-dir", "Where jobs are kept.", metavar="DIR")]
Gone = Annotated[bool, option("--gone", "The machine it ran on is gone for good.")]

jobs = new_typer(invoke_without_command=True)


def _command(name: str) -> Callable[[Command], Command]:
    """Makes a function the command ``jobs NAME``."""

    def register(function: Command) -> Command:
        jobs.command(name)(unbundle(function))
        return function

    return register


@jobs.callback()
@unbundle
def _jobs(out: Output, ctx: typer.Context, state_dir: StateDir = None) -> None:
    """Jobs are recipes that run in processes of their own and outlive the terminal.

    Without a command they are listed.
    """
    if ctx.invoked_subcommand is None:
        list_jobs(out, state_dir)
    else:  # what stands before the command holds for it, as if it stood behind it
        given = {name: value for name, value in ctx.params.items() if value}
        ctx.default_map = {ctx.invoked_subcommand: given}


@_command("list")
def list_jobs(out: Output, state_dir: StateDir = None) -> None:
    """List all jobs, the oldest first."""
    store = JobStore.open(state_dir, write=False)
    views = [look(job) for job in store.jobs()]
    out.json("jobs", {"state_dir": str(store.state_dir), "jobs": [job_data(v) for v in views]})
    if not views:
        out.note(f"no jobs in {store.state_dir}")
        return
    out.table(
        ("job", "state", "what", "progress", "started"),
        [(v.job.id, v.state, v.title, progress_text(v), _time(v.job.info.created)) for v in views],
    )
    for view in views:
        out.essence(view.job.id)
    for view in views:
        if view.state is State.VANISHED:
            how = view.job.command("resume")
            out.note(f"{view.job.id} ended without reporting a result; resume: {how}")


@_command("show")
def show(out: Output, job: JobId, state_dir: StateDir = None) -> None:
    """Tell all that is known of a job."""
    view = look(JobStore.open(state_dir, write=False).find(job))
    out.json("job", job_data(view, whole=True))
    for line in job_lines(view):
        out.text(line)
    out.essence(view.state)


@_command("start")
def start(
    out: Output,
    recipe: Annotated[str, argument("A file; inputs alone ask for spectra.", metavar="RECIPE")],
    output: Annotated[
        Path | None, option("-o", "--output", "Where spectra go; else the cache.", metavar="DIR")
    ] = None,
    device: Annotated[
        str | None, option("--device", "For spectra: auto, cpu, cuda or cuda:N.")
    ] = None,
    force: o.Force = False,
    state_dir: StateDir = None,
) -> None:
    """Start a recipe as a job, and leave it running."""
    found = load_recipe(recipe)
    if not is_spectra(found) and (output is not None or device is not None):
        raise ParameterError(
            "A recipe says itself where it writes and on what it runs.",
            where=recipe,
            expected="-o and --device only with a recipe of inputs alone",
        )
    named = found.compress.device if found.compress is not None else "auto"
    require_device(device or named)
    store = JobStore.open(state_dir)
    job = control.start(
        store,
        found,
        spectra=None if output is None else output.expanduser().absolute(),
        device=device,
        force=force,
    )
    _show_started(out, job, "started")


@_command("follow")
def follow_job(out: Output, job: JobId, state_dir: StateDir = None) -> None:
    """Show what a job does until it is over; the exit code is the job's.

    Ctrl-C ends the looking on, not the job.
    """
    found = JobStore.open(state_dir, write=False).find(job)
    try:
        view = _follow(found, out)
    except KeyboardInterrupt:
        out.note(f"the job continues; follow it again: {found.command('follow')}")
        raise typer.Exit(INTERRUPTED) from None
    out.json("job", job_data(view, whole=True))
    for line in _ending(view):
        out.text(line)
    out.essence(view.state)
    raise typer.Exit(exit_code(view))


@_command("cancel")
def cancel(
    out: Output,
    job: JobId,
    discard: Annotated[
        bool | None, option("--discard/--keep", "What to do with the finished modules.")
    ] = None,
    no_wait: Annotated[bool, option("--no-wait", "Do not wait for it to stop.")] = False,
    state_dir: StateDir = None,
) -> None:
    """Stop a job after this module. What is built is kept for a resume, or discarded."""
    found = JobStore.open(state_dir).find(job)
    if discard is None:
        discard = _ask_discard(found, as_json=out.as_json)
    control.cancel(found, discard=discard)
    if no_wait:
        view = look(found)
    else:
        view = control.wait(found, tick=lambda: out.once("stopping after this module"))
    out.json("job", job_data(view))
    if not view.state.is_over:
        out.text(f"{found.id} was asked to stop")
    elif isinstance(view.end, events.Cancelled):
        out.text(f"{found.id} {view.state}: {view.end.text}")
    else:
        out.text(f"{found.id} had {view.state} before it could stop")
    if view.state.is_over and found.kept_layers():
        out.note(f"resume: {found.command('resume')}")
    out.essence(view.state)


@_command("resume")
def resume(out: Output, job: JobId, gone: Gone = False, state_dir: StateDir = None) -> None:
    """Go on with a job that vanished, was cancelled or failed, from the layers that are built."""
    store = JobStore.open(state_dir)
    found = store.find(job)
    for remark in control.resume_notes(found):
        out.warn(remark)
    layers = found.kept_layers()
    control.resume(store, found, gone=gone)
    _show_started(out, found, f"resumed with {plural(layers, 'module')}" if layers else "resumed")


@_command("remove")
def remove(
    out: Output,
    job: Annotated[list[str], argument("Their ids.", metavar="JOB...")],
    gone: Gone = False,
    state_dir: StateDir = None,
) -> None:
    """Delete jobs that are over, and the layers of those that never finished.

    What a job has written to its outputs stays.
    """
    store = JobStore.open(state_dir)
    found = {entry.id: entry for entry in [store.find(word) for word in job]}
    for entry in found.values():
        layers = entry.kept_layers()
        control.remove(store, entry, gone=gone)
        with_it = f" and {plural(layers, 'module')} that it had built" if layers else ""
        out.text(f"removed {entry.id}{with_it}")
        out.essence(entry.id)
    out.json("jobs-removed", {"removed": list(found)})


def job_data(view: JobView, *, whole: bool = False) -> dict[str, Any]:
    """A job for a program; ``whole`` with its recipe and the end of its log."""
    job, info, lock = view.job, view.job.info, view.lock
    data: dict[str, Any] = {
        "id": job.id,
        "state": view.state.value,
        "kind": info.kind,
        "title": view.title,
        "created": info.created,
        "started": view.begun,
        "ended": view.ended,
        "attempts": view.attempts,
        "device": info.device,
        "waits_for": list(view.ahead) if view.state is State.QUEUED else [],
        "progress": None,
        "outputs": view.outputs,
        "error": None if view.error is None else told(view.error),
        "can_resume": view.can_resume,
        "kept_layers": job.kept_layers() if view.can_resume else None,
        "host": lock.identity.host if lock.identity else info.host,
        "pid": lock.identity.pid if lock.identity and lock.held else None,
        "heartbeat": lock.heartbeat,
        "memory": view.memory,
        "folder": str(job.folder),
    }
    if view.progress is not None and view.state is not State.FINISHED:
        at = view.progress
        data["progress"] = {
            "stage": at.stage,
            "done": at.done,
            "total": at.total,
            "detail": at.detail,
            "rate": view.rate,
            "eta": None if view.state.is_over else view.eta,
        }
    if whole:
        data["writes"] = list(info.outputs)
        data["spectra"] = view.spectra
        data["recipe"] = _text(job.recipe_path)
        data["log"] = job.log_tail()
    return data


def job_lines(view: JobView) -> list[str]:
    """The same for people."""
    job, lock = view.job, view.lock
    lines = [
        f"job      {job.id}",
        f"state    {state_text(view)}",
        f"what     {view.title}",
        f"created  {_time(job.info.created)}"
        + (f", started {view.attempts} times" if view.attempts > 1 else ""),
    ]
    if lock.held and lock.identity is not None:
        memory = f", {size(view.memory)} of memory" if view.memory else ""
        lines.append(f"process  {lock.identity.pid} on {lock.identity.host}{memory}")
    if view.silent_for is not None:
        lines.append(f"         silent for {view.silent_for:.0f} s: stopped, or its disk is full")
    lines += [f"writes   {path}" for path in job.info.outputs]
    if view.state is not State.FINISHED:
        lines += [f"written  {path}" for path in view.outputs]
    lines += _ending(view)
    lines.append(f"folder   {job.folder}")
    if view.state in (State.FAILED, State.VANISHED):
        lines += [f"log      {line}" for line in job.log_tail(8)]
    return lines


def state_text(view: JobView) -> str:
    """How a job stands, in a few words."""
    if view.state is State.QUEUED:
        return f"queued, after {', '.join(view.ahead)}" if view.ahead else "queued, starting"
    if view.state is State.VANISHED:
        return "vanished: its process is gone and reported no result"
    if view.state is State.ELSEWHERE:
        host = view.lock.identity.host if view.lock.identity else view.job.info.host
        return f"on another machine ({host}); only watched here"
    progress = progress_text(view)
    return f"{view.state}, {progress}" if progress and not view.state.is_over else view.state


def progress_text(view: JobView) -> str:
    """How far a job is: ``building 5/12, 8 s left``; empty where nothing is to be said."""
    at = view.progress
    if at is None or view.state is State.FINISHED:
        return ""
    left = f", {_seconds(view.eta)} left" if view.eta and not view.state.is_over else ""
    return f"{stage_words(at.stage)} {how_much(at.stage, at.done, at.total)}{left}"


def exit_code(view: JobView) -> int:
    """The code that the job's own process ended with, as far as it can be told."""
    if isinstance(view.end, events.Failed):
        return view.end.exit_code
    return {State.FINISHED: OK, State.CANCELLED: INTERRUPTED}.get(view.state, FAILED)


def _follow(job: Job, out: Output) -> JobView:
    from vlora_tui.cli.progress import Watcher

    with Watcher(out) as watcher:
        for view, new_events in follow(job):  # noqa: B007  # the last one is what is asked for
            for timed in new_events:
                if isinstance(timed.event, events.Queued) and timed.event.ahead:
                    ahead = ", ".join(timed.event.ahead)
                    out.note(f"waiting for {timed.event.device}: {ahead} comes first")
                watcher(timed.event)
    return view


def _ending(view: JobView) -> list[str]:
    """How it ended, and what can be done now."""
    resume = f"         resume: {view.job.command('resume')}"
    built = view.job.kept_layers() if view.can_resume else 0
    lines = []
    match view.end:
        case events.Finished():
            lines.append(f"finished in {_seconds(view.end.seconds)}")
            lines += [f"         {path}" for path in view.end.outputs]
        case events.Failed():
            error = view.end.error
            lines.append(f"failed   {error.get('what', '')}")
            lines += [
                f"         {label}: {error[key]}"
                for key, label in (("where", "where"), ("found", "found"), ("remedy", "fix"))
                if error.get(key)
            ]
        case events.Cancelled():
            lines.append(f"cancelled {view.end.text}")
    if view.state is State.VANISHED:
        lines.append(f"vanished with {plural(built, 'module')} built" if built else "vanished")
    if view.state in (State.VANISHED, State.CANCELLED):
        lines.append(resume)
    return lines


def _ask_discard(job: Job, *, as_json: bool) -> bool:
    """Ask what becomes of the layers, where there is somebody to ask; else they are kept."""
    if as_json or not (is_terminal(sys.stdin) and is_terminal(sys.stderr)):
        return False
    layers = job.kept_layers()
    what = f"the {plural(layers, 'module')} that are built" if layers > 1 else "what is built"
    return not typer.confirm(f"Keep {what}, for a resume?", default=True, err=True)


def _show_started(out: Output, job: Job, how: str) -> None:
    out.json("job", job_data(look(job)))
    out.text(f"{how}: {job.id}")
    out.essence(job.id)
    out.note(f"follow: {job.command('follow')}")


def _time(seconds: float | None) -> str:
    if seconds is None:
        return ""
    then = datetime.fromtimestamp(seconds)
    today = time.time() - seconds < 72_000
    return then.strftime("%H:%M:%S" if today else "%Y-%m-%d %H:%M")


def _seconds(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 9.5 else f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def _text(path: Path) -> str:
    try:
        return read_text(path)
    except (OSError, UnicodeDecodeError):
        return ""
