"""Quantizing a subspace that is there.

Its bases are packed as bytes and its loadings fitted to what is left; a coded collection is coded
anew to at most the bytes that its adapters would take when they were packed.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from vlora_engine.catalog.load import AnySpace, load_space
from vlora_engine.catalog.originals import original_if_there
from vlora_engine.catalog.read import read_manifest
from vlora_engine.compress.absorb import reexpress
from vlora_engine.compress.compact import recode
from vlora_engine.compression_target import CompressionTarget
from vlora_engine.errors import TargetError
from vlora_engine.manifest.manifest import Manifest
from vlora_engine.quantization.packing import Packing, Quantization
from vlora_engine.subspace.basis import Bases
from vlora_engine.subspace.basis_space import BasisSpace
from vlora_engine.subspace.coded.space import CodedSpace
from vlora_engine.subspace.loadings import Storage
from vlora_engine.subspace.save import save
from vlora_engine.subspace.tasks import TaskMap
from vlora_engine.utils.output_checks import check_output
from vlora_engine.utils.outputs import MadeCheck
from vlora_engine.utils.run_context import RunContext

_HALVINGS = 10


def quantize_subspace(
    path: Path,
    out: Path,
    quantization: Quantization,
    run: RunContext = RunContext(),
    *,
    tell: Callable[[str], None] = lambda remark: None,
    made: MadeCheck | None = None,
) -> Manifest:
    """Quantize the subspace in ``path`` into the directory ``out``.

    Args:
        tell: Given what there is to remark on it.
        made: Is shown the finished directory before it takes the place of ``out``; it may raise.

    Raises:
        NotFoundError, CorruptFileError: Of the subspace that is read.
        TargetError: A coded collection cannot be coded to so few bytes.
        OutputExistsError: ``out`` is there and not ``run.force``.
        Cancelled: Stopped between two tasks; nothing is written.
    """
    check_output(out, force=run.force)
    space = load_space(path)
    space, remarks = requantize(space, quantization, run)
    save(space, out, force=run.force, check=made)
    for remark in remarks:
        tell(remark)
    return read_manifest(out)


def requantize(
    space: AnySpace, quantization: Quantization, run: RunContext = RunContext()
) -> tuple[AnySpace, list[str]]:
    """Pack the bases of a subspace in place, and its loadings if asked; or code it anew.

    A coded collection that takes no more than `packed_bytes` stays as it is.

    Returns:
        The subspace, another one where it was coded anew, and remarks on what was done.

    Raises:
        TargetError: A coded collection cannot be coded to so few bytes.
        Cancelled: Stopped between two tasks; the subspace is as it was.
    """
    if isinstance(space, CodedSpace):
        new, remarks = _coded_within(space, quantization.basis, run)
        if quantization.loadings is not None:
            remarks += [f"loadings: no effect; method {space.method} codes its tasks as a whole"]
        return new, remarks
    if space.quantization != quantization:
        _pack(space, quantization, run)
    return space, []


def packed_bytes(space: CodedSpace, packing: Packing) -> int:
    """The bytes that A and B of a collection's coded tasks would take packed, with scales."""
    return sum(
        int(packing.nbytes(rank * spec.d_in) + packing.nbytes(rank * spec.d_out))
        for record in space.tasks.records()
        if not record.in_basis
        for spec, rank in zip((space.layers[i] for i in record.layers), record.ranks, strict=True)
    )


def _coded_within(
    space: CodedSpace, packing: Packing, run: RunContext
) -> tuple[CodedSpace, list[str]]:
    """The collection in at most the bytes of its packed adapters.

    Index and heads count among them, but of adapters so small that these leave no room.
    """
    allowed, (coded, around) = packed_bytes(space, packing), space.sizes()
    if coded + around <= allowed:
        remark = f"left as it is: it takes {coded + around:,} bytes, {packing.name} would take"
        return space, [f"{remark} {allowed:,}"]
    try:
        new = _recoded(space, allowed, run)
    except TargetError:
        if coded <= allowed:
            remark = f"left as it is: its numbers take {coded:,} bytes, {packing.name} would take"
            return space, [f"{remark} {allowed:,}"]
        new, allowed = _of_numbers(space, allowed, around, run), allowed + around
    remark = f"recoded: {coded + around:,} bytes -> {sum(new.sizes()):,}, at most the"
    return new, [f"{remark} {allowed:,} of {packing.name}"]


def _recoded(space: CodedSpace, nbytes: int, run: RunContext) -> CodedSpace:
    """The collection coded anew to so many bytes, and those of its rest tensors."""
    rest = sum(record.rest_bytes for record in space.tasks.records() if not record.in_basis)
    target = CompressionTarget(method=space.method, budget=nbytes + rest).checked()
    return recode(space, target, run)[0]


def _of_numbers(space: CodedSpace, nbytes: int, around: int, run: RunContext) -> CodedSpace:
    """The collection coded anew so that its numbers take so many bytes, whatever is around them.

    Of the smallest adapters not even that can be said as a budget: the least error that fits is
    looked for.

    Raises:
        TargetError: Nothing fits.
    """
    try:
        return _recoded(space, nbytes + around, run)
    except TargetError:
        low, high, found = 0.0, 1.0, None
        for _ in range(_HALVINGS):
            error = (low + high) / 2
            target = CompressionTarget(method=space.method, mean_error=error).checked()
            new = recode(space, target, run)[0]
            fits = new.sizes()[0] <= nbytes and sum(new.sizes()) <= nbytes + around
            low, high, found = (low, error, new) if fits else (error, high, found)
        if found is None:
            raise
        return found


def _pack(space: BasisSpace, quantization: Quantization, run: RunContext) -> None:
    storage = Storage(space.method, space.dtype, quantization)
    # As numbers, too, while every task is fitted to all of them.
    bases = {
        name: space.bases[name].moved("cpu").packed_as(quantization) for name in space.layer_names
    }
    tasks = TaskMap(storage, space.layers)
    records = space.tasks.records()
    named = {spec.name: spec.fits for spec in space.layers}
    for done, record in enumerate(records):
        run.stop_if_asked(f"Stopped at {done} of {len(records)} (quantize).")
        encoded = space.tasks.encoded(record.id)
        original = original_if_there(record, named)
        tasks.put(*reexpress(space, storage, space.layers, bases, record, encoded, original))
        run.report("quantize", done + 1, len(records), record.id)
    space.bases, space.tasks = Bases.of(bases.values()), tasks
    space.quantization, space.stored = quantization, None
