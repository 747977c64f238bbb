"""How far a method on the core lies from the same steps on the entries of the dense dW."""

from __future__ import annotations

import json
from typing import Any

from tests.benchmarks.measure import Bench
from tests.benchmarks.table import Table

REAL = ("gpt2-medical-sports-legal", "roberta-checkpoints")


def section(bench: Bench) -> list[Table]:
    """A table for each collection; `merge_gaps` forms the dense matrices in its own process."""
    jobs = [(name, str(bench.adapters / name)) for name in REAL if (bench.adapters / name).is_dir()]
    jobs = jobs[-1:] if bench.quick else jobs
    tables = []
    for name, path in [*jobs, ("made: independent", "")]:
        result = bench.path("gap").with_suffix(".json")
        bench.python("-m", "tests.benchmarks.merge_gaps", path, str(result), repeats=1)
        tables.append(_table(name, json.loads(result.read_text())))
    return tables


def _table(name: str, found: dict[str, Any]) -> Table:
    table = Table(
        f"merge_gap: {name}: {found['adapters']} adapters, {found['modules']} modules, default "
        "parameters, equal weights",
        ["", "gap", "cosine", "norm core / dense", "core to sum", "dense to sum"],
        notes=[
            "gap: ||core - dense|| / ||dense||; cosine of the two results",
            "to sum: ||result - weighted sum|| / ||weighted sum||, what the operator changes",
            "dare, della: both draw anew; their expectation is the sum in either coordinates",
        ],
    )
    for row in found["rows"]:
        table.rows.append([row["method"], *(row[key] for key in table_keys())])
    return table


def table_keys() -> tuple[str, ...]:
    """The figures of a row in their order."""
    return ("gap", "cosine", "norm", "core_to_sum", "dense_to_sum")
