"""Writing an adapter for a target: judged, shaped, then written in one step."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vlora_engine.adapters.model import LoRAWeights, MemorySource
from vlora_engine.files import new_directory, write_file
from vlora_engine.formats.base_model_config import find_base
from vlora_engine.targets.fit import architecture_for, check_fit, facts_of
from vlora_engine.targets.registry import Target
from vlora_engine.targets.shape import shaped, without_rest
from vlora_engine.targets.starting import GGUF_NAME, MODELFILE, modelfile

if TYPE_CHECKING:
    import torch


def save_for(
    target: Target,
    weights: LoRAWeights,
    path: Path,
    *,
    dtype: torch.dtype | None = None,
    force: bool = False,
    drop_rest: bool = False,
    base: str | Path | None = None,
) -> Path:
    """Write ``weights`` for a target other than PEFT; see `vlora_engine.catalog.open.save_adapter`."""
    from vlora_engine.formats.peft_save import write_peft
    from vlora_engine.tensorfile import dtype_name

    word = None if dtype is None else dtype_name(dtype)
    facts = facts_of(MemorySource(weights))
    check_fit(target, facts, drop_rest=drop_rest, dtype=word, base=base, out=path)
    if target.no_rest:
        weights = without_rest(weights)
    fitted = shaped(weights, target, dtype)
    if target.form == "peft":
        return write_peft(fitted, path, force=force)
    _write_gguf(target, fitted, path, force=force, base=base)
    return path


def _write_gguf(
    target: Target, weights: LoRAWeights, path: Path, *, force: bool, base: str | Path | None
) -> None:
    from vlora_engine.formats.gguf_save import write_gguf

    facts = facts_of(MemorySource(weights))
    config = find_base(base, facts.base_model)
    architecture = architecture_for(facts, config, path)
    with new_directory(path, job="save", force=force) as partial:
        write_gguf(partial / GGUF_NAME, weights, architecture, config)
        if target.name == "ollama":
            write_file(partial / MODELFILE, modelfile(facts.base_model))
