"""Writing an adapter for a target: judged, shaped, then written in one step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from vlora_engine.adapters.model import LoRAWeights, MemorySource, provenance_of
from vlora_engine.adapters.module_names import tidied
from vlora_engine.formats.base_model_config import find_base
from vlora_engine.formats.gguf_save import q8_0_rounded, write_gguf
from vlora_engine.formats.peft_save import _torch_dtype, write_peft
from vlora_engine.formats.provenance import CARD
from vlora_engine.quantization.dtypes import Q8_0
from vlora_engine.targets.fit import architecture_for, check_fit, facts_of
from vlora_engine.targets.launch import MODELFILE, modelfile
from vlora_engine.targets.names import named_for_base
from vlora_engine.targets.registry import Target, find_target
from vlora_engine.targets.shape import shaped, without_foreign, without_rest
from vlora_engine.utils.file_names import ADAPTER_GGUF
from vlora_engine.utils.files import write_file
from vlora_engine.utils.outputs import MadeCheck, new_directory
from vlora_engine.utils.safetensors_file import dtype_name

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from vlora_engine.linalg.low_rank import Factors

EXACT = 1e-6  # a smaller change of dW is none: float32's own rounding of a product


def save_adapter(
    weights: LoRAWeights,
    path: str | Path,
    *,
    target: str = "peft",
    dtype: str | torch.dtype | None = None,
    force: bool = False,
    drop_rest: bool = False,
    base: str | Path | None = None,
    check: MadeCheck | None = None,
) -> Path:
    """Write ``weights`` as a directory that PEFT, or another target, loads with the same effect.

    For PEFT the original config is kept and corrected only where PEFT would derive other ranks,
    scales or modules from it; rest tensors are written bit for bit under their keys. What the
    other targets get is told by `vlora_engine.targets.TARGETS`.

    Args:
        weights: The adapter.
        path: The directory to make.
        target: Who is to read it: a name out of `vlora_engine.targets.TARGETS`.
        dtype: What A and B are stored in ("fp32", "fp16", "bf16", of GGUF "q8_0" too); by default
            as they are.
        force: Replace what is at ``path``.
        drop_rest: Leave out tensors besides A and B.
        base: The base model's folder or config.json, whose modules' names are written; for GGUF
            it is looked for by default where the adapter says.
        check: Is shown the finished directory before it takes its place; if it raises, nothing is
            written.

    Raises:
        ParameterError: An unknown target or dtype.
        UnsupportedAdapterError: The target would refuse it, or load it as something else.
        OutputExistsError: ``path`` is there and ``force`` is not given.
        StorageError: It cannot be written.
    """
    wanted, out = find_target(target), Path(path)
    weights = tidied(weights)
    if base is not None and wanted.form == "peft":
        weights, _ = named_for_base(weights, base)
    weights = _stepped(weights, target, dtype, drop_rest)
    q8_0 = dtype == Q8_0.lower()
    stored = None if q8_0 else _torch_dtype(dtype)
    word = Q8_0 if q8_0 else None if stored is None else dtype_name(stored)
    facts = facts_of(MemorySource(weights))
    check_fit(wanted, facts, drop_rest=drop_rest, dtype=word, base=base, out=out)
    if wanted.name == "peft":
        kept = without_rest(weights) if drop_rest else without_foreign(weights)
        if stored is not None:
            kept = _measured(weights, kept, lambda tensor: tensor.to(stored))
        return write_peft(kept, out, dtype=stored, force=force, check=check)
    if wanted.no_rest:
        weights = without_rest(weights)
    fitted = shaped(weights, wanted, stored)
    fitted = _measured(weights, fitted, q8_0_rounded if q8_0 else lambda tensor: tensor)
    if wanted.form == "peft":
        return write_peft(fitted, out, force=force, check=check)
    _write_gguf(wanted, fitted, out, force=force, base=base, check=check, q8_0=q8_0)
    return out


def _stepped(
    weights: LoRAWeights, target: str, dtype: str | torch.dtype | None, drop_rest: bool
) -> LoRAWeights:
    """``weights`` with the export among its steps, where it does more than to write them."""
    word = None if dtype is None else str(dtype).removeprefix("torch.")
    if target == "peft" and word is None and not drop_rest:
        return weights
    known = provenance_of(weights)
    left = drop_rest or None
    return replace(
        weights, provenance=known.then("export", target=target, dtype=word, drop_rest=left)
    )


def _measured(
    meant: LoRAWeights, fitted: LoRAWeights, stored: Callable[[Tensor], Tensor]
) -> LoRAWeights:
    """``fitted`` with what its rounding costs of dW in its last step, where it is a loss."""
    from vlora_engine.linalg.low_rank import relative_error

    def pair(of: LoRAWeights, name: str, as_is: Callable[[Tensor], Tensor]) -> Factors:
        a, b = (as_is(side[name]).double() for side in (of.lora_a, of.lora_b))
        return a.flatten(1), of.scales[name] * b.flatten(1)

    error = relative_error(
        (pair(meant, name, lambda tensor: tensor), pair(fitted, name, stored))
        for name in meant.layer_names
    )
    known = provenance_of(fitted)
    if error < EXACT or not known.steps:
        return fitted
    steps = (*known.steps[:-1], {**known.steps[-1], "error": error})
    return replace(fitted, provenance=replace(known, steps=steps))


def _write_gguf(
    target: Target,
    weights: LoRAWeights,
    path: Path,
    *,
    force: bool,
    base: str | Path | None,
    check: MadeCheck | None,
    q8_0: bool,
) -> None:
    facts = facts_of(MemorySource(weights))
    config = find_base(base, facts.base_model)
    architecture = architecture_for(facts, config, path)
    with new_directory(path, job="save", force=force, check=check) as partial:
        record = write_gguf(partial / ADAPTER_GGUF, weights, architecture, config, q8_0=q8_0)
        write_file(partial / CARD, record.card)
        if target.name == "ollama":
            write_file(partial / MODELFILE, modelfile(facts.base_model))
