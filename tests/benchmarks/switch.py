"""Switching tasks and running them: ours, PEFT's set_adapter, vlora-dev's VLoRAModel, the base.

``python -m tests.benchmarks.switch WHO LAYERS HIDDEN TASKS RESULT`` measures one of them in a
process of its own, on q, k, v, o, gate, up and down of so many layers, in the shapes of a 7B model
where HIDDEN is 4096. All 32 layers are switched but not run: their weights are one number seen
many times, which takes no memory. One layer has real weights and is run.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.benchmarks.measure import Bench, ChildFailed
from tests.benchmarks.peers import MISSING, VLORA
from tests.benchmarks.table import Cell, Table, mb

ALL, ONE = 32, 1  # layers
HIDDEN = 4096
RANK, K = 16, 64
FEW, MANY = 8, 256
ROWS, LENGTH = 32, 16  # of the mixed batch
NAMES = {"base": "base alone", "ours": "vlora-tui", "peft": "PEFT", "vlora": "vlora-dev"}


def section(bench: Bench) -> list[Table]:
    """The switch on all layers; switch, forward and mixed batch on one of them."""
    return [_switches(bench, MANY // 4 if bench.quick else MANY), _forwards(bench)]


def _switches(bench: Bench, many: int) -> Table:
    table = Table(
        f"switch: a task of rank {RANK} on 224 modules in 7B shapes, fp32, k {K}; CPU",
        ["", "tasks", "first ms", "again ms", "MB over base"],
        notes=[
            "first: a task never worn before, ours decoded as it is stored; PEFT's set_adapter",
            "finds A and B of every task in memory. vlora-dev cannot take part: it keeps a dense",
            "delta per module, 28 GB in all. The base's weights take no memory; it is not run",
        ],
    )
    base = _measure(bench, "base", ALL, HIDDEN, 1, table)
    for who, tasks in (("ours", FEW), ("ours", many), ("peft", FEW)):
        found = _measure(bench, who, ALL, HIDDEN, tasks, table)
        if found and base:
            over = mb(max(0, found["peak"] - base["peak"]))
            table.rows.append([NAMES[who], tasks, found["first"], found["again"], over])
    return table


def _forwards(bench: Bench) -> Table:
    hidden = HIDDEN // 4 if bench.quick else HIDDEN
    table = Table(
        f"the same on one layer of hidden size {hidden}, which is run; {ROWS} tasks, fp32; CPU",
        ["", "first ms", "again ms", "1 token ms", "64 tokens ms", "mixed ms", "MB over base"],
        notes=[
            f"mixed: a batch of {ROWS} rows x {LENGTH} tokens, another task in every row "
            "(PEFT: adapter_names)",
            "vlora-dev: 4 tasks, decoded to dense deltas; it has no mixed batches",
        ],
    )
    base: dict[str, Any] | None = None
    for who, tasks in (("base", 1), ("ours", ROWS), ("peft", ROWS), ("vlora", 4)):
        if who == "vlora" and not VLORA.there:
            table.notes.append(f"{VLORA.name}: {MISSING}")
            continue
        found = _measure(bench, who, ONE, hidden, tasks, table)
        if not found:
            continue
        base = base or found
        times: list[Cell] = [found.get(n) for n in ("first", "again", "token", "tokens", "mixed")]
        over = None if who == "base" else mb(max(0, found["peak"] - base["peak"]))
        table.rows.append([NAMES[who], *times, over])
    return table


def _measure(
    bench: Bench, who: str, layers: int, hidden: int, tasks: int, table: Table
) -> dict[str, Any] | None:
    result = bench.path("switch").with_suffix(".json")
    try:
        arguments = [who, str(layers), str(hidden), str(tasks), str(result)]
        used = bench.python("-m", "tests.benchmarks.switch", *arguments, repeats=1)
    except ChildFailed as reason:
        table.notes.append(f"{NAMES[who]}: {reason}")
        return None
    return {**json.loads(result.read_text()), "peak": used.peak}


# in a process of its own


@dataclass(frozen=True)
class Size:
    """How much of a 7B model is made."""

    layers: int
    hidden: int

    @property
    def runs(self) -> bool:
        """Whether the base has real weights."""
        return self.layers < ALL

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """The modules: name, (d_in, d_out)."""
        d, kv, inner = self.hidden, self.hidden // 4, self.hidden * 7 // 2
        layer = {"q": (d, d), "k": (d, kv), "v": (d, kv), "o": (d, d)}
        layer |= {"gate": (d, inner), "up": (d, inner), "down": (inner, d)}
        return {f"layers.{i}.{n}": s for i in range(self.layers) for n, s in layer.items()}


def make_base(size: Size) -> Any:
    """A stack of layers; where it is not run, its weights take no memory."""
    import torch
    from torch import nn

    class Layer(nn.Module):
        def forward(self, x: Any) -> Any:
            mixed = self.q(x)
            mixed = mixed + self.o(x) + 0 * (self.k(x).sum() + self.v(x).sum())
            return x + 0.1 * self.down(torch.relu(self.gate(mixed)) * self.up(mixed))

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(Layer() for _ in range(size.layers))

        def forward(self, x: Any) -> Any:
            for layer in self.layers:
                x = layer(x)
            return x

    torch.manual_seed(0)
    model = Model()
    for name, (d_in, d_out) in size.shapes.items():
        linear = nn.Linear(1, 1, bias=False)
        linear.in_features, linear.out_features = d_in, d_out
        weight = torch.randn(d_out, d_in) * 0.5 / d_in**0.5 if size.runs else torch.zeros(1, 1)
        linear.weight = nn.Parameter(weight.expand(d_out, d_in), requires_grad=False)
        layer, leaf = name.rsplit(".", 1)
        model.get_submodule(layer).add_module(leaf, linear)
    return model.eval()


def make_subspace(size: Size, tasks: int) -> Any:
    """A `delta` subspace of random bases and loadings: what is measured does not look at them."""
    import torch

    from vlora_engine.manifest.manifest import LayerSpec
    from vlora_engine.shared_subspace import SharedSubspace
    from vlora_engine.subspace.basis import Bases, LayerBasis
    from vlora_engine.subspace.basis_space import BasisSpace
    from vlora_engine.subspace.loadings import Storage
    from vlora_engine.subspace.tasks import TaskMap, TaskProjection

    specs, bases, generator = [], [], torch.Generator().manual_seed(1)
    for name, (d_in, d_out) in size.shapes.items():
        k_a, k_b = min(K, d_in), min(K, d_out)
        specs.append(LayerSpec(name, d_in, d_out, RANK, k_a, k_b))
        a = torch.randn(k_a, d_in, generator=generator) / d_in**0.5
        b = torch.randn(k_b, d_out, generator=generator) / d_out**0.5
        bases.append(LayerBasis(name, a, b, torch.ones(k_a), torch.ones(k_b), RANK))
    known = TaskMap(Storage("delta", "F32"), specs)
    for i in range(tasks):
        sides = [
            {s.name: torch.randn(RANK, k, generator=generator) * 0.1 for s, k in _widths(specs, n)}
            for n in ("k_a", "k_b")
        ]
        known[f"t{i}"] = TaskProjection(f"t{i}", *sides, scales={s.name: 2.0 for s in specs})
    space = BasisSpace(
        method="delta", dtype="F32", layers=specs, bases=Bases.of(bases), tasks=known
    )
    return SharedSubspace(space)


def _widths(specs: Any, name: str) -> list[tuple[Any, int]]:
    return [(spec, getattr(spec, name)) for spec in specs]


def wear_ours(base: Any, size: Size, tasks: int) -> tuple[Any, Callable[[str], Any], Any]:
    """The model, how to switch it, and how to run a mixed batch."""
    from vlora_engine.nn.model import VLoRAModel

    model = VLoRAModel(base, make_subspace(size, tasks))

    def mixed(x: Any) -> Callable[[], Any]:
        model.set_tasks([f"t{i}" for i in range(len(x))])
        return lambda: model(x)

    return model, model.set_task, mixed


def wear_peft(base: Any, size: Size, tasks: int) -> tuple[Any, Callable[[str], Any], Any]:
    """The same with PEFT, every adapter held."""
    from peft import LoraConfig, get_peft_model

    targets = ["q", "k", "v", "o", "gate", "up", "down"]
    config = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=targets)
    config.init_lora_weights = False
    model = get_peft_model(base, config, adapter_name="t0")
    for i in range(1, tasks):
        model.add_adapter(f"t{i}", config)
    model.eval()
    names = [f"t{i}" for i in range(ROWS)]
    return model, model.set_adapter, lambda x: lambda: model(x, adapter_names=names)


def wear_vlora(base: Any, size: Size, tasks: int) -> tuple[Any, Callable[[str], Any], Any]:
    """The same with vlora-dev."""
    import torch
    from vlora import SharedSubspace, VLoRAModel
    from vlora.io import LoRAWeights

    generator, names = torch.Generator().manual_seed(1), list(size.shapes)

    def adapter() -> Any:
        a = {n: torch.randn(RANK, d, generator=generator) for n, (d, _) in size.shapes.items()}
        b = {n: torch.randn(d, RANK, generator=generator) for n, (_, d) in size.shapes.items()}
        return LoRAWeights(layer_names=names, lora_a=a, lora_b=b, rank=RANK)

    adapters = [adapter() for _ in range(tasks)]
    ids = [f"t{i}" for i in range(tasks)]
    subspace = SharedSubspace.from_adapters(adapters, task_ids=ids, num_components=2)
    model = VLoRAModel(base, subspace, scaling=2.0)
    return model, model.set_task, None


def milliseconds(work: Callable[[], Any], repeats: int = 7) -> float:
    """The least CPU time of some runs on one thread: the machine is shared."""
    found = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        found.append(1000 * (time.process_time() - start))
    return min(found)


def main(who: str, size: Size, tasks: int) -> dict[str, Any]:
    """All figures of one contender."""
    import torch

    base = make_base(size)
    found: dict[str, Any] = {}
    wear = {"ours": wear_ours, "peft": wear_peft, "vlora": wear_vlora}.get(who)
    model, switch, mixed = wear(base, size, tasks) if wear else (base, None, None)
    if switch is not None:
        names = [f"t{i}" for i in range(tasks)]
        turns = iter(names[1:])
        found["first"] = milliseconds(lambda: switch(next(turns)), min(7, tasks - 1))
        turns = iter(names[:3] * 8)
        for name in names[:3]:
            switch(name)
        found["again"] = milliseconds(lambda: switch(next(turns)), 21)
    gc.collect()
    if size.runs:
        with torch.inference_mode():
            for label, length in (("token", 1), ("tokens", 64)):
                x = torch.randn(1, length, size.hidden)
                model(x)
                found[label] = milliseconds(lambda x=x: model(x))
            if mixed is not None:
                run = mixed(torch.randn(ROWS, LENGTH, size.hidden))
                run()
                found["mixed"] = milliseconds(run, 5)
            elif who == "base":
                x = torch.randn(ROWS, LENGTH, size.hidden)
                found["mixed"] = milliseconds(lambda: model(x), 5)
    return found


if __name__ == "__main__":
    contender, *numbers, target = sys.argv[1:]
    layers, hidden, count = map(int, numbers)
    Path(target).write_text(json.dumps(main(contender, Size(layers, hidden), count)))
