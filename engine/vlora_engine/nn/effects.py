"""The change that tasks make to one module's output, never as a dense d x d matrix.

Through a shared basis a task is two small matrices: ``x Ca^T La^T Lb Cb`` with the bases Ca
(k_a, d_in) and Cb (k_b, d_out) of the module, and the task's loadings La (r, k_a) and Lb (r, k_b),
its scale folded into Lb. Without one it is ``x A^T B^T``. Several tasks in a batch, or a blend of
tasks per row, differ in the small matrices alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

from vlora_engine.errors import ParameterError
from vlora_engine.nn.host_modules import HostModule


class Basis(Protocol):
    """The shared basis of one module, on its device and in its dtype."""

    a: Tensor  # (k_a, d_in)
    b: Tensor  # (k_b, d_out)


class Effect(Protocol):
    """A change of one module's output."""

    def change(self, host: HostModule, basis: Basis, x: Tensor) -> Tensor:
        """The change (..., d_out) that an input makes, features last."""


@dataclass(frozen=True)
class Shared:
    """One task in the shared basis.

    Args:
        la: (r, k_a); None for the identity: lb then is the core (k_a, k_b) itself.
        lb: (r, k_b), with the scale.
    """

    la: Tensor | None
    lb: Tensor

    @property
    def nbytes(self) -> int:
        elements = self.lb.numel() + (self.la.numel() if self.la is not None else 0)
        return elements * self.lb.element_size()

    def change(self, host: HostModule, basis: Basis, x: Tensor) -> Tensor:
        h = host.into(x, basis.a)  # (..., k_a)
        if self.la is not None:
            h = h @ self.la.T  # (..., r)
        return (h @ self.lb) @ basis.b

    def factors(self, basis: Basis) -> Factors:
        """The task's factors A and B transposed, multiplied out of the basis."""
        a = basis.a if self.la is None else self.la @ basis.a
        return Factors(a, self.lb @ basis.b)

    def whole(self) -> Shared:
        """The same loadings with an explicit la: the identity where there is none."""
        if self.la is not None:
            return self
        k = self.lb.shape[0]
        return Shared(torch.eye(k, dtype=self.lb.dtype, device=self.lb.device), self.lb)

    def pays_off(self, basis: Basis, tokens: int) -> bool:
        """Whether forming A and B first is less work than going through the basis."""
        k = len(basis.a) + len(basis.b)
        rank = len(self.lb)
        return tokens * (k - 2 * rank) > rank * k


@dataclass(frozen=True)
class Factors:
    """One task by itself: ``a`` (r, d_in) and ``bt`` (r, d_out), with the scale in bt."""

    a: Tensor
    bt: Tensor

    @property
    def nbytes(self) -> int:
        return (self.a.numel() + self.bt.numel()) * self.a.element_size()

    def change(self, host: HostModule, basis: Basis, x: Tensor) -> Tensor:
        return host.into(x, self.a) @ self.bt


TaskEffect = Shared | Factors  # what one task does


@dataclass(frozen=True)
class SharedRows:
    """Another task in every row of the batch, in the shared basis.

    Args:
        la: (N, r, k_a), None where lb holds cores (N, k_a, k_b). lb: (N, r, k_b). A row of zeros
            is one without a task.
    """

    la: Tensor | None
    lb: Tensor

    def change(self, host: HostModule, basis: Basis, x: Tensor) -> Tensor:
        h = host.into(x, basis.a)
        rows = by_row(h, len(self.lb), host.name)  # (N, P, k_a)
        if self.la is not None:
            rows = torch.bmm(rows, self.la.mT)  # (N, P, r)
        small = torch.bmm(rows, self.lb)  # (N, P, k_b)
        return small.reshape(*h.shape[:-1], -1) @ basis.b


@dataclass(frozen=True)
class FactorRows:
    """Another task in every row, without a basis: each task once, on the rows that it has.

    Args:
        parts: Rows of the batch and what the task in them does. count: Rows in all.
    """

    parts: Sequence[tuple[Tensor, Factors]]
    count: int

    def change(self, host: HostModule, basis: Basis, x: Tensor) -> Tensor:
        rows = x.reshape(self.count, -1, *x.shape[1:]) if divides(x, self.count, host.name) else x
        made = [(at, part.change(host, basis, rows[at].flatten(0, 1))) for at, part in self.parts]
        first = made[0][1]  # (n P, ..., d_out)
        per_row = x.shape[0] // self.count
        whole = first.new_zeros(self.count, per_row, *first.shape[1:])
        for at, change in made:
            whole[at] = change.reshape(len(at), per_row, *change.shape[1:])
        return whole.flatten(0, 1)


