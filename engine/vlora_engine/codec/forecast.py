"""Forecast what coding a collection costs at every step, from tables; reading it needs no torch.

A step is given relative to ||dW|| of a task. The tables hold the energies of every task's own
singular directions and, for every group that may share, bits and errors on a grid of steps. At a
step, each layer takes the mode of least cost ``J = missed energy + lambda step^2 bits``: the step
stands for one Lagrange multiplier for everything (docs/mathematics.md#choosing-what-is-shared and
#meeting-a-target).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from vlora_engine.codec.quantizer import PRICE
from vlora_engine.codec.rates import direction_rate
from vlora_engine.codec.tables import Array
from vlora_engine.compression_target import CompressionTarget
from vlora_engine.errors import TargetError
from vlora_engine.utils.array_file import Arrays, read_arrays
from vlora_engine.utils.files import write_file
from vlora_engine.utils.json_reader import JsonFile, JsonObject, JsonValue
from vlora_engine.utils.ranking import worst

EVERYBODY = 0  # the number of the group that all adapters form
FINEST, COARSEST = 2.0**-28, 2.0**1  # the range of steps
FINEST_SHARED = 2.0**-22  # shared rows are larger than their members': integers have 32 bits
OWN_OVERHEAD = 8 * 11.0  # bits of one module of one task beside its vectors
HALVINGS = 28  # of the range of steps, by bisection in the logarithm


@dataclass(frozen=True)
class OwnTable:
    """One layer with every task coded by itself (method ``own``).

    Args:
        name: Of the layer.
        d_in: Its input dimension.
        d_out: Its output dimension.
        tasks: (N,) indices into the collection's tasks.
        shares: (N, q) squared singular values over ||dW_i||^2 of the whole adapter.
    """

    name: str
    d_in: int
    d_out: int
    tasks: Array
    shares: Array


def save_own_table(path: Path, table: OwnTable) -> None:
    """Write one layer's own table in one step, for those that watch the measuring."""
    from safetensors.numpy import save

    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {"tasks": table.tasks, "shares": table.shares}
    write_file(path, save({name: np.ascontiguousarray(a) for name, a in arrays.items()}))


def load_own_table(file: JsonFile, name: str, d_in: int, d_out: int, tasks: int) -> OwnTable:
    """Read what `save_own_table` wrote, of a collection of so many tasks.

    Raises:
        CorruptFileError: The file cannot be read.
    """
    arrays = read_arrays(file)
    own = arrays.indices("tasks", tasks)
    return OwnTable(name, d_in, d_out, own, arrays.numbers("shares", len(own), None))


@dataclass(frozen=True)
class GroupTable:
    """One layer with a group that shares on it, on the tables' common grid of steps.

    Args:
        number: Of the group in the collection.
        kind: ``klt`` or ``delta``.
        members: (n,) rows of the layer's `OwnTable`.
        shared: (G,) bits of what is shared.
        bits: (G, n) of the members.
        missed: (G, n) missed energy over ||dW_i||^2 of the whole adapter.
    """

    number: int
    kind: str
    members: Array
    shared: Array
    bits: Array
    missed: Array


@dataclass(frozen=True)
class Mode:
    """How a group is coded on a layer; ``members`` are rows of the layer's `OwnTable`."""

    number: int
    kind: str
    members: tuple[int, ...]


@dataclass(frozen=True)
class Forecast:
    """The expected size and errors of a collection coded at certain steps.

    Args:
        steps: (N,) of every task, relative to its ||dW||.
        modes: Per layer the groups that share there.
        bits: (N,) payload of every task.
        shared_bits: Payload of what is shared.
        errors: (N,) relative errors of dW.
        layer_errors: (layers,) mean error over the tasks that have a layer, relative to dW there.
        layer_shares: (layers,) share of a layer's energy that is kept, tasks weighted alike.
    """

    steps: Array
    modes: tuple[tuple[Mode, ...], ...]
    bits: Array
    shared_bits: float
    errors: Array
    layer_errors: Array
    layer_shares: Array

    @property
    def payload(self) -> float:
        """Payload in bytes."""
        return (float(self.bits.sum()) + self.shared_bits) / 8


