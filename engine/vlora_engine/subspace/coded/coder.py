"""Code a collection until the measured result meets a target.

The tables give a step, and the coded layers show how far the tables are off. Large collections are
coded once, each block of layers with corrections from those before; small ones as often as it
takes. Bytes and errors are bounds that are kept, and used up but for little.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from vlora_engine.adapters.needs import StackShape, coding
from vlora_engine.adapters.stack import read_stack
from vlora_engine.codec.forecast import FINEST, Correction, Forecast, RateTables
from vlora_engine.codec.layer import CodedLayer, Group, code_layer
from vlora_engine.codec.rate_control import RateController, blocks
from vlora_engine.codec.tables import Array
from vlora_engine.compression_target import CompressionTarget
from vlora_engine.errors import TargetError
from vlora_engine.subspace.coded.layer_parts import Parts
from vlora_engine.subspace.request import Collection
from vlora_engine.utils.device import pick_device
from vlora_engine.utils.run_context import RunContext
from vlora_engine.utils.workers import map_ordered

logger = logging.getLogger(__name__)

# The margin that an attempt leaves below its target: a change of the step moves single tasks.
SLACK = {"budget": 0.0015, "error": 0.005}
USED = 0.99
CORRECTED = 3  # attempts that are told by how far the one before was off ...
ATTEMPTS = 12  # ... before the others close in on the target from both sides
WHOLE = 4_000_000  # numbers below which the whole collection is coded a few times, ...
STEERED = 6  # ... as it is where it has fewer layers; others are coded once, steered
STEERED_SLACK = 0.0005
STEERED_AGAIN = 5  # times at most that the last block is coded until it fits


@dataclass
class Coded:
    """What coding a collection came to: its bytes, and the figures of every task.

    Args:
        forecast: The steps and modes that it was coded with. errors: (N,) measured.
        payload: Bytes. nbytes: On disk, all in all.
        reused: Layers that were there already.
    """

    forecast: Forecast
    parts: Parts
    errors: Array
    payload: int
    nbytes: int
    reused: int


@dataclass
class Coder:
    """Codes one collection, as often as it takes.

    Args:
        parts: Makes the place for the layers of a forecast. size: The bytes on disk that a coded
            collection will take.
        stage: What progress calls it: ``build`` until all layers were coded once, then ``refine``.
    """

    collection: Collection
    rate_tables: RateTables
    target: CompressionTarget
    parts: Callable[[Forecast], Parts]
    size: Callable[[Coded], int]
    context: RunContext
    room: Callable[[int], None] | None = None
    stage: str = "build"

    def run(self) -> Coded:
        """Code the collection.

        Raises:
            TargetError: The target cannot be met.
            Cancelled: Stopped between two layers.
        """
        allowed = self.target.allowed(self.rate_tables.rest_bytes)
        slack = SLACK["budget" if self.target.budget is not None else "error"]
        correction = Correction(np.ones(len(self.rate_tables.tasks)), 1.0)
        layers = self.rate_tables.layers
        numbers = sum(layer.shares.size * (layer.d_in + layer.d_out) for layer in layers)
        if numbers > WHOLE and len(self.collection.layers) >= STEERED:
            coded = self._steer(self._solve(allowed * (1 - STEERED_SLACK), correction), allowed)
            if self._is_near(coded, allowed):
                return coded
            logger.info("came to %.6g of %.6g in one go", self._found(coded), allowed)
            correction = self._corrected(coded)
        return self._approach(allowed, allowed * (1 - slack), correction)

    def _approach(self, allowed: float, wanted: float, correction: Correction) -> Coded:
        """Code the whole again and again, each attempt corrected by those before."""
        aims, best, least = _Aims(wanted), None, np.inf
        for attempt in range(ATTEMPTS):
            forecast = self._solve(aims.current, correction)
            self._ask_for_room(self.rate_tables.nbytes(forecast, correction))
            coded = self._code(forecast)
            found = self._found(coded)
            least = min(least, found)
            if self._is_near(coded, allowed):
                return coded
            if found <= allowed and (best is None or found > self._found(best)):
                best = coded
            logger.info("attempt %s came to %.6g of %.6g", attempt, found, allowed)
            if attempt < CORRECTED:
                correction = self._corrected(coded)
            elif not aims.close_in(found, allowed, wanted):
                break
        if best is None:
            raise self._out_of_reach(least)
        # Small collections have no state for every size: the one nearest below is what there is.
        return best if best is coded else self._code(best.forecast)

    def _steer(self, forecast: Forecast, allowed: float) -> Coded:
        """Code the collection once, choosing the steps of every block by what came before."""
        parts = self.parts(forecast)
        nothing = np.zeros(len(self.rate_tables.tasks))
        coded = Coded(forecast, parts, nothing, 0, 0, 0)
        aim = allowed * (1 - STEERED_SLACK)
        overhead = self.size(coded) - self.rate_tables.rest_bytes
        controller = RateController(self.rate_tables, self.target, aim, forecast, overhead)
        self._ask_for_room(self.rate_tables.nbytes(forecast))
        rest, done, reused, logs = blocks(len(self.collection.layers)), 0, 0, nothing
        total = len(self.collection.layers)
        while rest:
            block, left = rest.pop(0), sorted(i for b in rest for i in b)
            steps = controller.steps(sorted(block + left))
            for _ in range(STEERED_AGAIN):
                # What was steered again may be half of one try and half of another.
                present = [i for i in block if parts.has(i)] if left else []
                missing = [i for i in block if i not in present]
                self._write(parts, replace(forecast, steps=steps), missing, done, total)
                measured = controller.measure(block, steps, *self._figures(parts, block))
                whole = controller.measured.plus(measured)
                if left:
                    break
                errors, payload = np.sqrt(whole.missed.clip(0)), int(whole.nbytes)
                coded = replace(coded, errors=errors, payload=payload)
                coded = replace(coded, nbytes=self.size(coded))
                if self._is_near(coded, allowed):
                    break
                steps = controller.retry_steps(block, steps, measured, allowed)
            controller.measured = whole
            done, reused = done + len(block), reused + len(present)
            logs = logs + len(block) * np.log(steps)
        # Adapters that are added later take the step that these took on average.
        steps = np.exp(logs / total)
        return replace(coded, forecast=replace(forecast, steps=steps), reused=reused)

    def _is_near(self, coded: Coded, allowed: float) -> bool:
        """Whether the target is kept, and used up as far as it can be."""
        found = self._found(coded)
        return found <= allowed and (found >= USED * allowed or self._is_spent(coded.forecast))

    def _ask_for_room(self, nbytes: float) -> None:
        """Report once about how many bytes it is going to take."""
        if self.room is not None:
            self.room(int(nbytes))
            self.room = None

    def _solve(self, aim: float, correction: Correction) -> Forecast:
        target = self.target.with_allowed(aim, self.rate_tables.rest_bytes)
        if self.target.budget is not None and target.budget is not None:
            self.rate_tables.check_budget(self.target.budget)
            room = min(self.target.budget, self.rate_tables.floor)
            target = target.with_goal("budget", max(target.budget, room))
        return self.rate_tables.solve(target, correction)

    def _found(self, coded: Coded) -> float:
        """What a coded collection comes to, in the terms of `CompressionTarget.allowed`."""
        errors, target = coded.errors, self.target
        if target.budget is not None:
            return coded.nbytes - self.rate_tables.rest_bytes
        if target.max_error is not None:
            return float(errors.max(initial=0))
        return float(errors.mean() if target.mean_error is not None else np.square(errors).mean())

    def _is_spent(self, forecast: Forecast) -> bool:
        """Whether more could not be used up: there is nothing finer, or nothing to lose."""
        if self.target.budget is not None:
            return bool(forecast.steps.max(initial=0) <= 2 * FINEST)
        return not self.rate_tables.alive.any()

    def _out_of_reach(self, least: float) -> TargetError:
        rest = self.rate_tables.rest_bytes
        nearest = self.target.with_allowed(least, rest)
        return TargetError(
            "The target was not met within a few attempts.",
            expected=f"about {nearest.words()} or more room",
            found=self.target.words(),
            remedy="allow a little more",
        )

    def _code(self, forecast: Forecast) -> Coded:
        parts = self.parts(forecast)
        count = len(self.collection.layers)
        missing = [i for i in range(count) if not parts.has(i)]
        self._write(parts, forecast, missing, 0, len(missing))
        missed, payload = self._figures(parts, range(count))
        coded = Coded(forecast, parts, np.sqrt(missed), payload, 0, count - len(missing))
        return replace(coded, nbytes=self.size(coded))

    def _write(
        self, parts: Parts, forecast: Forecast, missing: Sequence[int], done: int, total: int
    ) -> None:
        """Code some layers, ``done`` of ``total`` having been coded."""
        layers = self._layers(forecast, missing, done, total)
        with closing(layers):
            for index, layer in zip(missing, layers, strict=True):
                parts.write(index, layer)
        if done + len(missing) >= total:
            self.stage = "refine"

    def _figures(self, parts: Parts, layers: Iterable[int]) -> tuple[Array, int]:
        """Of coded layers: (N,) shares of ||dW||^2 that they miss, and their bytes."""
        positions = {name: i for i, name in enumerate(self.rate_tables.tasks)}
        missed, payload = np.zeros(len(positions)), 0
        for index in layers:
            tasks, _, residual, nbytes = parts.figures(index)
            missed[[positions[task] for task in tasks]] += residual
            payload += nbytes
        return missed.clip(0) * np.square(self._weights), payload

    def _corrected(self, coded: Coded) -> Correction:
        forecast = coded.forecast
        payload = coded.payload / forecast.payload if forecast.payload else 1.0
        overhead = coded.nbytes - self.rate_tables.rest_bytes - coded.payload
        self.rate_tables = replace(self.rate_tables, overhead=overhead)
        return Correction(_ratio(coded.errors, forecast.errors), payload)

    @cached_property
    def _weights(self) -> Array:
        """1 / ||dW|| of every task."""
        weights = self.collection.weights
        return np.array([weights[name] for name in self.rate_tables.tasks])

    def _layers(
        self, forecast: Forecast, chosen: Sequence[int], done: int, total: int
    ) -> Generator[CodedLayer, None, None]:
        weights = self._weights
        steps = np.divide(forecast.steps, weights, out=np.zeros(len(weights)), where=weights > 0)
        by_name = dict(zip(self.rate_tables.tasks, steps.tolist(), strict=True))
        names = [spec.name for spec in self.collection.layers]
        sources, device = self.collection.sources, pick_device(self.context.device)

        def work(index: int) -> CodedLayer:
            stack = read_stack(names[index], sources, self.collection.weights, device)
            task_steps = np.array([by_name[task] for task in stack.tasks])
            return code_layer(stack, task_steps, self.groups_of(forecast, index))

        def need(index: int) -> int:
            shape = StackShape.of(names[index], sources.values())
            return coding(shape, shares=bool(forecast.modes[index]))

        return map_ordered(
            work,
            list(chosen),
            self.context.after(done, total),
            stage=self.stage,
            need=need,
            device=device,
            describe=names.__getitem__,
        )

    def groups_of(self, forecast: Forecast, index: int) -> list[Group]:
        """The groups that share on a layer, by the names of their tasks."""
        tasks = self.rate_tables.layers[index].tasks
        return [
            Group(m.number, m.kind, tuple(self.rate_tables.tasks[tasks[row]] for row in m.members))
            for m in forecast.modes[index]
        ]


class _Aims:
    """A bisection for the aim whose result comes closest to the target.

    The result of an aim rises with it, though not evenly: it jumps where a direction, or sharing
    on a layer, comes or goes.
    """

    def __init__(self, first: float) -> None:
        self.current = first
        self._low, self._high = 0.0, np.inf
        self._stride = 0.01

    def close_in(self, found: float, allowed: float, wanted: float) -> bool:
        """Aim anew after what was found; False where there is nothing left between."""
        if found <= allowed:
            self._low = self.current
        else:
            self._high = self.current
        if self._low and np.isfinite(self._high):
            self.current = float(np.sqrt(self._low * self._high))
            return self._high > self._low * 1.0005
        # One side is still open: at least a stride further, and ever longer ones.
        way = np.log(wanted / found) if found > 0 else 1.0
        way = max(way, self._stride) if found <= allowed else min(way, -self._stride)
        self._stride *= 2
        self.current *= float(np.exp(np.clip(way, -2, 2)))
        return True


def _ratio(measured: Array, predicted: Array) -> Array:
    return np.where(
        (predicted > 0) & (measured > 0), measured / np.where(predicted > 0, predicted, 1), 1.0
    )
