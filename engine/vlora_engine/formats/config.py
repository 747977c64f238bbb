"""Read adapter_config.json, and check the fields that this engine acts on.

Fields that are not understood are carried along untouched; those that decide the meaning of the
tensors are checked here, once for all.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlora_engine.adapters.module_names import WRAPPERS, without_wrappers
from vlora_engine.errors import AdapterError, CorruptFileError, InputError, UnsupportedAdapterError
from vlora_engine.formats.config_fields import ALORA
from vlora_engine.formats.patterns import PatternTable
from vlora_engine.utils.json_reader import parse_json
from vlora_engine.utils.reading import kind_error, open_file
from vlora_engine.utils.safetensors_file import LFS_POINTER, lfs_pointer_error, read_error

MAX_CONFIG_BYTES = 4_000_000
PEFT_DEFAULT_RANK = 8
PEFT_DEFAULT_ALPHA = 8


def read_config_bytes(path: Path) -> bytes:
    """Read a config file's bytes, refusing one larger than a config can be."""
    try:
        with open_file(path) as file:
            raw = file.read(MAX_CONFIG_BYTES + 1)
    except FileNotFoundError:
        raise missing_config_error(path) from None
    except OSError as error:
        raise read_error(path, error) from None
    if len(raw) > MAX_CONFIG_BYTES:
        raise CorruptFileError(
            "The adapter's config is too large to be one.",
            where=path,
            expected=f"at most {MAX_CONFIG_BYTES:,} bytes of JSON",
            found="more than that",
            remedy="copy adapter_config.json again from where the adapter was trained",
            code="bad-config",
        )
    if raw.startswith(LFS_POINTER):
        raise lfs_pointer_error(path)
    return raw


def parse_config(raw: bytes, path: Path) -> dict[str, Any]:
    """Parse ``raw`` as a JSON object with finite numbers.

    Raises:
        CorruptFileError: It is none.
    """
    try:
        config = parse_json(raw)
    except (ValueError, RecursionError) as error:
        raise CorruptFileError(
            "The adapter's config is not JSON.",
            where=path,
            expected="a JSON object",
            found=str(error) or type(error).__name__,
            remedy="fix the file, or copy it again from where the adapter was trained",
            code="bad-config",
        ) from None
    if not isinstance(config, dict):
        raise CorruptFileError(
            "The adapter's config is not a JSON object.",
            where=path,
            expected='{"peft_type": "LORA", "r": ..., ...}',
            found=f"a JSON {_JSON_WORDS.get(type(config), 'value')}",
            remedy="copy adapter_config.json again from where the adapter was trained",
            code="bad-config",
        )
    name = endless(config)
    if name is not None:
        raise _field_error(name, path, "a finite number", config[name])
    return config


def endless(config: Mapping[str, Any]) -> str | None:
    """The first field with a number in it that is beyond any float, such as 1e999; None if none."""
    for name, value in config.items():
        try:
            json.dumps(value, allow_nan=False)
        except ValueError:
            return name
    return None


def missing_config_error(path: Path) -> InputError:
    """The error for an adapter without its config."""
    return kind_error(path) or AdapterError(
        "The adapter has no adapter_config.json: its scale is not known.",
        where=path,
        expected="a JSON object with peft_type, r, lora_alpha, target_modules",
        found="no such file",
        remedy="copy it from where the adapter was trained, or write one with those four fields",
        code="no-config",
    )


@dataclass(frozen=True)
class Settings:
    """The checked fields that decide the meaning of an adapter's tensors, with PEFT's defaults."""

    rank: int
    alpha: float
    rslora: bool
    rank_pattern: PatternTable
    alpha_pattern: PatternTable
    targets: tuple[str, ...] | str | None
    base_model: str | None
    ties: bool = False

    def rank_of(self, module: str) -> int:
        """The rank that PEFT would give to ``module``."""
        return int(self.rank_pattern.get(module, self.rank)) if self.rank_pattern else self.rank

    def scale_of(self, module: str, rank: int) -> float:
        """``alpha / r``, or ``alpha / sqrt(r)`` with rank-stabilised LoRA."""
        alpha = self.alpha_pattern.get(module, self.alpha) if self.alpha_pattern else self.alpha
        return float(alpha) / (math.sqrt(rank) if self.rslora else rank)


