"""Merging adapters into one, on their weight changes.

`MERGE_METHODS` is the registry: a frozen spec for each method, readable without torch, and one
operator. Modules: ``methods`` (the table), ``weights`` (module by module), ``core_space`` (the
core), ``operators`` and ``sparsify`` (what is computed), ``factors`` and ``peft`` (other packages'
arithmetic), ``retention`` (what is left of each adapter), ``merge_adapters`` (running it),
``result``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from vlora_engine.merging.registry import Functions, use_functions
from vlora_engine.utils.lazy import lazy_names

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
    "vlora_engine.merging.merge_adapters": ("merge", "merge_with_report"),
    "vlora_engine.merging.retention": ("Kept",),
    "vlora_engine.merging.shortcuts": ("dare_merge", "task_arithmetic", "ties_merge"),
    "vlora_engine.merging.registry": ("IDENTITIES", "MergeMethod", "MergeParameter"),
    "vlora_engine.merging.result": ("MergeReport",),
    "vlora_engine.merging.methods": ("MERGE_METHODS", "PEFT_METHODS"),
}

__getattr__ = lazy_names(__name__, _HOMES)


def _functions() -> Functions:
    """Called methods need torch, those that are only looked at do not."""
    functions: Functions = importlib.import_module(f"{__name__}.shortcuts").FUNCTIONS
    return functions


use_functions(_functions)
