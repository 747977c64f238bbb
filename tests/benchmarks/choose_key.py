"""How long the screen Choose k takes from a key that moves k to its last byte for the terminal.

The limit is a bare Textual application that puts a text of the same size on the screen at each
key; neither peer has an interface.
"""

from __future__ import annotations

import json
import statistics

from tests.benchmarks.measure import Bench
from tests.benchmarks.table import Table, ratio


def section(bench: Bench) -> list[Table]:
    """Every kind of screen that a key that moves k repaints, at 224 layers and 100 tasks."""
    presses = 12 if bench.quick else 60
    file = bench.path("presses")
    bench.python("-m", "tests.benchmarks.key_presses", str(file), str(presses), repeats=1)
    found = {label: sorted(times) for label, times in json.loads(file.read_text()).items()}
    least = statistics.median(next(iter(found.values())))
    table = Table(
        "choose k: a key that moves k, 224 layers x 100 tasks (goal: median 50 ms)",
        ["", "median ms", "9 of 10 ms", "median / limit"],
    )
    for label, times in found.items():
        middle = statistics.median(times)
        table.rows.append([label, middle, times[len(times) * 9 // 10], ratio(middle, least)])
    table.notes.append(f"{presses} presses each, 120 x 36, from the key to the last byte written")
    return [table]
