"""Forecasts a recipe's compression: sizes and errors, and those of the other methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from vlora_engine.codec.forecast import EVERYBODY, Forecast, RateTables
from vlora_engine.compression_target import CODED_METHODS, CompressionTarget
from vlora_engine.errors import VLoRAError
from vlora_engine.quantization.dtypes import storage_dtype
from vlora_engine.spectra.choose import Choice, Prediction, choose
from vlora_engine.spectra.sizes import factor_bytes_16, input_bytes, overhead_bytes, rest_bytes
from vlora_engine.utils.ranking import worst
from vlora_tui.pipeline.events import Chosen

if TYPE_CHECKING:
    from vlora_engine.manifest.manifest import Manifest
    from vlora_engine.spectra.tables import Spectra


def expect(target: CompressionTarget, spectra: Spectra) -> Chosen | None:
    """What a target is going to cost, None where these spectra cannot tell.

    Raises:
        VLoRAError: It cannot be met.
    """
    k = ""
    if not target.is_coded:
        choice = choose(spectra, target)
        k, cost = k_text(choice.k), choice.prediction
    elif (rate_tables := spectra.rate_tables()) is not None:
        cost = prediction_of(rate_tables, rate_tables.solve(target))
    else:
        return None
    return Chosen(target.method, k, cost.mean_error, cost.max_error, cost.nbytes)


def choose_so_far(spectra: Spectra, target: CompressionTarget) -> Choice:
    """Choose k on the layers that are measured; bytes are carried over to all of them.

    Raises:
        VLoRAError: As `choose`.
    """
    measured = spectra.measured()
    part = max(1e-9, spectra.measured_part(measured.layer_names))
    stored = storage_dtype(target.dtype, (t.dtype for t in spectra.tasks), lossy=target.lossy)
    rest = rest_bytes(spectra)
    fixed = overhead_bytes(spectra, stored, target.quantization) + rest
    layers = {name: k for name, k in target.layers.items() if name in measured.layers}
    target = replace(target, layers=layers)
    if target.budget is not None:
        target = replace(target, budget=int(fixed + part * max(0, target.budget - fixed)))
    choice = choose(measured, target)
    nbytes = int(fixed + max(0, choice.prediction.nbytes - fixed) / part)
    prediction = replace(
        choice.prediction,
        nbytes=nbytes,
        ratio=input_bytes(spectra) / max(1, nbytes),
        codec_ratio=factor_bytes_16(spectra) / max(1, nbytes - rest),
    )
    return replace(choice, prediction=prediction)


def manifest_figures(manifest: Manifest) -> dict[str, Any]:
    """What a subspace says of itself, in the words of a build's report."""
    index = manifest.as_dict()
    return {
        **{key: index[key] for key in ("method", "dtype", "quantization", "variance")},
        **{key: index[key] for key in ("mean_error", "max_error", "worst_task", "input_bytes")},
        **{key: index[key] for key in ("ratio", "codec_ratio")},
        "nbytes": index["bytes"],
        "coding": index["coding"],
        "tasks": list(manifest.tasks),
        "k": {layer.name: (layer.k_a, layer.k_b) for layer in manifest.layers},
        "task_errors": {task.id: task.error for task in manifest.tasks.values()},
        "bounded": [task.id for task in manifest.tasks.values() if not task.measured],
    }


def others_at(
    target: CompressionTarget, figures: Mapping[str, Any], spectra: Spectra | None
) -> tuple[dict[str, Any], ...]:
    """What the other methods would cost at the same bytes, where spectra are there to tell."""
    if spectra is None:
        return ()
    budget = int(figures["nbytes"])
    coded = [] if spectra.rate_tables() is None else [CompressionTarget(m) for m in CODED_METHODS]
    based = [
        CompressionTarget(
            method,
            dtype=target.dtype,
            quantize=target.quantize,
            block_size=target.block_size,
            double_quant=target.double_quant,
        )
        for method in spectra.methods
    ]
    rows: list[dict[str, Any]] = []
    for other in (*coded, *based):
        if other.method == target.method:
            continue
        row: dict[str, Any] = dict.fromkeys(("k", "mean_error", "max_error", "nbytes"))
        with suppress(VLoRAError):  # nothing of it fits: the row says so
            row = vars(expect(other.with_goal("budget", budget), spectra)).copy()
        rows.append({"method": other.method, **row})
    return tuple(rows)


