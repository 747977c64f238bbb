"""Describes a choice of k in words: what it is, how it differs, and whether sharing pays."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vlora_engine.compression_target import CompressionTarget, LayerK, one_k
from vlora_engine.utils.naming import LEAST_SHARE
from vlora_engine.utils.ranking import ranked, worst
from vlora_tui.tui.core.session import Figures
from vlora_tui.tui.key_names import key
from vlora_tui.utils.formatting import listed, percent, size

if TYPE_CHECKING:
    from vlora_engine.quantization.packing import Quantization
    from vlora_engine.spectra.choose import Choice, Prediction

CLEARLY = 0.95  # bytes under this share of another's are worth a word
HARDLY = 1.2  # under this ratio a method hardly pays
LITTLE_LEFT = 0.5  # an error from which on nothing works any more
PARTS = ("", "▏", "▎", "▍", "▌", "▋", "▊", "▉")  # of a column, by eighths
SAME = 1.02  # times an error that counts as the same


@dataclass(frozen=True)
class Verdict:
    """What the figures say about a choice; ``bad`` if that is a warning, ``brief`` in two words."""

    words: str = ""
    bad: bool = False
    brief: str = ""


def summary(figures: Figures | None, rivals: Sequence[Figures | None], factors: int) -> Verdict:
    """What the figures say about the size of a choice, beside other methods at its error.

    Args:
        rivals: Other methods at the same error; None while they are worked out.
        factors: Bytes of all A and B at 16 bit.
    """
    prediction = None if figures is None else figures.prediction
    if figures is None or prediction is None:
        return Verdict()
    if prediction.max_error >= LITTLE_LEFT:
        words = (
            f"At an error of {percent(prediction.max_error)} little is left of an adapter. "
            f"Allow less ({key('choose.error')}): 5 % is usual."
        )
        return Verdict(words, True, "little is left")
    smaller = _smaller(figures, rivals)
    if figures.choosing.is_coded and prediction.codec_ratio >= HARDLY:
        return Verdict(" ".join([_coded_summary(figures), smaller]).strip())
    if prediction.codec_ratio >= HARDLY:
        pays = f"Sharing pays: {prediction.codec_ratio:.3g}x smaller than A and B at 16 bit."
        return Verdict(smaller or pays)
    predicted = [r.prediction for r in rivals if r is not None and r.prediction is not None]
    other_pays = any(
        rival.codec_ratio >= HARDLY and rival.max_error <= SAME * prediction.max_error
        for rival in predicted
    )
    if other_pays or any(rival is None for rival in rivals):
        return Verdict(smaller)
    larger = prediction.codec_ratio < 1
    words = (
        f"Compressing {'does not pay' if larger else 'hardly pays'} at this error: storing each "
        f"adapter in fp16 takes {size(factors)} with practically no loss. Allow more error "
        f"({key('choose.error')}), or keep the adapters as they are."
    )
    brief = "does not pay" if larger else "hardly pays"
    return Verdict(" ".join([smaller, words]).strip(), True, brief)


def _smaller(figures: Figures, rivals: Sequence[Figures | None]) -> str:
    """Which other method reaches the same error in clearly fewer bytes."""
    prediction = figures.prediction
    if prediction is None:
        return ""
    by_mean = figures.choosing.goal[0] == "mean_error"
    error = prediction.mean_error if by_mean else prediction.max_error
    predicted = [(r, r.prediction) for r in rivals if r is not None and r.prediction is not None]
    better = [
        (r, p)
        for r, p in predicted
        if p.nbytes < CLEARLY * prediction.nbytes
        and (p.mean_error if by_mean else p.max_error) <= SAME * error
    ]
    if not better:
        return ""
    best, its = ranked(better, lambda pair: pair[1].nbytes, largest=False)[0]
    alone = best.coded is not None and (best.choosing.method == "own" or not _sharing(best))
    return (
        f"{best.choosing.method} reaches {percent(error)} in {size(its.nbytes)} "
        f"instead of {size(prediction.nbytes)} ({key('choose.method')})."
        + (" Sharing saves nothing on this collection." if alone else "")
    )


def _sharing(figures: Figures) -> int:
    """How many layers are shared in coding."""
    return 0 if figures.coded is None else sum(map(bool, figures.coded.kinds.values()))


def _coded_summary(figures: Figures) -> str:
    """What coding comes to beside A and B, and what sharing has to do with it."""
    coded = figures.coded
    if coded is None:
        return ""
    words = f"~{coded.prediction.codec_ratio:.3g}x smaller than A and B at 16 bit."
    if figures.choosing.method == "own":
        return f"{words} Each adapter is coded alone and depends on no other."
    saved = sum(group.saved_bytes for group in coded.groups)
    if not _sharing(figures):
        return f"{words} Sharing saves nothing at this error: each adapter is coded alone."
    return (
        f"{words} Sharing in {_sharing(figures)}/{len(coded.kinds)} modules saves ~{size(saved)} "
        f"({key('choose.next_pane')}: who shares what)."
    )


def spread(figures: Figures) -> tuple[int, int, int]:
    """The k that a choice is about, the least and the largest of any layer and side.

    What was asked for where one k was; else the median. A side with fewer directions than that
    keeps all it has, and does not count as a k of its own.
    """
    name, value = figures.choosing.goal
    if name == "k":
        least, most = figures.choosing.k_range or (int(value),) * 2
        return int(value), least, most
    choice = figures.choice
    ks = [k for pair in choice.k.values() for k in pair] if choice is not None else [1]
    return round(statistics.median(ks)), min(ks), max(ks)


def is_seen(error: float) -> bool:
    """Whether an error is more than rounding; below, which task has most of it says nothing."""
    return error >= LEAST_SHARE


def bar(share: float, width: int, *, ascii_only: bool) -> str:
    """A bar as long as a share of ``width`` columns; nothing is a bar of none."""
    share = min(1.0, max(0.0, share))
    least = 1 if share > 0 else 0
    if ascii_only:
        return "#" * max(least, round(share * width))
    eighths = max(least, round(share * width * 8))
    return "█" * (eighths // 8) + PARTS[eighths % 8]


def is_rough(figures: Figures | None) -> bool:
    """Whether figures are going to change while nothing is chosen: they are still worked out."""
    return figures is None or figures.estimate is not None or figures.so_far


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


def goal_words(choosing: CompressionTarget, layers: int) -> str:
    """The method and what was asked for, with the layers that have a k of their own.

    Args:
        layers: How many there are; where all have their own k, it is one "by module".
    """
    words, packed = target_words(choosing), choosing.quantization
    if choosing.layers and choosing.k_range is not None:
        least, most = choosing.k_range
        by_layer = len(choosing.layers) >= layers and choosing.goal[0] == "k"
        words = (
            f"k {least}-{most} by module" if by_layer else f"{words} +{len(choosing.layers)} set"
        )
    return f"{choosing.method}, {words}" + (f", as {short_packing(packed)}" if packed else "")


def brief_goal(choosing: CompressionTarget) -> str:
    """What was asked for, where there is no room for the method: ``k 4-24 int4``."""
    packed, words = choosing.quantization, target_words(choosing)
    if choosing.layers and choosing.k_range is not None and choosing.goal[0] == "k":
        words = "k {}-{}".format(*choosing.k_range)
    return words + (f" {short_packing(packed)}" if packed else "")


def k_range(figures: Figures | None) -> str:
    """The k that a target came to, ``k 17-72``; empty where k is what was asked for, or none is."""
    if figures is None or figures.choice is None or figures.choosing.goal[0] == "k":
        return ""
    _, least, most = spread(figures)
    return f"k {least}" if least == most else f"k {least}-{most}"


def short_packing(packed: Quantization) -> str:
    """A packing in a word, with its size of blocks where that is not the usual: ``int4/128``."""
    block = packed.basis.block_size
    return packed.name if block == CompressionTarget.block_size else f"{packed.name}/{block}"


def k_words(k: LayerK) -> str:
    """The k of a layer: one, or that of either side."""
    k = one_k(k)
    return f"k {k}" if isinstance(k, int) else f"k {k[0]} A, {k[1]} B"


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
        return f"all {len(layers)} modules differ"
    changes = {name: max(other.k.get(name, (0, 0))) - max(now.k[name]) for name in layers}
    return listed([f"{short.get(name, name)} {by:+d}" for name, by in changes.items()], 2)


def worst_layer(prediction: Prediction, short: dict[str, str]) -> str:
    """The module with the largest error, and that."""
    name = worst(prediction.layer_errors)
    if name is None or not is_seen(prediction.layer_errors[name]):
        return ""
    return f"{percent(prediction.layer_errors[name])} {short.get(name, name)}"
