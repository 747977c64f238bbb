"""A merged checkpoint beside base + adapter; PEFT's merge_and_unload made it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.engine.doctor.merges import Bench
from tests.witnesses import make
from vlora_engine.catalog.open import open_adapter
from vlora_engine.doctor import check_merged, read_checkpoint
from vlora_engine.doctor import checkpoint as checkpoints
from vlora_engine.doctor.merged_report import MergedReport
from vlora_engine.errors import UnsupportedAdapterError, VLoRAError

pytest.importorskip("peft")
TARGETS = ["q_proj", "v_proj", "down_proj"]


@pytest.fixture
def llama(tmp_path: Path) -> Bench:
    return Bench(tmp_path, make.tiny_llama(), TARGETS)


def verdicts(report: MergedReport) -> dict[str, str]:
    return {row.module: row.verdict for row in report.modules}


def all_right(report: MergedReport, count: int) -> None:
    assert verdicts(report) == dict.fromkeys(verdicts(report), "right"), report.findings
    assert len(report.modules) == report.right == count
    assert (report.changed, report.missing, report.added) == ([], [], [])
    assert report.findings == []


# ---- right --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_merge_in_any_dtype_is_right(llama: Bench, dtype: torch.dtype) -> None:
    all_right(llama.judged(llama.merged(dtype=dtype)), 6)


def test_a_merge_in_fp32_that_is_stored_in_half_is_right(llama: Bench) -> None:
    all_right(llama.judged(llama.merged().to(torch.bfloat16)), 6)


def test_shards_are_read_each_where_it_lies(llama: Bench) -> None:
    report = llama.judged(llama.merged(), max_shard_size="4KB")
    assert len(list((llama.folder / "m").glob("*.safetensors"))) > 3
    all_right(report, 6)


def test_only_some_rows_are_in_memory_at_a_time(
    llama: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The verdict is the same, and no part that is read is larger than it may be."""
    whole = llama.judged(llama.merged(times=2))
    read = []
    monkeypatch.setattr(checkpoints, "AT_ONCE", 64)
    elements = checkpoints.read_elements

    def noted(header: Any, name: str, first: int, count: int) -> Any:
        read.append(count)
        return elements(header, name, first, count)

    monkeypatch.setattr(checkpoints, "read_elements", noted)
    parts = llama.check("m")
    assert max(read) <= 64 < 16 * 24
    assert verdicts(parts) == verdicts(whole)
    for one, other in zip(parts.modules, whole.modules, strict=True):
        assert one.factor == pytest.approx(other.factor)
        assert one.error == pytest.approx(other.error)


def patterns() -> dict[str, Any]:
    return {"use_rslora": True, "alpha_pattern": {"v_proj": 3}, "rank_pattern": {"q_proj": 2}}


@pytest.mark.parametrize(
    ("base", "targets", "fields", "count"),
    [
        (make.tiny_llama, TARGETS, patterns(), 6),
        (make.tiny_gpt2, ["c_attn", "c_proj"], {"fan_in_fan_out": True}, 6),  # c_proj is square
        (make.tiny_llama, ["embed_tokens", "q_proj"], {}, 3),
        (make.tiny_llama, ["lm_head"], {}, 1),
        (make.tiny_llama, ["q_proj"], {"modules_to_save": ["lm_head", "norm"]}, 8),
    ],
    ids=["patterns", "conv1d", "embedding", "head", "modules_to_save"],
)
def test_every_kind_of_module_is_right(
    tmp_path: Path, base: Callable[[], Any], targets: Any, fields: dict[str, Any], count: int
) -> None:
    bench = Bench(tmp_path, base(), targets, **fields)
    all_right(bench.judged(bench.merged()), count)
    unmerged = bench.judged(bench.fresh(), "base")
    assert set(verdicts(unmerged).values()) == {"not-merged"}


