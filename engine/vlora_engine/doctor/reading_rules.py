"""Rules that reading the headers has judged already: its refusals and its remarks.

The readers in `vlora_engine.formats` refuse with a code, or remark under one; the rows here give
these codes their place in the table, so that nothing is said twice and nothing is missing.
"""

from __future__ import annotations

from collections.abc import Iterable

from vlora_engine.doctor.rules import ENGINE, PEFT, Find, Hit, Rule, Subject, add_rule
from vlora_engine.findings import Severity, finding_of
from vlora_engine.formats.rest_tensors import is_base_layer, is_foreign

_FORMATS = f"{ENGINE}.formats"
_OWN = "vlora-tui 0.1"
_PEFT = "peft 0.21"
_SAFETENSORS = "https://github.com/huggingface/safetensors#format"
_LORA_CONFIG = f"{PEFT}/blob/main/src/peft/tuners/lora/config.py"
_SAVE_LOAD = f"{PEFT}/blob/main/src/peft/utils/save_and_load.py"

REFUSALS: dict[str, tuple[str, str, str]] = {
    # code: what, source, since
    "lfs-pointer": (
        "The file is a Git LFS pointer.",
        "https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md",
        "git-lfs 3",
    ),
    "corrupt-file": ("The bytes are not what the format says.", _SAFETENSORS, "safetensors 0.6"),
    "missing-file": ("A file is not there.", _FORMATS, _OWN),
    "unsafe-pickle": (
        "A pickle holds more than tensors: it could run any program.",
        "https://docs.pytorch.org/docs/stable/generated/torch.load.html",
        "torch 2.6",
    ),
    "not-tensors": ("The file is no flat table of named tensors.", _FORMATS, _OWN),
    "no-config": ("There is no adapter_config.json: the scale is not known.", _SAVE_LOAD, _PEFT),
    "bad-config": ("A field of the config cannot be what it is.", _LORA_CONFIG, _PEFT),
    "no-tensors": ("There is a config and no tensors.", _SAVE_LOAD, _PEFT),
    "no-factors": ("No tensor is a factor of LoRA.", _SAVE_LOAD, _PEFT),
    "half-pair": ("A module has one factor and not the other.", _SAVE_LOAD, _PEFT),
    "factors-disagree": ("A and B of a module do not multiply.", _SAVE_LOAD, _PEFT),
    "empty-factor": (
        "A factor has no elements: shards were not gathered when it was saved.",
        "https://github.com/huggingface/peft/issues/1181",
        _PEFT,
    ),
    "factor-dtype": ("A factor is not made of floating-point numbers.", _FORMATS, _OWN),
    "several-in-one-file": ("One file holds several adapters.", _SAVE_LOAD, _PEFT),
    "grouped-convolution": (
        "A grouped convolution: B @ A is not its update.",
        f"{PEFT}/blob/main/src/peft/tuners/lora/layer.py",
        _PEFT,
    ),
    "rank-disagrees": ("The rank of a tensor is not what the config says.", _SAVE_LOAD, _PEFT),
    "other-peft-type": ("It is no LoRA but another type of PEFT's.", _LORA_CONFIG, _PEFT),
    "dora": ("DoRA: its update is not linear in the factors.", "arXiv:2402.09353", _PEFT),
    "moves-base": (
        "PiSSA, OLoRA and their like move the base weights when they are loaded.",
        _LORA_CONFIG,
        _PEFT,
    ),
    "no-product": ("A kind of LoRA whose update is not B @ A.", _LORA_CONFIG, _PEFT),
    "foreign-format": ("A format of another tool, which is not read.", _FORMATS, _OWN),
    "unknown-format": ("Tensors under names of no known format.", _FORMATS, _OWN),
    "unreadable": ("It cannot be read, for a reason of its own.", _FORMATS, _OWN),
}

