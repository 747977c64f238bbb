"""Rules on an adapter beside the base model that it is meant for."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from vlora_engine.adapters.base_models import normalise_base_model
from vlora_engine.doctor.rules import PEFT, Hit, Subject, rule
from vlora_engine.utils.naming import counted

_INJECT = f"{PEFT}/blob/main/src/peft/tuners/tuners_utils.py"
_injected = partial(rule, source=_INJECT, since="peft 0.21", stage="base")
_VOCABULARY = ("embed_tokens", "wte", "lm_head", "embeddings", "word_embeddings")


@_injected(
    "no-module-fits",
    "error",
    "PEFT applies no module of the adapter to the base: it would do nothing.",
    remedy="name the base that it was trained on with --base",
)
def _none(subject: Subject) -> Iterable[Hit]:
    lost = _lost(subject)
    if lost and len(lost) == len(subject.modules or {}):
        yield _lost_hit(subject, lost, "none of")


@_injected(
    "unknown-modules",
    "error",
    "PEFT applies some modules of the adapter to the base, and ignores others.",
    remedy="name the base that it was trained on with --base",
)
def _some(subject: Subject) -> Iterable[Hit]:
    lost = _lost(subject)
    if lost and len(lost) < len(subject.modules or {}):
        yield _lost_hit(subject, lost, f"{len(lost):,} of")


def _lost(subject: Subject) -> list[str]:
    """The modules that do nothing on the base."""
    base, reach, modules = subject.base, subject.reach, subject.modules or {}
    if base is None or reach is None or reach.misfits:
        return []
    if reach.unknown:
        return [module for module in modules if base.ends_before(module)]
    return [module for module in modules if module not in reach.places]


def _lost_hit(subject: Subject, lost: list[str], share: str) -> Hit:
    """What is lost, why, and the command where another name is all that it takes."""
    reach = subject.reach
    first = next((m for m in lost if reach is not None and m in reach.names), lost[0])
    what = f"PEFT would apply {share} {counted(len(subject.modules or {}), 'module')}"
    remedy = fix = ""
    name = "" if reach is None else reach.names.get(first, "")
    if reach is None or not name:
        what += f": the base has no {first}."
    elif name == first and not reach.refusal:
        odd = subject.remarked("wrapped-names") or subject.remarked("no-prefix")
        left_out = f"its config leaves {first} out"
        what += f": {'its keys are not those that PEFT looks for' if odd else left_out}."
    elif name == first:
        what += f": {reach.refusal.rstrip('.')}."
    else:
        what += f": {first} is called {name} in the base."
    if name and subject.base is not None:
        remedy = "write it again under the names of the base"
        fix = subject.command("doctor", "--base", subject.base.name, "--fix", suffix="fixed")
    return Hit(what, remedy, fix, file=subject.at_weights, module=first)


@_injected(
    "wrong-shape",
    "error",
    "A module's dimensions are not those of the base.",
    remedy="name the base that it was trained on with --base",
)
def _shapes(subject: Subject) -> Iterable[Hit]:
    wrong = _misfits(subject)
    if wrong:
        name, misfit = next(iter(wrong.items()))
        shape = (subject.modules or {})[name]
        what = (
            f"The base has other dimensions for {counted(len(wrong), 'module')}: {name} is "
            f"{shape.d_out} x {shape.d_in}, the base has {misfit}."
        )
        yield Hit(what, file=subject.at_weights, module=name, place=f"{subject.at_weights}: {name}")


def _misfits(subject: Subject) -> dict[str, str]:
    if subject.base is None or subject.reach is None:
        return {}
    if not subject.reach.unknown:
        return dict(subject.reach.misfits)
    found = {n: subject.base.misfit(n, shape) for n, shape in (subject.modules or {}).items()}
    return {name: misfit for name, misfit in found.items() if misfit}


@rule(
    "other-base",
    "warning",
    "The config names another base model than the one given.",
    remedy="check that this is the model that it was trained on",
    stage="base",
)
def _other(subject: Subject) -> Iterable[Hit]:
    named = subject.config.get("base_model_name_or_path")
    if subject.base is None or not isinstance(named, str) or not named:
        return
    own = {normalise_base_model(n) for n in (subject.base.name, subject.base.name_in_config) if n}
    own |= {normalise_base_model(subject.base.name.removesuffix("/config.json"))}
    if normalise_base_model(named) not in own:
        yield Hit(f"It was trained on {named[:80]}.", file=subject.at_config)


@rule(
    "vocabulary-differs",
    "warning",
    "A matrix over tokens has another number of them than the base.",
    remedy="resize the base's embeddings first (resize_token_embeddings), as in the training",
    source="https://huggingface.co/docs/transformers/main_classes/model",
    since="4.57",
    stage="base",
)
def _vocabulary(subject: Subject) -> Iterable[Hit]:
    tokens = None if subject.base is None else subject.base.vocabulary
    if tokens is None:
        return
    for key, (_, shape) in subject.rest.items():
        over_tokens = len(shape) == 2 and any(f".{name}." in f".{key}." for name in _VOCABULARY)
        if over_tokens and "position" not in key and tokens not in shape and max(shape) > 256:
            what = f"The matrix is {shape[0]} x {shape[1]}, and the base has {tokens} tokens."
            yield Hit(what, file=subject.at_weights, tensor=key)
            return
