"""GGUF adapters: run as llama.cpp runs them they say what PEFT says, and they read back."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.witnesses import make
from tests.witnesses.llama_cpp import Lora, Model, log_probabilities, write_base
from vlora_engine.adapters.model import LoRAWeights
from vlora_engine.catalog.open import find_adapters, load_adapter, open_adapter
from vlora_engine.catalog.scanner import scan
from vlora_engine.errors import (
    AdapterError,
    CorruptFileError,
    DependencyError,
    NotFoundError,
    ParameterError,
    UnsupportedAdapterError,
)
from vlora_engine.formats.gguf_architectures import ARCHITECTURES
from vlora_engine.targets.save import save_adapter
from vlora_engine.targets.shape import without_rest
from vlora_engine.targets.verify import verify_adapter

gguf = pytest.importorskip("gguf")
pytest.importorskip("peft")

SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 40,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GPT2 = {"n_embd": 32, "n_head": 4, "vocab_size": 40, "n_positions": 64}
SPLIT = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
MODELS: dict[str, tuple[str, str, dict[str, Any], list[str]]] = {
    "llama": ("llama", "Llama", {}, [*SPLIT, "lm_head"]),
    "mistral": ("llama", "Mistral", {"sliding_window": None}, SPLIT),
    "qwen2": ("qwen2", "Qwen2", {}, [*SPLIT, "lm_head"]),
    "qwen3": ("qwen3", "Qwen3", {"head_dim": 16}, SPLIT),
    "gemma2": ("gemma2", "Gemma2", {"head_dim": 16, "query_pre_attn_scalar": 12}, SPLIT),
    "gemma3": (
        "gemma3",
        "Gemma3Text",
        {"head_dim": 16, "query_pre_attn_scalar": 16, "num_hidden_layers": 6},
        SPLIT,
    ),
    "phi3": ("phi3", "Phi3", {}, ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]),
}


def tiny(name: str) -> tuple[str, torch.nn.Module, list[str]]:
    """llama.cpp's architecture, a random model with random biases and norms, what to train."""
    import transformers

    if name == "gpt2":
        model = make.tiny_gpt2(**GPT2)
        arch, targets = "gpt2", ["c_attn", "attn.c_proj", "c_fc", "mlp.c_proj"]
    else:
        arch, family, changes, targets = MODELS[name]
        torch.manual_seed(0)
        config = getattr(transformers, f"{family}Config")(**{**SHAPE, **changes})
        model = getattr(transformers, f"{family.removesuffix('Text')}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return arch, model.double(), targets


def exported(
    tmp_path: Path, name: str, dtype: str | None = None, **fields: Any
) -> tuple[str, Any, Path]:
    """The architecture, the PEFT model, and where its GGUF adapter lies; base under ``base``."""
    arch, model, targets = tiny(name)
    model.config.save_pretrained(tmp_path / "base")
    written = json.loads((tmp_path / "base" / "config.json").read_text())
    written["architectures"] = [type(model).__name__]
    (tmp_path / "base" / "config.json").write_text(json.dumps(written))
    peft = make.peft_model(model, targets, **fields)
    peft.save_pretrained(tmp_path / "peft")
    out = save(loaded(tmp_path), tmp_path / "out", tmp_path / "base", dtype=dtype)
    return arch, peft, out


def loaded(tmp_path: Path) -> LoRAWeights:
    """The PEFT adapter, without the copy of the output layer that PEFT saves beside its LoRA."""
    return without_rest(load_adapter(tmp_path / "peft"))


def save(
    adapter: LoRAWeights, out: Path, base: Path | None = None, target: str = "llamacpp", **how: Any
) -> Path:
    return save_adapter(adapter, out, target=target, base=base, **how)


PLAIN: dict[str, Any] = {}
RSLORA = {"use_rslora": True}
PATTERNS = {
    "rank_pattern": {"o_proj": 2, "c_fc": 2, "layers.1.self_attn.q_proj": 6},
    "alpha_pattern": {"down_proj": 3, "mlp.c_proj": 3, "layers.0.self_attn.k_proj": 11},
}


@pytest.mark.parametrize("name", [*MODELS, "gpt2"])
@pytest.mark.parametrize("fields", [PLAIN, {**RSLORA, **PATTERNS}], ids=["plain", "patterns"])
def test_llama_cpp_says_what_peft_says(tmp_path: Path, name: str, fields: dict[str, Any]) -> None:
    arch, peft, out = exported(tmp_path, name, **fields)
    tokens = torch.arange(12).reshape(1, -1) * 7 % 40
    with torch.no_grad():
        meant = peft(input_ids=tokens).logits[0]
        with peft.disable_adapter():
            bare = peft(input_ids=tokens).logits[0]
    _, model, _ = tiny(name)
    lora = Lora.read(out / "adapter.gguf")
    assert torch.allclose(Model(arch, model).logits(tokens), bare, atol=1e-5), "the witness"
    said = Model(arch, model, lora).logits(tokens)
    effect = (meant - bare).abs().max()
    assert effect > 0.01
    assert (said - meant).abs().max() < 1e-4 * effect


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("name", [*MODELS, "gpt2"])
def test_llama_cpp_itself_says_what_peft_says(
    tmp_path: Path, name: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("xllamacpp")
    monkeypatch.setitem(SHAPE, "vocab_size", 320)
    monkeypatch.setitem(SHAPE, "hidden_size", 64)
    monkeypatch.setitem(MODELS["gemma2"][2], "query_pre_attn_scalar", 16)
    monkeypatch.setitem(GPT2, "vocab_size", 320)
    fields = {**RSLORA, **PATTERNS} if dtype == "fp32" else PLAIN
    arch, peft, out = exported(tmp_path, name, dtype=dtype, **fields)
    write_base(tmp_path / "base.gguf", tiny(name)[1], arch)
    tokens = [(7 * n * n + 11) % 200 + 100 for n in range(12)]
    with torch.no_grad():
        meant = peft(input_ids=torch.tensor([tokens])).logits[0].log_softmax(-1)
        with peft.disable_adapter():
            bare = peft(input_ids=torch.tensor([tokens])).logits[0].log_softmax(-1)
    for n in (12, 11, 10, 9):
        said = log_probabilities(
            tmp_path / "base.gguf", out / "adapter.gguf", tokens[:n], meant.shape[1]
        )
        if said.isfinite().all():
            break
    assert said.isfinite().all()
    effect = (meant[n - 1] - bare[n - 1]).abs().max()
    assert effect > 0.3
    # There gelu comes out of a table of fp16, and what meets a factor of 16 bit is rounded first.
    close = 1e-3 if arch in ("gpt2", "gemma2", "gemma3") else 2e-5
    close = max(close, {"fp32": 0, "fp16": 0.01, "bf16": 0.06}[dtype])
    assert (said - meant[n - 1]).abs().max() < close * effect


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_names_are_those_of_the_package_gguf(arch: str) -> None:
    ours = ARCHITECTURES[arch]
    number = {name: key for key, name in gguf.MODEL_ARCH_NAMES.items()}[arch]
    table = gguf.get_tensor_name_map(number, 30)
    modules = [ours.block.format(n) + leaf for n in (0, 29) for leaf in ours.leaves]
    for module in [*modules, *ours.head]:
        name = table.get_name(module)
        assert name is not None
        assert ours.gguf_name(module) == name
        assert ours.module_name(name) == module
    assert ours.gguf_name("model.embed_tokens") is None
    assert ours.module_name("blk.x.attn_q") is None


def test_metadata_are_those_that_llama_cpp_asks_for(tmp_path: Path) -> None:
    exported(tmp_path, "llama", lora_alpha=12)
    adapter = loaded(tmp_path)
    adapter.metadata["base_model_name_or_path"] = "org/Base-1B"
    out = save_adapter(adapter, tmp_path / "o", target="llamacpp", base=tmp_path / "base")
    lora = Lora.read(out / "adapter.gguf")
    assert (lora.arch, lora.alpha) == ("llama", 12.0)
    assert lora.values["general.base_model.0.repo_url"] == "https://huggingface.co/org/Base-1B"
    assert lora.values["llama.attention.head_count_kv"] == 2
    assert "blk.2.ffn_down.weight" in lora.pairs
    assert open_adapter(out).config["base_model_name_or_path"] == "org/Base-1B"


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_it_reads_back_as_the_adapter_that_it_was(tmp_path: Path, dtype: str) -> None:
    exported(tmp_path, "llama", **PATTERNS)
    meant = loaded(tmp_path)
    out = save_adapter(
        meant, tmp_path / "o", target="llamacpp", base=tmp_path / "base", dtype=dtype
    )
    error = verify_adapter(meant, out)
    assert error < 1e-6 if dtype == "fp32" else 1e-6 < error < 1e-2
    for place in (out, out / "adapter.gguf"):
        source = open_adapter(place)
        assert list(source.modules) == meant.layer_names
        assert {shape.dtype for shape in source.modules.values()} == {
            {"fp32": "F32", "fp16": "F16", "bf16": "BF16"}[dtype]
        }
    info = scan([tmp_path / "o"]).adapters[0]
    assert (info.format, info.error, info.modules, info.rank) == ("gguf", None, 22, 6)
    assert [place.path for place in find_adapters(tmp_path / "o")] == [out]
    save_adapter(load_adapter(out), tmp_path / "again")
    assert verify_adapter(load_adapter(out), tmp_path / "again") < 1e-6


def test_only_b_of_exceptions_is_touched(tmp_path: Path) -> None:
    exported(tmp_path, "gpt2", alpha_pattern={"c_fc": 3})
    meant = loaded(tmp_path)
    lora = Lora.read(tmp_path / "out" / "adapter.gguf")
    for name in meant.layer_names:
        stored = ARCHITECTURES["gpt2"].gguf_name(name)
        a, b = lora.pairs[f"{stored}.weight"]
        assert torch.equal(a, meant.lora_a[name].float().double())
        same = torch.equal(b, meant.lora_b[name].float().double())
        assert same != name.endswith("c_fc")


def test_an_alpha_of_zero_stays_no_effect(tmp_path: Path) -> None:
    """llama.cpp takes an alpha of 0 as a scale of 1."""
    _, _, out = exported(tmp_path, "gpt2", lora_alpha=0)
    lora = Lora.read(out / "adapter.gguf")
    assert all(not lora.delta(name).any() for name in lora.pairs)
    assert lora.alpha > 0


def test_two_runs_give_the_same_bytes(tmp_path: Path) -> None:
    exported(tmp_path, "mistral")
    adapter = loaded(tmp_path)
    again = save_adapter(adapter, tmp_path / "b", target="llamacpp", base=tmp_path / "base")
    first = (tmp_path / "out" / "adapter.gguf").read_bytes()
    assert first == (again / "adapter.gguf").read_bytes()


def test_ollama_gets_a_modelfile(tmp_path: Path) -> None:
    exported(tmp_path, "qwen2")
    adapter = loaded(tmp_path)
    adapter.metadata["base_model_name_or_path"] = "qwen2:0.5b"
    out = save_adapter(adapter, tmp_path / "o", target="ollama", base=tmp_path / "base")
    lines = (out / "Modelfile").read_text().splitlines()
    assert lines[-2:] == ["FROM qwen2:0.5b", "ADAPTER ./adapter.gguf"]
    first = (tmp_path / "out" / "adapter.gguf").read_bytes()
    assert len((out / "adapter.gguf").read_bytes()) == pytest.approx(len(first), rel=0.1)
    save_adapter(adapter, out, target="ollama", base=tmp_path / "base", force=True)


# where the base model's config is found


def test_the_base_is_found_where_the_adapter_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported(tmp_path, "llama")
    adapter = loaded(tmp_path)
    adapter.metadata["base_model_name_or_path"] = str(tmp_path / "base")
    save_adapter(adapter, tmp_path / "a", target="llamacpp")
    snapshot = tmp_path / "hub" / "models--org--base" / "snapshots" / ("0" * 40)
    shutil.copytree(tmp_path / "base", snapshot)
    refs = tmp_path / "hub" / "models--org--base" / "refs"
    refs.mkdir()
    (refs / "main").write_text("0" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    adapter.metadata["base_model_name_or_path"] = "org/base"
    save_adapter(adapter, tmp_path / "b", target="llamacpp")
    for name in (None, "org/elsewhere", "a b c", "/no/such/place"):
        adapter.metadata["base_model_name_or_path"] = name
        with pytest.raises(NotFoundError, match="--base DIR"):
            save_adapter(adapter, tmp_path / "c", target="llamacpp")
    assert not (tmp_path / "c").exists()


# what is refused, before anything is written


def config_with(tmp_path: Path, **changes: Any) -> Path:
    fields = json.loads((tmp_path / "base" / "config.json").read_text())
    fields = {k: v for k, v in {**fields, **changes}.items() if v is not ...}
    place = tmp_path / "other.json"
    place.write_text(json.dumps(fields))
    return place


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "mamba"}, "convert_lora_to_gguf.py"),
        ({"architectures": ["InternLMForCausalLM"]}, "--target portable"),
        ({"num_hidden_layers": 2}, "2 layers"),
        ({"num_attention_heads": 8, "head_dim": 8}, "with 64 rows"),
        ({"num_key_value_heads": 4}, "k_proj with 32 rows"),
        ({"num_attention_heads": ...}, "num_attention_heads or n_head"),
        ({"num_attention_heads": "four"}, "whole number"),
        ({"num_key_value_heads": 0}, "whole number"),
        ({"model_type": 7}, "model_type"),
        ({"tie_word_embeddings": True}, "output layer is the embedding"),
    ],
)
def test_a_base_that_does_not_fit(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    exported(tmp_path, "llama")
    base = config_with(tmp_path, **changes)
    with pytest.raises((AdapterError, NotFoundError)) as caught:
        save_adapter(loaded(tmp_path), tmp_path / "o", target="llamacpp", base=base)
    assert words in str(caught.value)
    assert not (tmp_path / "o").exists()


def test_a_base_that_is_no_config(tmp_path: Path) -> None:
    exported(tmp_path, "llama")
    adapter = loaded(tmp_path)
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "nothing").mkdir()
    for place, words in (
        ("broken.json", "not JSON"),
        ("nothing", "no config"),
        ("absent", "no config"),
    ):
        with pytest.raises((AdapterError, NotFoundError), match=words):
            save_adapter(adapter, tmp_path / "o", target="llamacpp", base=tmp_path / place)
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    "module", ["model.layers.0.self_attn.w_pack", "layers.0.self_attn.q_proj", "score"]
)
def test_a_module_without_a_name_in_llama_cpp(tmp_path: Path, module: str) -> None:
    exported(tmp_path, "llama")
    odd = make.weights({module: (32, 32)})
    with pytest.raises(UnsupportedAdapterError, match="no module of this name") as caught:
        save_adapter(odd, tmp_path / "o", target="llamacpp", base=tmp_path / "base")
    assert module in str(caught.value)


