"""What a recipe's choice comes to: targets, forecasts, what other methods would cost."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vlora_engine.errors import VLoRAError
from vlora_engine.manifest.coding import METHODS as CODED_METHODS
from vlora_tui.recipe import Compress

if TYPE_CHECKING:
    from vlora_engine.codec.forecast import Forecast, Outlook
    from vlora_engine.manifest.manifest import Manifest
    from vlora_engine.spectra.tables import Spectra
    from vlora_engine.subspace.request import Targets


@dataclass(frozen=True)
class Expected:
    """What a choice is going to cost.

    Args:
        k: In a few words; empty where every direction gets bits of its own.
    """

    method: str
    k: str
    mean_error: float
    max_error: float
    nbytes: int


def expect(compress: Compress, spectra: Spectra) -> Expected | None:
    """What a recipe is going to cost, None where these spectra cannot tell.

    Raises:
        VLoRAError: It cannot be met.
    """
    if compress.is_coded:
        outlook = spectra.outlook()
        if outlook is None or compress.target is None:
            return None
        return expect_coded(outlook, compress.method, *compress.target)
    from vlora_engine.spectra.choose import choose

    prediction = (choice := choose(spectra, **choice_arguments(compress))).prediction
    return Expected(
        compress.method,
        k_text(choice.k),
        prediction.mean_error,
        prediction.max_error,
        prediction.nbytes,
    )


def expect_coded(outlook: Outlook, method: str, target: str, value: float) -> Expected:
    """What coding is going to cost.

    Raises:
        TargetError: It cannot be met.
    """
    from vlora_engine.codec.forecast import Target

    forecast: Forecast = outlook.solve(method, Target.of(target, value))
    errors = forecast.errors
    return Expected(
        method,
        "",
        float(errors.mean()),
        float(errors.max(initial=0)),
        int(outlook.nbytes(forecast)),
    )


def manifest_figures(manifest: Manifest) -> dict[str, Any]:
    """What a subspace says of itself, in the words of a build's report."""
    known = manifest.as_dict()
    return {
        **{key: known[key] for key in ("method", "dtype", "quantization", "variance")},
        **{key: known[key] for key in ("mean_error", "max_error", "worst_task", "input_bytes")},
        **{key: known[key] for key in ("ratio", "codec_ratio")},
        "nbytes": known["bytes"],
        "coding": known["coding"],
        "tasks": list(manifest.tasks),
        "k": {layer.name: (layer.k_a, layer.k_b) for layer in manifest.layers},
        "task_errors": {task.id: task.error for task in manifest.tasks.values()},
        "bounded": [task.id for task in manifest.tasks.values() if not task.measured],
    }


def targets_of(compress: Compress) -> Targets:
    """What of the recipe the engine's build goes by."""
    from vlora_engine.subspace.request import Targets

    return Targets(**choice_arguments(compress), refine=compress.refine)


def choice_arguments(compress: Compress) -> dict[str, Any]:
    """What of the recipe decides on k, as `vlora_engine.spectra.choose.choose` takes it."""
    arguments: dict[str, Any] = {
        name: getattr(compress, name)
        for name in ("k", "k_a", "k_b")
        if getattr(compress, name) is not None
    }
    if compress.target is not None:
        name, value = compress.target
        arguments[name] = value
    return {
        "method": compress.method,
        "adaptive": compress.adaptive,
        "layers": dict(compress.layers),
        "dtype": compress.dtype,
        "quantize": compress.quantize,
        **arguments,
    }


def others_at(
    compress: Compress, figures: Mapping[str, Any], spectra: Spectra | None
) -> tuple[dict[str, Any], ...]:
    """What the other methods would cost at the same bytes, where spectra are there to tell."""
    if spectra is None:
        return ()
    from vlora_engine.spectra.choose import choose

    outlook = spectra.outlook()
    rows: list[dict[str, Any]] = []
    for method in CODED_METHODS:
        if method == compress.method or outlook is None:
            continue
        row: dict[str, Any] = dict.fromkeys(("k", "mean_error", "max_error", "nbytes"))
        with suppress(VLoRAError):
            row = vars(expect_coded(outlook, method, "budget", int(figures["nbytes"]))).copy()
        rows.append({**row, "method": method})
    for method in (m for m in spectra.methods if m != compress.method):
        row = dict.fromkeys(("k", "mean_error", "max_error", "nbytes"))
        with suppress(VLoRAError):  # no k of it fits: the row says so
            choice = choose(
                spectra,
                method,
                budget=int(figures["nbytes"]),
                dtype=compress.dtype,
                quantize=compress.quantize,
            )
            prediction = choice.prediction
            row = {
                "k": k_text(choice.k),
                "mean_error": prediction.mean_error,
                "max_error": prediction.max_error,
                "nbytes": prediction.nbytes,
            }
        rows.append({"method": method, **row})
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
    return f"{figures['method']}, {groups} in {sharing} of {layers} layers"


def k_text(k: Mapping[str, Any]) -> str:
    """The k of all layers in a few words: ``8``, ``4-24``, ``8-12 x 16`` (k_a x k_b)."""
    pairs = {(k_ab, k_ab) if isinstance(k_ab, int) else tuple(k_ab) for k_ab in k.values()}
    sides = [sorted({pair[i] for pair in pairs}) for i in (0, 1)]
    if all(a == b for a, b in pairs):
        sides = sides[:1]
    texts = [str(s[0]) if len(s) == 1 else f"{s[0]}-{s[-1]}" for s in sides if s]
    return " x ".join(texts) or "-"
