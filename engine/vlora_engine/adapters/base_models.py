"""The base model that adapters name: of a collection, and in one spelling."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from functools import lru_cache

from vlora_engine.adapters.model import AdapterSource


def base_model_of(sources: Mapping[str, AdapterSource]) -> str | None:
    """The base model that most configs name."""
    names = [s.config.get("base_model_name_or_path") for s in sources.values()]
    counts = Counter(name for name in names if isinstance(name, str) and name)
    return max(sorted(counts), key=counts.__getitem__) if counts else None


def normalise_base_model(name: str | None) -> str | None:
    """A base model's name without its owner, its path and the marks of a quantized copy.

    ``unsloth/Llama-3.1-8B-unsloth-bnb-4bit``, ``meta-llama/Llama-3.1-8B`` and
    ``/home/me/models/Llama-3.1-8B`` are one base model.
    """
    return None if name is None else _normalised(name)


@lru_cache(4096)
def _normalised(name: str) -> str | None:
    last = re.split(r"[/\\]", name.strip().rstrip("/\\"))[-1].casefold()
    last = re.sub(r"([-_]unsloth)?([-_]bnb[-_][48]bit)?$", "", last)
    return last.removeprefix("meta-") or None
