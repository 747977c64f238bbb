"""Adapters on a causal language model of transformers, through PEFT.

transformers and peft (the extra ``peft``) are imported when a model is loaded, never before.
"""

from __future__ import annotations

import importlib
import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from vlora_engine.adapters.address import expanded
from vlora_engine.adapters.model import AdapterSource, LoRAWeights, to_memory
from vlora_engine.errors import (
    CollectionError,
    DependencyError,
    NotFoundError,
    ParameterError,
    UnsupportedAdapterError,
)
from vlora_engine.formats.patterns import check_for_peft
from vlora_engine.formats.peft_save import peft_config, peft_tensors
from vlora_engine.quantization.dtypes import AUTO_DTYPE, DTYPES, STORAGE_DTYPES
from vlora_engine.utils.device import pick_device
from vlora_engine.utils.file_names import ADAPTER_CONFIG, MODEL_CONFIG
from vlora_engine.utils.reading import kind_error
from vlora_engine.utils.safetensors_file import torch_dtype

logger = logging.getLogger(__name__)

_Swaps = list[tuple[Tensor, Tensor]]
BYTES = range(256, 513)  # the sizes of vocabulary in which a token may be a byte


@dataclass(frozen=True)
class PeftAdapter:
    """An adapter in PEFT's own form: its config and tensors under PEFT's keys."""

    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    where: str

    @property
    def fit(self) -> str:
        """A key: adapters with the same one can replace each other's tensors in the model."""
        settings = {k: v for k, v in self.config.items() if k not in _NO_MATTER}
        shapes = sorted((key, tuple(t.shape)) for key, t in self.tensors.items())
        return repr((sorted((k, _ordered(v)) for k, v in settings.items()), shapes))


_NO_MATTER = frozenset({"base_model_name_or_path", "inference_mode", "peft_version", "revision"})


def as_peft_adapter(weights: LoRAWeights) -> PeftAdapter:
    """``weights`` in PEFT's form, as `save_adapter` would write them."""
    return PeftAdapter(peft_config(weights), peft_tensors(weights), str(weights.source or "a task"))


def read_by_peft(source: AdapterSource) -> PeftAdapter:
    """An adapter as PEFT itself reads it from its directory, independently of this library.

    Other formats, which PEFT does not read, are read by this library.
    """
    if source.path is None or not (source.path / ADAPTER_CONFIG).is_file():
        return as_peft_adapter(to_memory(source))
    from peft import PeftConfig
    from peft.utils import load_peft_weights

    config = PeftConfig.from_pretrained(str(source.path)).to_dict()
    return PeftAdapter(config, load_peft_weights(str(source.path), device="cpu"), str(source.path))


