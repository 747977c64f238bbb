"""MLX-LM adapters: ``adapters.safetensors`` with ``lora_a`` (in, r) and ``lora_b`` (r, out).

The scale stands in adapter_config.json as it is applied: ``dW = scale * (lora_a @ lora_b)^T``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, TypeGuard

from vlora_engine.errors import UnsupportedAdapterError
from vlora_engine.findings import Finding
from vlora_engine.formats.base import Probe
from vlora_engine.formats.contents import Contents
from vlora_engine.formats.layout import Described
from vlora_engine.formats.peft_save import ORIGIN
from vlora_engine.formats.plain import Parts, PlainFormat, paired, unreadable_number
from vlora_engine.utils.file_names import MLX_FILE

MLX_SCALE = 20.0  # MLX-LM's default
_FACTOR = re.compile(r"(?P<module>.+)\.lora_(?P<side>[ab])\Z")
_EMBEDDINGS = frozenset({"embed_tokens", "wte", "tok_embeddings", "word_embeddings"})


def _marks(keys: Any, metadata: Mapping[str, str]) -> bool:
    return any(_FACTOR.match(key) for key in keys)


def mlx_parts(probe: Probe, contents: Contents) -> Parts:
    """The pairs of MLX-LM's files, see `PlainFormat`.

    Raises:
        UnsupportedAdapterError: DoRA, a fully trained model, experts.
        AdapterError: Half a pair, a scale that is no number.
    """
    config = probe.config if probe.has_config else {}
    _check_plain(config, contents, probe)
    factors: dict[str, dict[str, str]] = {}
    rest: dict[str, Described] = {}
    for key, described in contents.tensors.items():
        match = _FACTOR.match(key)
        if match is None:
            rest[key] = described
        else:
            side = match["side"].upper()
            if match["module"].rpartition(".")[2] in _EMBEDDINGS:
                side = f"embedding_{side}"
            factors.setdefault(match["module"], {})[side] = key
    pairs = paired(factors, contents.tensors, contents.path, transposed=True)
    scale, findings = _scale(config, probe)
    return Parts(
        pairs=pairs,
        scales=dict.fromkeys(pairs, scale),
        rest=rest,
        base_model=config["model"] if isinstance(config.get("model"), str) else None,
        origin={"config": {name: value for name, value in config.items() if name != ORIGIN}},
        findings=findings,
    )


def _scale(config: Mapping[str, Any], probe: Probe) -> tuple[float, tuple[Finding, ...]]:
    where = str(probe.config_path)
    settings = config.get("lora_parameters")
    settings = settings if isinstance(settings, dict) else {}
    scale = settings.get("scale")
    if scale is None:
        what = f"No scale is named; MLX-LM takes {MLX_SCALE:g}, and so does this engine."
        remedy = "write lora_parameters.scale into adapter_config.json"
        return MLX_SCALE, (Finding("no-scale", "warning", what, remedy, file=where),)
    if type(scale) not in (int, float) or not math.isfinite(scale):
        raise unreadable_number(probe.config_path, "lora_parameters.scale", scale)
    alpha, rank = settings.get("alpha"), settings.get("rank")
    if not _positive(alpha) or not _positive(rank) or alpha == rank:
        return float(scale), ()
    factor = float(alpha) / float(rank)
    what = (
        f"The config has an alpha, which MLX-LM ignores since 2025: the scale is {scale:g}. "
        f"Before, it was {scale:g} * alpha / rank = {scale * factor:g}."
    )
    remedy = f"if an older MLX-LM trained it, set lora_parameters.scale to {scale * factor:g}"
    return float(scale), (Finding("mlx-alpha", "warning", what, remedy, file=where),)


def _positive(value: Any) -> TypeGuard[float]:
    return type(value) in (int, float) and math.isfinite(value) and value > 0


def _check_plain(config: Mapping[str, Any], contents: Contents, probe: Probe) -> None:
    magnitudes = [key for key in contents.tensors if key.endswith((".m", ".lora_m"))]
    experts = [
        key
        for key, (_, shape) in contents.tensors.items()
        if _FACTOR.match(key) and len(shape) != 2
    ]
    kind = config.get("fine_tune_type", "lora")
    if kind == "dora" or config.get("use_dora") or magnitudes:
        raise _refused(
            "DoRA of MLX-LM, not plain LoRA: its update divides by a norm of base weight and "
            "update together, which is not linear",
            magnitudes[0] if magnitudes else f'"fine_tune_type": "{kind}"',
            "train it with fine_tune_type lora",
            contents,
        )
    if kind == "full":
        raise _refused(
            "a fully trained model of MLX-LM, not an adapter",
            '"fine_tune_type": "full"',
            "train it with fine_tune_type lora",
            contents,
        )
    if experts:
        raise _refused(
            "LoRA on the experts of MLX-LM's switch layers, whose factors have three dimensions",
            experts[0],
            "train it on modules that are plain linear maps",
            contents,
        )


def _refused(what: str, found: str, remedy: str, contents: Contents) -> UnsupportedAdapterError:
    return UnsupportedAdapterError(
        f"The adapter is {what}.",
        where=contents.path,
        expected="lora_a [in, r] and lora_b [r, out]",
        found=found,
        remedy=remedy,
    )


MLX = PlainFormat(
    name="mlx",
    label="an MLX-LM adapter",
    parts=mlx_parts,
    marks=_marks,
    files=(MLX_FILE,),
    transposed=True,
)
