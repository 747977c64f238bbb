"""Specs of merge methods: parameters, their ranges, and the identities that a method obeys.

No torch here, so that an interface can list methods without loading it. The arithmetic is in
`vlora_engine.merging.operators`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, Literal

from vlora_engine.errors import ParameterError

if TYPE_CHECKING:
    from vlora_engine.adapters.model import LoRAWeights

Value = float | int | str | None
Functions = Mapping[str, Callable[..., "LoRAWeights"]]

# The identities that a method may claim; tests check every method against those it claims.
# "one" and "copies" hold at the method's `neutral` parameters and default weights.
IDENTITIES = {
    "one": "one adapter, alone or beside others of weight 0, gives its dW back",
    "copies": "merging T copies gives the dW of the copy",
    "gauge": "replacing (B, A) by (B G, G^-1 A) changes nothing",
    "order": "permuting adapters and weights together changes nothing",
    "scaling": "scaling every dW by c scales the result by c",
    "linear": "the result is linear in the weights",
}


@dataclass(frozen=True)
class MergeParameter:
    """A parameter of a merge method: its default and its range.

    Args:
        name: As in recipes and commands.
        kind: ``float``, ``int`` or ``word``.
        default: The value where none is given.
        summary: One line.
        low: The lower end of the range.
        high: The upper end.
        low_open: Exclude the lower end.
        high_open: Exclude the upper end.
        words: The allowed values of a parameter of kind ``word``.
        each: A list with one value for each adapter is allowed, too.
        complement: The name under which ``1 - value`` may be given instead.
    """

    name: str
    kind: Literal["float", "int", "word"]
    default: Value
    summary: str
    low: float = -math.inf
    high: float = math.inf
    low_open: bool = False
    high_open: bool = False
    words: tuple[str, ...] = ()
    each: bool = False
    complement: str | None = None

    @property
    def range(self) -> str:
        """The allowed values as text, such as ``(0, 1]``."""
        if self.kind == "word":
            return " or ".join(self.words)
        if math.isinf(self.low) and math.isinf(self.high):
            return "any integer" if self.kind == "int" else "any number"
        left, right = "([", ")]"
        return f"{left[not self.low_open]}{self.low:g}, {self.high:g}{right[not self.high_open]}"

    def check(self, value: Any) -> Any:
        """Check a value; returns a number or word, or a tuple with one for each adapter.

        Raises:
            ParameterError: It is not a number, or outside the range.
        """
        if self.each and isinstance(value, list | tuple) and value:
            return tuple(self._one(item) for item in value)
        return self._one(value)

    def parse(self, text: str) -> Any:
        """Parse and check a typed value; an empty one is the default.

        Raises:
            ParameterError: It is not a number, or outside the range.
        """
        text = text.strip()
        if not text:
            return self.default
        if self.kind == "word":
            return self.check(text)
        words = text.replace(",", " ").split()
        try:
            values: list[Any] = [int(w) if self.kind == "int" else float(w) for w in words]
        except ValueError:
            values = [text]
        return self.check(values[0] if len(values) == 1 else values)

    def _one(self, value: Any) -> Value:
        if value is None and self.default is None:
            return None
        if self.kind == "word":
            valid = value in self.words
        else:
            # NumPy's scalars are registered with these; NaN fails every comparison.
            kind = Integral if self.kind == "int" else Real
            valid = isinstance(value, kind) and not isinstance(value, bool)
        if valid and self.kind != "word":
            above = value > self.low if self.low_open else value >= self.low
            below = value < self.high if self.high_open else value <= self.high
            valid = above and below
        if not valid:
            raise ParameterError(
                f"{self.name} is out of range.", expected=self.range, found=repr(value)
            )
        if self.kind == "word":
            return str(value)
        return int(value) if self.kind == "int" else float(value)


@dataclass(frozen=True)
class MergeMethod:
    """The spec of a merge method.

    Args:
        name: As in recipes and commands.
        summary: One line.
        acts_on: On what its arithmetic works.
        parameters: Besides `SETTINGS`, which every method has.
        neutral: The parameters with which it changes nothing about a single adapter.
        normalises: How weights are normalised by default: not at all, divided by their sum, or
            every entry is averaged over the weights that agree on it.
        may_normalise: Whether ``normalize`` can change that.
        default_weights: The weights where none are given: 1 / T each, or 1 each.
        adapters: The number of adapters that it takes; None for any number.
        order_independent: Whether the adapters' order has no effect.
        identities: Those of `IDENTITIES` that it obeys.
        aliases: Other names for it.
        factors: Whether vlora-dev's arithmetic is available, too (``space="factors"``).
        reference: The paper or program that it is from.
        rule: Checks several parameters together; raises ParameterError.
        caution: A warning for its users.
        remark: A note for its users.
        typed: The name by which it was asked for, where that is an alias.
    """

    name: str
    summary: str
    acts_on: str
    parameters: tuple[MergeParameter, ...] = ()
    neutral: Mapping[str, float] = field(default_factory=dict)
    normalises: Literal["no", "sum", "entry"] = "no"
    may_normalise: bool = True
    default_weights: Literal["1/T", "1"] = "1/T"
    adapters: int | None = None
    order_independent: bool = True
    identities: frozenset[str] = frozenset()
    aliases: tuple[str, ...] = ()
    factors: bool = False
    reference: str = ""
    rule: Callable[[Mapping[str, Any]], None] | None = None
    caution: str = ""
    remark: str = ""
    typed: str = field(default="", compare=False)

    @property
    def label(self) -> str:
        """What to call it: as whoever asked for it did."""
        return self.typed or self.name

    def as_typed(self, name: str) -> MergeMethod:
        """The same, called by one of its names in reports and errors."""
        return replace(self, typed=name) if name.replace("-", "_") in self.aliases else self

    def __call__(self, adapters: Sequence[Any], *args: Any, **kwargs: Any) -> LoRAWeights:
        return _functions()[self.name](adapters, *args, **kwargs)

    @property
    def normalises_weights(self) -> bool:
        """Whether by default only the weights' ratios matter."""
        return self.normalises != "no"

    @property
    def weighting(self) -> str:
        """How weights are normalised, as text."""
        words = {"no": "as given", "sum": "over their sum", "entry": "averaged where they agree"}
        return words[self.normalises]

    def check(self, given: Mapping[str, Any], count: int | None = None) -> dict[str, Any]:
        """Check all parameters and fill in defaults.

        Args:
            given: Values by parameter, or by the name of its complement.
            count: The number of adapters, where it is known.

        Raises:
            ParameterError: A value out of range, or a parameter that the method does not have.
        """
        given = self._without_complements(given)
        names = [parameter.name for parameter in self.parameters]
        unknown = sorted(given.keys() - set(names))
        if unknown:
            raise ParameterError(
                f"Merging by {self.label} has no parameter {unknown[0]!r}.",
                expected=", ".join([*SETTINGS, *names]),
                found=", ".join(unknown),
            )
        values = {p.name: p.check(given.get(p.name, p.default)) for p in self.parameters}
        for name, value in values.items():
            if isinstance(value, tuple) and count is not None and len(value) != count:
                raise ParameterError(
                    f"There must be one {name} for each adapter.",
                    expected=f"one number, or {count}",
                    found=f"{len(value)}",
                )
        if self.rule is not None:
            self.rule(values)
        return values

    def check_count(self, count: int) -> None:
        """Check the number of adapters.

        Raises:
            ParameterError: The method takes another number.
        """
        if self.adapters is not None and count != self.adapters:
            raise ParameterError(
                f"Merging by {self.label} takes {self.adapters} adapters.",
                expected=str(self.adapters),
                found=str(count),
            )

    def _without_complements(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Replace complements by their parameters, such as ``density`` by ``drop_rate``."""
        values = dict(given)
        for parameter in self.parameters:
            other = parameter.complement
            if other is None or other not in values:
                continue
            if parameter.name in values:
                raise ParameterError(
                    f"{parameter.name} and {other} are both given.",
                    expected=f"one of them: {parameter.name} = 1 - {other}",
                )
            value = values.pop(other)
            values[parameter.name] = (
                [_complement(v) for v in value]
                if isinstance(value, list | tuple)
                else _complement(value)
            )
        return values


# What every method has besides its own parameters.
SETTINGS = ("weights", "layers", "normalize", "scale", "space", "dialect", "rank", "energy")


class MergeRegistry(Mapping[str, MergeMethod]):
    """The methods by name or alias, in the order in which they were added."""

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
        """Find a method by name or alias; ``-`` counts as ``_``.

        Raises:
            ParameterError: There is no such method.
        """
        key = name.replace("-", "_")
        if key not in self._names:
            raise ParameterError(
                "There is no such merge method.",
                expected=", ".join(sorted(self._names)),
                found=repr(name),
            )
        return self._methods[self._names[key]]

    def __getitem__(self, name: str) -> MergeMethod:
        return self._methods[self._names[name]]

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._methods)

    def __len__(self) -> int:
        return len(self._methods)


def use_functions(load: Callable[[], Functions]) -> None:
    """Have methods called by the functions that ``load`` gives, asked at the first call."""
    global _functions
    _functions = load


def _no_functions() -> Functions:
    raise NotImplementedError("the merging package says which functions its methods call")


_functions: Callable[[], Functions] = _no_functions


def _complement(value: Any) -> Any:
    good = isinstance(value, Real) and not isinstance(value, bool)
    return 1.0 - float(value) if good else value
