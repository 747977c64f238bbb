"""A seat on every module of a model: registered once, filled with what the task in force does."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vlora_engine.errors import SubspaceError
from vlora_engine.manifest.manifest import LayerSpec, OwnModule
from vlora_engine.nn.decode import SHARING, Target
from vlora_engine.nn.effects import Effect, Factors, Shared
from vlora_engine.nn.host_modules import Place, named_modules, place_of
from vlora_engine.subspace.basis import LayerBasis
from vlora_engine.subspace.space import Space


class Seats(Mapping[str, "Seat"]):
    """The seats on a model for the modules of a subspace, by module.

    Attributes:
        unmatched: Modules of the subspace that the model lacks.

    Raises:
        SubspaceError: The model has none of them.
        CollectionError, UnsupportedAdapterError: One is not what adapters were trained on.
    """

    def __init__(
        self,
        model: nn.Module,
        subspace: Space,
        dtype: torch.dtype | None,
        moved: Callable[[], None],
    ) -> None:
        self._model, self._subspace = model, subspace
        self._dtype, self._moved = dtype, moved
        self._seats: dict[str, Seat] = {}
        self.unmatched: list[str] = []
        specs: dict[str, LayerSpec | OwnModule] = {s.name: s for s in subspace.layers}
        for record in subspace.tasks.records():
            for own in record.own:
                specs.setdefault(own.name, own)
        self._add(specs)
        if specs and not self._seats:
            raise _nothing_matches(self.unmatched, dict(named_modules(model)))
        if self.unmatched:
            warnings.warn(
                f"{len(self.unmatched)} of {len(specs)} modules of the subspace are not in the "
                f"model, such as {self.unmatched[0]}: what tasks do there is left out "
                "(VLoRAModel.unmatched names them).",
                stacklevel=4,
            )

    def __getitem__(self, name: str) -> Seat:
        return self._seats[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._seats)

    def __len__(self) -> int:
        return len(self._seats)

    def target(self, name: str) -> Target | None:
        """Where a module computes; None where it has no seat."""
        seat = self._seats.get(name)
        return seat.target if seat is not None else None

    def make_room(self, own: Sequence[OwnModule]) -> None:
        """Seats for modules of a task that came after the model was wrapped."""
        new = {o.name: o for o in own if o.name not in self._seats and o.name not in self.unmatched}
        if new:
            self._add(new)

    def fill(self, effect: Callable[[str], Effect | None]) -> None:
        """Put other effects in force: on all modules or, where one cannot be made, on none."""
        with torch.inference_mode(False):
            made = [effect(name) for name in self._seats]
        for seat, own in zip(self._seats.values(), made, strict=True):
            seat.fill(own)

    def settle(self) -> bool:
        """Follow the modules to where they are; True where any has moved."""
        moved = [seat.settle() for seat in self._seats.values()]
        return any(moved)

    def leave(self) -> None:
        """Take all hooks off the model."""
        for seat in self._seats.values():
            seat.leave()
        self._seats = {}

    def _add(self, specs: Mapping[str, LayerSpec | OwnModule]) -> None:
        modules = dict(named_modules(self._model))
        for name, spec in specs.items():
            if name in modules:
                self._seats[name] = self._seat(name, modules[name], spec)
            else:
                self.unmatched.append(name)

    def _seat(self, name: str, module: nn.Module, spec: LayerSpec | OwnModule) -> Seat:
        place, basis = place_of(name, module), None
        if isinstance(spec, LayerSpec):
            where = self._subspace.home or "the subspace"
            place.check(str(where), spec.kind, spec.d_in, spec.d_out, spec.tail_a)
            if self._subspace.method in SHARING:
                basis = partial(self._subspace.bases.numbers, name)
        return Seat(place, self._dtype, basis, self._moved)


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


def _nothing_matches(wanted: Sequence[str], modules: Mapping[str, nn.Module]) -> SubspaceError:
    leaves = [name for name, module in modules.items() if name and not any(module.children())]
    last = wanted[0].rsplit(".", 1)[-1]
    alike = [name for name in leaves if name.rsplit(".", 1)[-1] == last]
    alike = alike or sorted(leaves, key=lambda name: -name.count("."))  # deep ones look alike
    return SubspaceError(
        "No module of the subspace is in the model: it would serve the base model in silence.",
        expected=f"modules such as {wanted[0]}",
        found=f"modules such as {alike[0]}" if alike else "a model without modules",
        remedy="wrap the very model that the adapters were trained on, "
        "not a part of it and not a wrapper around it",
    )
