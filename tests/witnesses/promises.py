"""What every subspace promises of its tasks, held against their dense weight changes."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch

from tests.witnesses import make
from tests.witnesses.dense import dense_error
from vlora_engine import SharedSubspace
from vlora_engine.adapters.model import LoRAWeights, MemorySource
from vlora_engine.manifest.records import max_k, shared_layers

METHODS = ("delta", "columns", "flat")


WIDE = {"model.layers.0.q_proj": (40, 48), "model.layers.0.v_proj": (40, 24)}


FIRST, SECOND = WIDE


Adapters = dict[str, LoRAWeights]


def compress(adapters: Mapping[str, LoRAWeights], **options: object) -> SharedSubspace:
    return SharedSubspace.from_adapters(list(adapters.values()), list(adapters), **options)


def top_k(adapters: Mapping[str, LoRAWeights], method: str) -> int:
    sources = {name: MemorySource(own) for name, own in adapters.items()}
    return max(1, *(max(max_k(method, spec, sources)) for spec in shared_layers(sources)))


def assert_true_errors(adapters: Adapters, subspace: SharedSubspace, *, abs_: float = 2e-6) -> None:
    reported = subspace.errors()["tasks"]
    for name, original in adapters.items():
        true = dense_error(original, subspace.reconstruct(name))
        assert reported[name]["error"] == pytest.approx(true, rel=1e-3, abs=abs_), name


def zeroed(own: LoRAWeights, side: str = "b", names: list[str] | None = None) -> LoRAWeights:
    factors = own.lora_b if side == "b" else own.lora_a
    for name in names or own.layer_names:
        factors[name] = torch.zeros_like(factors[name])
    return own


def stretched(own: LoRAWeights, a: float, b: float) -> LoRAWeights:
    for name in own.layer_names:
        own.lora_a[name], own.lora_b[name] = own.lora_a[name] * a, own.lora_b[name] * b
    return own


def plain(seed: int, **options: object) -> LoRAWeights:
    return make.weights(WIDE, seed=seed, **options)


def only(name: str, seed: int) -> LoRAWeights:
    return make.weights({name: WIDE[name]}, seed=seed)


def three(a: float, b: float) -> Adapters:
    return {name: stretched(plain(seed), a, b) for seed, name in enumerate("xyz")}
