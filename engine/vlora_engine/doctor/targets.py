"""Rules on what a server, or another program, refuses or silently gets wrong.

Silent faults are errors here: the answers would be wrong, and nobody would say so.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import partial

from vlora_engine.catalog import SUBSPACE
from vlora_engine.doctor.base import layer_number
from vlora_engine.doctor.limits import RANK_LIMITS, smallest_choice
from vlora_engine.doctor.rules import PEFT, TARGETS, Find, Hit, Rule, Subject, add_rule, count, rule
from vlora_engine.formats.config import PEFT_DEFAULT_ALPHA, PEFT_DEFAULT_RANK, shown

_VLLM = "https://github.com/vllm-project/vllm/blob/main/vllm"
_SGLANG = "https://github.com/sgl-project/sglang/blob/main/python/sglang/srt/lora"
_TGI = (
    "https://github.com/huggingface/text-generation-inference/blob/main/"
    "server/text_generation_server/adapters/lora.py"
)
_LORAX = "https://github.com/predibase/lorax/blob/main/server/lorax_server/adapters/lora.py"
_LLAMACPP = "https://github.com/ggml-org/llama.cpp/blob/master/convert_lora_to_gguf.py"
_OLLAMA = "https://github.com/ollama/ollama/blob/main/convert/convert.go"
_SERVERS = ("vllm", "sglang", "tgi", "lorax", "llamacpp", "ollama")
_OLLAMA_TAKES = frozenset({"llama", "mistral", "gemma2"})  # mistral is converted as llama
_TOLERANCE = 1e-6  # of scales: files round alphas


def _rows(
    prefix: str, targets: tuple[str, ...], since: str, *rows: tuple[str, str, str, str, Find]
) -> None:
    """Rows of one program: code, what, remedy, source, function; all of them are errors."""
    for code, what, remedy, source, find in rows:
        row = Rule(f"{prefix}-{code}", "error", what, remedy, source, since, targets, "target")
        add_rule(row, find)


# ---- what several of them have in common


def _other_scales(subject: Subject, *, of_tensors: bool, rslora: bool = True) -> list[str]:
    """Modules whose scale is not what a program computes that reads r and lora_alpha alone.

    Args:
        of_tensors: Whether it divides by the rank of the tensor, not by the config's.
        rslora: Whether it reads use_rslora.
    """
    alpha = _number(subject.config.get("lora_alpha"), PEFT_DEFAULT_ALPHA)
    r = _number(subject.config.get("r"), PEFT_DEFAULT_RANK)
    root = rslora and bool(subject.config.get("use_rslora"))
    wrong = []
    for module, shape in (subject.modules or {}).items():
        rank = shape.rank if of_tensors else r
        taken = alpha / (math.sqrt(rank) if root else rank)
        if not math.isclose(taken, subject.scales[module], rel_tol=_TOLERANCE, abs_tol=1e-12):
            wrong.append(module)
    return wrong


def _number(value: object, default: float) -> float:
    return float(value) if isinstance(value, int | float) and value is not None else default


def _scales_hit(subject: Subject, wrong: list[str], target: str) -> Iterable[Hit]:
    if wrong:
        what = (
            f"{count(len(wrong), 'module')} would get another scale than in PEFT, such as "
            f"{wrong[0]} (here {subject.scales[wrong[0]]:.3g})."
        )
        yield Hit(subject.at_config, what, fix=_shaped(subject, target))


def _shaped(subject: Subject, target: str) -> str:
    """What folds scales into B and gives every module one rank, cutting as little as can be."""
    limit = RANK_LIMITS[target]
    choice = smallest_choice(limit, _largest_rank(subject)) or max(limit.choices, default=0)
    more = ("--rank", str(choice)) if choice > limit.default else ()
    return subject.command("resize", "--for", target, *more, suffix=target)


def _not_factors(subject: Subject) -> list[str]:
    """Rest tensors but copies of the base's, which servers skip."""
    return [key for key in subject.rest if ".base_layer." not in key]


