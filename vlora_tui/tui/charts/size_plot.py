"""Size against error of every method in one chart, and where the present choice lies on it.

Both axes are logarithmic: across the codec ratio (to the right it gets smaller), upwards the error
of dW. Every method has a mark of its own on its curve, so that no colour is needed to tell them.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.text import Text

from vlora_engine.compression_target import METHODS
from vlora_tui.tui.charts.variance_plot import (
    Array,
    Canvas,
    Frame,
    Labels,
    Look,
    cached,
    canvases,
    draw_axes,
    rasterise,
    texts,
)
from vlora_tui.utils.formatting import size as byte_words

DRAWN = METHODS[::-1]  # in this order, so that auto is on top
MARKS = {"auto": "●", "own": "○", "delta": "▲", "columns": "■", "flat": "◇"}
ASCII_MARKS = {"auto": "A", "own": "O", "delta": "D", "columns": "C", "flat": "F"}
PLAIN_MARKS = {"int8": "8", "nf4": "4"}
LEAST, MOST = 1.0, 64.0  # codec ratios at the ends of the axis
RATIOS = (1, 2, 4, 8, 16, 32, 64)
FLOORS = (1e-3, 1e-4, 1e-5)  # where the axis of errors may begin
TICKS = tuple(m * 10.0**e for e in range(-5, 1) for m in (1, 3))
DASHES = "╌="  # of the line of what is aimed at; the second where only ASCII is drawn
NAMED = 36  # columns from which on the curves are named beside them, too
MARK_OFFSET = 0.22  # marks of two methods stand so many octaves apart, and do not hide each other


@dataclass(frozen=True, eq=False)
class SizeLine:
    """One method's curve: codec ratios (P,), ascending, and the errors (P,) there."""

    method: str
    ratio: Array
    error: Array


@dataclass(frozen=True, eq=False)
class SizeData:
    """What is known of the methods.

    Args:
        version: Equal for equal data; what the chart is cached by.
        points: Plain quantization of A and B: name, codec ratio, error.
        waiting: Methods whose curves are still worked out.
        factor_bytes: At codec ratio 1; ``rest_bytes`` come on top of every size.
        worst: The errors are those of the worst adapter, not their mean.
    """

    version: Hashable
    lines: tuple[SizeLine, ...]
    points: tuple[tuple[str, float, float], ...] = ()
    waiting: tuple[str, ...] = ()
    factor_bytes: int = 0
    rest_bytes: int = 0
    worst: bool = False


@dataclass(frozen=True)
class SizeMarks:
    """What lies over the curves.

    Args:
        ratio: Of the present choice; ``error`` its error. about: It is an estimate.
        name: What the present choice is called.
        goal_error: The error that is aimed at, ``goal_words`` what that is.
        pins: Where the pinned choices lie, and what each is called.
        note: What is said in the middle while there is nothing to draw.
    """

    ratio: float | None = None
    error: float = 0.0
    about: bool = True
    name: str = ""
    goal_error: float | None = None
    goal_words: str = ""
    pins: tuple[tuple[float, float, str], ...] = ()
    note: str = ""


def size_chart(data: SizeData | None, marks: SizeMarks, size: tuple[int, int], look: Look) -> Text:
    """Error against codec ratio, in ``size`` columns and lines; None draws what is unknown."""
    key = ("sizes", None if data is None else data.version, marks, size, look)
    made: Text = cached(texts, 64, key, lambda: _chart(data, marks, size, look))
    return made


@dataclass(frozen=True)
class _Frame(Frame):
    """Codec ratios across, errors upwards from ``floor``."""

    floor: float

    def across(self, ratio: Any) -> Any:
        """A codec ratio as a position from 0 to 1; what is beyond either end stands there."""
        ratio = np.clip(ratio, LEAST, MOST)
        return np.log2(ratio / LEAST) / np.log2(MOST / LEAST)

    def up(self, error: Any) -> Any:
        """An error as a position from 0 (the floor) to 1 (100 %)."""
        return 1 - np.log10(np.clip(error, self.floor, 1.0)) / np.log10(self.floor)


