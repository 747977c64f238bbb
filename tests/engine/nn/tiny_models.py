"""What the tests of `vlora_engine.nn` share: PEFT as the witness of what a task does to a model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.witnesses import make
from vlora_engine import SharedSubspace, open_adapter

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
on_every_device = pytest.mark.parametrize("device", DEVICES)

TOKENS = torch.arange(36).reshape(3, 12) * 7 % 40
LLAMA = ["q_proj", "v_proj", "gate_proj", "down_proj"]
GPT2 = ["c_attn", "c_proj", "c_fc"]
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rslora": {"use_rslora": True, "lora_alpha": 3},
    "patterns": {
        "rank_pattern": {"v_proj": 2, "c_attn": 6},
        "alpha_pattern": {"down_proj": 9, "layers.0.self_attn.q_proj": 1, "c_fc": 2},
    },
}


def peft_adapters(
    folder: Path, base: Callable[[], nn.Module], targets: Any, count: int = 3, **fields: Any
) -> dict[str, Path]:
    """Adapters that PEFT made and wrote, by task."""
    found = {}
    for i in range(count):
        model = make.peft_model(base(), targets, seed=i + 1, **fields)
        model.save_pretrained(folder / f"task{i}", save_embedding_layers=False)
        found[f"task{i}"] = folder / f"task{i}"
    return found


def peft_logits(base: nn.Module, adapter: Path, **inputs: Any) -> Tensor:
    """What PEFT makes of an adapter on ``base``."""
    from peft import PeftModel

    model = PeftModel.from_pretrained(base, adapter).eval()
    return logits(model, **inputs)


def logits(model: Any, tokens: Tensor = TOKENS, **inputs: Any) -> Tensor:
    """What a model says to some rows of tokens."""
    device = next(model.parameters()).device
    with torch.no_grad():
        return model(input_ids=tokens.to(device), **inputs).logits


def most(adapters: dict[str, Path], method: str) -> int:
    """The largest k that means something."""
    if method == "flat":
        return len(adapters) - 1
    sources = [open_adapter(path) for path in adapters.values()]
    modules = {name for source in sources for name in source.modules}
    return max(
        min(sum(s.modules[m].rank for s in sources), max(s.modules[m].d_in, s.modules[m].d_out))
        for m in modules
        for s in sources
    )


def whole(adapters: dict[str, Path], method: str = "delta", **options: Any) -> SharedSubspace:
    """A subspace that loses nothing (methods with bases), or next to nothing."""
    if method in ("own", "auto"):
        options.setdefault("max_error", 0.01)
    else:
        options.setdefault("num_components", most(adapters, method))
    return SharedSubspace.from_adapters_streaming(
        list(adapters.values()), list(adapters), method=method, **options
    )
