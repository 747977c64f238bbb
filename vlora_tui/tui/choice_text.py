"""A choice of k in words: what it is, how it differs, and whether sharing pays."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vlora_tui.tui.session import Choosing, Figures
from vlora_tui.tui.words import size

if TYPE_CHECKING:
    from vlora_engine.budget import Choice, Prediction

HARDLY = 1.2  # under this ratio sharing hardly pays


def verdict(
    figures: Figures | None, rivals: Sequence[Figures | None], factors: int
) -> tuple[str, bool]:
    """What the figures say about sharing, and whether that is a warning.

    Args:
        factors: Bytes of all A and B at 16 bit.
    """
    if figures is None or figures.choice is None:
        return "", False
    own = figures.choice.prediction
    words = []
    bad = own.codec_ratio < HARDLY
    remedy = "Store in fp16 (d), or allow" if figures.choice.dtype == "F32" else "Allow"
    if own.codec_ratio < 1:
        words.append(
            f"Sharing does not pay here: every adapter's own A and B at 16 bit take "
            f"{size(factors)} and lose nothing to speak of; this choice takes "
            f"{1 / own.codec_ratio:.2f} times that. {remedy} more error (e), or leave these "
            "adapters as they are."
        )
    elif bad:
        words.append(
            f"Sharing hardly pays here: {own.codec_ratio:.2f} times smaller than every adapter's "
            f"own A and B at 16 bit ({size(factors)}). They have little in common at "
            f"this error. {remedy} more error (e), or keep each adapter by itself."
        )
    better = [
        r
        for r in rivals
        if r is not None
        and r.choice is not None
        and r.choice.prediction.mean_error < 0.95 * own.mean_error
    ]
    if better:
        best = min(better, key=lambda r: r.choice.prediction.mean_error if r.choice else 1.0)
        if best.choice is not None:
            words.append(
                f"{best.choice.method} is closer at the same bytes: mean error "
                f"{percent(best.choice.prediction.mean_error)} (m changes the method)."
            )
    if not words:
        words.append(
            f"Sharing pays: {own.codec_ratio:.3g} times smaller than every adapter's own A and B "
            "at 16 bit."
        )
    return " ".join(words), bad


def spread(figures: Figures) -> tuple[int, int, int]:
    """The k that a choice is about, the least and the largest of any layer and side.

    What was asked for where one k was; else the median. A side with fewer directions than that
    keeps all it has, and does not count as a k of its own.
    """
    name, value = figures.choosing.goal
    if name == "k":
        ks = [int(value), *(k for _, k in figures.choosing.layers)]
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


def goal_words(choosing: Choosing) -> str:
    """The method and what was asked for, with the layers that have a k of their own."""
    name, value = choosing.goal
    wanted = {
        "k": f"k {value:.0f}",
        "variance": f"variance {plain_percent(value)}",
        "max_error": f"worst {plain_percent(value)}",
        "mean_error": f"mean {plain_percent(value)}",
        "budget": f"at most {size(value)}",
    }[name]
    own = f" +{len(choosing.layers)} own" if choosing.layers else ""
    packed = f", as {choosing.quantize}" if choosing.quantize != "none" else ""
    return f"{choosing.method}, {wanted}{own}{packed}"


def difference(now: Choice, other: Choice, short: dict[str, str]) -> str:
    """Which layers another choice treats otherwise."""
    if now.method != other.method:
        return f"another method: {other.method}"
    layers = [name for name in now.k if other.k.get(name) != now.k[name]]
    if not layers:
        return "same k everywhere"
    if len(layers) == len(now.k) and len(layers) > 3:
        return f"all {len(layers)} layers differ"
    named = ", ".join(
        f"{short.get(name, name)} {max(other.k.get(name, (0, 0))) - max(now.k[name]):+d}"
        for name in layers[:2]
    )
    more = f" and {len(layers) - 2} more" if len(layers) > 2 else ""
    return f"{named}{more}"


def worst_layer(prediction: Prediction, short: dict[str, str]) -> str:
    """The module with the largest error, and that."""
    if not prediction.layer_errors:
        return ""
    name = max(prediction.layer_errors, key=lambda n: prediction.layer_errors[n])
    return f"{percent(prediction.layer_errors[name])} {short.get(name, name)}"