def test_without_the_package_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported(tmp_path, "llama")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DependencyError, match=r"vlora-tui\[gguf\]"):
        save_adapter(
            loaded(tmp_path),
            tmp_path / "o",
            target="llamacpp",
            base=tmp_path / "base",
        )
    assert open_adapter(tmp_path / "out").modules  # reading needs no package


# reading files of others, and damaged ones


def write(path: Path, tensors: dict[str, Any], **values: Any) -> Path:
    """A GGUF file by the package gguf."""
    told = {"general.type": "adapter", "adapter.type": "lora", **values}
    writer = gguf.GGUFWriter(path, told.pop("arch", "llama"))
    for key, value in told.items():
        if isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, list):
            writer.add_array(key, value)
        else:
            writer.add_float32(key, value)
    for name, value in tensors.items():
        raw = value if isinstance(value, tuple) else (value.numpy(), None)
        writer.add_tensor(name, raw[0], raw_dtype=raw[1])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def pair(stem: str, rank: int = 2) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    return {
        f"{stem}.weight.lora_a": torch.randn(rank, 8, generator=generator),
        f"{stem}.weight.lora_b": torch.randn(12, rank, generator=generator),
    }


def test_a_file_of_llama_cpps_converter(tmp_path: Path) -> None:
    tensors = {**pair("blk.0.ffn_up"), **pair("blk.0.ffn_down", 4)}
    path = write(
        tmp_path / "theirs.gguf", tensors, **{"adapter.lora.alpha": 8.0, "x": ["a", "b"], "y": [1]}
    )
    source = open_adapter(path)
    assert dict(source.scales) == {
        "model.layers.0.mlp.down_proj": 2.0,
        "model.layers.0.mlp.up_proj": 4.0,
    }
    a, b = source.read("model.layers.0.mlp.up_proj")
    assert torch.equal(a, tensors["blk.0.ffn_up.weight.lora_a"])
    assert torch.equal(b, tensors["blk.0.ffn_up.weight.lora_b"])
    none = write(tmp_path / "none.gguf", tensors)
    assert set(open_adapter(none).scales.values()) == {1.0}