def _heads(subject: Subject) -> Iterable[Hit]:
    saved = subject.config.get("modules_to_save")
    rest = _not_factors(subject)
    if saved or rest:
        names = saved if isinstance(saved, list) and saved else rest[:1] or [shown(saved)]
        named = ", ".join(map(str, names))
        yield Hit(subject.at_weights, f"It brings whole tensors along: {named[:120]}.")


def _convolutions(subject: Subject) -> Iterable[Hit]:
    found = [name for name, s in (subject.modules or {}).items() if s.kind == "conv2d"]
    if found:
        yield Hit(subject.at_weights, f"{count(len(found), 'convolution')}, such as {found[0]}.")


def _embeddings(subject: Subject) -> Iterable[Hit]:
    found = [name for name, s in (subject.modules or {}).items() if s.kind == "embedding"]
    if found:
        yield Hit(subject.at_weights, f"{count(len(found), 'embedding')}, such as {found[0]}.")


def _dora(subject: Subject) -> Iterable[Hit]:
    if subject.config.get("use_dora"):
        yield Hit(subject.at_config, "use_dora is true.")


def _keys(subject: Subject) -> Iterable[Hit]:
    for code in ("no-prefix", "named-keys"):
        for finding in subject.remarked(code):
            fix = subject.command("convert", "--to", "peft", suffix="peft")
            yield Hit(finding.where, finding.what, fix=fix)


def _as_remarked(code: str, subject: Subject) -> Iterable[Hit]:
    for finding in subject.remarked(code):
        fix = subject.command("convert", "--to", "peft", suffix="peft")
        yield Hit(finding.where, finding.what, finding.remedy, fix)


def _prefix(subject: Subject) -> Iterable[Hit]:
    for finding in subject.remarked("no-prefix"):
        fix = subject.command("convert", "--to", "peft", suffix="peft")
        yield Hit(finding.where, "Keys do not begin with base_model.model.", fix=fix)


_NO_HEAD = "serve it where heads are read (PEFT), or leave them out on purpose when exporting"
_MERGE = "merge it into its base model and serve that, or retrain it as plain LoRA"


# ---- vLLM


@rule(
    "vllm-rank",
    "error",
    "vLLM takes ranks up to 512.",
    source=f"{_VLLM}/config/lora.py",
    since="vLLM, autumn 2026",
    targets=("vllm",),
    stage="target",
)
def _vllm_rank(subject: Subject) -> Iterable[Hit]:
    limit, rank = RANK_LIMITS["vllm"], _largest_rank(subject)
    if smallest_choice(limit, rank) is None:
        remedy = f"cut it to {max(limit.choices)}"
        yield Hit(subject.at_weights, f"A rank of {rank}.", remedy, _shaped(subject, "vllm"))


@rule(
    "vllm-default-rank",
    "warning",
    "vLLM takes ranks up to 16 unless it is started with --max-lora-rank.",
    source=f"{_VLLM}/config/lora.py",
    since="vLLM, autumn 2026",
    targets=("vllm",),
    stage="target",
)
def _vllm_default_rank(subject: Subject) -> Iterable[Hit]:
    limit, rank = RANK_LIMITS["vllm"], _largest_rank(subject)
    choice = smallest_choice(limit, rank)
    if rank > limit.default and choice is not None:
        remedy = f"start the server with {limit.flag} {choice}, or cut the rank"
        fix = subject.command("resize", "--for", "vllm", suffix=f"r{limit.default}")
        yield Hit(subject.at_weights, f"A rank of {rank}.", remedy, fix)


def _largest_rank(subject: Subject) -> int:
    return max((shape.rank for shape in (subject.modules or {}).values()), default=0)


@rule(
    "vllm-bias",
    "error",
    "vLLM refuses adapters with biases.",
    remedy="retrain it with bias='none'",
    source=f"{_VLLM}/lora/peft_helper.py",
    since="vLLM, autumn 2026",
    targets=("vllm",),
    stage="target",
)
def _vllm_bias(subject: Subject) -> Iterable[Hit]:
    bias = subject.config.get("bias")
    if bias not in (None, "none") or subject.config.get("lora_bias"):
        told = f"bias is {bias}" if bias not in (None, "none") else "lora_bias is true"
        yield Hit(subject.at_config, f"{told}.")