def test_attention_of_one_matrix_is_found_by_pytorchs_name(tmp_path: Path) -> None:
    """MultiheadAttention calls its matrix in_proj_weight."""
    torch.manual_seed(0)
    w = torch.randn(36, 12)
    change = {"A": torch.randn(4, 12), "B": torch.randn(36, 4)}
    tensors = {f"base_model.model.attn.lora_{s}.weight": t for s, t in change.items()}
    make.write(tmp_path / "a", tensors, make.config(target_modules=["attn"], lora_alpha=8))
    for name, matrix in (("base", w), ("m", w + 2 * change["B"] @ change["A"])):
        (tmp_path / name).mkdir()
        save_file({"attn.in_proj_weight": matrix}, tmp_path / name / "model.safetensors")
    found = check_merged(
        open_adapter(tmp_path / "a"),
        read_checkpoint(tmp_path / "base"),
        read_checkpoint(tmp_path / "m" / "model.safetensors"),
    )
    all_right(found, 1)


# ---- wrong --------------------------------------------------------------------------------------


def test_what_is_in_it_twice_is_told(llama: Bench) -> None:
    report = llama.judged(llama.merged(times=2))
    assert set(verdicts(report).values()) == {"scaled"}
    for row in report.modules:
        assert row.factor == pytest.approx(2, abs=1e-4)
        assert row.error == pytest.approx(1, abs=1e-4)
        assert row.what.startswith("dW is in it twice")
    assert report.summary.startswith("merged right: 0 of 6 modules (6 with another scale)")


def test_twice_in_bf16_too(llama: Bench) -> None:
    report = llama.judged(llama.merged(times=2, dtype=torch.bfloat16))
    assert set(verdicts(report).values()) == {"scaled"}
    assert all("twice" in row.what for row in report.modules)


def test_one_module_that_is_not_merged_comes_first(llama: Bench) -> None:
    model = llama.merged()
    name = "model.layers.1.self_attn.v_proj"
    model.get_submodule(name).weight.data = llama.fresh().get_submodule(name).weight.data.clone()
    report = llama.judged(model)
    assert report.modules[0].module == name
    assert report.modules[0].verdict == "not-merged"
    assert report.right == 5
    assert report.modules[0].factor == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"lora_alpha": 18}, "3 times"),
        ({"use_rslora": True}, "as if it were rsLoRA"),
        ({"lora_alpha": 5}, "with a scale of 1"),
    ],
)
def test_another_scale_is_told_with_what_makes_it(
    tmp_path: Path, change: dict[str, Any], word: str
) -> None:
    """The scale that PEFT derives from another config than the adapter's."""
    llama = Bench(tmp_path, make.tiny_llama(), TARGETS, r=5)
    config = llama.folder / "a" / "adapter_config.json"
    before = config.read_text()
    config.write_text(json.dumps(json.loads(before) | change))
    model = llama.merged()
    config.write_text(before)
    report = llama.judged(model)
    assert set(verdicts(report).values()) == {"scaled"}
    assert all(word in row.what for row in report.modules)


def test_a_transposed_square_matrix_is_told(tmp_path: Path) -> None:
    bench = Bench(tmp_path, make.tiny_gpt2(), ["attn.c_proj"], fan_in_fan_out=True)
    model, base = bench.merged(), bench.fresh()
    for layer in range(2):
        own, bare = (
            m.get_submodule(f"transformer.h.{layer}.attn.c_proj").weight.data for m in (model, base)
        )
        own.copy_(bare + (own - bare).T)
    assert set(verdicts(bench.judged(model)).values()) == {"transposed"}


def test_noise_beside_dw_is_off_and_says_that_dw_is_there(llama: Bench) -> None:
    """As a merge onto the rounded weights of a quantized base leaves it."""
    model = llama.merged()
    weight = model.get_submodule("model.layers.0.mlp.down_proj").weight.data
    torch.manual_seed(3)
    noise = torch.randn_like(weight)
    base = llama.fresh().get_submodule("model.layers.0.mlp.down_proj").weight.data
    change = weight - base
    noise -= (noise * change).sum() / change.square().sum() * change
    weight += noise * 0.1 * change.norm() / noise.norm()
    row = llama.judged(model).modules[0]
    assert (row.module, row.verdict) == ("model.layers.0.mlp.down_proj", "off")
    assert row.error == pytest.approx(0.1, rel=1e-3)
    assert row.factor == pytest.approx(1, abs=1e-3)
    assert "quantized" in row.what