REMARKS: dict[str, tuple[Severity, str, str, str]] = {
    # code: severity, what, source, since
    "no-peft-type": ("warning", "The config names no peft_type.", _LORA_CONFIG, _PEFT),
    "no-r": ("warning", "The config names no r.", _LORA_CONFIG, _PEFT),
    "no-lora-alpha": ("warning", "The config names no lora_alpha.", _LORA_CONFIG, _PEFT),
    "zero-alpha": ("warning", "An alpha of 0: no effect.", _LORA_CONFIG, _PEFT),
    "no-base-model": ("note", "The config names no base model.", _LORA_CONFIG, _PEFT),
    "local-base-model": ("note", "The base model is named by a local path.", _FORMATS, _OWN),
    "pickle-weights": ("warning", "The tensors lie in a pickle.", _FORMATS, _OWN),
    "pickle-beside": ("note", "Pickles lie beside the adapter.", _FORMATS, _OWN),
    "no-prefix": ("error", "Keys lack base_model.model.: PEFT applies none.", _SAVE_LOAD, _PEFT),
    "wrapped-names": (
        "error",
        "Parts of a training wrapper are in the keys: PEFT applies none.",
        _SAVE_LOAD,
        _PEFT,
    ),
    "named-keys": ("note", "Keys have the adapter's name inside.", _SAVE_LOAD, _PEFT),
    "mixed-ranks": ("note", "Modules have different ranks.", _FORMATS, _OWN),
    "overlapping-patterns": (
        "warning",
        "Several entries of a pattern match one module.",
        _SAVE_LOAD,
        _PEFT,
    ),
    "stale-targets": ("note", "target_modules lists what was not trained.", _LORA_CONFIG, _PEFT),
    "unlisted-modules": ("warning", "target_modules lacks some modules.", _SAVE_LOAD, _PEFT),
    "rest-tensors": ("note", "Tensors that belong to no module.", _FORMATS, _OWN),
    "whole-matrices": ("note", "Whole matrices (embeddings, heads) are inside.", _FORMATS, _OWN),
    "foreign-tensors": (
        "warning",
        "Tensors that are added to the base, and that ComfyUI alone reads.",
        "https://github.com/comfyanonymous/ComfyUI/blob/master/comfy/weight_adapter/lora.py",
        "autumn 2026",
    ),
    "base-copies": ("note", "Tensors of the base model are inside.", _FORMATS, _OWN),
}  # fmt: skip


def _refused_as(code: str) -> Find:
    def find(subject: Subject) -> Iterable[Hit]:
        if subject.error is None:
            return
        finding = finding_of(subject.error, str(subject.path))
        known = finding.code if finding.code in REFUSALS else "unreadable"
        if known == code:
            yield Hit.of(finding)

    return find


def _remarked_as(code: str) -> Find:
    def find(subject: Subject) -> Iterable[Hit]:
        for finding in subject.remarked(code):
            if not _is_idle(code, subject):
                yield Hit.of(finding, fix=_fix(code, subject))

    return find


def _is_idle(code: str, subject: Subject) -> bool:
    """Whether the numbers have shown what the names announce not to be there, or told of it."""
    if subject.facts is None:
        return False
    if code == "foreign-tensors":
        return all(key in subject.facts.zero for key in subject.rest if is_foreign(key))
    # With the base at hand its copies are told from what only looks like one.
    return code == "base-copies" and bool(subject.facts.of_base)


def _fix(code: str, subject: Subject) -> str:
    """What writes the adapter again under PEFT's own keys, or without copies of the base."""
    if code in ("no-prefix", "wrapped-names", "unlisted-modules", "named-keys"):
        base = ("--base", subject.base.name) if subject.base is not None else ()
        return subject.command("doctor", *base, "--fix", suffix="fixed")
    if code == "base-copies" and all(is_base_layer(key) for key in subject.rest):
        return subject.command("export", "--target", "peft", "--drop-rest", suffix="peft")
    if code in ("pickle-weights", "no-peft-type"):
        return subject.command("convert", "--to", "peft", suffix="peft")
    return ""


for _code, (_what, _source, _since) in REFUSALS.items():
    add_rule(
        Rule(_code, "error", _what, source=_source, since=_since, stage="reading"),
        _refused_as(_code),
    )
for _code, (_severity, _what, _source, _since) in REMARKS.items():
    add_rule(
        Rule(_code, _severity, _what, source=_source, since=_since, stage="reading"),
        _remarked_as(_code),
    )
