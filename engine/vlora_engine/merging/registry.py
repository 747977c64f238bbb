"""What a merge method is: a frozen spec with its parameters and the identities it obeys."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, Literal

from vlora_engine.errors import ParameterError

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from vlora_engine.adapters import LoRAWeights
    from vlora_engine.merging.space import ModuleCores

# The identities a method may claim; tests hold every method to every one it names.
# "one" and "copies" are meant at the method's `neutral` parameters and default weights.
IDENTITIES = {
    "one": "merging one adapter gives its dW back",
    "copies": "merging T copies gives the dW of the copy",
    "gauge": "replacing (B, A) by (B G, G^-1 A) changes nothing",
    "order": "permuting adapters and weights together changes nothing",
    "scaling": "scaling every dW by c scales the result by c",
    "linear": "the result is linear in the weights",
}


@dataclass(frozen=True)
class MergeParameter:
    """A parameter of a method: its default and the range it must lie in.

    ``low_open`` and ``high_open`` exclude the end of the range.
    """

    name: str
    kind: Literal["float", "int"]
    default: float | int | None
    summary: str
    low: float = -math.inf
    high: float = math.inf
    low_open: bool = False
    high_open: bool = False

    @property
    def range(self) -> str:
        """The allowed values in words, such as ``(0, 1]``."""
        if math.isinf(self.low) and math.isinf(self.high):
            return "any integer" if self.kind == "int" else "any number"
        left, right = "([", ")]"
        return f"{left[not self.low_open]}{self.low:g}, {self.high:g}{right[not self.high_open]}"

    def check(self, value: Any) -> float | int | None:
        """``value`` as the method takes it.

        Raises:
            ParameterError: It is no number, or outside the range.
        """
        if value is None and self.default is None:
            return None
        # numpy's scalars are registered as these, NaN fails every comparison
        kind = Integral if self.kind == "int" else Real
        good = isinstance(value, kind) and not isinstance(value, bool)
        if good:
            above = value > self.low if self.low_open else value >= self.low
            below = value < self.high if self.high_open else value <= self.high
            good = above and below
        if not good:
            raise ParameterError(
                f"{self.name} is out of range.", expected=self.range, found=repr(value)
            )
        return int(value) if self.kind == "int" else float(value)


# (cores of one module, parameters) -> the merged core (k_b, k_a)
CoreFunction = Callable[["ModuleCores", Mapping[str, Any]], "Tensor"]
# (A or B of one module of every adapter, weights, parameters, generator) -> the merged factor
FactorFunction = Callable[
    ["Sequence[Tensor]", "Sequence[float]", Mapping[str, Any], "Generator"], "Tensor"
]


@dataclass(frozen=True)
class MergeMethod:
    """One way of merging adapters.

    Args:
        name: What recipes and commands call it.
        summary: One line.
        function: The public function; calling the spec calls it.
        core: The arithmetic on one module's cores; None for a plain sum of weight changes.
        factors: The first library's arithmetic on A or B of one module.
        acts_on: What it works on with ``space="delta"``.
        parameters: Besides ``weights``, ``space`` and ``rank``, which every method has.
        neutral: The parameters with which it changes nothing about a single adapter.
        normalises_weights: Whether only the weights' ratios matter.
        order_independent: Whether the adapters' order is without effect.
        identities: Those of `IDENTITIES` that it obeys.
        aliases: Other names for it.
        reference: Where it is from.
    """

    name: str
    summary: str
    function: Callable[..., LoRAWeights]
    core: CoreFunction | None
    factors: FactorFunction
    acts_on: str
    parameters: tuple[MergeParameter, ...] = ()
    neutral: Mapping[str, float] = field(default_factory=dict)
    normalises_weights: bool = False
    order_independent: bool = True
    identities: frozenset[str] = frozenset()
    aliases: tuple[str, ...] = ()
    reference: str = ""

    def __call__(self, adapters: Sequence[Any], *args: Any, **kwargs: Any) -> LoRAWeights:
        return self.function(adapters, *args, **kwargs)

    def check(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Every parameter with its checked value, defaults filled in.

        Raises:
            ParameterError: A value out of range, or a parameter that the method does not have.
        """
        unknown = sorted(given.keys() - {p.name for p in self.parameters})
        if unknown:
            known = ["weights", "space", "rank", *(p.name for p in self.parameters)]
            raise ParameterError(
                f"Merging by {self.name} has no parameter {unknown[0]!r}.",
                expected=", ".join(known),
                found=", ".join(unknown),
            )
        return {p.name: p.check(given.get(p.name, p.default)) for p in self.parameters}


class MergeRegistry(Mapping[str, MergeMethod]):
    """The methods by name, in the order they were added; looking up an alias works too."""

    def __init__(self) -> None:
        self._methods: dict[str, MergeMethod] = {}
        self._names: dict[str, str] = {}

    def add(self, method: MergeMethod) -> MergeMethod:
        """Register ``method``.

        Raises:
            ParameterError: Its name or an alias is taken, or it claims an unknown identity.
        """
        names = (method.name, *method.aliases)
        taken = [name for name in names if name in self._names]
        if taken or len(set(names)) < len(names):
            raise ParameterError(
                "Two merge methods have the same name.", found=(taken or list(names))[0]
            )
        unknown = sorted(method.identities - IDENTITIES.keys())
        if unknown:
            raise ParameterError(f"Merge method {method.name} names no identity {unknown[0]!r}.")
        self._methods[method.name] = method
        self._names.update(dict.fromkeys(names, method.name))
        return method

    def find(self, name: str) -> MergeMethod:
        """The method of that name or alias.

        Raises:
            ParameterError: There is none.
        """
        if name not in self._names:
            raise ParameterError(
                "There is no such merge method.",
                expected=", ".join(sorted(self._names)),
                found=repr(name),
            )
        return self._methods[self._names[name]]

    def __getitem__(self, name: str) -> MergeMethod:
        return self._methods[self._names[name]]

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._methods)

    def __len__(self) -> int:
        return len(self._methods)


MERGE_METHODS = MergeRegistry()
