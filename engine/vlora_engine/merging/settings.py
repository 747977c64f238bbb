"""The request of a merge, checked before any adapter is read; no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from vlora_engine.errors import CollectionError, ParameterError
from vlora_engine.merging.methods import find_method
from vlora_engine.merging.registry import MergeMethod
from vlora_engine.merging.weights import (
    Layers,
    check_layers,
    check_weights,
    weights_of_layers,
)


def check_request(
    count: int,
    method: str,
    *,
    weights: Sequence[float] | None = None,
    layers: Layers | None = None,
    normalize: bool | None = None,
    scale: float = 1.0,
    space: str = "delta",
    dialect: str | None = None,
    rank: int | None = None,
    energy: float | None = None,
    parameters: Mapping[str, Any],
) -> tuple[MergeRequest, dict[str, Any]]:
    """Check everything about a merge that needs no adapter; returns the request and parameters.

    Raises:
        ParameterError: An unknown method or parameter, a value out of range, or a conflict.
        CollectionError: No adapters.
    """
    spec = find_method(method, dialect)
    values = spec.check(parameters, count or None)
    request = MergeRequest(spec, space, dialect, normalize, scale, rank, energy)
    request.check(count)
    check_weights(weights, count, spec)
    check_layers(spec, layers, count)
    if count == 1:
        request.check_alone([weights, *weights_of_layers(layers)])
    return request, values


@dataclass(frozen=True)
class MergeRequest:
    """The options of a merge that all methods have, apart from adapters and weights."""

    spec: MergeMethod
    space: str
    dialect: str | None
    normalize: bool | None
    scale: float
    rank: int | None
    energy: float | None

    @property
    def is_factorwise(self) -> bool:
        """Whether A and B are merged apart."""
        return self.space == "factors" or (
            self.dialect == "peft" and self.spec.name not in ("cat", "svd")
        )

    @property
    def normalises(self) -> bool:
        """Whether weights are normalised, as asked or as the method does by default."""
        return self.spec.normalises_weights if self.normalize is None else self.normalize

    @property
    def averages(self) -> bool:
        """Whether agreeing entries are averaged, not summed."""
        return self.spec.normalises == "entry" and self.normalises

    @property
    def divides_weights(self) -> bool:
        """Whether the weights are divided by their sum before anything else."""
        if self.is_factorwise:
            return bool(self.normalize)
        return self.spec.normalises != "entry" and self.normalises

    @property
    def is_side_by_side(self) -> bool:
        """Whether the adapters' own A and B are stacked, not the singular directions of a sum."""
        return self.spec.name == "cat" and self.keeps_rank

    @property
    def keeps_rank(self) -> bool:
        """Whether no cut of the rank is asked for."""
        return self.rank is None and self.energy is None

    @property
    def is_sum(self) -> bool:
        """Whether the result is the plain weighted sum of the weight changes."""
        return self.operator in ("task_arithmetic", "cat") and not self.is_factorwise

    @property
    def operator(self) -> str:
        """The name of the operator; PEFT's exact methods are sums."""
        return "task_arithmetic" if self.dialect == "peft" else self.spec.name

    def check(self, count: int) -> None:
        """Check ranges and conflicts between options, for this number of adapters.

        Raises:
            ParameterError: An option out of range, or a conflict.
            CollectionError: No adapters.
        """
        if not count:
            raise CollectionError("There are no adapters to merge.", expected="at least one")
        self.spec.check_count(count)
        self._check_space()
        if self.normalize is False and not self.spec.may_normalise:
            raise ParameterError(f"Merging by {self.spec.label} always normalises its weights.")
        if not _is_number(self.scale) or self.scale == 0:
            raise ParameterError(
                "scale is out of range.", expected="any number but 0", found=repr(self.scale)
            )
        if self.energy is not None and not (_is_number(self.energy) and 0 < self.energy <= 1):
            raise ParameterError(
                "energy is out of range.", expected="(0, 1]", found=repr(self.energy)
            )

    def check_alone(self, weights: Sequence[Sequence[float] | None]) -> None:
        """Refuse weights of a single adapter of which the method would leave nothing.

        Raises:
            ParameterError: Weights are divided by their sum, so that -1 or 0.5 would count as 1; or
                entries are averaged over them, so that only the sign counts.
        """
        if not (self.divides_weights or self.averages):
            return
        for weight in (row[0] for row in weights if row):
            left = math.copysign(1.0, weight) if self.averages else 1.0
            if weight not in (0, left):
                way = "averages over" if self.averages else "divides by the sum of"
                remedy = "--method linear takes the weight as it is"
                if self.spec.may_normalise:
                    remedy += "; so does --no-normalize"
                raise ParameterError(
                    f"Merging by {self.spec.label} {way} its weights: of one adapter's {weight:g} "
                    f"{left:g} would be left.",
                    expected=f"{left:g}",
                    found=f"{weight:g}",
                    remedy=remedy,
                )

    def _check_space(self) -> None:
        if self.space not in ("delta", "factors"):
            raise ParameterError(
                "Adapters are merged in one of two spaces.",
                expected="'delta' or 'factors'",
                found=repr(self.space),
            )
        if self.space == "factors" and self.dialect is not None:
            raise ParameterError("A dialect says by itself what is merged; leave space out.")
        if self.space == "factors" and not self.spec.factors:
            raise ParameterError(
                f"The first library has no {self.spec.label}.",
                expected="average, ties or dare with space='factors'",
                remedy="merge weight changes: space='delta'",
            )
        if self.rank is None and self.energy is None:
            return
        rank = self.rank
        bad = rank is not None and (
            not isinstance(rank, Integral) or isinstance(rank, bool) or rank < 1
        )
        if bad:
            raise ParameterError("rank is out of range.", expected=">= 1", found=repr(rank))
        if rank is not None and self.energy is not None:
            raise ParameterError("rank and energy are both given.", expected="one of them")
        if self.is_factorwise:
            name = "rank" if rank is not None else "energy"
            raise ParameterError(
                f"{name} cuts weight changes; merging A and B apart keeps the adapters' rank.",
                remedy=f"leave {name} out, or merge with space='delta'",
            )


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
