"""Merge adapters into one, on their weight changes (docs/mathematics.md#merging).

`MERGE_METHODS` is the registry: a frozen spec for each method, readable without torch, and one
operator. Modules: ``methods`` (the table), ``registry`` (what a spec is), ``settings`` and
``weights`` (the request, checked), ``core_space``, ``operators`` and ``sparsify`` (the arithmetic),
``factors``, ``peft`` and ``factorwise`` (other packages' arithmetic on A and B apart),
``retention`` (what is kept of each adapter), ``merge_adapters`` (runs a merge) and ``result``.
"""

from __future__ import annotations

import importlib

from vlora_engine.merging.registry import Functions, use_functions
from vlora_engine.utils.lazy import lazy_names

_HOMES = {
    "vlora_engine.merging.merge_adapters": ("merge", "merge_with_report"),
    "vlora_engine.merging.retention": ("Retention",),
    "vlora_engine.merging.shortcuts": ("dare_merge", "task_arithmetic", "ties_merge"),
    "vlora_engine.merging.registry": ("IDENTITIES", "MergeMethod", "MergeParameter"),
    "vlora_engine.merging.result": ("MergeReport",),
    "vlora_engine.merging.methods": ("MERGE_METHODS", "PEFT_METHODS"),
}

__all__ = sorted(name for names in _HOMES.values() for name in names)
__getattr__ = lazy_names(__name__, _HOMES)


def _functions() -> Functions:
    """Called methods need torch, those that are only looked at do not."""
    functions: Functions = importlib.import_module(f"{__name__}.shortcuts").FUNCTIONS
    return functions


use_functions(_functions)