@dataclass
class RateTables:
    """Rate and distortion of a collection at every step: what each forecast is computed from.

    Args:
        tasks: Names.
        layers: One table a layer.
        groups: Per layer index the tables of its groups.
        grid: (G,) steps, ascending.
        clusters: Groups by number, as indices of tasks; number 0 is all tasks.
        overhead: Bytes on disk that no choice changes, rest tensors apart.
        rest_bytes: Bytes of the rest tensors.
        factor_bytes: Bytes of all A and B at 16 bits.
        input_bytes: Bytes of the inputs as stored.
        cosines: (N, N) of the tasks' A, where they were computed.
        digests: Of the tasks.
    """

    tasks: list[str]
    layers: list[OwnTable]
    groups: dict[int, list[GroupTable]]
    grid: Array
    clusters: dict[int, list[int]]
    overhead: int = 0
    rest_bytes: int = 0
    factor_bytes: int = 0
    input_bytes: int = 0
    cosines: Array | None = None
    digests: list[str] = field(default_factory=list)

    @cached_property
    def energy(self) -> Array:
        """Share of ||dW_i||^2 in every layer, (layers, N); 0 where a task lacks it."""
        out = np.zeros((len(self.layers), len(self.tasks)))
        for i, layer in enumerate(self.layers):
            out[i, layer.tasks] = layer.shares.sum(axis=1, dtype=np.float64)
        return out

    @cached_property
    def alive(self) -> Array:
        """Whether each task has an effect (dW is not zero), (N,)."""
        alive: Array = self.energy.sum(axis=0) > 0
        return alive

    def only(self, layers: Sequence[int]) -> RateTables:
        """The tables of some layers alone; energies stay relative to the whole adapters."""
        return replace(
            self,
            layers=[self.layers[i] for i in layers],
            groups={new: self.groups.get(i, []) for new, i in enumerate(layers)},
        )

    # forecasts

    def modes_at(self, step: float, method: str) -> tuple[tuple[Mode, ...], ...]:
        """The cheapest modes of every layer at a step; method ``own`` shares nothing."""
        if method == "own" or not any(self.groups.values()):
            return tuple(() for _ in self.layers)
        return tuple(self.layer_modes(i, step) for i in range(len(self.layers)))

    def layer_modes(self, index: int, step: float) -> tuple[Mode, ...]:
        """The groups that share on one layer at a step: all tasks together, or clusters."""
        tables = self.groups.get(index, ())
        if not tables:
            return ()
        price = PRICE * step * step
        bits, missed = self._per_task(index, np.full(len(self.layers[index].tasks), step))
        alone = missed + price * bits  # J of every task coded by itself
        offers = [self._offer(table, step, alone, price) for table in tables]
        of_all = [offer for offer in offers if offer[1].number == 0]
        by_cluster: dict[int, tuple[float, Mode]] = {}
        for gain, mode in offers:
            if mode.number and gain > by_cluster.get(mode.number, (0.0, mode))[0]:
                by_cluster[mode.number] = gain, mode
        best = max(of_all, key=lambda offer: offer[0], default=None)
        if best is not None and best[0] > max(0.0, sum(gain for gain, _ in by_cluster.values())):
            return (best[1],)
        return tuple(mode for _, mode in by_cluster.values())

    def _offer(
        self, table: GroupTable, step: float, alone: Array, price: float
    ) -> tuple[float, Mode]:
        """What a group saves at a step, with the members that it helps.

        ``gain = sum_i max(0, J_alone - J_in_group) - lambda step^2 shared bits``; it needs two.
        """
        if step < FINEST_SHARED:
            return 0.0, Mode(table.number, table.kind, ())
        shared, bits, missed = self._group(table, np.full(len(table.members), step))
        gains = alone[table.members] - (missed + price * bits)
        inside = gains > 0
        gain = float(gains[inside].sum()) - price * shared if inside.sum() > 1 else 0.0
        return gain, Mode(table.number, table.kind, tuple(table.members[inside].tolist()))

    def forecast(self, steps: Array, modes: Sequence[Sequence[Mode]]) -> Forecast:
        """Forecast size and errors at steps (N,) and modes of every layer."""
        bits, missed = np.zeros(len(self.tasks)), np.zeros(len(self.tasks))
        shared_bits, layer_errors = 0.0, np.zeros(len(self.layers))
        layer_shares = np.ones(len(self.layers))
        for i, layer in enumerate(self.layers):
            layer_steps = steps[layer.tasks]
            layer_bits, layer_missed = self._per_task(i, layer_steps)
            for mode in modes[i]:
                table = self._table(i, mode)
                at = np.searchsorted(table.members, mode.members)
                rows = list(mode.members)
                group_steps = np.full(len(table.members), np.exp(np.log(layer_steps[rows]).mean()))
                group_steps[at] = layer_steps[rows]
                shared, group_bits, group_missed = self._group(table, group_steps)
                layer_bits[rows], layer_missed[rows] = group_bits[at], group_missed[at]
                shared_bits += shared
            bits[layer.tasks] += layer_bits
            missed[layer.tasks] += layer_missed
            energy = self.energy[i, layer.tasks]
            share = np.divide(layer_missed, energy, out=np.zeros(len(energy)), where=energy > 0)
            layer_errors[i] = np.sqrt(share.clip(0)).mean() if len(share) else 0.0
            layer_shares[i] = kept_share(layer_missed.sum(), energy.sum())
        errors, chosen = np.sqrt(missed.clip(0)), tuple(map(tuple, modes))
        return Forecast(steps, chosen, bits, shared_bits, errors, layer_errors, layer_shares)

    def worst_layers(self, forecast: Forecast) -> list[tuple[str, float]]:
        """For each task the layer with the largest relative error, and that error."""
        errors = np.zeros((len(self.layers), len(self.tasks)))
        for i, layer in enumerate(self.layers):
            part = self.only([i]).forecast(forecast.steps, [forecast.modes[i]])
            energy = self.energy[i]
            share = np.divide(part.errors**2, energy, out=np.zeros(len(energy)), where=energy > 0)
            errors[i, layer.tasks] = np.sqrt(share)[layer.tasks]
        names = [layer.name for layer in self.layers]
        found = []
        for own in errors.T.tolist():
            by_name = dict(zip(names, own, strict=True))
            name = worst(by_name)
            if name is not None:
                found.append((name, by_name[name]))
        return found

    def saved_bytes(self, index: int, mode: Mode, steps: Array) -> int:
        """Bytes that a group saves on a layer against coding its members alone.

        A difference in error is counted at the price of a bit.
        """
        step = float(np.exp(np.log(steps[self.layers[index].tasks[list(mode.members)]]).mean()))
        bits, missed = self._per_task(index, np.full(len(self.layers[index].tasks), step))
        price = PRICE * step * step
        gain, _ = self._offer(self._table(index, mode), step, missed + price * bits, price)
        return int(gain / price / 8)

    def _per_task(self, index: int, steps: Array) -> tuple[Array, Array]:
        """Bits (N,) and missed energy (N,) of one layer with every task coded by itself."""
        layer = self.layers[index]
        bits, missed = direction_rate(layer.shares, layer.d_out, layer.d_in, steps[:, None])
        bits = bits.sum(axis=1)
        return bits + np.where(bits > 0, OWN_OVERHEAD, 8.0), missed.sum(axis=1)

    def _group(self, table: GroupTable, steps: Array) -> tuple[float, Array, Array]:
        """Shared bits, bits (n,) and missed energy (n,) of a group, interpolated in the grid.

        Below the grid's finest step, bits grow with each halving as they do at its end, and errors
        shrink with the step.
        """
        log, grid = np.log2(steps), np.log2(self.grid)
        columns = range(len(steps))
        bits = np.array([_interpolated(log[j], grid, table.bits[:, j]) for j in columns])
        log_missed = np.log2(np.maximum(table.missed, 1e-30))
        missed = np.exp2(np.array([np.interp(log[j], grid, log_missed[:, j]) for j in columns]))
        finer = np.exp2(np.minimum(0, log - grid[0]))
        return _interpolated(log.mean(), grid, table.shared), bits, missed * finer**2

    def _table(self, index: int, mode: Mode) -> GroupTable:
        return next(t for t in self.groups[index] if (t.number, t.kind) == (mode.number, mode.kind))

    # targets

    def solve(self, target: CompressionTarget, correction: Correction | None = None) -> Forecast:
        """Find steps and modes that meet a target with the fewest bytes, or the least error.

        Args:
            target: The coded method, and what has to be met.
            correction: How far an earlier forecast was off.

        Raises:
            TargetError: It cannot be met; the message says what can.
        """
        applied = correction or Correction(np.ones(len(self.tasks)), 1.0)
        target = target.filled()
        uniform = self._bisect(target, applied)
        if target.max_error is None:
            return uniform
        return self._equalize(uniform, target.max_error, applied)

    def at(self, method: str, step: float) -> Forecast:
        """Forecast coding with one step for all tasks."""
        return self.forecast(np.full(len(self.tasks), step), self.modes_at(step, method))

    def _bisect(self, target: CompressionTarget, correction: Correction) -> Forecast:
        """The forecast at the coarsest step that meets an error, or the finest within a budget."""
        if target.budget is not None:
            self.check_budget(target.budget)
        else:
            self._require_reach(target, correction)
        low, high = np.log2(FINEST), np.log2(COARSEST)
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            forecast = self.at(target.method, 2.0**middle)
            if target.budget is not None:
                coarser = self.nbytes(forecast, correction) > target.budget
            else:
                coarser = self._meets_error(forecast, target, correction)
            low, high = (middle, high) if coarser else (low, middle)
        return self.at(target.method, 2.0 ** (high if target.budget is not None else low))

    @property
    def floor(self) -> int:
        """Bytes on disk that are needed at any step: overhead, rest, a byte for each module."""
        return self.overhead + self.rest_bytes + sum(len(layer.tasks) for layer in self.layers)

    def check_budget(self, budget: int) -> None:
        """Check that a budget holds at least `floor`.

        Raises:
            TargetError: It does not.
        """
        require_budget(budget, self.floor, self.rest_bytes)

    def _require_reach(self, target: CompressionTarget, correction: Correction) -> None:
        finest = self.at(target.method, FINEST)
        if not self._meets_error(finest, target, correction):
            errors = finest.errors * correction.errors
            least = errors.mean() if target.max_error is None else errors.max()
            raise _beyond_reach(target, f"{least:.2g}")

    def _meets_error(
        self, forecast: Forecast, target: CompressionTarget, correction: Correction
    ) -> bool:
        errors = forecast.errors * correction.errors
        if target.variance is not None:
            return bool(np.square(errors).mean() <= 1 - target.variance)
        allowed = target.mean_error if target.mean_error is not None else target.max_error
        return bool(errors.mean() <= allowed)

    def _equalize(self, uniform: Forecast, max_error: float, correction: Correction) -> Forecast:
        """Give every task its own step, the coarsest at which it stays within ``max_error``."""
        low = np.full(len(self.tasks), np.log2(FINEST))
        high = np.full(len(self.tasks), np.log2(COARSEST))
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            errors = self.forecast(2.0**middle, uniform.modes).errors * correction.errors
            within = errors <= max_error
            low, high = np.where(within, middle, low), np.where(within, high, middle)
        return self.forecast(2.0**low, uniform.modes)

    def nbytes(self, forecast: Forecast, correction: Correction | None = None) -> float:
        """Expected bytes on disk, all in all."""
        factor = correction.payload if correction else 1.0
        return self.overhead + self.rest_bytes + factor * forecast.payload

    def codec_ratio(self, forecast: Forecast) -> float:
        """Expected codec ratio: A and B at 16 bits over all bytes but those of rest tensors."""
        return self.factor_bytes / max(1.0, self.nbytes(forecast) - self.rest_bytes)

    # on disk

    def save(self, path: Path) -> None:
        """Write the tables to one safetensors file, in one step."""
        from safetensors.numpy import save

        arrays: dict[str, Array] = {"grid": self.grid}
        if self.cosines is not None:
            arrays["cosines"] = self.cosines.astype(np.float32)
        rows = []
        for i, layer in enumerate(self.layers):
            arrays |= {f"{i}.tasks": layer.tasks, f"{i}.shares": layer.shares}
            groups = []
            for j, table in enumerate(self.groups.get(i, ())):
                for name in ("members", "shared", "bits", "missed"):
                    arrays[f"{i}.{j}.{name}"] = getattr(table, name)
                groups.append([table.number, table.kind])
            rows.append([layer.name, layer.d_in, layer.d_out, groups])
        content = {
            "version": VERSION,
            "tasks": self.tasks,
            "digests": self.digests,
            "layers": rows,
            "clusters": {str(k): v for k, v in self.clusters.items()},
            "sizes": [self.overhead, self.rest_bytes, self.factor_bytes, self.input_bytes],
        }
        contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        write_file(path, save(contiguous, metadata={"outlook": json.dumps(content)}))

    @classmethod
    def load(cls, path: Path) -> RateTables:
        """Read the tables that `save` wrote.

        Raises:
            CorruptFileError: The file cannot be read, or is of another version.
        """
        file = JsonFile(
            path, "The tables of the codec cannot be read.", "compute the spectra again"
        )
        arrays = read_arrays(file)
        text = arrays.metadata.get("outlook")
        if text is None:
            raise file.error("", "a header with an outlook", "nothing")
        content = file.parse(text).object()
        if content["version"].value != VERSION:
            raise content["version"].error(f"version {VERSION}")
        return _from_arrays(content, arrays)


