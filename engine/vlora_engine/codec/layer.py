"""Code one module of all tasks: each task by itself, or in a group that shares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

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
        shared: The bytes of every group by its number.
        energy: (N,) ||dW_i||^2.
        residual: (N,) ||dW_i - dW^_i||^2 of the stored form.
    """

    name: str
    tasks: list[str]
    blobs: list[bytes]
    shared: dict[int, bytes] = field(default_factory=dict)
    energy: Array = field(default_factory=lambda: np.zeros(0))
    residual: Array = field(default_factory=lambda: np.zeros(0))

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
    coded = CodedLayer(
        stack.layer,
        stack.tasks,
        [b"\0"] * count,
        energy=stack.energy().cpu().numpy(),
        residual=np.zeros(count),
    )
    row_of = {task: i for i, task in enumerate(stack.tasks)}
    ungrouped = set(range(count))
    for group in groups:
        members = [row_of[task] for task in group.members if task in row_of]
        ungrouped -= set(members)
        code_group = _code_klt if group.kind == "klt" else _code_delta
        code_group(stack, steps, group, members, coded, write)
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
    stack: LayerStack,
    steps: Array,
    group: Group,
    members: Sequence[int],
    coded: CodedLayer,
    write: bool,
) -> None:
    at = torch.tensor(members)
    scale = stack.scale[at].cpu().numpy()
    rank = max(stack.ranks[row] for row in members)  # the stack may be padded to a larger one
    a = stack.a[at, :rank].cpu().numpy()
    bt = stack.bt[at, :rank].cpu().numpy() * (scale / steps[members])[:, None, None]
    sides = code_cluster(a, bt)
    missed = _missed_by(a, bt, sides)  # in steps
    if missed.sum() < _FINE * (coded.energy[members] / steps[members] ** 2).sum():
        sides = code_cluster(a, bt, fine=True)
        missed = _missed_by(a, bt, sides)
    coded.residual[members] = missed * steps[members] ** 2
    if write:
        coded.shared[group.number] = pack_transform(sides)
        for i, row in enumerate(members):
            mix_a, mix_b = (side.mix[i] for side in sides)
            share = Share(group.number, mix_a, mix_b, float(steps[row]), sides[0].fine)
            coded.blobs[row] = pack_share(share)


def _missed_by(a: Array, bt: Array, sides: tuple[SharedSide, SharedSide]) -> Array:
    """``||bt^T a - bt^^T a^||^2`` of the changes (N,) after a transform."""
    hat_a, hat_bt = (side.factors() for side in sides)
    factors = a, bt.transpose(0, 2, 1), hat_a, hat_bt.transpose(0, 2, 1)
    return delta_error2(*(torch.from_numpy(np.ascontiguousarray(x)) for x in factors)).numpy()


def _code_delta(
    stack: LayerStack,
    steps: Array,
    group: Group,
    members: Sequence[int],
    coded: CodedLayer,
    write: bool,
) -> None:
    at, member_steps = torch.tensor(list(members)), steps[list(members)]
    inverse = torch.from_numpy(1 / member_steps).to(stack.a.device)
    sides = {side: delta_rows(stack, inverse, members, side) for side in ("b", "a")}
    columns = Columns(**{side: shared_columns(rows)[0] for side, rows in sides.items()})
    cores_and_bits = code_cores(
        stack.a[at],
        stack.bt[at],
        stack.scale[at] * inverse,
        coded.energy[list(members)] / member_steps**2,
        orthonormal(columns.b),
        orthonormal(columns.a),
        [stack.ranks[row] for row in members],
    )
    cores = [core for core, _ in cores_and_bits]
    coded.residual[list(members)] = np.array([core.missed for core in cores]) * member_steps**2
    if write:
        coded.shared[group.number] = pack_columns(columns)
        blobs = pack_cores(group.number, cores, member_steps.tolist())
        for row, blob in zip(members, blobs, strict=True):
            coded.blobs[row] = blob


def delta_rows(stack: LayerStack, weight: Tensor, members: Sequence[int], side: str) -> Tensor:
    """The row matrix (n r, d) whose Gram is the members' weighted energy on one side.

    Args:
        stack: The layer's factors.
        weight: (n,) of the members.
        members: Rows of the stack.
        side: ``a`` or ``b``.
    """
    at = torch.tensor(list(members))
    part = LayerStack(
        stack.layer,
        [stack.tasks[i] for i in members],
        [stack.ranks[i] for i in members],
        stack.a[at],
        stack.bt[at],
        stack.scale[at],
        weight,
    )
    return part.rows("delta", side)
