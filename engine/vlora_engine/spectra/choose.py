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
                f"The pattern {pattern!r} matches no layer.", expected=f"such as {names[0]!r}"
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
    what = f"k = {most} is clamped: {len(cut)} of {len(wanted)} layers have less, at most {top}."
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
    residual = np.zeros(len(spectra.tasks))
    energy = np.zeros(len(spectra.tasks))
    layer_errors = {}
    payload = 0
    for name in spectra.layer_names:
        layer, pair = spectra.layers[name], k[name]
        layer_residual = spectra.table(name, method).at(*pair).astype(np.float64)
        residual[layer.tasks] += layer_residual  # a layer names each task once
        energy[layer.tasks] += layer.energy
        layer_errors[name] = float(_relative(layer_residual, layer.energy, noise).mean())
        payload += int(layer_bytes(method, layer, *pair, dtype, quantization))
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


@dataclass(frozen=True)
class Packed:
    """The size and estimated errors of a choice of k if it were packed."""

    name: str
    nbytes: int
    mean_error: float
    max_error: float


def if_packed(spectra: Spectra, choice: Choice, quantization: Quantization) -> Packed:
    """Predict the size and errors of a choice, made for unpacked storage, if it is packed."""
    bytes_of: dict[Any, int] = {}  # by shape and k: most layers have those of some other
    payload = 0
    for name, pair in choice.k.items():
        layer = spectra.layers[name]
        key = layer.d_in, layer.d_out, layer.ranks.tobytes(), pair
        if key not in bytes_of:
            nbytes = layer_bytes(choice.method, layer, *pair, choice.dtype, quantization)
            bytes_of[key] = int(nbytes)
        payload += bytes_of[key]
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
    """The choices of one layer: k_a, k_b and bytes (C,), residual (N, C) of ``tasks`` (N,)."""

    tasks: Array
    k_a: Array
    k_b: Array
    nbytes: Array
    residual: Array


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
        self.energy = np.zeros(len(spectra.tasks))
        for name in spectra.layer_names:
            layer = spectra.layers[name]
            self.energy[layer.tasks] += layer.energy
        self.fixed_bytes = overhead_bytes(spectra, dtype, quantization) + rest_bytes(spectra)

    def predict(self, picked: Choices) -> Prediction:
        return predict(self.spectra, self.method, picked, self.dtype, self.quantization, self.noise)

    @cached_property
    def options(self) -> list[_Options]:
        """The choices of every layer; only the targets need them."""
        return [self._options(name) for name in self.spectra.layer_names]

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
        floor = self.fixed_bytes + sum(int(o.nbytes.min()) for o in self.options)
        require_budget(budget, floor, rest_bytes(self.spectra))
        path = _Path(self.options, self.spectra.weights)
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
            path = _Path(self.options, weights)
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
            reached = self._errors(np.array([len(o.nbytes) - 1 for o in self.options]))
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
                return f" (of layers as large as {name} the spectra keep {table.max_a} directions)"
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
        gains = [weights[o.tasks] @ o.residual for o in self.options]
        left = budget - self._bytes(state)
        while left > 0:
            best = (0.0, -1, -1)
            for i, (option, gain) in enumerate(zip(self.options, gains, strict=True)):
                extra = option.nbytes - option.nbytes[state[i]]
                better = np.where((extra > 0) & (extra <= left), gain[state[i]] - gain, 0.0)
                j = int(better.argmax())
                if better[j] > best[0]:
                    best = (float(better[j]), i, j)
            if best[1] < 0:
                break
            _, i, j = best
            left -= int(self.options[i].nbytes[j] - self.options[i].nbytes[state[i]])
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
        residual = residual[:, order].astype(np.float64)
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
        payload = sum(int(o.nbytes[j]) for o, j in zip(self.options, state, strict=True))
        return self.fixed_bytes + payload

    def _errors(self, state: Array) -> Array:
        residual = np.zeros(len(self.energy))
        for option, j in zip(self.options, state, strict=True):
            residual[option.tasks] += option.residual[:, j]
        return _relative(residual, self.energy, self.noise)

    def _choices(self, state: Array) -> Choices:
        return {
            name: (int(option.k_a[j]), int(option.k_b[j]))
            for name, option, j in zip(self.spectra.layer_names, self.options, state, strict=True)
        }


class _Path:
    """The Lagrangian path: all layers' hull increments in descending order of gain per byte."""

    def __init__(self, options: Sequence[_Options], weights: Array) -> None:
        self._hulls = []
        slopes, owners = [], []
        for i, option in enumerate(options):
            # D = sum_i w_i^2 residual_i, over bytes R
            loss = weights[option.tasks] @ option.residual
            hull = _lower_hull(option.nbytes, loss)
            self._hulls.append(hull)
            gain = loss[hull[:-1]] - loss[hull[1:]]
            slopes.append(gain / (option.nbytes[hull[1:]] - option.nbytes[hull[:-1]]))
            owners.append(np.full(len(hull) - 1, i))
        order = np.argsort(-np.concatenate(slopes), kind="stable")
        owner = np.concatenate(owners)[order]
        self._increments = [np.flatnonzero(owner == i) for i in range(len(options))]
        self.steps = len(order)

    def state(self, step: int) -> Array:
        """The choice of every layer after ``step`` increments, (layers,)."""
        taken = [int(np.searchsorted(increments, step)) for increments in self._increments]
        return np.array([hull[t] for hull, t in zip(self._hulls, taken, strict=True)])


def _lower_hull(nbytes: Array, loss: Array) -> Array:
    """The lower convex hull of (bytes, loss), as indices from fewest bytes to least loss."""
    order = np.lexsort((loss, nbytes))
    falling = np.minimum.accumulate(loss[order])
    order = order[np.concatenate([[True], loss[order][1:] < falling[:-1]])]
    x, y = nbytes[order].tolist(), loss[order].tolist()  # plain numbers: a loop of many steps
    hull: list[int] = []
    for j in range(len(order)):
        while len(hull) > 1:
            i, last = hull[-2], hull[-1]
            if (y[j] - y[last]) / (x[j] - x[last]) > (y[last] - y[i]) / (x[last] - x[i]):
                break
            hull.pop()
        hull.append(j)
    indices: Array = order[hull]
    return indices
