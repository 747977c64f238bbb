"""An adapter that is coded by itself: within its error, in few tries, read once."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from tests.engine.codec import made
from tests.witnesses import make
from vlora_engine.adapters.check import check_adapter
from vlora_engine.adapters.model import LoRAWeights, MemorySource
from vlora_engine.adapters.stack import read_stack
from vlora_engine.codec.layer import code_layer
from vlora_engine.manifest.manifest import LayerSpec
from vlora_engine.manifest.records import shared_layers
from vlora_engine.subspace.coded import alone
from vlora_engine.subspace.coded.alone import LoneAdapter


class Counting(MemorySource):
    """An adapter that counts how often each of its modules is read."""

    def __init__(self, weights: LoRAWeights) -> None:
        super().__init__(weights)
        self.reads: Counter[str] = Counter()

    def read(self, module: str):  # type: ignore[no-untyped-def]
        self.reads[module] += 1
        return super().read(module)


@pytest.fixture
def source() -> Counting:
    return Counting(make.weights({**made.SQUARE, "y.v_proj": (50, 70)}, rank=20, seed=60))


def layers(source: Counting) -> list[LayerSpec]:
    return list(shared_layers({"": source}))


@pytest.mark.parametrize("limit", [0.9, 0.3, 0.05, 1e-3, 1e-5])
@pytest.mark.parametrize("tried", [0.5, 2.0**-6])
def test_the_error_is_kept_to_and_used_up(source: Counting, limit: float, tried: float) -> None:
    lone = LoneAdapter(layers(source), source, check_adapter("t", source).norm)
    source.reads.clear()
    error = lone.code(tried)
    if error > limit:
        error = lone.code_within(limit, tried, error)
        assert 0.98 * limit <= error <= limit
    assert set(source.reads.values()) == {1}
    residual = sum(share.residual for share in lone.shares())
    assert error == pytest.approx(residual**0.5 / check_adapter("t", source).norm)


def test_the_bytes_are_those_of_a_layer_with_one_adapter(
    source: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether its directions are kept or not."""
    norm, step = check_adapter("t", source).norm, 2.0**-9
    coded = []
    for kept in (alone._KEPT, 0):
        monkeypatch.setattr(alone, "_KEPT", kept)
        lone = LoneAdapter(layers(source), source, norm)
        lone.code(2.0**-5)
        lone.code(step)
        coded.append(lone.shares())
    assert coded[0] == coded[1]
    for spec, share in zip(layers(source), coded[0], strict=True):
        stack = read_stack(spec.name, {"": source}, {"": 1 / norm})
        layer = code_layer(stack, np.array([step * norm]))
        assert (share.blob, share.residual) == (layer.blobs[0], layer.residual[0])
        assert share.energy == layer.energy[0]


def test_what_has_no_effect_takes_no_bytes() -> None:
    source = Counting(made.without_effect())
    lone = LoneAdapter(layers(source), source, 0.0)
    assert lone.code(0.1) == 0
    assert {len(share.blob) for share in lone.shares()} == {1}
