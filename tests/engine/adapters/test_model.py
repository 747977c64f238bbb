"""Adapters in memory: what the constructor accepts, the first library's two functions, digests."""

from __future__ import annotations

import pytest
import torch

from tests.witnesses import make
from vlora_engine.adapters.model import (
    AdapterSource,
    LoRAWeights,
    MemorySource,
    as_source,
    module_scales,
    parse_state_dict,
    stack_lora_weights,
)
from vlora_engine.catalog.open import open_adapter
from vlora_engine.errors import AdapterError, CollectionError, ParameterError


def test_the_first_library_s_call_form():
    a, b = torch.ones(2, 3), torch.ones(4, 2)

    adapter = LoRAWeights(["m"], {"m": a}, {"m": b}, 2)

    assert adapter.scales == {"m": 1.0}
    assert torch.equal(adapter.delta("m"), torch.full((4, 3), 2.0, dtype=torch.float64))
    assert repr(adapter) == "LoRAWeights(rank=2, layers=1)"


@pytest.mark.parametrize(
    ("a", "b", "text"),
    [
        ({"m": (2, 3)}, {}, "only one of its two factors"),
        ({}, {"m": (4, 2)}, "only one of its two factors"),
        ({"m": (2, 3)}, {"m": (4, 3)}, "do not multiply"),
        ({"m": (2, 3, 1)}, {"m": (4, 2)}, "do not multiply"),
    ],
)
def test_what_is_no_adapter_cannot_be_made(a, b, text):
    sides = [{name: torch.zeros(shape) for name, shape in side.items()} for side in (a, b)]

    with pytest.raises(AdapterError, match=text):
        LoRAWeights(["m"], *sides, 2)


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({}, 1.0),
        ({"lora_alpha": 16}, 4.0),
        ({"lora_alpha": 16, "use_rslora": True}, 8.0),
        ({"lora_alpha": 16, "alpha_pattern": {"q": 2}}, 0.5),
        ({"lora_alpha": 16, "alpha_pattern": {"h": 2, "x.q": 2}}, 4.0),
        ({"lora_alpha": 16, "alpha_pattern": {r"h\.\d\.q": 2, "q": 4}}, 0.5),
        ({"lora_alpha": 16, "r": 100}, 4.0),  # the rank is the tensor's
    ],
)
def test_scales_by_peft_s_rule(config, scale):
    assert module_scales(config, {"h.1.q": 4}) == {"h.1.q": scale}


def test_state_dicts_as_the_first_library_parsed_them():
    tensors = {**make.factors(), "base_model.model.score.weight": torch.zeros(2, 2)}

    lora_a, lora_b, names = parse_state_dict(tensors)

    assert names == sorted(make.MODULES)
    assert lora_a.keys() == lora_b.keys() == set(names)
    del tensors[f"{make.PREFIX}{names[0]}.lora_B.weight"]
    with pytest.raises(AdapterError, match="only one of their two factors"):
        parse_state_dict(tensors)  # the first library drops the module in silence


def test_stacking_takes_equal_shapes_and_loses_no_module():
    adapters = [make.weights(seed=i) for i in range(3)]
    stacked = stack_lora_weights(adapters, "b")
    name = adapters[0].layer_names[0]

    assert stacked[name].shape == (3, 36 * 4)
    assert torch.equal(stacked[name][2].reshape(36, 4), adapters[2].lora_b[name])
    with pytest.raises(ParameterError, match="'a' or 'b'"):
        stack_lora_weights(adapters, "c")
    with pytest.raises(CollectionError, match="different shapes"):
        stack_lora_weights([*adapters, make.weights(rank=2)], "a")
    some = dict(list(make.MODULES.items())[1:])
    with pytest.raises(CollectionError, match=r"(?s)same modules.*adapter 3, module"):
        stack_lora_weights([*adapters, make.weights(some)], "a")
    with pytest.raises(CollectionError):
        stack_lora_weights([], "a")


def test_memory_and_file_are_both_sources(tmp_path):
    weights = make.weights(rest={"score.weight": torch.ones(2, 3, dtype=torch.bfloat16)})
    source = as_source(weights)

    assert isinstance(source, AdapterSource)
    assert isinstance(open_adapter(make.write(tmp_path)), AdapterSource)
    assert as_source(source) is source
    assert source.rest == {"score.weight": ("BF16", (2, 3))}
    assert source.modules["transformer.h.0.attn.c_attn"].fits == ("linear", 12, 36)
    assert source.nbytes == sum(
        t.numel() * t.element_size()
        for t in [*weights.lora_a.values(), *weights.lora_b.values(), *weights.rest.values()]
    )


def test_a_digest_sees_scale_dtype_shape_name_and_every_bit():
    def digest(**changes):
        weights = make.weights()
        for name, value in changes.items():
            setattr(weights, name, value)
        return MemorySource(weights).digest()

    base = make.weights()
    name = base.layer_names[0]
    flipped = base.lora_a[name].clone()
    flipped.view(torch.int32)[0, 0] ^= 1
    variants = [
        digest(),
        digest(scales={**base.scales, name: 2.0000000000000004}),
        digest(lora_a={**base.lora_a, name: flipped}),
        digest(rest={"x": torch.zeros(2, 3)}),
        digest(rest={"x": torch.zeros(3, 2)}),
        digest(rest={"y": torch.zeros(2, 3)}),
        digest(rest={"x": torch.zeros(2, 3, dtype=torch.int32)}),
    ]
    assert len(set(variants)) == len(variants)
    assert digest() == MemorySource(base).digest()
