"""The shape of a base model, from its config.json alone, for writing GGUF adapters."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlora_engine.adapters.address import expanded, repo_folder
from vlora_engine.errors import AdapterError, CorruptFileError, MissingPathError
from vlora_engine.formats.config import parse_config, read_config_bytes, shown
from vlora_engine.utils.file_names import MODEL_CONFIG
from vlora_engine.utils.reading import kind_error

_MENDS = "name the base model's folder, or its config.json: --base DIR"


@dataclass(frozen=True)
class BaseConfig:
    """The shape of a base model.

    Args:
        class_name: The model's class of transformers, where the config names it.
        tied: Whether the output layer is the embedding, so that it has no weight of its own.
    """

    path: Path
    model_type: str
    class_name: str | None
    layers: int
    heads: int
    kv_heads: int
    hidden: int
    head_dim: int
    tied: bool


def find_base(named: str | Path | None, base_model: str | None) -> BaseConfig:
    """Find and read the base model's config: at ``named``, else at the adapter's base model.

    Args:
        named: A model's folder, or its config.json.
        base_model: What the adapter calls its base: a path, or a Hub id that is looked up in the
            local cache of the Hub; nothing is downloaded.

    Raises:
        NotFoundError: It is not there; the error says what names it.
        AdapterError: It is no config of a model.
    """
    if named is not None:
        path = expanded(str(named))
        config_file = path / MODEL_CONFIG if os.path.isdir(path) else path
        if not os.path.isfile(config_file):
            raise kind_error(config_file) or MissingPathError(
                "There is no config of a base model here.",
                where=named,
                expected=f"a folder with {MODEL_CONFIG}, or that file",
                found="a folder without it" if path.is_dir() else "no such file",
                remedy=_MENDS,
            )
        return read_base(config_file)
    found = known_base(base_model)
    if found is None:
        raise MissingPathError(
            "GGUF needs the base model's config, which is not on this machine.",
            where=base_model,
            expected=f"{MODEL_CONFIG} in the adapter's base_model_name_or_path, "
            "or in the Hub's cache",
            found=None if base_model else "an adapter that names no base model",
            remedy=_MENDS,
        )
    return read_base(found)


def known_base(base_model: str | None) -> Path | None:
    """The config of the base that an adapter names, on this disk or in the Hub's cache."""
    if not base_model or "\0" in base_model:
        return None
    local = expanded(base_model) / MODEL_CONFIG
    if os.path.lexists(local):
        return local
    if not os.path.isdir(repo_folder(base_model)):
        return None  # its client, which takes a tenth of a second to load, would find nothing
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = try_to_load_from_cache(base_model, MODEL_CONFIG)
    except HFValidationError:
        return None
    return Path(cached) if isinstance(cached, str) else None


def read_base(path: Path) -> BaseConfig:
    """Read and check the config at ``path``.

    Raises:
        AdapterError: It is not JSON, or a count is missing or no count.
    """
    try:
        config = parse_config(read_config_bytes(path), path)
    except CorruptFileError as fault:
        raise CorruptFileError(
            "The base model's config is not JSON of a model.",
            where=path,
            expected=fault.expected,
            found=fault.found,
            remedy="copy it again, or name another: --base DIR",
        ) from None
    kind = config.get("model_type")
    if not isinstance(kind, str):
        raise AdapterError(
            "The config names no model_type.",
            where=path,
            expected='the config.json of a model of transformers, such as "model_type": "llama"',
            found=shown(kind),
            remedy=_MENDS,
        )
    layers = _count(config, path, "num_hidden_layers", "n_layer")
    heads = _count(config, path, "num_attention_heads", "n_head")
    hidden = _count(config, path, "hidden_size", "n_embd")
    classes = config.get("architectures")
    first = classes[0] if isinstance(classes, list) and classes else None
    return BaseConfig(
        path=path,
        model_type=kind,
        class_name=first if isinstance(first, str) else None,
        layers=layers,
        heads=heads,
        kv_heads=_count(config, path, "num_key_value_heads", default=heads),
        hidden=hidden,
        head_dim=_count(config, path, "head_dim", default=max(1, hidden // heads)),
        tied=bool(config.get("tie_word_embeddings", kind in _TIED)),
    )


# What their classes in transformers do by default.
_TIED = frozenset({"gpt2", "gemma2", "gemma3_text"})


def _count(config: Mapping[str, Any], path: Path, *names: str, default: int | None = None) -> int:
    value = next((config[name] for name in names if config.get(name) is not None), default)
    if type(value) is not int or not 0 < value < 2**31:
        raise AdapterError(
            f"The base model's config has no {' or '.join(names)}.",
            where=path,
            expected="a whole number",
            found=shown(value),
            remedy=_MENDS,
        )
    return value
