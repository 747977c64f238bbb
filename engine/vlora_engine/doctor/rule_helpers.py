"""What the rules of several targets have in common: whole tensors, scales, kinds, gaps, keys."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import partial

from vlora_engine.doctor.base_facts import layer_number
from vlora_engine.doctor.rules import Find, Hit, Rule, Subject, add_rule, count
from vlora_engine.formats.config import PEFT_DEFAULT_ALPHA, PEFT_DEFAULT_RANK, shown
from vlora_engine.targets.registry import RANK_LIMITS, smallest_choice

TGI = (
    "https://github.com/huggingface/text-generation-inference/blob/main/"
    "server/text_generation_server/adapters/lora.py"
)
NO_HEAD = "serve it where heads are read (PEFT), or leave them out on purpose when exporting"
MERGE = "merge it into its base model and serve that, or retrain it as plain LoRA"
_TOLERANCE = 1e-6  # of scales: files round alphas


def add_rows(
    stem: str, targets: tuple[str, ...], since: str, *told: tuple[str, str, str, str, Find]
) -> None:
    """Rows of one program: code, what, remedy, source, function; all of them are errors."""
    for code, what, remedy, source, find in told:
        row = Rule(f"{stem}-{code}", "error", what, remedy, source, since, targets, "target")
        add_rule(row, find)


def other_scales(subject: Subject, *, of_tensors: bool, rslora: bool = True) -> list[str]:
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


def scales_hit(subject: Subject, wrong: list[str], target: str) -> Iterable[Hit]:
    """The hit for modules of another scale, with the command that folds scales into B."""
    if wrong:
        what = (
            f"{count(len(wrong), 'module')} would get another scale than in PEFT, such as "
            f"{wrong[0]} (here {subject.scales[wrong[0]]:.3g})."
        )
        yield Hit(what, fix=shaped(subject, target), file=subject.at_config, module=wrong[0])


def wrong_scales(target: str, subject: Subject) -> Iterable[Hit]:
    """Scales that a server gets wrong which reads r and lora_alpha of the config alone."""
    yield from scales_hit(subject, other_scales(subject, of_tensors=False), target)


def shaped(subject: Subject, target: str) -> str:
    """What folds scales into B and gives every module one rank, cutting as little as can be."""
    limit = RANK_LIMITS[target]
    choice = smallest_choice(limit, largest_rank(subject)) or max(limit.choices, default=0)
    more = ("--rank", str(choice)) if choice > limit.default else ()
    return subject.command("resize", "--for", target, *more, suffix=target)


def not_factors(subject: Subject) -> list[str]:
    """Rest tensors but copies of the base's, which servers skip."""
    return [key for key in subject.rest if ".base_layer." not in key]


def heads(subject: Subject) -> Iterable[Hit]:
    """Whole tensors that come along: heads, biases, what modules_to_save names."""
    saved = subject.config.get("modules_to_save")
    rest = not_factors(subject)
    if saved or rest:
        names = saved if isinstance(saved, list) and saved else rest[:1] or [shown(saved)]
        named = ", ".join(map(str, names))
        yield Hit(f"It brings whole tensors along: {named[:120]}.", file=subject.at_weights)


def _of_kind(kind: str, noun: str, subject: Subject) -> Iterable[Hit]:
    found = [name for name, s in (subject.modules or {}).items() if s.kind == kind]
    if found:
        what = f"{count(len(found), noun)}, such as {found[0]}."
        yield Hit(what, file=subject.at_weights, module=found[0])


convolutions = partial(_of_kind, "conv2d", "convolution")
embeddings = partial(_of_kind, "embedding", "embedding")


def dora(subject: Subject) -> Iterable[Hit]:
    """A config that says DoRA."""
    if subject.config.get("use_dora"):
        yield Hit("use_dora is true.", file=subject.at_config)


def keys(subject: Subject) -> Iterable[Hit]:
    """Keys that are not exactly PEFT's."""
    for code in ("no-prefix", "named-keys"):
        yield from as_remarked(code, subject, remedy="")


def as_remarked(code: str, subject: Subject, **changed: str) -> Iterable[Hit]:
    """What reading has remarked under ``code``, with the command that writes PEFT's files."""
    for finding in subject.remarked(code):
        fix = subject.command("convert", "--to", "peft", suffix="peft")
        yield Hit.of(finding, fix=fix, **changed)


def prefix(subject: Subject) -> Iterable[Hit]:
    """Keys without PEFT's prefix."""
    what = "Keys do not begin with base_model.model."
    yield from as_remarked("no-prefix", subject, what=what, remedy="")


def gaps(subject: Subject) -> Iterable[Hit]:
    """A kind of module that is missing in some layer."""
    numbers: dict[str, set[int]] = {}
    for name in subject.modules or {}:
        number = layer_number(name)
        if number is not None:
            numbers.setdefault(without_number(name), set()).add(number)
    known = subject.base.layers if subject.base is not None else None
    layers = known or max((n for each in numbers.values() for n in each), default=-1) + 1
    for kind, there in numbers.items():
        missing = sorted(set(range(layers)) - there)
        if missing:
            what = f"{kind} is missing in layer {missing[0]} ({len(there)} of {layers} are there)."
            yield Hit(what, file=subject.at_weights)
            return


def without_number(module: str) -> str:
    """A module's name with a star for the number of its layer."""
    number = layer_number(module)
    return module if number is None else module.replace(f".{number}.", ".*.", 1)


def largest_rank(subject: Subject) -> int:
    """The largest rank of a module."""
    return max((shape.rank for shape in (subject.modules or {}).values()), default=0)
