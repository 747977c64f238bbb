"""Packing a subspace that is there: its bases as bytes, its loadings fitted to what is left."""

from __future__ import annotations

from pathlib import Path

from vlora_engine.catalog.load import load_space
from vlora_engine.catalog.originals import original_if_there
from vlora_engine.catalog.read import read_manifest
from vlora_engine.compress.absorb import reexpress
from vlora_engine.manifest.manifest import Manifest
from vlora_engine.quantization.packing import Quantization, already_coded_error
from vlora_engine.subspace.basis import Bases
from vlora_engine.subspace.basis_space import BasisSpace
from vlora_engine.subspace.coded.space import CodedSpace
from vlora_engine.subspace.loadings import Storage
from vlora_engine.subspace.save import save
from vlora_engine.subspace.tasks import TaskMap
from vlora_engine.utils.files import check_output
from vlora_engine.utils.run_context import RunContext


def quantize_subspace(
    path: Path, out: Path, quantization: Quantization, run: RunContext = RunContext()
) -> Manifest:
    """Pack the subspace in ``path`` into the directory ``out``.

    Raises:
        NotFoundError, CorruptFileError: Of the subspace that is read.
        ParameterError: Its method chose the bits itself.
        OutputExistsError: ``out`` is there and not ``run.force``.
        Cancelled: Stopped between two tasks; nothing is written.
    """
    manifest = read_manifest(path)
    if manifest.coding is not None:
        raise already_coded_error(manifest.method)
    check_output(out, force=run.force)
    space = load_space(path)
    requantize(space, quantization, run)
    save(space, out, force=run.force)
    return read_manifest(out)


def requantize(
    space: BasisSpace | CodedSpace, quantization: Quantization, run: RunContext = RunContext()
) -> None:
    """Pack the bases of a subspace, and its loadings if asked, in place.

    Raises:
        ParameterError: Its method chose the bits itself.
        Cancelled: Stopped between two tasks; the subspace is as it was.
    """
    if not isinstance(space, BasisSpace):
        raise already_coded_error(space.method)
    if space.quantization == quantization:
        return
    storage = Storage(space.method, space.dtype, quantization)
    # As numbers, too, while every task is fitted to all of them.
    bases = {
        name: space.bases[name].moved("cpu").packed_as(quantization) for name in space.layer_names
    }
    tasks = TaskMap(storage, space.layers)
    records = space.tasks.records()
    for done, record in enumerate(records):
        run.stop_if_asked(f"Stopped at {done} of {len(records)} (quantize).")
        encoded = space.tasks.encoded(record.id)
        original = original_if_there(record)
        tasks.put(*reexpress(space, storage, space.layers, bases, record, encoded, original))
        run.report("quantize", done + 1, len(records), record.id)
    space.bases, space.tasks = Bases.of(bases.values()), tasks
    space.quantization, space.stored = quantization, None
