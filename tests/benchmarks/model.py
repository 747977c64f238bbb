"""What a model notices, for anyone's compression: KL, agreement and gain kept on trained adapters.

``measure(base, originals, made, texts)`` takes adapters as PEFT directories or in memory, so that
what a peer reconstructs (`with_factors`) is measured by the same lines as what we export.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from vlora_engine.adapters.model import LoRAWeights
from vlora_engine.catalog.open import open_adapter
from vlora_engine.evaluation.evaluate import MAX_TOKENS, Pair, evaluate
from vlora_engine.evaluation.prompts import read_prompts
from vlora_engine.nn.peft_model import BaseModel, PeftAdapter, as_peft_adapter, read_by_peft

Adapter = Path | LoRAWeights


def measure(
    base: BaseModel,
    originals: Mapping[str, Adapter],
    made: Mapping[str, Adapter],
    texts: Path,
    *,
    max_tokens: int = MAX_TOKENS,
) -> dict[str, Any]:
    """The figures of one compression of a collection.

    Args:
        originals, made: By task, each as a PEFT directory or in memory.
        texts: A folder with a text TASK.txt for every task.
    """
    pairs = {
        task: Pair(
            lambda task=task: as_peft(originals[task]), lambda task=task: as_peft(made[task])
        )
        for task in originals
    }
    prompts = read_prompts([str(texts)], list(originals), max_tokens=max_tokens)
    found = evaluate(base, pairs, prompts=prompts, max_tokens=max_tokens)
    mean, worst, control = found.mean, found.worst, found.control
    return {
        "kl": mean["kl"],
        "kl_worst": worst["kl"],
        "worst_task": found.scores[0].task,
        "gain_kept": mean["gain_kept"],
        "gain_kept_least": worst["gain_kept"],
        "agreement": mean["agreement"],
        "control_kl": control["mean_kl"] if control else None,
        "control_fails": control["fails"] if control else None,
    }


def as_peft(adapter: Adapter) -> PeftAdapter:
    """An adapter as PEFT takes it: read by PEFT from a directory, or in the form of our export."""
    return (
        read_by_peft(open_adapter(adapter))
        if isinstance(adapter, Path)
        else as_peft_adapter(adapter)
    )


def with_factors(
    original: LoRAWeights, factors: Mapping[str, tuple[Tensor, Tensor]]
) -> LoRAWeights:
    """``original`` with other A and B, which stand before its own scales, module by module."""
    missing = set(original.layer_names) - set(factors)
    if missing:
        raise ValueError(f"no factors for {sorted(missing)[0]}")
    return replace(
        original,
        lora_a={name: factors[name][0].float() for name in original.layer_names},
        lora_b={name: factors[name][1].float() for name in original.layer_names},
    )
