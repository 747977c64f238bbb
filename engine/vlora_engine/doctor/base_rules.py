"""Rules on an adapter beside the base model that it is meant for."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from vlora_engine.adapters.base_models import normalise_base_model
from vlora_engine.doctor.rules import PEFT, Hit, Subject, count, rule

_INJECT = f"{PEFT}/blob/main/src/peft/tuners/tuners_utils.py"
_injected = partial(rule, source=_INJECT, since="peft 0.21", stage="base")
_VOCABULARY = ("embed_tokens", "wte", "lm_head", "embeddings", "word_embeddings")


@_injected(
    "no-module-fits",
    "error",
    "No module of the adapter is one of the base: it would do nothing.",
    remedy="name the base that it was trained on with --base, or mend the modules' names",
)
def _none(subject: Subject) -> Iterable[Hit]:
    unknown = _unknown(subject)
    if unknown and len(unknown) == len(subject.modules or {}):
        what = f"None of {count(len(unknown), 'module')} is in the base, such as {unknown[0]}."
        yield Hit(what, file=subject.at_weights, module=unknown[0])


@_injected(
    "unknown-modules",
    "error",
    "Some modules of the adapter are not in the base.",
    remedy="name the base that it was trained on with --base",
)
def _some(subject: Subject) -> Iterable[Hit]:
    unknown = _unknown(subject)
    if unknown and len(unknown) < len(subject.modules or {}):
        what = f"{count(len(unknown), 'module')} not in the base, such as {unknown[0]}."
        yield Hit(what, file=subject.at_weights, module=unknown[0])


def _unknown(subject: Subject) -> list[str]:
    base = subject.base
    if base is None:
        return []
    return [module for module in subject.modules or {} if base.knows(module) is False]


@_injected(
    "wrong-shape",
    "error",
    "A module's dimensions are not those of the base.",
    remedy="name the base that it was trained on with --base",
)
def _shapes(subject: Subject) -> Iterable[Hit]:
    if subject.base is None:
        return
    wrong = {
        name: (shape, misfit)
        for name, shape in (subject.modules or {}).items()
        if (misfit := subject.base.misfit(name, shape))
    }
    if wrong:
        name, (shape, misfit) = next(iter(wrong.items()))
        what = (
            f"{count(len(wrong), 'module')} of other dimensions than the base's: {name} is "
            f"{shape.d_out} x {shape.d_in}, the base has {misfit}."
        )
        yield Hit(what, file=subject.at_weights, module=name, place=f"{subject.at_weights}: {name}")


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
    own = {normalise_base_model(n) for n in (subject.base.name, subject.base.told_name) if n}
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
            what = f"{shape[0]} x {shape[1]}, and the base has {tokens} tokens."
            yield Hit(what, file=subject.at_weights, tensor=key)
            return
