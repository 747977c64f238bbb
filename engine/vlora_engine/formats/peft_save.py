"""Write PEFT directories: the config corrected as little as possible, the tensors as they are."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlora_engine.adapters.model import (
    LoRAWeights,
    MemorySource,
    ModuleShape,
    match_pattern,
    padded,
)
from vlora_engine.adapters.module_names import PREFIX, tidied
from vlora_engine.errors import AdapterError, ParameterError
from vlora_engine.formats.config import Settings, read_settings
from vlora_engine.formats.peft_ignores import unlisted_modules
from vlora_engine.formats.provenance import CARD, KEY, recorded
from vlora_engine.quantization.dtypes import STORAGE_DTYPES
from vlora_engine.utils.file_names import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from vlora_engine.utils.files import write_file, write_json
from vlora_engine.utils.outputs import MadeCheck, new_directory
from vlora_engine.utils.safetensors_file import torch_dtype
from vlora_engine.utils.tensor_writer import write_tensors

if TYPE_CHECKING:
    import torch
    from torch import Tensor

ORIGIN = "source_format"  # of a config: the metadata that another tool wrote beside the adapter


def write_peft(
    weights: LoRAWeights,
    path: Path,
    *,
    dtype: torch.dtype | None = None,
    force: bool = False,
    check: MadeCheck | None = None,
) -> Path:
    """Write ``weights`` as a PEFT directory; A and B in ``dtype``, or as they are.

    ``check`` is shown the directory before it takes its place (`new_directory`).
    """
    weights = tidied(weights)
    config = peft_config(weights)
    tensors = peft_tensors(weights, dtype)
    # Wide dtypes first keeps every tensor aligned; then by name, as PEFT's own files are.
    tensors = dict(sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0])))
    record = recorded(weights, tensors)
    with new_directory(path, job="save", force=force, check=check) as partial:
        try:
            write_json(partial / ADAPTER_CONFIG, config, indent=2)
        except (TypeError, ValueError) as error:
            raise ParameterError(
                "The adapter's config cannot be written as JSON.",
                where=weights.source,
                found=str(error),
                remedy="remove what is not JSON from LoRAWeights.metadata",
            ) from None
        metadata = {"format": "pt", KEY: record.text}
        write_tensors(partial / ADAPTER_WEIGHTS[0], tensors, metadata)
        write_file(partial / CARD, record.card)
    return path


def peft_tensors(weights: LoRAWeights, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """The tensors of ``weights`` under PEFT's keys and in PEFT's shapes; rest tensors untouched.

    Raises:
        AdapterError: A rest tensor has the key of a factor.
        ParameterError: A value does not fit ``dtype``.
    """
    tensors: dict[str, Tensor] = {}
    for name in weights.layer_names:
        # PEFT knows no rank 0: an update of nothing is a zero row and a zero column.
        a, b = padded(weights.lora_a[name], 1, 0), padded(weights.lora_b[name], 1, 1)
        rank = a.shape[0]
        shape = weights.shapes.get(name)
        kind = shape.kind if shape else "linear"
        if kind == "conv2d" and shape is not None:
            a = a.reshape(rank, *shape.shape_a[1:])
            b = b.reshape(b.shape[0], rank, *shape.shape_b[2:])
        stem = "lora_embedding_{}" if kind == "embedding" else "lora_{}.weight"
        for side, factor in (("A", a), ("B", b)):
            key = f"{PREFIX}{name}.{stem.format(side)}"
            tensors[key] = factor if dtype is None else cast(factor, dtype, key)
    collisions = sorted(tensors.keys() & weights.rest.keys())
    if collisions:
        raise AdapterError(
            "A rest tensor has the key of a factor.", where=collisions[0], found="two tensors"
        )
    return {**tensors, **weights.rest}


def peft_config(weights: LoRAWeights) -> dict[str, Any]:
    """adapter_config.json for ``weights``: the original, corrected where PEFT would go wrong.

    From what is returned PEFT derives the rank of every tensor and ``weights.scales``; where the
    division by r cannot give a scale to the last bit, the nearest alpha is taken.
    """
    config = dict(weights.metadata) or fresh_config()
    config.pop(ORIGIN, None)  # PEFT warns of what it does not know
    if not isinstance(config.get("peft_type"), str):
        config["peft_type"] = "LORA"
    config["inference_mode"] = True
    ranks = {name: max(1, weights.lora_a[name].shape[0]) for name in weights.layer_names}
    shapes = MemorySource(weights).modules
    _correct(config, ranks, weights.scales, Path(weights.source or ADAPTER_CONFIG), shapes)
    return config


def config_of_other_tool(
    ranks: Mapping[str, int],
    scales: Mapping[str, float],
    base_model: str | None,
    origin: Mapping[str, Any],
) -> dict[str, Any]:
    """The config that PEFT would need for an adapter of another tool.

    That tool's metadata, which PEFT has no place for, stays under ``ORIGIN``.
    """
    config = {**fresh_config(), "base_model_name_or_path": base_model}
    _correct(config, ranks, scales, Path(ADAPTER_CONFIG), {})
    return {**config, ORIGIN: dict(origin)}


def _correct(
    config: dict[str, Any],
    ranks: Mapping[str, int],
    scales: Mapping[str, float],
    where: Path,
    shapes: Mapping[str, ModuleShape],
) -> None:
    settings = read_settings(config, where)
    if ranks:
        _correct_ranks(config, settings, ranks)
        _correct_alphas(config, settings, ranks, scales)
        _correct_targets(config, settings, list(ranks), shapes)


def fresh_config() -> dict[str, Any]:
    """A config of plain LoRA that says nothing yet of ranks and modules."""
    return {
        "alpha_pattern": {},
        "base_model_name_or_path": None,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "peft_type": "LORA",
        "rank_pattern": {},
        "target_modules": None,
        "task_type": None,
        "use_dora": False,
        "use_rslora": False,
    }


def _correct_ranks(config: dict[str, Any], settings: Settings, ranks: Mapping[str, int]) -> None:
    if config.get("r") is not None and all(
        settings.rank_of(module) == rank for module, rank in ranks.items()
    ):
        return
    config["r"] = _most_common(ranks, settings.rank)
    config["rank_pattern"] = _exceptions(ranks, config["r"])


def _correct_alphas(
    config: dict[str, Any],
    settings: Settings,
    ranks: Mapping[str, int],
    scales: Mapping[str, float],
) -> None:
    if config.get("lora_alpha") is not None and all(
        settings.scale_of(module, rank) == scales[module] for module, rank in ranks.items()
    ):
        return
    root: Callable[[int], float] = math.sqrt if settings.rslora else float
    alphas = {module: _alpha(scales[module], root(rank)) for module, rank in ranks.items()}
    config["lora_alpha"] = _most_common(alphas, settings.alpha)
    config["alpha_pattern"] = _exceptions(alphas, config["lora_alpha"])


def _alpha(scale: float, divisor: float) -> int | float:
    """The alpha whose quotient by ``divisor`` is ``scale``, or comes nearest to it."""
    if not math.isfinite(scale):
        raise AdapterError("A scale is not a finite number.", found=str(scale))
    middle = scale * divisor
    if not math.isfinite(middle):
        raise AdapterError("A scale is too large for an alpha.", found=str(scale))
    near = (round(middle), middle, math.nextafter(middle, math.inf), math.nextafter(middle, -1e308))
    best = min(near, key=lambda alpha: abs(alpha / divisor - scale))
    return int(best) if float(best).is_integer() and abs(best) < 2**53 else best


def _most_common(values: Mapping[str, Any], preferred: Any) -> Any:
    counts = Counter(values.values())
    return max(counts, key=lambda value: (counts[value], value == preferred, value))


_OPERATOR = re.compile(r"[()\[\]{}?*+|^$\\]")  # in a name: as a pattern it may be slow


def _exceptions(values: Mapping[str, Any], default: Any) -> dict[str, Any]:
    """A pattern table that gives every module its value, each matched by its own key alone."""
    table = {name: value for name, value in sorted(values.items()) if value != default}
    if not any(_OPERATOR.search(name) for name in table) and all(
        match_pattern(table, name, default) == value for name, value in values.items()
    ):
        return table
    # A name that is a pattern, ends another one's, or whose dots match another letter: anchor and
    # escape.
    return {f"^{re.escape(name)}": value for name, value in table.items()}


def _correct_targets(
    config: dict[str, Any],
    settings: Settings,
    modules: list[str],
    shapes: Mapping[str, ModuleShape],
) -> None:
    """An explicit list that matches every trained module.

    The base model is not known here, so leaf names are never invented: what the original listed
    is kept if it covers the modules, else their full paths are written.
    """
    targets = settings.targets
    listed = frozenset(targets) if isinstance(targets, tuple) else frozenset[str]()
    if listed and not unlisted_modules(shapes, listed, ties=settings.ties):
        return
    config["target_modules"] = sorted(modules)
    for name in ("layers_to_transform", "layers_pattern", "exclude_modules"):
        if config.get(name) is not None:
            config[name] = None


def cast(factor: Tensor, dtype: torch.dtype, key: str) -> Tensor:
    """``factor`` in another dtype.

    Raises:
        ParameterError: A value is too large for it.
    """
    result = factor.to(dtype)
    # 8-bit floats have no isfinite of their own
    if bool(factor.double().isfinite().all()) and not bool(result.isfinite().all()):
        raise ParameterError(
            f"Values of {key} do not fit {dtype}.".replace("torch.", ""),
            where=key,
            found=f"a largest magnitude of {factor.double().abs().max().item():.3g}",
            remedy="choose bf16 or fp32",
        )
    return result


def _torch_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    import torch

    if isinstance(dtype, str):
        word = STORAGE_DTYPES.get(dtype)
        found = getattr(torch, dtype, "none") if word is None else torch_dtype(word)
    else:
        found = dtype
    if found in (None, torch.float64, torch.float32, torch.float16, torch.bfloat16):
        return found
    raise ParameterError(
        "Adapters are not stored in this dtype.",
        expected=", ".join(STORAGE_DTYPES),
        found=str(dtype),
    )
