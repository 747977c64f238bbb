"""Building a subspace: time and peak memory, against both peers and against the limit."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from tests.benchmarks import made
from tests.benchmarks.measure import REPEATS, Bench, ChildFailed, Usage, ours
from tests.benchmarks.peers import LORASHARE, MISSING, VLORA, VLORA_STREAMING
from tests.benchmarks.table import Cell, Table, mb, ratio

K = 8
OUT = "{out}"
METHODS = {"flat": "flat", "columns": "directions", "delta": "directions"}  # method: its limit
LIMITS = {
    "flat": "limit: read + N x N Gram a side",
    "directions": "limit: read + product with k directions",
    "gram": "limit: read + Gram of min(N r, d) a side",
}
HEADINGS = ["", "cpu s", "less torch", "wall s", "peak MB", "/ limit", "best peer / it"]


def section(bench: Bench) -> list[Table]:
    """The build at a fixed k, and the build with spectra."""
    count = 16 if bench.quick else 100
    paths = made.adapters(bench, made.LARGE, count)
    return [_fixed(bench, paths), _with_spectra(bench, paths)]


def _fixed(bench: Bench, paths: list[Path]) -> Table:
    size = made.LARGE
    table = Table(
        f"build: {len(paths)} adapters of {size.modules} modules of {size.width}, "
        f"rank {size.rank}, fp32 ({mb(len(paths) * size.nbytes)} MB), k = {K}",
        HEADINGS,
    )
    limits = {kind: _limit(bench, kind, paths) for kind in LIMITS}
    peers = _peers(bench, paths, table)
    fastest = min((used.cpu for used in peers.values()), default=None)
    for kind, label in LIMITS.items():
        table.rows.append(_row(bench, label, limits[kind], limits[kind], None))
    for method, kind in METHODS.items():
        command = [*ours(), "compress", *paths, "-o", OUT, "-k", K, "--method", method]
        used = bench.run([str(part) for part in command], fresh=OUT)
        row = _row(bench, f"vlora-tui compress --method {method}", used, limits[kind], fastest)
        table.rows.append(row)
    for label, used in peers.items():
        table.rows.append(_row(bench, label, used, None, fastest))
    table.notes += [
        f"whole processes; importing torch ({bench.torch.cpu:.2f} s of CPU) is taken off all, "
        f"linear algebra on {bench.threads} thread(s)",
        "best peer / it: CPU seconds of the faster peer over this row's (goal: 5 for our methods)",
        "/ limit: flat against the N x N Gram, columns and delta against the k directions",
    ]
    return table


def _peers(bench: Bench, paths: list[Path], table: Table) -> dict[str, Usage]:
    """What the peers take; one that is missing or fails leaves a note in its place."""
    found: dict[str, Usage] = {}

    def attempt(label: str, measure: Callable[[], Usage]) -> None:
        try:
            found[label] = measure()
        except ChildFailed as reason:
            table.notes.append(f"{label}: {reason}")

    if VLORA.there:
        command = VLORA("compress", *paths, "-o", OUT, "-k", K)
        attempt("vlora compress", lambda: bench.run(command, fresh=OUT))
        streaming = [sys.executable, "-c", VLORA_STREAMING, OUT, str(K), *map(str, paths)]
        attempt("vlora streaming (Python)", lambda: bench.run(streaming, fresh=OUT))
    else:
        table.notes.append(f"{VLORA.name}: {MISSING}")
    if LORASHARE.there:
        share = LORASHARE("compress", *paths, "-o", OUT, "-k", K)
        attempt("lorashare compress", lambda: bench.run(share, fresh=OUT))
        table.notes.append("left out: lorashare's --layer-by-layer and --chunk-size, slower still")
    else:
        table.notes.append(f"{LORASHARE.name}: {MISSING}")
    return found


def _with_spectra(bench: Bench, paths: list[Path]) -> Table:
    target = 0.3
    table = Table(
        f"build with spectra: {len(paths)} adapters, k chosen for a worst error of {target}",
        HEADINGS,
    )
    limit = _limit(bench, "spectra", paths)
    label = "limit: read twice + the Grams of all methods + basis product"
    table.rows.append(_row(bench, label, limit, limit, None))
    command = [*ours(), "compress", *paths, "-o", OUT, "--max-error", target]
    used = bench.run([str(part) for part in command], fresh=OUT, repeats=1)
    table.rows.append(_row(bench, f"vlora-tui compress --max-error {target}", used, limit, None))
    table.notes += [
        "goal: within 2 of the limit; our run makes the spectra of all three methods and builds",
        "the limit solves no eigenproblem and writes nothing",
    ]
    return table


def _limit(bench: Bench, kind: str, paths: list[Path]) -> Usage:
    arguments = ["tests.benchmarks.limit", kind, str(K), *map(str, paths)]
    return bench.python("-m", *arguments, repeats=1 if kind == "spectra" else REPEATS)


def _figures(used: Usage) -> list[float | int]:
    return [used.cpu, used.wall, mb(used.peak)]


def _row(
    bench: Bench, label: str, used: Usage, limit: Usage | None, fastest: float | None
) -> list[Cell]:
    own = used.less(bench.torch)
    floor = limit.cpu_over(bench.torch) if limit else None
    best = max(0.01, fastest - bench.torch.cpu) if fastest else None
    over, faster = ratio(own.cpu, floor), ratio(best, own.cpu)
    return [label, used.cpu, own.cpu, used.wall, mb(used.peak), over, faster]
