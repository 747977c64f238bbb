"""Coding a collection until a target is met on what was measured.

The tables tell a step; a sample of layers, or the whole, tells how far the tables are off; the
next step is told with that. Bytes and errors are bounds that are kept, and used up but for little.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace

import numpy as np
import torch

from vlora_engine.build import Collection
from vlora_engine.codec.layer import CodedLayer, Group, code_layer
from vlora_engine.codec.outlook import FINEST, Correction, Forecast, Outlook, Target
from vlora_engine.codec.parts import Parts
from vlora_engine.codec.tables import Array
from vlora_engine.errors import TargetError
from vlora_engine.progress import CancelCheck, ProgressCallback, map_ordered
from vlora_engine.stack import read_stack

logger = logging.getLogger(__name__)

# Room that each attempt leaves below its target: what a change of the step does to single tasks.
SLACK = {"budget": (0.002, 0.003, 0.006, 0.012, 0.05), "error": (0.005, 0.006, 0.008, 0.012, 0.05)}
USED = 0.99
SAMPLED = 6  # of one layer in so many bytes are counted before the rest, and of at least so many
WHOLE = 4_000_000  # numbers below which the whole collection is coded instead of a sample


@dataclass
class Coded:
    """A coded collection.

    Args:
        forecast: The steps and modes that it was coded with. errors: (N,) measured.
        payload: Bytes. nbytes: On disk, all in all.
        reused: Layers that were there already.
    """

    forecast: Forecast
    parts: Parts
    errors: Array
    payload: int
    reused: int


@dataclass
class Coder:
    """Codes one collection, as often as it takes.

    Args:
        parts: Makes the place for the layers of a forecast. size: The bytes on disk that a coded
            collection will take.
    """

    collection: Collection
    outlook: Outlook
    method: str
    target: Target
    parts: Callable[[Forecast], Parts]
    size: Callable[[Coded], int]
    device: torch.device | str = "cpu"
    progress: ProgressCallback | None = None
    cancelled: CancelCheck | None = None

    def run(self) -> Coded:
        """Code the collection.

        Raises:
            TargetError: The target cannot be met.
            Cancelled: Stopped between two layers.
        """
        correction = Correction(np.ones(len(self.outlook.tasks)), 1.0)
        layers = self.outlook.layers
        numbers = sum(layer.shares.size * (layer.d_in + layer.d_out) for layer in layers)
        if numbers > WHOLE:
            correction = self._sample(self.outlook.solve(self.method, self.target))
        for slack in SLACK["budget" if self.target.budget is not None else "error"]:
            wanted = self.target.tightened(1 - slack)
            forecast = self.outlook.solve(self.method, wanted, correction)
            coded = self._code(forecast)
            nbytes = self.size(coded)
            if self._is_met(coded, nbytes):
                return coded
            logger.info("missed by a little with a slack of %s; once more", slack)
            correction = self._corrected(coded)
            if self.target.budget is not None:
                rest = self.outlook.rest_bytes
                self.outlook = replace(self.outlook, overhead=nbytes - rest - coded.payload)
        raise TargetError(
            "The target was not met within a few attempts.",
            expected=_words(self.target),
            found=f"errors up to {coded.errors.max():.4g}, {nbytes} bytes",
            remedy="allow a little more",
        )

    def _is_met(self, coded: Coded, nbytes: int) -> bool:
        target, errors = self.target, coded.errors
        if target.budget is not None:
            free, taken = (n - self.outlook.rest_bytes for n in (target.budget, nbytes))
            return taken <= free and (taken >= USED * free or self._is_finest(coded.forecast))
        if target.max_error is not None:
            found, wanted = float(errors.max(initial=0)), target.max_error
        elif target.mean_error is not None:
            found, wanted = float(errors.mean()), target.mean_error
        else:
            assert target.variance is not None  # noqa: S101
            found, wanted = float(np.square(errors).mean()), 1 - target.variance
        return found <= wanted and (found >= USED * wanted or not self.outlook.alive.any())

    def _is_finest(self, forecast: Forecast) -> bool:
        return bool(forecast.steps.max(initial=0) <= 2 * FINEST)

    def _code(self, forecast: Forecast) -> Coded:
        parts = self.parts(forecast)
        count = len(self.collection.layers)
        missing = [i for i in range(count) if not parts.has(i)]
        layers = self._layers(forecast, missing, "build", write=True)
        with closing(layers):
            for index, layer in zip(missing, layers, strict=True):
                parts.write(index, layer)
        places = {name: i for i, name in enumerate(self.outlook.tasks)}
        missed, payload = np.zeros(len(places)), 0
        for index in range(count):
            tasks, _, residual, nbytes = parts.figures(index)
            missed[[places[task] for task in tasks]] += residual
            payload += nbytes
        errors = np.sqrt(missed.clip(0)) * self._weights
        return Coded(forecast, parts, errors, payload, count - len(missing))

    def _sample(self, forecast: Forecast) -> Correction:
        """How far the tables are off: errors by all layers, bytes, which take longer, by some."""
        count, write = len(self.collection.layers), self.target.budget is not None
        every = max(1, min(SAMPLED, count // SAMPLED)) if write else 1
        chosen = list(range(every // 2, count, every))
        layers = self._layers(forecast, chosen, "sample", write=write)
        places = {name: i for i, name in enumerate(self.outlook.tasks)}
        missed, nbytes = np.zeros(len(places)), 0
        with closing(layers):
            for layer in layers:
                missed[[places[task] for task in layer.tasks]] += layer.residual
                nbytes += layer.nbytes
        told = self.outlook.only(chosen).forecast(
            forecast.steps, [forecast.modes[i] for i in chosen]
        )
        errors = np.sqrt(missed.clip(0)) * self._weights
        payload = nbytes / told.payload if write and told.payload else 1.0
        return Correction(_ratio(errors, told.errors), payload)

    def _corrected(self, coded: Coded) -> Correction:
        told = coded.forecast
        payload = coded.payload / told.payload if told.payload else 1.0
        return Correction(_ratio(coded.errors, told.errors), payload)

    @property
    def _weights(self) -> Array:
        """1 / ||dW|| of every task."""
        return np.array([self.collection.weights[name] for name in self.outlook.tasks])

    def _layers(
        self, forecast: Forecast, chosen: Sequence[int], stage: str, *, write: bool
    ) -> Generator[CodedLayer, None, None]:
        weights = self._weights
        steps = np.divide(forecast.steps, weights, out=np.zeros(len(weights)), where=weights > 0)
        by_name = dict(zip(self.outlook.tasks, steps.tolist(), strict=True))
        names = [spec.name for spec in self.collection.layers]

        def work(index: int) -> CodedLayer:
            stack = read_stack(
                names[index], self.collection.sources, self.collection.weights, self.device
            )
            own = np.array([by_name[task] for task in stack.tasks])
            return code_layer(stack, own, self.groups_of(forecast, index), write=write)

        return map_ordered(
            work,
            list(chosen),
            stage=stage,
            describe=names.__getitem__,
            progress=self.progress,
            cancelled=self.cancelled,
        )

    def groups_of(self, forecast: Forecast, index: int) -> list[Group]:
        """The groups that share on a layer, by the names of their tasks."""
        tasks = self.outlook.layers[index].tasks
        return [
            Group(m.number, m.kind, tuple(self.outlook.tasks[tasks[row]] for row in m.members))
            for m in forecast.modes[index]
        ]


def _ratio(measured: Array, told: Array) -> Array:
    return np.where((told > 0) & (measured > 0), measured / np.where(told > 0, told, 1), 1.0)


def _words(target: Target) -> str:
    given = {name: value for name, value in vars(target).items() if value is not None}
    return ", ".join(f"{name} {value:g}" for name, value in given.items())
