"""Runs a command's recipe: events to the screen and a file, signals, dry runs."""

from __future__ import annotations

import errno
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from vlora_engine.errors import ParameterError, StorageError
from vlora_engine.utils.memory import limit, smaller
from vlora_engine.utils.output_checks import check_output, refuse_inside_output
from vlora_engine.utils.run_context import RunContext
from vlora_tui.cli.options import Writing
from vlora_tui.cli.output import Output
from vlora_tui.cli.progress import Watcher, line_about
from vlora_tui.pipeline import events
from vlora_tui.pipeline.inputs import require_apart_from
from vlora_tui.pipeline.publish import push_place
from vlora_tui.pipeline.tasks import in_place as hold_in_place
from vlora_tui.recipe.model import Recipe, as_tables
from vlora_tui.recipe.resolve import resolve
from vlora_tui.utils.formatting import escaped_toml, plural, size

if TYPE_CHECKING:
    from vlora_engine.spectra.tables import Spectra
    from vlora_tui.pipeline.run import Run


def execute(
    recipe: Recipe,
    out: Output,
    *,
    force: bool = False,
    events_file: Path | None = None,
    make: Callable[..., Run] | None = None,
    story: Callable[[events.Event], None] | None = None,
) -> Watcher:
    """Run a recipe whose paths are absolute; return what was told on the way.

    Args:
        make: What kind of run; by default one that does all that the recipe says.
        story: Told every event but progress, with no bars on the screen: it may print.

    Raises:
        VLoRAError: What stopped it.
    """
    from vlora_tui.pipeline.run import Run

    watcher = Watcher(out)
    listeners: list[Any] = [watcher]
    if events_file is not None:
        check_events_file(events_file, recipe)
        listeners.append(open_events(events_file))

    def emit(event: events.Event) -> None:
        for listener in listeners:
            listener(event)
        if story is not None and not isinstance(event, events.Progress | events.LayerDone):
            watcher.pause()
            story(event)

    with watcher, stop_on_signals(out) as stop:
        run = (make or Run)(recipe, emit, force=force, cancelled=stop.is_set)
        try:
            run.execute()
        finally:
            for listener in listeners[1:]:
                listener.close()
                if listener.dropped:
                    lost = plural(listener.dropped, "event")
                    out.warn(f"{lost} could not be written to {events_file}")
    return watcher


def carry_out(recipe: Recipe, out: Output, writing: Writing) -> Watcher | None:
    """Run a recipe, or only show it or what it would do; what was told, if it was run."""
    if writing.print_recipe:
        in_force = replace(recipe, max_memory=smaller(recipe.max_memory, limit()))
        print(escaped_toml(resolve(in_force).to_toml()), end="")
        return None
    if writing.dry_run:
        if writing.events_file is not None:
            check_events_file(writing.events_file, recipe)
        dry_run(recipe, out, force=writing.force)
        return None
    return execute(recipe, out, force=writing.force, events_file=writing.events_file)


def measured(recipe: Recipe, out: Output, device: str) -> Spectra:
    """The spectra of a recipe's adapters: from the cache, or computed now."""
    from vlora_engine.spectra.tables import Spectra
    from vlora_tui.pipeline.run import SpectraRun

    watcher = execute(recipe, out, make=partial(SpectraRun, device=device))
    return Spectra.load(watcher.last(events.SpectraReady).path)


def execute_job(folder: Path, out: Output, *, lock: int | None = None) -> Watcher:
    """Run the job of this directory here, in its own process; return what was told on the way.

    Raises:
        VLoRAError: What stopped it.
    """
    from vlora_tui.jobs.runner import run_job

    watcher = Watcher(out)
    with watcher, stop_on_signals(out) as stop:
        run_job(folder, listen=watcher, cancelled=stop.is_set, lock=lock)
    return watcher


def open_events(path: Path) -> events.EventWriter:
    """The file that events are appended to.

    Raises:
        StorageError: It cannot be opened.
    """
    try:
        return events.EventWriter(path)
    except OSError as error:
        unread = error.errno == errno.ENXIO
        reason = "nobody reads this pipe" if unread else error.strerror or error
        raise StorageError(
            f"The events file cannot be written: {reason}.",
            where=path,
            remedy="start what reads it first, or name a file" if unread else "name another file",
        ) from None