def how(figures: Mapping[str, Any]) -> str:
    """How a subspace was made, in a few words: its method and k, or what its groups share."""
    coding = figures.get("coding")
    if coding is None:
        return f"{figures['method']}, k = {k_text(figures['k'])}"
    modes = coding["modes"]
    layers = len(next(iter(modes.values()), ""))
    sharing = sum(any(text[i] != "-" for text in modes.values()) for i in range(layers))
    if not sharing:
        return f"{figures['method']}, every adapter by itself"
    groups = "a group shares" if len(modes) == 1 else f"{len(modes)} groups share"
    return f"{figures['method']}, {groups} in {sharing} of {layers} modules"


def k_text(k: Mapping[str, Any]) -> str:
    """The k of all layers in a few words: ``8``, ``4-24``, ``8-12 x 16`` (k_a x k_b)."""
    pairs = {(k_ab, k_ab) if isinstance(k_ab, int) else tuple(k_ab) for k_ab in k.values()}
    sides = [sorted({pair[i] for pair in pairs}) for i in (0, 1)]
    if all(a == b for a, b in pairs):
        sides = sides[:1]
    texts = [str(s[0]) if len(s) == 1 else f"{s[0]}-{s[-1]}" for s in sides if s]
    return " x ".join(texts) or "-"


@dataclass(frozen=True)
class Shared:
    """What a group of related adapters shares.

    Args:
        tasks: Those that are in the group. cosine: The least between two of them, of A.
        layers: Where they share, by the kind of sharing.
        saved_bytes: Against coding each by itself, error counted in bytes.
    """

    group: int
    tasks: tuple[str, ...]
    cosine: float | None
    layers: dict[str, tuple[str, ...]]
    saved_bytes: int


@dataclass(frozen=True)
class Loss:
    """What one adapter loses.

    Args:
        nbytes: Of its own on disk, without headers and what it shares; None where that is not told.
        worst_layer: The module that loses the largest share of its own dW, and that error.
    """

    task: str
    error: float
    nbytes: int | None
    worst_layer: str
    worst_error: float


@dataclass(frozen=True)
class Coded:
    """Coding for one target, worked out: what it costs, what is shared, what is lost."""

    method: str
    prediction: Prediction
    groups: tuple[Shared, ...]
    alone: tuple[str, ...]
    losses: tuple[Loss, ...]
    shared_bytes: int
    kinds: dict[str, tuple[str, ...]]  # per layer the kinds of sharing in it

    @classmethod
    def of(cls, rate_tables: RateTables, target: CompressionTarget) -> Coded:
        """Solve for a target.

        Raises:
            TargetError: It cannot be met.
        """
        forecast = rate_tables.solve(target)
        return cls(
            target.method,
            prediction_of(rate_tables, forecast),
            shared_by(rate_tables, forecast),
            alone_in(rate_tables, forecast),
            losses_of_coding(rate_tables, forecast),
            int(forecast.shared_bits / 8),
            {
                layer.name: tuple(sorted({mode.kind for mode in modes}))
                for layer, modes in zip(rate_tables.layers, forecast.modes, strict=True)
            },
        )


def prediction_of(rate_tables: RateTables, forecast: Forecast) -> Prediction:
    """A forecast in the figures of any choice."""
    errors, nbytes = forecast.errors, int(rate_tables.nbytes(forecast))
    task_errors = dict(zip(rate_tables.tasks, errors.tolist(), strict=True))
    return Prediction(
        mean_error=float(errors.mean()),
        max_error=float(errors.max(initial=0)),
        worst_task=worst(task_errors) or "",
        variance=float((1 - np.square(errors)).mean()),
        nbytes=nbytes,
        ratio=rate_tables.input_bytes / max(1, nbytes),
        codec_ratio=rate_tables.codec_ratio(forecast),
        task_errors=task_errors,
        layer_errors={
            layer.name: float(error)
            for layer, error in zip(rate_tables.layers, forecast.layer_errors, strict=True)
        },
    )


def shared_by(rate_tables: RateTables, forecast: Forecast) -> tuple[Shared, ...]:
    """What each group of related adapters shares, also where that is nothing."""
    found = []
    for number in group_numbers(rate_tables):
        layers: dict[str, list[str]] = {}
        saved = 0
        for i, modes in enumerate(forecast.modes):
            for mode in (mode for mode in modes if mode.number == number):
                layers.setdefault(mode.kind, []).append(rate_tables.layers[i].name)
                saved += rate_tables.saved_bytes(i, mode, forecast.steps)
        if not layers and number == EVERYBODY:
            continue  # they are no group, unless there is something that they share
        found.append(
            Shared(
                number,
                tuple(rate_tables.tasks[i] for i in rate_tables.clusters[number]),
                _least_cosine(rate_tables, rate_tables.clusters[number]),
                {kind: tuple(names) for kind, names in sorted(layers.items())},
                saved,
            )
        )
    return tuple(found)


