"""The three steps of the Share paper in one call each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlora_engine.adapters.model import LoRAWeights
from vlora_engine.catalog.open import load_adapter
from vlora_engine.nn.peft_model import as_peft_adapter, require_extra, with_adapter
from vlora_engine.shared_subspace import SharedSubspace
from vlora_engine.targets.save import save_adapter


def init_subspace(
    adapter_paths: Sequence[str | Path],
    task_ids: Sequence[str] | None = None,
    variance_threshold: float | None = None,
    num_components: int | None = None,
    **options: Any,
) -> SharedSubspace:
    """Compress adapters from folders. Takes the options of `SharedSubspace.from_adapters`.

    Unlike the first library's, it has no default variance: without a target no task loses more
    than 5 % of its dW.
    """
    return SharedSubspace.from_adapters_streaming(
        adapter_paths, task_ids, num_components, variance_threshold=variance_threshold, **options
    )


def absorb_task(
    subspace: SharedSubspace, adapter_path: str | Path, task_id: str, *, replace: bool = False
) -> None:
    """Take the adapter at ``adapter_path`` into ``subspace``, recomputing its bases.

    Raises:
        ParameterError: There is a task of that name already, and not ``replace``.
    """
    subspace.absorb(load_adapter(adapter_path), task_id, replace=replace)


def extract_adapter(
    subspace: SharedSubspace, task_id: str, output_path: str | Path, *, force: bool = False
) -> LoRAWeights:
    """Write a task as a PEFT directory, with its alpha, targets, task type and rest tensors.

    Raises:
        UnknownTaskError: There is no such task. OutputExistsError: ``output_path`` is there.
    """
    weights = subspace.reconstruct(task_id)
    save_adapter(weights, output_path, force=force)
    return weights


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
    return with_adapter(base_model, as_peft_adapter(subspace.reconstruct(task)))
