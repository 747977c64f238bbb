"""Every remedy that the doctor prints is followed, and then the finding is gone.

A remedy is a command, which runs here as it is printed; or a change that a person makes by hand,
which is made here; or nothing that could be done to the files at all, and then the table says why.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.app.conftest import Cli
from tests.engine.doctor.cases import CASES, CLEAN, WEIGHTS, base_of, write_base
from tests.witnesses import make
from vlora_engine import load_adapter
from vlora_engine.doctor import all_rules, diagnose, read_base
from vlora_engine.errors import VLoRAError
from vlora_engine.findings import Finding

RULES = {rule.code: rule for rule in all_rules()}
ByHand = Callable[[Path], Any]  # what a person does, with the folder that holds the adapters


def config(**changes: Any) -> ByHand:
    """Fields of the config are set; one given as None is taken out."""

    def change(folder: Path) -> None:
        place = folder / "a" / "adapter_config.json"
        told = {**json.loads(place.read_text()), **changes}
        place.write_text(json.dumps({k: v for k, v in told.items() if v is not None}))

    return change


def again(folder: Path) -> None:
    """The adapter is saved, downloaded or trained again."""
    for name in (WEIGHTS, "adapter_model.bin"):
        (folder / "a" / name).unlink(missing_ok=True)
    CLEAN(folder)


def tensors(change: Callable[[torch.Tensor], torch.Tensor]) -> ByHand:
    """Every tensor is saved again, changed."""

    def saved(folder: Path) -> None:
        place = folder / "a" / WEIGHTS
        made = {key: change(tensor) for key, tensor in load_file(place).items()}
        save_file(made, place, metadata={"format": "pt"})

    return saved


def without(part: str) -> ByHand:
    """The tensors with this in their name are not saved."""

    def saved(folder: Path) -> None:
        place = folder / "a" / WEIGHTS
        kept = {key: tensor for key, tensor in load_file(place).items() if part not in key}
        save_file(kept, place, metadata={"format": "pt"})

    return saved


def gone(name: str) -> ByHand:
    return lambda folder: (folder / name).unlink()


BY_HAND: Mapping[str, ByHand] = {
    **dict.fromkeys(
        [
            "lfs-pointer", "corrupt-file", "missing-file", "unsafe-pickle", "not-tensors",
            "no-config", "no-tensors", "no-factors", "half-pair", "factors-disagree",
            "empty-factor", "several-in-one-file", "grouped-convolution", "other-peft-type",
            "dora", "moves-base", "no-product", "unreadable", "not-finite", "no-effect",
            "idle-modules", "rest-not-finite", "vllm-dora", "tgi-dora", "lorax-dora", "gguf-dora",
            "wrong-shape", "unknown-modules", "no-module-fits",
            *(f"{to}-{kind}" for to in ("vllm", "sglang", "tgi", "lorax", "gguf", "portable")
              for kind in ("convolutions", "embeddings")),
            "gguf-modules", "gguf-wrong-base", "tgi-missing-layer", "lorax-missing-layer",
            "portable-missing-layer", "unread-field", "vocabulary-differs", "foreign-tensors",
            "content-changed",
        ],
        again,
    ),
    "bad-config": config(r=4),
    "rank-disagrees": config(r=4),
    "factor-dtype": tensors(lambda t: t.to(torch.bfloat16)),
    "no-r": config(r=8),
    "no-lora-alpha": config(lora_alpha=8),
    "no-base-model": config(base_model_name_or_path="gpt2"),
    "local-base-model": config(base_model_name_or_path="org/llama"),
    "overlapping-patterns": config(
        alpha_pattern={name: 16 if "h.0.attn.c_attn" in name else 4 for name in make.MODULES}
    ),
    "stale-targets": config(target_modules=["c_attn", "c_proj"]),
    "code-beside": gone("a/modeling_mine.py"),
    "local-paths": config(auto_mapping=None),
    "odd-scale": config(lora_alpha=8),
    "other-base": config(base_model_name_or_path="gpt2"),
    "not-generating": config(task_type="CAUSAL_LM"),
    "duplicates": gone(f"1/a/{WEIGHTS}"),
    "beyond-fp16": tensors(lambda t: t / 1e6),
    "whole-matrices": without("wte"),
}  # fmt: skip
NOTHING: Mapping[str, str] = {
    "zero-alpha": "the adapter does nothing, and nothing is wrong with its files",
    "pickle-beside": "it is never opened, and says so",
    "mixed-ranks": "a fact, for those who compare",
    "rest-tensors": "a fact: what they are, what they do and what they take",
    "quantized-base": "a fact about the training, for whoever serves it",
    "fresh-a": "right where A was frozen on purpose",
    "other-than-base": "they are wanted; a server needs a base that was saved with them",
    "vllm-default-rank": "a flag of the server, which the remedy names; the adapter stays as it is",
    "ollama-safetensors": "without --base nothing is known that a command could name",
    "gguf-architecture": "llama.cpp's own converter, which the remedy calls, is no part of this",
    "foreign-format": "another tool makes a LoRA of it",
    "unknown-format": "it is no adapter at all",
    "source-changed": "only who has the sources can create it again from them",
    "base-models-differ": "each group is right by itself",
    "dimensions-differ": "one of them names the wrong base: only who trained it knows which",
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base"))


def findings(place: Path, target: str | None, base: Path | None) -> dict[str, Finding]:
    facts = None if base is None else read_base(base)
    return {f.code: f for f in diagnose(place, target=target, base=facts).all_findings}


def test_every_rule_has_a_remedy_or_a_reason() -> None:
    assert not set(BY_HAND) & set(NOTHING)
    assert {*BY_HAND, *NOTHING} <= set(RULES)


@pytest.mark.parametrize("code", RULES)
def test_the_remedy_is_followed_and_the_finding_is_gone(
    code: str, cli: Cli, tmp_path: Path, base: Path
) -> None:
    case, folder = CASES[code], tmp_path / "in"
    place = case.bad(folder) or folder
    beside = base_of(case, base, tmp_path)
    finding = findings(place, case.target, beside)[code]
    if finding.fix:
        assert code not in {*BY_HAND, *NOTHING}
        out = follow(cli, finding.fix)
        unchanged(folder / "a", out, code)
        place = out
    elif code in BY_HAND:
        assert finding.remedy
        BY_HAND[code](folder)
        place = folder
    else:
        assert NOTHING[code]
        return
    try:
        left = findings(place, case.target, base if case.with_base else None)
    except VLoRAError:
        left = {}
    assert code not in left, left.get(code)


def follow(cli: Cli, fix: str) -> Path:
    """Run a command as it is printed; where it wrote."""
    program, command, *more = shlex.split(fix)
    assert program == "vlora-tui"
    cli(command, *more)
    return Path(more[more.index("-o") + 1])


def unchanged(before: Path, after: Path, code: str) -> None:
    """dW stays what PEFT makes of it, but for what a smaller rank or dtype must cost."""
    try:
        old, new = load_adapter(before), load_adapter(after)
    except VLoRAError:
        return  # of another kind of file
    assert set(old.layer_names) == set(new.layer_names)
    for name in old.layer_names:
        meant = old.delta(name)
        if new.lora_a[name].shape[0] < min(old.lora_a[name].shape[0], *meant.shape):
            assert code.endswith("-rank")
            continue
        close = 0.1 if new.lora_a[name].element_size() < 4 else 1e-4
        torch.testing.assert_close(new.delta(name).float(), meant.float(), rtol=close, atol=close)
