"""What the rules of several targets have in common: whole tensors, scales, kinds, gaps, keys."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import partial
from typing import NamedTuple

from vlora_engine.doctor.base_facts import layer_number
from vlora_engine.doctor.rules import Find, Hit, Rule, Subject, add_rule
from vlora_engine.findings import finding_of
from vlora_engine.formats.config import PEFT_DEFAULT_ALPHA, PEFT_DEFAULT_RANK, shown
from vlora_engine.targets.registry import find_target
from vlora_engine.utils.naming import counted

TGI = (
    "https://github.com/huggingface/text-generation-inference/blob/main/"
    "server/text_generation_server/adapters/lora.py"
)
NO_HEAD = "serve it where heads are read (PEFT), or leave them out on purpose when exporting"
MERGE = "merge it into its base model and serve that, or retrain it as plain LoRA"
_TOLERANCE = 1e-6  # of scales: files round alphas


class Row(NamedTuple):
    """One rule of a program.

    Args:
        source: By default that of the program's other rules.
        find: By default what `_FIND` has for the code, else the reason of that code why an export
            refuses an adapter.
    """

    code: str
    what: str
    remedy: str = ""
    source: str = ""
    find: Find | None = None


def add_rows(
    stem: str, targets: tuple[str, ...], since: str, source: str, rows: Iterable[Row]
) -> None:
    """Add the rules of one program; all of them are errors."""
    for row in rows:
        code, origin = f"{stem}-{row.code}", row.source or source
        rule = Rule(code, "error", row.what, row.remedy, origin, since, targets, "target")
        add_rule(rule, row.find or _FIND.get(row.code) or partial(misfit, row.code))


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


def scales_hit(subject: Subject, wrong: list[str]) -> Iterable[Hit]:
    """The hit for modules of another scale, with the command that folds scales into B."""
    if wrong:
        what = (
            f"{counted(len(wrong), 'module')} would get another scale than in PEFT, such as "
            f"{wrong[0]} (here {subject.scales[wrong[0]]:.3g})."
        )
        yield Hit(what, fix=exported(subject), file=subject.at_config, module=wrong[0])


def wrong_scales(subject: Subject) -> Iterable[Hit]:
    """Scales that a server gets wrong which reads r and lora_alpha of the config alone."""
    yield from scales_hit(subject, other_scales(subject, of_tensors=False))


def too_high(target: str, subject: Subject) -> Iterable[Hit]:
    """A rank that the server cannot be started for."""
    most = max(find_target(target).ranks)
    fix = subject.command("resize", "--target", target, suffix=f"r{most}")
    remedy = f"lower it to {most}: that is refused if dW would change by more than 1 %"
    yield from misfit("rank", subject, remedy=remedy, fix=fix)


def misfit(code: str, subject: Subject, *, remedy: str = "", fix: str = "") -> Iterable[Hit]:
    """Why the target refuses the adapter, where it is for ``code``: as an export says it."""
    for error in subject.misfits:
        if error.code == code:
            finding = finding_of(error)
            remedy = remedy or finding.remedy
            yield Hit(finding.what, remedy, fix, file=subject.at_weights, module=finding.module)


def heads(subject: Subject) -> Iterable[Hit]:
    """Whole tensors that come along: heads, biases, what modules_to_save names."""
    fix = exported(subject, "--drop-rest")
    found = list(misfit("heads", subject, remedy=NO_HEAD, fix=fix))
    saved = subject.config.get("modules_to_save")
    if saved and not found:
        named = ", ".join(map(str, saved)) if isinstance(saved, list) else shown(saved)
        what = f"The config says that it brings {named[:120]} along."
        yield Hit(what, NO_HEAD, exported(subject, "--drop-rest"), file=subject.at_config)
    yield from found


def foreign(subject: Subject) -> Iterable[Hit]:
    """What ComfyUI alone reads, with the command that leaves out that and nothing else."""
    fix = subject.command("convert", "--to", "peft", "--allow-loss", suffix="peft")
    yield from misfit("foreign", subject, remedy="leave them out on purpose", fix=fix)


def exported(subject: Subject, *flags: str) -> str:
    """The command that writes the adapter as the target reads it.

    GGUF needs the base's config; where that is not known, one rank and one scale for all modules
    are what llama.cpp's own converter reads rightly.
    """
    target = str(subject.target)
    if find_target(target).form != "gguf":
        return subject.command("export", "--target", target, *flags, suffix=target)
    if subject.base is None and not flags:
        return subject.command("resize", "--target", target, suffix=target)
    base = ("--base", subject.base.name) if subject.base is not None else ()
    to = target if base else "portable"
    return subject.command("export", "--target", to, *base, *flags, suffix=target)


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


def without_number(module: str) -> str:
    """A module's name with a star for the number of its layer."""
    number = layer_number(module)
    return module if number is None else module.replace(f".{number}.", ".*.", 1)


def largest_rank(subject: Subject) -> int:
    """The largest rank of a module."""
    return max((shape.rank for shape in (subject.modules or {}).values()), default=0)


_FIND: dict[str, Find] = {
    "dora": dora,
    "foreign": foreign,
    "heads": heads,
    "keys": keys,
    "patterns": wrong_scales,
    "prefix": prefix,
}
