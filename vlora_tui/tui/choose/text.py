"""Describes a choice of k in words: what it is, how it differs, and whether sharing pays."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vlora_engine.compression_target import CompressionTarget
from vlora_engine.quantization.packing import NOT_PACKED
from vlora_engine.utils.ranking import ranked, worst
from vlora_tui.tui.core.session import Figures
from vlora_tui.utils.formatting import listed, size

if TYPE_CHECKING:
    from vlora_engine.spectra.choose import Choice, Prediction

CLEARLY = 0.95  # an error under this share of another is worth a word
HARDLY = 1.2  # under this ratio sharing hardly pays


def summary(
    figures: Figures | None, rivals: Sequence[Figures | None], factors: int
) -> tuple[str, bool]:
    """What the figures say about sharing, and whether that is a warning.

    Args:
        factors: Bytes of all A and B at 16 bit.
    """
    prediction = None if figures is None else figures.prediction
    if figures is None or prediction is None:
        return "", False
    closer = _closer(prediction, rivals)
    if figures.choosing.is_coded:
        return " ".join([_coded_summary(figures), closer]).strip(), prediction.codec_ratio < HARDLY
    words = []
    fp32 = figures.choice is not None and figures.choice.dtype == "F32"
    remedy = "Store in fp16 (d), or allow" if fp32 else "Allow"
    if prediction.codec_ratio < 1:
        words.append(
            f"Sharing does not pay here: every adapter's own A and B at 16 bit take "
            f"{size(factors)} and lose nothing to speak of; this choice takes "
            f"{1 / prediction.codec_ratio:.2f} times that. {remedy} more error (e), or leave these "
            "adapters as they are."
        )
    elif prediction.codec_ratio < HARDLY:
        words.append(
            f"Sharing hardly pays here: {prediction.codec_ratio:.2f} times smaller than every "
            f"adapter's own A and B at 16 bit ({size(factors)}). They have little in common at "
            f"this error. {remedy} more error (e), or keep each adapter by itself."
        )
    if not words and not closer:
        words.append(
            f"Sharing pays: {prediction.codec_ratio:.3g} times smaller than every adapter's own "
            "A and B at 16 bit."
        )
    return " ".join([*words, closer]).strip(), prediction.codec_ratio < HARDLY


def _closer(prediction: Prediction, rivals: Sequence[Figures | None]) -> str:
    """Which other method has clearly less error at the same bytes."""
    predicted = [(r, r.prediction) for r in rivals if r is not None and r.prediction is not None]
    better = [(r, p) for r, p in predicted if p.mean_error < CLEARLY * prediction.mean_error]
    if not better:
        return ""
    best, its = ranked(better, lambda pair: pair[1].mean_error, largest=False)[0]
    alone = best.coded is not None and (best.choosing.method == "own" or not _sharing(best))
    about = "" if best.is_exact else "~"
    return (
        f"{best.choosing.method} is closer at the same bytes: mean error {about}"
        f"{percent(its.mean_error)} (m changes the method)."
        + (" Each adapter by itself is cheaper on this collection." if alone else "")
    )


def _sharing(figures: Figures) -> int:
    """How many layers are shared in coding."""
    return 0 if figures.coded is None else sum(map(bool, figures.coded.kinds.values()))


def _coded_summary(figures: Figures) -> str:
    """What coding comes to beside A and B, and what sharing has to do with it."""
    coded = figures.coded
    if coded is None:
        return ""
    words = f"~{coded.prediction.codec_ratio:.3g} times smaller than A and B at 16 bit."
    if figures.choosing.method == "own":
        return f"{words} Every adapter is coded by itself, and depends on no other."
    saved = sum(group.saved_bytes for group in coded.groups)
    if not _sharing(figures):
        return f"{words} Sharing pays nowhere at this target: every adapter is coded by itself."
    return (
        f"{words} Sharing in {_sharing(figures)} of {len(coded.kinds)} layers saves ~{size(saved)} "
        "against each adapter by itself (S shows who shares what)."
    )


def spread(figures: Figures) -> tuple[int, int, int]:
    """The k that a choice is about, the least and the largest of any layer and side.

    What was asked for where one k was; else the median. A side with fewer directions than that
    keeps all it has, and does not count as a k of its own.
    """
    name, value = figures.choosing.goal
    if name == "k":
        ks = [int(value), *figures.choosing.layers.values()]
        return int(value), min(ks), max(ks)
    choice = figures.choice
    ks = [k for pair in choice.k.values() for k in pair] if choice is not None else [1]
    return round(statistics.median(ks)), min(ks), max(ks)


def percent(value: float) -> str:
    """A relative error or a share as a person reads it."""
    value *= 100
    if 0 < value < 0.001:
        return "<0.001 %"
    return f"{value:.0f} %" if value >= 99.95 else f"{value:#.3g} %"


def plain_percent(value: float) -> str:
    """A percentage as a person typed it."""
    return f"{100 * value:g} %"


def target_words(choosing: CompressionTarget) -> str:
    """What is aimed at, in two words."""
    name, value = choosing.goal
    return {
        "k": f"k {value:.0f}",
        "variance": f"variance {plain_percent(value)}",
        "max_error": f"worst {plain_percent(value)}",
        "mean_error": f"mean {plain_percent(value)}",
        "budget": f"at most {size(value)}",
    }[name]


def goal_words(choosing: CompressionTarget) -> str:
    """The method and what was asked for, with the layers that have a k of their own."""
    own_k = f" +{len(choosing.layers)} own" if choosing.layers else ""
    packed = f", as {choosing.quantize}" if choosing.quantize != NOT_PACKED else ""
    return f"{choosing.method}, {target_words(choosing)}{own_k}{packed}"


def difference(now: Figures, other: Figures, short: dict[str, str]) -> str:
    """What another choice does otherwise: its method, or the layers that it treats so."""
    if now.choosing.method != other.choosing.method:
        return f"another method: {other.choosing.method}"
    if now.choice is None or other.choice is None:
        return ""
    return _layer_difference(now.choice, other.choice, short)


def _layer_difference(now: Choice, other: Choice, short: dict[str, str]) -> str:
    layers = [name for name in now.k if other.k.get(name) != now.k[name]]
    if not layers:
        return "same k everywhere"
    if len(layers) == len(now.k) and len(layers) > 3:
        return f"all {len(layers)} layers differ"
    changes = {name: max(other.k.get(name, (0, 0))) - max(now.k[name]) for name in layers}
    return listed([f"{short.get(name, name)} {by:+d}" for name, by in changes.items()], 2)


def worst_layer(prediction: Prediction, short: dict[str, str]) -> str:
    """The module with the largest error, and that."""
    name = worst(prediction.layer_errors)
    if name is None:
        return ""
    return f"{percent(prediction.layer_errors[name])} {short.get(name, name)}"
