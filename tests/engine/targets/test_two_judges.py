"""What an export refuses the doctor has told of before, and what the doctor passes is exported."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.witnesses import make
from vlora_engine.adapters.model import to_memory
from vlora_engine.catalog.open import open_adapter
from vlora_engine.doctor import all_rules, diagnose, read_base
from vlora_engine.errors import VLoRAError
from vlora_engine.findings import Finding
from vlora_engine.formats.gguf_header import read_gguf_header
from vlora_engine.targets import TARGETS, check_fit, facts_of
from vlora_engine.targets.save import save_adapter

RULES = {rule.code: rule for rule in all_rules()}

NAMES = [f"model.layers.{i}.self_attn.{leaf}" for i in range(2) for leaf in ("q_proj", "v_proj")]
LLAMA = dict.fromkeys(NAMES, (16, 16))
HEAD = {"base_model.model.score.weight": torch.zeros(2, 16)}
WHOLE = {"base_model.model.model.norm.weight": torch.zeros(16)}
OUTPUT = make.factors({"lm_head": (16, 40)}, rank=8)
COPY = {"base_model.model.lm_head.base_layer.weight": torch.zeros(40, 16)}
BIAS = {f"base_model.model.{NAMES[0]}.base_layer.bias": torch.zeros(16)}
CONVOLUTION = {
    "base_model.model.conv.lora_A.weight": torch.ones(8, 3, 3, 3),
    "base_model.model.conv.lora_B.weight": torch.ones(4, 8, 1, 1),
}
EMBEDDING = {
    "base_model.model.model.embed_tokens.lora_embedding_A": torch.randn(8, 30),
    "base_model.model.model.embed_tokens.lora_embedding_B": torch.randn(16, 8),
}


def llama(
    rank: int = 8,
    modules: dict[str, Any] = LLAMA,
    ranks: dict[str, int] | None = None,
    targets: Any = ("q_proj", "v_proj"),
    **changes: Any,
) -> dict[str, Any]:
    config = make.config(**{
        "r": rank, "target_modules": targets, "fan_in_fan_out": False,
        "base_model_name_or_path": "org/llama", **changes,
    })  # fmt: skip
    each = dict.fromkeys(modules, rank) | (ranks or {})
    return {"tensors": make.factors(modules, rank=each), "settings": config}


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
    "activated": lambda: llama(alora_invocation_tokens=[5, 6, 8]),
    "a field of next year": lambda: llama(a_field_of_next_year={"gate": "sigmoid"}),
    "an output layer": lambda: with_tensors(OUTPUT),
    "a copy of the base": lambda: with_tensors(COPY),
    "a bias": lambda: with_tensors(BIAS, bias="all"),
    "a bias that is said alone": lambda: llama(bias="lora_only"),
    "a head that is said alone": lambda: llama(modules_to_save=["score"]),
    "another alpha": lambda: llama(alpha_pattern={"q_proj": 3}),
    "full paths": lambda: llama(targets=NAMES),
    "a pattern of targets": lambda: llama(targets=".*(q_proj|v_proj)"),
    "no alpha": lambda: llama(lora_alpha=0),
    "a convolution": lambda: with_tensors(CONVOLUTION),
    "two ranks": lambda: llama(
        rank_pattern={NAMES[0]: 3, NAMES[2]: 12}, ranks={NAMES[0]: 3, NAMES[2]: 12}
    ),
    "a module of no name": lambda: llama(modules={**LLAMA, "model.projector": (16, 16)}),
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders with the config of a base, by what is special about it."""
    folder = tmp_path_factory.mktemp("bases")
    shape = {"num_attention_heads": 2, "num_key_value_heads": 2}
    for name, more in (
        ("untied", {}), ("tied", {"tie_word_embeddings": True}), ("deep", {"num_hidden_layers": 3}),
    ):  # fmt: skip
        make.tiny_llama(**shape, **more).config.save_pretrained(folder / name)
    make.tiny_gpt2().config.save_pretrained(folder / "gpt2")
    told = json.loads((folder / "untied" / "config.json").read_text())
    (folder / "strange").mkdir()
    told |= {"model_type": "mpt", "architectures": ["MptForCausalLM"]}
    (folder / "strange" / "config.json").write_text(json.dumps(told))
    return {path.name: path for path in folder.iterdir()}


@pytest.mark.parametrize("case", CASES)
def test_the_doctor_and_the_export_are_one_judge(
    case: str, tmp_path: Path, bases: dict[str, Path]
) -> None:
    path = make.write(tmp_path / "a", **CASES[case]())
    for name, target in TARGETS.items():
        for base in ("untied", "tied", "deep", "gpt2", "strange"):
            if target.form == "gguf" or base in ("untied", "deep"):
                judged_alike(path, name, bases[base], tmp_path / f"{name}-{base}")


def judged_alike(path: Path, target: str, base: Path, out: Path) -> None:
    report = diagnose(path, target=target, base=read_base(base), read_tensors=False)
    about = [f for f in report.all_findings if RULES[f.code].stage == "target"]
    errors = [f for f in about if f.severity == "error"]
    refused = refusal(path, target, base)
    if refused is not None:
        what = refused.what.rstrip(".")
        assert any(finding.what.startswith(what) for finding in errors), (target, base, refused)
        return
    # What the doctor finds beyond that an export mends: the finding says how, and then it is gone.
    assert all(f.fix.split()[1] in ("export", "convert") for f in errors), (target, base, errors)
    if errors:
        save_adapter(to_memory(open_adapter(path)), out, target=target, base=base)
        again = diagnose(out, target=target, read_tensors=False)
        assert [f.code for f in again.all_findings if f.severity == "error"] == []


def refusal(path: Path, target: str, base: Path) -> VLoRAError | None:
    """Why the export refuses it; None if it does not."""
    try:
        check_fit(TARGETS[target], facts_of(open_adapter(path)), base=base)
    except VLoRAError as error:
        return error
    return None


def test_an_output_layer_that_is_the_embedding(bases: dict[str, Path], tmp_path: Path) -> None:
    """llama.cpp's base has no output.weight there: both judges name the module, not the base."""
    path = make.write(tmp_path / "a", **CASES["an output layer"]())
    error = refusal(path, "llamacpp", bases["tied"])
    assert error is not None
    assert "lm_head" in str(error)
    assert "is this the base" not in str(error)
    [told] = verdict_with(path, bases["tied"])
    assert "lm_head" in told.what
    assert verdict_with(path, bases["untied"]) == []
    pytest.importorskip("gguf")
    save_adapter(
        to_memory(open_adapter(path)), tmp_path / "o", target="llamacpp", base=bases["untied"]
    )
    tensors = read_gguf_header(tmp_path / "o" / "adapter.gguf").tensors.entries
    assert {"output.weight.lora_a", "output.weight.lora_b"} <= set(tensors)


def verdict_with(path: Path, base: Path) -> list[Finding]:
    report = diagnose(path, target="llamacpp", base=read_base(base), read_tensors=False)
    errors = [f for f in report.all_findings if f.severity == "error"]
    return [f for f in errors if RULES[f.code].stage == "target"]