def read_settings(config: Mapping[str, Any], where: Path) -> Settings:
    """Check the fields that are acted upon.

    A field that is absent (or null) means what it means to PEFT: ``r`` and ``lora_alpha`` are 8.

    Raises:
        AdapterError: A field has the wrong type or a value that no adapter can have.
    """
    targets = _field(config, "target_modules", where, _is_targets, "a string or a list of strings")
    rank = _field(config, "r", where, _is_rank, "a positive whole number") or PEFT_DEFAULT_RANK
    alpha = _field(config, "lora_alpha", where, _is_number, "a finite number")
    _field(config, ALORA, where, _is_tokens, "a list of token numbers")
    return Settings(
        rank=rank,
        alpha=PEFT_DEFAULT_ALPHA if alpha is None else alpha,
        rslora=bool(_field(config, "use_rslora", where, _is_bool, "true or false")),
        rank_pattern=_pattern(config, "rank_pattern", where, _is_rank, "positive whole numbers"),
        alpha_pattern=_pattern(config, "alpha_pattern", where, _is_number, "finite numbers"),
        targets=tuple(targets) if isinstance(targets, list) else targets,
        base_model=_field(config, "base_model_name_or_path", where, _is_text, "a string") or None,
        ties=config.get("ensure_weight_tying") is True,
    )