@dataclass
class BaseModel:
    """A base model with named slots: each holds one adapter, and any can be switched on.

    Attributes:
        name: The path or Hub id it was loaded from.
        tokenizer: None where the model has none.
        device: Where it runs.
        unplaced: Tensors of adapters that have no place in this model (heads of other tasks).
    """

    name: str
    model: Any
    tokenizer: Any
    device: torch.device
    unplaced: set[str] = field(default_factory=set)
    _peft: Any = None
    _slots: dict[str, tuple[str, str]] = field(default_factory=dict)  # PEFT's name, what fits
    _count: int = 0
    _carried: dict[str, _Swaps] = field(default_factory=dict)  # per slot: tensor, what goes there
    _displaced: _Swaps = field(default_factory=list)  # tensor, what was there
    _carrying: str | None = None

    @property
    def vocabulary(self) -> int:
        """The number of tokens."""
        return int(self.model.config.get_text_config().vocab_size)

    @property
    def longest(self) -> int | None:
        """The most tokens of a sequence, where the model has such a limit."""
        limit = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        return int(limit) if limit else None

    @property
    def beginning(self) -> int | None:
        """The token that a text begins with, if the model has one."""
        found = getattr(self.tokenizer, "bos_token_id", None)
        found = self.model.config.get_text_config().bos_token_id if found is None else found
        return int(found) if found is not None and 0 <= found < self.vocabulary else None

    def encode(self, text: str) -> list[int]:
        """Text as tokens; where there is no tokenizer and the vocabulary is one of bytes, these.

        Raises:
            ParameterError: There is no tokenizer, and the vocabulary is not one of bytes.
        """
        if self.tokenizer is not None:
            return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        if self.vocabulary not in BYTES:
            raise ParameterError(
                "The base model has no tokenizer, and its vocabulary is not one of bytes.",
                where=self.name,
                expected="tokenizer files beside config.json",
                found=f"{self.vocabulary} tokens",
                remedy="put the tokenizer there, or leave --prompts out: texts are then sampled",
            )
        return list(text.encode())

    def put(self, slot: str, adapter: PeftAdapter) -> None:
        """Put ``adapter`` into a slot; of one with the same config and shapes only tensors change.

        Raises:
            CollectionError: It does not fit this model.
            UnsupportedAdapterError: It trains biases, which PEFT cannot hold beside another one.
        """
        self._carry(None)
        current = self._slots.get(slot)
        if current is not None and current[1] == adapter.fit:
            self._fill(slot, current[0], adapter)
            return
        if adapter.config.get("bias") not in (None, "none"):
            raise UnsupportedAdapterError(
                "Evaluation of adapters that train biases is not built.",
                where=adapter.where,
                expected='"bias": "none"',
                found=repr(adapter.config["bias"]),
            )
        check_for_peft(adapter.config, adapter.where)
        self._count += 1
        name = f"{slot}{self._count}"
        with as_misfit(adapter, self.name), quiet():
            from peft import PeftConfig, PeftModel

            # Named, PEFT would look for the base on the Hub.
            settings = {**adapter.config, "base_model_name_or_path": None, "inference_mode": True}
            config = PeftConfig.from_peft_type(**settings)
            if self._peft is None:
                self._peft = PeftModel(self.model, config, name)
            else:
                self._peft.add_adapter(name, config)
        self._fill(slot, name, adapter)
        self._peft.eval()
        self._slots[slot] = name, adapter.fit
        if current is not None:
            self._peft.set_adapter(name)
            self._peft.delete_adapter(current[0])

    def _fill(self, slot: str, name: str, adapter: PeftAdapter) -> None:
        """Set the tensors of PEFT's adapter ``name``."""
        from peft import set_peft_model_state_dict

        state = self._peft.state_dict()
        brought = {k: t for k, t in adapter.tensors.items() if k in state and "lora_" not in k}
        for key, tensor in brought.items():
            if state[key].shape != tensor.shape:
                found = f"{key} of {tuple(tensor.shape)}, the base's is {tuple(state[key].shape)}"
                raise misfit(adapter, self.name, found)
        self._carried[slot] = [(state[key], tensor) for key, tensor in brought.items()]
        factors = {key: tensor for key, tensor in adapter.tensors.items() if key not in brought}
        with as_misfit(adapter, self.name), quiet():
            loaded: Any = set_peft_model_state_dict(self._peft, factors, name)
        unmatched = [key for key in loaded.unexpected_keys if "lora_" in key]
        if unmatched:
            raise misfit(adapter, self.name, f"no place for {unmatched[0]}")
        self.unplaced.update(loaded.unexpected_keys)
        for key in loaded.missing_keys:
            if "lora_" in key and name in key.split("."):
                state[key].zero_()  # a module that the config names and the adapter lacks

    def _carry(self, slot: str | None) -> None:
        """Exchange tensors of the base (embeddings) for those that a slot's adapter brings.

        PEFT itself would leave them in the base for good.
        """
        if slot == self._carrying:
            return
        for target, original in reversed(self._displaced):
            target.copy_(original)
        brought = self._carried.get(slot, []) if slot is not None else []
        self._displaced = []
        for target, tensor in brought:
            self._displaced.append((target, target.clone()))
            target.copy_(tensor)
        self._carrying = slot

    @torch.no_grad()
    def logits(self, slot: str | None, tokens: Tensor, **inputs: Any) -> Any:
        """The model's output for ``tokens`` (S, T) with the adapter of ``slot``; None: with none.

        Returns:
            The output of transformers; its logits are (S, T, vocabulary).
        """
        tokens = tokens.to(self.device)
        self._carry(slot)
        if slot is None:
            if self._peft is None:
                return self.model(input_ids=tokens, **inputs)
            with self._peft.disable_adapter():
                return self._peft(input_ids=tokens, **inputs)
        if self._peft.active_adapter != self._slots[slot][0]:
            self._peft.set_adapter(self._slots[slot][0])
        return self._peft(input_ids=tokens, **inputs)