@dataclass(frozen=True)
class Blend:
    """A blend of tasks in every row: all of them at once, each direction weighted.

    Args:
        la, lb: Those of all tasks, one below the other; R = sum r.
        weights: (N, R): what each row gives to each direction.
        shared: Whether they are loadings in the basis, or whole factors.
    """

    la: Tensor  # (R, k_a) or (R, d_in)
    lb: Tensor  # (R, k_b) or (R, d_out)
    weights: Tensor
    shared: bool

    @classmethod
    def of(cls, parts: Sequence[TaskEffect], weights: Tensor) -> Blend:
        """Blend T tasks with the weights (N, T) of the N rows."""
        shared = isinstance(parts[0], Shared)
        pairs = [_pair(part) for part in parts]
        ranks = torch.tensor([len(lb) for _, lb in pairs], device=weights.device)
        spread = torch.repeat_interleave(weights, ranks, dim=1)
        la, lb = (torch.cat(side) for side in zip(*pairs, strict=True))
        return cls(la, lb, spread.to(lb.device, lb.dtype), shared)

    def change(self, host: HostModule, basis: Basis, x: Tensor) -> Tensor:
        if self.shared:
            h = host.into(x, basis.a) @ self.la.T
        else:
            h = host.into(x, self.la)  # (..., R)
        rows = by_row(h, len(self.weights), host.name) * self.weights.unsqueeze(1)
        small = rows.reshape(h.shape) @ self.lb
        return small @ basis.b if self.shared else small


@dataclass(frozen=True)
class Sum:
    """Several effects at once: a batch in which some tasks have the module in the basis only."""

    parts: Sequence[Effect]

    def change(self, host: HostModule, basis: Basis, x: Tensor) -> Tensor:
        total = self.parts[0].change(host, basis, x)
        for part in self.parts[1:]:
            total = total + part.change(host, basis, x)
        return total


def rows_of(tasks: Sequence[TaskEffect | None]) -> Effect | None:
    """The effect of one task (or none) per row of a batch; the same object counts as one task."""
    distinct = {id(task): task for task in tasks if task is not None}
    if not distinct:
        return None
    parts: list[Effect] = []
    shared = [task for task in distinct.values() if isinstance(task, Shared)]
    if shared:
        parts.append(_shared_rows(tasks, shared))
    by_factors = [task for task in distinct.values() if isinstance(task, Factors)]
    if by_factors:
        rows_with = {
            id(task): [i for i, other in enumerate(tasks) if other is task] for task in by_factors
        }
        rows = [(torch.tensor(rows_with[id(t)], device=t.a.device), t) for t in by_factors]
        parts.append(FactorRows(rows, len(tasks)))
    return parts[0] if len(parts) == 1 else Sum(parts)


def blend_of(tasks: Sequence[TaskEffect | None], weights: Tensor) -> Effect | None:
    """The effect of weights (N, T) over T tasks, None for a task that lacks the module."""
    parts: list[Effect] = []
    for kind in (Shared, Factors):
        at = [i for i, task in enumerate(tasks) if isinstance(task, kind)]
        if at:
            having = [task for i in at if (task := tasks[i]) is not None]
            parts.append(Blend.of(having, weights[:, at]))
    if not parts:
        return None
    return parts[0] if len(parts) == 1 else Sum(parts)


def by_row(h: Tensor, count: int, where: str) -> Tensor:
    """(N, P, k) of what an input (N P, ..., k) has per row of the batch."""
    divides(h, count, where)
    return h.reshape(count, -1, h.shape[-1])


def divides(x: Tensor, count: int, where: str) -> bool:
    """True where the first dimension is a multiple of ``count`` rows.

    Raises:
        ParameterError: It does not.
    """
    if x.ndim and x.shape[0] % count == 0 and x.shape[0]:
        return True
    raise ParameterError(
        "The batch does not have the rows that tasks were set for.",
        where=where,
        expected=f"a first dimension that {count} divides",
        found=str(tuple(x.shape)),
        remedy="give set_tasks one task per row of the batch",
    )


def _shared_rows(tasks: Sequence[TaskEffect | None], distinct: Sequence[Shared]) -> SharedRows:
    order = {id(task): i for i, task in enumerate(distinct)}
    none = len(distinct)  # in the stacks below: a task of zeros, for rows without one
    at = torch.tensor([order.get(id(task), none) for task in tasks], device=distinct[0].lb.device)
    pairs = [_pair(task) for task in distinct]
    rank = max(len(lb) for _, lb in pairs)

    def rows(side: int) -> Tensor:
        padded = [pad(pair[side], (0, 0, 0, rank - len(pair[side]))) for pair in pairs]
        return torch.stack([*padded, torch.zeros_like(padded[0])])[at]

    if all(task.la is None for task in distinct):
        return SharedRows(None, rows(1))
    return SharedRows(rows(0), rows(1))


def _pair(part: TaskEffect) -> tuple[Tensor, Tensor]:
    if isinstance(part, Factors):
        return part.a, part.bt
    whole = part.whole()
    assert whole.la is not None  # noqa: S101  (that is what whole means)
    return whole.la, whole.lb
