"""What coding a collection comes to, for `plan` and the screen: who shares what, who loses what.

Everything is told from the tables that stand beside spectra (`Outlook`), without torch and within
a few percent of what a build measures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from vlora_engine.spectra.choose import Choice, Prediction
from vlora_engine.utils.ranking import worst

if TYPE_CHECKING:
    from vlora_engine.codec.forecast import Forecast, Outlook, Target
    from vlora_engine.spectra.tables import Spectra

EVERYBODY = 0  # the number of the group that all adapters form


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
    def of(cls, outlook: Outlook, method: str, target: Target) -> Coded:
        """Solve for a target.

        Raises:
            TargetError: It cannot be met.
        """
        forecast = outlook.solve(method, target)
        return cls(
            method,
            prediction_of(outlook, forecast),
            shared_by(outlook, forecast),
            alone_in(outlook, forecast),
            losses_of_coding(outlook, forecast),
            int(forecast.shared_bits / 8),
            {
                layer.name: tuple(sorted({mode.kind for mode in modes}))
                for layer, modes in zip(outlook.layers, forecast.modes, strict=True)
            },
        )


def prediction_of(outlook: Outlook, forecast: Forecast) -> Prediction:
    """A forecast in the figures of any choice."""
    errors, nbytes = forecast.errors, int(outlook.nbytes(forecast))
    task_errors = dict(zip(outlook.tasks, errors.tolist(), strict=True))
    return Prediction(
        mean_error=float(errors.mean()),
        max_error=float(errors.max(initial=0)),
        worst_task=worst(task_errors) or "",
        variance=float((1 - np.square(errors)).mean()),
        nbytes=nbytes,
        ratio=outlook.input_bytes / max(1, nbytes),
        codec_ratio=outlook.codec_ratio(forecast),
        task_errors=task_errors,
        layer_errors={
            layer.name: float(error)
            for layer, error in zip(outlook.layers, forecast.layer_errors, strict=True)
        },
    )


def shared_by(outlook: Outlook, forecast: Forecast) -> tuple[Shared, ...]:
    """What each group of related adapters shares, also where that is nothing."""
    found = []
    for number in group_numbers(outlook):
        layers: dict[str, list[str]] = {}
        saved = 0
        for i, modes in enumerate(forecast.modes):
            for mode in (mode for mode in modes if mode.number == number):
                layers.setdefault(mode.kind, []).append(outlook.layers[i].name)
                saved += outlook.saved_bytes(i, mode, forecast.steps)
        if not layers and number == EVERYBODY:
            continue  # they are no group, unless there is something that they share
        found.append(
            Shared(
                number,
                tuple(outlook.tasks[i] for i in outlook.clusters[number]),
                _least_cosine(outlook, outlook.clusters[number]),
                {kind: tuple(names) for kind, names in sorted(layers.items())},
                saved,
            )
        )
    return tuple(found)


def alone_in(outlook: Outlook, forecast: Forecast) -> tuple[str, ...]:
    """The tasks that share nothing anywhere."""
    sharing = {
        int(layer.tasks[row])
        for layer, modes in zip(outlook.layers, forecast.modes, strict=True)
        for mode in modes
        for row in mode.members
    }
    return tuple(name for i, name in enumerate(outlook.tasks) if i not in sharing)


def losses_of_coding(outlook: Outlook, forecast: Forecast) -> tuple[Loss, ...]:
    """What every adapter loses, in the order of the tasks."""
    return tuple(
        Loss(name, float(forecast.errors[i]), int(forecast.bits[i] / 8), *worst)
        for i, (name, worst) in enumerate(
            zip(outlook.tasks, outlook.worst_layers(forecast), strict=True)
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
        Loss(task.name, errors[task.name], None, name, own.get(name, 0.0))
        for task, own in zip(spectra.tasks, losses, strict=True)
        for name in [worst(own) or ""]
    )


def group_numbers(outlook: Outlook) -> list[int]:
    """The groups that may share, everybody last."""
    return sorted(outlook.clusters, key=lambda number: (number == EVERYBODY, number))


def cluster_rows(outlook: Outlook) -> list[dict[str, Any]]:
    """The groups of related adapters, for JSON; group 0 is everybody."""
    return [
        {"group": number, "tasks": [outlook.tasks[i] for i in members]}
        for number, members in sorted(outlook.clusters.items())
        if number or len(outlook.clusters) == 1
    ]


def choice_data(outlook: Outlook, target: Target) -> dict[str, Any]:
    """What auto would do, layer by layer, and what each adapter would lose, for JSON."""
    forecast = outlook.solve("auto", target)
    whole = prediction_of(outlook, forecast)
    own = prediction_of(outlook, outlook.solve("own", target))
    return {
        "nbytes": whole.nbytes,
        "codec_ratio": whole.codec_ratio,
        "mean_error": whole.mean_error,
        "max_error": whole.max_error,
        "own": {
            "nbytes": own.nbytes,
            "mean_error": own.mean_error,
            "max_error": own.max_error,
        },
        "layers": [
            {
                "layer": layer.name,
                "error": float(forecast.layer_errors[i]),
                "groups": [
                    {
                        "group": mode.number,
                        "kind": mode.kind,
                        "tasks": [outlook.tasks[layer.tasks[row]] for row in mode.members],
                        "saves_bytes": outlook.saved_bytes(i, mode, forecast.steps),
                    }
                    for mode in forecast.modes[i]
                ],
            }
            for i, layer in enumerate(outlook.layers)
        ],
        "adapters": [
            {
                "task": loss.task,
                "error": loss.error,
                "nbytes": loss.nbytes,
                "worst_layer": loss.worst_layer,
                "worst_layer_error": loss.worst_error,
            }
            for loss in losses_of_coding(outlook, forecast)
        ],
    }


def _least_cosine(outlook: Outlook, members: Sequence[int]) -> float | None:
    if outlook.cosines is None or len(members) < 2:
        return None
    inside = outlook.cosines[np.ix_(members, members)]
    return float(inside[np.triu_indices(len(members), 1)].min())
