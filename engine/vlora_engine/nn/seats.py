"""A seat on every module of a model: registered once, filled with what the task in force does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from vlora_engine.layer import LayerBasis
from vlora_engine.nn.effects import Effect, Factors, Shared
from vlora_engine.nn.places import Place


class Seat:
    """Adds the effect in force to one module's output.

    The shared basis stays with the seat, where and in what the module computes; a switch replaces
    the effect alone.

    Attributes:
        a, b: The basis, (k_a, d_in) and (k_b, d_out); empty where the module has none.
        effect: What is added; None: nothing.
    """

    def __init__(
        self,
        place: Place,
        dtype: torch.dtype | None,
        basis: Callable[[], LayerBasis] | None,
        moved: Callable[[], None],
    ) -> None:
        self.place = place
        self.effect: Effect | None = None
        self._stated, self._basis, self._moved = dtype, basis, moved
        self._formed: Factors | None = None
        self.target = self._wanted()
        self._bring()
        self._hook = place.module.register_forward_hook(self, with_kwargs=True)

    def settle(self) -> bool:
        """Go where the module is now; True where that is somewhere else than before."""
        target = self._wanted()
        if target == self.target:
            return False
        self.target = target
        self._bring()
        self.fill(None)
        return True

    def _wanted(self) -> tuple[torch.device, torch.dtype]:
        return self.place.device, self._stated or self.place.dtype

    @torch.inference_mode(False)
    def _bring(self) -> None:
        if self._basis is None:
            self.a = self.b = torch.empty(0)
        else:
            known = self._basis()
            self.a, self.b = known.a.to(*self.target), known.b.to(*self.target)

    @property
    def nbytes(self) -> int:
        """What the basis takes here."""
        return (self.a.numel() + self.b.numel()) * self.a.element_size()

    def fill(self, effect: Effect | None) -> None:
        """Put another effect in force."""
        self.effect = effect
        self._formed = None

    def leave(self) -> None:
        """Take the hook off the module."""
        self._hook.remove()

    def __call__(
        self, module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any
    ) -> Any:
        if self.effect is None:
            return None
        x = args[0] if args else next(iter(kwargs.values()))
        if x.device != self.target[0]:
            self._moved()
            if x.device != self.target[0]:
                x = x.to(self.target[0])
        change = self._best(x).change(self.place, self, x)
        return self.place.onto(output, change.to(output.device))

    def _best(self, x: Tensor) -> Effect:
        """The effect; of one task, where the input is long, its factors, which are then kept."""
        effect = self.effect
        assert effect is not None  # noqa: S101  (asked for only where there is one)
        if self._formed is not None:
            return self._formed
        if not isinstance(effect, Shared) or torch.compiler.is_compiling():
            return effect
        tokens = x.numel() if self.place.kind == "embedding" else x.numel() // self.place.d_in
        if not effect.pays_off(self, tokens):
            return effect
        with torch.inference_mode(False), torch.no_grad():
            self._formed = effect.factors(self)
        return self._formed
