"""Merging adapters into one, on their weight changes.

`MERGE_METHODS` is the registry: a frozen spec and one function for each method.
"""

from vlora_engine.merging.apply import merge, merge_with_report
from vlora_engine.merging.methods import dare_merge, task_arithmetic, ties_merge
from vlora_engine.merging.registry import (
    IDENTITIES,
    MERGE_METHODS,
    MergeMethod,
    MergeParameter,
)
from vlora_engine.merging.result import MergeReport

__all__ = [
    "IDENTITIES",
    "MERGE_METHODS",
    "MergeMethod",
    "MergeParameter",
    "MergeReport",
    "dare_merge",
    "merge",
    "merge_with_report",
    "task_arithmetic",
    "ties_merge",
]