VERSION = 1


def kept_share(missed: Array | float, energy: Array | float) -> Array:
    """The share of an energy that is kept where so much of it is missed; of none all is."""
    left, whole = np.asarray(missed, dtype=np.float64), np.asarray(energy, dtype=np.float64)
    lost = np.divide(left, whole, out=np.zeros(np.broadcast(left, whole).shape), where=whole > 0)
    return np.asarray(1 - lost.clip(0, 1))


@dataclass(frozen=True)
class Correction:
    """Measured over forecast: errors (N,) of the tasks, and the payload."""

    errors: Array
    payload: float


def _interpolated(at: float, grid: Array, values: Array) -> float:
    """`np.interp`, extrapolated along the first piece where ``at`` lies before the grid."""
    value = float(np.interp(at, grid, values))
    if at < grid[0] and len(grid) > 1 and grid[1] > grid[0]:
        value += (grid[0] - at) * max(0.0, float(values[0] - values[1]) / (grid[1] - grid[0]))
    return value


def _from_arrays(content: JsonObject, arrays: Arrays) -> RateTables:
    tasks, grid = content["tasks"].texts(), arrays.numbers("grid", None)
    layers: list[OwnTable] = []
    groups: dict[int, list[GroupTable]] = {}
    for i, value in enumerate(content["layers"].items()):
        name, d_in, d_out, kinds = value.items(4)
        own = arrays.indices(f"{i}.tasks", len(tasks))
        shares = arrays.numbers(f"{i}.shares", len(own), None)
        layers.append(OwnTable(name.text(), d_in.natural(), d_out.natural(), own, shares))
        groups[i] = [
            _group_table(kind, f"{i}.{j}", arrays, len(own), len(grid))
            for j, kind in enumerate(kinds.items())
        ]
    overhead, rest, factors, inputs = content["sizes"].naturals(4)
    return RateTables(
        tasks=tasks,
        layers=layers,
        groups=groups,
        grid=grid,
        clusters=dict(map(_cluster, content["clusters"].object().items())),
        overhead=overhead,
        rest_bytes=rest,
        factor_bytes=factors,
        input_bytes=inputs,
        cosines=arrays.numbers("cosines", len(tasks), len(tasks)) if "cosines" in arrays else None,
        digests=content["digests"].texts(),
    )


