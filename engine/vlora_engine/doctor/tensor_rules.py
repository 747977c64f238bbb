"""Rules on the numbers themselves: one adapter at a time, one module in memory. Needs torch."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING

from vlora_engine.doctor.base_tensors import compared
from vlora_engine.doctor.rules import ENGINE, PEFT, Hit, Subject, TensorFacts, rule
from vlora_engine.findings import finding_of
from vlora_engine.formats.rest_tensors import effect_of, nbytes_of, told
from vlora_engine.utils.naming import counted

if TYPE_CHECKING:
    from vlora_engine.adapters.check import AdapterCheck
    from vlora_engine.adapters.model import AdapterSource
    from vlora_engine.doctor.base_facts import BaseFacts

_LAYER = f"{PEFT}/blob/main/src/peft/tuners/lora/layer.py"

_layer_rule = partial(rule, source=_LAYER, since="peft 0.21", stage="tensors")
_check_rule = partial(rule, source=f"{ENGINE}.adapters.check", stage="tensors")


def read_facts(name: str, source: AdapterSource, base: BaseFacts | None = None) -> TensorFacts:
    """Read every tensor of one adapter once, and those of the base that it has whole."""
    from vlora_engine.adapters.check import check_adapter

    facts = TensorFacts()
    facts.check = check_adapter(name, source, facts.observe, facts.observe_rest)
    if base is not None and any(effect_of(key) in _OF_BASE for key in source.rest):
        whole = {k: t for k, t in source.read_rest().items() if effect_of(k) in _OF_BASE}
        facts.of_base = compared(base, whole)
    return facts


_OF_BASE = ("copy", "embedding", "bias", "replaces")


def _checked(subject: Subject) -> AdapterCheck | None:
    return None if subject.facts is None else subject.facts.check


@_check_rule("not-finite", "error", "A factor or the scale holds NaN or infinity.")
def _not_finite(subject: Subject) -> Iterable[Hit]:
    check = _checked(subject)
    if check is not None and check.error is not None and check.error.code == "not-finite":
        finding = finding_of(check.error)
        yield Hit.of(finding, remedy="use an earlier checkpoint of it, or leave it out")


@_check_rule("rest-not-finite", "warning", "A tensor that is kept as it is holds NaN or infinity.")
def _rest_not_finite(subject: Subject) -> Iterable[Hit]:
    check = _checked(subject)
    for finding in check.findings if check is not None else ():
        if finding.code == "rest-not-finite":
            yield Hit.of(finding)


@_layer_rule("no-effect", "error", "The adapter changes nothing: dW is zero in every module.")
def _no_effect(subject: Subject) -> Iterable[Hit]:
    check = _checked(subject)
    for finding in check.findings if check is not None else ():
        if finding.code == "no-effect":
            fresh = subject.facts is not None and len(subject.facts.fresh) > 0
            more = " A is as it was initialised: it was never trained." if fresh else ""
            remedy = "look for the checkpoint that was trained; this one is the base model"
            yield Hit.of(finding, what=finding.what + more, remedy=remedy)


@_layer_rule(
    "idle-modules",
    "warning",
    "Some modules change nothing: their B or A is zero.",
    remedy="look whether the training reached them; they cost bytes and time for nothing",
)
def _idle(subject: Subject) -> Iterable[Hit]:
    idle = [] if subject.facts is None else subject.facts.idle
    if 0 < len(idle) < len(subject.modules or {}):
        what = f"It has {counted(len(idle), 'module')} without effect, such as {idle[0]}."
        yield Hit(what, file=subject.at_weights, module=idle[0])


@_layer_rule(
    "fresh-a",
    "note",
    "Every A is as PEFT initialises it: it was frozen, or hardly trained.",
    remedy="nothing, where A was frozen on purpose (LoRA-FA); else look at the training",
)
def _fresh(subject: Subject) -> Iterable[Hit]:
    facts = subject.facts
    if facts is None or not facts.fresh or facts.check is None or not facts.check.norm:
        return
    if len(facts.fresh) == len(subject.modules or {}):
        what = f"A of all {counted(len(facts.fresh), 'module')} is uniform up to 1 / sqrt(d_in)."
        yield Hit(what, file=subject.at_weights)


@rule(
    "same-as-base",
    "warning",
    "Whole tensors are the base's own, number for number: they do nothing.",
    source=f"{PEFT}/blob/main/src/peft/utils/save_and_load.py",
    since="peft 0.21",
    stage="tensors",
)
def _same_as_base(subject: Subject) -> Iterable[Hit]:
    of_base = {} if subject.facts is None else subject.facts.of_base
    same = {key: nbytes_of(subject.rest[key]) for key, is_same in of_base.items() if is_same}
    if not same:
        return
    share = 100 * sum(same.values()) / max(1, sum(map(nbytes_of, subject.tensors.values())))
    what = f"{told(same)}: {share:.0f} % of the adapter are the base's own numbers."
    remedy, fix = "leave them out", ""
    if len(same) == len(subject.rest):
        fix = subject.command("export", "--target", "peft", "--drop-rest", suffix="peft")
    else:
        remedy = "save it again with save_embedding_layers=False: what else is beside A and B acts"
    yield Hit(what, remedy, fix, file=subject.at_weights, tensor=next(iter(same)))


@rule(
    "other-than-base",
    "note",
    "Whole tensors take the place of the base's when PEFT loads the adapter.",
    remedy="serve it where they are read (PEFT), or on a base that was saved with them",
    source=f"{PEFT}/blob/main/src/peft/utils/save_and_load.py",
    since="peft 0.21",
    stage="tensors",
)
def _other_than_base(subject: Subject) -> Iterable[Hit]:
    of_base = {} if subject.facts is None else subject.facts.of_base
    other = {key: nbytes_of(subject.rest[key]) for key, is_same in of_base.items() if not is_same}
    if other:
        yield Hit(
            f"It brings values other than the base's: {told(other)}.", file=subject.at_weights
        )


@rule(
    "beyond-fp16",
    "warning",
    "Entries that fp16 cannot hold: a server that computes in it gets infinities.",
    remedy="serve it in bf16",
    source="IEEE 754 binary16",
    since="2019",
    stage="tensors",
)
def _beyond_fp16(subject: Subject) -> Iterable[Hit]:
    large = [] if subject.facts is None else subject.facts.large
    if large:
        what = (
            f"It has {counted(len(large), 'module')} with entries above 65504, such as {large[0]}."
        )
        yield Hit(what, file=subject.at_weights, module=large[0])
