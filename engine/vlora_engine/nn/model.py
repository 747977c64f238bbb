"""`VLoRAModel`: a base model with the tasks of a subspace, switched from its compressed form.

The name and call forms are those of the field's first library. What differs: the scale is each
task's own, hooks are registered once, nothing of d x d is formed at inference, and what does not
fit is said instead of left out.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vlora_engine.codec.compiled import loader
from vlora_engine.compression_target import CODED_METHODS
from vlora_engine.errors import ModelStateError, ParameterError, UnsupportedAdapterError
from vlora_engine.formats.config import find_variant, variant_error
from vlora_engine.formats.config_fields import unread
from vlora_engine.nn.decode import CACHE_BYTES, DecodedTask, Scaling, TaskCache, decode, factors_of
from vlora_engine.nn.effects import Effect, TaskEffect, blend_of, rows_of
from vlora_engine.nn.extra_tensors import TensorSwap
from vlora_engine.nn.hooks import LoRAHooks
from vlora_engine.nn.weights import Merged, require_mergeable
from vlora_engine.subspace.space import Space

if TYPE_CHECKING:
    from vlora_engine.nn.training import SubspaceTrainer


class VLoRAModel(nn.Module):
    """A base model and the tasks of a subspace, one in force at a time, or one per row of a batch.

    With methods `delta` and `columns` the shared bases stay on the modules and a switch replaces
    only the small loadings; with `flat`, `own` and `auto` a task's factors are decoded, and those
    used last are kept. Not thread-safe: one thread switches and runs.

    Args:
        base_model: Any torch model whose module names are those that the adapters were trained
            under. It is wrapped, not copied; `detach` gives it back.
        scaling: One scale for all modules, instead of each module's own.
        lora_alpha: An alpha for all modules, divided as PEFT would: by the module's rank, or its
            root where the task says rsLoRA.
        compute_dtype: What the low-rank part is computed in; by default each module's dtype.
        cache_bytes: How many bytes of decoded tasks are kept.

    Raises:
        SubspaceError: No module of the subspace is in the model.
        CollectionError: A module has another shape. UnsupportedAdapterError: Or is of a kind to
            which nothing can be added.
    """

    def __init__(
        self,
        base_model: nn.Module,
        subspace: Space,
        scaling: float | None = None,
        lora_alpha: float | None = None,
        compute_dtype: torch.dtype | None = None,
        *,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        super().__init__()
        self.base_model = base_model
        self.subspace = subspace
        self.compute_dtype = compute_dtype
        self._scaling = Scaling(scaling, lora_alpha)
        self._cache = TaskCache(cache_bytes)
        self._tensor_swap = TensorSwap(base_model)
        self._rows: list[str | None] | None = None  # of the task, or the tasks, in force
        self._again: Callable[[], None] | None = None  # puts them in force once more
        self._trainer: SubspaceTrainer | None = None  # whose parameters are in force
        self._records: list[Any] = []
        self._merged: Merged | None = None
        self._hooks = LoRAHooks(base_model, subspace, compute_dtype, self._follow_again)
        if subspace.method in CODED_METHODS:
            loader.load()  # now, so that no switch waits for it

    @property
    def scaling(self) -> float | None:
        """The scale that was given for all modules, or that an alpha comes to at the subspace's
        rank; None: each module has its own.
        """
        if self._scaling.fixed is None and self._scaling.alpha is not None:
            return self._scaling.alpha / max(1, self.subspace.rank)
        return self._scaling.fixed

    @property
    def unmatched(self) -> list[str]:
        """Modules of the subspace that the model lacks; nothing is done for them."""
        return sorted(self._hooks.unmatched)

    # tasks

    @property
    def available_tasks(self) -> list[str]:
        """The ids of all tasks, sorted."""
        return sorted(self.subspace.tasks)

    @property
    def active_task(self) -> str | None:
        """The task in force (or merged); None without one, and where rows have several."""
        rows = self._rows
        return rows[0] if rows is not None and len(rows) == 1 else None

    @property
    def active_tasks(self) -> list[str | None]:
        """What `set_tasks` was given; one task after `set_task`; empty without any."""
        return list(self._rows or [])

    def set_task(self, task_id: str) -> None:
        """Put one task in force for every input.

        From when a `SubspaceTrainer` of the task is made until `train_task` ends, or another task
        of that name is put in its place, the model computes with the trainer's parameters, so that
        a loss has their gradients. `train_task` freezes the base's meanwhile, too.

        Raises:
            UnknownTaskError: There is no such task. ModelStateError: The model is merged.
            CollectionError, UnsupportedAdapterError: The task does not fit the model, or is no
            plain LoRA; the one before stays in force.
        """
        self._require_unmerged("switch tasks")
        record = self.subspace.tasks.record(task_id)
        if self._rows == [task_id] and self._records and self._records[0] is record:
            self._follow_training()
            return
        self._put([task_id], partial(self._put_task, task_id))

    def set_tasks(self, task_ids: Sequence[str | None]) -> None:
        """Put one task (or None) in force per row of the batch.

        All rows go through the shared bases together. The first dimension of what a module gets
        must be a multiple of the rows, each row's part in one piece: (B, S, d), (B, d), or
        (B * S, d) flattened. Modules that see tokens in another order (experts of a mixture) are
        outside that.

        Raises:
            ParameterError: No rows; or a task brings a head or an embedding of its own, which a
                batch cannot have several of. Else as `set_task`.
        """
        self._require_unmerged("switch tasks")
        if isinstance(task_ids, str) or not task_ids:
            raise ParameterError(
                "set_tasks takes one task id, or None, per row.", found=repr(task_ids)
            )
        rows = list(task_ids)
        self._put(rows, partial(self._put_rows, rows))

    def set_blend(
        self, weights: Tensor | Sequence[Any], task_ids: Sequence[str] | None = None
    ) -> None:
        """Put a blend of tasks in force: dW is the weighted sum of theirs, exactly.

        Args:
            weights: (T,) for every input, or (B, T), a blend of its own per row of the batch.
                Gradients flow back to them.
            task_ids: The T tasks; by default all, sorted.

        Raises:
            ParameterError: Another number of weights than of tasks. Else as `set_tasks`.
        """
        self._require_unmerged("switch tasks")
        names = list(task_ids) if task_ids is not None else self.available_tasks
        table = torch.as_tensor(weights)
        table = table.unsqueeze(0) if table.ndim == 1 else table
        if table.ndim != 2 or table.shape[1] != len(names) or not table.numel():
            raise ParameterError(
                "A blend has one weight per task.",
                expected=f"(rows, {len(names)})",
                found=str(tuple(torch.as_tensor(weights).shape)),
            )
        self._put(None, partial(self._put_blend, names, table))

    def clear_task(self) -> None:
        """Back to the base model."""
        self._require_unmerged("clear the task")
        self._clear()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The base model's forward, with what is in force."""
        self._follow_training()
        return self.base_model(*args, **kwargs)

    # weights

    @property
    def is_merged(self) -> bool:
        """Whether a task is in the base model's weights."""
        return self._merged is not None

    def merge(self, task_id: str | None = None) -> None:
        """Add a task's dW to the weights; the original weights are kept aside for `unmerge`.

        Args:
            task_id: By default the task in force.

        Raises:
            ModelStateError: Merged already, quantized weights, or a weight that several modules
                share. ParameterError: No task is named or in force.
        """
        self._require_unmerged("merge once more")
        name = task_id if task_id is not None else self.active_task
        if name is None:
            raise ParameterError(
                "No task to merge.", remedy="name one, or put one in force with set_task"
            )
        task = self._decoded_task(name)
        hosts = {module: hook.host for module, hook in self._hooks.items()}
        require_mergeable(self.base_model, [hosts[m] for m in task.effects])
        pairs = self._tensor_swap.pairs_for(name, task.rest)
        self._clear()
        self._tensor_swap.swap_in(pairs)
        self._merged = Merged(name)
        self._merged.add(hosts, factors_of(self.subspace, name, self._scaling))
        self._rows = [name]

    def unmerge(self) -> None:
        """The weights as they were, bit for bit; no task is in force.

        Raises:
            ModelStateError: The model is not merged.
        """
        if self._merged is None:
            raise ModelStateError("The model is not merged: there is nothing to undo.")
        self._merged.undo()
        self._merged = None
        self._clear()

    def reconstruct_state_dict(self, task_id: str) -> dict[str, Tensor]:
        """Per module the dense dW (d_out, d_in) of a task in fp32, its scale in it.

        Raises:
            NotFoundError: There is no such task.
        """
        found = factors_of(self.subspace, task_id, self._scaling)
        return {name: factors.bt.T @ factors.a for name, factors in found}

    # training

    @contextmanager
    def train_task(self, trainer: SubspaceTrainer) -> Iterator[VLoRAModel]:
        """Within, the model computes with the trainer's parameters and gradients reach them alone.

        The base's parameters take no gradient meanwhile. Afterwards no task is in force.

            with model.train_task(trainer):
                for batch in batches:
                    trainer.step(model(**batch).loss)
            trainer.write_back()

        Raises:
            ParameterError: The trainer is of another subspace. Else as `set_task`.
        """
        frozen = self.begin_training(trainer)
        try:
            yield self
        finally:
            self.end_training(frozen)

    def begin_training(self, trainer: SubspaceTrainer) -> list[nn.Parameter]:
        """`train_task` without a block; returns the frozen parameters for `end_training`."""
        self._require_unmerged("train")
        if trainer.subspace is not self.subspace:
            raise ParameterError("The trainer belongs to another subspace than the model.")
        self.subspace.tasks.in_training[trainer.task_id] = trainer
        self.set_task(trainer.task_id)
        ours = {id(parameter) for parameter in trainer.params.values()}
        frozen = [p for p in self.parameters() if p.requires_grad and id(p) not in ours]
        for parameter in frozen:
            parameter.requires_grad_(False)
        return frozen

    def end_training(self, frozen: Sequence[nn.Parameter]) -> None:
        """End training: the base's parameters take gradients again, no task is in force."""
        for parameter in frozen:
            parameter.requires_grad_(True)
        if self._trainer is not None:
            self.subspace.tasks.in_training.pop(self._trainer.task_id, None)
        self._clear()

    # the model as such

    @property
    def qlora_info(self) -> dict[str, Any]:
        """Count the quantized modules among those that the subspace has.

        ``quantized``, ``method`` (``nf4``, ``fp4``, ``int8``, or the type of module; None),
        ``num_quantized_layers``, ``num_target_layers``.
        """
        packed = Counter(s.host.quantized for s in self._hooks.values() if s.host.quantized)
        return {
            "quantized": bool(packed),
            "method": packed.most_common(1)[0][0] if packed else None,
            "num_quantized_layers": packed.total(),
            "num_target_layers": len(self._hooks),
        }

    def compile(self, *args: Any, **kwargs: Any) -> VLoRAModel:  # type: ignore[override]
        """``torch.compile`` the base model in place, names and hooks kept; returns itself."""
        self.base_model.compile(*args, **kwargs)
        return self

    def detach(self) -> nn.Module:
        """Take all hooks off; returns the base model as it was."""
        if self.is_merged:
            self.unmerge()
        self._clear()
        self._hooks.remove()
        return self.base_model

    def __repr__(self) -> str:
        state = "merged" if self.is_merged else "active"
        if self._again is not None and self.active_task is None:
            shown = "blend" if self._rows is None else f"{len(self._rows)} rows"
        else:
            shown = repr(self.active_task)
        return (
            f"VLoRAModel(tasks={len(self.subspace.tasks)}, {state}={shown}, "
            f"layers={len(self._hooks)}, method={self.subspace.method!r})"
        )

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            modules = self.__dict__.get("_modules", {})
            if "base_model" not in modules:
                raise
            return getattr(modules["base_model"], name)

    def _apply(self, fn: Any, recurse: bool = True) -> VLoRAModel:
        """Called by ``to``, ``half``, ``cuda``: what is kept aside and in force moves along."""
        self._tensor_swap.swap_back()
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self._merged is not None:
            self._merged.move(fn)
        self._follow(again=True)
        return self

    # how it is done

    def _follow_again(self) -> None:
        self._follow(again=False)

    def _follow(self, *, again: bool) -> None:
        """Follow the base model to where it is; what was in force is put in force there."""
        moved = self._hooks.follow()
        if moved:
            self._cache.clear()
        if self._merged is not None:
            name = self._merged.task_id
            self._tensor_swap.swap_in(
                self._tensor_swap.pairs_for(name, self._decoded_task(name).rest)
            )
        elif self._again is not None and (again or moved):
            self._again()

    @torch.inference_mode(False)
    def _decoded_task(self, task_id: str) -> DecodedTask:
        """A task decoded for this model, from the cache where it is there."""
        record = self.subspace.tasks.record(task_id)
        task = self._cache.get(task_id, record)
        if task is None:
            variant = find_variant(record.config)
            if variant is not None:
                raise variant_error(variant, variant.field, task_id)
            _refuse_unread(record.config, task_id)
            self._hooks.add_missing(record.own)
            with torch.no_grad():
                task = decode(self.subspace, task_id, self._scaling, self._hooks.target)
            self._check_outside(task_id, task)
            self._cache.put(task_id, task)
        return task

    def _check_outside(self, task_id: str, task: DecodedTask) -> None:
        for module in task.record.own:
            effect: Any = task.effects.get(module.name)
            if effect is not None:
                d_in, d_out = effect.a.shape[1], effect.bt.shape[1]
                host = self._hooks[module.name].host
                host.check(f"task {task_id!r}", module.kind, d_in, d_out, module.tail_a)

    def _put(self, rows: list[str | None] | None, again: Callable[[], None]) -> None:
        """Put something in force; where it cannot be, what was there stays."""
        again()
        self._rows, self._again = rows, again
        names = [name for name in dict.fromkeys(rows or []) if name is not None]
        self._records = [self.subspace.tasks.record(name) for name in names]

    def _follow_training(self) -> None:
        """Compute with the trainer of the task in force, if one has come, or gone, since."""
        name = self.active_task
        if name is None or self._merged is not None or self._again is None:
            return
        trainer = self.subspace.tasks.in_training.get(name)
        if trainer is not self._trainer:
            self._again()

    def _put_task(self, task_id: str) -> None:
        self._trainer = self.subspace.tasks.in_training.get(task_id)
        if self._trainer is not None:
            self._put_training(self._trainer)
            return
        task = self._decoded_task(task_id)
        self._swap_tensors([(task_id, task)], several=False)
        self._hooks.fill(task.effects.get)

    def _put_rows(self, rows: Sequence[str | None]) -> None:
        names = dict.fromkeys(name for name in rows if name is not None)
        tasks = {name: self._decoded_task(name) for name in names}
        self._swap_tensors(list(tasks.items()), several=len(set(rows)) > 1)

        def effect(module: str) -> Effect | None:
            return rows_of([tasks[r].effects.get(module) if r is not None else None for r in rows])

        self._hooks.fill(effect)

    def _put_blend(self, names: Sequence[str], weights: Tensor) -> None:
        tasks = {name: self._decoded_task(name) for name in names}
        self._swap_tensors(list(tasks.items()), several=True)

        def effect(module: str) -> Effect | None:
            effects: list[TaskEffect | None] = [tasks[name].effects.get(module) for name in names]
            return blend_of(effects, weights.to(self._hooks[module].target[0]))

        self._hooks.fill(effect)

    def _put_training(self, trainer: SubspaceTrainer) -> None:
        task = self._decoded_task(trainer.task_id)
        self._swap_tensors([(trainer.task_id, task)], several=False)

        def effect(module: str) -> Effect | None:
            rank = trainer.rank_of(module)
            if rank is None:
                return task.effects.get(module)
            scale = self._scaling.of(trainer.scales[module], rank, task.record.config)
            return trainer.effect(module, scale, self._hooks[module].target)

        self._hooks.fill(effect)

    def _swap_tensors(self, tasks: Sequence[tuple[str, DecodedTask]], *, several: bool) -> None:
        """Exchange the model's tensors for those that tasks about to be in force bring."""
        seen_before = set(self._tensor_swap.unplaced)
        all_pairs = []
        for name, task in tasks:
            pairs = self._tensor_swap.pairs_for(name, task.rest)
            if pairs and several:
                raise ParameterError(
                    f"Task {name!r} brings tensors of its own, which all rows would share.",
                    where=name,
                    found=f"{len(pairs)} tensors, as {next(iter(task.rest))}",
                    remedy="run it in a batch of its own, with set_task",
                )
            all_pairs += pairs
        self._tensor_swap.swap_in(all_pairs)
        unseen = sorted(self._tensor_swap.unplaced - seen_before)
        if unseen:
            warnings.warn(
                f"{len(unseen)} tensors of {tasks[0][0]!r} name nothing in the model, such as "
                f"{unseen[0]}: they are left out.",
                stacklevel=5,
            )

    def _clear(self) -> None:
        self._tensor_swap.swap_back()
        self._hooks.fill(lambda module: None)
        self._rows, self._again, self._records, self._trainer = None, None, [], None

    def _require_unmerged(self, what: str) -> None:
        if self.is_merged:
            raise ModelStateError(
                f"The model is merged with {self.active_task!r}: it cannot {what}.",
                remedy="call unmerge() first",
            )


def _refuse_unread(config: Mapping[str, Any], task_id: str) -> None:
    """Hooks act on every token of a model that is as it is given."""
    for field in unread(config, known=("layer_replication",)):
        raise UnsupportedAdapterError(
            f"Switching tasks in a model does not read {field.name[:80]}: {field.without}.",
            where=task_id,
            expected=f"a task without {field.name[:80]}",
            found=field.name[:80],
            remedy="export it to peft, and load it there",
        )
