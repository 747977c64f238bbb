"""Write MLX-LM adapters: factors transposed, one scale, one rank, the config that it reads."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlora_engine.adapters.model import LoRAWeights, padded
from vlora_engine.errors import UnsupportedAdapterError
from vlora_engine.formats.peft_save import ORIGIN
from vlora_engine.formats.provenance import CARD, KEY, recorded
from vlora_engine.utils.file_names import ADAPTER_CONFIG, MLX_FILE
from vlora_engine.utils.files import write_file, write_json
from vlora_engine.utils.outputs import MadeCheck, new_directory
from vlora_engine.utils.tensor_writer import write_tensors

if TYPE_CHECKING:
    from torch import Tensor

_LAYER = re.compile(r"(?:^|\.)(?:layers|h)\.(\d+)\.")


def save_mlx(
    weights: LoRAWeights, path: Path, *, force: bool = False, check: MadeCheck | None = None
) -> Path:
    """Write ``weights`` as a directory that MLX-LM loads with the same effect.

    Rest tensors are left out: MLX-LM would load them over the model's own. ``check`` is shown the
    directory before it takes its place (`new_directory`).

    Raises:
        UnsupportedAdapterError: A module is a convolution.
        OutputExistsError, StorageError: As `save_adapter`.
    """
    tensors, scale, rank = mlx_tensors(weights)
    config = mlx_config(weights, scale, rank)
    record = recorded(weights, tensors)
    with new_directory(path, job="save", force=force, check=check) as partial:
        write_json(partial / ADAPTER_CONFIG, config, indent=2)
        metadata = {"format": "mlx", KEY: record.text}
        write_tensors(partial / MLX_FILE, dict(sorted(tensors.items())), metadata)
        write_file(partial / CARD, record.card)
    return path


def mlx_tensors(weights: LoRAWeights) -> tuple[dict[str, Tensor], float, int]:
    """``lora_a`` (in, r) and ``lora_b`` (r, out) of every module, the one scale, the one rank.

    MLX-LM has one scale and one rank: what differs is padded with zeros, and a scale that is not
    the common one goes into B.
    """
    rank = max((a.shape[0] for a in weights.lora_a.values()), default=1) or 1
    scale = common_scale(weights)
    tensors = {}
    for name in weights.layer_names:
        shape = weights.shapes.get(name)
        if shape is not None and shape.kind == "conv2d":
            raise UnsupportedAdapterError(
                "MLX-LM has no LoRA on convolutions.",
                where=name,
                expected="linear maps and embeddings",
                found="a convolution",
                remedy="convert it to peft",
            )
        a, b = weights.lora_a[name], weights.lora_b[name]
        if weights.scales[name] != scale:
            b = (b.double() * (weights.scales[name] / scale)).to(b.dtype)
        tensors[f"{name}.lora_a"] = padded(a, rank, 0).T.contiguous()
        tensors[f"{name}.lora_b"] = padded(b, rank, 1).T.contiguous()
    return tensors, scale, rank


def common_scale(weights: LoRAWeights) -> float:
    """The scale that most modules have, and none of them 0 unless all are."""
    counts = Counter(scale for scale in weights.scales.values() if scale)
    return max(counts, key=lambda value: (counts[value], value), default=0.0)


def mlx_config(weights: LoRAWeights, scale: float, rank: int) -> dict[str, Any]:
    """adapter_config.json for MLX-LM, based on the former one of an adapter from there."""
    origin = weights.metadata.get(ORIGIN)
    former = origin.get("config") if isinstance(origin, dict) else None
    config: dict[str, Any] = dict(former) if isinstance(former, dict) else {}
    parameters = config.get("lora_parameters")
    parameters = dict(parameters) if isinstance(parameters, dict) else {}
    parameters.pop("alpha", None)  # older versions of MLX-LM would multiply by it again
    parameters |= {"rank": rank, "scale": scale}
    parameters.setdefault("dropout", 0.0)
    base = weights.metadata.get("base_model_name_or_path")
    if base and "model" not in config:
        config["model"] = base
    config["fine_tune_type"] = "lora"
    if "num_layers" not in config:
        config["num_layers"] = _num_layers(weights)
    if not isinstance(former, dict):
        parameters["keys"] = _keys(weights)
    config["lora_parameters"] = parameters
    return config


def _num_layers(weights: LoRAWeights) -> int:
    """MLX-LM counts from the last layer; -1 is all of them."""
    numbers = {int(m[1]) for name in weights.layer_names if (m := _LAYER.search(name))}
    if not numbers or 0 in numbers:
        return -1
    return max(numbers) - min(numbers) + 1


def _keys(weights: LoRAWeights) -> list[str]:
    """The modules within a layer, and those outside of the layers by their whole names."""
    found = set()
    for name in weights.layer_names:
        match = _LAYER.search(name)
        found.add(name[match.end() :] if match else name)
    return sorted(found)
