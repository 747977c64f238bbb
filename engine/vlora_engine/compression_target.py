"""What a collection is to be compressed to: the request of Python, recipes, commands and screens.

Every default of it, and every word that may stand in it, is written down here. No torch, no numpy.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from vlora_engine.errors import ParameterError
from vlora_engine.quantization.dtypes import AUTO_DTYPE, ROUNDING, storage_dtype
from vlora_engine.quantization.packing import (
    BLOCK_SIZE,
    DOUBLE_QUANT,
    NOT_PACKED,
    Quantization,
    named_quantization,
)

BASIS_METHODS = ("delta", "columns", "flat")  # share a basis of k directions a side
CODED_METHODS = ("own", "auto")  # code every direction with the bits it earns
METHODS = (*CODED_METHODS[::-1], *BASIS_METHODS)
DEFAULT_METHOD = "auto"
DEFAULT_BASIS_METHOD = "delta"  # where something is asked for that only a basis has
DEFAULT_MAX_ERROR = 0.05
ADAPTIVE_VARIANCE = 0.6  # what k for every layer by itself means alone, as in the first library
ERROR_GOALS = ("variance", "max_error", "mean_error")
GOALS = (*ERROR_GOALS, "budget")  # what k, or the bits, can be chosen for
LayerK = int | tuple[int, int]  # k of a layer, or (k_a, k_b)
_OF_A_BASIS = ("k", "k_a", "k_b", "variance", "adaptive", "layers", "refine")


class Contradiction(NamedTuple):
    """What of a target does not go together: the field that is one too many, and why."""

    key: str
    what: str
    expected: str
    found: str | None = None
    remedy: str | None = None


@dataclass(frozen=True)
class CompressionTarget:
    """What to compress to: a method and one goal, which is k or what k (the bits) is chosen for.

    Args:
        method: By default `auto`, and `delta` where something is asked for that only a basis has.
        k: The same k on both sides of every layer; ``k_a`` and ``k_b`` a side each.
        layers: k, or a pair (k_a, k_b), for layers whose names match a pattern, later patterns
            winning.
        variance: The least share of dW's energy to keep: one k for all layers, or with
            ``adaptive`` the least k of each layer by itself.
        max_error: The largest relative error any task may have; ``mean_error`` their mean.
        budget: Bytes on disk, an upper bound.
        refine: Rounds in which the bases of `delta` are fitted to each other.
        quantize: ``none``, ``int8``, ``int4`` or ``nf4``: pack bases and loadings.
        block_size: Packed numbers that share a scale; ``double_quant``: scales of 8 bits, not 16.
        noise: The share of the captured energy that packing costs, where it is known better than
            by `Quantization.noise`.
    """

    method: str = ""
    k: int | None = None
    k_a: int | None = None
    k_b: int | None = None
    # Left out of the hash, not of ==: what is equal has the same hash all the same.
    layers: Mapping[str, LayerK] = field(default_factory=dict, hash=False)
    variance: float | None = None
    adaptive: bool = False
    max_error: float | None = None
    mean_error: float | None = None
    budget: int | None = None
    dtype: str = AUTO_DTYPE
    refine: int = 0
    quantize: str = NOT_PACKED
    block_size: int = BLOCK_SIZE
    double_quant: bool = DOUBLE_QUANT
    noise: float | None = None

    def __post_init__(self) -> None:
        if not self.method:
            object.__setattr__(self, "method", self._default_method())
        if any(not isinstance(k, int) for k in self.layers.values()):  # lists, and equal sides
            object.__setattr__(self, "layers", {n: one_k(k) for n, k in self.layers.items()})

    def checked(self) -> CompressionTarget:
        """The same with the default goal filled in.

        Raises:
            ParameterError: Unknown method, several goals, or one outside its range.
        """
        if self.method not in METHODS:
            known = ", ".join((*BASIS_METHODS, *CODED_METHODS))
            raise ParameterError(f"Unknown method {self.method!r}.", expected=known)
        packed = ["quantize"] if self.is_coded and self.quantize != NOT_PACKED else []
        wrong = (*self.contradictions(), *self._chosen_itself(packed))
        for _, what, expected, found, remedy in wrong:
            raise ParameterError(what, expected=expected, found=found, remedy=remedy)
        filled = self.filled()
        filled._check_range()
        storage_dtype(self.dtype, ())
        self.quantization  # noqa: B018  (raises where there is none such)
        return filled

    def contradictions(self) -> Iterator[Contradiction]:
        """What in it does not go together, each with the field that is one too many."""
        ks = [name for name in ("k", "k_a", "k_b") if getattr(self, name) is not None]
        goals = [name for name in GOALS if getattr(self, name) is not None]
        if ks and goals:
            yield Contradiction(goals[0], f"{ks[0]} and {goals[0]} are both given.", "one of them")
        if len(goals) > 1:
            yield Contradiction(goals[1], "There is more than one target.", "one", ", ".join(goals))
        if "k" in ks and len(ks) > 1:
            yield Contradiction(ks[1], f"k and {ks[1]} are both given.", "k, or k_a and k_b")
        if len(ks) == 1 and "k" not in ks:
            yield Contradiction(ks[0], f"{ks[0]} is given without its other side.", "k_a and k_b")
        if self.is_coded:
            names = ("k", "k_a", "k_b", "adaptive", "layers", "refine")
            dtype = ["dtype"] if self.dtype != AUTO_DTYPE else []
            yield from self._chosen_itself([*(n for n in names if getattr(self, n)), *dtype])
        if self.method == "flat" and self.k_a != self.k_b:
            yield Contradiction("k_a", "The method flat has one k for both sides.", "k")
        if self.method == "flat" and not all(isinstance(k, int) for k in self.layers.values()):
            what = "The method flat has one k for both sides."
            yield Contradiction("layers", what, "one k for a module")
        if self.quantize == NOT_PACKED:
            yield from self._of_packing()
        if self.refine and self.method != "delta":
            yield Contradiction("refine", "Only delta is refined.", "delta", self.method)

    def filled(self) -> CompressionTarget:
        """The same with the default goal filled in, unchecked."""
        return self if self._given_goals() else replace(self, max_error=DEFAULT_MAX_ERROR)

    def with_goal(self, name: str, value: float) -> CompressionTarget:
        """The same for another goal: ``k``, ``variance``, an error or ``budget``."""
        fields: dict[str, Any] = dict.fromkeys(("k", "k_a", "k_b", *GOALS))
        fields[name] = int(value) if name in ("k", "budget") else value
        fields["adaptive"] = self.adaptive and name == "variance"
        return replace(self, **fields)

    def unpacked(self) -> CompressionTarget:
        """The same without packing, and without what belongs to one."""
        plain = CompressionTarget
        return replace(
            self,
            quantize=plain.quantize,
            block_size=plain.block_size,
            double_quant=plain.double_quant,
        )

    def with_layer(self, layer: str, k: LayerK | None) -> CompressionTarget:
        """The same with the layer's own k set, or (None) cleared."""
        others = {name: own for name, own in self.layers.items() if name != layer}
        # The last one, so that it wins over a pattern.
        return replace(self, layers=others if k is None else {**others, layer: k})

    @property
    def is_coded(self) -> bool:
        """Whether every direction gets bits of its own, and no k is chosen."""
        return self.method in CODED_METHODS

    @property
    def fixed_pair(self) -> tuple[int, int] | None:
        """(k_a, k_b) where k is given outright."""
        if self.k is not None:
            return self.k, self.k
        return (self.k_a, self.k_b) if self.k_a is not None and self.k_b is not None else None

    @property
    def goal(self) -> tuple[str, float]:
        """The goal by name and value, the default one where none is given.

        Where both sides have a k of their own it is the larger one.
        """
        for name in GOALS:
            value = getattr(self, name)
            if value is not None:
                return name, value
        ks = [k for k in (self.k, self.k_a, self.k_b) if k is not None]
        return ("k", max(ks)) if ks else ("max_error", DEFAULT_MAX_ERROR)

    @property
    def quantization(self) -> Quantization | None:
        """How it is packed; None where it is not."""
        return named_quantization(
            self.quantize, block_size=self.block_size, double_quant=self.double_quant
        )

    @property
    def k_range(self) -> tuple[int, int] | None:
        """The least and the largest k that is given for any layer; None where there is none."""
        given = [
            *(self.fixed_pair or ()),
            *(k for one in self.layers.values() for k in sides_of(one)),
        ]
        return (min(given), max(given)) if given else None

    @property
    def lossy(self) -> bool:
        """Whether fp16 is exact enough: ten times what it rounds off is allowed, or bytes count."""
        errors = [e for e in (self.max_error, self.mean_error) if e is not None]
        if self.variance is not None:
            errors.append((1 - self.variance) ** 0.5)
        allows = any(error >= 10 * ROUNDING["F16"] for error in errors)
        return self.quantization is not None or self.budget is not None or allows

    # the goal as a number

    @property
    def error(self) -> float | None:
        """The mean error that the goal comes to about; None where it is a budget, or k."""
        if self.variance is not None:
            return math.sqrt(1 - self.variance)
        return self.max_error if self.max_error is not None else self.mean_error

    def allowed(self, rest_bytes: int) -> float:
        """The goal as a number that must not be exceeded: bytes but the rest tensors', the error,
        or the share of the energy that is missed.
        """
        name, value = self.goal
        if name == "budget":
            return value - rest_bytes
        return 1 - value if name == "variance" else value

    def with_allowed(self, value: float, rest_bytes: int) -> CompressionTarget:
        """The same kind of goal with another `allowed`."""
        name, _ = self.goal
        if name == "budget":
            return self.with_goal(name, int(value) + rest_bytes)
        return self.with_goal(name, 1 - value if name == "variance" else value)

    def words(self) -> str:
        """The goal for a message."""
        name, value = self.goal
        return f"{name} {value:.9g}"

    # what is asked for

    def _default_method(self) -> str:
        of_a_basis = any(getattr(self, name) for name in _OF_A_BASIS)
        stored = self.dtype != AUTO_DTYPE or self.quantize not in (None, NOT_PACKED)
        return DEFAULT_BASIS_METHOD if of_a_basis or stored else DEFAULT_METHOD

    def _given_goals(self) -> dict[str, float]:
        fixed = self.k if self.k is not None else (self.k_a or self.k_b)
        goals = {"k": fixed, **{name: getattr(self, name) for name in GOALS}}
        return {name: value for name, value in goals.items() if value is not None}

    def _check_range(self) -> None:
        name, value = next(iter(self._given_goals().items()))
        if name == "variance" and not 0 < value <= 1:
            raise ParameterError("A variance to keep lies above 0 and up to 1.", found=str(value))
        if name in ("max_error", "mean_error") and not 0 < value < 1:
            raise ParameterError(
                "A relative error to allow lies between 0 and 1.", found=str(value)
            )
        if name == "budget" and value <= 0:
            raise ParameterError("A budget is a positive number of bytes.", found=str(value))
        ks = [k for k in (self.k, self.k_a, self.k_b) if k is not None]
        if min(ks, default=1) < 1:
            raise ParameterError("k is at least 1.", found=str(min(ks)))

    def _of_packing(self) -> Iterator[Contradiction]:
        """What only packed numbers have, where none are packed."""
        default = CompressionTarget
        for name in ("block_size", "double_quant"):
            if getattr(self, name) != getattr(default, name):
                yield Contradiction(
                    name,
                    f"{name} is of packed numbers, and nothing is packed.",
                    "quantize: int8, int4 or nf4",
                    remedy="leave it out, or give quantize",
                )

    def _chosen_itself(self, names: Sequence[str]) -> Iterator[Contradiction]:
        """The first of these fields, as what a coded method has none of."""
        for name in names[:1]:
            yield Contradiction(
                name,
                f"The method {self.method} chooses its bits itself, and has no {name}.",
                "max_error, mean_error, variance or budget",
                remedy="leave it out, or use the method delta, columns or flat",
            )


def sides_of(k: LayerK) -> tuple[int, int]:
    """(k_a, k_b) of what stands for a layer."""
    return (k, k) if isinstance(k, int) else k


def one_k(k: LayerK | Sequence[int]) -> LayerK:
    """What stands for a layer in its shortest form: a pair of equal k is one k.

    Raises:
        ParameterError: It is neither a k nor a pair.
    """
    if isinstance(k, int):
        return k
    try:
        k_a, k_b = k
    except (TypeError, ValueError):
        k_a = k_b = None  # type: ignore[assignment]
    if type(k_a) is not int or type(k_b) is not int:
        what = "This is no k of a module."
        raise ParameterError(what, expected="k, or (k_a, k_b)", found=repr(k))
    return k_a if k_a == k_b else (k_a, k_b)