def without_wrapper_parts(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The config as it reads for modules under their own names, without the parts of wrappers."""
    if not any(wrapper in str(config) for wrapper in WRAPPERS):
        return config
    plain = dict(config)
    for name in ("rank_pattern", "alpha_pattern"):
        if isinstance(table := config.get(name), dict):
            plain[name] = {without_wrappers(key): value for key, value in table.items()}
    targets = config.get("target_modules")
    if isinstance(targets, list):
        texts = [without_wrappers(text) if isinstance(text, str) else text for text in targets]
        plain["target_modules"] = texts
    return plain


def check_peft_type(config: Mapping[str, Any], where: Path) -> None:
    """Raise unless ``config`` describes LoRA (or names no type, which its tensors may tell)."""
    kind = config.get("peft_type")
    if kind is None or (isinstance(kind, str) and kind.upper() == "LORA"):
        return
    if not isinstance(kind, str):
        raise _field_error("peft_type", where, '"LORA"', kind)
    raise UnsupportedAdapterError(
        f"The adapter is of PEFT's type {kind[:80]}, not LoRA.",
        where=where,
        expected='"peft_type": "LORA"',
        found=f'"peft_type": "{kind[:80]}"',
        remedy="convert it with PEFT's save_as_lora where that is possible; in Python, "
        "load_adapter(path, allow_unsupported=True) reads it as it is",
        code="other-peft-type",
    )


@dataclass(frozen=True)
class Variant:
    """A kind of LoRA that this engine refuses.

    ``product`` says whether ``scale * B @ A`` still is the update that its factors stand for; if
    not, ``allow_unsupported`` keeps all its tensors as rest tensors. ``start`` is what the value
    of its field begins with; without one any that is true tells it.
    """

    name: str
    field: str
    why: str
    remedy: str
    product: bool = False
    start: str = ""

    def applies(self, config: Mapping[str, Any]) -> bool:
        """Whether ``config`` describes it."""
        value = config.get(self.field)
        if self.start:
            return isinstance(value, str) and value.lower().startswith(self.start)
        return bool(value)

    @property
    def code(self) -> str:
        """The word for it in `doctor`: its kind, not its name."""
        if self.field == "init_lora_weights":
            return "moves-base"
        return "dora" if self.field == "use_dora" else "no-product"


_CONVERT_INIT = (
    "convert it where it was trained: "
    "model.save_pretrained(..., path_initial_model_for_weight_conversion=...)"
)
_MOVES_BASE = "its base weights are moved when it is loaded, so it shares no subspace with LoRA"
_REMERGE = "merge it into its base model and extract a plain LoRA of the difference, or retrain it"
VARIANTS = (
    Variant(
        "DoRA",
        "use_dora",
        "its update divides by a norm of base weight and update together, which is not linear",
        "retrain it with use_dora=False, or convert it with PEFT's save_as_lora",
        True,
    ),
    Variant(
        "KaSA",
        "kasa_config",
        "it has a diagonal between B and A and truncates its base weights",
        "retrain it without kasa_config",
    ),
    Variant(
        "BD-LoRA",
        "use_bdlora",
        "one of its factors is block-diagonal, so B @ A is not its update",
        _REMERGE,
    ),
    Variant(
        "QA-LoRA",
        "use_qalora",
        "its A works on pooled inputs, so B @ A is not its update",
        _REMERGE,
    ),
    Variant(
        "LoRA on expert parameters (target_parameters)",
        "target_parameters",
        "the ranks of all experts lie interleaved in one pair, so B @ A is not its update",
        "retrain it on modules (target_modules), or leave it out of the collection",
    ),
    Variant(
        "Arrow (routing between adapters)",
        "arrow_config",
        "it decides for every token which other adapters act, so B @ A is not its update",
        "route the adapters that it was made of where PEFT runs",
    ),
    Variant("PiSSA", "init_lora_weights", _MOVES_BASE, _CONVERT_INIT, True, "pissa"),
    Variant("OLoRA", "init_lora_weights", _MOVES_BASE, _CONVERT_INIT, True, "olora"),
    Variant("CorDA", "init_lora_weights", _MOVES_BASE, _CONVERT_INIT, True, "corda"),
    Variant("LoRA-GA", "init_lora_weights", _MOVES_BASE, _CONVERT_INIT, True, "lora_ga"),
    Variant(
        "LoftQ",
        "init_lora_weights",
        "its base weights are replaced by quantized ones when it is loaded",
        "if it was trained on the saved quantized base, set init_lora_weights to true",
        True,
        "loftq",
    ),
)


def find_variant(config: Mapping[str, Any]) -> Variant | None:
    """The refused kind of LoRA that ``config`` describes, if it does."""
    return next((variant for variant in VARIANTS if variant.applies(config)), None)


def variant_error(variant: Variant, found: str, where: Path | str) -> UnsupportedAdapterError:
    """The refusal of ``variant``."""
    return UnsupportedAdapterError(
        f"The adapter is {variant.name}, not plain LoRA: {variant.why}.",
        where=where,
        expected=f"plain LoRA (no {variant.field})",
        found=found,
        remedy=f"{variant.remedy}; in Python, load_adapter(path, allow_unsupported=True) reads it "
        "as it is",
        code=variant.code,
    )


def shown(value: Any) -> str:
    """A value out of a file, short enough for a message."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else text[:77] + "..."


_JSON_WORDS = {
    list: "array",
    str: "string",
    int: "number",
    float: "number",
    bool: "boolean",
    type(None): "null",
}


def _field(
    config: Mapping[str, Any], name: str, where: Path, good: Callable[[Any], bool], expected: str
) -> Any:
    value = config.get(name)
    if value is not None and not good(value):
        raise _field_error(name, where, expected, value)
    return value


def _field_error(name: str, where: Path, expected: str, value: Any) -> AdapterError:
    return AdapterError(
        f"The field {name!r} of the adapter's config is not what it should be.",
        where=where,
        expected=expected,
        found=shown(value),
        remedy=f"mend {name!r} in that file",
        code="bad-config",
    )


def _pattern(
    config: Mapping[str, Any], name: str, where: Path, good: Callable[[Any], bool], values: str
) -> PatternTable:
    table = config.get(name) or {}
    if not isinstance(table, dict):
        raise _field_error(name, where, f"an object of module patterns and {values}", table)
    for key, value in table.items():
        if not good(value):
            raise _field_error(name, where, f"{values} for {shown(key)}", value)
    return PatternTable(table, name, where)


def _is_rank(value: Any) -> bool:
    return type(value) is int and 0 < value < 2**31


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e300 and math.isfinite(value)


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_tokens(value: Any) -> bool:
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 2**32 for n in value)


def _is_targets(value: Any) -> bool:
    return isinstance(value, str) or (
        isinstance(value, list) and all(isinstance(item, str) for item in value)
    )
