"""Comparing adapters: one pass against pairs and against the peer; false alarms of outliers."""

from __future__ import annotations

import json

from tests.benchmarks import made
from tests.benchmarks.measure import Bench, ChildFailed, ours
from tests.benchmarks.peers import MISSING, VLORA
from tests.benchmarks.table import Cell, Table, mb, ratio

SHAPE = made.Shape(modules=28, width=256, rank=8)
PAIRWISE = """
import sys
from itertools import combinations
from vlora_engine.analysis import adapter_diff, diff_total
from vlora_engine.catalog.open import open_adapter
sources = [open_adapter(path) for path in sys.argv[1:]]
for a, b in combinations(sources, 2):
    diff_total(adapter_diff(a, b))
"""


def section(bench: Bench) -> list[Table]:
    """`analyze` of hundreds of adapters, and what outliers are worth."""
    return [_speed(bench), *_outliers(bench)]


def _speed(bench: Bench) -> Table:
    many, few = (60, 12) if bench.quick else (300, 40)
    paths = made.adapters(bench, SHAPE, many)
    table = Table(
        f"compare: adapters of {SHAPE.modules} modules of {SHAPE.width}, rank {SHAPE.rank}",
        ["", "adapters", "cpu s", "less torch", "peak MB", "less torch's", "cpu / ours"],
        notes=[
            "ours: cosines of dW, clusters, outliers per family, duplicates, runs, in one pass",
            "vlora-dev: cosines of A and B laid end to end, and clusters",
            "pair by pair: the same figures of dW, every two adapters read and compared",
        ],
    )
    analyses = [
        (f"vlora-tui analyze {few}", few, [*ours(), "analyze", *paths[:few]]),
        (f"pair by pair {few}", few, None),
        (f"vlora-tui analyze {many}", many, [*ours(), "analyze", *paths]),
        (f"vlora-dev analyze {many}", many, VLORA("analyze", *paths) if VLORA.there else None),
    ]
    if not VLORA.there:
        table.notes.append(f"{VLORA.name}: {MISSING}")
    own: float | None = None
    for label, count, command in analyses:
        try:
            if command is not None:
                used = bench.run(command)
            elif label.startswith("pair"):
                used = bench.python("-c", PAIRWISE, *map(str, paths[:count]), repeats=1)
            else:
                continue
        except ChildFailed as reason:
            table.notes.append(f"{label}: {reason}")
            continue
        net = used.less(bench.torch).cpu
        own = net if label.startswith("vlora-tui") else own
        memory = mb(used.peak - bench.torch.peak)
        against: Cell = None if net is own else ratio(net, own)
        table.rows.append([label, count, used.cpu, net, mb(used.peak), memory, against])
    return table


def _outliers(bench: Bench) -> list[Table]:
    counts = ("5", "20", "100") if bench.quick else ("3", "5", "8", "12", "20", "50", "100", "200")
    file = bench.path("false-alarms")
    repeats = "60" if bench.quick else "200"
    try:
        bench.python("-m", "tests.benchmarks.false_alarms", str(file), repeats, *counts, repeats=1)
    except ChildFailed as reason:
        return [Table("compare: outliers", ["not measured"], notes=[str(reason)])]
    answer = json.loads(file.read_text())
    kinds = list(next(iter(answer.values())))
    alarms = Table(
        "compare: collections without outliers in which one is seen (aim: at most 4.6 %)",
        ["adapters", "collections", *kinds],
        notes=[
            "per cent of collections, seven families of modules, default threshold",
            "the last column is beyond the spread of sizes that few adapters are judged by (1.8x)",
        ],
    )
    found = Table(
        "compare: planted outliers that are found and named (10x in one family of one adapter)",
        ["adapters", "collections", *kinds],
        notes=["per cent of collections"],
    )
    for count, rows in answer.items():
        of = next(iter(rows.values()))["of"]
        alarms.rows.append([count, of, *(round(100 * rows[k]["alarms"], 2) for k in kinds)])
        found.rows.append([count, of, *(round(100 * rows[k]["found"], 1) for k in kinds)])
    return [alarms, found]
