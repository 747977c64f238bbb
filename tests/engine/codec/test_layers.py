"""One layer through the codec: what it says that it misses is what is missed, in every mode."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import numpy as np
import pytest
import torch

from tests.engine.codec import made
from vlora_engine.adapters.model import LoRAWeights
from vlora_engine.codec.layer import CodedLayer, Group, code_layer
from vlora_engine.manifest.manifest import LayerSpec, TaskRecord
from vlora_engine.manifest.records import LONGEST_FIGURE
from vlora_engine.subspace.coded.store import Decoder, MemoryShared

LAYER = "model.layers.0.self_attn.q_proj"
ONE = {LAYER: (96, 64)}
STEPS = [3e-5, 1e-3, 0.01, 0.05, 0.2]


def coded_layer(
    adapters: Mapping[str, LoRAWeights], step: float, groups: tuple[Group, ...] = ()
) -> CodedLayer:
    stack = made.stack_of(adapters, LAYER)
    norms = np.array([float(made.dense(w, LAYER).norm()) for w in adapters.values()])
    return code_layer(stack, step * norms, groups)


def missed(adapters: Mapping[str, LoRAWeights], coded: CodedLayer) -> list[tuple[float, float]]:
    """Per task the error that is told and the true one, by dense arithmetic on the bytes."""
    decoder = Decoder(MemoryShared({(0, n): raw for n, raw in coded.shared.items()}))
    found = []
    for i, (name, own) in enumerate(adapters.items()):
        rank = own.lora_a[LAYER].shape[0]
        spec = LayerSpec(LAYER, *ONE[LAYER], rank, 0, 0)
        record = record_of(name, rank)
        a, b = decoder.factors([spec], record, [coded.blobs[i]])[LAYER]
        assert a.shape[0] == b.shape[1] == rank
        true, norm = made.dense(own, LAYER), float(made.dense(own, LAYER).norm())
        told = coded.residual[i] ** 0.5
        found.append((told / norm, float((true - b @ a).norm()) / norm))
        assert coded.energy[i] == pytest.approx(norm**2)
    return found


def record_of(name: str, rank: int) -> TaskRecord:
    empty = {"file": "", "sha256": "", "nbytes": 0, "digest": "", "norm": 1.0}
    return TaskRecord(
        id=name, layers=(0,), ranks=(rank,), scales=(1.0,), dtypes=("F32",), rank=rank,
        error=LONGEST_FIGURE, **empty,
    )  # fmt: skip


def everybody(adapters: Mapping[str, LoRAWeights], kind: str) -> tuple[Group, ...]:
    return (Group(3, kind, tuple(adapters)),) if kind != "own" else ()


MADE = {
    "family": made.family(5, ONE),
    "planted": made.planted(6, ONE),
    "independent": made.independent(4, ONE),
}


@pytest.mark.parametrize("kind", ["own", "klt", "delta"])
@pytest.mark.parametrize("collection", MADE)
@pytest.mark.parametrize("step", STEPS)
def test_what_is_told_to_be_missed_is_missed(kind: str, collection: str, step: float) -> None:
    adapters = MADE[collection]
    for told, true in missed(adapters, coded_layer(adapters, step, everybody(adapters, kind))):
        assert told == pytest.approx(true, rel=1e-3, abs=1e-8)


@pytest.mark.parametrize("kind", ["own", "klt", "delta"])
def test_errors_fall_and_bytes_grow_with_finer_steps(kind: str) -> None:
    adapters = MADE["planted" if kind == "delta" else "family"]
    layers = [
        coded_layer(adapters, s, everybody(adapters, kind)) for s in np.geomspace(0.5, 1e-5, 20)
    ]
    errors = [sum(layer.residual) for layer in layers]
    sizes = [layer.nbytes for layer in layers]
    assert all(b < 1.001 * a for a, b in pairwise(errors))
    assert all(b > a for a, b in pairwise(sizes[5:]))
    told, true = missed(adapters, layers[-1])[0]
    assert told < 3e-4
    assert true == pytest.approx(told, rel=1e-3)


def test_own_does_not_depend_on_the_gauge() -> None:
    adapters = MADE["independent"]
    turned = {name: made.in_gauge(own, seed=i) for i, (name, own) in enumerate(adapters.items())}
    for step in STEPS[1:]:
        here, there = coded_layer(adapters, step), coded_layer(turned, step)
        assert there.residual == pytest.approx(here.residual, rel=1e-3)
        for one, other in zip(here.blobs, there.blobs, strict=True):
            assert abs(len(one) - len(other)) <= 2


@pytest.mark.parametrize("spread", [0, 1e-9, 1e-6, 1e-4, 1e-3, 0.02])
def test_rows_that_are_nearly_alike_cost_no_digits(spread: float) -> None:
    """A Gram of such rows has few digits left, and rounded rows are not orthogonal to it."""
    adapters = made.independent(3, ONE)
    for own in adapters.values():
        a = own.lora_a[LAYER].double()
        a[4:] = a[:4] + spread * a[4:]
        own.lora_a[LAYER] = a
    for step in (1e-6, 1e-5, 1e-3, 0.03):
        for told, true in missed(adapters, coded_layer(adapters, step)):
            assert told == pytest.approx(true, rel=2e-3, abs=1e-8)


def test_ranks_above_the_dimensions_and_no_effect_at_all() -> None:
    adapters = {
        "wide": make_one(rank=120, seed=1),
        "negative": make_one(rank=120, seed=2),
        "nothing": make_one(rank=120, seed=3),
    }
    adapters["negative"].scales[LAYER] = -0.25
    adapters["nothing"].lora_b[LAYER] = torch.zeros_like(adapters["nothing"].lora_b[LAYER])
    coded = coded_layer(adapters, 0.002)
    for i, own in enumerate(adapters.values()):
        spec = LayerSpec(LAYER, *ONE[LAYER], 120, 0, 0)
        found = Decoder(MemoryShared({})).factors([spec], record_of("", 120), [coded.blobs[i]])
        a, b = found[LAYER]
        assert a.shape == (120, 96)
        assert b.shape == (64, 120)
        true = made.dense(own, LAYER)
        assert float((true - b @ a).norm()) == pytest.approx(coded.residual[i] ** 0.5, rel=1e-3)
    assert coded.blobs[2] == b"\0"


def make_one(rank: int, seed: int) -> LoRAWeights:
    return made.make.weights(ONE, rank=rank, seed=seed)


def test_two_alike_share_all_but_their_place() -> None:
    twins = {"one": make_one(8, 1), "two": make_one(8, 1)}
    alone = coded_layer(twins, 0.005).nbytes
    for kind in ("klt", "delta"):
        shared = coded_layer(twins, 0.005, everybody(twins, kind))
        assert shared.nbytes < 0.75 * alone
        assert shared.residual[0] == pytest.approx(shared.residual[1])
