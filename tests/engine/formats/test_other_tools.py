"""Adapters of MLX-LM and of the image generators: made with a known dW, and real ones."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from vlora_engine.catalog.open import find_adapters, load_adapter, open_adapter
from vlora_engine.errors import AdapterError, CorruptFileError, UnsupportedAdapterError
from vlora_engine.targets.save import save_adapter

DOWN = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])  # A (r 2, in 3)
UP = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [2.0, 0.0]])  # B (out 4, r 2)
UP_DOWN = torch.tensor(  # worked out by hand
    [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [5.0, 7.0, 9.0], [2.0, 4.0, 6.0]]
).double()


def mlx(directory, tensors=None, **parameters):
    directory.mkdir(parents=True, exist_ok=True)
    name = "model.layers.3.self_attn.q_proj"
    made = {f"{name}.lora_a": DOWN.T.contiguous(), f"{name}.lora_b": UP.T.contiguous()}
    save_file(made if tensors is None else tensors, directory / "adapters.safetensors")
    config = {"model": "org/base", "num_layers": 2, "lora_parameters": parameters}
    (directory / "adapter_config.json").write_text(json.dumps(config))
    return directory


def codes(adapter):
    return {finding.code for finding in adapter.findings}


# ---- MLX-LM


def test_mlx_factors_are_transposed_and_the_scale_is_applied_as_it_stands(tmp_path):
    place = mlx(tmp_path / "a", rank=2, scale=10.0, dropout=0.0)

    weights = load_adapter(place)

    assert weights.layer_names == ["model.layers.3.self_attn.q_proj"]
    assert torch.equal(weights.delta(weights.layer_names[0]), 10 * UP_DOWN)
    assert (weights.metadata["r"], weights.metadata["lora_alpha"]) == (2, 20)
    assert weights.metadata["base_model_name_or_path"] == "org/base"
    assert weights.metadata["source_format"]["config"]["num_layers"] == 2
    written = save_adapter(weights, tmp_path / "peft")
    assert torch.equal(load_adapter(written).delta(weights.layer_names[0]), 10 * UP_DOWN)
    assert "source_format" not in json.loads((written / "adapter_config.json").read_text())


def test_mlx_takes_its_default_scale_and_says_so(tmp_path):
    adapter = open_adapter(mlx(tmp_path, rank=2))

    assert set(adapter.scales.values()) == {20.0}
    assert "no-scale" in codes(adapter)


def test_an_alpha_that_mlx_ignores_is_pointed_out(tmp_path):
    adapter = open_adapter(mlx(tmp_path, rank=2, scale=10.0, alpha=4))

    (finding,) = [f for f in adapter.findings if f.code == "mlx-alpha"]
    assert set(adapter.scales.values()) == {10.0}
    assert "20" in finding.what


@pytest.mark.parametrize(
    ("tensors", "parameters", "error", "words"),
    [
        ({"m.x.lora_a": torch.ones(3, 2)}, {}, AdapterError, "only one of its two factors"),
        (
            {"x.lora_a": torch.ones(3, 2), "x.lora_b": torch.ones(3, 4)},
            {},
            AdapterError,
            "do not multiply",
        ),
        (
            {"x.lora_a": torch.ones(2, 3, 2), "x.lora_b": torch.ones(2, 2, 4)},
            {},
            UnsupportedAdapterError,
            "experts",
        ),
        (
            {"x.lora_a": torch.ones(3, 2), "x.lora_b": torch.ones(2, 4), "x.m": torch.ones(4)},
            {},
            UnsupportedAdapterError,
            "DoRA",
        ),
        (None, {"scale": "ten"}, CorruptFileError, "lora_parameters.scale"),
    ],
)
def test_an_mlx_adapter_that_is_no_plain_lora_is_refused(
    tensors, parameters, error, words, tmp_path
):
    with pytest.raises(error, match=words):
        open_adapter(mlx(tmp_path, tensors, **parameters))


def test_checkpoints_beside_an_mlx_adapter_are_named(tmp_path):
    place = mlx(tmp_path, rank=2, scale=1.0)
    save_file({"x": torch.ones(1)}, place / "0000100_adapters.safetensors")

    assert "files-beside" in codes(open_adapter(place))


# ---- kohya and ComfyUI


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int64])
def test_a_kohya_file_has_its_alpha_in_a_tensor_of_any_dtype(dtype, tmp_path):
    name = "lora_unet_mid_block_attentions_0_to_q"
    file = tmp_path / "style.safetensors"
    tensors = {
        f"{name}.lora_down.weight": DOWN,
        f"{name}.lora_up.weight": UP,
        f"{name}.alpha": torch.tensor(3, dtype=dtype),
        "lora_te_text_model.lora_down.weight": DOWN.clone(),
        "lora_te_text_model.lora_up.weight": UP.clone(),
    }
    save_file(tensors, file, metadata={"ss_sd_model_name": "sd15.safetensors"})

    weights = load_adapter(file)

    assert torch.equal(weights.delta(name), 1.5 * UP_DOWN)
    assert torch.equal(weights.delta("lora_te_text_model"), UP_DOWN)
    assert weights.metadata["base_model_name_or_path"] == "sd15.safetensors"
    assert {"alpha-tensors", "no-alpha"} <= codes(open_adapter(file))
    assert load_adapter(save_adapter(weights, tmp_path / "peft")).scales == weights.scales


def test_a_convolution_of_kohya_is_read_with_its_kernel(tmp_path):
    down, up = torch.randn(2, 3, 3, 3), torch.randn(5, 2, 1, 1)
    tensors = {"lora_unet_conv.lora_down.weight": down, "lora_unet_conv.lora_up.weight": up}
    save_file(tensors, tmp_path / "conv.safetensors")

    adapter = open_adapter(tmp_path / "conv.safetensors")

    shape = adapter.modules["lora_unet_conv"]
    assert (shape.kind, shape.rank, shape.d_in, shape.d_out) == ("conv2d", 2, 27, 5)
    a, b = adapter.read("lora_unet_conv")
    assert torch.equal(a, down.reshape(2, 27))
    assert torch.equal(b, up.reshape(5, 2))


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("lora_unet_x.lora_mid.weight", "LoCon"),
        ("lora_unet_x.dora_scale", "DoRA"),
        ("lora_unet_x.hada_w1_a", "LyCORIS"),
        ("lora_unet_x.lokr_w1", "LyCORIS"),
        ("lora_unet_x.oft_blocks", "OFT"),
    ],
)
def test_what_is_no_plain_product_is_refused_with_its_name(key, words, tmp_path):
    tensors = {"lora_unet_x.lora_down.weight": DOWN, "lora_unet_x.lora_up.weight": UP}
    save_file({**tensors, key: torch.ones(2, 2)}, tmp_path / "x.safetensors")

    with pytest.raises(UnsupportedAdapterError, match=words):
        open_adapter(tmp_path / "x.safetensors")


@pytest.mark.parametrize("alpha", [torch.ones(2), torch.tensor(float("nan"))])
def test_an_alpha_that_is_no_number_is_refused(alpha, tmp_path):
    tensors = {"lora_unet_x.lora_down.weight": DOWN, "lora_unet_x.lora_up.weight": UP}
    save_file({**tensors, "lora_unet_x.alpha": alpha}, tmp_path / "x.safetensors")

    with pytest.raises(AdapterError, match="not one finite number"):
        open_adapter(tmp_path / "x.safetensors")


def test_half_a_pair_is_refused(tmp_path):
    save_file({"lora_unet_x.lora_down.weight": DOWN}, tmp_path / "x.safetensors")

    with pytest.raises(AdapterError, match="only one of its two factors"):
        open_adapter(tmp_path / "x.safetensors")


# ---- diffusers, cloneofsimo


@pytest.mark.parametrize(
    ("down", "up", "module"),
    [
        ("unet.a.attn1.to_q.lora_A.weight", "unet.a.attn1.to_q.lora_B.weight", "unet.a.attn1.to_q"),
        ("a.processor.to_out_lora.down.weight", "a.processor.to_out_lora.up.weight", "a.to_out.0"),
        (
            "unet.a.processor.to_k_lora.down.weight",
            "unet.a.processor.to_k_lora.up.weight",
            "unet.a.to_k",
        ),
        (
            "text_encoder.l.q_proj.lora_linear_layer.down.weight",
            "text_encoder.l.q_proj.lora_linear_layer.up.weight",
            "text_encoder.l.q_proj",
        ),
        ("unet.a.to_v.lora.down.weight", "unet.a.to_v.lora.up.weight", "unet.a.to_v"),
        ("diffusion_model.b.lora_A.weight", "diffusion_model.b.lora_B.weight", "diffusion_model.b"),
    ],
)
def test_every_way_in_which_diffusers_has_named_its_tensors(down, up, module, tmp_path):
    save_file({down: DOWN, up: UP}, tmp_path / "pytorch_lora_weights.safetensors")

    for place in (tmp_path, tmp_path / "pytorch_lora_weights.safetensors"):
        weights = load_adapter(place)
        assert weights.layer_names == [module]
        assert torch.equal(weights.delta(module), UP_DOWN)


def test_the_settings_in_a_files_metadata_decide_its_scales(tmp_path):
    modules = ("unet.a.to_q", "unet.b.to_q", "transformer.c")
    tensors = {}
    for module in modules:
        tensors |= {
            f"{module}.lora_A.weight": DOWN.clone(),
            f"{module}.lora_B.weight": UP.clone(),
        }
    noted = {"unet.r": 2, "unet.lora_alpha": 6, "unet.alpha_pattern": {"b.to_q": 1}}
    file = tmp_path / "x.safetensors"
    save_file(tensors, file, metadata={"lora_adapter_metadata": json.dumps(noted)})

    assert open_adapter(file).scales == dict(zip(modules, (3.0, 0.5, 1.0), strict=True))
    save_file(tensors, file, metadata={"lora_adapter_metadata": "[" * 5000})
    assert set(open_adapter(file).scales.values()) == {1.0}


def test_numbered_modules_keep_their_numbers_and_other_tensors(tmp_path):
    tensors = {"unet:0:down": DOWN, "unet:0:up": UP, "<token>": torch.ones(3)}
    save_file(tensors, tmp_path / "x.safetensors")

    weights = load_adapter(tmp_path / "x.safetensors")

    assert torch.equal(weights.delta("unet:0"), UP_DOWN)
    assert torch.equal(weights.rest["<token>"], torch.ones(3))
    assert "numbered-modules" in codes(open_adapter(tmp_path / "x.safetensors"))


def test_foreign_tensors_under_a_config_of_peft_are_not_guessed_at(tmp_path):
    tensors = {"lora_unet_x.lora_down.weight": DOWN, "lora_unet_x.lora_up.weight": UP}
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2}))

    with pytest.raises(UnsupportedAdapterError, match="the config is PEFT's"):
        open_adapter(tmp_path)


# ---- the real ones


def tensors_of(place):
    file = (
        place
        if place.is_file()
        else next(f for f in sorted(place.iterdir()) if f.suffix in (".safetensors", ".bin"))
    )
    if file.suffix == ".bin":
        return torch.load(file, map_location="cpu", weights_only=True)
    return load_file(file)


def fingerprint(tensor):
    flat = tensor.contiguous().reshape(-1)
    return tuple(tensor.shape), flat.view(torch.uint8).numpy().tobytes()


def test_every_tensor_of_the_zoo_is_accounted_for(real_adapters):
    places = find_adapters(real_adapters / "zoo")

    assert len(places) == 9
    for place in places:
        adapter = open_adapter(place.path)
        factors = [adapter.read(module) for module in adapter.modules]
        found = {fingerprint(x) for pair in factors for x in (*pair, pair[0].T, pair[1].T)}
        rest = {fingerprint(x) for x in adapter.read_rest().values()}
        original = tensors_of(place.path)
        for key, tensor in original.items():
            assert fingerprint(tensor) in found | rest, f"{place.name}: {key}"
        named = [f for f in adapter.findings if f.code == "alpha-tensors"]
        assert len(original) == 2 * len(factors) + len(adapter.rest) + len(named)


def test_looking_at_them_needs_no_torch(fresh_python, tmp_path):
    mlx(tmp_path / "mlx", rank=2, scale=1.0)
    tensors = {"lora_unet_x.lora_down.weight": DOWN, "lora_unet_x.lora_up.weight": UP}
    save_file(
        {**tensors, "lora_unet_x.alpha": torch.tensor(1.0).bfloat16()},
        tmp_path / "kohya.safetensors",
    )
    places = sorted(str(p) for p in tmp_path.iterdir())

    said = fresh_python(
        "import sys; from vlora_engine.catalog.scanner import scan;"
        f"found = scan({places!r}).adapters;"
        "print([(a.format, a.modules, a.scale) for a in found], 'torch' in sys.modules)"
    ).stdout

    assert said.strip() == "[('kohya', 1, 0.5), ('mlx', 1, 1.0)] False"
