"""Tensors that a task brings beside its factors (heads, embeddings, biases), put into the model.

PEFT leaves such tensors in the base for good; here they come and go with the task.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from vlora_engine.adapters.module_names import PREFIX
from vlora_engine.errors import CollectionError, UnsupportedAdapterError

_COMPILED = "_orig_mod."


@dataclass
class TensorSwap:
    """Exchanges a model's tensors for the rest tensors of tasks, and puts the model's back.

    Attributes:
        unplaced: Keys seen so far that name nothing in this model.
    """

    model: nn.Module
    unplaced: set[str] = field(default_factory=set)
    _displaced: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def pairs_for(self, task_id: str, rest: Mapping[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Pairs of a tensor of the model and the task's tensor that replaces it.

        Raises:
            CollectionError: One has another shape.
            UnsupportedAdapterError: One belongs to a kind of LoRA that is not plain.
        """
        if not rest:
            return []
        tensors = self._tensors()
        pairs = []
        for key, tensor in rest.items():
            target = tensors.get(key.removeprefix(PREFIX))
            if target is None or not target.is_floating_point():
                _refuse_parts(task_id, key)
                self.unplaced.add(key)
                continue
            if target.shape != tensor.shape:
                raise CollectionError(
                    f"A tensor of task {task_id!r} does not fit the model.",
                    where=key,
                    expected=str(tuple(target.shape)),
                    found=str(tuple(tensor.shape)),
                )
            pairs.append((target, tensor))
        return pairs

    def swap_in(self, pairs: list[tuple[Tensor, Tensor]]) -> None:
        """Put the second of each pair into the first; what was exchanged before is undone first."""
        self.swap_back()
        for target, tensor in pairs:
            self._displaced.append((target, target.data))
            target.data = tensor.to(target.device, target.dtype)

    def swap_back(self) -> None:
        """Restore the model's own tensors, bit for bit."""
        for target, original in reversed(self._displaced):
            target.data = original
        self._displaced = []

    def _tensors(self) -> dict[str, Tensor]:
        found: dict[str, Tensor] = dict(self.model.named_buffers(remove_duplicate=False))
        found.update(self.model.named_parameters(remove_duplicate=False))
        return {name.replace(_COMPILED, ""): tensor for name, tensor in found.items()}


def _refuse_parts(task_id: str, key: str) -> None:
    if ".lora_" in key:
        raise UnsupportedAdapterError(
            f"Task {task_id!r} has a part that is more than a product of two factors.",
            where=key,
            expected="plain LoRA",
            remedy="export the task and load it with PEFT (vlora_engine.apply)",
        )
