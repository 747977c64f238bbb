"""What an export refuses the doctor has told of before, and what the doctor passes is exported."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.witnesses import make
from vlora_engine.catalog.open import open_adapter
from vlora_engine.doctor import verdict
from vlora_engine.errors import VLoRAError
from vlora_engine.targets import TARGETS, check_fit, facts_of

NAMES = [f"model.layers.{i}.self_attn.{leaf}" for i in range(2) for leaf in ("q_proj", "v_proj")]
LLAMA = dict.fromkeys(NAMES, (16, 16))
HEAD = {"base_model.model.score.weight": torch.zeros(2, 16)}
WHOLE = {"base_model.model.model.norm.weight": torch.zeros(16)}
EMBEDDING = {
    "base_model.model.model.embed_tokens.lora_embedding_A": torch.randn(4, 30),
    "base_model.model.model.embed_tokens.lora_embedding_B": torch.randn(16, 4),
}


def llama(rank: int = 8, modules: dict[str, Any] = LLAMA, **changes: Any) -> dict[str, Any]:
    targets = ["q_proj", "v_proj"]
    config = make.config(
        r=rank, target_modules=targets, fan_in_fan_out=False,
        base_model_name_or_path="org/llama", **changes,
    )  # fmt: skip
    return {"tensors": make.factors(modules, rank=rank), "settings": config}


def missing_in_one_layer() -> dict[str, Any]:
    return llama(modules=dict.fromkeys(NAMES[:-1], (16, 16)))


def with_tensors(more: dict[str, torch.Tensor], **changes: Any) -> dict[str, Any]:
    made = llama(**changes)
    return made | {"tensors": made["tensors"] | more}


CASES: dict[str, Callable[[], dict[str, Any]]] = {
    "plain": llama,
    "rsLoRA": lambda: llama(use_rslora=True),
    "a head": lambda: with_tensors(HEAD, modules_to_save=["score"]),
    "a whole matrix": lambda: with_tensors(WHOLE),
    "an embedding": lambda: with_tensors(EMBEDDING),
    "a rank beyond every server": lambda: llama(rank=600, modules=dict.fromkeys(NAMES, (700, 700))),
    "a module missing in one layer": missing_in_one_layer,
    "layers that repeat": lambda: llama(layer_replication=[[0, 1], [0, 1]]),
}
SERVERS = [name for name in TARGETS if TARGETS[name].form != "gguf"]  # they need the base's config


@pytest.mark.parametrize("target", SERVERS)
@pytest.mark.parametrize("case", CASES)
def test_what_the_export_refuses_the_doctor_has_told_of(
    case: str, target: str, tmp_path: Path
) -> None:
    path = make.write(tmp_path / "a", **CASES[case]())
    told = verdict(path, target)
    grave = [finding for finding in told if finding.severity != "note"]
    refused = refusal(path, target)
    assert not refused or grave, f"nothing said before: {refused}"
    if case in ("plain", "rsLoRA"):
        assert not refused
        assert [finding.code for finding in told if finding.severity == "error"] == []


def refusal(path: Path, target: str) -> str:
    """Why the export refuses it; empty if it does not."""
    try:
        check_fit(TARGETS[target], facts_of(open_adapter(path)))
    except VLoRAError as error:
        return str(error)
    return ""