def _chart(data: SizeData | None, marks: SizeMarks, size: tuple[int, int], look: Look) -> Text:
    width, height = size
    if width < 16 or height < 5:
        return Text("too small for a plot"[:width] if height else "", no_wrap=True, end="")
    left = 6 if width >= 30 else 4
    with_bytes = height >= 14 and width >= 56 and data is not None
    below = 3 if with_bytes else 2
    frame = _Frame(left, 1, width - left - 1, height - 1 - below, _floor(data))
    chart = Canvas.empty(width, height)
    if data is not None and data.lines:
        key = (data.version, frame, look.ascii_only)
        curves = cached(canvases, 12, key, lambda: _curves(data, frame, look))
        chart.paste(curves, frame.left, frame.top)
    _error_axis(chart, frame, look)
    if marks.goal_error is not None:
        _goal(chart, frame, marks, look)
    if data is not None:
        _points(chart, frame, data)
    _choices(chart, frame, marks, look)
    if data is not None and frame.width >= NAMED:
        _name_lines(chart, frame, data, look)
    _ratio_axis(chart, frame, marks, look, data if with_bytes else None)
    note = marks.note or ("" if data is not None and data.lines else "not measured yet")
    if note:
        at = max(frame.left, frame.left + (frame.width - len(note)) // 2)
        chart.put(at, frame.top + frame.height // 2, note, "note")
    if data is not None:
        _legend(chart, frame, data, look)
    return chart.text(look)


def _floor(data: SizeData | None) -> float:
    """Where the axis of errors begins: below what the best method has at 4x."""
    best = min(
        (_error_at(line, 4.0) for line in (data.lines if data is not None else ())), default=1.0
    )
    return next((floor for floor in FLOORS if best > 3 * floor), FLOORS[-1])


def _error_at(line: SizeLine, ratio: float) -> float:
    """A curve's error at a codec ratio, 1 where it has none."""
    if not len(line.ratio) or not line.ratio[0] <= ratio <= line.ratio[-1]:
        return 1.0
    log = np.interp(np.log(ratio), np.log(line.ratio), np.log(np.maximum(line.error, 1e-9)))
    return float(np.exp(log))


def _curves(data: SizeData, frame: _Frame, look: Look) -> Canvas:
    """The curves with their marks."""
    lines = sorted(data.lines, key=lambda line: DRAWN.index(line.method))
    lines = [line for line in lines if len(line.ratio) > 1]
    series = [_inside(line, frame) for line in lines]
    letters = "".join(ASCII_MARKS[line.method].lower() for line in lines)
    roles = [line.method for line in lines]
    canvas = rasterise(series, frame.width, frame.height, roles, letters if look.ascii_only else "")
    signs = ASCII_MARKS if look.ascii_only else MARKS
    for line in lines:
        octaves = np.arange(0.5, np.log2(MOST), 1.5) + MARK_OFFSET * DRAWN[::-1].index(line.method)
        for ratio in np.exp2(octaves).tolist():
            error = _error_at(line, ratio)
            if frame.floor <= error < 1:
                x, y = frame.column(ratio) - frame.left, frame.row(error) - frame.top
                canvas.put(x, y, signs[line.method], line.method)
    return canvas


def _inside(line: SizeLine, frame: _Frame) -> tuple[Array, Array]:
    """A curve as positions, cut off where it leaves the axes."""
    log = np.log2(line.ratio)
    x = np.linspace(max(log[0], np.log2(LEAST)), min(log[-1], np.log2(MOST)), 4 * frame.width)
    error = np.exp(np.interp(x, log, np.log(np.maximum(line.error, 1e-9))))
    seen = error >= frame.floor
    return frame.across(np.exp2(x[seen])), frame.up(error[seen])


# what lies over it


def _error_axis(chart: Canvas, frame: _Frame, look: Look) -> None:
    tick, dots = ("+", ".") if look.ascii_only else ("┤", "┈")
    draw_axes(chart, frame, look)
    chart.put(0, 0, "err %" if frame.left > 4 else "%", "axis")
    taken: set[int] = set()
    for error in sorted((t for t in TICKS if t >= frame.floor * 0.99), key=_is_third):
        y = frame.row(error)
        near = {y - 1, y, y + 1} if _is_third(error) else {y}
        if near & taken:
            continue
        taken.add(y)
        label = f"{100 * error:g}"
        chart.put(frame.left - 1, y, tick, "axis")
        chart.put(frame.left - 1 - len(label), y, label, "axis")
        if not _is_third(error) and error < 1:
            chart.put(frame.left, y, dots * frame.width, "guide", over=False)


def _is_third(tick: float) -> bool:
    """Whether it stands between two powers of ten."""
    return bool(abs(np.log10(tick) - round(np.log10(tick))) > 0.1)


def _goal(chart: Canvas, frame: _Frame, marks: SizeMarks, look: Look) -> None:
    """The error that is aimed at, across the chart."""
    y = frame.row(marks.goal_error or 0.0)
    dash = DASHES[1] if look.ascii_only else DASHES[0]
    for x in range(frame.left, frame.left + frame.width):
        if chart.roles[y][x] in ("", "guide"):
            chart.put(x, y, dash, "mark")
    words = f" {marks.goal_words} "
    if len(words) + 8 < frame.width:
        chart.put(frame.left + 1, y, words, "mark")


def _points(chart: Canvas, frame: _Frame, data: SizeData) -> None:
    for name, ratio, error in data.points:
        x, y = frame.column(ratio), frame.row(error)
        chart.put(x, y, PLAIN_MARKS.get(name, "+"), "plain")
        if frame.width >= NAMED:
            _name(chart, frame, (x, y), name, "plain")


def _name_lines(chart: Canvas, frame: _Frame, data: SizeData, look: Look) -> None:
    """The name of each method beside a mark of its curve: the first from the right with room."""
    signs = ASCII_MARKS if look.ascii_only else MARKS
    for line in data.lines:
        marks = (
            (x, y)
            for x in range(frame.left + frame.width - 1, frame.left - 1, -1)
            for y in range(frame.top, frame.bottom)
            if chart.roles[y][x] == line.method and chart.chars[y][x] == signs[line.method]
        )
        any(_name(chart, frame, mark, line.method, line.method) for mark in marks)


def _choices(chart: Canvas, frame: _Frame, marks: SizeMarks, look: Look) -> None:
    """The present choice with a rule at its size, and those that are pinned."""
    solid, dashed, diamond = ("|", ":", "@") if look.ascii_only else ("┃", "┊", "◆")
    for number, (ratio, error, name) in enumerate(marks.pins, start=1):
        x, y = frame.column(ratio), frame.row(error)
        _rule(chart, frame, x, dashed, "ghost")
        chart.put(x, y, str(number), "ghost")
        _name(chart, frame, (x, y), f"pin {number}: {name}", "ghost")
    if marks.ratio is not None:
        _rule(chart, frame, frame.column(marks.ratio), solid, "rule")
        x, y = frame.column(marks.ratio), frame.row(marks.error)
        chart.put(x, y, diamond, "rule-label")
        _name(chart, frame, (x, y), marks.name, "rule")


def _name(chart: Canvas, frame: _Frame, at: tuple[int, int], name: str, role: str) -> bool:
    """Write what a mark stands for beside it; whether there is room."""
    (x, y), text = at, f" {name} "
    end = frame.left + frame.width
    for row in (y, y - 1, y + 1):
        for start in (x + 1, x - len(text)):
            if not (frame.left <= start and start + len(text) <= end):
                continue
            if not frame.top <= row < frame.bottom:
                continue
            cells = range(start, start + len(text))
            if all(_is_free(chart.roles[row][i], chart.chars[row][i]) for i in cells):
                chart.put(start, row, text, role)
                return True
    return False


def _is_free(role: str, char: str) -> bool:
    """Whether a name may stand in a cell: on nothing, a guide, or the dashes of the target."""
    return role in ("", "guide") or (role == "mark" and char in DASHES)


def _rule(chart: Canvas, frame: _Frame, x: int, char: str, role: str) -> None:
    for y in range(frame.top, frame.bottom):
        if chart.roles[y][x] in ("", "guide"):
            chart.put(x, y, char, role)


def _ratio_axis(
    chart: Canvas, frame: _Frame, marks: SizeMarks, look: Look, data: SizeData | None
) -> None:
    """Codec ratios below the chart, and below these the bytes that they come to."""
    bottom = frame.bottom
    times, tick = "x", "+" if look.ascii_only else "┬"
    ratios, sizes = Labels(chart, frame, bottom + 1), Labels(chart, frame, bottom + 2)
    if marks.ratio is not None:
        x = frame.column(marks.ratio)
        about = "~" if marks.about else ""
        beyond = "" if LEAST <= marks.ratio <= MOST else (">" if marks.ratio > MOST else "<")
        chart.put(x, bottom, "^" if look.ascii_only else "▲", "rule")
        ratios.put(x, f" {beyond}{about}{marks.ratio:.3g}{times} ", "rule-label")
        if data is not None:
            sizes.put(x, _bytes_at(data, marks.ratio), "rule")
    for ratio in (RATIOS[0], RATIOS[-1], *RATIOS[1:-1]):
        x = frame.column(ratio)
        if ratios.put(x, f"{ratio}{times}", "axis") and chart.roles[bottom][x] == "axis":
            chart.put(x, bottom, tick, "axis")
        if data is not None:
            sizes.put(x, _bytes_at(data, ratio), "axis")


def _bytes_at(data: SizeData, ratio: float) -> str:
    return byte_words(data.rest_bytes + data.factor_bytes / ratio)


def _legend(chart: Canvas, frame: _Frame, data: SizeData, look: Look) -> None:
    signs, dots = (ASCII_MARKS, "...") if look.ascii_only else (MARKS, "…")
    drawn = {line.method for line in data.lines}
    x, end = frame.left, frame.left + frame.width
    methods = [m for m in DRAWN[::-1] if m in drawn or m in data.waiting]
    labels = [f"{signs[m]} {m}{dots if m in data.waiting else ''}" for m in methods]
    gap = 2 if sum(map(len, labels)) + 2 * len(labels) <= frame.width else 1
    for method, text in zip(methods, labels, strict=True):
        if x + len(text) <= end:
            chart.put(x, 0, text, "note" if method in data.waiting else method)
            x += len(text) + gap
