"""What coding keeps of every layer at each size: the curves against bytes. No torch.

While a collection is still being measured they are of the layers that are there, each task coded by
itself; these are kept, so that a layer which arrives costs no more than itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vlora_engine.codec.forecast import OWN_OVERHEAD, Forecast, OwnTable, RateTables, kept_share
from vlora_engine.codec.rates import direction_rate

Array = npt.NDArray[Any]

STEPS = np.exp2(np.arange(2, -45, -1) / 2)  # coarse to fine, half an octave apart: 2 to 2^-22


@dataclass(frozen=True, eq=False)
class ByteCurves:
    """A method's sizes from coarse to fine (P,), and what is left there of tasks and layers.

    Args:
        layers: Names, in the order of columns.
        nbytes: (P,) on disk, ascending.
        mean: (P,) mean error over the tasks; ``worst`` the largest of any.
        missed: (P,) mean over the tasks of the squared error.
        kept: (P, layers) share of a layer's energy; ``errors`` mean relative error of its tasks.
    """

    layers: tuple[str, ...]
    nbytes: Array
    mean: Array
    worst: Array
    missed: Array
    kept: Array
    errors: Array

    def at(self, nbytes: float, values: Array) -> Array:
        """``values`` (P,) or (P, layers) at a size, straight between two rungs."""
        x = float(np.clip(nbytes, self.nbytes[0], self.nbytes[-1]))
        high = int(np.clip(np.searchsorted(self.nbytes, x), 1, max(1, len(self.nbytes) - 1)))
        if len(self.nbytes) < 2:
            return np.asarray(values[0])
        low = high - 1
        span = float(self.nbytes[high] - self.nbytes[low])
        part = (x - float(self.nbytes[low])) / span if span > 0 else 1.0
        return np.asarray(values[low] + part * (values[high] - values[low]))

    def bytes_for(self, share: float) -> float | None:
        """The fewest bytes at which this share of dW is kept, mean over the tasks."""
        kept = 1 - self.missed
        reached = np.flatnonzero(kept >= share - 1e-9)
        if not len(reached):
            return None
        high = int(reached[0])
        if high == 0:
            return float(self.nbytes[0])
        return float(np.interp(share, kept[high - 1 : high + 1], self.nbytes[high - 1 : high + 1]))


def curves_of(
    layers: Iterable[str], rate_tables: RateTables, rungs: Iterable[Forecast]
) -> ByteCurves:
    """The curves through forecasts that are given the finest first."""
    found = list(rungs)[::-1]
    errors = np.array([forecast.errors for forecast in found])
    return ByteCurves(
        tuple(layers),
        np.maximum.accumulate(np.array([rate_tables.nbytes(forecast) for forecast in found])),
        errors.mean(axis=1),
        errors.max(axis=1, initial=0),
        np.square(errors).mean(axis=1),
        np.array([forecast.layer_shares for forecast in found]),
        np.array([forecast.layer_errors for forecast in found]),
    )


class OwnRates:
    """What the layers of one collection cost at every step, each task coded by itself."""

    def __init__(self) -> None:
        self._of: dict[str, tuple[Array, Array]] = {}

    def curves(self, rate_tables: RateTables, part: float = 1.0) -> ByteCurves:
        """The curves of ``own`` on the layers of rate tables.

        Args:
            part: The share of all numbers that lies in these layers; bytes are of all.
        """
        count, energy = len(rate_tables.tasks), np.zeros(len(rate_tables.tasks))
        bits, missed = np.zeros(len(STEPS)), np.zeros((len(STEPS), count))
        kept, errors = [], []
        for layer in rate_tables.layers:
            layer_bits, layer_missed = self._rates(layer)
            own = layer.shares.sum(axis=1, dtype=np.float64)
            bits += layer_bits
            missed[:, layer.tasks] += layer_missed
            energy[layer.tasks] += own
            lost = 1 - kept_share(layer_missed, own)
            kept.append(kept_share(layer_missed.sum(axis=1), own.sum()))
            errors.append(np.sqrt(lost).mean(axis=1) if count else np.zeros(len(STEPS)))
        lost = 1 - kept_share(missed, energy)
        each, fixed = np.sqrt(lost), rate_tables.overhead + rate_tables.rest_bytes
        return ByteCurves(
            tuple(layer.name for layer in rate_tables.layers),
            np.maximum.accumulate(fixed + bits / 8 / max(part, 1e-9)),
            each.mean(axis=1),
            each.max(axis=1, initial=0),
            lost.mean(axis=1),
            np.stack(kept, axis=1),
            np.stack(errors, axis=1),
        )

    def _rates(self, layer: OwnTable) -> tuple[Array, Array]:
        """Bits (P,) of a layer and missed energy (P, N) of its tasks."""
        found = self._of.get(layer.name)
        if found is None or found[1].shape[1] != len(layer.tasks):
            shares, steps = layer.shares[None], STEPS[:, None, None]
            bits, missed = direction_rate(shares, layer.d_out, layer.d_in, steps)
            each = bits.sum(axis=2)
            each = each + np.where(each > 0, OWN_OVERHEAD, 8.0)
            found = each.sum(axis=1), missed.sum(axis=2)
            self._of[layer.name] = found
        return found