@pytest.mark.parametrize(
    ("arch", "stem"), [("llama", "blk.0.attn_q"), ("mamba", "blk.0.ssm_in"), ("qwen2", "blk.0.x")]
)
def test_names_that_cannot_be_put_back_stay(tmp_path: Path, arch: str, stem: str) -> None:
    path = write(tmp_path / "theirs.gguf", pair(stem), arch=arch)
    assert list(open_adapter(path).modules) == [stem]
    (finding,) = scan([path]).adapters[0].findings
    assert finding.code == "gguf-names"


def test_what_is_no_adapter_or_not_sound_is_refused(tmp_path: Path) -> None:
    half = {k: v for k, v in pair("blk.0.ffn_up").items() if k.endswith("a")}
    quantised = (
        torch.zeros(2, 36, dtype=torch.uint8).numpy(),
        gguf.GGMLQuantizationType.Q4_0,
    )
    cases: list[tuple[dict[str, Any], dict[str, Any], str]] = [
        (pair("blk.0.ffn_up"), {"general.type": "model"}, "not a LoRA adapter"),
        (pair("blk.0.ffn_up"), {"adapter.type": "other"}, "of type other"),
        (half, {}, "only one of its two factors"),
        ({"blk.0.attn_norm.weight": torch.ones(4)}, {}, "no factor of a linear map"),
        (
            {**pair("blk.0.ffn_up"), "blk.0.ffn_up.weight.lora_b": torch.ones(12, 3)},
            {},
            "not sound",
        ),
        ({**pair("blk.0.ffn_up"), "blk.1.ffn_up.weight.lora_a": quantised}, {}, "Q4_0"),
        (pair("blk.0.ffn_up"), {"adapter.lora.alpha": float("nan")}, "finite"),
    ]
    for i, (tensors, values, words) in enumerate(cases):
        path = write(tmp_path / f"{i}.gguf", tensors, **values)
        with pytest.raises(AdapterError) as caught:
            open_adapter(path)
        assert words in str(caught.value)


