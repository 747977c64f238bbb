"""The questions that Choose k asks in its one line, and how answers are parsed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vlora_engine.compression_target import sides_of
from vlora_engine.errors import ParameterError
from vlora_engine.utils.sizes import parse_bytes
from vlora_tui.tui.choose.text import spread
from vlora_tui.tui.text import clean
from vlora_tui.tui.widgets.ask import Question
from vlora_tui.utils.formatting import size

if TYPE_CHECKING:
    from vlora_engine.compression_target import CompressionTarget
    from vlora_tui.tui.choose.data import LayerTables, Shown
    from vlora_tui.tui.core.session import Figures, Session


BY_LAYER = 0  # as an answer: the k that each layer has by now


def question(
    what: str, tables: LayerTables, shown: Shown, session: Session, figures: Figures | None
) -> Question:
    """The question behind a key: ``k``, ``variance``, ``max_error``, ``mean_error``, ``budget``
    or ``filter``; the present value is its default.
    """
    now = session.choosing
    current = now.goal[1] if now.goal[0] == what else None
    if what == "k":
        top, label = tables.top(now.method), "k"
        if shown.editing and shown.layer is not None:
            top = tables.layer_top(shown.layer, now.method)
            label = f"k of {clean(tables.short.get(shown.layer, ''))}"
        if shown.editing and shown.layer is not None:
            own = sides_of(now.layers.get(shown.layer, tables.layer_k(shown.layer, figures)))
            return Question(what, label, f"1 to {top}", lambda text: _k(text, top), str(max(own)))
        present = _range(tables, now, figures)
        hint = f"1 to {top} in every module" + (f"; {present} keeps each" if "-" in present else "")
        return Question(what, label, hint, lambda text: _k(text, top, present), present)
    if what == "variance":
        value = "" if current is None else f"{100 * current:g}"
        return Question(what, "variance", "% to keep, for example 95 or 99.5", _share, value)
    if what in ("max_error", "mean_error"):
        value = "" if current is None else f"{100 * current:g}"
        whose = "worst error" if what == "max_error" else "mean error"
        return Question(what, whose, "%, for example 5 or 0.5", _error, value)
    if what == "budget":
        value = "" if current is None else f"{current:.0f}"
        hint = f"on disk, for example 64MB or 2MiB; the adapters take {size(tables.stored)}"
        return Question(what, "bytes", hint, _budget, value)
    hint = "part of a module's name, or a pattern such as *attn*; empty shows all"
    return Question("filter", "filter", hint, str, shown.pattern)


def _range(tables: LayerTables, now: CompressionTarget, figures: Figures | None) -> str:
    """The k of the layers now: one, or the least and the largest of several."""
    if now.goal[0] == "k":
        least, most = now.k_range or (int(now.goal[1]),) * 2
    elif figures is None or figures.choice is None:
        least = most = tables.middle(figures)
    else:
        _, least, most = spread(figures)
    return str(least) if least == most else f"{least}-{most}"


def _k(text: str, top: int, present: str = "") -> int:
    if text == present and "-" in text:
        return BY_LAYER
    try:
        k = int(text)
    except ValueError:
        k = 0
    if not 1 <= k <= top:
        raise ParameterError(f"Enter a whole number, 1 to {top}")
    return k


def _number(text: str) -> float:
    """A percentage: ``5``, ``5 %``; a number under 1 without a sign is a share: ``0.05``."""
    signed = text.rstrip().endswith("%")
    try:
        value = float(text.rstrip("% ").replace(",", "."))
    except ValueError:
        raise ParameterError("Enter a percentage, for example 5") from None
    return value / 100 if signed or value >= 1 else value


def _error(text: str) -> float:
    value = _number(text)
    if not 0 < value < 1:
        raise ParameterError("Enter an error above 0 and under 100 %")
    return value


def _share(text: str) -> float:
    value = 1.0 if text.strip() == "1" else _number(text)
    if not 0 < value <= 1:
        raise ParameterError("Enter a share above 0 and up to 100 %")
    return value


def _budget(text: str) -> float:
    return float(parse_bytes(text))
