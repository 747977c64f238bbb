"""Serving targets: what each server takes, how an adapter is shaped for it, how it is started.

`TARGETS` and all that judges by headers (`check_fit`, `start_lines`, `find_base`) load no torch;
`shaped` and the writers do.
"""

from __future__ import annotations

from vlora_engine.targets.fit import Facts, check_fit, facts_of, facts_of_task, target_bytes
from vlora_engine.targets.launch import Served, start_lines
from vlora_engine.targets.registry import TARGETS, Target, find_target

__all__ = [
    "TARGETS",
    "Facts",
    "Served",
    "Target",
    "check_fit",
    "facts_of",
    "facts_of_task",
    "find_target",
    "start_lines",
    "target_bytes",
]