def test_a_damaged_file_is_told_at_every_length(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole.gguf", pair("blk.0.ffn_up")).read_bytes()
    path = tmp_path / "cut.gguf"
    for length in range(4, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(CorruptFileError):
            open_adapter(path)
    at = 4
    for number in (1, 4, 3 << 24):
        path.write_bytes(whole[:at] + number.to_bytes(4, "little") + whole[at + 4 :])
        with pytest.raises(UnsupportedAdapterError, match="version"):
            open_adapter(path)


def test_no_changed_byte_ends_in_a_traceback(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole.gguf", pair("blk.0.ffn_up")).read_bytes()
    path = tmp_path / "changed.gguf"
    for at in range(4, 320):
        for value in (0, 0x7F, 0xFF):
            path.write_bytes(whole[:at] + bytes([value]) + whole[at + 1 :])
            try:
                open_adapter(path)
            except AdapterError:
                continue


def numbers_of(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors of a file and what they are stored in, by the gguf package's own reader."""
    from gguf.quants import dequantize

    reader = gguf.GGUFReader(path)
    tensors = {
        t.name: torch.from_numpy(dequantize(t.data, t.tensor_type).copy()) for t in reader.tensors
    }
    return tensors, {t.name: t.tensor_type.name for t in reader.tensors}


@pytest.mark.parametrize("rank", [8, 32])
def test_eight_bit_blocks_are_read_as_ggufs_own_reader_reads_them(
    tmp_path: Path, rank: int
) -> None:
    out = exported(tmp_path, "qwen2", "q8_0", r=rank)[2]
    tensors, kinds = numbers_of(out / "adapter.gguf")
    for name, kind in kinds.items():
        whole_blocks = tensors[name].shape[-1] % 32 == 0
        assert kind == ("Q8_0" if whole_blocks else "F16"), name
    found = open_adapter(out)
    for module in found.modules:
        a, b = found.read(module)
        stored = found._names.stored[module]  # the row order of q and k is transformers' in qwen2
        assert torch.equal(a.float(), tensors[f"{stored}.weight.lora_a"].float())
        assert torch.equal(b.float(), tensors[f"{stored}.weight.lora_b"].float())
    # Half a step of amax / 127 for every number of a block, in each of the two factors.
    meant = loaded(tmp_path)
    error = verify_adapter(meant, out)
    assert 1e-4 < error < 2e-2
    plain = save(meant, tmp_path / "plain", tmp_path / "base")
    sizes = [(place / "adapter.gguf").stat().st_size for place in (out, plain)]
    assert sizes[0] < sizes[1]


def test_only_gguf_is_stored_in_eight_bit_blocks(tmp_path: Path) -> None:
    exported(tmp_path, "qwen2")
    for target in ("vllm", "peft", "portable"):
        with pytest.raises(ParameterError, match="not stored in this dtype"):
            save(loaded(tmp_path), tmp_path / f"for-{target}", target=target, dtype="q8_0")
        assert not (tmp_path / f"for-{target}").exists()


def test_a_file_whose_rows_are_no_whole_blocks_is_refused(tmp_path: Path) -> None:
    place = tmp_path / "adapter.gguf"
    writer = gguf.GGUFWriter(place, "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    raw = torch.zeros(4, 34, dtype=torch.uint8).numpy()
    writer.add_tensor("blk.0.attn_q.weight.lora_a", raw, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    whole = place.read_bytes()
    # The row's length, 32, becomes 48: half a block more.
    at = whole.index(b"lora_a") + len("lora_a") + 4
    assert whole[at : at + 8] == (32).to_bytes(8, "little")
    place.write_bytes(whole[:at] + (48).to_bytes(8, "little") + whole[at + 8 :])
    with pytest.raises(CorruptFileError, match="sound GGUF"):
        open_adapter(place)
