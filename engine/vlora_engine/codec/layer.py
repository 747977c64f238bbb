"""One module of all tasks through the codec: every task by itself, or in a group that shares."""

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

_FINE = 2e-6  # below this share of the energy a transform in fp16 is felt
AT_ONCE = 32  # changes whose singular directions are in memory at a time
PACKED_AT_ONCE = 128  # changes that are entropy coded together: fewer would take longer


@dataclass(frozen=True)
class Group:
    """Tasks that share on one layer.

    Args:
        number: Of the group in the collection. kind: ``klt`` or ``delta``.
    """

    number: int
    kind: str
    members: tuple[str, ...]


@dataclass
class CodedLayer:
    """One layer, coded.

    Args:
        tasks: Those that have it. blobs: Their bytes (empty where only figures were wanted).
        shared: The bytes of every group by its number.
        energy: (N,) ||dW_i||^2. residual: (N,) what the stored form misses of it.
    """

    name: str
    tasks: list[str]
    blobs: list[bytes]
    shared: dict[int, bytes] = field(default_factory=dict)
    energy: Array = field(default_factory=lambda: np.zeros(0))
    residual: Array = field(default_factory=lambda: np.zeros(0))

    @property
    def nbytes(self) -> int:
        return sum(map(len, self.blobs)) + sum(map(len, self.shared.values()))


def code_layer(
    stack: LayerStack, steps: Array, groups: Sequence[Group] = (), *, write: bool = True
) -> CodedLayer:
    """Code one layer.

    Args:
        steps: (N,) of every task, in units of dW; 0 for one without effect. Rounded to fp32.
        groups: Disjoint; who is in none is coded by itself.
        write: Make the bytes, too, and not the errors alone.
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
    places = {task: i for i, task in enumerate(stack.tasks)}
    alone = set(range(count))
    for group in groups:
        members = [places[task] for task in group.members if task in places]
        alone -= set(members)
        code = _code_klt if group.kind == "klt" else _code_delta
        code(stack, steps, group, members, coded, write)
    _code_own(stack, steps, sorted(i for i in alone if steps[i] > 0), coded, write)
    return coded


def _code_own(
    stack: LayerStack, steps: Array, rows: Sequence[int], coded: CodedLayer, write: bool
) -> None:
    waiting: dict[int, Directions] = {}
    for start in range(0, len(rows), AT_ONCE):
        part = list(rows[start : start + AT_ONCE])
        at = torch.tensor(part)
        changes = canonical(stack.a[at], stack.bt[at], stack.scale[at])
        for row, directions in zip(part, code_changes(*changes, steps[part]), strict=True):
            coded.residual[row] = directions.missed
            if write:
                waiting[row] = directions
        if len(waiting) >= PACKED_AT_ONCE:
            _pack(waiting, coded)
    _pack(waiting, coded)


def _pack(waiting: dict[int, Directions], coded: CodedLayer) -> None:
    for row, blob in zip(waiting, pack_own(list(waiting.values())), strict=True):
        coded.blobs[row] = blob
    waiting.clear()


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
    rank = max(stack.ranks[row] for row in members)  # of the stack: that of others, perhaps
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
    """(N,) what a transform misses of the changes ``bt^T a``."""
    hat_a, hat_bt = (side.factors() for side in sides)
    parts = a, bt.transpose(0, 2, 1), hat_a, hat_bt.transpose(0, 2, 1)
    return delta_error2(*(torch.from_numpy(np.ascontiguousarray(x)) for x in parts)).numpy()


def _code_delta(
    stack: LayerStack,
    steps: Array,
    group: Group,
    members: Sequence[int],
    coded: CodedLayer,
    write: bool,
) -> None:
    at, own_steps = torch.tensor(list(members)), steps[list(members)]
    inverse = torch.from_numpy(1 / own_steps).to(stack.a.device)
    sides = {side: delta_rows(stack, inverse, members, side) for side in ("b", "a")}
    columns = Columns(**{side: shared_columns(rows)[0] for side, rows in sides.items()})
    found = code_cores(
        stack.a[at],
        stack.bt[at],
        stack.scale[at] * inverse,
        coded.energy[list(members)] / own_steps**2,
        orthonormal(columns.b),
        orthonormal(columns.a),
        [stack.ranks[row] for row in members],
    )
    cores = [core for core, _ in found]
    coded.residual[list(members)] = np.array([core.missed for core in cores]) * own_steps**2
    if write:
        coded.shared[group.number] = pack_columns(columns)
        blobs = pack_cores(group.number, cores, own_steps.tolist())
        for row, blob in zip(members, blobs, strict=True):
            coded.blobs[row] = blob


def delta_rows(stack: LayerStack, weight: Tensor, members: Sequence[int], side: str) -> Tensor:
    """Rows whose Gram is the members' energy on one side, ``weight`` (n,) theirs: (n r, d)."""
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
