"""``validate`` and ``benchmark``: is a subspace sound, and how fast is it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Annotated, Any

import typer

from vlora_engine.catalog.read import read_manifest
from vlora_engine.errors import ParameterError
from vlora_engine.utils.run_context import RunContext
from vlora_tui.cli import options as o
from vlora_tui.cli.declare import option
from vlora_tui.cli.errors import FOUND
from vlora_tui.cli.hub_inputs import fetch_first
from vlora_tui.cli.output import Output
from vlora_tui.cli.progress import Watcher
from vlora_tui.utils.formatting import plural, printable, times

REPEATS = 10
MOST_SWITCHES = 50
STAGE = "benchmark"
SECONDS = 0.5  # an operation is repeated no longer than this


def validate(out: Output, subspace: o.Subspace) -> None:
    """Check a subspace: checksums, index, shapes, finite figures, orthonormal bases.

    Exit code 3 if anything is wrong; notes are not.
    """
    from vlora_engine.doctor.subspace_check import check_subspace

    (subspace,) = fetch_first(out, subspace)
    with Watcher(out) as watcher:
        findings = check_subspace(subspace, progress=watcher.on_progress)
    wrong = [f for f in findings if f.severity != "note"]
    out.json(
        "validate", {"path": subspace, "ok": not wrong, "findings": [f.as_dict() for f in findings]}
    )
    for finding in findings:
        out.text(f"{finding.severity:<8} {finding.where}: {finding.what}")
        if finding.remedy:
            out.text(f"         fix: {finding.remedy}")
        out.essence(f"{finding.severity} {finding.code} {finding.where}")
    if wrong:
        out.note(plural(len(wrong), "finding"))
        raise typer.Exit(FOUND)
    checked = "shape" if any(f.code == "no-checksums" for f in findings) else "checksum, shape"
    out.text(f"sound: every {checked} and figure is as it should be")


def benchmark(
    out: Output,
    subspace: o.Subspace,
    repeats: Annotated[int, option("--repeats", "How often to repeat each operation.")] = (REPEATS),
) -> None:
    """Time what a subspace does: open, reconstruct a task, project an adapter; and its ratio.

    Medians of wall time on this machine; every checksum is verified when a file is first read. No
    operation is repeated for longer than half a second.
    """
    if repeats < 1:
        raise ParameterError("--repeats is at least 1.", found=str(repeats))
    (subspace,) = fetch_first(out, subspace)
    with Watcher(out) as watcher:
        rows = time_subspace(subspace, repeats, RunContext(watcher.on_progress))
    manifest = read_manifest(subspace)
    ratio = manifest.codec_ratio if manifest.peer else manifest.ratio
    out.json("benchmark", {"path": subspace, "operations": rows, "compression_ratio": ratio})
    out.table(
        ("operation", "median", "fastest", "slowest", "runs"),
        [
            (row["operation"], *(_time(row[key]) for key in ("median", "min", "max")), row["runs"])
            for row in rows
        ],
    )
    of = "A and B at 16 bit" if manifest.peer else "the originals as stored"
    out.text(f"compression ratio {times(ratio)} (of {of})")


def time_subspace(
    path: str, repeats: int = REPEATS, run: RunContext = RunContext()
) -> list[dict[str, Any]]:
    """The timings, in seconds."""
    from vlora_engine.shared_subspace import SharedSubspace

    manifest = read_manifest(path)
    if not manifest.tasks:
        raise ParameterError("The subspace has no task to time.", where=path)
    names = sorted(manifest.tasks)
    subspace = SharedSubspace.load(path, lazy=True)
    weights = subspace.reconstruct(names[0])  # the first touch reads and verifies the basis

    def first_task() -> None:
        SharedSubspace.load(path, lazy=True).reconstruct(names[0])

    once = _timed(lambda: subspace.reconstruct(names[0]))
    several = names[: max(1, min(len(names), MOST_SWITCHES, int(SECONDS / max(once, 1e-9))))]
    operations: list[tuple[str, Callable[[], Any]]] = [
        ("read the index", lambda: read_manifest(path)),
        ("open, and reconstruct one task", first_task),
        (f"reconstruct {printable(names[0])!r} again", lambda: subspace.reconstruct(names[0])),
        (
            f"switch through {plural(len(several), 'task')}",
            lambda: [subspace.reconstruct(name) for name in several],
        ),
        ("project an adapter", lambda: subspace.project(weights, "benchmark", None)),
    ]
    rows = []
    for done, (operation, function) in enumerate(operations):
        run.report(STAGE, done, len(operations), operation)
        rows.append(_measure(operation, function, repeats))
    return rows


def _measure(operation: str, function: Callable[[], Any], repeats: int) -> dict[str, Any]:
    first = _timed(function)  # it pays for caches and imports; what takes long is not done again
    runs = [first] if first > SECONDS else []
    while not runs or (len(runs) < repeats and sum(runs) < SECONDS):
        runs.append(_timed(function))
    return {
        "operation": operation,
        "median": statistics.median(runs),
        "min": min(runs),
        "max": max(runs),
        "runs": len(runs),
    }


def _timed(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def _time(seconds: float) -> str:
    if seconds < 1e-3:
        return f"{seconds * 1e6:.0f} us"
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"
