"""What compression loses: the error of dW at equal codec ratio, against both peers."""

from __future__ import annotations

import json
from typing import Any

from tests.benchmarks import sets as sets_made
from tests.benchmarks.measure import Bench
from tests.benchmarks.table import Table

RATIOS = (2, 4, 8, 16, 32)
REAL = ("roberta-checkpoints", "gpt2-medical-sports-legal")
GOALS = {
    4: 1 / 8,
    8: 1 / 6,
    16: 1 / 3,
}  # of auto's mean error to the better peer's, on the real sets


def section(bench: Bench) -> list[Table]:
    """A table for each collection; `quality` computes it in a process of its own."""
    tables = [_missing(bench, name) for name in REAL if not (bench.adapters / name).is_dir()]
    sets = {name: bench.adapters / name for name in REAL if (bench.adapters / name).is_dir()}
    if bench.quick:  # lorashare's eigensolves of 3072 x 3072 take most of a minute
        sets.pop(REAL[1], None)
    jobs: list[tuple[str, str]] = [(name, str(path)) for name, path in sets.items()]
    jobs += [("demo", ""), ("demo, those of one shape", "")]
    for kind in sets_made.KINDS:
        place = bench.data / f"set-{kind}"
        bench.python("-m", "tests.benchmarks.sets", kind, str(place), repeats=1)
        jobs.append((f"made: {kind}", str(place)))
    if (bench.data / "trained" / "losses.json").is_file():
        jobs.append(("trained here", str(bench.data / "trained" / "adapters")))
    for name, path in jobs:
        result = bench.path("quality").with_suffix(".json")
        work = bench.path("work")
        arguments = ["tests.benchmarks.quality", name, path, str(work), str(result)]
        bench.python("-m", *arguments, *map(str, RATIOS), repeats=1)
        found = json.loads(result.read_text())
        tables += [_errors(found, real=name in REAL), _charged(found)]
    return tables


def _missing(bench: Bench, name: str) -> Table:
    note = f"skipped: not at {bench.adapters}; name the folder with --adapters"
    return Table(f"error: {name}", [""], notes=[note])


def _errors(found: dict[str, Any], *, real: bool) -> Table:
    table = Table(
        f"error: {found['name']}: dW error, mean / worst, of {found['tasks']} adapters "
        f"({found['modules']} modules, {found['megabytes']:.1f} MB of A and B at 16 bit)",
        ["at codec ratio", *(f"{r}x" for r in RATIOS)],
    )
    ours = {name: _by_ratio(rows) for name, rows in found["ours"].items()}
    peers = {name: _by_ratio(rows) for name, rows in found["peers"].items()}
    for name, rows in (*ours.items(), *peers.items()):
        owner = "" if name in peers else "ours: "
        table.rows.append([owner + name, *(_pair(rows.get(r)) for r in RATIOS)])
    if peers:
        best = {r: _least(rows.get(r) for rows in peers.values()) for r in RATIOS}
        for name, rows in ours.items():
            cells = [_quotient(rows.get(r), best[r]) for r in RATIOS]
            table.rows.append([f"{name} / better peer", *cells])
        if real:
            goals = [GOALS.get(r) for r in RATIOS]
            table.rows.append(["goal of auto / better peer", *goals])
    limits = {int(r): row for r, row in found["limits"].items()}
    table.rows.append(["delta, root mean square", *(_part(limits, r, "ours") for r in RATIOS)])
    table.rows.append(
        ["limit: any bases of delta's k, rms", *(_part(limits, r, "limit") for r in RATIOS)]
    )
    table.notes += [*found["notes"], "- : the method has no k that is small enough"]
    return table


def _charged(found: dict[str, Any]) -> Table:
    table = Table(
        f"error: {found['name']}: what each was charged",
        ["", *(f"{r}x" for r in RATIOS)],
        notes=[
            "ours: every byte on disk but the heads' (index, headers, checksums, card with it), "
            "in fp16",
            "peers: the numbers of their basis, loadings and means alone, at 2 bytes each, without "
            "any header, singular value or JSON: less than what they write;",
            "in brackets the ratio of the files that their own save writes in fp16, heads left out",
        ],
    )
    for name, rows in found["ours"].items():
        by = _by_ratio(rows)
        cells = [f"{by[r]['codec']:.2f}x" if r in by else None for r in RATIOS]
        table.rows.append([f"ours: {name}", *cells])
    for name, rows in found["peers"].items():
        by = _by_ratio(rows)
        cells = [
            f"k={by[r]['k']} {by[r]['codec']:.2f}x ({by[r]['files']:.2f}x)" if r in by else None
            for r in RATIOS
        ]
        table.rows.append([name, *cells])
    return table


def _by_ratio(rows: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    return {row["ratio"]: row for row in rows}


def _pair(row: dict[str, Any] | None) -> str | None:
    return f"{row['mean']:.4f} / {row['worst']:.4f}" if row else None


def _least(rows: Any) -> float | None:
    return min((row["mean"] for row in rows if row), default=None)


def _quotient(row: dict[str, Any] | None, best: float | None) -> float | None:
    return row["mean"] / best if row and best else None


def _part(limits: dict[int, dict[str, float]], ratio: int, name: str) -> str | None:
    return f"{limits[ratio][name]:.4f}" if ratio in limits else None
