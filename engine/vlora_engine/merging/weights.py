"""Weights and parameters of a merge, module by module; no torch."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

from vlora_engine.errors import ParameterError
from vlora_engine.merging.registry import MergeMethod

# What `layers` may say of the modules that a pattern matches: weights, or a table of what differs.
Layers = Mapping[str, Sequence[float] | Mapping[str, Any]]


@dataclass(frozen=True)
class ModuleSettings:
    """Of one module: a weight for each adapter, and the method's parameters."""

    weights: tuple[float, ...]
    values: Mapping[str, Any]


def settings_of(
    method: MergeMethod,
    modules: Sequence[str],
    count: int,
    *,
    weights: Sequence[float] | None,
    layers: Layers | None,
    normalise: bool,
    values: Mapping[str, Any],
) -> dict[str, ModuleSettings]:
    """The settings of every module.

    Args:
        weights: One for each of the ``count`` adapters; None is the method's default.
        layers: By pattern (fnmatch, later ones win) other weights or parameters.
        normalise: Divide the weights by their sum. Methods that normalise by themselves need it
            not, and get their weights as they are.
        values: The parameters, checked.

    Raises:
        ParameterError: Weights of the wrong number, not finite, all zero, or of sum 0 where they
            are normalised; a pattern that matches nothing; a parameter out of range.
    """
    base = check_weights(weights, count, method)
    found = {module: ModuleSettings(base, values) for module in modules}
    for pattern, said in (layers or {}).items():
        matches = fnmatch.filter(modules, pattern)
        if not matches:
            raise ParameterError(
                f"The pattern {pattern!r} matches no layer.",
                expected=f"such as {modules[0]!r}" if modules else "a module",
            )
        for module in matches:
            found[module] = _changed(method, found[module], said, count, pattern)
    if normalise:
        found = {
            module: ModuleSettings(_normalised(one.weights), one.values)
            for module, one in found.items()
        }
    if not any(any(one.weights) for one in found.values()):
        raise ParameterError("All weights are zero: nothing would be merged.")
    return found


def check_weights(
    weights: Sequence[float] | None, count: int, method: MergeMethod | None = None
) -> tuple[float, ...]:
    """The weights as numbers; without any, the method's default.

    Raises:
        ParameterError: Not one for each adapter, or one that is no finite number.
    """
    if weights is None:
        alone = method is not None and method.default_weights == "1"
        return ((1.0 if alone else 1.0 / count),) * count
    given = list(weights)
    if len(given) != count:
        raise ParameterError(
            "Every adapter needs one weight.", expected=f"{count} weights", found=f"{len(given)}"
        )
    for weight in given:
        good = isinstance(weight, Real) and not isinstance(weight, bool)
        if not good or not math.isfinite(weight):
            raise ParameterError(
                "A weight is no finite number.", expected="finite numbers", found=repr(weight)
            )
    return tuple(float(weight) for weight in given)


def varied_modules(modules: Sequence[str], layers: Layers) -> int:
    """How many modules a pattern of ``layers`` matches."""
    return len({module for pattern in layers for module in fnmatch.filter(modules, pattern)})


def check_layers(method: MergeMethod, layers: Layers | None, count: int) -> None:
    """What of ``layers`` can be judged before the modules are known.

    Raises:
        ParameterError: As `settings_of`.
    """
    nothing = ModuleSettings(check_weights(None, count, method), method.check({}, count))
    for pattern, said in (layers or {}).items():
        _changed(method, nothing, said, count, pattern)


def _changed(
    method: MergeMethod,
    before: ModuleSettings,
    said: Sequence[float] | Mapping[str, Any],
    count: int,
    pattern: str,
) -> ModuleSettings:
    table = dict(said) if isinstance(said, Mapping) else {"weights": said}
    own = table.pop("weights", None)
    if "seed" in table:
        raise ParameterError("The seed is one for the whole merge.", where=pattern)
    try:
        weights = before.weights if own is None else check_weights(own, count)
        kept = {k: v for k, v in before.values.items() if k not in _said(method, table)}
        values = method.check({**kept, **table}, count) if table else before.values
    except ParameterError as error:
        error.where = error.where or f"layers {pattern!r}"
        raise
    return ModuleSettings(weights, values)


def _said(method: MergeMethod, table: Mapping[str, Any]) -> set[str]:
    """The parameters that a table sets, by their own names or those of their complements."""
    return {p.name for p in method.parameters if p.name in table or p.complement in table}


def _normalised(weights: Iterable[float]) -> tuple[float, ...]:
    given = tuple(weights)
    total = math.fsum(given)
    if not any(given):
        return given
    if abs(total) <= 1e-12 * math.fsum(map(abs, given)):
        raise ParameterError(
            "Weights that add up to 0 cannot be normalised.",
            found=", ".join(f"{weight:g}" for weight in given),
            remedy="leave normalize out, or change a weight",
        )
    return tuple(weight / total for weight in given)
