"""Code one module of all tasks: each task by itself, or in a group that shares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from vlora_engine.adapters.stack import LayerStack
from vlora_engine.codec.blobs import (
    Columns,
    Share,
    pack_columns,
    pack_cores,
    pack_own,
    pack_share,
    pack_transform,
)
from vlora_engine.codec.delta import code_cores, orthonormal, shared_columns
from vlora_engine.codec.klt import SharedSide, code_cluster
from vlora_engine.codec.own import Directions, canonical, code_changes
from vlora_engine.codec.tables import Array
from vlora_engine.linalg.low_rank import delta_error2

_FINE = 2e-6  # squared error over energy below which a transform stored in fp16 is felt
AT_ONCE = 32  # changes whose singular directions are in memory at a time
PACKED_AT_ONCE = 128  # changes that are entropy coded together: fewer would take longer

CodedGroup = tuple[Array, bytes, list[bytes]]  # residual (n,), what is shared, and the members'


@dataclass(frozen=True)
class Group:
    """Tasks that share a transform or columns on one layer.

    Args:
        number: Of the group in the collection.
        kind: ``klt`` or ``delta``.
        members: The tasks' names.
    """

    number: int
    kind: str
    members: tuple[str, ...]


@dataclass
class CodedLayer:
    """One coded layer: its bytes, and the error of every task.

    Args:
        name: Of the layer.
        tasks: Those that have it.
        blobs: Their bytes; a zero byte each where only the errors were asked for.
        energy: (N,) ||dW_i||^2.
        residual: (N,) ||dW_i - dW^_i||^2 of the stored form.
        shared: The bytes of every group by its number.
    """

    name: str
    tasks: list[str]
    blobs: list[bytes]
    energy: Array
    residual: Array
    shared: dict[int, bytes] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """The bytes of all tasks and groups."""
        return sum(map(len, self.blobs)) + sum(map(len, self.shared.values()))


def code_layer(
    stack: LayerStack, steps: Array, groups: Sequence[Group] = (), *, write: bool = True
) -> CodedLayer:
    """Code one layer at given steps.

    Args:
        stack: The layer's factors of all tasks that have it.
        steps: (N,) of every task, in units of dW; 0 for one without effect. Rounded to fp32.
        groups: Disjoint; a task in none of them is coded by itself.
        write: Make the bytes as well as the errors.
    """
    count = len(stack.tasks)
    steps = np.asarray(steps, dtype=np.float32).astype(np.float64)
    blobs, energy = [b"\0"] * count, stack.energy().cpu().numpy()
    coded = CodedLayer(stack.layer, stack.tasks, blobs, energy, np.zeros(count))
    row_of = {task: i for i, task in enumerate(stack.tasks)}
    ungrouped = set(range(count))
    for group in groups:
        members = [row_of[task] for task in group.members if task in row_of]
        ungrouped -= set(members)
        code_group = _code_klt if group.kind == "klt" else _code_delta
        energy, inverse = coded.energy[members], torch.from_numpy(1 / steps[members])
        part = stack.only(members, inverse.to(stack.a.device))
        found = code_group(part, steps[members], energy, group.number, write)
        coded.residual[members], shared, blobs = found
        if write:
            coded.shared[group.number] = shared
            for row, blob in zip(members, blobs, strict=True):
                coded.blobs[row] = blob
    _code_own(stack, steps, sorted(i for i in ungrouped if steps[i] > 0), coded, write)
    return coded


def _code_own(
    stack: LayerStack, steps: Array, rows: Sequence[int], coded: CodedLayer, write: bool
) -> None:
    """Code some tasks by their own directions; fills ``coded``."""
    unpacked: dict[int, Directions] = {}
    for start in range(0, len(rows), AT_ONCE):
        part = list(rows[start : start + AT_ONCE])
        at = torch.tensor(part)
        changes = canonical(stack.a[at], stack.bt[at], stack.scale[at])
        for row, directions in zip(part, code_changes(*changes, steps[part]), strict=True):
            coded.residual[row] = directions.missed
            if write:
                unpacked[row] = directions
        if len(unpacked) >= PACKED_AT_ONCE:
            _pack(unpacked, coded)
    _pack(unpacked, coded)


def _pack(unpacked: dict[int, Directions], coded: CodedLayer) -> None:
    for row, blob in zip(unpacked, pack_own(list(unpacked.values())), strict=True):
        coded.blobs[row] = blob
    unpacked.clear()


def _code_klt(
    part: LayerStack, steps: Array, energy: Array, number: int, write: bool
) -> CodedGroup:
    rank = max(part.ranks)  # the stack may be padded to a larger one
    a = part.a[:, :rank].contiguous().cpu().numpy()
    bt = part.bt[:, :rank].cpu().numpy() * (part.scale.cpu().numpy() / steps)[:, None, None]
    sides = code_cluster(a, bt)
    missed = _missed_by(a, bt, sides)  # in steps
    if missed.sum() < _FINE * (energy / steps**2).sum():
        sides = code_cluster(a, bt, fine=True)
        missed = _missed_by(a, bt, sides)
    residual = missed * steps**2
    if not write:
        return residual, b"", []
    mixes = zip(sides[0].mix, sides[1].mix, steps.tolist(), strict=True)
    shares = [Share(number, mix_a, mix_b, step, sides[0].fine) for mix_a, mix_b, step in mixes]
    return residual, pack_transform(sides), [pack_share(share) for share in shares]


def _missed_by(a: Array, bt: Array, sides: tuple[SharedSide, SharedSide]) -> Array:
    """``||bt^T a - bt^^T a^||^2`` of the changes (N,) after a transform."""
    missed = np.zeros(len(a))
    for start in range(0, len(a), AT_ONCE):
        part = slice(start, start + AT_ONCE)
        hat_a, hat_bt = (side.factors(side.mix[part]) for side in sides)
        factors = a[part], bt[part].transpose(0, 2, 1), hat_a, hat_bt.transpose(0, 2, 1)
        exact = (torch.from_numpy(np.ascontiguousarray(x)) for x in factors)
        missed[part] = delta_error2(*exact).numpy()
    return missed


def _code_delta(
    part: LayerStack, steps: Array, energy: Array, number: int, write: bool
) -> CodedGroup:
    columns = Columns(**{side: shared_columns(part.rows("delta", side))[0] for side in ("b", "a")})
    cores_and_bits = code_cores(
        part.a,
        part.bt,
        part.scale * part.weight,
        energy / steps**2,
        orthonormal(columns.b),
        orthonormal(columns.a),
        part.ranks,
    )
    cores = [core for core, _ in cores_and_bits]
    residual = np.array([core.missed for core in cores]) * steps**2
    if not write:
        return residual, b"", []
    return residual, pack_columns(columns), pack_cores(number, cores, steps.tolist())
