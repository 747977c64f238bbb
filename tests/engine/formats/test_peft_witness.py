"""PEFT itself as the witness: what it calls the delta is ours, what we write it loads."""

from __future__ import annotations

import math

import pytest
import torch

from tests.witnesses import make
from vlora_engine.catalog.open import load_adapter, open_adapter
from vlora_engine.targets.save import save_adapter
from vlora_engine.utils.safetensors_file import read_header

peft = pytest.importorskip("peft")

BASES = {
    "gpt2": (make.tiny_gpt2, ["c_attn", "c_proj"], {"fan_in_fan_out": True}),
    "llama": (make.tiny_llama, ["q_proj", "v_proj", "down_proj"], {}),
}
CASES = {
    "plain": {"gpt2": {}, "llama": {}},
    "rslora": {"gpt2": {"use_rslora": True}, "llama": {"use_rslora": True}},
    "patterns": {
        "gpt2": {
            "rank_pattern": {"h.0.attn.c_attn": 2},
            "alpha_pattern": {"h.1.attn.c_attn": 5, "mlp.c_proj": 11},
        },
        "llama": {
            "rank_pattern": {"layers.0.self_attn.q_proj": 3},
            "alpha_pattern": {"q_proj": 7},
        },
    },
    "rslora and patterns of regular expressions": {
        "gpt2": {
            "use_rslora": True,
            "rank_pattern": {r"^transformer\.h\.1\.attn\.c_attn": 6},
            "alpha_pattern": {r".*\.1\..*": 3},
        },
        "llama": {
            "use_rslora": True,
            "rank_pattern": {r"model\.layers\.\d+\.self_attn\.v_proj": 2},
            "alpha_pattern": {r".*\.1\..*": 3},
        },
    },
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("base", BASES)
def test_scale_times_b_a_is_what_peft_adds_to_the_weight(base, case, tmp_path):
    build, targets, fields = BASES[base]
    model = make.peft_model(build(), targets, **fields, **CASES[case][base])
    model.save_pretrained(tmp_path / "a")

    adapter = load_adapter(tmp_path / "a")

    layers = {
        name.removeprefix(make.PREFIX): layer
        for name, layer in model.named_modules()
        if hasattr(layer, "get_delta_weight")
    }
    assert adapter.layer_names == sorted(layers)
    for name, layer in layers.items():
        delta = layer.get_delta_weight("default").double()
        ours = adapter.delta(name)
        expected = delta.T if fields.get("fan_in_fan_out") else delta
        assert adapter.scales[name] == layer.scaling["default"]
        torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("base", BASES)
def test_what_we_save_peft_loads_with_the_same_logits(base, case, tmp_path):
    build, targets, fields = BASES[base]
    model = make.peft_model(build(), targets, **fields, **CASES[case][base])
    model.save_pretrained(tmp_path / "a")

    save_adapter(load_adapter(tmp_path / "a"), tmp_path / "b")

    assert_loads_alike(build(), tmp_path / "b", make.logits(model))


def test_scales_and_ranks_that_no_config_had_become_patterns_that_peft_understands(tmp_path):
    model = make.peft_model(make.tiny_llama(), ["q_proj", "v_proj"], r=3, use_rslora=True)
    model.save_pretrained(tmp_path / "a")
    adapter = load_adapter(tmp_path / "a")
    wanted = {}
    for i, name in enumerate(adapter.layer_names):
        # Another rank and scale for each, such as a merge or a cut to energy leaves behind.
        rank = 1 + i % 3
        adapter.lora_a[name] = adapter.lora_a[name][:rank]
        adapter.lora_b[name] = adapter.lora_b[name][:, :rank]
        adapter.scales[name] = wanted[name] = 0.37 + i / 7

    save_adapter(adapter, tmp_path / "b")

    again = load_adapter(tmp_path / "b")
    assert again.scales == pytest.approx(wanted, rel=1e-15)
    loaded = peft.PeftModel.from_pretrained(make.tiny_llama(), tmp_path / "b")
    for name, layer in loaded.named_modules():
        if hasattr(layer, "get_delta_weight"):
            module = name.removeprefix(make.PREFIX)
            delta = layer.get_delta_weight("default").double()
            torch.testing.assert_close(again.delta(module), delta, rtol=1e-6, atol=1e-7)


def test_a_config_of_nothing_becomes_one_that_peft_loads(tmp_path):
    model = make.peft_model(make.tiny_llama(), ["q_proj"])
    model.save_pretrained(tmp_path / "a")
    adapter = load_adapter(tmp_path / "a")
    adapter.metadata = {}

    save_adapter(adapter, tmp_path / "b")

    assert_loads_alike(make.tiny_llama(), tmp_path / "b", make.logits(model))


@pytest.mark.parametrize("targets", [r".*\.1\.self_attn\.(q|v)_proj", "all-linear"])
def test_targets_by_regex_or_shorthand_become_an_explicit_list(targets, tmp_path):
    model = make.peft_model(make.tiny_llama(), targets)
    model.save_pretrained(tmp_path / "a")

    save_adapter(load_adapter(tmp_path / "a"), tmp_path / "b")

    written = load_adapter(tmp_path / "b")
    assert all(
        any(name == t or name.endswith("." + t) for t in written.metadata["target_modules"])
        for name in written.layer_names
    )
    assert_loads_alike(make.tiny_llama(), tmp_path / "b", make.logits(model))


def test_embeddings_are_modules_and_come_back_as_they_were(tmp_path):
    model = make.peft_model(make.tiny_llama(), ["embed_tokens", "q_proj"])
    model.save_pretrained(tmp_path / "a")

    adapter = load_adapter(tmp_path / "a")

    name = "model.embed_tokens"
    assert adapter.shapes[name].kind == "embedding"
    assert adapter.lora_a[name].shape == (4, 40)
    assert adapter.lora_b[name].shape == (16, 4)
    layer = model.base_model.model.model.embed_tokens
    expected = layer.get_delta_weight("default").double().T
    torch.testing.assert_close(adapter.delta(name), expected, rtol=1e-6, atol=1e-7)
    save_adapter(adapter, tmp_path / "b")
    assert_same_tensors(tmp_path / "a", tmp_path / "b")
    assert_loads_alike(make.tiny_llama(), tmp_path / "b", make.logits(model))


@pytest.mark.parametrize("kernel", [1, 3])
def test_convolutions_are_modules_and_come_back_as_they_were(kernel, tmp_path):
    base = torch.nn.Sequential(torch.nn.Conv2d(3, 6, kernel), torch.nn.Conv2d(6, 5, kernel))
    model = make.peft_model(base, ["0", "1"])
    model.save_pretrained(tmp_path / "a")

    adapter = load_adapter(tmp_path / "a")

    layer = model.base_model.model[0]
    assert adapter.shapes["0"].kind == "conv2d"
    assert adapter.lora_a["0"].shape == (4, 3 * kernel * kernel)
    expected = layer.get_delta_weight("default").double().reshape(6, -1)
    torch.testing.assert_close(adapter.delta("0"), expected, rtol=1e-5, atol=1e-6)
    save_adapter(adapter, tmp_path / "b")
    assert_same_tensors(tmp_path / "a", tmp_path / "b")


def test_heads_biases_and_token_deltas_ride_along_bit_for_bit(tmp_path):
    model = make.peft_model(
        make.tiny_llama(),
        ["q_proj", "v_proj"],
        modules_to_save=["lm_head"],
        lora_bias=False,
        trainable_token_indices={"embed_tokens": [1, 5]},
    )
    model.save_pretrained(tmp_path / "a")

    adapter = load_adapter(tmp_path / "a")

    assert {key.rsplit(".", 2)[-2] for key in adapter.rest} >= {"lm_head", "token_adapter"}
    save_adapter(adapter, tmp_path / "b")
    assert_same_tensors(tmp_path / "a", tmp_path / "b")
    assert_loads_alike(make.tiny_llama(), tmp_path / "b", make.logits(model))


def test_bias_of_lora_b_is_a_rest_tensor(tmp_path):
    base = torch.nn.Sequential(torch.nn.Linear(5, 6), torch.nn.Linear(6, 5))
    make.peft_model(base, ["0", "1"], lora_bias=True).save_pretrained(tmp_path / "a")

    adapter = load_adapter(tmp_path / "a")

    assert sorted(adapter.rest) == [f"{make.PREFIX}{i}.lora_B.bias" for i in (0, 1)]
    save_adapter(adapter, tmp_path / "b")
    assert_same_tensors(tmp_path / "a", tmp_path / "b")


def test_several_adapters_in_one_directory_are_each_found(tmp_path):
    from vlora_engine.catalog.open import find_adapters

    model = make.peft_model(make.tiny_llama(), ["q_proj"])
    model.add_adapter("legal", peft.LoraConfig(r=2, lora_alpha=4, target_modules=["v_proj"]))
    model.save_pretrained(tmp_path / "a")

    found = find_adapters(tmp_path / "a")

    assert [(place.name, place.format) for place in found] == [("a", "peft"), ("legal", "peft")]
    assert {
        open_adapter(place.path).modules["model.layers.0.self_attn.q_proj"].rank
        for place in found[:1]
    } == {4}
    assert "model.layers.1.self_attn.v_proj" in open_adapter(found[1].path).modules


def test_peft_cannot_load_a_rank_that_its_config_denies(tmp_path):
    # Why we refuse such a file instead of taking the rank from the tensor in silence.
    model = make.peft_model(make.tiny_llama(), ["q_proj"])
    model.save_pretrained(tmp_path / "a")
    path = tmp_path / "a" / "adapter_config.json"
    path.write_text(path.read_text().replace('"r": 4', '"r": 8'))

    with pytest.raises(RuntimeError, match="size mismatch"):
        peft.PeftModel.from_pretrained(make.tiny_llama(), tmp_path / "a")


def test_rslora_divides_by_the_root(tmp_path):
    make.write(tmp_path, settings=make.config(use_rslora=True))

    assert set(open_adapter(tmp_path).scales.values()) == {8 / math.sqrt(4)}


def assert_loads_alike(base, path, expected):
    loaded = peft.PeftModel.from_pretrained(base, path).eval()
    torch.testing.assert_close(make.logits(loaded), expected, rtol=0, atol=1e-6)


def assert_same_tensors(a, b):
    from safetensors.torch import load_file

    one = load_file(a / "adapter_model.safetensors")
    two = load_file(b / "adapter_model.safetensors")
    assert one.keys() == two.keys()
    for key, tensor in one.items():
        assert tensor.dtype == two[key].dtype
        assert torch.equal(tensor, two[key])
    assert read_header(b / "adapter_model.safetensors").metadata["format"] == "pt"
