"""What is written for vLLM is read by vLLM's own code, and has the dW that PEFT has."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from tests.witnesses import make, vllm_loader
from tests.witnesses.vllm_loader import Reader
from vlora_engine.catalog.open import load_adapter
from vlora_engine.errors import UnsupportedAdapterError
from vlora_engine.resizing import resize
from vlora_engine.targets.save import save_adapter

pytest.importorskip("peft")


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    root = vllm_loader.source(tmp_path_factory.mktemp("vllm"))
    if root is None:
        pytest.skip("vLLM is not installed, and VLLM_WHEEL names no wheel of it")
    with vllm_loader.reader(root) as found:
        yield found


def trained(place: Path, **fields: Any) -> dict[str, Tensor]:
    """An adapter by PEFT at ``place``; its dW by module."""
    model = make.peft_model(make.tiny_llama(), ["q_proj", "v_proj", "down_proj"], **fields)
    make.randomise(model)
    model.save_pretrained(place)
    return {
        name.removeprefix("base_model.model."): module.get_delta_weight("default").detach().double()
        for name, module in model.named_modules()
        if hasattr(module, "get_delta_weight")
    }


def same(found: dict[str, Tensor], meant: dict[str, Tensor]) -> None:
    assert found.keys() == meant.keys()
    for name, dw in meant.items():
        assert float((found[name] - dw).norm()) <= 1e-6 * float(dw.norm()), name


FIELDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "patterns": {"rank_pattern": {"q_proj": 7}, "alpha_pattern": {"layers.1.mlp.down_proj": 9}},
    "rank 24": {"r": 24},
}


@pytest.mark.parametrize("fields", FIELDS.values(), ids=FIELDS)
@pytest.mark.parametrize("target", ["vllm", "sglang", "portable"])
def test_dw_is_what_peft_has(
    reader: Reader, tmp_path: Path, fields: dict[str, Any], target: str
) -> None:
    meant = trained(tmp_path / "in", **fields)
    out = save_adapter(load_adapter(tmp_path / "in"), tmp_path / "out", target=target)
    if target == "portable":  # 16 bit
        for name, dw in reader.delta_weights(out).items():
            assert float((dw - meant[name]).norm()) < 2e-3 * float(meant[name].norm())
    else:
        same(reader.delta_weights(out), meant)


def test_what_it_refuses_is_refused_here_and_what_is_left_without_it_is_read(
    reader: Reader, tmp_path: Path
) -> None:
    meant = trained(tmp_path / "in", modules_to_save=["lm_head"])
    with pytest.raises(ValueError, match="modules_to_save"):
        reader.delta_weights(tmp_path / "in")
    adapter = load_adapter(tmp_path / "in")
    with pytest.raises(UnsupportedAdapterError):
        save_adapter(adapter, tmp_path / "no", target="vllm")
    out = save_adapter(adapter, tmp_path / "out", target="vllm", drop_rest=True)
    same(reader.delta_weights(out), meant)


def test_a_resized_adapter_starts_with_the_rank_that_is_said(
    reader: Reader, tmp_path: Path
) -> None:
    meant = trained(tmp_path / "in", r=6, rank_pattern={"v_proj": 20})
    resized, report = resize(load_adapter(tmp_path / "in"), target="vllm")
    out = save_adapter(resized, tmp_path / "out")
    assert report.ranks == (20, 20)
    same(reader.delta_weights(out, max_lora_rank=32), meant)
    with pytest.raises(ValueError, match="max_lora_rank"):
        reader.delta_weights(out, max_lora_rank=16)


def test_the_resolver_finds_what_names_the_served_model(reader: Reader, tmp_path: Path) -> None:
    trained(tmp_path / "in")
    adapter = load_adapter(tmp_path / "in")
    adapter.metadata["base_model_name_or_path"] = "org/model"
    save_adapter(adapter, tmp_path / "served/legal", target="vllm")
    assert reader.resolved(tmp_path / "served", "org/model", "legal") == tmp_path / "served/legal"
    assert reader.resolved(tmp_path / "served", "org/other", "legal") is None
    assert reader.resolved(tmp_path / "served", "org/model", "medical") is None
