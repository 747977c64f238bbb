"""Rules on what inference servers refuse, or silently get wrong.

Silent faults are errors here: the answers would be wrong, and nobody would say so.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from vlora_engine.catalog.scanner import SUBSPACE
from vlora_engine.doctor import rule_helpers as helpers
from vlora_engine.doctor.rule_helpers import MERGE, NO_HEAD, TGI, add_rows
from vlora_engine.doctor.rules import PEFT, TARGETS, Hit, Subject, count, rule
from vlora_engine.targets.registry import RANK_LIMITS, smallest_choice

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


@_vllm_rule("vllm-rank", "error", "vLLM takes ranks up to 512.", source=f"{_VLLM}/config/lora.py")
def _vllm_rank(subject: Subject) -> Iterable[Hit]:
    limit, rank = RANK_LIMITS["vllm"], helpers.largest_rank(subject)
    if smallest_choice(limit, rank) is None:
        remedy = f"cut it to {max(limit.choices)}"
        yield Hit(
            f"A rank of {rank}.", remedy, helpers.shaped(subject, "vllm"), file=subject.at_weights
        )


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
        remedy = f"start the server with {limit.flag} {choice}, or cut the rank"
        fix = subject.command("resize", "--for", "vllm", suffix=f"r{limit.default}")
        yield Hit(f"A rank of {rank}.", remedy, fix, file=subject.at_weights)


@_vllm_rule(
    "vllm-bias",
    "error",
    "vLLM refuses adapters with biases.",
    remedy="retrain it with bias='none'",
    source=_PEFT_HELPER,
)
def _vllm_bias(subject: Subject) -> Iterable[Hit]:
    bias = subject.config.get("bias")
    if bias not in (None, "none") or subject.config.get("lora_bias"):
        told = f"bias is {bias}" if bias not in (None, "none") else "lora_bias is true"
        yield Hit(f"{told}.", file=subject.at_config)


add_rows(
    "vllm",
    ("vllm",),
    "vLLM, autumn 2026",
    (
        "patterns",
        "vLLM drops rank_pattern and alpha_pattern: scales go silently wrong.",
        _FOLD,
        _PEFT_HELPER,
        partial(helpers.wrong_scales, "vllm"),
    ),
    (
        "heads",
        "vLLM refuses modules_to_save and whole tensors.",
        NO_HEAD,
        _PEFT_HELPER,
        helpers.heads,
    ),
    ("dora", "vLLM refuses DoRA.", MERGE, _PEFT_HELPER, helpers.dora),
    (
        "convolutions",
        "vLLM refuses convolutions.",
        MERGE,
        f"{_VLLM}/lora/lora_model.py",
        helpers.convolutions,
    ),
    (
        "prefix",
        "vLLM finds no module under other keys: it serves the base model.",
        "",
        f"{_VLLM}/lora/utils.py",
        helpers.prefix,
    ),
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
        fix = helpers.shaped(subject, "sglang")
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
        what = f"{count(len(dotted), 'full path')} in target_modules, such as {dotted[0][:80]}."
        yield Hit(what, fix=helpers.shaped(subject, "sglang"), file=subject.at_config)


add_rows(
    "sglang",
    ("sglang",),
    "SGLang, autumn 2026",
    (
        "heads",
        "SGLang serves A and B alone: whole tensors are not read.",
        NO_HEAD,
        f"{_SGLANG}/lora.py",
        helpers.heads,
    ),
    (
        "convolutions",
        "SGLang's LoRA layers are linear maps.",
        MERGE,
        f"{_SGLANG}/layers.py",
        helpers.convolutions,
    ),
)


# ---- TGI and LoRAX: one code, forked


def _loader_ranks(target: str, subject: Subject) -> Iterable[Hit]:
    """The layers of one type are stacked, after padding to 8 or a multiple of 16 (sgmv.py)."""
    kinds: dict[str, set[int]] = {}
    for name, shape in (subject.modules or {}).items():
        padded = 8 if shape.rank <= 8 else -(-shape.rank // 16) * 16
        kinds.setdefault(helpers.without_number(name), set()).add(padded)
    mixed = [(kind, ranks) for kind, ranks in kinds.items() if len(ranks) > 1]
    if mixed:
        kind, ranks = mixed[0]
        what = f"Ranks {min(ranks)} to {max(ranks)} (padded) for {kind}."
        yield Hit(what, fix=helpers.shaped(subject, target), file=subject.at_weights)


for _name, _source, _since in (
    ("tgi", TGI, "TGI, autumn 2026"),
    ("lorax", _LORAX, "LoRAX, autumn 2026"),
):
    add_rows(
        _name,
        (_name,),
        _since,
        (
            "patterns",
            "rank_pattern and alpha_pattern are ignored: scales go silently wrong.",
            _FOLD,
            _source,
            partial(helpers.wrong_scales, _name),
        ),
        (
            "mixed-ranks",
            "The layers of one type are stacked, so their ranks must be one after padding.",
            "give every module one rank",
            _source,
            partial(_loader_ranks, _name),
        ),
        (
            "missing-layer",
            "A module type that is missing in one layer is dropped in every layer.",
            "add the missing module with a B of zeros, or serve it elsewhere",
            _source,
            helpers.gaps,
        ),
        (
            "keys",
            "Keys must be exactly base_model.model.<module>.lora_A.weight.",
            "",
            _source,
            helpers.keys,
        ),
        ("dora", "DoRA is ignored: only B @ A is applied.", MERGE, _source, helpers.dora),
        ("embeddings", "Embeddings are ignored.", MERGE, _source, helpers.embeddings),
        ("heads", "Heads, biases and saved modules are ignored.", NO_HEAD, _source, helpers.heads),
        ("convolutions", "Convolutions are ignored.", MERGE, _source, helpers.convolutions),
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
    "repeated-layers",
    "error",
    "No server repeats layers as layer_replication asks: a model of fewer layers would be served.",
    remedy="serve it with PEFT",
    source=f"{PEFT}/blob/main/src/peft/tuners/lora/config.py",
    targets=(*_SERVERS, "portable"),
)
def _repeated_layers(subject: Subject) -> Iterable[Hit]:
    if subject.config.get("layer_replication"):
        yield Hit("layer_replication is set.", file=subject.at_config)


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
