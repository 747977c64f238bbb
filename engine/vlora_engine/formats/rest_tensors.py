"""Tensors of an adapter that are no factors: what each of them does to the base model.

They are told by their names, as PEFT, ComfyUI and the trainers write them. Those that are added to
the base are part of the change; a format that has no place for them cannot hold the adapter.
"""

from __future__ import annotations

import re

_BASE_LAYER = re.compile(r"\.(base_layer\.weight$|original_module\.)")


def is_base_layer(key: str) -> bool:
    """Whether a tensor is the base's own under an adapted module: PEFT and servers skip it."""
    return _BASE_LAYER.search(key) is not None