@rule(
    "vllm-patterns",
    "error",
    "vLLM drops rank_pattern and alpha_pattern: scales go silently wrong.",
    remedy="fold the scales into B, with one rank for all",
    source=f"{_VLLM}/lora/peft_helper.py",
    since="vLLM, autumn 2026",
    targets=("vllm",),
    stage="target",
)
def _vllm_patterns(subject: Subject) -> Iterable[Hit]:
    yield from _scales_hit(subject, _other_scales(subject, of_tensors=False), "vllm")


_rows(
    "vllm",
    ("vllm",),
    "vLLM, autumn 2026",
    (
        "heads",
        "vLLM refuses modules_to_save and whole tensors.",
        _NO_HEAD,
        f"{_VLLM}/lora/peft_helper.py",
        _heads,
    ),
    ("dora", "vLLM refuses DoRA.", _MERGE, f"{_VLLM}/lora/peft_helper.py", _dora),
    (
        "convolutions",
        "vLLM refuses convolutions.",
        _MERGE,
        f"{_VLLM}/lora/lora_model.py",
        _convolutions,
    ),
    (
        "prefix",
        "vLLM finds no module under other keys: it serves the base model.",
        "",
        f"{_VLLM}/lora/utils.py",
        _prefix,
    ),
)


# ---- SGLang


@rule(
    "sglang-target-pattern",
    "error",
    "SGLang refuses target_modules that is a pattern.",
    remedy="list the modules' leaf names in target_modules",
    source=f"{_SGLANG}/lora_config.py",
    since="SGLang, autumn 2026",
    targets=("sglang",),
    stage="target",
)
def _sglang_pattern(subject: Subject) -> Iterable[Hit]:
    targets = subject.config.get("target_modules")
    if isinstance(targets, str) and targets != "all-linear":
        fix = _shaped(subject, "sglang")
        yield Hit(subject.at_config, f"target_modules is {targets[:80]!r}.", fix=fix)


@rule(
    "sglang-target-paths",
    "error",
    "SGLang knows modules by their leaf names: full paths in target_modules are refused.",
    remedy="list the modules' leaf names in target_modules",
    source=f"{_SGLANG}/utils.py",
    since="SGLang, autumn 2026",
    targets=("sglang",),
    stage="target",
)
def _sglang_paths(subject: Subject) -> Iterable[Hit]:
    targets = subject.config.get("target_modules")
    dotted = [str(t) for t in targets if "." in str(t)] if isinstance(targets, list) else []
    if dotted:
        what = f"{count(len(dotted), 'full path')} in target_modules, such as {dotted[0][:80]}."
        yield Hit(subject.at_config, what, fix=_shaped(subject, "sglang"))


_rows(
    "sglang",
    ("sglang",),
    "SGLang, autumn 2026",
    (
        "heads",
        "SGLang serves A and B alone: whole tensors are not read.",
        _NO_HEAD,
        f"{_SGLANG}/lora.py",
        _heads,
    ),
    (
        "convolutions",
        "SGLang's LoRA layers are linear maps.",
        _MERGE,
        f"{_SGLANG}/layers.py",
        _convolutions,
    ),
)


# ---- TGI and LoRAX: one code, forked


def _loader_patterns(target: str, subject: Subject) -> Iterable[Hit]:
    yield from _scales_hit(subject, _other_scales(subject, of_tensors=False), target)


