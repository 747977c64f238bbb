"""A base model as its config and the headers of its weights show it: no torch, no weights.

What is known of it decides what can be checked: from the headers of safetensors every name and
shape; from a config alone the number of layers and, for common architectures, the shapes.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from vlora_engine.adapters.model import ModuleShape
from vlora_engine.catalog.locate import existing_path
from vlora_engine.errors import CorruptFileError, MissingPathError, VLoRAError
from vlora_engine.utils.file_names import MODEL_CONFIG
from vlora_engine.utils.json_reader import parse_json
from vlora_engine.utils.reading import kind_error, open_file
from vlora_engine.utils.safetensors_file import FLOAT_DTYPES, read_error, read_header

INDEX = "model.safetensors.index.json"
MAX_JSON = 50_000_000
CONV1D = ("gpt2", "openai-gpt", "imagegpt")  # whose matrices lie as (d_in, d_out)
Shape = tuple[int, ...]
_LAYER = re.compile(r"(?:^|\.)(?:h|layers?|blocks?)\.(\d+)(?:\.|$)")
_LLAMA_LIKE = frozenset(
    {"llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "olmo2", "smollm3"}
)


@dataclass(frozen=True)
class BaseFacts:
    """What is known of a base model.

    Args:
        name: Where it lies.
        config: Its config.json, the part about text where there are several.
        weights: dtype and shape of every ``<module>.weight``, by module; empty where no headers
            are there.
        name_in_config: What its config calls itself, if it does.
    """

    name: str
    config: Mapping[str, Any]
    weights: Mapping[str, tuple[str, Shape]] = field(default_factory=dict)
    name_in_config: str = ""
    architectures: tuple[str, ...] = ()

    @property
    def model_type(self) -> str:
        """The architecture that the config names: ``llama``, ``gpt2``..."""
        return str(self.config.get("model_type") or "")

    @property
    def layers(self) -> int | None:
        """How many layers it has."""
        return self._whole("num_hidden_layers", "n_layer", "num_layers")

    @property
    def vocabulary(self) -> int | None:
        """How many tokens it has."""
        return self._whole("vocab_size")

    def knows(self, module: str) -> bool | None:
        """Whether it has a module of this name; None where nothing tells."""
        if self.weights:
            # A head's weight may be the embedding's.
            return self._found(module) is not None or module.rpartition(".")[2] == "lm_head"
        number = layer_number(module)
        if number is not None and self.layers is not None and number >= self.layers:
            return False
        return None

    def ends_before(self, module: str) -> bool:
        """Whether the module's layer has a number that a model of this config does not have."""
        number = layer_number(module)
        of_several = any(key.endswith("_config") for key in self.config)
        return bool(self.layers and number is not None and number >= self.layers and not of_several)

    def misfit(self, module: str, shape: ModuleShape) -> str:
        """How the shape of an adapter's module differs from the base's; empty if it does not."""
        found = self._found(module)
        if found is not None:
            dtype, own = found
            # A packed weight (GPTQ, bitsandbytes) has a shape of its own.
            fits = dtype not in FLOAT_DTYPES or _fits(shape, own, self.model_type in CONV1D)
            return "" if fits else " x ".join(map(str, own))
        expected = self._expected(module)
        if expected is None or shape.kind != "linear" or (shape.d_out, shape.d_in) == expected:
            return ""
        return f"{expected[0]} x {expected[1]}, as the config says"

    def _whole(self, *names: str) -> int | None:
        found = (self.config.get(name) for name in names)
        return next((n for n in found if type(n) is int and n > 0), None)

    def _found(self, module: str) -> tuple[str, Shape] | None:
        """The base's weight for a module, whatever wrapper stands before either name."""
        parts = module.split(".")
        for start in range(len(parts)):
            name = ".".join(parts[start:])
            if name in self.weights and (start == 0 or layer_number(name) is not None):
                return self.weights[name]
        full = self._by_suffix.get(module)
        return None if full is None else self.weights[full]

    @cached_property
    def _by_suffix(self) -> dict[str, str]:
        """Every end of a name, as far as it still tells the layer, with the whole name."""
        ends: dict[str, str] = {}
        for name in self.weights:
            for end in endings(name):
                ends.setdefault(end, name)
        return ends

    def _expected(self, module: str) -> tuple[int, int] | None:
        """d_out and d_in of a module by the config alone."""
        if self.model_type in _LLAMA_LIKE:
            return self._llama_shapes().get(module.rpartition(".")[2])
        if self.model_type == "gpt2":
            return self._gpt2_shapes().get(".".join(module.split(".")[-2:]))
        return None

    def _llama_shapes(self) -> dict[str, tuple[int, int]]:
        hidden, inner = self._whole("hidden_size"), self._whole("intermediate_size")
        heads = self._whole("num_attention_heads")
        if hidden is None or inner is None or heads is None:
            return {}
        size = self._whole("head_dim") or hidden // heads
        few = (self._whole("num_key_value_heads") or heads) * size
        return {
            "q_proj": (heads * size, hidden),
            "k_proj": (few, hidden),
            "v_proj": (few, hidden),
            "o_proj": (hidden, heads * size),
            "gate_proj": (inner, hidden),
            "up_proj": (inner, hidden),
            "down_proj": (hidden, inner),
        }

    def _gpt2_shapes(self) -> dict[str, tuple[int, int]]:
        hidden = self._whole("n_embd", "hidden_size")
        if hidden is None:
            return {}
        inner = self._whole("n_inner") or 4 * hidden
        return {
            "attn.c_attn": (3 * hidden, hidden),
            "attn.c_proj": (hidden, hidden),
            "mlp.c_fc": (inner, hidden),
            "mlp.c_proj": (hidden, inner),
        }


