"""Training a task within a subspace: its loadings learn, the shared bases stay as they are."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from vlora_engine.errors import ParameterError
from vlora_engine.formats.config_fields import acting
from vlora_engine.linalg.low_rank import delta_error2, delta_norm2
from vlora_engine.manifest.manifest import LayerSpec, OwnModule, TaskRecord
from vlora_engine.manifest.records import figure
from vlora_engine.nn.decode import SHARING, Target, flat_factor
from vlora_engine.nn.effects import Basis, Effect, Factors
from vlora_engine.nn.host_modules import HostModule
from vlora_engine.subspace.basis import LayerBasis
from vlora_engine.subspace.loadings import EncodedTask
from vlora_engine.subspace.space import Space, require_new
from vlora_engine.subspace.tasks import TaskProjection, decode_projection

_SIDES = ("a", "b")


def orthogonal_init(
    subspace: Space,
    task_id: str,
    scale: float = 0.01,
    *,
    rank: int | None = None,
    seed: int = 0,
    replace: bool = False,
) -> TaskProjection:
    """A new task of no effect yet, registered in the subspace, for a trainer to start from.

    The rows of its A-side loadings are orthogonal and their numbers of size ``scale``; its B side
    is zero, so that dW is (with `flat`, whose factors have means, the task starts as the means).
    Scales and config are those that most tasks of the subspace have.

    Args:
        rank: Of every module, at most min(k_a, k_b); by default as much of the modules' own.
        seed: Of the random directions.
        replace: A task of that name makes way.

    Raises:
        ParameterError: There is such a task, and not ``replace``; or a number out of range.
    """
    require_new(subspace.tasks, task_id, replace=replace)
    if rank is not None and rank < 1:
        raise ParameterError("A rank is at least 1.", found=str(rank))
    loadings_a, loadings_b = {}, {}
    of_basis = subspace.in_basis()
    for spec in of_basis.layers:
        generator = _generator(seed, spec.name, "init")
        if subspace.method == "flat":
            loadings_a[spec.name] = scale * torch.randn(spec.k_a, generator=generator)
            loadings_b[spec.name] = torch.zeros(spec.k_b)
        else:
            own_rank = max(1, min(rank or spec.rank, spec.k_a, spec.k_b))
            rows = torch.randn(own_rank, spec.k_a, generator=generator)
            loadings_a[spec.name] = scale * _orthogonal(rows) * max(1, spec.k_a) ** 0.5
            loadings_b[spec.name] = torch.zeros(own_rank, spec.k_b)
    projection = TaskProjection(
        task_id=task_id,
        loadings_a=loadings_a,
        loadings_b=loadings_b,
        scales=_usual_scales(of_basis),
        config=_usual_config(of_basis),
    )
    subspace.add_task(projection, replace=replace)
    return projection


class SubspaceTrainer:
    """The loadings of one task as parameters, and an optimizer for them.

    With `VLoRAModel.train_task` a model computes with them. Any loop will do: `step` is the
    shortest; `optimizer`, a schedule and accumulation work as with other parameters.

    Args:
        task_id: A task of the subspace: from `orthogonal_init`, or one to be trained further.
        num_expand: Extra directions a side, orthogonal to the basis, that belong to this task
            alone: bases and other tasks stay byte for byte. What was trained with them is written
            back as whole factors of the task.
        seed: Of the extra directions.

    Attributes:
        params: ``{module}.loadings_a`` (r, k_a + num_expand) and ``{module}.loadings_b``; of
            `flat` without r. In fp32.
        scales: Per module the scale in front of B @ A.

    Raises:
        UnknownTaskError: There is no such task.
        ParameterError: Not one module of the task is in the basis, or a number out of range.
    """

    def __init__(
        self,
        subspace: Space,
        task_id: str,
        lr: float = 1e-3,
        num_expand: int = 0,
        optimizer_cls: type[torch.optim.Optimizer] = torch.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
        *,
        seed: int = 0,
    ) -> None:
        self.subspace, self.task_id = subspace, task_id
        self.num_expand, self.seed = num_expand, seed
        self._space = subspace.in_basis()
        self.params = trainable_params(self._space, task_id, num_expand, seed=seed)
        self.scales = dict(self._space.tasks.decoded(task_id).scales)
        self._specs = {spec.name: spec for spec in self._space.layers}
        self._step_count = 0
        settings: dict[str, Any] = {**(optimizer_kwargs or {}), "lr": lr}
        self.optimizer = optimizer_cls(list(self.params.values()), **settings)
        subspace.tasks.in_training[task_id] = self

    def __repr__(self) -> str:
        return (
            f"SubspaceTrainer(task={self.task_id!r}, params={self.num_trainable_params}, "
            f"steps={self.step_count})"
        )

    @property
    def num_trainable_params(self) -> int:
        """Numbers that learn."""
        return sum(parameter.numel() for parameter in self.params.values())

    @property
    def step_count(self) -> int:
        """Steps of the optimizer so far."""
        return self._step_count

    def step(self, loss: Tensor) -> float:
        """One step of the optimizer on a loss; returns it as a number.

        Raises:
            ParameterError: The loss does not depend on the parameters; nothing was changed.
        """
        if not loss.requires_grad:
            raise self._untrained()
        self.optimizer.zero_grad()
        loss.backward()
        if all(parameter.grad is None for parameter in self.params.values()):
            raise self._untrained()
        self.optimizer.step()
        self.count_step()
        return float(loss.detach())

    def count_step(self) -> None:
        """Count a step that the caller made with an optimizer of its own."""
        self._step_count += 1

    def write_back(self) -> None:
        """Make what was learned the task's loadings in the subspace, as it stores them.

        The task's error then says what storing costs (zero in fp32, without expansion's need).
        """
        subspace, old = self._space, self._space.tasks.record(self.task_id)
        task = subspace.tasks.decoded(self.task_id)
        values = {name: parameter.detach().cpu().float() for name, parameter in self.params.items()}
        trained = {name: self._factors(name, values) for name in self._modules()}
        outside, record = dict(task.own), replace(old, digest="", source=None, measured=True)
        loadings: dict[str, Any] = {"loadings_a": {}, "loadings_b": {}}
        for name in self._modules():
            if self.num_expand:
                outside[name] = trained[name].a, trained[name].bt.T.contiguous()
            else:
                for side in _SIDES:
                    loadings[f"loadings_{side}"][name] = values[f"{name}.loadings_{side}"]
        if self.num_expand:
            record = _all_outside(record, outside, task.scales, self._specs)
        projection = replace(task, **loadings, own=outside, record=record, encoded=None)
        record, encoded = subspace.tasks._encode(projection)
        subspace.tasks.put(*self._measured(record, encoded, trained))
        self.subspace.tasks.in_training[self.task_id] = self

    def state_dict(self) -> dict[str, Any]:
        """The parameters, the optimizer's state and the settings, for `load_state_dict`."""
        return {
            "task_id": self.task_id,
            "num_expand": self.num_expand,
            "seed": self.seed,
            "step_count": self.step_count,
            "params": {name: p.detach().cpu().clone() for name, p in self.params.items()},
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the state of a trainer of the same task, to go on from there.

        Raises:
            ParameterError: It was of another task, another expansion, or other shapes.
        """
        ours = {name: tuple(p.shape) for name, p in self.params.items()}
        theirs = {name: tuple(p.shape) for name, p in state["params"].items()}
        for what, mine, stated in (
            ("task", self.task_id, state["task_id"]),
            ("num_expand", self.num_expand, state["num_expand"]),
            ("seed", self.seed, state["seed"]),
            ("shapes", ours, theirs),
        ):
            if mine != stated:
                raise ParameterError(
                    f"The state is of a trainer with another {what}.",
                    where=self.task_id,
                    expected=str(mine)[:200],
                    found=str(stated)[:200],
                )
        with torch.no_grad():
            for name, parameter in self.params.items():
                parameter.copy_(state["params"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self._step_count = int(state["step_count"])

    # what a model asks

    def rank_of(self, module: str) -> int | None:
        """The rank of a module that is trained; None of any other."""
        if f"{module}.loadings_a" not in self.params:
            return None
        if self._space.method == "flat":
            return self._specs[module].rank
        return len(self.params[f"{module}.loadings_a"])

    def effect(self, module: str, scale: float, target: Target) -> Effect:
        """The effect of the parameters on a module that computes at ``target``, with gradients."""
        la, lb = (self.params[f"{module}.loadings_{side}"] for side in _SIDES)
        basis = self._basis(module)
        if self._space.method == "flat":
            whole = self._widened(module, basis).moved(target[0])
            return _TrainedFlat(la, lb, scale, whole, target)
        extra = [self._extra(side, basis).to(*target) for side in _SIDES]
        # The model's hooks hold the bases, but of a coded collection.
        own_basis = None if self.subspace.method in SHARING else basis.moved(*target)
        return _Trained(la, lb, scale, extra[0], extra[1], own_basis)

    def to(self, device: torch.device | str) -> SubspaceTrainer:
        """Move the parameters, their gradients and the optimizer's state in place."""
        for parameter in self.params.values():
            parameter.data = parameter.data.to(device)
            if parameter.grad is not None:
                parameter.grad = parameter.grad.to(device)
        if self.optimizer.state:
            self.optimizer.load_state_dict(self.optimizer.state_dict())
        return self

    def _untrained(self) -> ParameterError:
        self.subspace.tasks.in_training[self.task_id] = self  # so that the advice works
        return ParameterError(
            "The loss does not depend on the loadings: none of them received a gradient.",
            where=self.task_id,
            expected="a loss of a VLoRAModel on this subspace that computes with the task",
            remedy=f"call model.set_task({self.task_id!r}) before the model's forward, or compute "
            "the loss within model.train_task(trainer), with gradients on",
        )

    def _modules(self) -> list[str]:
        return [n.removesuffix(".loadings_a") for n in self.params if n.endswith(".loadings_a")]

    def _basis(self, module: str) -> LayerBasis:
        return self._space.bases.numbers(module).moved("cpu", torch.float32)

    def _extra(self, side: str, basis: LayerBasis) -> Tensor:
        return extra_directions(basis, side, self.num_expand, seed=self.seed)

    def _widened(self, module: str, basis: LayerBasis) -> LayerBasis:
        """The basis with the extra directions of this task."""
        a, b = (torch.cat([basis.side(side), self._extra(side, basis)]) for side in _SIDES)
        return replace(basis, a=a, b=b)

    def _factors(self, module: str, values: Mapping[str, Tensor]) -> Factors:
        """A (r, d_in) and B transposed (r, d_out), without the scale."""
        basis = self._widened(module, self._basis(module))
        la, lb = (values[f"{module}.loadings_{side}"] for side in _SIDES)
        if self._space.method == "flat":
            rank = basis.rank
            return Factors(flat_factor(basis, "a", la, rank), flat_factor(basis, "b", lb, rank))
        return Factors(la @ basis.a, lb @ basis.b)

    def _measured(
        self, record: TaskRecord, encoded: EncodedTask, trained: Mapping[str, Factors]
    ) -> tuple[TaskRecord, EncodedTask]:
        """With the norm of what was learned, and what storing loses of it."""
        subspace = self._space
        stored = decode_projection(subspace.storage, subspace.layers, record, encoded)
        norms, losses = [], []
        total = lost = 0.0
        for name, scale in stored.scales.items():
            wanted = trained.get(name)
            if name in stored.own:
                a, b = stored.own[name]
                norm2, loss2 = float(delta_norm2(a, b)) * scale**2, 0.0
            else:
                assert wanted is not None  # noqa: S101  (what is in the basis was trained)
                values = {
                    f"{name}.loadings_{side}": getattr(stored, f"loadings_{side}")[name]
                    for side in _SIDES
                }
                as_stored = self._factors(name, values)
                norm2 = float(delta_norm2(wanted.a, wanted.bt.T)) * scale**2
                loss2 = (
                    float(delta_error2(wanted.a, wanted.bt.T, as_stored.a, as_stored.bt.T))
                    * scale**2
                )
                norms.append(norm2**0.5)
                losses.append((loss2 / norm2) ** 0.5 if norm2 else 0.0)
            total, lost = total + norm2, lost + loss2
        encoded = replace(encoded, norms=torch.tensor(norms), errors=torch.tensor(losses))
        error = (lost / total) ** 0.5 if total else 0.0
        record = replace(
            record,
            norm=figure(total**0.5),
            error=figure(error),
            factor_elements=record.factor_elements
            or sum(factors.a.numel() + factors.bt.numel() for factors in trained.values()),
        )
        return record, encoded


@dataclass(frozen=True)
class _Trained:
    """Loadings that learn, in the basis and in extra directions of the task."""

    la: Tensor
    lb: Tensor
    scale: float
    extra_a: Tensor  # (num_expand, d_in)
    extra_b: Tensor
    basis: Basis | None = None  # instead of the one that the hook has

    def change(self, host: HostModule, basis: Basis, x: Tensor) -> Tensor:
        basis = self.basis or basis
        a = self._rows(self.la, basis.a, self.extra_a)
        bt = self._rows(self.lb * self.scale, basis.b, self.extra_b)
        return host.into(x, a) @ bt

    @staticmethod
    def _rows(loadings: Tensor, shared: Tensor, extra: Tensor) -> Tensor:
        moved = loadings.to(shared.device, shared.dtype)
        if not len(extra):
            return moved @ shared
        return moved[:, : len(shared)] @ shared + moved[:, len(shared) :] @ extra


@dataclass(frozen=True)
class _TrainedFlat:
    """Loadings of `flat` that learn."""

    la: Tensor
    lb: Tensor
    scale: float
    basis: LayerBasis
    target: Target

    def change(self, host: HostModule, basis: Basis, x: Tensor) -> Tensor:
        rank, (device, dtype) = self.basis.rank, self.target
        a = flat_factor(self.basis, "a", self.la.to(device), rank).to(dtype)
        bt = flat_factor(self.basis, "b", self.lb.to(device), rank) * self.scale
        return host.into(x, a) @ bt.to(dtype)


def trainable_params(
    subspace: Space, task_id: str, num_expand: int = 0, *, seed: int = 0
) -> dict[str, nn.Parameter]:
    """The loadings of a task as parameters by module and side, padded for extra directions.

    Raises:
        ParameterError: No module of the task is in the basis, or ``num_expand`` is negative.
    """
    subspace = subspace.in_basis()
    if num_expand < 0:
        raise ParameterError("num_expand is not negative.", found=str(num_expand))
    task = subspace.tasks.decoded(task_id)
    if not task.loadings_a:
        raise ParameterError(
            f"No module of task {task_id!r} is in the basis: there are no loadings to train.",
            remedy="absorb the task's adapter into the subspace first",
        )
    params: dict[str, nn.Parameter] = {}
    for name in task.loadings_a:
        basis = subspace.bases.numbers(name)
        sides = {"a": task.loadings_a[name].cpu().clone(), "b": task.loadings_b[name].cpu().clone()}
        if subspace.method != "flat":
            _revive(sides["a"], sides["b"], _generator(seed, name, "revive"))
        for side, loadings in sides.items():
            extra = len(extra_directions(basis, side, num_expand, seed=seed))
            wide = torch.nn.functional.pad(loadings.float(), (0, extra))
            params[f"{name}.loadings_{side}"] = nn.Parameter(wide)
    return params


def extra_directions(basis: LayerBasis, side: str, count: int, *, seed: int = 0) -> Tensor:
    """Up to ``count`` directions (n, d) orthogonal to a module's basis, always the same."""
    rows = basis.side(side).double().cpu()
    room = min(count, rows.shape[1] - len(rows))
    if room <= 0:
        return torch.zeros(0, rows.shape[1])
    new = torch.randn(
        room, rows.shape[1], generator=_generator(seed, basis.name, side), dtype=torch.float64
    )
    frame = torch.linalg.qr(rows.T).Q
    for _ in range(2):  # once more: the first time leaves rounding of the size of the whole
        new = new - (new @ frame) @ frame.T
        new = torch.linalg.qr(new.T).Q.T
    return new.float()


def _revive(la: Tensor, lb: Tensor, generator: torch.Generator) -> None:
    """Rows that are zero on both sides would never get a gradient; dW stays as it is.

    A core that is stored as one comes back without the A side that `orthogonal_init` gave it.
    """
    dead = (la == 0).all(1) & (lb == 0).all(1)
    if dead.any():
        size = 0.01 * la.shape[1] ** 0.5
        rows = torch.randn(la.shape, generator=generator)
        la[dead] = size * _orthogonal(rows)[dead]


def _orthogonal(rows: Tensor) -> Tensor:
    """Orthonormal rows (or columns, where there are more rows) that span the same."""
    if rows.shape[0] > rows.shape[1]:
        tall: Tensor = torch.linalg.qr(rows).Q
        return tall
    wide: Tensor = torch.linalg.qr(rows.T).Q.T
    return wide


def _generator(seed: int, *names: str) -> torch.Generator:
    return torch.Generator().manual_seed(zlib.crc32(repr((seed, *names)).encode()))


def _usual_scales(subspace: Space) -> dict[str, float]:
    """Per module the scale that most tasks have; 1 where none has the module."""
    seen: dict[int, Counter[float]] = {}
    for record in subspace.tasks.records():
        for index, scale in zip(record.layers, record.scales, strict=True):
            seen.setdefault(index, Counter())[scale] += 1
    return {
        spec.name: seen[i].most_common(1)[0][0] if i in seen else 1.0
        for i, spec in enumerate(subspace.layers)
    }


def _usual_config(subspace: Space) -> dict[str, Any]:
    """The config of the first task, without what belongs to that one alone."""
    records = subspace.tasks.records()
    if not records:
        return {}
    config = {k: v for k, v in records[0].config.items() if k not in acting(records[0].config)}
    return {**config, "modules_to_save": None, "bias": "none", "inference_mode": True}


def _all_outside(
    record: TaskRecord,
    outside: Mapping[str, tuple[Tensor, Tensor]],
    scales: Mapping[str, float],
    specs: Mapping[str, LayerSpec],
) -> TaskRecord:
    """The record of a task whose modules are all its own."""
    specs_outside = {o.name: o for o in record.own}
    modules = []
    for name in sorted(outside):
        spec = specs.get(name)
        if name not in specs_outside and spec is not None:
            specs_outside[name] = OwnModule(name, scales[name], spec.kind, spec.tail_a)
        modules.append(specs_outside[name])
    return replace(record, layers=(), ranks=(), scales=(), dtypes=(), own=tuple(modules))
