"""Disk space: what a recipe is going to write and where, and whether it fits there.

Sizes follow from headers and from what was predicted; no weight is read, and nothing is written.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from vlora_engine.adapters.provenance import ABOUT_BYTES
from vlora_engine.compression_target import CompressionTarget
from vlora_engine.errors import StorageError, VLoRAError
from vlora_engine.quantization.dtypes import STORAGE_DTYPES, storage_dtype
from vlora_engine.targets import find_target, target_bytes
from vlora_engine.utils.files import directory_bytes
from vlora_engine.utils.safetensors_file import ITEM_BYTES
from vlora_tui.pipeline.inputs import Collection, gather
from vlora_tui.pipeline.output_plan import (
    convert_paths,
    export_paths,
    facts_of_export,
    merge_inputs,
)
from vlora_tui.pipeline.task_patterns import recipe_tasks
from vlora_tui.pipeline.unfinished import unfinished_build
from vlora_tui.recipe.model import Convert, Export, Merge, Push, Recipe, Resize
from vlora_tui.recipe.resolve import resolve
from vlora_tui.utils.formatting import size

if TYPE_CHECKING:
    from vlora_engine.adapters.model import AdapterSource
    from vlora_engine.manifest.manifest import Manifest, TaskRecord

_HEADER_BYTES = 120  # of a safetensors header, for one tensor, about
_DIGEST = "0" * 64


class Need(NamedTuple):
    """Bytes that are going to be written at a path."""

    path: Path
    nbytes: int


class Shortage(NamedTuple):
    """A disk that has less room than is needed on it.

    Args:
        path: The first of the outputs that go there.
        disk: The directory on it that is there already.
    """

    path: Path
    disk: Path
    need: int
    free: int

    def error(self) -> StorageError:
        """The same as the error that refuses the run."""
        return StorageError(
            "There is not enough room for what is going to be written; nothing was written.",
            where=self.path,
            expected=f"{size(self.need)} free, with the modules that are kept beside the output",
            found=f"{size(self.free)} free on the disk of {self.disk}",
            remedy="free some space there, or choose an output on another disk",
        )


def require_room(needs: Iterable[Need]) -> None:
    """Refuse what does not fit.

    Raises:
        StorageError: It says how much is needed, how much is free, and where.
    """
    shortage = first_shortage(needs)
    if shortage is not None:
        raise shortage.error()


def first_shortage(needs: Iterable[Need]) -> Shortage | None:
    """The first disk on which all that is going to be written there does not fit."""
    disks: dict[int, list[tuple[Need, Path]]] = {}
    for need in needs:
        there = _nearest(need.path)
        if there is not None:
            disks.setdefault(os.stat(there).st_dev, []).append((need, there))
    for on_disk in disks.values():
        (first, there), needed = on_disk[0], sum(need.nbytes for need, _ in on_disk)
        free = free_bytes(there)
        if free is not None and needed > free:
            return Shortage(first.path, there, needed, free)
    return None


def free_bytes(path: Path) -> int | None:
    """The room on the disk that ``path`` will lie on; None where there is nothing to tell it by."""
    there = _nearest(path)
    try:
        usage = None if there is None else shutil.disk_usage(there)
    except OSError:
        return None
    return usage.free if usage is not None and usage.total else None  # /proc has no size at all


def _nearest(path: Path) -> Path | None:
    """The path itself, or the directory above it, that is there."""
    return next((place for place in (path, *path.parents) if os.path.exists(place)), None)


# what a recipe needs


def needs_of(
    recipe: Recipe,
    collection: Collection,
    *,
    subspace: int | None = None,
    done: frozenset[str] = frozenset(),
    job: str = "run",
) -> list[Need]:
    """What a recipe is going to write, as far as it is known.

    Args:
        subspace: The bytes of the subspace, where they were predicted; else they are taken from
            the recipe, which tells them if k or a budget is given.
        done: Outputs that are in their places already.
        job: Names the partial output; layers that are kept there need no room again.
    """
    needs: list[Need] = []
    if recipe.compress is not None and recipe.output is not None and recipe.output not in done:
        if subspace is None:
            subspace = subspace_bytes(collection, recipe.compress.target)
        if subspace is not None:
            # The layers stay beside the subspace until it is complete. What is packed afterwards
            # takes no more than they did.
            unfinished = unfinished_build(recipe, job)
            there = 0 if unfinished is None else _unfinished_bytes(unfinished)
            needs.append(Need(Path(recipe.output), max(0, 2 * subspace - there)))
    elif recipe.quantize is not None and recipe.output is not None and recipe.output not in done:
        manifest = collection.manifest
        needs.append(Need(Path(recipe.output), 0 if manifest is None else manifest.nbytes))
    for export in recipe.exports:
        needs += [
            Need(path, _exported_bytes(export, task, collection))
            for task, path in export_paths(export, collection.tasks).items()
            if str(path) not in done
        ]
    needs += [
        Need(Path(merge.path), _merged_bytes(merge, collection))
        for merge in recipe.merges
        if merge.path not in done
    ]
    needs += [
        Need(path, _resized_bytes(resize, task, collection))
        for resize in recipe.resizes
        for task, path in export_paths(resize, collection.tasks).items()
        if str(path) not in done
    ]
    for convert in recipe.converts:
        needs += [
            Need(path, _converted_bytes(convert, task, collection))
            for task, path in convert_paths(convert, recipe, collection).items()
            if str(path) not in done
        ]
    for push in recipe.pushes:
        if push.adapters and str(push.address) not in done:  # written out before they are sent
            needs.append(Need(Path(tempfile.gettempdir()), _pushed_bytes(push, collection)))
    return needs


def subspace_bytes(collection: Collection, target: CompressionTarget) -> int | None:
    """The bytes of a subspace of a given k, by the headers alone; None where a target chooses k."""
    if target.budget is not None:
        return target.budget
    pair, sources = target.fixed_pair, collection.adapters
    return bytes_at(sources, target, pair) if pair is not None and sources else None


def bytes_at(
    sources: Mapping[str, AdapterSource], target: CompressionTarget, pair: tuple[int, int]
) -> int:
    """The bytes of a subspace of (k_a, k_b), by the headers alone."""
    import numpy as np

    from vlora_engine.manifest.records import (
        max_k,
        overhead_bytes,
        rest_bytes,
        shared_layers,
        task_record,
    )
    from vlora_engine.spectra.choose import match_layers
    from vlora_engine.spectra.sizes import layer_bytes, packing_overhead
    from vlora_engine.spectra.tables import LayerTable

    layers = shared_layers(sources)
    per_layer = match_layers([spec.name for spec in layers], target.layers)
    found = {shape.dtype for source in sources.values() for shape in source.modules.values()}
    packed = target.quantization
    dtype, total = storage_dtype(target.dtype, found, lossy=target.lossy), 0
    for spec in layers:
        ranks = [s.modules[spec.name].rank for s in sources.values() if spec.name in s.modules]
        table = LayerTable(
            spec.name, spec.d_in, spec.d_out, np.arange(len(ranks)), np.array(ranks), np.empty(0)
        )
        layer_k = per_layer.get(spec.name, pair)
        limits = max_k(target.method, spec, sources)
        k_a, k_b = (min(k, limit) for k, limit in zip(layer_k, limits, strict=True))
        total += int(layer_bytes(target.method, table, k_a, k_b, dtype, packed))
    records = {
        name: task_record(name, source, layers, file=name, digest=_DIGEST, norm=1.0)
        for name, source in sources.items()
    }
    rest = sum(rest_bytes(source) for source in sources.values())
    total += packing_overhead(packed, len(sources))
    return total + rest + overhead_bytes(sources, records, layers, dtype)


def adapter_bytes(manifest: Manifest, task: TaskRecord, dtype: str | None = None) -> int:
    """About how many bytes a task takes as an adapter of its own, config and header included."""
    payload, elements = 0, 0
    for index, rank, stored_dtype in zip(task.layers, task.ranks, task.dtypes, strict=True):
        layer = manifest.layers[index]
        count = rank * (layer.d_in + layer.d_out)
        elements += count
        payload += count * ITEM_BYTES[STORAGE_DTYPES.get(dtype or "", stored_dtype)]
    rest_of_factors = max(0, task.factor_elements - elements)  # modules that the basis lacks
    common = task.dtypes[0] if task.dtypes else "F32"
    payload += rest_of_factors * ITEM_BYTES[STORAGE_DTYPES.get(dtype or "", common)]
    tensors = 2 * (len(task.layers) + len(task.own)) + task.rest
    beside = _HEADER_BYTES * tensors + _config_bytes(task.config) + ABOUT_BYTES
    return payload + task.rest_bytes + beside


def merged_bytes(sizes: Iterable[int], ranks: Iterable[int], rank: int | None) -> int:
    """A merge needs the sum of the ranks at most, unless a rank is given."""
    total, of_all = sum(sizes), sum(ranks)
    return round(total * min(1.0, rank / of_all)) if rank is not None and of_all else total


def _exported_bytes(export: Export, task: str, collection: Collection) -> int:
    if export.target != "peft":
        facts = facts_of_export(export, task, collection.manifest, collection.adapters)
        return target_bytes(find_target(export.target), facts, export.dtype)
    if collection.manifest is not None:
        return adapter_bytes(collection.manifest, collection.manifest.task(task), export.dtype)
    source = collection.adapters[task]
    item = ITEM_BYTES[STORAGE_DTYPES[export.dtype]] if export.dtype is not None else None
    return source.nbytes if item is None else source.nbytes + _cast_bytes(source, item)


def _cast_bytes(source: AdapterSource, item: int) -> int:
    """How much larger, or smaller, an adapter gets when its factors take ``item`` bytes each."""
    return sum(
        s.rank * (s.d_in + s.d_out) * (item - ITEM_BYTES[s.dtype]) for s in source.modules.values()
    )


def _merged_bytes(merge: Merge, collection: Collection) -> int:
    sizes, ranks = [], []
    item = ITEM_BYTES[STORAGE_DTYPES[merge.dtype]] if merge.dtype is not None else None
    for name in merge_inputs(merge, collection):
        if collection.manifest is not None and name in collection.manifest.tasks:
            task = collection.manifest.task(name)
            sizes.append(adapter_bytes(collection.manifest, task, merge.dtype))
            ranks.append(task.rank or 0)
        elif name in collection.adapters:
            source = collection.adapters[name]
            sizes.append(source.nbytes + (_cast_bytes(source, item) if item else 0))
            ranks.append(max((shape.rank for shape in source.modules.values()), default=0))
        elif os.path.isdir(name):
            sizes.append(directory_bytes(Path(name)))
    return merged_bytes(sizes, ranks, merge.rank)


def _resized_bytes(resize: Resize, task: str, collection: Collection) -> int:
    """At most what it is now, or what the rank that is named comes to."""
    if collection.manifest is not None:
        record = collection.manifest.task(task)
        now, rank = adapter_bytes(collection.manifest, record), record.rank or 1
        return now if resize.rank is None else round(now * max(1.0, resize.rank / rank))
    source = collection.adapters[task]
    if resize.rank is None:
        return source.nbytes
    return source.nbytes + sum(
        max(0, resize.rank - s.rank) * (s.d_in + s.d_out) * ITEM_BYTES[s.dtype]
        for s in source.modules.values()
    )


def _converted_bytes(convert: Convert, task: str, collection: Collection) -> int:
    """About what it is as an adapter; a format of subspaces takes about as much for all of them."""
    tasks = [task] if task else recipe_tasks(convert.tasks, collection.tasks)
    return sum(_adapter_bytes(name, collection) for name in tasks)


def _pushed_bytes(push: Push, collection: Collection) -> int:
    """Of tasks of the recipe's own subspace; of another one it is not known."""
    if push.path is not None:
        return 0
    chosen = recipe_tasks(push.tasks, collection.tasks)
    return sum(_adapter_bytes(name, collection) for name in chosen)


def _adapter_bytes(task: str, collection: Collection) -> int:
    if collection.manifest is not None:
        return adapter_bytes(collection.manifest, collection.manifest.task(task))
    return collection.adapters[task].nbytes


def _unfinished_bytes(partial: Path) -> int:
    try:
        return directory_bytes(partial) if os.path.isdir(partial) else 0
    except OSError:  # it is changing under us
        return 0


def _config_bytes(config: Mapping[str, object]) -> int:
    return len(json.dumps(dict(config), indent=2, default=str))


def shortage_of(recipe: Recipe, *, subspace: int | None = None) -> Shortage | None:
    """The same check before a job is started; what is wrong with the inputs the job will say."""
    try:
        resolved = resolve(recipe)
        return first_shortage(needs_of(resolved, gather(resolved), subspace=subspace))
    except (VLoRAError, OSError):
        return None
