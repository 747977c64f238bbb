"""The weights and parameters of a merge for every module; no torch."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

from vlora_engine.errors import ParameterError
from vlora_engine.merging.registry import MergeMethod

# By pattern of module names: other weights, or a table of other weights and parameters.
Layers = Mapping[str, Sequence[float] | Mapping[str, Any]]


@dataclass(frozen=True)
class ModuleSettings:
    """The settings of one module: a weight for each adapter, and the method's parameters."""

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
    """The settings of every module, with the changes that patterns make.

    Args:
        method: The spec.
        modules: Their names.
        count: The number of adapters.
        weights: One for each adapter; None for the method's default.
        layers: Other weights or parameters by pattern (fnmatch, later ones win).
        normalise: Divide the weights by their sum. Not for methods that normalise by themselves.
        values: The checked parameters.

    Raises:
        ParameterError: Weights of the wrong number, not finite, all zero, or of sum 0 where they
            are normalised; a pattern that matches nothing; a parameter out of range.
    """
    base = check_weights(weights, count, method)
    settings = {module: ModuleSettings(base, values) for module in modules}
    for pattern, change in (layers or {}).items():
        matches = fnmatch.filter(modules, pattern)
        if not matches:
            raise ParameterError(
                f"The pattern {pattern!r} matches no module.",
                expected=f"such as {modules[0]!r}" if modules else "a module",
            )
        for module in matches:
            settings[module] = _changed(method, settings[module], change, count, pattern)
    if normalise:
        settings = {
            module: ModuleSettings(_normalised(module_settings.weights), module_settings.values)
            for module, module_settings in settings.items()
        }
    if not any(any(module_settings.weights) for module_settings in settings.values()):
        raise ParameterError("All weights are zero: nothing would be merged.")
    return settings


def check_weights(
    weights: Sequence[float] | None, count: int, method: MergeMethod | None = None
) -> tuple[float, ...]:
    """Check the weights; None gives the method's default.

    Raises:
        ParameterError: Not one for each adapter, or one that is not a finite number.
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
        is_number = isinstance(weight, Real) and not isinstance(weight, bool)
        if not is_number or not math.isfinite(weight):
            raise ParameterError(
                "A weight is no finite number.", expected="finite numbers", found=repr(weight)
            )
    return tuple(float(weight) for weight in given)


def weights_of_layers(layers: Layers | None) -> list[Sequence[float] | None]:
    """The weights that each pattern of ``layers`` sets; None where it sets none."""
    rows = (layers or {}).values()
    return [row.get("weights") if isinstance(row, Mapping) else row for row in rows]


def varied_modules(modules: Sequence[str], layers: Layers) -> int:
    """The number of modules that a pattern of ``layers`` matches."""
    return len({module for pattern in layers for module in fnmatch.filter(modules, pattern)})


def check_layers(method: MergeMethod, layers: Layers | None, count: int) -> None:
    """Check what can be checked of ``layers`` before the modules are known.

    Raises:
        ParameterError: As `settings_of`.
    """
    default = ModuleSettings(check_weights(None, count, method), method.check({}, count))
    for pattern, change in (layers or {}).items():
        _changed(method, default, change, count, pattern)


def _changed(
    method: MergeMethod,
    before: ModuleSettings,
    change: Sequence[float] | Mapping[str, Any],
    count: int,
    pattern: str,
) -> ModuleSettings:
    table = dict(change) if isinstance(change, Mapping) else {"weights": change}
    weights_given = table.pop("weights", None)
    if "seed" in table:
        raise ParameterError("The seed is one for the whole merge.", where=pattern)
    try:
        weights = before.weights if weights_given is None else check_weights(weights_given, count)
        unchanged = {k: v for k, v in before.values.items() if k not in _set_by(method, table)}
        values = method.check({**unchanged, **table}, count) if table else before.values
    except ParameterError as error:
        error.where = error.where or f"layers {pattern!r}"
        raise
    return ModuleSettings(weights, values)


def _set_by(method: MergeMethod, table: Mapping[str, Any]) -> set[str]:
    """The parameters that a table sets, by name or by complement."""
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
