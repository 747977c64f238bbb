"""Code one adapter by itself, at a step or within an error.

To try another step takes no reading and no decomposition: the singular directions are kept. Which
step to try follows from the codec's forecast, corrected by what was measured at the one before.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import cached_property

import numpy as np

from vlora_engine.adapters.model import AdapterSource
from vlora_engine.adapters.stack import read_stack
from vlora_engine.codec.blobs import NO_EFFECT, pack_own
from vlora_engine.codec.forecast import COARSEST, FINEST
from vlora_engine.codec.layer import PACKED_AT_ONCE
from vlora_engine.codec.own import Directions, canonical, code_changes
from vlora_engine.codec.rates import direction_rate
from vlora_engine.codec.tables import Array
from vlora_engine.manifest.manifest import LayerSpec
from vlora_engine.subspace.coded.layer_parts import TaskShare

_NEAR = 0.99  # of an allowed error: a step that comes so close is taken
_LOWER = 0.001  # how much lower the first try aims; twice as much after each that came out above
_TRIES = 8
_HALVINGS = 24
_KEPT = 64 << 20  # numbers of singular directions that are kept, half a gigabyte; others read anew

Change = tuple[Array, Array, Array]  # U (1, q, d_out), S (1, q) and V (1, q, d_in)


class LoneAdapter:
    """An adapter that is coded by itself.

    Args:
        layers: The modules of the collection; those that the adapter has are coded.
        source: The adapter.
        norm: Its ||dW||.
    """

    def __init__(self, layers: Sequence[LayerSpec], source: AdapterSource, norm: float) -> None:
        self._specs = [spec for spec in layers if spec.name in source.modules]
        self._source, self._norm = source, norm
        self._changes: dict[str, Change] = {}
        self._values: dict[str, Array] = {}
        self._energy: dict[str, float] = {}
        self._numbers = 0
        self._coded: list[Directions | None] = []

    def code(self, step: float) -> float:
        """Code it at a step, relative to ||dW||; returns the error, relative as well."""
        absolute = np.asarray([step * self._norm], dtype=np.float32).astype(np.float64)
        self._coded = []
        for spec in self._specs:
            change = self._change(spec.name)
            found = code_changes(*change, absolute)[0] if absolute[0] > 0 else None
            self._coded.append(found)
        return self._error(sum(c.missed for c in self._coded if c is not None))

    def code_within(self, limit: float, tried: float, error: float) -> float:
        """Code it in about the coarsest step that keeps to an error; returns what it came to.

        Args:
            limit: The error allowed.
            tried: A step that was too coarse.
            error: What it came to.
        """
        step, lower, low = tried, _LOWER, np.log2(FINEST)
        for _ in range(_TRIES):
            step = self._step_for(limit * (1 - lower), error / max(self._forecast(step), 1e-300))
            error = self.code(step)
            if _NEAR * limit <= error <= limit:
                return error
            if error > limit:
                lower *= 2
        high = np.log2(COARSEST)
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            low, high = (middle, high) if self.code(2.0**middle) <= limit else (low, middle)
            if high - low < 0.002:
                break
        return self.code(2.0**low)

    def shares(self) -> list[TaskShare]:
        """What it was coded to at last, module by module."""
        directions = [c for c in self._coded if c is not None]
        starts = range(0, len(directions), PACKED_AT_ONCE)
        parts = [pack_own(directions[start : start + PACKED_AT_ONCE]) for start in starts]
        blobs = iter([blob for part in parts for blob in part])
        return [
            TaskShare(NO_EFFECT, self._energy[spec.name], 0.0)
            if coded is None
            else TaskShare(next(blobs), self._energy[spec.name], coded.missed)
            for spec, coded in zip(self._specs, self._coded, strict=True)
        ]

    def _change(self, name: str) -> Change:
        """The singular directions of a module; fills in its energy."""
        if name in self._changes:
            return self._changes[name]
        stack = read_stack(name, {"": self._source}, {"": 1 / self._norm if self._norm else 0.0})
        self._energy[name] = float(stack.energy()[0])
        change = canonical(stack.a, stack.bt, stack.scale)
        self._values[name] = change[1][0]
        self._numbers += sum(part.size for part in change)
        if self._numbers <= _KEPT:
            self._changes[name] = change
        return change

    def _error(self, missed: float) -> float:
        return float(missed**0.5 / self._norm) if self._norm > 0 else 0.0

    def _forecast(self, step: float) -> float:
        """The error to expect at a step."""
        absolute = np.asarray(step * self._norm)
        missed = (direction_rate(*of_shape, absolute)[1].sum() for of_shape in self._spectra)
        return self._error(float(sum(missed)))

    @cached_property
    def _spectra(self) -> list[tuple[Array, int, int]]:
        """The energies of all directions of modules of one shape, with d_out and d_in."""
        of_shape: dict[tuple[int, int], list[Array]] = defaultdict(list)
        for spec in self._specs:
            of_shape[spec.d_out, spec.d_in].append(np.square(self._values[spec.name]))
        return [(np.concatenate(energies), *shape) for shape, energies in of_shape.items()]

    def _step_for(self, error: float, ratio: float) -> float:
        """The step at which ``ratio`` times the forecast comes to an error."""
        low, high = np.log2(FINEST), np.log2(COARSEST)
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            below = ratio * self._forecast(2.0**middle) <= error
            low, high = (middle, high) if below else (low, middle)
        return float(2.0**low)
