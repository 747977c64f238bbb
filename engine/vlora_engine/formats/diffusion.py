"""Read LoRA files of image generators: kohya and ComfyUI, diffusers, cloneofsimo.

Down is A, up is B. A module's scale is alpha / r, and 1 where the file names no alpha. The names
of kohya's modules are flattened (``lora_unet_mid_block_...``) and stay as they are: nothing in the
file says where the dots were.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from vlora_engine.errors import UnsupportedAdapterError, VLoRAError
from vlora_engine.findings import Finding
from vlora_engine.formats.base import Probe
from vlora_engine.formats.config import Settings, read_settings
from vlora_engine.formats.contents import Contents
from vlora_engine.formats.layout import Described
from vlora_engine.formats.plain import Parts, PlainFormat, paired, scalar

DIFFUSERS_FILES = ("pytorch_lora_weights.safetensors", "pytorch_lora_weights.bin")
_MAX_NOTES = 4_000_000  # characters of JSON in a file's metadata that are parsed

_FACTOR = re.compile(
    r"(?P<module>.+?)(?:[._]lora\.|\.lora_linear_layer\.|\.lora_)"
    r"(?P<side>down|up|A|B)(?:\.[^.]+)?\.weight\Z"
)
_NUMBERED = re.compile(r"(?P<module>(?:unet|text_encoder)\w*:\d+):(?P<side>down|up)\Z")
_SIDES = {"down": "A", "A": "A", "up": "B", "B": "B"}
_PROCESSOR = re.compile(r"\.processor\.to_(q|k|v|out)\Z")
# Marks of tensors that change what B @ A means.
_REFUSED = (
    (re.compile(r"\.lora_mid\.weight\Z"), "a Tucker decomposition of a convolution (LoCon)"),
    (re.compile(r"\.(dora_scale|lora_magnitude_vector)\Z"), "DoRA"),
    (re.compile(r"\.(hada|lokr)_\w+\Z"), "a LyCORIS adapter (LoHa or LoKr)"),
    (re.compile(r"\.oft_(blocks|diag)\Z"), "OFT"),
)


_PIPELINE = re.compile(
    r"\.processor\.|^unet\.|^text_encoder(_2|_3)?\.|^transformer\.|^diffusion_model\."
)
_LORA_OF_IT = re.compile(
    r"(lora_[AB]\.weight|[._]lora\.(down|up)\.weight|lora_(down|up)\.weight"
    r"|lora_linear_layer\.(down|up)\.weight)$"
)


def _kohya_marks(keys: Any, metadata: Mapping[str, str]) -> bool:
    return any(re.search(r"^lora_\w+\.lora_(down|up)\.weight$", key) for key in keys)


def _diffusers_marks(keys: Any, metadata: Mapping[str, str]) -> bool:
    # One after the other: in one pattern, a long name would be searched from each of its parts.
    return any((m := _PIPELINE.search(key)) and _LORA_OF_IT.search(key, m.end()) for key in keys)


def _numbered_marks(keys: Any, metadata: Mapping[str, str]) -> bool:
    return any(_NUMBERED.match(key) for key in keys)


def kohya_parts(probe: Probe, contents: Contents) -> Parts:
    """The pairs of kohya's files, as `PlainFormat` asks for them.

    ``ss_*`` metadata stay in the config's ``source_format``.
    """
    factors, alphas, rest = _sorted_out(contents, dotted=False)
    pairs = paired(factors, contents.tensors, contents.path)
    scales = {m: _alpha_scale(contents, alphas.get(m), p.shape.rank) for m, p in pairs.items()}
    base = contents.metadata.get("ss_sd_model_name") or contents.metadata.get(
        "ss_base_model_version"
    )
    return Parts(
        pairs=pairs,
        scales=scales,
        rest=rest,
        base_model=base if base and base != "None" else None,
        origin={"metadata": dict(contents.metadata)} if contents.metadata else {},
        findings=_alpha_findings(contents, factors, alphas),
    )


def diffusers_parts(probe: Probe, contents: Contents) -> Parts:
    """The pairs of diffusers' files, as `PlainFormat` asks for them.

    Alphas may be tensors or JSON in the file's metadata.
    """
    factors, alphas, rest = _sorted_out(contents, dotted=True)
    pairs = paired(factors, contents.tensors, contents.path)
    ranks = {module: pair.shape.rank for module, pair in pairs.items()}
    noted = _noted_settings(contents)
    scales: dict[str, float] = {}
    for module, rank in ranks.items():
        component, _, inner = module.partition(".")
        if component in noted:
            scales[module] = noted[component].scale_of(inner, rank)
    for module in sorted(ranks.keys() - scales.keys()):
        scales[module] = _alpha_scale(contents, alphas.get(module), ranks[module])
    findings = () if noted and not alphas else _alpha_findings(contents, factors, alphas)
    return Parts(
        pairs=pairs,
        scales=scales,
        rest=rest,
        origin={"metadata": dict(contents.metadata)} if contents.metadata else {},
        findings=(*findings, *_renamed_finding(contents, factors)),
    )


def numbered_parts(probe: Probe, contents: Contents) -> Parts:
    """The pairs of cloneofsimo/lora, which numbers modules in the order of the model."""
    factors: dict[str, dict[str, str]] = {}
    rest: dict[str, Described] = {}
    for key, described in contents.tensors.items():
        match = _NUMBERED.match(key)
        if match is None:
            rest[key] = described
        else:
            factors.setdefault(match["module"], {})[_SIDES[match["side"]]] = key
    pairs = paired(factors, contents.tensors, contents.path)
    what = (
        "Modules are numbered in the order of the model, not named, and applied with a scale of 1: "
        "fits adapters of the same tool alone; PEFT has no names to apply it by."
    )
    return Parts(
        pairs=pairs,
        scales=dict.fromkeys(pairs, 1.0),
        rest=rest,
        origin={"metadata": dict(contents.metadata)} if contents.metadata else {},
        findings=(Finding("numbered-modules", "note", what, file=str(contents.path)),),
    )


def _sorted_out(
    contents: Contents, *, dotted: bool
) -> tuple[dict[str, dict[str, str]], dict[str, str], dict[str, Described]]:
    """Keys of the factors by module and side, of the alphas by module, and the rest."""
    factors: dict[str, dict[str, str]] = {}
    rest: dict[str, Described] = {}
    for key, described in contents.tensors.items():
        for mark, kind in _REFUSED:
            if mark.search(key):
                raise _refused(kind, key, contents)
        match = _FACTOR.match(key)
        if match is None:
            rest[key] = described
            continue
        module = _current_name(match["module"]) if dotted else match["module"]
        sides = factors.setdefault(module, {})
        if _SIDES[match["side"]] in sides:
            raise _refused("two adapters in one file", key, contents)
        sides[_SIDES[match["side"]]] = key
    alphas = {}
    for key in list(rest):
        if not key.endswith(".alpha"):
            continue
        module = _alpha_module(key, dotted)
        if module in factors:
            alphas[module] = key
            del rest[key]
    return factors, alphas, rest


def _alpha_module(key: str, dotted: bool) -> str:
    name = re.sub(r"([._]lora|\.lora_linear_layer)\Z", "", key.removesuffix(".alpha"))
    return _current_name(name) if dotted else name


def _current_name(module: str) -> str:
    """The module that an old attention processor of diffusers stood for."""

    def modern(match: re.Match[str]) -> str:
        return ".to_out.0" if match[1] == "out" else f".to_{match[1]}"

    return _PROCESSOR.sub(modern, module)


def _alpha_scale(contents: Contents, key: str | None, rank: int) -> float:
    return 1.0 if key is None else scalar(contents, key) / rank


def _alpha_findings(
    contents: Contents, factors: Mapping[str, Any], alphas: Mapping[str, str]
) -> tuple[Finding, ...]:
    found = []
    if alphas:
        example = min(alphas.values())
        count = len(alphas)
        plural = "s" * (count > 1)
        what = f"{count:,} alpha{plural}, such as {example}, read as scale{plural}."
        found.append(Finding("alpha-tensors", "note", what, file=str(contents.path)))
    without = len(factors) - len(alphas)
    if without:
        what = f"No alpha for {without:,} of {len(factors):,} modules: their scale is 1."
        found.append(Finding("no-alpha", "note", what, file=str(contents.path)))
    return tuple(found)


def _renamed_finding(contents: Contents, factors: Mapping[str, Any]) -> tuple[Finding, ...]:
    old = [key for sides in factors.values() for key in sides.values() if ".processor." in key]
    if not old:
        return ()
    what = (
        f"{len(old):,} tensors are named after attention processors, as diffusers no longer does; "
        "their modules have the names of today (to_q, to_k, to_v, to_out.0)."
    )
    return (Finding("old-names", "note", what, file=str(contents.path)),)


def _noted_settings(contents: Contents) -> dict[str, Settings]:
    """Per component (unet, transformer...) the LoraConfig that diffusers keeps beside the tensors.

    A note that is not JSON, or not such settings, is as good as none.
    """
    text = contents.metadata.get("lora_adapter_metadata", "")
    if not text or len(text) > _MAX_NOTES:
        return {}
    try:
        table = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    by_component: dict[str, dict[str, Any]] = {}
    for name, value in table.items() if isinstance(table, dict) else ():
        component, dot, setting = name.partition(".")
        if dot:
            by_component.setdefault(component, {})[setting] = value
    found = {}
    for component, config in by_component.items():
        try:
            found[component] = read_settings(config, contents.path)
        except VLoRAError:
            continue
    return found


def _refused(kind: str, key: str, contents: Contents) -> UnsupportedAdapterError:
    return UnsupportedAdapterError(
        f"The file holds {kind}, whose update is not scale * B @ A.",
        file=contents.path,
        tensor=key,
        expected="plain LoRA: one down and one up for every module",
        found=key,
        remedy="extract a plain LoRA of it with kohya's sd-scripts, or train one",
    )


KOHYA = PlainFormat("kohya", "a kohya or ComfyUI LoRA file", kohya_parts, _kohya_marks)
DIFFUSERS = PlainFormat(
    "diffusers", "a diffusers LoRA file", diffusers_parts, _diffusers_marks, DIFFUSERS_FILES
)
NUMBERED = PlainFormat(
    "cloneofsimo",
    "a LoRA file of cloneofsimo/lora (Stable Diffusion)",
    numbered_parts,
    _numbered_marks,
)
