"""Planning and coding a coded collection anew, after tasks came and went."""

from __future__ import annotations

from dataclasses import replace

from vlora_engine.adapters.model import AdapterSource, MemorySource
from vlora_engine.catalog.originals import original_if_there
from vlora_engine.compression_target import CompressionTarget
from vlora_engine.manifest.records import figure
from vlora_engine.subspace.coded.space import CodedSpace, code_collection
from vlora_engine.subspace.request import prepare
from vlora_engine.utils.run_context import RunContext


def compact(space: CodedSpace, run: RunContext) -> tuple[CodedSpace, list[str]]:
    """The collection coded anew, for the target that it was coded for.

    Returns:
        The new collection, and the ids of tasks whose originals are gone or changed: they
        were taken from their reconstructions, and their errors are bounds.
    """
    sources: dict[str, AdapterSource] = {}
    rebuilt = []
    for record in space.tasks.records():
        original = original_if_there(record)
        if original is None:
            rebuilt.append(record.id)
            original = MemorySource(space.reconstruct(record.id, exact=True))
        sources[record.id] = original
    target = {k: int(v) if k == "budget" else v for k, v in space.coding.target.items()}
    targets = CompressionTarget(method=space.method, **target).checked()  # type: ignore[arg-type]
    new = code_collection(prepare(sources, run), targets, run)
    for name in rebuilt:
        old = space.tasks.record(name)
        record = new.tasks.record(name)
        # What is lost anew is relative to what was left, which may be longer than dW was.
        lost = record.error * record.norm / old.norm if old.norm else 0.0
        known = replace(
            record,
            digest=old.digest,
            dtypes=old.dtypes,
            norm=old.norm,
            source=old.source,
            source_bytes=old.source_bytes,
            error=figure(old.error + lost),
            measured=False,
        )
        new.tasks.put(known, new.tasks.encoded(name))
    new.home, new.opened = space.home, space.opened
    return new, rebuilt
