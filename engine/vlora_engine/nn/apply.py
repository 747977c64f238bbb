"""A task as a standard PEFT model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vlora_engine.base_model import Worn, as_misfit, misfit, quiet, require_extra, worn_by_us
from vlora_engine.subspace import SharedSubspace


def apply(base_model: Any, subspace: SharedSubspace | str | Path, task: str) -> Any:
    """``base_model`` with one task on it, as a ``peft.PeftModel`` (extra ``peft``).

    It is what ``peft.PeftModel.from_pretrained`` makes of the exported task, without the detour
    over a directory; the base model's modules are replaced in place, as PEFT does it.

    Args:
        subspace: A subspace, or the directory of one. task: The id of a task.

    Raises:
        NotFoundError: There is no such subspace or task. DependencyError: PEFT is not installed.
        CollectionError: The task does not fit the model.
    """
    require_extra()
    if not isinstance(subspace, SharedSubspace):
        subspace = SharedSubspace.load(subspace)
    return wear(base_model, worn_by_us(subspace.reconstruct(task)))


def wear(base_model: Any, adapter: Worn) -> Any:
    """``base_model`` in a ``peft.PeftModel`` with an adapter in PEFT's form.

    Raises:
        CollectionError: It does not fit the model.
    """
    from peft import PeftConfig, get_peft_model, set_peft_model_state_dict

    name = str(getattr(base_model, "name_or_path", "") or type(base_model).__name__)
    with as_misfit(adapter, name), quiet():
        told = {**adapter.config, "base_model_name_or_path": None}
        model = get_peft_model(base_model, PeftConfig.from_peft_type(**told))
        found: Any = set_peft_model_state_dict(model, dict(adapter.tensors))
    astray = sorted(key for key in found.unexpected_keys if "lora_" in key)
    if astray:
        raise misfit(adapter, name, f"no place for {astray[0]}")
    state = model.state_dict()
    for key in found.missing_keys:
        if ".lora_" in key:
            state[key].zero_()  # a module that the config names and the adapter lacks
    return model.eval()
