"""Rules on what programs make of the files: llama.cpp and Ollama, PEFT, the portable form."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from vlora_engine.doctor import rule_helpers as helpers
from vlora_engine.doctor.rule_helpers import MERGE, NO_HEAD, TGI, Row, add_rows
from vlora_engine.doctor.rules import PEFT, Hit, Subject, rule

_LLAMACPP = "https://github.com/ggml-org/llama.cpp/blob/master/convert_lora_to_gguf.py"
_OLLAMA = "https://github.com/ollama/ollama/blob/main/convert/convert.go"
_OLLAMA_TAKES = frozenset({"llama", "mistral", "gemma2"})  # mistral is converted as llama


# ---- llama.cpp and Ollama, which ships its files

_GGUF = ("llamacpp", "ollama")
_gguf_rule = partial(rule, since="llama.cpp, autumn 2026", targets=_GGUF, stage="target")


@_gguf_rule(
    "gguf-rslora",
    "error",
    "llama.cpp's converter ignores use_rslora: the scale goes silently wrong.",
    remedy="fold the scale into B",
    source=_LLAMACPP,
)
def _gguf_rslora(subject: Subject) -> Iterable[Hit]:
    if subject.config.get("use_rslora"):
        wrong = helpers.other_scales(subject, of_tensors=True, rslora=False)
        yield from helpers.scales_hit(subject, wrong)


@_gguf_rule(
    "gguf-alpha-pattern",
    "error",
    "llama.cpp's converter ignores alpha_pattern: scales go silently wrong.",
    remedy="fold the scales into B",
    source=_LLAMACPP,
)
def _gguf_alpha_pattern(subject: Subject) -> Iterable[Hit]:
    if subject.config.get("alpha_pattern") and not subject.config.get("use_rslora"):
        wrong = helpers.other_scales(subject, of_tensors=True)
        yield from helpers.scales_hit(subject, wrong)


@_gguf_rule(
    "gguf-zero-alpha",
    "error",
    "llama.cpp takes an alpha of 0 for a scale of 1.",
    remedy="write it with a B of zeros, or leave it out: in PEFT it does nothing",
    source="https://github.com/ggml-org/llama.cpp/blob/master/src/llama-adapter.h",
)
def _gguf_zero_alpha(subject: Subject) -> Iterable[Hit]:
    if subject.config.get("lora_alpha") == 0:
        yield Hit("lora_alpha is 0.", fix=helpers.exported(subject), file=subject.at_config)


add_rows(
    "gguf",
    _GGUF,
    "llama.cpp, autumn 2026",
    _LLAMACPP,
    [
        Row("heads", "llama.cpp has no place for modules_to_save and whole tensors.", NO_HEAD),
        Row("dora", "llama.cpp does not support DoRA.", MERGE),
        Row(
            "named-keys",
            "llama.cpp's converter refuses keys with the adapter's name inside.",
            find=partial(helpers.as_remarked, "named-keys"),
        ),
        Row("convolutions", "llama.cpp has no place for convolutions.", MERGE),
        Row("embeddings", "llama.cpp has no place for factors of embeddings.", MERGE),
        Row("modules", "llama.cpp's model of this base has no tensor for a module of the adapter."),
        Row("wrong-base", "The adapter's modules are not those of the base's config."),
        Row("architecture", "GGUF adapters of the base's architecture are not written here."),
    ],
)


@rule(
    "ollama-safetensors",
    "warning",
    "Ollama reads safetensors adapters of llama and gemma2 models alone.",
    remedy="ship GGUF: FROM base, ADAPTER adapter.gguf",
    source=_OLLAMA,
    since="Ollama, autumn 2026",
    targets=("ollama",),
    stage="target",
)
def _ollama_safetensors(subject: Subject) -> Iterable[Hit]:
    base = subject.config.get("base_model_name_or_path")
    if subject.format == "gguf":
        return
    if subject.base is not None:
        taken, named = subject.base.model_type in _OLLAMA_TAKES, subject.base.model_type
    elif isinstance(base, str) and base:
        leaf = base.lower().replace("_", "-")
        taken = any(mark in leaf for mark in ("llama", "mistral", "gemma-2", "gemma2"))
        named = base
    else:
        return
    if not taken:
        what = f"Ollama does not read safetensors adapters of {named[:80]}."
        fix = "" if subject.base is None else helpers.exported(subject)
        yield Hit(what, fix=fix, file=subject.at_config)


# ---- PEFT, and the portable form


_SAVE_LOAD = f"{PEFT}/blob/main/src/peft/utils/save_and_load.py"
add_rows(
    "peft",
    ("peft",),
    "peft 0.21",
    _SAVE_LOAD,
    [
        Row("prefix", "PEFT finds no module under other keys: nothing is applied."),
        Row(
            "ignores",
            "PEFT ignores modules that target_modules leaves out.",
            find=partial(helpers.as_remarked, "unlisted-modules"),
        ),
        Row(
            "no-type",
            "PEFT cannot load a config without peft_type.",
            find=partial(helpers.as_remarked, "no-peft-type"),
        ),
        Row(
            "foreign",
            "PEFT does not read what ComfyUI adds to the base beside the pairs.",
            "",
            "https://github.com/comfyanonymous/ComfyUI/blob/master/comfy/weight_adapter/lora.py",
        ),
    ],
)


_VLLM_RANKS = "https://github.com/vllm-project/vllm/blob/main/vllm/config/lora.py"
add_rows(
    "portable",
    ("portable",),
    "autumn 2026",
    TGI,
    [
        Row(
            "heads",
            "Whole tensors are refused by some servers and passed over in silence by others.",
            "leave them out on purpose: --drop-rest, when exporting",
        ),
        Row("convolutions", "Servers do not take convolutions.", MERGE),
        Row("embeddings", "Servers do not agree on embeddings.", MERGE),
        Row(
            "missing-layer",
            "Some servers drop a module type everywhere that is missing in one layer.",
            "add the missing module with a B of zeros",
        ),
        Row(
            "rank",
            "The largest rank that every server takes is 512.",
            "cut it to 512",
            _VLLM_RANKS,
            partial(helpers.too_high, "portable"),
        ),
    ],
)
