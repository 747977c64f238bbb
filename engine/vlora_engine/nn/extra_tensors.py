"""Tensors that a task brings beside its factors (heads, embeddings, biases), put into the model.

PEFT leaves such tensors in the base for good; here they come and go with the task.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from vlora_engine.errors import CollectionError, UnsupportedAdapterError
from vlora_engine.formats.layout import PREFIX

_COMPILED = "_orig_mod."


@dataclass
class Carrier:
    """Puts rest tensors in the place of a model's own, and these back.

    Attributes:
        unplaced: Keys seen so far that name nothing in this model.
    """

    model: nn.Module
    unplaced: set[str] = field(default_factory=set)
    _displaced: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def placed(self, task_id: str, rest: Mapping[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
        """The model's tensors that a task replaces, each with what takes its place.

        Raises:
            CollectionError: One has another shape.
            UnsupportedAdapterError: One belongs to a kind of LoRA that is not plain.
        """
        if not rest:
            return []
        own = self._tensors()
        pairs = []
        for key, tensor in rest.items():
            place = own.get(key.removeprefix(PREFIX))
            if place is None or not place.is_floating_point():
                _refuse_parts(task_id, key)
                self.unplaced.add(key)
                continue
            if place.shape != tensor.shape:
                raise CollectionError(
                    f"A tensor of task {task_id!r} does not fit the model.",
                    where=key,
                    expected=str(tuple(place.shape)),
                    found=str(tuple(tensor.shape)),
                )
            pairs.append((place, tensor))
        return pairs

    def put(self, pairs: list[tuple[Tensor, Tensor]]) -> None:
        """Let these stand in; what stood in before is taken out first."""
        self.put_back()
        for place, tensor in pairs:
            self._displaced.append((place, place.data))
            place.data = tensor.to(place.device, place.dtype)

    def put_back(self) -> None:
        """The model's own tensors are where they were, bit for bit."""
        for place, was in reversed(self._displaced):
            place.data = was
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
