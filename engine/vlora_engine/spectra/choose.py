"""Choose k for every layer on the exact error surface: fixed, or by variance, error or bytes.

The allocation is Lagrangian (Shoham and Gersho 1988): for each layer the lower convex hull of
residual energy over bytes, all hulls' increments in one order of gain per byte. A target on the
worst task re-weights the tasks until the largest error is within it
(docs/mathematics.md#choosing-k).
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from vlora_engine.compression_target import CompressionTarget, LayerK, sides_of
from vlora_engine.errors import ParameterError, TargetError
from vlora_engine.findings import Finding
from vlora_engine.quantization.dtypes import ROUNDING, storage_dtype
from vlora_engine.quantization.packing import Quantization
from vlora_engine.spectra.sizes import (
    factor_bytes_16,
    input_bytes,
    layer_bytes,
    overhead_bytes,
    rest_bytes,
)
from vlora_engine.spectra.tables import Spectra
from vlora_engine.utils.ranking import worst

Array = npt.NDArray[Any]
Choices = dict[str, tuple[int, int]]

REWEIGHTINGS = 12
VERY_LARGE = 4096  # dimensions from which on spectra hold the first directions only


@dataclass(frozen=True)
class Prediction:
    """The size and errors of a choice of k, from the surface; exact but for the dtype's rounding.

    Where numbers are packed, bytes are exact and errors an estimate: see `Quantization.noise`.

    Args:
        mean_error: Mean over tasks of the relative error of dW.
        max_error: The largest relative error of any task.
        worst_task: The task that has it.
        variance: Captured share of ||dW||^2, mean over tasks.
        nbytes: Bytes on disk.
        ratio: Bytes of the inputs as stored, over ``nbytes``.
        codec_ratio: Bytes of A and B at 16 bits over ``nbytes``, rest tensors left out of both.
        task_errors: Relative error by task.
        layer_errors: By layer the mean error over the tasks that have it.
    """

    mean_error: float
    max_error: float
    worst_task: str
    variance: float
    nbytes: int
    ratio: float
    codec_ratio: float
    task_errors: dict[str, float]
    layer_errors: dict[str, float]

    def as_dict(self) -> dict[str, Any]:
        """The fields, for JSON."""
        return dict(vars(self))


@dataclass(frozen=True)
class Choice:
    """The chosen (k_a, k_b) of every layer, and the size and errors that they give."""

    method: str
    k: Choices
    dtype: str
    prediction: Prediction


def choose(spectra: Spectra, target: CompressionTarget) -> Choice:
    """Choose k for every layer, for a target of a method that has one.

    Raises:
        ParameterError: More than one goal, or one outside its range; a method without k.
        NotFoundError: The spectra are still under way.
        TargetError: No kept choice meets the target.
    """
    target = target.checked()
    method = target.method
    for name in spectra.layer_names:
        spectra.table(name, method)  # raises where spectra under way have no table yet
    stored = storage_dtype(target.dtype, (t.dtype for t in spectra.tasks), lossy=target.lossy)
    pinned = match_layers(spectra.layer_names, target.layers)
    require_reach(target, stored)
    solver = _Solver(spectra, method, stored, pinned, target.quantization, target.noise)
    if target.fixed_pair is not None:
        picked = solver.fixed(*target.fixed_pair)
    elif target.variance is not None:
        picked = solver.by_variance(target.variance, adaptive=target.adaptive)
    elif target.budget is not None:
        picked = solver.by_bytes(target.budget)
    else:
        picked = solver.by_error(target.max_error, target.mean_error)
    return Choice(method, picked, stored, solver.predict(picked))


def match_layers(names: Sequence[str], patterns: Mapping[str, LayerK] | None) -> Choices:
    """(k_a, k_b) of every layer that a pattern (fnmatch) matches; later patterns win.

    A layer's name stands for that layer alone, whatever signs are in it.

    Raises:
        ParameterError: A pattern matches no layer, or its k is below 1.
    """
    chosen: Choices = {}
    known = set(names)
    for pattern, k in (patterns or {}).items():
        matches = [pattern] if pattern in known else fnmatch.filter(names, pattern)
        if not matches:
            raise ParameterError(
                f"The pattern {pattern!r} matches no module.", expected=f"such as {names[0]!r}"
            )
        if min(sides_of(k)) < 1:
            raise ParameterError("k is at least 1.", where=pattern, found=str(k))
        chosen.update(dict.fromkeys(matches, sides_of(k)))
    return chosen


def require_reach(target: CompressionTarget, dtype: str) -> None:
    """Raise where storing alone costs more than a target of variance or error allows.

    Args:
        dtype: What is stored, under safetensors' name.

    Raises:
        TargetError: It does.
    """
    packed = target.quantization
    noise = target.noise if target.noise is not None else packed.noise if packed else 0.0
    if target.fixed_pair is not None or target.budget is not None:
        return
    if target.variance is not None:
        if packed is not None and target.variance >= 1 - noise:
            raise _too_noisy(packed, f"a variance below {1 - noise:.4g}", target.variance)
        return
    rounding = ROUNDING[dtype]
    error = target.max_error if target.max_error is not None else target.mean_error
    if error is None or error <= rounding:
        raise TargetError(
            f"Storing in {dtype} alone costs up to {rounding:.1g}.",
            expected=f"an error target above {rounding:.1g}",
            found=str(error),
            remedy="allow more error"
            if dtype == "F32"
            else "store in fp32 (--dtype fp32) or allow more error",
        )
    if error**2 - rounding**2 <= noise and packed is not None:
        floor = float(np.sqrt(noise + rounding**2))
        raise _too_noisy(packed, f"an error target above {floor:.2g}", error)


def _too_noisy(packed: Quantization, expected: str, found: float) -> TargetError:
    return TargetError(
        f"Packing as {packed.name} alone costs more than the target allows.",
        expected=expected,
        found=f"{found:g}",
        remedy="allow more error, give k or a budget, or pack with more bits or not at all",
    )


def require_budget(budget: int, floor: int, rest: int) -> None:
    """Raise unless a budget holds ``floor``, what has to be stored whatever k is.

    Raises:
        TargetError: It does not.
    """
    if budget < floor:
        raise TargetError(
            "The budget is smaller than what has to be stored whatever k is.",
            expected=f"at least {floor} bytes ({rest} of them rest tensors kept bit for bit)",
            found=f"{budget} bytes",
            remedy="allow more, or compress fewer adapters",
        )


def clamped(wanted: Choices, limits: Choices) -> tuple[Choices, Finding | None]:
    """The k of every layer, at most what the layer has; one line where that is less than wanted.

    Args:
        wanted: (k_a, k_b) by layer. limits: The largest k of either side, by layer (`max_k`).
    """
    picked = {
        name: (min(pair[0], limits[name][0]), min(pair[1], limits[name][1]))
        for name, pair in wanted.items()
    }
    cut = [name for name, pair in wanted.items() if pair != picked[name]]
    if not cut:
        return picked, None
    sides = [
        (k, top)
        for name in cut
        for k, top in zip(wanted[name], limits[name], strict=True)
        if k > top
    ]
    most, top = max(k for k, _ in sides), max(top for _, top in sides)
    what = f"k = {most} is clamped: {len(cut)} of {len(wanted)} modules have less, at most {top}."
    return picked, Finding("k-clamped", "note", what)


def predict(
    spectra: Spectra,
    method: str,
    k: Mapping[str, tuple[int, int]],
    dtype: str,
    quantization: Quantization | None = None,
    noise: float | None = None,
) -> Prediction:
    """Predict the size and errors of a choice of k.

    Args:
        spectra: The error surface of the collection.
        method: ``delta``, ``columns`` or ``flat``.
        k: (k_a, k_b) of every layer.
        dtype: What is stored, under safetensors' name.
        quantization: How it is packed, if it is.
        noise: The share of the captured energy that packing costs; by default its estimate.
    """
    if noise is None:
        noise = quantization.noise if quantization else 0.0
    layers = [spectra.layers[name] for name in spectra.layer_names]
    missed = [spectra.table(name, method).at(*k[name]) for name in spectra.layer_names]
    tasks = np.concatenate([layer.tasks for layer in layers])
    energies = np.concatenate([layer.energy for layer in layers])
    residuals = np.concatenate(missed).astype(np.float64)
    by_layer = _relative(residuals, energies, noise)
    means = _means(by_layer, [len(layer.tasks) for layer in layers])
    layer_errors = dict(zip(spectra.layer_names, means, strict=True))
    payload = _payload(spectra, method, k, dtype, quantization)
    count = len(spectra.tasks)
    residual, energy = (np.bincount(tasks, of, count) for of in (residuals, energies))
    errors = _relative(residual, energy, noise)
    task_errors = {t.name: float(e) for t, e in zip(spectra.tasks, errors, strict=True)}
    overhead = overhead_bytes(spectra, dtype, quantization)
    nbytes = payload + overhead + rest_bytes(spectra)
    return Prediction(
        mean_error=float(errors.mean()),
        max_error=float(errors.max()),
        worst_task=worst(task_errors) or "",
        variance=float(1 - (errors**2).mean()),
        nbytes=nbytes,
        ratio=input_bytes(spectra) / nbytes,
        codec_ratio=factor_bytes_16(spectra) / (payload + overhead),
        task_errors=task_errors,
        layer_errors=layer_errors,
    )


def _means(values: Array, counts: Sequence[int]) -> list[float]:
    """The mean of each stretch of so many values; 0 of none."""
    if len(set(counts)) == 1 and counts[0]:  # as a rule every task has every layer
        means: list[float] = values.reshape(len(counts), -1).mean(axis=1).tolist()
        return means
    ends = np.cumsum(counts).tolist()
    return [
        float(values[end - n : end].mean()) if n else 0.0
        for n, end in zip(counts, ends, strict=True)
    ]


def _payload(
    spectra: Spectra,
    method: str,
    k: Mapping[str, tuple[int, int]],
    dtype: str,
    quantization: Quantization | None,
) -> int:
    """The bytes of all layers; most layers have those of some other."""
    bytes_of: dict[Any, int] = {}  # by shape and k
    payload = 0
    for name in spectra.layer_names:
        layer, pair = spectra.layers[name], k[name]
        key = layer.d_in, layer.d_out, layer.ranks.tobytes(), pair
        if key not in bytes_of:
            bytes_of[key] = int(layer_bytes(method, layer, *pair, dtype, quantization))
        payload += bytes_of[key]
    return payload


@dataclass(frozen=True)
class Packed:
    """The size and estimated errors of a choice of k if it were packed."""

    name: str
    nbytes: int
    mean_error: float
    max_error: float


def if_packed(spectra: Spectra, choice: Choice, quantization: Quantization) -> Packed:
    """Predict the size and errors of a choice, made for unpacked storage, if it is packed."""
    payload = _payload(spectra, choice.method, choice.k, choice.dtype, quantization)
    share = np.square(list(choice.prediction.task_errors.values()))
    norms = np.array([task.norm for task in spectra.tasks])
    errors = np.sqrt(np.where(norms > 0, share + quantization.noise * (1 - share), 0.0))
    overhead = overhead_bytes(spectra, choice.dtype, quantization)
    return Packed(
        name=quantization.name,
        nbytes=payload + overhead + rest_bytes(spectra),
        mean_error=float(errors.mean()),
        max_error=float(errors.max()),
    )


def _relative(residual: Array, energy: Array, noise: float = 0.0) -> Array:
    """Relative errors ``sqrt(e^2 + n (1 - e^2))`` where packing costs n of what is captured."""
    share = np.divide(residual, energy, out=np.zeros(len(energy)), where=energy > 0)
    if noise:
        share = np.where(energy > 0, share + noise * (1 - share), 0.0)
    return np.sqrt(share)


@dataclass
class _Options:
    """The choices of one layer: k_a, k_b and bytes (C,), residual (C, N) of ``tasks`` (N,)."""

    tasks: Array
    k_a: Array
    k_b: Array
    nbytes: Array
    residual: Array


class _Layers:
    """The choices of all layers in one: what a state, a choice of every layer, adds up to.

    Targets ask for hundreds of states; each is one gathering instead of a loop over the layers.

    Args:
        options: Of each layer. weights: The tasks' weights (N,).
    """

    def __init__(self, options: Sequence[_Options], weights: Array) -> None:
        self.options = options
        self.counts = np.array([len(option.nbytes) for option in options])
        self._starts = np.cumsum(self.counts) - self.counts
        self._nbytes = np.concatenate([option.nbytes for option in options])
        self._tasks = np.concatenate([option.tasks for option in options])
        self._layers = np.repeat(np.arange(len(options)), [len(o.tasks) for o in options])
        self._count = len(weights)

    @property
    def last(self) -> Array:
        """The state of the most bytes, (layers,)."""
        return self.counts - 1

    def nbytes(self, state: Array) -> int:
        """The payload of a state."""
        return int(self._nbytes[self._starts + state].sum())

    def residual(self, state: Array) -> Array:
        """The residual energy of each task, (N,)."""
        rows = [o.residual[j] for o, j in zip(self.options, state.tolist(), strict=True)]
        return np.bincount(self._tasks, np.concatenate(rows), self._count)

    def path(self, weights: Array) -> _Path:
        """The way from the least bytes to the least loss, with these weights."""
        losses = [option.residual @ weights[option.tasks] for option in self.options]
        return _Path(self._table(losses), self._table([o.nbytes for o in self.options]))

    def _table(self, rows: Sequence[Array]) -> Array:
        """One row for each layer, (layers, C); beyond its choices is infinity."""
        table = np.full((len(rows), int(self.counts.max(initial=0))), np.inf)
        table[np.arange(table.shape[1]) < self.counts[:, None]] = np.concatenate(rows)
        return table


class _Solver:
    """Finds (k_a, k_b) for every layer of one collection, method and storage."""

    def __init__(
        self,
        spectra: Spectra,
        method: str,
        dtype: str,
        pinned: Mapping[str, tuple[int, int]],
        quantization: Quantization | None = None,
        noise: float | None = None,
    ) -> None:
        self.spectra, self.method, self.dtype, self.pinned = spectra, method, dtype, pinned
        self.quantization = quantization
        self.noise = noise if noise is not None else quantization.noise if quantization else 0.0
        self.fixed_bytes = overhead_bytes(spectra, dtype, quantization) + rest_bytes(spectra)

    def predict(self, picked: Choices) -> Prediction:
        return predict(self.spectra, self.method, picked, self.dtype, self.quantization, self.noise)

    @cached_property
    def energy(self) -> Array:
        """The energy of every task, (N,)."""
        energy = np.zeros(len(self.spectra.tasks))
        for name in self.spectra.layer_names:
            layer = self.spectra.layers[name]
            energy[layer.tasks] += layer.energy  # a layer names each task once
        return energy

    @cached_property
    def layers(self) -> _Layers:
        """The choices of every layer; only the targets need them."""
        options = [self._options(name) for name in self.spectra.layer_names]
        return _Layers(options, self.spectra.weights)

    def fixed(self, k_a: int, k_b: int) -> Choices:
        return {name: self._clamp(name, k_a, k_b) for name in self.spectra.layer_names}

    def by_variance(self, share: float, *, adaptive: bool) -> Choices:
        """The least k, one for all layers or each its own, that captures ``share``."""
        names = self.spectra.layer_names
        if adaptive:
            share /= 1 - self.noise  # of what is captured, that much is left
            return {name: self._clamp(name, *[self._layer_k(name, share)] * 2) for name in names}
        ks = np.unique(np.concatenate([self._table(name).k for name in names]))
        low, high = 0, len(ks) - 1
        while low < high:
            middle = (low + high) // 2
            picked = self.fixed(int(ks[middle]), int(ks[middle]))
            captured = self.predict(picked).variance
            low, high = (low, middle) if captured >= share - 1e-9 else (middle + 1, high)
        return self.fixed(int(ks[low]), int(ks[low]))

    def by_bytes(self, budget: int) -> Choices:
        """The choice of least loss within ``budget``: along the hulls, then single moves."""
        floor = self._bytes(np.zeros(len(self.layers.options), dtype=np.int64))
        require_budget(budget, floor, rest_bytes(self.spectra))
        path = self.layers.path(self.spectra.weights)
        low, high = 0, path.steps
        while low < high:
            middle = (low + high + 1) // 2
            if self._bytes(path.state(middle)) <= budget:
                low = middle
            else:
                high = middle - 1
        return self._choices(self._fill(path.state(low), budget))

    def by_error(self, worst: float | None, mean: float | None) -> Choices:
        """The choice of fewest bytes within the worst or the mean error."""
        target = worst if worst is not None else mean
        rounding = ROUNDING[self.dtype]
        assert target is not None  # noqa: S101  (`require_reach`)
        # Storing rounds: T becomes sqrt(T^2 - rho^2) on the surface.
        goal = float(np.sqrt(target**2 - rounding**2))
        weights = self.spectra.weights
        best: tuple[int, Array] | None = None
        for _ in range(1 if worst is None else REWEIGHTINGS):
            path = self.layers.path(weights)
            state = self._least(path, goal, worst is not None)
            if state is None:
                break
            size = self._bytes(state)
            if best is None or size < best[0]:
                best = (size, state)
            errors = self._errors(state)
            # w_i^2 <- w_i^2 exp(2 (min(err_i / goal, 1)^2 - 1))
            weights = weights * np.exp(2 * (np.minimum(errors / goal, 1) ** 2 - 1))
        if best is None:
            reached = self._errors(self.layers.last)
            raise TargetError(
                "No k that the spectra keep meets the error target.",
                expected=f"at least {reached.max() if worst is not None else reached.mean():.3g}",
                found=str(target),
                remedy="allow more error, or give a fixed k" + self._cut(),
            )
        return self._choices(best[1])

    def _cut(self) -> str:
        """A remark on layers so large that their spectra were cut, if there are any."""
        for name in self.spectra.layer_names:
            layer, table = self.spectra.layers[name], self._table(name)
            rows = int(layer.ranks.sum())
            full = min(rows, layer.d_in), min(rows, layer.d_out)
            if max(full) > VERY_LARGE and (table.max_a, table.max_b) != full:
                return f" (of modules as large as {name} the spectra keep {table.max_a} directions)"
        return ""

    def _least(self, path: _Path, goal: float, worst: bool) -> Array | None:
        """The first state along ``path`` whose worst (or mean) error is within ``goal``."""

        def error(step: int) -> float:
            errors = self._errors(path.state(step))
            return float(errors.max() if worst else errors.mean())

        low, high = 0, path.steps
        if error(high) > goal:
            return None
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if error(middle) <= goal else (middle + 1, high)
        return path.state(low)

    def _fill(self, state: Array, budget: int) -> Array:
        """Spend the bytes that the hulls left over, by the best single move at a time."""
        state = state.copy()
        weights = self.spectra.weights
        options = self.layers.options
        gains = [o.residual @ weights[o.tasks] for o in options]
        left = budget - self._bytes(state)
        while left > 0:
            best = (0.0, -1, -1)
            for i, (option, gain) in enumerate(zip(options, gains, strict=True)):
                extra = option.nbytes - option.nbytes[state[i]]
                better = np.where((extra > 0) & (extra <= left), gain[state[i]] - gain, 0.0)
                j = int(better.argmax())
                if better[j] > best[0]:
                    best = (float(better[j]), i, j)
            if best[1] < 0:
                break
            _, i, j = best
            left -= int(options[i].nbytes[j] - options[i].nbytes[state[i]])
            state[i] = j
        return state

    def _options(self, name: str) -> _Options:
        layer, table = self.spectra.layers[name], self._table(name)
        if name in self.pinned:
            k_a, k_b = (np.array([v]) for v in self._clamp(name, 0, 0))
            residual = table.at(int(k_a[0]), int(k_b[0]))[:, None]
        else:
            k_a, k_b, residual = table.candidates()
        nbytes = layer_bytes(self.method, layer, k_a, k_b, self.dtype, self.quantization)
        order = np.argsort(nbytes, kind="stable")
        residual = residual.T[order].astype(np.float64, order="C")
        return _Options(layer.tasks, k_a[order], k_b[order], nbytes[order], residual)

    def _table(self, name: str) -> Any:
        return self.spectra.table(name, self.method)

    def _clamp(self, name: str, k_a: int, k_b: int) -> tuple[int, int]:
        table = self._table(name)
        if name in self.pinned:
            k_a, k_b = self.pinned[name]
        return min(k_a, table.max_a), min(k_b, table.max_b)

    def _layer_k(self, name: str, share: float) -> int:
        k, captured = self.spectra.variance(name, self.method)
        reached = np.flatnonzero(captured >= share - 1e-9)
        return int(k[reached[0]] if len(reached) else k[-1])

    def _bytes(self, state: Array) -> int:
        return self.fixed_bytes + self.layers.nbytes(state)

    def _errors(self, state: Array) -> Array:
        return _relative(self.layers.residual(state), self.energy, self.noise)

    def _choices(self, state: Array) -> Choices:
        return {
            name: (int(option.k_a[j]), int(option.k_b[j]))
            for name, option, j in zip(
                self.spectra.layer_names, self.layers.options, state, strict=True
            )
        }


class _Path:
    """The Lagrangian path: all layers' hull increments in descending order of gain per byte.

    Args:
        loss: D = sum_i w_i^2 residual_i of every choice, (layers, C).
        nbytes: Its bytes R, ascending in each layer; infinity beyond the layer's choices.
    """

    def __init__(self, loss: Array, nbytes: Array) -> None:
        layers, choices = _lower_hulls(nbytes, loss)
        inside = layers[1:] == layers[:-1]
        gain, cost = -np.diff(loss[layers, choices]), np.diff(nbytes[layers, choices])
        order = np.argsort(-(gain[inside] / cost[inside]), kind="stable")
        self._owners = layers[1:][inside][order]
        self._choices = choices
        self._starts = np.searchsorted(layers, np.arange(len(loss)))
        self.steps = len(order)

    def state(self, step: int) -> Array:
        """The choice of every layer after ``step`` increments, (layers,)."""
        taken = np.bincount(self._owners[:step], minlength=len(self._starts))
        state: Array = self._choices[self._starts + taken]
        return state


def _lower_hulls(nbytes: Array, loss: Array) -> tuple[Array, Array]:
    """The lower convex hull of (bytes, loss) of every row, from fewest bytes to least loss.

    Returns:
        The row of every point of a hull, and its column; row after row.
    """
    least = np.minimum.accumulate(loss, axis=1)
    falling = np.isfinite(loss)
    falling[:, 1:] &= loss[:, 1:] < least[:, :-1]
    rows, columns = np.nonzero(falling)
    x = nbytes[rows, columns]
    stays = np.ones(len(rows), dtype=bool)  # of points of equal bytes the one of least loss
    stays[:-1] = (rows[1:] != rows[:-1]) | (x[1:] != x[:-1])
    rows, columns = rows[stays], columns[stays]
    hull = _convex(rows, nbytes[rows, columns], loss[rows, columns])
    return rows[hull], columns[hull]


def _convex(rows: Array, x: Array, y: Array) -> Array:
    """Which points are corners of the lower hull of their row; x ascends in every row.

    A point on or above the line between two others is none, whatever becomes of these. All points
    are held against their neighbours, then again those that got new ones.
    """
    stays = np.ones(len(rows), dtype=bool)
    before, after = np.arange(len(rows)) - 1, np.arange(len(rows)) + 1
    is_inner = np.zeros(len(rows), dtype=bool)
    is_inner[1:-1] = rows[2:] == rows[:-2]
    asked = np.flatnonzero(is_inner)
    while len(asked):
        left, right = before[asked], after[asked]
        falls = (y[asked] - y[left]) / (x[asked] - x[left])
        above = asked[(y[right] - y[asked]) / (x[right] - x[asked]) <= falls]
        stays[above] = False
        left, right = before[above], after[above]
        left, right = left[stays[left]], right[stays[right]]  # of runs that go, in their order
        after[left], before[right] = right, left
        asked = np.unique(np.concatenate([left, right]))
        asked = asked[is_inner[asked]]
    return stays
