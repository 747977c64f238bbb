"""Forward hooks that add tasks to a model's modules: registered once, refilled at each switch."""

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
from vlora_engine.nn.host_modules import HostModule, host_module, named_modules
from vlora_engine.subspace.basis import LayerBasis
from vlora_engine.subspace.space import Space


class LoRAHooks(Mapping[str, "LoRAHook"]):
    """The hooks on a model for the modules of a subspace, by module.

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
        self._hooks: dict[str, LoRAHook] = {}
        self.unmatched: list[str] = []
        specs: dict[str, LayerSpec | OwnModule] = {s.name: s for s in subspace.layers}
        for record in subspace.tasks.records():
            for outside in record.own:
                specs.setdefault(outside.name, outside)
        self._add(specs)
        if specs and not self._hooks:
            raise _nothing_matches(self.unmatched, dict(named_modules(model)))
        if self.unmatched:
            warnings.warn(
                f"{len(self.unmatched)} of {len(specs)} modules of the subspace are not in the "
                f"model, such as {self.unmatched[0]}: what tasks do there is left out "
                "(VLoRAModel.unmatched names them).",
                stacklevel=4,
            )

    def __getitem__(self, name: str) -> LoRAHook:
        return self._hooks[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._hooks)

    def __len__(self) -> int:
        return len(self._hooks)

    def target(self, name: str) -> Target | None:
        """The device and dtype that a module computes in; None where it has no hook."""
        hook = self._hooks.get(name)
        return hook.target if hook is not None else None

    def add_missing(self, modules: Sequence[OwnModule]) -> None:
        """Add hooks for modules of a task that came after the model was wrapped."""
        missing = {
            o.name: o for o in modules if o.name not in self._hooks and o.name not in self.unmatched
        }
        if missing:
            self._add(missing)

    def fill(self, effect: Callable[[str], Effect | None]) -> None:
        """Replace the effects of all modules or, where one cannot be made, of none."""
        with torch.inference_mode(False):
            changes = [effect(name) for name in self._hooks]
        for hook, change in zip(self._hooks.values(), changes, strict=True):
            hook.fill(change)

    def follow(self) -> bool:
        """Move the bases to the modules' devices and dtypes; True where any has changed."""
        moved = [hook.follow() for hook in self._hooks.values()]
        return any(moved)

    def remove(self) -> None:
        """Take all hooks off the model."""
        for hook in self._hooks.values():
            hook.remove()
        self._hooks = {}

    def _add(self, specs: Mapping[str, LayerSpec | OwnModule]) -> None:
        modules = dict(named_modules(self._model))
        for name, spec in specs.items():
            if name in modules:
                self._hooks[name] = self._hook_on(name, modules[name], spec)
            else:
                self.unmatched.append(name)

    def _hook_on(self, name: str, module: nn.Module, spec: LayerSpec | OwnModule) -> LoRAHook:
        host, basis = host_module(name, module), None
        if isinstance(spec, LayerSpec):
            home = self._subspace.home or "the subspace"
            host.check(str(home), spec.kind, spec.d_in, spec.d_out, spec.tail_a)
            if self._subspace.method in SHARING:
                basis = partial(self._subspace.bases.numbers, name)
        return LoRAHook(host, self._dtype, basis, self._moved)


class LoRAHook:
    """Adds the effect in force to one module's output.

    The shared basis stays with the hook, on the device and in the dtype that the module computes
    in; a switch replaces the effect alone.

    Attributes:
        a, b: The basis, (k_a, d_in) and (k_b, d_out); empty where the module has none.
        effect: What is added; None: nothing.
    """

    def __init__(
        self,
        host: HostModule,
        dtype: torch.dtype | None,
        basis: Callable[[], LayerBasis] | None,
        moved: Callable[[], None],
    ) -> None:
        self.host = host
        self.effect: Effect | None = None
        self._stated, self._basis, self._moved = dtype, basis, moved
        self._formed: Factors | None = None
        self.target = self._whereabouts()
        self._move_basis()
        self._handle = host.module.register_forward_hook(self, with_kwargs=True)

    def follow(self) -> bool:
        """Move the basis to the module's device and dtype; True where these have changed."""
        target = self._whereabouts()
        if target == self.target:
            return False
        self.target = target
        self._move_basis()
        self.fill(None)
        return True

    def _whereabouts(self) -> tuple[torch.device, torch.dtype]:
        return self.host.device, self._stated or self.host.dtype

    @torch.inference_mode(False)
    def _move_basis(self) -> None:
        if self._basis is None:
            self.a = self.b = torch.empty(0)
        else:
            basis = self._basis()
            self.a, self.b = basis.a.to(*self.target), basis.b.to(*self.target)

    @property
    def nbytes(self) -> int:
        """The bytes of the basis."""
        return (self.a.numel() + self.b.numel()) * self.a.element_size()

    def fill(self, effect: Effect | None) -> None:
        """Replace what is added to the module's output."""
        self.effect = effect
        self._formed = None

    def remove(self) -> None:
        """Take the hook off the module."""
        self._handle.remove()

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
        change = self._cheapest(x).change(self.host, self, x)
        return self.host.onto(output, change.to(output.device))

    def _cheapest(self, x: Tensor) -> Effect:
        """The effect; of one task, where the input is long, its factors, which are then kept."""
        effect = self.effect
        assert effect is not None  # noqa: S101  (asked for only where there is one)
        if self._formed is not None:
            return self._formed
        if not isinstance(effect, Shared) or torch.compiler.is_compiling():
            return effect
        tokens = x.numel() if self.host.kind == "embedding" else x.numel() // self.host.d_in
        if not effect.pays_off(self, tokens):
            return effect
        with torch.inference_mode(False), torch.no_grad():
            self._formed = effect.factors(self)
        return self._formed


def _nothing_matches(wanted: Sequence[str], modules: Mapping[str, nn.Module]) -> SubspaceError:
    innermost = [name for name, module in modules.items() if name and not any(module.children())]
    last = wanted[0].rsplit(".", 1)[-1]
    alike = [name for name in innermost if name.rsplit(".", 1)[-1] == last]
    alike = alike or sorted(innermost, key=lambda name: -name.count("."))  # deep ones look alike
    return SubspaceError(
        "No module of the subspace is in the model: it would serve the base model in silence.",
        expected=f"modules such as {wanted[0]}",
        found=f"modules such as {alike[0]}" if alike else "a model without modules",
        remedy="wrap the very model that the adapters were trained on, "
        "not a part of it and not a wrapper around it",
    )