def _group_table(
    value: JsonValue, place: str, arrays: Arrays, holders: int, steps: int
) -> GroupTable:
    number, kind = value.items(2)
    members = arrays.indices(f"{place}.members", holders)
    return GroupTable(
        number.natural(),
        kind.text(),
        members,
        shared=arrays.numbers(f"{place}.shared", steps),
        bits=arrays.numbers(f"{place}.bits", steps, len(members)),
        missed=arrays.numbers(f"{place}.missed", steps, len(members)),
    )


def _cluster(entry: tuple[str, JsonValue]) -> tuple[int, list[int]]:
    number, members = entry
    if not re.fullmatch("[0-9]{1,9}", number):
        raise members.error("the number of a cluster as its name", ascii(number[:80]))
    return int(number), members.naturals()


def require_reach(target: CompressionTarget, numbers: Sequence[int]) -> None:
    """Refuse, before anything is coded, an error that no step can come near.

    Rounding to the finest step leaves step / sqrt(12) in each of an adapter's numbers, in units of
    ||dW||. Directions that are empty cost nothing, so what is refused lies ten times below that.

    Args:
        numbers: Those of A and B, of every adapter.

    Raises:
        TargetError: It does not reach it.
    """
    allowed = target.mean_error if target.max_error is None else target.max_error
    if target.variance is not None:
        allowed = math.sqrt(1 - target.variance)
    least = FINEST * np.sqrt(np.array(numbers) / 12).mean() if numbers else 0.0
    if allowed is not None and allowed < 0.1 * least:
        raise _beyond_reach(target, f"about {least:.2g}")


def _beyond_reach(target: CompressionTarget, least: str) -> TargetError:
    return TargetError(
        "The finest step does not reach this error.",
        expected=f"an error of at least {least}",
        found=target.words(),
        remedy="allow more error, or store components in fp32: --method delta",
    )


def require_budget(budget: int, floor: int, rest_bytes: int) -> None:
    """Raise unless a budget holds what has to be stored at any step.

    Raises:
        TargetError: It does not.
    """
    if budget < floor:
        raise TargetError(
            "The budget is smaller than what has to be stored whatever is coded.",
            expected=f"at least {floor} bytes"
            + (f" ({rest_bytes} of them rest tensors)" if rest_bytes else ""),
            found=f"{budget} bytes",
            remedy="allow more, or compress fewer adapters",
        )
