"""Curves of error over size of every method on one collection. No torch.

Those of `delta`, `columns` and `flat` are exact; those of `own` and `auto` come from the codec's
forecast; plain int8 and NF4 of A and B, without sharing anything, from the noise of their blocks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from vlora_engine.codec.forecast import COARSEST, FINEST, Forecast, RateTables
from vlora_engine.compression_target import CODED_METHODS, CompressionTarget
from vlora_engine.errors import VLoRAError
from vlora_engine.quantization.packing import named_quantization
from vlora_engine.spectra.choose import choose
from vlora_engine.spectra.tables import Spectra

RATIOS = (2, 4, 8, 16, 32, 64)
CODED = CODED_METHODS[::-1]  # the best one first
PLAIN = ("int8", "nf4")
SAMPLES = (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)  # codec ratios that a curve is drawn through


@dataclass(frozen=True)
class Point:
    """The errors of one method at one size.

    Args:
        ratio: The codec ratio that was asked for.
        nbytes: On disk.
        mean_error: Mean relative error of dW over tasks.
        max_error: The largest of any task.
    """

    ratio: float
    nbytes: int
    mean_error: float
    max_error: float


@dataclass(frozen=True)
class Curve:
    """The points of one method; ``exact`` if a build has these errors up to rounding."""

    method: str
    exact: bool
    points: tuple[Point, ...]

    def as_dict(self) -> dict[str, Any]:
        """The fields, for JSON."""
        return asdict(self)


def curves(spectra: Spectra, rate_tables: RateTables) -> list[Curve]:
    """The curves of all methods: coded ones, those of the spectra, then plain quantization."""
    return [curve_of(spectra, rate_tables, m) for m in (*CODED, *spectra.methods, *PLAIN)]


def curve_of(spectra: Spectra, rate_tables: RateTables, method: str) -> Curve:
    """The curve of one method; ``int8`` and ``nf4`` have one point."""
    if method in PLAIN:
        return Curve(method, False, (_plain(spectra, rate_tables, method),))
    if method in CODED:
        return Curve(method, False, tuple(_coded(rate_tables, method)))
    return Curve(method, True, tuple(_shared(spectra, rate_tables, method)))


def ladder(rate_tables: RateTables, method: str, finest: float = FINEST) -> Iterator[Forecast]:
    """Forecasts of coding with one step for all, half an octave apart, the finest first.

    From these a curve can be drawn and a target between them be estimated at once;
    `RateTables.solve` gives it exactly. Ends where nothing is left to code.
    """
    for half in range(round(2 * np.log2(finest)), round(2 * np.log2(COARSEST)) + 1):
        forecast = rate_tables.at(method, 2.0 ** (half / 2))
        yield forecast
        if not forecast.payload > len(rate_tables.tasks) * len(rate_tables.layers):
            return  # a byte for each module of each task: none has a direction any more


def bytes_at(rate_tables: RateTables, ratio: float) -> int:
    """Bytes on disk at a codec ratio."""
    return int(rate_tables.factor_bytes / ratio) + rate_tables.rest_bytes


def _coded(rate_tables: RateTables, method: str) -> Iterator[Point]:
    for ratio in SAMPLES:
        try:
            forecast = rate_tables.solve(
                CompressionTarget(method, budget=bytes_at(rate_tables, ratio))
            )
        except VLoRAError:
            return
        errors = forecast.errors
        nbytes = int(rate_tables.nbytes(forecast))
        yield Point(ratio, nbytes, float(errors.mean()), float(errors.max(initial=0)))


def _shared(spectra: Spectra, rate_tables: RateTables, method: str) -> Iterator[Point]:
    for ratio in SAMPLES:
        try:
            nbytes = bytes_at(rate_tables, ratio)
            choice = choose(spectra, CompressionTarget(method, budget=nbytes, dtype="fp16"))
        except VLoRAError:
            return
        prediction = choice.prediction
        yield Point(ratio, prediction.nbytes, prediction.mean_error, prediction.max_error)


def _plain(spectra: Spectra, rate_tables: RateTables, name: str) -> Point:
    """Plain quantization of A and B: ``err^2 = 1 - (1 - eta)^2``, eta the noise of a side."""
    quantization = named_quantization(name)
    assert quantization is not None  # noqa: S101
    numbers = sum(task.factor_elements for task in spectra.tasks)
    nbytes = rate_tables.overhead + rate_tables.rest_bytes + int(quantization.basis.nbytes(numbers))
    error = float(np.sqrt(1 - (1 - quantization.basis.noise) ** 2))
    ratio = rate_tables.factor_bytes / max(1, nbytes - rate_tables.rest_bytes)
    return Point(round(ratio, 2), nbytes, error, error)
