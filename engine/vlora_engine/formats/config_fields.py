"""The fields of adapter_config.json: for each of them, what it decides and what becomes of it.

One table for all who write an adapter for somebody else: targets, conversions, merges, the doctor.
It has every field of PEFT's LoraConfig (a test walks the dataclass). A field that is not in it may
mean anything, so whoever does not know it must not pass over it in silence.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Decides = Literal["value", "modules", "tensors", "acts", "kind", "training", "about"]

# What a merge, a server or another format may do with a field, by what it decides:
#   value     of dW: worked out anew from ranks and scales wherever an adapter is written
#   modules   which modules have factors: the factors themselves show it
#   tensors   that come along beside A and B: judged with these tensors
#   acts      when or how B @ A acts: whoever cannot carry it refuses the adapter
#   kind      of LoRA: refused when it is read (`vlora_engine.formats.config.VARIANTS`)
#   training  alone: dropped freely
#   about     the adapter: kept where there is a place for it


@dataclass(frozen=True)
class ConfigField:
    """What one field of a config does, and what becomes of it.

    Args:
        decides: What it decides.
        without: Of one that acts, what the adapter would do where nobody reads the field.
    """

    name: str
    decides: Decides
    without: str = ""


ALORA = "alora_invocation_tokens"
_KNOWN: dict[Decides, tuple[str, ...]] = {
    "value": (
        "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "fan_in_fan_out",
    ),
    "modules": (
        "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern",
        "ensure_weight_tying",
    ),
    "tensors": ("bias", "lora_bias", "modules_to_save", "trainable_token_indices"),
    "kind": (
        "peft_type", "use_dora", "use_qalora", "qalora_group_size", "use_bdlora", "kasa_config",
        "target_parameters", "arrow_config",
    ),
    # Of init_lora_weights some values move the base: those are kinds, in VARIANTS.
    "training": (
        "init_lora_weights", "loftq_config", "eva_config", "corda_config", "lora_ga_config",
        "velora_config", "monteclora_config", "lora_dropout", "runtime_config", "inference_mode",
        "megatron_config", "megatron_core", "merge_weights",
    ),
    "about": (
        "task_type", "base_model_name_or_path", "revision", "auto_mapping", "peft_version",
        "source_format",
    ),
}  # fmt: skip
FIELDS: dict[str, ConfigField] = {
    name: ConfigField(name, decides) for decides, names in _KNOWN.items() for name in names
} | {
    field.name: field
    for field in (
        ConfigField(
            ALORA,
            "acts",
            "it acts from the first token on, not after its invocation tokens",
        ),
        ConfigField("layer_replication", "acts", "a model of fewer layers is served"),
        ConfigField("enable_lora", "acts", "parts of a fused projection change that should not"),
    )
}
_UNKNOWN = "what this field means is not known here"


def unread(config: Mapping[str, Any], known: Collection[str] = ()) -> list[ConfigField]:
    """The fields that are set and change what the adapter does, but for those in ``known``.

    A field that is in no table counts where it says anything: not null, false, zero or empty.
    """
    found = []
    for name, value in config.items():
        field = FIELDS.get(name) or ConfigField(name, "acts", _UNKNOWN)
        if field.decides == "acts" and name not in known and value:
            found.append(field)
    return found


def differing(configs: Sequence[Mapping[str, Any]]) -> ConfigField | None:
    """The first field that acts and is not the same in all of these configs."""
    acting = {field.name: field for config in configs for field in unread(config)}
    for name, field in acting.items():
        values = [config.get(name) or None for config in configs]
        if any(value != values[0] for value in values):
            return field
    return None


def acting(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that change what the adapter does, with their values."""
    return {field.name: config[field.name] for field in unread(config)}
