"""Rules on what inference servers refuse, or silently get wrong.

Silent faults are errors here: the answers would be wrong, and nobody would say so.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from vlora_engine.catalog.scanner import SUBSPACE
from vlora_engine.doctor import rule_helpers as helpers
from vlora_engine.doctor.rule_helpers import MERGE, NO_HEAD, TGI, Row, add_rows
from vlora_engine.doctor.rules import PEFT, TARGETS, Hit, Subject, rule
from vlora_engine.targets.registry import RANK_LIMITS, smallest_choice
from vlora_engine.utils.naming import counted

_VLLM = "https://github.com/vllm-project/vllm/blob/main/vllm"
_PEFT_HELPER = f"{_VLLM}/lora/peft_helper.py"
_SGLANG = "https://github.com/sgl-project/sglang/blob/main/python/sglang/srt/lora"
_LORAX = "https://github.com/predibase/lorax/blob/main/server/lorax_server/adapters/lora.py"
_SERVERS = ("vllm", "sglang", "tgi", "lorax", "llamacpp", "ollama")
_FOLD = "fold the scales into B, with one rank for all"

_vllm_rule = partial(rule, since="vLLM, autumn 2026", targets=("vllm",), stage="target")
_sglang_rule = partial(rule, since="SGLang, autumn 2026", targets=("sglang",), stage="target")
_server_rule = partial(rule, since="peft 0.21", targets=_SERVERS, stage="target")

# ---- vLLM


@_vllm_rule(
    "vllm-default-rank",
    "warning",
    "vLLM takes ranks up to 16 unless it is started with --max-lora-rank.",
    source=f"{_VLLM}/config/lora.py",
)
def _vllm_default_rank(subject: Subject) -> Iterable[Hit]:
    limit, rank = RANK_LIMITS["vllm"], helpers.largest_rank(subject)
    choice = smallest_choice(limit, rank)
    if rank > limit.default and choice is not None:
        remedy = f"start the server with {limit.flag} {choice}: nothing is lost"
        what = f"The rank is {rank}; unless told otherwise vLLM takes {limit.default} at most."
        yield Hit(what, remedy, file=subject.at_weights)


@_vllm_rule(
    "vllm-bias",
    "error",
    "vLLM refuses adapters with biases.",
    remedy="leave the biases out on purpose, or retrain it with bias='none'",
    source=_PEFT_HELPER,
)
def _vllm_bias(subject: Subject) -> Iterable[Hit]:
    bias = subject.config.get("bias")
    if bias not in (None, "none") or subject.config.get("lora_bias"):
        given = f"bias is {bias}" if bias not in (None, "none") else "lora_bias is true"
        fix = helpers.exported(subject, "--drop-rest")
        yield Hit(f"{given}.", fix=fix, file=subject.at_config)


def _linear_only(source: str = "") -> list[Row]:
    """Rows of a server whose LoRA layers are linear maps, and which reads A and B alone."""
    return [
        Row("convolutions", "Convolutions are not served.", MERGE, source),
        Row("embeddings", "Factors of embeddings are not served.", MERGE, source),
    ]


add_rows(
    "vllm",
    ("vllm",),
    "vLLM, autumn 2026",
    _PEFT_HELPER,
    [
        Row(
            "patterns",
            "vLLM drops rank_pattern and alpha_pattern: scales go silently wrong.",
            _FOLD,
        ),
        Row("heads", "vLLM refuses modules_to_save and whole tensors.", NO_HEAD),
        Row("dora", "vLLM refuses DoRA.", MERGE),
        *_linear_only(f"{_VLLM}/lora/lora_model.py"),
        Row(
            "rank",
            "vLLM takes ranks up to 512.",
            "cut it to 512, or serve it with SGLang, which takes any",
            f"{_VLLM}/config/lora.py",
            partial(helpers.too_high, "vllm"),
        ),
        Row(
            "prefix",
            "vLLM finds no module under other keys: it serves the base model.",
            "",
            f"{_VLLM}/lora/utils.py",
        ),
    ],
)

# ---- SGLang


@_sglang_rule(
    "sglang-target-pattern",
    "error",
    "SGLang refuses target_modules that is a pattern.",
    remedy="list the modules' leaf names in target_modules",
    source=f"{_SGLANG}/lora_config.py",
)
def _sglang_pattern(subject: Subject) -> Iterable[Hit]:
    targets = subject.config.get("target_modules")
    if isinstance(targets, str) and targets != "all-linear":
        fix = helpers.exported(subject)
        yield Hit(f"target_modules is {targets[:80]!r}.", fix=fix, file=subject.at_config)


@_sglang_rule(
    "sglang-target-paths",
    "error",
    "SGLang knows modules by their leaf names: full paths in target_modules are refused.",
    remedy="list the modules' leaf names in target_modules",
    source=f"{_SGLANG}/utils.py",
)
def _sglang_paths(subject: Subject) -> Iterable[Hit]:
    targets = subject.config.get("target_modules")
    dotted = [str(t) for t in targets if "." in str(t)] if isinstance(targets, list) else []
    if dotted:
        paths = f"{counted(len(dotted), 'full path')}, such as {dotted[0][:80]}"
        what = f"SGLang refuses full paths, and target_modules has {paths}."
        yield Hit(what, fix=helpers.exported(subject), file=subject.at_config)


add_rows(
    "sglang",
    ("sglang",),
    "SGLang, autumn 2026",
    f"{_SGLANG}/lora.py",
    [
        Row("heads", "SGLang serves A and B alone: whole tensors are not read.", NO_HEAD),
        *_linear_only(f"{_SGLANG}/layers.py"),
    ],
)


# ---- TGI and LoRAX: one code, forked


def _loader_ranks(subject: Subject) -> Iterable[Hit]:
    """The modules of one type are stacked, after padding to 8 or a multiple of 16 (sgmv.py)."""
    kinds: dict[str, set[int]] = {}
    for name, shape in (subject.modules or {}).items():
        padded = 8 if shape.rank <= 8 else -(-shape.rank // 16) * 16
        kinds.setdefault(helpers.without_number(name), set()).add(padded)
    mixed = [(kind, ranks) for kind, ranks in kinds.items() if len(ranks) > 1]
    if mixed:
        kind, ranks = mixed[0]
        what = f"Modules {kind} have ranks of {min(ranks)} to {max(ranks)} (padded)."
        yield Hit(what, fix=helpers.exported(subject), file=subject.at_weights)


for _name, _source, _since in (
    ("tgi", TGI, "TGI, autumn 2026"),
    ("lorax", _LORAX, "LoRAX, autumn 2026"),
):
    add_rows(
        _name,
        (_name,),
        _since,
        _source,
        [
            Row(
                "patterns",
                "rank_pattern and alpha_pattern are ignored: scales go silently wrong.",
                _FOLD,
            ),
            Row(
                "mixed-ranks",
                "The modules of one type are stacked, so their ranks must be one after padding.",
                "give every module one rank",
                find=_loader_ranks,
            ),
            Row(
                "missing-layer",
                "A module type that is missing in one layer is dropped in every layer.",
                "add the missing module with a B of zeros, or serve it elsewhere",
            ),
            Row("keys", "Keys must be exactly base_model.model.<module>.lora_A.weight."),
            Row("dora", "DoRA is ignored: only B @ A is applied.", MERGE),
            Row("heads", "Heads, biases and saved modules are ignored.", NO_HEAD),
            *_linear_only(),
        ],
    )


# ---- any server


@_server_rule(
    "not-generating",
    "warning",
    "Servers generate text: an adapter for another task has no use there.",
    remedy="serve it with PEFT",
    source=f"{PEFT}/blob/main/src/peft/utils/peft_types.py",
)
def _not_generating(subject: Subject) -> Iterable[Hit]:
    task = subject.config.get("task_type")
    if task not in (None, "CAUSAL_LM", "SEQ_2_SEQ_LM"):
        yield Hit(f"task_type is {str(task)[:40]}.", file=subject.at_config)


@_server_rule(
    "unread-field",
    "error",
    "A field of the config changes when or how B @ A acts, and the server does not read it.",
    remedy="serve it with PEFT",
    source=f"{PEFT}/blob/main/src/peft/tuners/lora/config.py",
    targets=(*_SERVERS, "portable"),
)
def _unread_field(subject: Subject) -> Iterable[Hit]:
    yield from helpers.misfit("unread-field", subject, remedy="serve it with PEFT")


@_server_rule(
    "not-peft-files",
    "error",
    "Servers and PEFT read adapters in PEFT's files alone.",
    remedy="convert it first",
    source=f"{PEFT}/blob/main/docs/source/developer_guides/checkpoint.md",
    targets=TARGETS,
)
def _not_peft_files(subject: Subject) -> Iterable[Hit]:
    # A GGUF file is what llama.cpp reads; of a subspace tasks are exported; of others who knows.
    if subject.format not in ("peft", "gguf", "unknown", SUBSPACE):
        fix = subject.command("convert", "--to", "peft", suffix="peft")
        yield Hit(f"Its format is {subject.format}.", fix=fix, file=str(subject.path))
