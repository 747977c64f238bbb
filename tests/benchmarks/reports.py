"""Reports on adapters and merges of them, against the peer that has these commands."""

from __future__ import annotations

from tests.benchmarks import made
from tests.benchmarks.measure import Bench, ChildFailed, Usage, ours
from tests.benchmarks.peers import MISSING, VLORA
from tests.benchmarks.table import Cell, Table, mb, ratio

OUT = "{out}"


def section(bench: Bench) -> list[Table]:
    """`analyze` and `merge`, ours and vlora-dev's (lorashare has neither)."""
    analysed = made.adapters(bench, made.LARGE, 8 if bench.quick else 32)
    merged = analysed[:8]
    table = Table(
        f"reports: analyze {len(analysed)} and merge {len(merged)} adapters of "
        f"{made.LARGE.nbytes / 1e6:.1f} MB",
        ["", "cpu s", "less torch", "wall s", "peak MB", "vlora / ours"],
        notes=[
            "ours compares and merges dW, vlora-dev A and B apart, which is less work",
            "lorashare has neither command",
        ],
    )
    if not VLORA.there:
        table.notes.append(f"{VLORA.name}: {MISSING}")
    commands = {
        "analyze": ["analyze", *analysed],
        "merge, average": ["merge", *merged, "-o", OUT, "--method", "average"],
        "merge, TIES": ["merge", *merged, "-o", OUT, "--method", "ties", "--density", "0.5"],
        "merge, DARE": [*("merge", *merged, "-o", OUT), *("--method", "dare", "--seed", "1")],
    }
    limit = bench.python("-m", "tests.benchmarks.limit", "flat", "1", *map(str, analysed))
    table.rows.append(_row(bench, "limit of analyze: read + N x N Gram a side", limit, None))
    for label, arguments in commands.items():
        found: list[Usage] = []
        for name, start in (("vlora-tui", ours()), ("vlora-dev", VLORA() if VLORA.there else [])):
            if not start:
                continue
            try:
                used = bench.run([*start, *map(str, arguments)], fresh=OUT)
            except ChildFailed as reason:
                table.notes.append(f"{name} {label}: {reason}")
                continue
            own = found[0] if found else None
            found.append(used)
            table.rows.append(_row(bench, f"{name} {label}", used, own))
    return [table]


def _row(bench: Bench, label: str, used: Usage, own: Usage | None) -> list[Cell]:
    net = used.less(bench.torch).cpu
    theirs = used.cpu_over(bench.torch)
    against = ratio(theirs, own.cpu_over(bench.torch)) if own else None
    return [label, used.cpu, net, used.wall, mb(used.peak), against]
