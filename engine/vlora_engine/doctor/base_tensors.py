"""Whole tensors of an adapter beside those of its base: which are the same, number for number."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from vlora_engine.adapters.module_names import PREFIX
from vlora_engine.doctor.base_facts import BaseFacts, weight_files
from vlora_engine.utils.safetensors_file import Header, read_header, read_tensor

if TYPE_CHECKING:
    from torch import Tensor

_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "shared.weight")


def compared(base: BaseFacts, tensors: Mapping[str, Tensor]) -> dict[str, bool]:
    """Whether each of an adapter's tensors is the base's own; without those the base has not.

    One of them is in memory at a time. A copy in another dtype counts as one.
    """
    folder = Path(base.name)
    if not tensors or not folder.is_dir():
        return {}
    headers = {
        key: header
        for header in map(read_header, weight_files(folder))
        for key in header.entries
    }  # fmt: skip
    found = {}
    for key, tensor in tensors.items():
        name = _base_key(key, headers, tied=bool(base.config.get("tie_word_embeddings")))
        if name is not None:
            found[key] = _is_same(tensor, read_tensor(headers[name], name))
    return found


def _base_key(key: str, headers: Mapping[str, Header], *, tied: bool) -> str | None:
    """The base's key of what an adapter calls ``key``."""
    name = key.removeprefix(PREFIX).replace(".base_layer.", ".").replace(".original_module.", ".")
    at_end = [known for known in headers if name == known or name.endswith(f".{known}")]
    at_end += [known for known in headers if known.endswith(f".{name}")]
    if not at_end and tied and name.endswith("lm_head.weight"):
        at_end = [known for known in headers if known.endswith(_EMBEDDINGS)]
    return max(at_end, key=len, default=None)


def _is_same(tensor: Tensor, other: Tensor) -> bool:
    import torch

    if tensor.shape != other.shape:
        return False
    return torch.equal(other.to(tensor.dtype), tensor) or torch.equal(tensor.to(other.dtype), other)