def endings(name: str) -> Iterator[str]:
    """Every shorter end of a module's name, as far as it still tells the layer; the leaf, too."""
    parts = name.split(".")
    for start in range(1, len(parts)):
        end = ".".join(parts[start:])
        if layer_number(end) is None and start < len(parts) - 1:
            return
        yield end


def layer_number(module: str) -> int | None:
    """The number of the layer that a module lies in."""
    found = _LAYER.search(module)
    return None if found is None else int(found[1])


def read_base(place: str | Path) -> BaseFacts:
    """What a model's directory, or its config.json alone, tells.

    Raises:
        NotFoundError: There is nothing there, or no config.json.
        CorruptFileError: The config, the index or a header is not what it should be.
    """
    path = existing_path(place)
    is_folder = os.path.isdir(path)
    folder, config_path = (path, path / MODEL_CONFIG) if is_folder else (path.parent, path)
    if not os.path.isfile(config_path) or config_path.suffix != ".json":
        raise kind_error(config_path) or MissingPathError(
            "There is no base model here.",
            where=path,
            expected=f"a model's directory with {MODEL_CONFIG}, or that file",
            remedy="name the folder that transformers' save_pretrained wrote",
        )
    whole = _read_json(config_path)
    text = whole.get("text_config")
    config = {**whole, **text} if isinstance(text, dict) else whole
    names = whole.get("architectures")
    return BaseFacts(
        name=str(path),
        config=config,
        weights=_weights(folder) if path.is_dir() else {},
        name_in_config=str(whole.get("_name_or_path") or ""),
        architectures=tuple(map(str, names)) if isinstance(names, list) else (),
    )


def weight_files(folder: Path) -> list[Path]:
    """The safetensors with the model's weights: all in the folder, or those that its index names.

    Raises:
        CorruptFileError: The index is not what it should be.
    """
    index = folder / INDEX
    if not os.path.lexists(index):
        return sorted(folder.glob("*.safetensors"))
    table = _read_json(index).get("weight_map")
    names = {str(name) for name in table.values()} if isinstance(table, dict) else set()
    return [folder / name for name in sorted(names) if "/" not in name and name != ".."]


def _weights(folder: Path) -> dict[str, tuple[str, Shape]]:
    """dtype and shape of every weight, from the headers of all safetensors in the folder."""
    found = {}
    for file in weight_files(folder):
        for key, entry in read_header(file).entries.items():
            module, _, leaf = key.rpartition(".")
            if leaf in ("weight", "qweight"):
                dtype = entry.dtype if leaf == "weight" else "U8"
                found[module] = (dtype, entry.shape)
    return found


def _read_json(path: Path) -> dict[str, Any]:
    try:
        with open_file(path) as file:
            value = parse_json(file.read(MAX_JSON))
    except OSError as error:
        raise read_error(path, error) from None
    except (ValueError, RecursionError) as error:
        raise _not_json(path, str(error)) from None
    if not isinstance(value, dict):
        raise _not_json(path, type(value).__name__)
    return value


def _not_json(path: Path, found: str) -> VLoRAError:
    return CorruptFileError(
        "The base model's file is not a JSON object.",
        where=path,
        found=found[:200],
        remedy="download the model again",
    )


def _fits(shape: ModuleShape, weight: Shape, transposed: bool) -> bool:
    if shape.kind == "conv2d":
        return (shape.d_out, shape.d_in) == (weight[0], math.prod(weight[1:]))
    if shape.kind == "embedding" or transposed:
        return (shape.d_in, shape.d_out) == weight
    return (shape.d_out, shape.d_in) == weight
