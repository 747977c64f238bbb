"""Give an adapter the names that its base, and so PEFT and servers, have for its modules."""

from __future__ import annotations

from pathlib import Path

from vlora_engine.adapters.model import LoRAWeights
from vlora_engine.adapters.module_names import plain_name, tidied
from vlora_engine.errors import VLoRAError
from vlora_engine.formats.base_model_config import known_base
from vlora_engine.formats.config import parse_config, read_config_bytes
from vlora_engine.nn.base_modules import Reach, for_base
from vlora_engine.utils.naming import counted


def named_for_base(
    weights: LoRAWeights, base: str | Path | None = None
) -> tuple[LoRAWeights, Reach | None]:
    """``weights`` under the names of its base's modules, and how much of them PEFT applies.

    Args:
        weights: The adapter; the numbers stay as they are.
        base: The base model's folder or config.json. By default the base that the adapter names,
            where it lies on this disk and is a model of several parts, whose modules versions of
            transformers call otherwise; else the names stay, and there is no figure.
    """
    weights = tidied(weights)
    place = _of_several_parts(weights) if base is None else Path(base)
    if place is None or not weights.layer_names:
        return weights, None
    named, reach = for_base(weights, place)
    if base is None and (reach.unknown or reach.lost):
        return weights, None  # nobody said that this is the base
    return named, reach


def name_notes(before: LoRAWeights, after: LoRAWeights, reach: Reach | None) -> list[str]:
    """What is to be said of names that were changed, and of modules that do nothing."""
    notes = []
    others = sorted(set(after.layer_names) - {plain_name(name) for name in before.layer_names})
    if others:
        modules = counted(len(others), "module")
        notes.append(f"{modules} renamed as the base calls them, such as {others[0]}.")
    if reach is not None and reach.lost:
        lost = next(name for name in after.layer_names if name not in reach.places)
        notes.append(f"It {reach}: PEFT and servers ignore the others, such as {lost}.")
    return notes


def _of_several_parts(weights: LoRAWeights) -> Path | None:
    """The config of the base that an adapter names, if it is at hand and has parts."""
    name = weights.metadata.get("base_model_name_or_path")
    try:
        place = known_base(name) if isinstance(name, str) else None
        config = {} if place is None else parse_config(read_config_bytes(place), place)
    except VLoRAError:
        return None
    parts = [key for key, value in config.items() if key.endswith("_config") and value]
    return place if {"text_config", "thinker_config", "vision_config"} & set(parts) else None
