"""A rehearsal of a recipe: all that a run refuses is refused, and nothing is written.

Every tensor is read and judged, as a run does first; what has to be measured to choose k is not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from vlora_engine.adapters.check import check_adapters
from vlora_engine.codec import forecast
from vlora_engine.compress.build import clamped_k
from vlora_engine.compression_target import CompressionTarget
from vlora_engine.errors import VLoRAError
from vlora_engine.manifest.records import rest_bytes, shared_layers, task_record
from vlora_engine.quantization.dtypes import storage_dtype
from vlora_engine.spectra import choose
from vlora_engine.spectra.tables import Spectra
from vlora_engine.subspace.coded.layout import overhead_bytes
from vlora_engine.utils.device import require_device
from vlora_engine.utils.run_context import RunContext
from vlora_tui.pipeline.disk_space import bytes_at, needs_of, require_room
from vlora_tui.pipeline.forecast import expect
from vlora_tui.pipeline.inputs import Collection, gather
from vlora_tui.pipeline.output_plan import plan_outputs
from vlora_tui.pipeline.publish import check_pushes
from vlora_tui.recipe.model import CACHE, Compress, Recipe

if TYPE_CHECKING:
    from vlora_engine.adapters.model import AdapterSource
    from vlora_engine.findings import Finding


@dataclass
class Rehearsal:
    """What a run would find and write.

    Args:
        outputs: Every path that would be written. left_out: What would be left out, by name.
    """

    collection: Collection
    outputs: list[Path]
    left_out: dict[str, VLoRAError] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)


def rehearse(recipe: Recipe, run: RunContext, *, force: bool = False) -> Rehearsal:
    """Go through a resolved recipe up to where something would be written.

    Raises:
        VLoRAError: What a run of it would be refused for.
    """
    if recipe.compress is not None:
        require_device(recipe.compress.device)
    collection = gather(recipe, run)
    outputs = plan_outputs(recipe, collection, force=force)
    check_pushes(recipe, collection, outputs)
    require_room(needs_of(recipe, collection))
    found = Rehearsal(collection, outputs)
    found.left_out = {bad.name: bad.error for bad in collection.unusable}
    found.findings += [*collection.remarks, *collection.closed]
    if recipe.compress is not None:
        _judge(recipe.compress, found, run, skip_bad=recipe.input.skip_bad)
    return found


def _judge(compress: Compress, found: Rehearsal, run: RunContext, *, skip_bad: bool) -> None:
    sources = found.collection.adapters
    check = check_adapters(sources, progress=run.progress, cancelled=run.cancelled)
    good = {name: sources[name] for name in check.require(skip_bad=skip_bad)}
    found.left_out |= {n: c.error for n, c in check.adapters.items() if c.error is not None}
    found.findings += check.findings
    target = compress.target
    _, clamped = clamped_k(target, shared_layers(good), good)
    found.findings += [] if clamped is None else [clamped]
    if compress.spectra not in (None, CACHE):
        expect(target, Spectra.load(str(compress.spectra)))
    else:
        _require_reach(compress, good)


def _require_reach(compress: Compress, sources: Mapping[str, AdapterSource]) -> None:
    """Refuse a target that headers alone show to be out of reach."""
    target = compress.target.filled()
    if target.is_coded:
        shapes = (source.modules.values() for source in sources.values())
        forecast.require_reach(
            target, [sum(s.rank * (s.d_in + s.d_out) for s in m) for m in shapes]
        )
    else:
        found = {shape.dtype for source in sources.values() for shape in source.modules.values()}
        choose.require_reach(target, storage_dtype(target.dtype, found, lossy=target.lossy))
    if target.budget is not None:
        _require_least_bytes(target, target.budget, sources)


def _require_least_bytes(
    target: CompressionTarget, budget: int, sources: Mapping[str, AdapterSource]
) -> None:
    """Refuse a budget below what has to be stored whatever is chosen."""
    rest = sum(rest_bytes(source) for source in sources.values())
    if not target.is_coded:
        choose.require_budget(budget, bytes_at(sources, target, (0, 0)), rest)
        return
    layers = shared_layers(sources)
    records = {
        name: task_record(name, source, layers, file=name, digest="0" * 64, norm=1.0)
        for name, source in sources.items()
    }
    modules = sum(len(source.modules) for source in sources.values())
    least = overhead_bytes(sources, records, layers) + rest + modules
    forecast.require_budget(budget, least, rest)
