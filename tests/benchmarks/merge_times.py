"""One merge, ours and PEFT's, timed in a process of its own.

``python -m tests.benchmarks.merge_times METHOD COMBINATION WIDTH RANK COUNT RESULT``
"""

from __future__ import annotations

import json
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vlora_engine.adapters.model import LoRAWeights
from vlora_engine.merging import MERGE_METHODS, merge

DENSITY = 0.5


def made(width: int, rank: int, count: int) -> list[LoRAWeights]:
    """Adapters of one module, in fp32."""
    adapters = []
    for seed in range(count):
        g = torch.Generator().manual_seed(seed)
        a, b = torch.randn(rank, width, generator=g), torch.randn(width, rank, generator=g)
        meta = {"r": rank, "lora_alpha": 2 * rank}
        adapters.append(LoRAWeights(["q"], {"q": a / width**0.5}, {"q": b}, rank, meta))
    return adapters


def ours(adapters: list[LoRAWeights], method: str, rank: int) -> tuple[float, LoRAWeights]:
    """Seconds (the best of three) and the result."""
    names = {p.name for p in MERGE_METHODS[method].parameters}
    values: dict[str, Any] = {"density": DENSITY, "drop_rate": 1 - DENSITY, "seed": 0}
    values = {name: value for name, value in values.items() if name in names}
    weights = weights_of(method, len(adapters))
    best, merged = float("inf"), adapters[0]
    for _ in range(3):
        start = time.perf_counter()
        merged = merge(adapters, method, weights=weights, rank=rank, **values)
        best = min(best, time.perf_counter() - start)
    return best, merged


def weights_of(name: str, count: int) -> list[float]:
    """1 / T each; 1 where what agrees is averaged, which PEFT does over counts and not weights."""
    return [1.0 if "ties" in name else 1.0 / count] * count


def theirs(
    adapters: list[LoRAWeights], kind: str, width: int, rank: int
) -> tuple[float, torch.Tensor]:
    """Seconds of ``add_weighted_adapter``, and the dW of its result."""
    import peft

    base = nn.Sequential()
    base.add_module("q", nn.Linear(width, width, bias=False))
    config = peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=["q"])
    model = peft.get_peft_model(base, config, adapter_name="0")
    for i in range(1, len(adapters)):
        model.add_adapter(str(i), config)
    layer = model.base_model.model.q
    for i, adapter in enumerate(adapters):
        layer.lora_A[str(i)].weight.data = adapter.lora_a["q"].clone()
        layer.lora_B[str(i)].weight.data = adapter.lora_b["q"].clone()
    names = [str(i) for i in range(len(adapters))]
    weights = weights_of(kind, len(adapters))
    start = time.perf_counter()
    model.add_weighted_adapter(
        names, weights, "sum", combination_type=kind, svd_rank=rank, density=DENSITY
    )
    return time.perf_counter() - start, layer.get_delta_weight("sum").detach()


def main(method: str, kind: str, width: int, rank: int, count: int, result: Path) -> None:
    """Take both times and write them down."""
    adapters = made(width, rank, count)
    seconds, merged = ours(adapters, method, rank)
    found: dict[str, float | None] = {"ours": seconds, "theirs": None, "apart": None}
    if find_spec("peft") is not None:
        found["theirs"], delta = theirs(adapters, kind, width, rank)
        found["apart"] = float((merged.delta("q") - delta).norm() / delta.norm())
    result.write_text(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:6]), Path(sys.argv[6]))
