"""Merge a task into a model's weights, and undo that bit for bit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from vlora_engine.errors import ModelStateError
from vlora_engine.nn.effects import Factors
from vlora_engine.nn.host_modules import HostModule


@dataclass
class Merged:
    """The weights that a task was merged into, with their originals.

    The originals are kept and not computed back: in floating point no subtraction undoes a sum.
    """

    task_id: str
    originals: dict[Tensor, Tensor] = field(default_factory=dict)

    @torch.no_grad()
    def add(self, hosts: Mapping[str, HostModule], task: Iterable[tuple[str, Factors]]) -> None:
        """Add what a task does to the modules that the model has."""
        for name, factors in task:
            if name not in hosts:
                continue
            host = hosts[name]
            weight = host.module.weight
            delta = factors.bt.to(weight.device).T @ factors.a.to(weight.device)
            self.originals[weight] = weight.data
            weight.data = (weight.float() + host.as_weight(delta)).to(weight.dtype)

    def undo(self) -> None:
        """The weights as they were, bit for bit."""
        for weight, original in self.originals.items():
            weight.data = original

    def move(self, fn: Callable[[Tensor], Tensor]) -> None:
        """Do to the originals what was done to the weights."""
        self.originals = {weight: fn(original) for weight, original in self.originals.items()}


def require_mergeable(model: nn.Module, hosts: Iterable[HostModule]) -> None:
    """Raise unless a task can go into the weights of these modules.

    Raises:
        ModelStateError: One is quantized, or is the weight of another module, too, which would
            change with it.
    """
    uses = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    for host in hosts:
        if host.quantized:
            raise ModelStateError(
                "Quantized weights cannot take a task in.",
                where=host.name,
                found=type(host.module).__name__,
                remedy="use set_task, which leaves the weights as they are",
            )
        if uses[id(host.module.weight)] > 1:
            raise ModelStateError(
                "A weight that several modules share cannot take a task in.",
                where=host.name,
                expected="a weight of its own",
                remedy="use set_task, or untie the weights before",
            )
