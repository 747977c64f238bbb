"""The entropy coder in NumPy and in compiled code: by itself, and in what waits for it.

``python -m tests.benchmarks.coder COLLECTION ADAPTER RESULT`` measures, in a process of its own,
the coder, the switch of a task, and an adapter that is added. NUMBA_DISABLE_JIT=1 is NumPy.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tests.benchmarks import made
from tests.benchmarks.measure import Bench, ChildFailed, ours
from tests.benchmarks.table import Cell, Table, ratio

SHAPE = made.Shape(modules=16, width=1024, rank=16)
STEPS = {"coarse": 0.6, "middle": 3.0, "fine": 200.0}  # deviation of the numbers, in steps
FIGURES = {
    **{f"encode, {name} steps (M numbers / s)": f"encode {name}" for name in STEPS},
    **{f"decode, {name} steps (M numbers / s)": f"decode {name}" for name in STEPS},
    "switch to a task of 64 modules of 1024 (ms)": "switch",
    "read and code one adapter (ms)": "one",
    "project the same into a collection, as add does (ms)": "add",
    "load the coder (s)": "load",
}
OUT = "{out}"
WITHOUT = ["env", "NUMBA_DISABLE_JIT=1"]


def section(bench: Bench) -> list[Table]:
    """With NumPy alone, and with numba where it is there."""
    few = made.adapters(bench, made.LARGE, 13)
    place = bench.path("coded")
    bench.run([*ours(), "compress", *map(str, few[:12]), "-o", str(place), "--quiet"], repeats=1)
    table = Table("coder: in NumPy and in compiled code; CPU", ["", "NumPy", "compiled", "ratio"])
    found = [_figures(bench, prefix, place, few[12], table) for prefix in (WITHOUT, [])]
    for label, key in FIGURES.items():
        pair = [figures.get(key) for figures in found]
        table.rows.append([label, *pair, _times(label, pair)])
    many = made.adapters(bench, SHAPE, 24 if bench.quick else 100)
    commands = _commands(bench, many)
    for label, command in commands.items():
        pair = [_seconds(bench, [*prefix, *command]) for prefix in (WITHOUT, [])]
        table.rows.append([label, *pair, _times(label, pair)])
    table.notes += [
        "ratio: how many times as fast; the commands are whole processes less `import torch`",
        "goals: a switch under 100 ms compiled; project within twice of coding one adapter",
        "load the coder: importing numba, and what it compiled before; compiled once, some seconds",
    ]
    if not found[1].get("compiled"):
        table.notes.append("numba is not there: both columns are NumPy's")
    return [table]


def _commands(bench: Bench, paths: Sequence[Path]) -> dict[str, list[str]]:
    place = bench.path("many")
    compress = [*ours(), "compress", *map(str, paths), "--quiet"]
    bench.run([*compress, "-o", str(place)], repeats=1)
    size = f"{len(paths)} adapters of {SHAPE.modules} modules"
    return {
        f"compress {size}: auto (s)": [*compress, "-o", OUT],
        f"compress {size}: own (s)": [*compress, "--method", "own", "-o", OUT],
        f"export --all of {size} (s)": [*ours(), "export", str(place), "--all", "-o", OUT],
    }


def _seconds(bench: Bench, command: list[str]) -> float | None:
    try:
        return bench.run(command, fresh=OUT, repeats=1).less(bench.torch).cpu
    except ChildFailed:
        return None


def _times(label: str, pair: Sequence[Any]) -> float | None:
    slower, faster = pair[::-1] if "/ s" in label else pair
    return ratio(slower, faster) if slower and faster and "load" not in label else None


def _figures(
    bench: Bench, prefix: list[str], place: Path, adapter: Path, table: Table
) -> dict[str, Cell]:
    result = bench.path("coder").with_suffix(".json")
    command = [*prefix, sys.executable, "-m", "tests.benchmarks.coder"]
    try:
        bench.run([*command, str(place), str(adapter), str(result)], repeats=1)
    except ChildFailed as reason:
        table.notes.append(str(reason))
        return {}
    figures: dict[str, Cell] = json.loads(result.read_text())
    return figures


# in a process of its own


def seconds(work: Callable[[], Any], repeats: int = 5) -> float:
    """The least CPU time of some runs: the machine is shared."""
    found = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        found.append(time.process_time() - start)
    return min(found)


def main(place: Path, adapter: Path) -> dict[str, Any]:
    """All figures with the coder that this process uses."""
    import numpy as np
    import torch

    from vlora_engine.codec.compiled import loader
    from vlora_engine.codec.quantizer import quantize
    from vlora_engine.codec.vectors import decode_matrices, encode_matrices
    from vlora_engine.shared_subspace import SharedSubspace

    torch.set_num_threads(1)
    start = time.process_time()
    found: dict[str, Any] = {"compiled": loader.load() is not None}
    found["load"] = time.process_time() - start
    rng = np.random.default_rng(1)
    for name, deviation in STEPS.items():
        rows = [quantize(rng.normal(0, deviation, size=(16, 1024))) for _ in range(128)]
        count = sum(r.size for r in rows) / 1e6
        found[f"encode {name}"] = count / seconds(partial(encode_matrices, rows))
        parts = [(raw, *r.shape) for raw, r in zip(encode_matrices(rows), rows, strict=True)]
        found[f"decode {name}"] = count / seconds(partial(decode_matrices, parts))
    collection = SharedSubspace.load(place)
    found["switch"] = 1000 * switch(collection)
    found |= {name: 1000 * value for name, value in adding(collection, adapter).items()}
    return found


def switch(collection: Any) -> float:
    """The least time to put a task in force that was not before; groups were decoded by another."""
    from vlora_engine.nn.model import VLoRAModel

    model = VLoRAModel(base(collection.layers), collection)
    first, *others = sorted(collection.tasks)
    model.set_task(first)
    tasks = iter(others)
    return seconds(lambda: model.set_task(next(tasks)), len(others))


def base(layers: Any) -> Any:
    """A model with these modules, whose weights take no memory."""
    import torch
    from torch import nn

    root = nn.Module()
    for spec in layers:
        *path, leaf = spec.name.split(".")
        parent = root
        for name in path:
            if not hasattr(parent, name):
                parent.add_module(name, nn.Module())
            parent = getattr(parent, name)
        linear = nn.Linear(1, 1, bias=False)
        linear.in_features, linear.out_features = spec.d_in, spec.d_out
        weight = torch.zeros(1, 1).expand(spec.d_out, spec.d_in)
        linear.weight = nn.Parameter(weight, requires_grad=False)
        parent.add_module(leaf, linear)
    return root


def adding(collection: Any, adapter: Path) -> dict[str, float]:
    """What it takes to read, check and code one adapter once, and to take it in."""
    from vlora_engine.adapters.check import check_adapter
    from vlora_engine.catalog.open import open_adapter
    from vlora_engine.subspace.coded.alone import LoneAdapter

    step, layers = collection.space.coding.step, collection.space.layers

    def one() -> None:
        source = open_adapter(adapter)
        alone = LoneAdapter(layers, source, check_adapter("one", source).norm)
        alone.code(step)
        alone.shares()

    return {
        "one": seconds(one),
        "add": seconds(lambda: collection.project(open_adapter(adapter), "new")),
    }


if __name__ == "__main__":
    where, which, target = map(Path, sys.argv[1:])
    target.write_text(json.dumps(main(where, which)))