def check_events_file(path: Path, recipe: Recipe, spectra: Path | None = None) -> None:
    """Refuse a place for events before anything is made there.

    Args:
        spectra: Where the run puts spectra, if they are its output.

    Raises:
        ParameterError: It is in an output, an adapter or a subspace, or holds something else.
        StorageError: It is a directory.
    """
    from vlora_tui.jobs.store import outputs_of

    refuse_inside_output(path)
    for output in outputs_of(recipe, spectra):
        pattern = re.escape(os.path.realpath(output)).replace(re.escape("{task}"), "[^/]+")
        if re.match(rf"{pattern}(/|\Z)", os.path.realpath(path)):
            raise ParameterError(
                "The file for events would lie in an output.",
                where=path,
                found=f"it is in {output}",
                remedy="choose a place beside it",
            )
    if path.is_dir():
        raise StorageError(
            "The events file cannot be written: it is a directory.",
            where=path,
            remedy="name another file",
        )
    if path.is_file() and not events.is_events_file(path):
        raise ParameterError(
            "The file for events holds something else; it was left as it is.",
            where=path,
            expected="a new file, or events as JSON lines, to append to",
            remedy="name another file",
        )


@contextmanager
def stop_on_signals(out: Output) -> Iterator[threading.Event]:
    """SIGTERM and the first Ctrl-C ask for a stop after this module; a second Ctrl-C interrupts."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # signals reach the main thread alone
        return

    def ask(number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT and stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        with suppress(OSError):  # nobody may be there to read it, or no room for it
            out.once("stopping after this module; press Ctrl-C again to stop at once")

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            with suppress(ValueError, TypeError):
                signal.signal(number, handler)


@contextmanager
def in_place(subspace: str, out: Output, *, no_wait: bool, dry_run: bool = False) -> Iterator[None]:
    """Keep other commands from a subspace while one changes it; a dry run changes nothing.

    What killed commands left there is swept first.

    Raises:
        ConflictError: Another command has it, and ``no_wait``.
    """
    if dry_run:
        yield
        return
    with hold_in_place(subspace, wait=not no_wait, tell=out.warn):
        yield


def dry_run(recipe: Recipe, out: Output, *, force: bool = False, also: Sequence[Path] = ()) -> None:
    """Refuse what the run would refuse, and say what would be written; write nothing.

    Args:
        also: What the command writes besides what its recipe says.

    Raises:
        VLoRAError: What the run would be refused for.
    """
    from vlora_tui.pipeline.rehearsal import rehearse

    resolved = resolve(recipe)
    with Watcher(out) as watcher:
        found = rehearse(resolved, RunContext(watcher.on_progress), force=force)
    collection, outputs = found.collection, [*found.outputs, *also]
    require_apart_from(also, collection.places.values())
    pushes = [
        {"path": str(push_place(push, resolved, collection)), "to": str(push.address)}
        for push in resolved.pushes
    ]
    for path in also:
        check_output(path, force=force)
    for name, error in found.left_out.items():
        out.warn(f"{name} would be left out: {error.what}")
    for finding in found.findings:
        out.note(line_about(events.Remark.of(finding)) or "")
    nbytes = sum(source.nbytes for source in collection.adapters.values())
    out.json(
        "dry-run",
        {
            "dry_run": True,
            "recipe": as_tables(resolved),
            "tasks": collection.tasks,
            "left_out": list(found.left_out),
            "findings": [finding.as_dict() for finding in found.findings],
            "input_bytes": nbytes,
            "outputs": [str(path) for path in outputs],
            "pushes": pushes,
        },
    )
    read = f" ({size(nbytes)})" if nbytes else ""
    tasks = plural(len(collection.tasks), "task")
    out.text(f"Would read {tasks}{read}: {', '.join(collection.tasks)}")
    for path in outputs:
        out.text(f"Would write {path}")
        out.essence(str(path))
    for row in pushes:
        out.text(f"Would push {row['path']} to {row['to']}")
        out.essence(row["to"])
    out.note("dry run: nothing was written" + (", nothing was sent" if pushes else ""))
