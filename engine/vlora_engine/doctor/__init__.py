"""The doctor: what is wrong with adapters, what a target will make of them, and what mends it.

`verdict` answers from headers alone and imports no torch; `diagnose` goes through folders, and
reads tensors one adapter at a time; `read_base` tells a base model by its headers; `check_merged`
compares a merged checkpoint with base + adapter; `all_rules` is the table, every row with its
source.
"""

from __future__ import annotations

from vlora_engine.utils.lazy import lazy_names

_HOMES = {
    "vlora_engine.doctor.base_facts": ["BaseFacts", "read_base"],
    "vlora_engine.doctor.examine": [
        "Examined",
        "Report",
        "all_rules",
        "check_target",
        "diagnose",
        "subject_at",
        "subject_of",
        "verdict",
    ],
    "vlora_engine.doctor.checkpoint": ["Checkpoint", "read_checkpoint"],
    "vlora_engine.doctor.merged_check": ["MergedReport", "ModuleVerdict", "check_merged"],
    "vlora_engine.doctor.repairs": ["Repaired", "repair"],
    "vlora_engine.nn.base_modules": ["Reach", "applies"],
    "vlora_engine.targets.registry": ["RANK_LIMITS"],
    "vlora_engine.doctor.rules": ["TARGETS", "Rule", "Subject"],
    "vlora_engine.findings": ["SEVERITIES"],
}

__all__ = sorted(name for names in _HOMES.values() for name in names)
# Late: reading the rules loads the formats.
__getattr__ = lazy_names(__name__, _HOMES)
