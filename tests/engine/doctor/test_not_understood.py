"""Of tensors that are not understood the doctor says so, and draws no conclusion from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.witnesses import make
from vlora_engine.catalog.open import open_adapter
from vlora_engine.doctor import TARGETS, diagnose
from vlora_engine.errors import UnsupportedAdapterError
from vlora_engine.findings import Finding

EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


def moe(layers: int = 2) -> Any:
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    shape = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": layers,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 64, "head_dim": 8,
        "moe_intermediate_size": 24, "num_experts": 4, "num_experts_per_tok": 2,
    }  # fmt: skip
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**shape)).eval()


@pytest.fixture
def experts(tmp_path: Path) -> Path:
    """An adapter of attention and of fused experts, as PEFT saves it."""
    tuned = make.peft_model(moe(), ["q_proj", "v_proj"], target_parameters=EXPERTS)
    tuned.save_pretrained(tmp_path / "a")
    return tmp_path / "a"


def grave(place: Path, target: str | None) -> list[Finding]:
    return [f for f in diagnose(place, target=target).all_findings if f.severity != "note"]


@pytest.mark.parametrize("target", [None, *TARGETS])
def test_one_error_names_the_experts_and_nothing_is_advised(
    experts: Path, target: str | None
) -> None:
    [error] = grave(experts, target)
    assert error.severity == "error"
    assert "target_parameters" in error.what
    text = " ".join(f"{f.code} {f.what} {f.remedy}" for f in diagnose(experts).all_findings)
    for false in ("stale", "remove them", "no-modules", "whole", "left out", "q_proj"):
        assert false not in text


@pytest.mark.parametrize("one_layer", [False, True])
def test_experts_are_known_by_their_tensors(one_layer: bool, tmp_path: Path) -> None:
    """Another tool has rewritten the config; with a rank of its own a pair even looks plain."""
    more = {"r": 16, "rank_pattern": dict.fromkeys(EXPERTS, 4)} if one_layer else {}
    tuned = make.peft_model(
        moe(1 if one_layer else 2), ["q_proj", "v_proj"], target_parameters=EXPERTS, **more
    )
    tuned.save_pretrained(tmp_path / "a")
    place = tmp_path / "a" / "adapter_config.json"
    settings = json.loads(place.read_text())
    place.write_text(json.dumps({**settings, "target_parameters": None, "rank_pattern": {}}))
    [error] = grave(tmp_path / "a", None)
    assert "expert" in error.what
    assert "rank_pattern" not in error.remedy
    with pytest.raises(UnsupportedAdapterError, match="target_parameters"):
        open_adapter(tmp_path / "a")
    kept = open_adapter(tmp_path / "a", allow_unsupported=True)
    assert not kept.modules  # every tensor bit for bit, none as half of a pair
    assert any(".experts.lora_A" in key for key in kept.rest)


def test_one_parameter_of_experts_is_known_too(tmp_path: Path) -> None:
    tuned = make.peft_model(moe(), ["q_proj"], target_parameters=EXPERTS[:1])
    tuned.save_pretrained(tmp_path / "a")
    place = tmp_path / "a" / "adapter_config.json"
    place.write_text(json.dumps({**json.loads(place.read_text()), "target_parameters": None}))
    with pytest.raises(UnsupportedAdapterError, match="target_parameters"):
        open_adapter(tmp_path / "a")