def load_base(base: str | Path, *, device: str = "auto", dtype: str = "auto") -> BaseModel:
    """A causal language model and its tokenizer from a folder or by its Hub id.

    Args:
        base: A folder that ``save_pretrained`` wrote, or a Hub id.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        dtype: ``fp32``, ``fp16`` or ``bf16``; ``auto`` is fp32 on the CPU, elsewhere the model's.

    Raises:
        DependencyError: transformers or peft is not installed.
        NotFoundError: There is no such model here, or the Hub cannot be reached.
        ParameterError: It is no causal language model, or not a whole one.
    """
    if dtype not in DTYPES:
        raise ParameterError(f"Unknown dtype {dtype!r}.", expected=", ".join(DTYPES), found=dtype)
    require_extra()
    target_device = pick_device(device)
    name = _folder_or_id(os.fspath(base))
    import transformers

    kind: torch.dtype | str = torch.float32 if target_device.type == "cpu" else "auto"
    if dtype != AUTO_DTYPE:
        kind = torch_dtype(STORAGE_DTYPES[dtype])
    word = "dtype" if int(transformers.__version__.split(".")[0]) >= 5 else "torch_dtype"
    try:
        with quiet():
            # False: else transformers asks at the keyboard whether to run code out of a model.
            loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
                name, trust_remote_code=False, output_loading_info=True, **{word: kind}
            )
    except (ValueError, KeyError) as error:
        raise ParameterError(
            "The base is not a causal language model that transformers knows.",
            where=name,
            found=_first_line(error),
        ) from error
    except (OSError, RuntimeError, EOFError, SafetensorError, UnpicklingError) as error:
        if isinstance(error, torch.cuda.OutOfMemoryError):
            raise
        raise _no_base(name, error) from error
    model, report = loaded
    missing = report["missing_keys"]
    if missing:  # transformers would leave random numbers there
        raise ParameterError(
            "The base's weights are not those of a whole causal language model.",
            where=name,
            found=f"{len(missing)} tensors missing, as {min(missing)}",
        )
    model.requires_grad_(False)
    return BaseModel(str(base), model.eval().to(target_device), _tokenizer(name), target_device)


def require_extra() -> None:
    """Raise where a library of the extra ``peft`` is missing.

    Raises:
        DependencyError: It names the extra.
    """
    for library in ("transformers", "peft"):
        try:
            importlib.import_module(library)
        except ImportError as error:
            raise DependencyError(
                f"Evaluation needs {library}, which is not installed.",
                found=str(error),
                remedy="pip install 'vlora-tui[peft]'",
            ) from error


@contextmanager
def quiet() -> Iterator[None]:
    """transformers and PEFT without bars and remarks; errors still come as exceptions."""
    from transformers.utils import logging as talk

    level, bars = talk.get_verbosity(), talk.is_progress_bar_enabled()
    talk.set_verbosity_error()
    talk.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        talk.set_verbosity(level)
        if bars:
            talk.enable_progress_bar()


