"""What is asked of the numbers of a stored subspace before anything is made of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from vlora_engine.errors import CorruptFileError
from vlora_engine.manifest.manifest import LayerSpec, TaskRecord
from vlora_engine.quantization.packed import PackedBasis
from vlora_engine.subspace.basis import LayerBasis
from vlora_engine.subspace.loadings import EncodedTask
from vlora_engine.utils.safetensors_file import Header, read_tensor

# Modules without effect take no bytes, and no memory until they are copied: what one is said to be
# is bounded alone, by what no model's reaches (rank 1024 on a vocabulary of 256 thousand). Of the
# others so many numbers are let pass in any case, and beyond them as many as a few bytes of codes,
# or a basis of one direction, have ever stood for.
MOST_OF_A_MODULE = 1 << 29
MOST_OF_A_TASK = 1 << 28
MOST_A_BYTE = 4096
RESTORE = "restore the file from a copy, or compress the adapters again"


def nothing(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Zeros that take no memory: one number, told for all. They are to be read alone."""
    return torch.zeros((1,) * len(shape), dtype=dtype).expand(tuple(shape))


def distinct(tensor: Tensor) -> Tensor:
    """The part of a tensor that the rest repeats, as all of `nothing` repeats one number."""
    for dim, (size, stride) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)):
        if size > 1 and stride == 0:
            tensor = tensor.narrow(dim, 0, 1)
    return tensor


def check_size(
    record: TaskRecord,
    layers: Sequence[LayerSpec],
    holds: Sequence[bool],
    files: Iterable[Path],
    where: Path,
) -> None:
    """Refuse a task whose A and B are said to be larger than its files can stand for.

    Args:
        record: The task. layers: Of the subspace.
        holds: Of each of its modules: whether any number is stored of it, or it is without effect.
        files: Those that its numbers come from; one that is missing holds nothing.
        where: The task's file.

    Raises:
        CorruptFileError: They are.
    """
    numbers = 0
    for i, rank, is_held in zip(record.layers, record.ranks, holds, strict=True):
        of_module = rank * (layers[i].d_in + layers[i].d_out)
        if is_held:
            numbers += of_module
        elif of_module > MOST_OF_A_MODULE:
            raise _too_many(of_module, f"{MOST_OF_A_MODULE:,} numbers in a module", where)
    if numbers > MOST_OF_A_TASK:
        held = sum(file.stat().st_size for file in files if file.is_file())
        require_held(numbers, held, where)


def require_held(numbers: int, held: int, where: Path | None = None) -> None:
    """Refuse ``numbers`` of factors that ``held`` bytes cannot stand for.

    Raises:
        CorruptFileError: They cannot.
    """
    most = MOST_OF_A_TASK + MOST_A_BYTE * held
    if numbers > most:
        raise _too_many(numbers, f"{most:,} numbers for {held:,} bytes", where)


def _too_many(numbers: int, most: str, where: Path | None) -> CorruptFileError:
    what, found = (
        "More numbers are claimed than the files can hold.",
        f"{numbers:,} numbers in A and B",
    )
    return damaged(what, found, f"at most {most}", where)


def damaged(
    what: str, found: str | None, expected: str, where: str | Path | None = None, **place: str
) -> CorruptFileError:
    """The error for a stored file that is not as it was written."""
    return CorruptFileError(
        what, where=where, expected=expected, found=found, remedy=RESTORE, **place
    )


def stored_tensor(header: Header, name: str, dtype: str, shape: tuple[int, ...]) -> Tensor:
    """Read a tensor that has to be of this dtype and shape.

    Raises:
        CorruptFileError: It is not, or it is not there.
    """
    entry = header.entries.get(name)
    if entry is None or (entry.dtype, entry.shape) != (dtype, shape):
        found = "no such tensor" if entry is None else f"{entry.dtype} {entry.shape}"
        raise not_as_said(header, name, found, f"{dtype} {shape}")
    return read_tensor(header, name)


def not_as_said(header: Header, name: str, found: str, expected: str) -> CorruptFileError:
    """The error for a tensor of another kind than the index says."""
    what = f"Tensor {name!r} is not what subspace.json says."
    return damaged(what, found, expected, header.path)


def finite_task(record: TaskRecord, task: EncodedTask) -> EncodedTask:
    """``task``, if its loadings and figures are finite.

    Raises:
        CorruptFileError: They are not.
    """
    factors = [factor for pair in task.own.values() for factor in pair]
    if not _finite(task.values, task.scales, task.norms, task.errors, *factors):
        raise CorruptFileError(
            f"The loadings of {record.id!r} hold NaN or infinity.",
            where=record.file,
            expected="finite numbers",
            remedy="compress the adapters again",
        )
    return task


def finite_basis(basis: LayerBasis | PackedBasis) -> LayerBasis | PackedBasis:
    """``basis``, if its numbers, or the scales that they are packed with, are finite.

    Raises:
        CorruptFileError: They are not.
    """
    if isinstance(basis, PackedBasis):
        numbers = [
            x for rows in (basis.a, basis.b, *basis.means) for x in (rows.scales, rows.steps)
        ]
    else:
        numbers = [x for x in (basis.a, basis.b, basis.mean_a, basis.mean_b) if x is not None]
    if not _finite(*numbers, basis.singular_values_a, basis.singular_values_b):
        raise CorruptFileError(
            "The basis holds NaN or infinity.",
            where=basis.name,
            expected="finite numbers",
            remedy="compress the adapters again",
        )
    return basis


def require_finite(module: str, *factors: Tensor) -> None:
    """Refuse factors that came out as NaN or infinity.

    Raises:
        CorruptFileError: They did.
    """
    if not _finite(*factors):
        raise CorruptFileError(
            f"The factors of module {module!r} come out as NaN or infinity.",
            expected="finite numbers that fit the task's dtype",
            remedy="check the subspace (vlora-tui validate), or compress the adapters again",
            module=module,
        )


def _finite(*tensors: Tensor) -> bool:
    parts = map(distinct, tensors)
    narrow = (t.float() if t.element_size() == 1 and t.is_floating_point() else t for t in parts)
    return all(bool(torch.isfinite(t).all()) for t in narrow)
