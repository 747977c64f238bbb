"""Small adapters to merge, all in fp64, of mixed ranks, scales and module sets."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from vlora_engine.adapters.model import LoRAWeights

DIMS = {"layers.0.q": (8, 10), "layers.0.v": (6, 10), "layers.1.q": (8, 10)}  # (d_out, d_in)
CONFIG = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": "org/base",
    "target_modules": ["q", "v"],
    "bias": "none",
}


def make(
    seed: int,
    rank: int = 2,
    scale: float = 1.0,
    modules: list[str] | None = None,
    dtype: torch.dtype = torch.float64,
    **config: object,
) -> LoRAWeights:
    g = torch.Generator().manual_seed(seed)
    names = sorted(modules or DIMS)
    a = {m: torch.randn(rank, DIMS[m][1], generator=g).to(dtype) for m in names}
    b = {m: torch.randn(DIMS[m][0], rank, generator=g).to(dtype) for m in names}
    metadata = {**CONFIG, "r": rank, "lora_alpha": scale * rank, **config}
    return LoRAWeights(names, a, b, rank, metadata)


def changed(adapter: LoRAWeights, a=None, b=None, scale=None) -> LoRAWeights:
    """The adapter with every A, B or scale passed through a function."""
    return replace(
        adapter,
        lora_a={m: a(t) if a else t for m, t in adapter.lora_a.items()},
        lora_b={m: b(t) if b else t for m, t in adapter.lora_b.items()},
        scales={m: scale(s) if scale else s for m, s in adapter.scales.items()},
    )


def regauged(adapter: LoRAWeights, seed: int = 5) -> LoRAWeights:
    g = torch.randn(adapter.rank, adapter.rank, generator=torch.Generator().manual_seed(seed))
    g = g.double() + 3 * torch.eye(adapter.rank).double()
    return changed(adapter, a=lambda t: torch.linalg.solve(g, t), b=lambda t: t @ g)


def deltas(adapter: LoRAWeights) -> dict[str, Tensor]:
    return {
        m: adapter.delta(m) if m in adapter.lora_a else torch.zeros(*shape).double()
        for m, shape in DIMS.items()
    }


def assert_same_deltas(one: LoRAWeights, other: LoRAWeights | dict[str, Tensor], tol=1e-10):
    expected = other if isinstance(other, dict) else deltas(other)
    for module, delta in deltas(one).items():
        size = max(1.0, float(expected[module].norm()))
        torch.testing.assert_close(delta, expected[module], rtol=0, atol=tol * size, msg=module)


MIXED = [
    make(0, rank=2, scale=0.5),
    make(1, rank=3, scale=2.0),
    make(2, rank=1, modules=["layers.0.q"]),
    make(3, rank=4, scale=1.0, use_rslora=True),
]
WEIGHTS = [0.7, -0.2, 1.5, 0.4]