def _loader_ranks(target: str, subject: Subject) -> Iterable[Hit]:
    """The layers of one type are stacked, after padding to 8 or a multiple of 16 (sgmv.py)."""
    kinds: dict[str, set[int]] = {}
    for name, shape in (subject.modules or {}).items():
        padded = 8 if shape.rank <= 8 else -(-shape.rank // 16) * 16
        kinds.setdefault(_without_number(name), set()).add(padded)
    mixed = [(kind, ranks) for kind, ranks in kinds.items() if len(ranks) > 1]
    if mixed:
        kind, ranks = mixed[0]
        what = f"Ranks {min(ranks)} to {max(ranks)} (padded) for {kind}."
        yield Hit(subject.at_weights, what, fix=_shaped(subject, target))


def _gaps(subject: Subject) -> Iterable[Hit]:
    numbers: dict[str, set[int]] = {}
    for name in subject.modules or {}:
        number = layer_number(name)
        if number is not None:
            numbers.setdefault(_without_number(name), set()).add(number)
    known = subject.base.layers if subject.base is not None else None
    layers = known or max((n for each in numbers.values() for n in each), default=-1) + 1
    for kind, there in numbers.items():
        missing = sorted(set(range(layers)) - there)
        if missing:
            what = f"{kind} is missing in layer {missing[0]} ({len(there)} of {layers} are there)."
            yield Hit(subject.at_weights, what)
            return


def _without_number(module: str) -> str:
    number = layer_number(module)
    return module if number is None else module.replace(f".{number}.", ".*.", 1)


for _name, _source, _since in (
    ("tgi", _TGI, "TGI, autumn 2026"),
    ("lorax", _LORAX, "LoRAX, autumn 2026"),
):
    _rows(
        _name,
        (_name,),
        _since,
        (
            "patterns",
            "rank_pattern and alpha_pattern are ignored: scales go silently wrong.",
            "fold the scales into B, with one rank for all",
            _source,
            partial(_loader_patterns, _name),
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
            _gaps,
        ),
        (
            "keys",
            "Keys must be exactly base_model.model.<module>.lora_A.weight.",
            "",
            _source,
            _keys,
        ),
        ("dora", "DoRA is ignored: only B @ A is applied.", _MERGE, _source, _dora),
        ("embeddings", "Embeddings are ignored.", _MERGE, _source, _embeddings),
        ("heads", "Heads, biases and saved modules are ignored.", _NO_HEAD, _source, _heads),
        ("convolutions", "Convolutions are ignored.", _MERGE, _source, _convolutions),
    )

# ---- llama.cpp and Ollama, which ships its files

_GGUF = ("llamacpp", "ollama")


@rule(
    "gguf-rslora",
    "error",
    "llama.cpp's converter ignores use_rslora: the scale goes silently wrong.",
    remedy="fold the scale into B",
    source=_LLAMACPP,
    since="llama.cpp, autumn 2026",
    targets=_GGUF,
    stage="target",
)
def _gguf_rslora(subject: Subject) -> Iterable[Hit]:
    if subject.config.get("use_rslora"):
        wrong = _other_scales(subject, of_tensors=True, rslora=False)
        yield from _scales_hit(subject, wrong, "llamacpp")


@rule(
    "gguf-alpha-pattern",
    "error",
    "llama.cpp's converter ignores alpha_pattern: scales go silently wrong.",
    remedy="fold the scales into B",
    source=_LLAMACPP,
    since="llama.cpp, autumn 2026",
    targets=_GGUF,
    stage="target",
)
def _gguf_alpha_pattern(subject: Subject) -> Iterable[Hit]:
    if subject.config.get("alpha_pattern") and not subject.config.get("use_rslora"):
        wrong = _other_scales(subject, of_tensors=True)
        yield from _scales_hit(subject, wrong, "llamacpp")


@rule(
    "gguf-zero-alpha",
    "error",
    "llama.cpp takes an alpha of 0 for a scale of 1.",
    remedy="leave the adapter out: in PEFT it does nothing",
    source="https://github.com/ggml-org/llama.cpp/blob/master/src/llama-adapter.h",
    since="llama.cpp, autumn 2026",
    targets=_GGUF,
    stage="target",
)
def _gguf_zero_alpha(subject: Subject) -> Iterable[Hit]:
    if subject.config.get("lora_alpha") == 0:
        yield Hit(subject.at_config, "lora_alpha is 0.")


_rows(
    "gguf",
    _GGUF,
    "llama.cpp, autumn 2026",
    (
        "heads",
        "llama.cpp has no place for modules_to_save and whole tensors.",
        _NO_HEAD,
        _LLAMACPP,
        _heads,
    ),
    ("dora", "llama.cpp knows no DoRA.", _MERGE, _LLAMACPP, _dora),
    (
        "named-keys",
        "llama.cpp's converter refuses keys with the adapter's name inside.",
        "",
        _LLAMACPP,
        partial(_as_remarked, "named-keys"),
    ),
    ("convolutions", "llama.cpp has no place for convolutions.", _MERGE, _LLAMACPP, _convolutions),
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
    if subject.base is not None:
        taken, named = subject.base.model_type in _OLLAMA_TAKES, subject.base.model_type
    elif isinstance(base, str) and base:
        leaf = base.lower().replace("_", "-")
        taken = any(mark in leaf for mark in ("llama", "mistral", "gemma-2", "gemma2"))
        named = base
    else:
        return
    if not taken:
        what = f"The base is {named[:80]}."
        yield Hit(subject.at_config, what)


# ---- any server


@rule(
    "not-generating",
    "warning",
    "Servers generate text: an adapter for another task has no use there.",
    remedy="serve it with PEFT",
    source=f"{PEFT}/blob/main/src/peft/utils/peft_types.py",
    since="peft 0.21",
    targets=_SERVERS,
    stage="target",
)
def _not_generating(subject: Subject) -> Iterable[Hit]:
    task = subject.config.get("task_type")
    if task not in (None, "CAUSAL_LM", "SEQ_2_SEQ_LM"):
        yield Hit(subject.at_config, f"task_type is {str(task)[:40]}.")


@rule(
    "not-peft-files",
    "error",
    "Servers and PEFT read adapters in PEFT's files alone.",
    remedy="convert it first",
    source=f"{PEFT}/blob/main/docs/source/developer_guides/checkpoint.md",
    since="peft 0.21",
    targets=TARGETS,
    stage="target",
)
def _not_peft_files(subject: Subject) -> Iterable[Hit]:
    # A GGUF file is what llama.cpp reads; of a subspace tasks are exported; of others who knows.
    if subject.format not in ("peft", "gguf", "unknown", SUBSPACE):
        fix = subject.command("convert", "--to", "peft", suffix="peft")
        yield Hit(str(subject.path), f"Its format is {subject.format}.", fix=fix)


# ---- PEFT, and the portable form


_SAVE_LOAD = f"{PEFT}/blob/main/src/peft/utils/save_and_load.py"
_rows(
    "peft",
    ("peft",),
    "peft 0.21",
    (
        "prefix",
        "PEFT finds no module under other keys: nothing is applied.",
        "",
        _SAVE_LOAD,
        _prefix,
    ),
    (
        "ignores",
        "PEFT ignores modules that target_modules leaves out.",
        "",
        _SAVE_LOAD,
        partial(_as_remarked, "unlisted-modules"),
    ),
    (
        "no-type",
        "PEFT cannot load a config without peft_type.",
        "",
        _SAVE_LOAD,
        partial(_as_remarked, "no-peft-type"),
    ),
)


_rows(
    "portable",
    ("portable",),
    "autumn 2026",
    (
        "heads",
        "Whole tensors are refused by some servers and passed over in silence by others.",
        "leave them out on purpose: --drop-rest, when exporting",
        _TGI,
        _heads,
    ),
    ("convolutions", "Servers do not take convolutions.", _MERGE, _TGI, _convolutions),
    ("embeddings", "Servers do not agree on embeddings.", _MERGE, _TGI, _embeddings),
    (
        "missing-layer",
        "Some servers drop a module type everywhere that is missing in one layer.",
        "add the missing module with a B of zeros",
        _TGI,
        _gaps,
    ),
)