def _folder_or_id(base: str) -> str:
    """The folder that ``base`` names, or ``base`` itself where it can only be a Hub id.

    Raises:
        NotFoundError: It is written as a path, and there is no model.
    """
    path = expanded(base)
    if path.is_dir():
        if (path / MODEL_CONFIG).is_file():
            return str(path)
        raise kind_error(path / MODEL_CONFIG) or NotFoundError(
            "There is no model in this folder.",
            where=path,
            expected="config.json, as transformers' save_pretrained writes it",
            remedy="name the base model, not an adapter of it",
        )
    if path.exists() or base.startswith((".", "/", "~")) or base.count("/") > 1 or not base:
        raise NotFoundError(
            "There is no such base model.",
            where=base,
            expected="a folder with config.json, or an id on the Hugging Face Hub",
        )
    return base


def _no_base(name: str, error: Exception) -> NotFoundError:
    if Path(name).is_dir():
        return NotFoundError(
            "The base model cannot be loaded.",
            where=name,
            found=_first_line(error),
            remedy="check that its weights are all there",
        )
    offline = any(os.environ.get(k) for k in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))
    return NotFoundError(
        "The base model is neither a folder here, nor in the cache, nor to be had from the Hub.",
        where=name,
        found=_first_line(error),
        remedy=f"hf download {name}, where there is a network"
        + (" (the Hub is switched off here: HF_HUB_OFFLINE)" if offline else "")
        + "; then name it, or its folder",
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def _tokenizer(name: str) -> Any:
    """The model's tokenizer, None where it has none: only a text needs one."""
    from transformers import AutoTokenizer

    if Path(name).is_dir():
        there = {entry.name for entry in Path(name).iterdir()}
        # Of a bare config some versions make up an empty tokenizer.
        if not any(n.startswith("token") or n in ("vocab.json", "vocab.txt") for n in there):
            return None
    try:
        with quiet():
            return AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        logger.info("no tokenizer at %s: %s", name, error)
        return None


@contextmanager
def as_misfit(adapter: PeftAdapter, base: str) -> Iterator[None]:
    """Turn PEFT's errors about names or shapes that do not fit into a `CollectionError`."""
    try:
        yield
    except (ValueError, RuntimeError, TypeError, KeyError) as error:
        lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
        if isinstance(error, torch.cuda.OutOfMemoryError) or not lines:
            raise
        raise misfit(adapter, base, lines[-1][:300]) from error


def misfit(adapter: PeftAdapter, base: str, found: str) -> CollectionError:
    """The error for an adapter of another base."""
    return CollectionError(
        f"The adapter does not fit the base model {base}.",
        where=adapter.where,
        expected="the base that it was trained on"
        + (f": {named}" if (named := adapter.config.get("base_model_name_or_path")) else ""),
        found=found,
        remedy="name that model with --base",
    )


def _ordered(value: Any) -> Any:
    if isinstance(value, set | frozenset | list | tuple):
        return sorted(map(repr, value))
    return sorted(map(repr, value.items())) if isinstance(value, dict) else repr(value)


def with_adapter(base_model: Any, adapter: PeftAdapter) -> Any:
    """``base_model`` in a ``peft.PeftModel`` with an adapter in PEFT's form.

    Raises:
        CollectionError: It does not fit the model.
    """
    from peft import PeftConfig, get_peft_model, set_peft_model_state_dict

    check_for_peft(adapter.config, adapter.where)
    name = str(getattr(base_model, "name_or_path", "") or type(base_model).__name__)
    with as_misfit(adapter, name), quiet():
        settings = {**adapter.config, "base_model_name_or_path": None}
        model = get_peft_model(base_model, PeftConfig.from_peft_type(**settings))
        loaded: Any = set_peft_model_state_dict(model, dict(adapter.tensors))
    unmatched = sorted(key for key in loaded.unexpected_keys if "lora_" in key)
    if unmatched:
        raise misfit(adapter, name, f"no place for {unmatched[0]}")
    state = model.state_dict()
    for key in loaded.missing_keys:
        if ".lora_" in key:
            state[key].zero_()  # a module that the config names and the adapter lacks
    return model.eval()
