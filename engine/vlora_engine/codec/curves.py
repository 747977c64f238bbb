"""Size against error of every method on one collection: what a screen draws and `plan` prints.

`delta`, `columns` and `flat` are exact; `own` and `auto` are told from the outlook; plain int8 and
NF4 of A and B as they are, without sharing anything, from the noise of their blocks. No torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from vlora_engine.budget import choose
from vlora_engine.codec.outlook import Outlook, Target
from vlora_engine.errors import VLoRAError
from vlora_engine.packing import NOISE, named_quantization
from vlora_engine.surface import Spectra

RATIOS = (2, 4, 8, 16, 32, 64)
SAMPLES = (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)  # codec ratios that a curve is drawn through


@dataclass(frozen=True)
class Point:
    """One size.

    Args:
        ratio: Codec ratio that was asked for. nbytes: On disk.
    """

    ratio: float
    nbytes: int
    mean_error: float
    max_error: float


@dataclass(frozen=True)
class Curve:
    """One method. ``exact``: its errors are what a build will have, up to rounding."""

    method: str
    exact: bool
    points: tuple[Point, ...]

    def as_dict(self) -> dict[str, Any]:
        """The same, for JSON."""
        return asdict(self)


def curves(spectra: Spectra, outlook: Outlook) -> list[Curve]:
    """The curves of all methods, best first in the order of their words."""
    coded = [Curve(m, False, tuple(_coded(outlook, m))) for m in ("auto", "own")]
    shared = [Curve(m, True, tuple(_shared(spectra, outlook, m))) for m in spectra.methods]
    plain = [Curve(m, False, (_plain(spectra, outlook, m),)) for m in ("int8", "nf4")]
    return [*coded, *shared, *plain]


def bytes_at(outlook: Outlook, ratio: float) -> int:
    """Bytes on disk at a codec ratio."""
    return int(outlook.factor_bytes / ratio) + outlook.rest_bytes


def _coded(outlook: Outlook, method: str) -> Iterator[Point]:
    for ratio in SAMPLES:
        try:
            found = outlook.solve(method, Target(budget=bytes_at(outlook, ratio)))
        except VLoRAError:
            return
        errors = found.errors
        nbytes = int(outlook.nbytes(found))
        yield Point(ratio, nbytes, float(errors.mean()), float(errors.max(initial=0)))


def _shared(spectra: Spectra, outlook: Outlook, method: str) -> Iterator[Point]:
    for ratio in SAMPLES:
        try:
            found = choose(spectra, method, budget=bytes_at(outlook, ratio), dtype="fp16")
        except VLoRAError:
            return
        own = found.prediction
        yield Point(ratio, own.nbytes, own.mean_error, own.max_error)


def _plain(spectra: Spectra, outlook: Outlook, name: str) -> Point:
    """A and B themselves, packed: both carry the noise, and dW that of both."""
    quantization = named_quantization(name)
    assert quantization is not None  # noqa: S101
    numbers = sum(task.factor_elements for task in spectra.tasks)
    nbytes = outlook.overhead + outlook.rest_bytes + int(quantization.basis.nbytes(numbers))
    error = float(np.sqrt(1 - (1 - NOISE[name]) ** 2))
    ratio = outlook.factor_bytes / max(1, nbytes - outlook.rest_bytes)
    return Point(round(ratio, 2), nbytes, error, error)
