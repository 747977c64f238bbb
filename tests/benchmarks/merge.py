"""How long a merge takes, against PEFT's forms that merge weight changes: svd and the ``*_svd``."""

from __future__ import annotations

import json
from importlib.util import find_spec

from tests.benchmarks.measure import Bench, ChildFailed
from tests.benchmarks.table import Table, ratio

RANK, COUNT = 16, 4
GOAL = 30
# PEFT's combination type, our method
PAIRS = {
    "svd": "average",
    "ties_svd": "ties",
    "dare_linear_svd": "dare",
    "dare_ties_svd": "dare_ties",
    "magnitude_prune_svd": "magnitude_prune",
}
SHORT = ("svd", "ties_svd")  # PEFT's SVD of 4096 x 4096 takes minutes, whatever came before it


def section(bench: Bench) -> list[Table]:
    """Four adapters of one module, merged and cut to their rank; `merge_times` takes the times."""
    width = 1024 if bench.quick else 4096
    table = Table(
        f"merge: {COUNT} adapters of rank {RANK}, one module of {width} x {width}, to rank {RANK}",
        ["", "vlora-tui s", "PEFT s", f"PEFT / ours (goal {GOAL})", "dW apart"],
        notes=[
            "both without reading files; the best of three of ours, one of PEFT's",
            "apart: ||ours - PEFT's|| / ||PEFT's||; svd is the same sum, the others work on the "
            "core and on the dense dW (merge_gap), and what is drawn differs",
        ],
    )
    if find_spec("peft") is None:
        table.notes.append("PEFT is not installed")
    for theirs, ours in PAIRS.items():
        if not bench.quick and theirs not in SHORT:
            continue
        result = bench.path("merge").with_suffix(".json")
        words = ["tests.benchmarks.merge_times", ours, theirs, *map(str, (width, RANK, COUNT))]
        try:
            bench.python("-m", *words, str(result), repeats=1)
        except ChildFailed as reason:
            table.notes.append(f"{theirs}: {reason}")
            continue
        found = json.loads(result.read_text())
        quotient = ratio(found["theirs"], found["ours"])
        table.rows.append(
            [f"{ours} / {theirs}", found["ours"], found["theirs"], quotient, found["apart"]]
        )
    return [table]
