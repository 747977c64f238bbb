"""Merging adapters into one, on their weight changes.

`MERGE_METHODS` is the registry: a frozen spec for each method, readable without torch, and one
operator. Rooms: ``specs`` (the table), ``weights`` (module by module), ``space`` (the core),
``operators`` and ``entries`` (what is computed), ``factors`` and ``peft`` (other packages'
arithmetic), ``kept`` (what is left of each adapter), ``apply`` (running it), ``result``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vlora_engine.merging.merge_adapters import merge, merge_with_report
    from vlora_engine.merging.methods import MERGE_METHODS, PEFT_METHODS
    from vlora_engine.merging.registry import IDENTITIES, MergeMethod, MergeParameter
    from vlora_engine.merging.result import MergeReport
    from vlora_engine.merging.retention import Kept
    from vlora_engine.merging.shortcuts import dare_merge, task_arithmetic, ties_merge

__all__ = [
    "IDENTITIES",
    "MERGE_METHODS",
    "PEFT_METHODS",
    "Kept",
    "MergeMethod",
    "MergeParameter",
    "MergeReport",
    "dare_merge",
    "merge",
    "merge_with_report",
    "task_arithmetic",
    "ties_merge",
]

_HOMES = {
    "merge_adapters": ("merge", "merge_with_report"),
    "retention": ("Kept",),
    "shortcuts": ("dare_merge", "task_arithmetic", "ties_merge"),
    "registry": ("IDENTITIES", "MergeMethod", "MergeParameter"),
    "result": ("MergeReport",),
    "methods": ("MERGE_METHODS", "PEFT_METHODS"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value