def alone_in(rate_tables: RateTables, forecast: Forecast) -> tuple[str, ...]:
    """The tasks that share nothing anywhere."""
    sharing = {
        int(layer.tasks[row])
        for layer, modes in zip(rate_tables.layers, forecast.modes, strict=True)
        for mode in modes
        for row in mode.members
    }
    return tuple(name for i, name in enumerate(rate_tables.tasks) if i not in sharing)


def losses_of_coding(rate_tables: RateTables, forecast: Forecast) -> tuple[Loss, ...]:
    """What every adapter loses, in the order of the tasks."""
    return tuple(
        Loss(name, float(forecast.errors[i]), int(forecast.bits[i] / 8), *worst)
        for i, (name, worst) in enumerate(
            zip(rate_tables.tasks, rate_tables.worst_layers(forecast), strict=True)
        )
    )


def losses_of_choice(spectra: Spectra, choice: Choice) -> tuple[Loss, ...]:
    """The same for a choice of k; exact, and without bytes, which belong to all together."""
    losses: list[dict[str, float]] = [{} for _ in spectra.tasks]
    for name, (k_a, k_b) in choice.k.items():
        layer = spectra.layers[name]
        residual = spectra.table(name, choice.method).at(k_a, k_b)
        share = np.divide(
            residual, layer.energy, out=np.zeros(len(layer.energy)), where=layer.energy > 0
        )
        for i, error in zip(layer.tasks.tolist(), np.sqrt(share.clip(0)).tolist(), strict=True):
            losses[i][name] = error
    errors = choice.prediction.task_errors
    return tuple(
        Loss(task.name, errors[task.name], None, name, layer_errors.get(name, 0.0))
        for task, layer_errors in zip(spectra.tasks, losses, strict=True)
        for name in [worst(layer_errors) or ""]
    )


def group_numbers(rate_tables: RateTables) -> list[int]:
    """The groups that may share, everybody last."""
    return sorted(rate_tables.clusters, key=lambda number: (number == EVERYBODY, number))


def cluster_rows(rate_tables: RateTables) -> list[dict[str, Any]]:
    """The groups of related adapters, for JSON; group 0 is everybody."""
    return [
        {"group": number, "tasks": [rate_tables.tasks[i] for i in members]}
        for number, members in sorted(rate_tables.clusters.items())
        if number or len(rate_tables.clusters) == 1
    ]


def choice_data(rate_tables: RateTables, target: CompressionTarget) -> dict[str, Any]:
    """What auto would do, layer by layer, and what each adapter would lose, for JSON."""
    forecast = rate_tables.solve(replace(target, method="auto"))
    whole = prediction_of(rate_tables, forecast)
    unshared = prediction_of(rate_tables, rate_tables.solve(replace(target, method="own")))
    return {
        "nbytes": whole.nbytes,
        "codec_ratio": whole.codec_ratio,
        "mean_error": whole.mean_error,
        "max_error": whole.max_error,
        "own": {
            "nbytes": unshared.nbytes,
            "mean_error": unshared.mean_error,
            "max_error": unshared.max_error,
        },
        "layers": [
            {
                "layer": layer.name,
                "error": float(forecast.layer_errors[i]),
                "groups": [
                    {
                        "group": mode.number,
                        "kind": mode.kind,
                        "tasks": [rate_tables.tasks[layer.tasks[row]] for row in mode.members],
                        "saves_bytes": rate_tables.saved_bytes(i, mode, forecast.steps),
                    }
                    for mode in forecast.modes[i]
                ],
            }
            for i, layer in enumerate(rate_tables.layers)
        ],
        "adapters": [
            {
                "task": loss.task,
                "error": loss.error,
                "nbytes": loss.nbytes,
                "worst_layer": loss.worst_layer,
                "worst_layer_error": loss.worst_error,
            }
            for loss in losses_of_coding(rate_tables, forecast)
        ],
    }


def _least_cosine(rate_tables: RateTables, members: Sequence[int]) -> float | None:
    if rate_tables.cosines is None or len(members) < 2:
        return None
    inside = rate_tables.cosines[np.ix_(members, members)]
    return float(inside[np.triu_indices(len(members), 1)].min())
