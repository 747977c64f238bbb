"""Coding a coded collection anew: after tasks came and went, or for another target."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from vlora_engine.adapters.model import AdapterSource, MemorySource
from vlora_engine.catalog.originals import original_if_there
from vlora_engine.compress.absorb import bounded, require_held
from vlora_engine.compression_target import CompressionTarget
from vlora_engine.errors import ParameterError
from vlora_engine.subspace.coded.space import CodedSpace, code_collection
from vlora_engine.subspace.request import prepare
from vlora_engine.utils.run_context import RunContext


def compact(space: CodedSpace, run: RunContext) -> tuple[CodedSpace, list[str]]:
    """The collection coded anew, for the target that it was coded for.

    Returns:
        The new collection, and the ids of tasks whose originals are gone or changed: they
        were taken from their reconstructions, and their errors are bounds.

    Raises:
        ParameterError: No task of it is coded.
    """
    goal: dict[str, Any] = dict(space.coding.target)
    return recode(space, CompressionTarget(method=space.method, **goal).checked(), run)


def recode(
    space: CodedSpace, target: CompressionTarget, run: RunContext
) -> tuple[CodedSpace, list[str]]:
    """The collection coded anew for a target; returns and raises as `compact`.

    Tasks that are loadings stay so, in the basis that they are in.
    """
    sources: dict[str, AdapterSource] = {}
    rebuilt = []
    named = {spec.name: spec.fits for spec in space.layers}
    for record in space.tasks.records():
        if record.in_basis:
            continue
        original = original_if_there(record, named)
        if original is None:
            rebuilt.append(record.id)
            require_held(record, run)
            original = MemorySource(space.reconstruct(record.id, exact=True))
        sources[record.id] = original
    if not sources:
        raise ParameterError(
            "No task of the collection is coded.",
            where=space.home,
            found=f"{len(space.tasks)} tasks that are loadings in its basis",
        )
    new = code_collection(prepare(sources, run), target, run)
    for name in rebuilt:
        old = space.tasks.record(name)
        known = replace(bounded(old, new.tasks.record(name)), dtypes=old.dtypes)
        new.tasks.put(known, new.tasks.encoded(name))
    _carry_over(space, new)
    new.home, new.opened = space.home, space.opened
    return new, rebuilt


def _carry_over(old: CodedSpace, new: CodedSpace) -> None:
    """The basis, if it is kept, and the tasks that are loadings in it."""
    basis = old.tasks.basis
    names = [record.id for record in old.tasks.records() if record.in_basis]
    if basis is None or not (names or old.keeps_basis):
        return
    new.tasks.basis, new.keeps_basis = basis, old.keeps_basis
    used = {old.layers[i].name for name in names for i in old.tasks.record(name).layers}
    new.add_layers([s for s in old.layers if s.name in used - set(new.layer_names)])
    for name in names:
        new.tasks[name] = old.tasks[name]
