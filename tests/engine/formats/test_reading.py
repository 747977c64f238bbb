"""Reading and writing adapters: every tensor accounted for, bit for bit, however it is stored."""

from __future__ import annotations

import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.witnesses import make
from vlora_engine.adapters.model import MemorySource, content_digest
from vlora_engine.catalog.open import FORMATS, find_adapters, load_adapter, open_adapter
from vlora_engine.errors import (
    AdapterError,
    CorruptFileError,
    OutputExistsError,
    ParameterError,
    UnsupportedAdapterError,
)
from vlora_engine.targets.save import save_adapter
from vlora_engine.utils.safetensors_file import ITEM_BYTES, read_header

SAFETENSORS = "adapter_model.safetensors"
HEAD = f"{make.PREFIX}score.weight"


def same_bits(a, b):
    """Equal to the last bit, NaN and the sign of zero included."""
    same = a.dtype == b.dtype and a.shape == b.shape
    return same and torch.equal(
        a.contiguous().reshape(-1).view(torch.uint8), b.contiguous().reshape(-1).view(torch.uint8)
    )


def strange_values(dtype):
    return torch.tensor([[math.nan, -0.0, math.inf], [-math.inf, 1e-40, 7]]).to(dtype)


@pytest.mark.parametrize("pickled", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_load_save_load_keeps_every_bit(dtype, pickled, tmp_path):
    tensors = {
        **make.factors(dtype=dtype),
        HEAD: strange_values(dtype),
        "not.understood": torch.arange(5),
        "flags": torch.tensor([True, False]),
        "empty": torch.zeros(0, 3),
        "number": torch.tensor(3.5),
    }
    make.write(tmp_path / "a", tensors, pickle=pickled)

    adapter = load_adapter(tmp_path / "a")
    save_adapter(adapter, tmp_path / "b")

    written = load_file(tmp_path / "b" / SAFETENSORS)
    assert written.keys() == tensors.keys()
    assert all(same_bits(written[key], tensors[key]) for key in tensors)
    again = load_adapter(tmp_path / "b")
    assert again.scales == adapter.scales
    assert again.metadata == adapter.metadata == make.config()
    assert content_digest(MemorySource(again)) == content_digest(MemorySource(adapter))


@pytest.mark.parametrize("pickled", [False, True])
def test_a_source_and_memory_have_one_digest_that_a_bit_changes(pickled, tmp_path):
    tensors = {**make.factors(), HEAD: torch.ones(2, 3)}
    make.write(tmp_path / "a", tensors, pickle=pickled)
    source = open_adapter(tmp_path / "a")

    assert source.digest() == MemorySource(load_adapter(tmp_path / "a")).digest()
    others = [
        make.write(tmp_path / "head", {**tensors, HEAD: torch.full((2, 3), 1 + 2**-23)}),
        make.write(tmp_path / "alpha", tensors, make.config(lora_alpha=9)),
    ]
    assert len({source.digest(), *(open_adapter(path).digest() for path in others)}) == 3


def test_a_source_says_what_headers_say_and_counts_its_own_files_only(tmp_path):
    path = make.write(tmp_path, {**make.factors(), HEAD: torch.ones(2, 3)})
    (path / "optimizer.pt").write_bytes(b"never opened")

    source = open_adapter(path)

    files = [path / "adapter_config.json", path / SAFETENSORS]
    assert source.nbytes == sum(file.stat().st_size for file in files)
    assert list(source.modules) == sorted(make.MODULES)
    shape = source.modules["transformer.h.0.attn.c_attn"]
    assert (shape.rank, shape.d_in, shape.d_out, shape.dtype) == (4, 12, 36, "F32")
    assert source.rest == {HEAD: ("F32", (2, 3))}
    assert set(source.scales.values()) == {2.0}
    assert [f.code for f in source.findings] == ["pickle-beside", "rest-tensors"]


def test_safetensors_is_preferred_to_a_pickle_which_is_then_never_opened(tmp_path):
    make.write(tmp_path)
    (tmp_path / "adapter_model.bin").write_bytes(b"\x80\x04not a pickle at all")

    assert len(load_adapter(tmp_path).layer_names) == 4


def test_the_old_form_of_torch_save_is_read_too(tmp_path):
    make.write(tmp_path, pickle=True)
    tensors = make.factors()
    torch.save(tensors, tmp_path / "adapter_model.bin", _use_new_zipfile_serialization=False)

    adapter = load_adapter(tmp_path)

    name = adapter.layer_names[0]
    assert torch.equal(adapter.lora_a[name], tensors[f"{make.PREFIX}{name}.lora_A.weight"])


def test_tensors_read_from_a_pickle_are_our_own(tmp_path):
    # Mapped memory must not be handed out: whoever scales it in place would scale it for all.
    make.write(tmp_path, pickle=True)
    source = open_adapter(tmp_path)
    name = next(iter(source.modules))
    before = source.read(name)[0].clone()

    source.read(name)[0].mul_(2)

    assert torch.equal(source.read(name)[0], before)


def test_an_adapters_name_inside_the_keys(tmp_path):
    tensors = {
        key.replace("lora_A", "lora_A.default").replace("lora_B", "lora_B.default"): value
        for key, value in make.factors().items()
    }
    make.write(tmp_path / "a", tensors)

    source = open_adapter(tmp_path / "a")

    assert list(source.modules) == sorted(make.MODULES)
    assert "named-keys" in [f.code for f in source.findings]
    save_adapter(load_adapter(tmp_path / "a"), tmp_path / "b")
    assert load_file(tmp_path / "b" / SAFETENSORS).keys() == make.factors().keys()


def test_keys_without_peft_s_prefix_are_read_and_mended_on_saving(tmp_path):
    tensors = {key.removeprefix(make.PREFIX): value for key, value in make.factors().items()}
    make.write(tmp_path / "a", tensors)

    source = open_adapter(tmp_path / "a")

    assert list(source.modules) == sorted(make.MODULES)
    assert "no-prefix" in [f.code for f in source.findings]
    save_adapter(load_adapter(tmp_path / "a"), tmp_path / "b")
    assert load_file(tmp_path / "b" / SAFETENSORS).keys() == make.factors().keys()


def test_absent_r_and_alpha_mean_what_peft_takes_them_for(tmp_path):
    make.write(tmp_path, make.factors(rank=8), make.config(r=..., lora_alpha=..., peft_type=...))

    source = open_adapter(tmp_path)

    assert set(source.scales.values()) == {1.0}
    assert [f.code for f in source.findings] == ["no-peft-type", "no-r", "no-lora-alpha"]


def test_the_path_may_name_the_files_themselves(tmp_path):
    make.write(tmp_path)
    odd = tmp_path / "step-100.safetensors"
    save_file(make.factors(seed=7), odd)

    for name in ("adapter_config.json", SAFETENSORS):
        assert open_adapter(tmp_path / name).path == tmp_path
    name = "transformer.h.0.attn.c_attn"
    expected = make.factors(seed=7)[f"{make.PREFIX}{name}.lora_A.weight"]
    assert torch.equal(open_adapter(odd).read(name)[0], expected)


# --- saving -------------------------------------------------------------------------------------


def test_the_config_is_kept_as_it_was_found(tmp_path):
    settings = make.config(
        target_modules=["c_proj", "c_attn", "q_proj"],  # one of them matches nothing
        modules_to_save=["score"],
        a_field_of_the_future={"deep": [1, None]},
        inference_mode=False,
    )
    make.write(tmp_path / "a", settings=settings)

    save_adapter(load_adapter(tmp_path / "a"), tmp_path / "b")

    assert load_adapter(tmp_path / "b").metadata == {**settings, "inference_mode": True}


def test_targets_that_miss_a_module_become_full_paths(tmp_path):
    make.write(tmp_path / "a", settings=make.config(target_modules=["c_attn"], layers_pattern="h"))

    save_adapter(load_adapter(tmp_path / "a"), tmp_path / "b")

    metadata = load_adapter(tmp_path / "b").metadata
    assert metadata["target_modules"] == sorted(make.MODULES)
    assert metadata["layers_pattern"] is None


def test_an_update_of_nothing_is_saved_as_rank_one(tmp_path):
    adapter = make.weights()
    name = adapter.layer_names[0]
    adapter.lora_a[name] = adapter.lora_a[name][:0]
    adapter.lora_b[name] = adapter.lora_b[name][:, :0]

    save_adapter(adapter, tmp_path / "a")

    again = load_adapter(tmp_path / "a")
    assert again.lora_a[name].shape == (1, 12)
    assert not again.delta(name).any()
    assert again.metadata["rank_pattern"] == {name: 1}


def test_a_module_whose_name_ends_another_s_gets_an_anchored_pattern(tmp_path):
    modules = {"q": (4, 4), "x.q": (4, 4), "y": (4, 4), "z": (4, 4)}
    adapter = make.weights(modules, metadata={}, scales={"q": 3.0, "x.q": 1.0, "y": 1.0, "z": 1.0})

    save_adapter(adapter, tmp_path)

    again = load_adapter(tmp_path)
    assert again.scales == adapter.scales
    assert again.metadata["alpha_pattern"] == {"^q": 12}
    assert again.metadata["target_modules"] == ["q", "x.q", "y", "z"]


@pytest.mark.parametrize(("word", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_dtype_changes_the_factors_and_leaves_the_rest(word, dtype, tmp_path):
    adapter = make.weights(rest={HEAD: torch.full((2, 3), 1 + 2**-20)})

    save_adapter(adapter, tmp_path, dtype=word)

    again = load_adapter(tmp_path)
    assert {t.dtype for t in [*again.lora_a.values(), *again.lora_b.values()]} == {dtype}
    assert same_bits(again.rest[HEAD], adapter.rest[HEAD])


def test_values_too_large_for_fp16_are_refused_not_made_infinite(tmp_path):
    adapter = make.weights()
    adapter.lora_a[adapter.layer_names[0]][0, 0] = 1e6

    with pytest.raises(ParameterError, match=r"(?s)do not fit float16.*1e\+06.*choose bf16"):
        save_adapter(adapter, tmp_path / "a", dtype="fp16")

    assert not list(tmp_path.iterdir())


def test_a_target_that_is_not_there_is_refused_by_name(tmp_path):
    with pytest.raises(ParameterError, match="There is no target 'pfet'"):
        save_adapter(make.weights(), tmp_path / "a", target="pfet")


def test_nothing_is_overwritten_unless_told(tmp_path):
    save_adapter(make.weights(seed=1), tmp_path / "a")
    (tmp_path / "a" / "adapter_model.bin").write_text("ghost")

    with pytest.raises(OutputExistsError):
        save_adapter(make.weights(seed=2), tmp_path / "a")
    save_adapter(make.weights(seed=2), tmp_path / "a", force=True)

    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == [
        "README.md",
        "adapter_config.json",
        SAFETENSORS,
    ]
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_mixed_dtypes_stay_aligned_for_other_readers(tmp_path):
    # Who maps the file and views its bytes as a dtype needs them to start at a multiple of it.
    adapter = make.weights(rest={"a.odd": torch.tensor([1, 2, 3], dtype=torch.uint8)})

    save_adapter(adapter, tmp_path)

    header = read_header(tmp_path / SAFETENSORS)
    assert all(e.start % ITEM_BYTES[e.dtype] == 0 for e in header.entries.values())


def test_a_rest_tensor_cannot_take_a_factor_s_place(tmp_path):
    key = f"{make.PREFIX}transformer.h.0.attn.c_attn.lora_A.weight"

    with pytest.raises(AdapterError, match="has the key of a factor"):
        save_adapter(make.weights(rest={key: torch.zeros(1)}), tmp_path / "a")


# --- finding ------------------------------------------------------------------------------------


def test_adapters_below_a_directory_in_the_order_of_their_paths(tmp_path):
    make.write(tmp_path / "run")
    make.write(tmp_path / "run" / "legal")
    make.write(tmp_path / "run" / "checkpoint-500")
    make.write(tmp_path / "run" / ".cache" / "hidden")
    make.write(tmp_path / "a" / "b" / "c" / "d" / "too-deep")
    (tmp_path / "run" / "again").symlink_to(tmp_path)
    (tmp_path / "dangling").symlink_to("nowhere")

    found = find_adapters(tmp_path)

    names = [str(place.path.relative_to(tmp_path)) for place in found]
    assert names == ["run", "run/checkpoint-500", "run/legal"]
    assert len(find_adapters(tmp_path, max_depth=5)) == 4
    assert len(find_adapters(tmp_path, max_adapters=2)) == 2


def test_two_formats_of_one_name_are_a_fault():
    assert FORMATS.names()[0] == "vlora-subspace"
    with pytest.raises(ValueError, match="two formats are called 'peft'"):
        FORMATS.add(FORMATS["peft"])


REFUSED_KEYS = {
    "LyCORIS": "lora_unet_down_blocks_0_attn1_to_q.hada_w1_a",
    "Sam_LoRA": "w_a_000",
}


@pytest.mark.parametrize("label", REFUSED_KEYS)
@pytest.mark.parametrize("name", ["weights.safetensors", SAFETENSORS])
def test_formats_that_are_not_read_are_told_by_their_keys_under_any_file_name(
    label, name, tmp_path
):
    save_file({REFUSED_KEYS[label]: torch.zeros(2, 2)}, tmp_path / name)

    for place in (tmp_path, tmp_path / name):
        with pytest.raises(UnsupportedAdapterError, match=r"it is not read") as caught:
            open_adapter(place)
        assert label in caught.value.what
        assert caught.value.remedy


def test_an_old_file_of_mlx_is_refused_by_name(tmp_path):
    (tmp_path / "adapters.npz").write_text("")

    with pytest.raises(UnsupportedAdapterError, match="an MLX-LM adapter"):
        open_adapter(tmp_path)


def test_half_a_gguf_file_is_refused_by_name(tmp_path):
    (tmp_path / "lora.gguf").write_bytes(b"GGUF\x03\0\0\0")

    with pytest.raises(CorruptFileError, match="GGUF"):
        open_adapter(tmp_path / "lora.gguf")
    assert [place.format for place in find_adapters(tmp_path)] == ["gguf"]


# --- the real ones ------------------------------------------------------------------------------

REFUSED = {f"rank{r:02d}": "Sam_LoRA" for r in (2, 4, 6, 8, 16)}


def test_real_adapters_are_read_whole_or_refused_by_name(real_adapters, tmp_path):
    places = find_adapters(real_adapters)

    assert {place.name for place in places} == {
        folder.name for folder in real_adapters.glob("*/*") if folder.is_dir()
    }
    for place in places:
        if place.name in REFUSED:
            with pytest.raises(UnsupportedAdapterError) as caught:
                open_adapter(place.path)
            assert REFUSED[place.name] in str(caught.value)
            continue
        if place.format != "peft":
            continue  # test_other_tools
        original = load_file(place.path / SAFETENSORS)
        adapter = load_adapter(place.path)
        out = save_adapter(adapter, tmp_path / place.name)
        written = load_file(out / SAFETENSORS)
        assert written.keys() == original.keys()
        assert all(same_bits(written[key], original[key]) for key in original)
        assert load_adapter(out).scales == adapter.scales


def test_a_real_pickle_of_diffusers_is_told_by_its_keys(real_adapters, tmp_path):
    pickled = real_adapters / "zoo" / "diffusers-catund-bin" / "pytorch_lora_weights.bin"
    (tmp_path / "weights.bin").write_bytes(pickled.read_bytes())

    named, unnamed = open_adapter(pickled), open_adapter(tmp_path / "weights.bin")

    assert len(named.modules) == 128
    assert unnamed.digest() == named.digest()