def test_a_change_below_the_rounding_is_told_from_a_missing_one(llama: Bench) -> None:
    """In bf16 a small dW is lost; in fp32 the same one is there, or not."""
    tensors = load_file(llama.folder / "a/adapter_model.safetensors")
    small = {k: t * 1e-5 if "lora_B" in k else t for k, t in tensors.items()}
    save_file(small, llama.folder / "a/adapter_model.safetensors", {"format": "pt"})
    all_right(llama.judged(llama.merged(), "fp32"), 6)
    assert set(verdicts(llama.check("base")).values()) == {"not-merged"}
    base = llama.fresh().to(torch.bfloat16)
    base.save_pretrained(llama.folder / "base")
    report = llama.judged(llama.merged(dtype=torch.bfloat16), "half")
    assert set(verdicts(report).values()) == {"lost"}
    assert report.fails("warning")
    assert not report.fails("error")


def test_a_merge_in_bf16_that_is_stored_in_fp32_is_rounded(llama: Bench) -> None:
    report = llama.judged(llama.merged(dtype=torch.bfloat16).float())
    assert set(verdicts(report).values()) == {"rounded"}
    assert report.right == 6
    # norms of 1 are the same in both; all other matrices of the base lost bits
    assert len(report.changed) == 10


def test_tensors_beside_the_adapters_are_the_bases(llama: Bench) -> None:
    model = llama.merged()
    model.model.norm.weight.data += 0.1
    llama.judged(model)
    tensors = load_file(llama.folder / "m/model.safetensors")
    del (
        tensors["model.layers.0.self_attn.k_proj.weight"],
        tensors["model.layers.0.mlp.down_proj.weight"],
    )
    tensors["extra.weight"] = torch.ones(2)
    save_file(tensors, llama.folder / "m/model.safetensors")
    report = llama.check("m")
    assert report.changed == ["model.norm.weight"]
    assert report.missing == ["model.layers.0.self_attn.k_proj.weight"]
    assert report.added == ["extra.weight"]
    assert report.modules[0].verdict == "absent"
    assert [f.severity for f in report.findings] == ["error"] * 3 + ["note"]


# ---- tied embeddings ----------------------------------------------------------------------------


def test_a_head_that_is_the_embedding_takes_the_change_along(tmp_path: Path) -> None:
    """merge_and_unload puts the head's change into the matrix that the embedding reads too."""
    bench = Bench(tmp_path, make.tiny_llama(tie_word_embeddings=True), ["lm_head", "q_proj"])
    assert "lm_head.weight" not in load_file(tmp_path / "base/model.safetensors")
    report = bench.judged(bench.merged())
    assert verdicts(report)["lm_head"] == "shared"
    assert report.right == 2
    # untied before the merge, both are what they should be
    model = bench.fresh()
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    all_right(bench.judged(bench.merged(model), "untied"), 3)


def test_tied_and_left_alone_is_no_difference(tmp_path: Path) -> None:
    bench = Bench(tmp_path, make.tiny_llama(tie_word_embeddings=True), ["q_proj"])
    all_right(bench.judged(bench.merged()), 2)
    model = bench.merged()
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    all_right(bench.judged(model, "untied"), 2)


# ---- what cannot be told ------------------------------------------------------------------------


def test_a_module_that_the_base_lacks_and_a_packed_one_cannot_be_told(llama: Bench) -> None:
    model = llama.merged()
    llama.judged(model)
    tensors = load_file(llama.folder / "m/model.safetensors")
    key = "model.layers.0.self_attn.q_proj.weight"
    tensors[key] = tensors[key].to(torch.int8)
    save_file(tensors, llama.folder / "m/model.safetensors")
    tensors = load_file(llama.folder / "a/adapter_model.safetensors")
    renamed = {k.replace("layers.1.self_attn.q_proj", "layers.1.self_attn.qq"): t
               for k, t in tensors.items()}  # fmt: skip
    save_file(renamed, llama.folder / "a/adapter_model.safetensors", {"format": "pt"})
    report = llama.check("m")
    unknown = {row.module: row.what for row in report.modules if row.verdict == "unknown"}
    assert "no matrix" in unknown["model.layers.1.self_attn.qq"]
    assert "packed" in unknown["model.layers.0.self_attn.q_proj"]
    assert report.changed == ["model.layers.1.self_attn.q_proj.weight"]


def test_dora_is_refused(llama: Bench) -> None:
    config = llama.folder / "a" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"use_dora": True}))
    with pytest.raises((UnsupportedAdapterError, VLoRAError)):
        llama.check("base")
