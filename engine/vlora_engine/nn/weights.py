"""A task added to a model's weights, and the weights as they were."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from vlora_engine.errors import SubspaceError
from vlora_engine.nn.effects import Factors
from vlora_engine.nn.host_modules import Place


@dataclass
class Merged:
    """The weights that a task went into, each with what it was.

    The originals are kept and not computed back: in floating point no subtraction undoes a sum.
    """

    task_id: str
    originals: dict[Tensor, Tensor] = field(default_factory=dict)

    @torch.no_grad()
    def add(self, places: Mapping[str, Place], task: Iterable[tuple[str, Factors]]) -> None:
        """Add what a task does to the modules that the model has."""
        for name, factors in task:
            if name not in places:
                continue
            place = places[name]
            weight = place.module.weight
            delta = factors.bt.to(weight.device).T @ factors.a.to(weight.device)
            self.originals[weight] = weight.data
            weight.data = (weight.float() + place.as_weight(delta)).to(weight.dtype)

    def undo(self) -> None:
        """The weights as they were, bit for bit."""
        for weight, original in self.originals.items():
            weight.data = original

    def move(self, fn: Callable[[Tensor], Tensor]) -> None:
        """Do to the originals what was done to the weights."""
        self.originals = {weight: fn(kept) for weight, kept in self.originals.items()}


def require_mergeable(model: nn.Module, places: Iterable[Place]) -> None:
    """Raise unless a task can go into the weights of these modules.

    Raises:
        SubspaceError: One is quantized, or is the weight of another module, too, which would
            change with it.
    """
    uses = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    for place in places:
        if place.quantized:
            raise SubspaceError(
                "Quantized weights cannot take a task in.",
                where=place.name,
                found=type(place.module).__name__,
                remedy="use set_task, which leaves the weights as they are",
            )
        if uses[id(place.module.weight)] > 1:
            raise SubspaceError(
                "A weight that several modules share cannot take a task in.",
                where=place.name,
                expected="a weight of its own",
                remedy="use set_task, or untie the weights before",
            )
