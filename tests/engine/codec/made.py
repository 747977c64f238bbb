"""Collections whose structure is known: unrelated, of one start, of one run, of one subspace."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from tests.witnesses import make
from vlora_engine.adapters.model import LoRAWeights
from vlora_engine.adapters.stack import LayerStack

SQUARE = {f"model.layers.{i}.self_attn.q_proj": (96, 96) for i in range(3)}

Modules = Mapping[str, tuple[int, int]]


def independent(count: int, modules: Modules = SQUARE, rank: int = 8) -> dict[str, LoRAWeights]:
    """Nothing in common."""
    return {f"t{i:02d}": make.weights(modules, rank=rank, seed=i) for i in range(count)}


def same_init(count: int, modules: Modules = SQUARE, rank: int = 8) -> dict[str, LoRAWeights]:
    """A of one seed, trained a little; B of each adapter's own."""
    start = make.weights(modules, rank=rank, seed=500)
    made = independent(count, modules, rank)
    for own in made.values():
        for name in own.layer_names:
            own.lora_a[name] = start.lora_a[name] + 0.3 * own.lora_a[name]
    return made


def family(count: int, modules: Modules = SQUARE, rank: int = 8) -> dict[str, LoRAWeights]:
    """Checkpoints of one run: each a small step from the one before."""
    now = make.weights(modules, rank=rank, seed=600)
    made = {}
    for name, step in independent(count, modules, rank).items():
        for side, steps in ((now.lora_a, step.lora_a), (now.lora_b, step.lora_b)):
            for module in modules:
                side[module] = side[module] + 0.05 * steps[module]
        made[name] = LoRAWeights(
            layer_names=now.layer_names,
            lora_a=dict(now.lora_a),
            lora_b=dict(now.lora_b),
            rank=rank,
            metadata=now.metadata,
        )
    return made


def around(count: int, modules: Modules = SQUARE, rank: int = 8) -> dict[str, LoRAWeights]:
    """Runs that went apart from one checkpoint: the same but for a twentieth."""
    start = make.weights(modules, rank=rank, seed=650)
    made = independent(count, modules, rank)
    for own in made.values():
        for name in own.layer_names:
            own.lora_a[name] = start.lora_a[name] + 0.05 * own.lora_a[name]
            own.lora_b[name] = start.lora_b[name] + 0.05 * own.lora_b[name]
    return made


def planted(
    count: int, modules: Modules = SQUARE, rank: int = 8, shared: int = 10
) -> dict[str, LoRAWeights]:
    """Adapters inside ``shared`` common directions a side, but for some noise."""
    made = independent(count, modules, rank)
    for name, (d_in, d_out) in modules.items():
        generator = torch.Generator().manual_seed(700)
        rows = torch.randn(shared, d_in, generator=generator) / shared**0.5
        columns = torch.randn(d_out, shared, generator=generator) / shared**0.5
        for own in made.values():
            mix_a = torch.randn(rank, shared, generator=generator)
            mix_b = torch.randn(shared, rank, generator=generator)
            own.lora_a[name] = mix_a @ rows + 0.01 * own.lora_a[name]
            own.lora_b[name] = columns @ mix_b + 0.01 * own.lora_b[name]
    return made


def without_effect(modules: Modules = SQUARE, rank: int = 8) -> LoRAWeights:
    """As PEFT begins: B is zero."""
    made = make.weights(modules, rank=rank, seed=800)
    made.lora_b.update({name: torch.zeros_like(b) for name, b in made.lora_b.items()})
    return made


def in_gauge(weights: LoRAWeights, seed: int = 0) -> LoRAWeights:
    """The same dW by other factors: (B G, G^-1 A)."""
    generator = torch.Generator().manual_seed(seed)
    lora_a, lora_b = {}, {}
    for name in weights.layer_names:
        rank = weights.lora_a[name].shape[0]
        turn = torch.randn(rank, rank, generator=generator, dtype=torch.float64)
        lora_a[name] = torch.linalg.solve(turn, weights.lora_a[name].double())
        lora_b[name] = weights.lora_b[name].double() @ turn
    return LoRAWeights(
        layer_names=weights.layer_names,
        lora_a=lora_a,
        lora_b=lora_b,
        rank=weights.rank,
        metadata=weights.metadata,
        scales=dict(weights.scales),
    )


def stack_of(adapters: Mapping[str, LoRAWeights], layer: str) -> LayerStack:
    """One layer of adapters of one rank, with weights of 1 / ||dW|| of that layer."""
    own = list(adapters.values())
    a = torch.stack([w.lora_a[layer].double() for w in own])
    bt = torch.stack([w.lora_b[layer].double().T for w in own])
    scale = torch.tensor([w.scales[layer] for w in own], dtype=torch.float64)
    norms = torch.tensor([float(w.delta(layer).norm()) for w in own], dtype=torch.float64)
    weight = torch.where(norms > 0, 1 / norms, torch.zeros_like(norms))
    return LayerStack(layer, list(adapters), [a.shape[1]] * len(own), a, bt, scale, weight)


def dense(weights: LoRAWeights, layer: str) -> Tensor:
    """dW of one layer in fp64."""
    a, b = weights.lora_a[layer].double(), weights.lora_b[layer].double()
    return weights.scales[layer] * (b @ a)
