"""Charts as rich Text, from data and a size; the only module that knows plotext.

plotext 6 turns curves into braille (or, in ASCII, into letters) on a bare canvas, once for each
version of the data. What moves with a key (rules, marks, labels) is laid over the finished canvas,
so that a key costs a copy of some cells and never a plot.
"""

from __future__ import annotations

import re
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.segment import Segment
from rich.style import Style
from rich.text import Span, Text

from vlora_tui.utils.formatting import size as byte_words

Array = npt.NDArray[Any]

ROLES = (
    *("axis", "guide", "edge", "median", "focus", "rule", "ghost", "mark", "dear", "note"),
    *("auto", "own", "delta", "columns", "flat", "plain"),
)
GUIDES = (0.9, 0.95, 0.99)  # lines across, where the marks of `levels` stand
NINES = 4.0  # the top of the stretched axis: 99.99 %
TICKS = (
    *((0.0, "0"), (0.5, "50"), (0.9, "90"), (0.95, "95")),
    *((0.99, "99"), (0.999, "99.9"), (0.9999, "99.99")),
)
EVEN_TICKS = ((0.0, "0"), (0.25, "25"), (0.5, "50"), (0.75, "75"), (0.9, "90"), (1.0, "100"))
LINEAR_K = 320  # up to here k is drawn evenly, above in its logarithm
CURVES = ("edge", "edge", "median", "focus")  # drawn in this order, so that the focus is on top
NAMED_EDGES = 8  # lines from which on the edges of the band are named
LETTERS = "..=#"  # of the same, where only ASCII is drawn


@dataclass(frozen=True)
class Look:
    """How a chart is coloured: a name for the cache, a style for each role, ASCII only or not.

    Args:
        band: The background between the lowest and the highest curve.
    """

    name: str
    styles: Mapping[str, Style] = field(hash=False, compare=False, default_factory=dict)
    band: Style | None = field(hash=False, compare=False, default=None)
    ascii_only: bool = False


@dataclass(frozen=True, eq=False)
class VarianceData:
    """Curves of captured share against k, or bytes (K,): a band over layers, the focused layer.

    Args:
        version: Equal for equal data; what the chart is cached by.
        focus: k and share of the focused layer; ``focus_name`` as the legend writes it.
        layers: How many layers the band is over, and of how many (``expected``).
        in_bytes: ``k`` are bytes.
    """

    version: Hashable
    k: Array
    median: Array
    low: Array
    high: Array
    layers: int
    expected: int
    focus: tuple[Array, Array] | None = None
    focus_name: str = ""
    in_bytes: bool = False


@dataclass(frozen=True)
class Marks:
    """What lies over the curves; where these are against bytes, so is every k here.

    Args:
        k: Where the rule stands, and the least and the largest k of any layer.
        own: k of the focused layer, where it differs from the rule.
        pins: Where the ghost rules stand.
        levels: Shares, and the k each needs over all layers.
        dear: From this k on the result is larger than what was put in.
        stretched: The axis gives each further nine the same room; else it is even.
        about: The rule's place is an estimate. note: Said in the middle where there is no curve.
    """

    k: float | None = None
    low: int | None = None
    high: int | None = None
    layer_k: int | None = None
    pins: tuple[float, ...] = ()
    levels: tuple[tuple[float, float | None], ...] = ()
    dear: float | None = None
    stretched: bool = True
    about: bool = False
    note: str = ""


def variance_chart(
    data: VarianceData | None, marks: Marks, size: tuple[int, int], look: Look
) -> Text:
    """Explained variance against k, in ``size`` columns and lines; None draws what is unknown."""
    key = ("variance", None if data is None else data.version, marks, size, look)
    made: Text = cached(texts, 64, key, lambda: _variance(data, marks, size, look))
    return made


def segments(chart: Text) -> list[list[Segment]]:
    """The lines of a chart; its spans lie one behind the other, which Rich does not know."""
    lines: list[list[Segment]] = [[]]
    plain, at = chart.plain, 0
    for start, end, style in chart.spans:
        if start > at:
            lines.append([])  # between two runs there is nothing but the end of a line
        lines[-1].append(Segment(plain[start:end], style if isinstance(style, Style) else None))
        at = end
    return lines if chart.spans else [[Segment(plain)]]


def prepare() -> None:
    """Load plotext, off the event loop, before the first chart wants it."""
    _plotext().terminal.limit(False, False)


def _plotext() -> Any:
    """plotext without its documentation, which takes three times as long to load as the rest."""
    unread = ModuleType("plotext._doc.doc")
    vars(unread)["docs"] = None
    if "plotext" not in sys.modules:
        sys.modules.setdefault(unread.__name__, unread)
    try:
        import plotext
    finally:
        if sys.modules.get(unread.__name__) is unread:
            del sys.modules[unread.__name__]
    return plotext


@dataclass
class Canvas:
    """Cells of a chart: a character, the role that colours it, and whether it lies in the band."""

    chars: list[list[str]]
    roles: list[list[str]]
    band: list[list[bool]]

    @classmethod
    def empty(cls, width: int, height: int) -> Canvas:
        return cls(
            [[" "] * width for _ in range(height)],
            [[""] * width for _ in range(height)],
            [[False] * width for _ in range(height)],
        )

    def put(self, x: int, y: int, text: str, role: str, *, over: bool = True) -> None:
        """Write ``text`` from (x, y) on, inside the canvas; ``over`` what stands there or not."""
        if not 0 <= y < len(self.chars):
            return
        chars, roles = self.chars[y], self.roles[y]
        for i, char in enumerate(text, start=x):
            if 0 <= i < len(chars) and (over or chars[i] == " "):
                chars[i], roles[i] = char, role

    def paste(self, other: Canvas, x: int, y: int) -> None:
        for row in range(len(other.chars)):
            end = x + len(other.chars[row])
            self.chars[y + row][x:end] = other.chars[row]
            self.roles[y + row][x:end] = other.roles[row]
            self.band[y + row][x:end] = other.band[row]

    def text(self, look: Look) -> Text:
        """The cells as rich Text, runs of one style merged; a span for every run, line by line."""
        styles: dict[tuple[str, bool], Style] = {}
        plain, spans, at = [], [], 0
        for chars, roles, band in zip(self.chars, self.roles, self.band, strict=True):
            for run, role, inside in _runs(chars, roles, band):
                if (role, inside) not in styles:
                    tint = look.band if inside else None
                    styles[role, inside] = look.styles.get(role, Style.null()) + tint
                plain.append(run)
                spans.append(Span(at, at + len(run), styles[role, inside]))
                at += len(run)
            plain.append("\n")
            at += 1
        text = "".join(plain).removesuffix("\n")
        return Text(text, no_wrap=True, overflow="crop", end="", spans=spans)


@dataclass(frozen=True)
class Frame:
    """Where the canvas lies in a chart; subclasses say how data land on it."""

    left: int
    top: int
    width: int
    height: int

    @property
    def bottom(self) -> int:
        """The line of the axis below the canvas."""
        return self.top + self.height

    def across(self, x: Any) -> Any:
        """A value of the axis across as a position from 0 to 1."""
        raise NotImplementedError

    def up(self, y: Any) -> Any:
        """A value of the axis upwards as a position from 0 to 1."""
        raise NotImplementedError

    def column(self, x: float) -> int:
        """The column of the chart in which a value lies."""
        return self.left + round(float(self.across(x)) * (self.width - 1))

    def row(self, y: float) -> int:
        """The line of the chart on which a value lies."""
        return self.top + round((1 - float(self.up(y))) * (self.height - 1))


@dataclass(frozen=True)
class _Frame(Frame):
    """k, or bytes, across; shares of variance upwards."""

    last_k: float
    stretched: bool
    first: float = 1
    in_bytes: bool = False

    def across(self, k: Any) -> Any:
        """k as a position from 0 (k = 1) to 1; what is beyond either end stands there."""
        k = np.clip(k, self.first, self.last_k)
        if self.last_k > LINEAR_K and not self.in_bytes:
            return np.log(k) / np.log(max(2, self.last_k))
        return (k - self.first) / max(1, self.last_k - self.first)

    def label(self, k: float) -> str:
        """A value of the axis across, as it is written."""
        return byte_words(k) if self.in_bytes else f"{k:.0f}"

    def up(self, share: Any) -> Any:
        """A share as a position from 0 to 1."""
        share = np.clip(share, 0.0, 1.0)
        if not self.stretched:
            return share
        return np.minimum(-np.log10(np.maximum(1 - share, 10.0**-NINES)), NINES) / NINES


texts: OrderedDict[Hashable, Any] = OrderedDict()
canvases: OrderedDict[Hashable, Any] = OrderedDict()
_drawing = threading.RLock()  # plotext has one figure


def cached(
    store: OrderedDict[Hashable, Any], limit: int, key: Hashable, make: Callable[[], Any]
) -> Any:
    """What ``make`` made for this key; the ``limit`` used last are kept."""
    with _drawing:
        if key in store:
            store.move_to_end(key)
            return store[key]
        store[key] = made = make()
        while len(store) > limit:
            store.popitem(last=False)
        return made


def _variance(data: VarianceData | None, marks: Marks, size: tuple[int, int], look: Look) -> Text:
    width, height = size
    if width < 16 or height < 5:
        return Text("too small for a plot"[:width] if height else "", no_wrap=True, end="")
    right = 6 if width >= 56 else 0
    left = 6 if width >= 30 else 3
    k = data.k if data is not None and len(data.k) else np.array([1, 64])
    in_bytes = data is not None and data.in_bytes
    frame = _Frame(
        left,
        1,
        width - left - right,
        height - 3,
        max(2.0, float(k[-1])),
        marks.stretched,
        float(k[0]) if in_bytes else 1.0,
        in_bytes,
    )
    chart = Canvas.empty(width, height)
    if data is not None:
        key = (data.version, frame, look.ascii_only)
        chart.paste(
            cached(canvases, 12, key, lambda: _curves(data, frame, look)), frame.left, frame.top
        )
    _axes(chart, frame, look, errors=bool(right))
    _guides(chart, frame, marks, look)
    _rules(chart, frame, marks, look)
    _k_axis(chart, frame, marks, look)
    if data is None:
        message = marks.note or "not measured yet"
        middle = frame.top + frame.height // 2
        chart.put(frame.left + (frame.width - len(message)) // 2, middle, message, "note")
    else:
        _legend(chart, frame, data, marks, look)
    return chart.text(look)


# the canvas: drawn by plotext


def _curves(data: VarianceData, frame: _Frame, look: Look) -> Canvas:
    if len(data.k) < 2:  # adapters without effect have no direction
        return Canvas.empty(frame.width, frame.height)
    series = [(data.k, data.low), (data.k, data.high), (data.k, data.median)]
    if data.focus is not None:
        series.append(data.focus)
    least = frame.first
    points = [
        (frame.across(k[k >= least]), frame.up(share[k >= least]))
        for k, share in series
        if len(k) > 1
    ]
    letters = LETTERS if look.ascii_only else ""
    canvas = rasterise(points, frame.width, frame.height, CURVES, letters)
    low, high = points[0][1], points[1][1]
    across = points[0][0]
    for x in range(frame.width):
        at = x / max(1, frame.width - 1)
        bottom = round((1 - float(np.interp(at, across, low))) * (frame.height - 1))
        top = round((1 - float(np.interp(at, across, high))) * (frame.height - 1))
        for y in range(top, bottom + 1):
            canvas.band[y][x] = True
            if look.band is None and canvas.chars[y][x] == " ":
                canvas.chars[y][x] = "." if look.ascii_only else "░"
                canvas.roles[y][x] = "guide"
    if data.expected > 1 and frame.height >= NAMED_EDGES:
        _name_edges(canvas, {frame.row(share) - frame.top for share in GUIDES})
    return canvas


def _name_edges(canvas: Canvas, guides: set[int]) -> None:
    """What the edges of the band are, beside them where the canvas is free.

    Args:
        guides: Lines that are left free for others.
    """
    columns = range(len(canvas.chars[0]))
    inside = [[y for y in range(len(canvas.band)) if canvas.band[y][x]] for x in columns]
    if max(map(len, inside)) < 2:
        return  # all modules are alike
    for words, above in (("highest module", True), ("lowest module", False)):
        places = []
        for x in range(2, len(inside) - len(words) - 1):
            rows = [y for column in inside[x - 1 : x + len(words) + 1] for y in column]
            if not rows:
                continue
            y = min(rows) - 1 if above else max(rows) + 1
            if y in guides or not 0 <= y < len(canvas.chars):
                continue
            if set(canvas.chars[y][x - 1 : x + len(words) + 1]) == {" "}:
                near = inside[x + len(words) // 2]
                edge = min(near, default=y) if above else max(near, default=y)
                places.append((abs(edge - y), x, y))
        if places:
            _, x, y = min(places)
            canvas.put(x, y, words, "edge")


def rasterise(
    series: Sequence[tuple[Array, Array]],
    width: int,
    height: int,
    roles: Sequence[str],
    letters: str = "",
) -> Canvas:
    """Curves given in 0 to 1 as cells: plotext draws them, each in a colour that is its number.

    Args:
        roles: One for each curve; the later curve is on top. letters: What each is drawn with;
            braille where none are given.
    """
    plotext = _plotext()
    plotext.terminal.limit(False, False)
    figure = plotext.figure
    figure.clear()
    figure.theme("colorless").canvas("default").axes(False)
    figure.plot_size(width, height)
    for number, curve in enumerate(series):
        x, y = _seen(*curve, width, height)
        marker = plotext.marker(
            letters[number] if letters else "braille", plotext.pixel(foreground=number + 1)
        )
        figure.draw(figure.signal(x.tolist(), y.tolist(), marker=marker).lines())
    figure.ruler("x", "lower").lim(0, 1).ticks([], [])
    figure.ruler("y", "left").lim(0, 1).ticks([], [])
    return _read_cells(figure.build().string(), width, height, roles)


def _seen(x: Array, y: Array, width: int, height: int) -> tuple[Array, Array]:
    """A long curve without the points between two others on the same dot of a cell's eight.

    plotext takes each by a call of its own: a hundred adapters have thousands.
    """
    if len(x) <= 4 * width:
        return x, y
    dots = np.stack([np.floor(x * (2 * width - 1)), np.floor(y * (4 * height - 1))])
    moves = np.any(np.diff(dots) != 0, axis=0)
    ends = np.ones(len(x), dtype=bool)  # of what stays on one dot, the first and the last
    ends[1:-1] = moves[1:] | moves[:-1]
    return x[ends], y[ends]


_ESCAPE = re.compile(r"\x1b\[([0-9;]*)m")


def _read_cells(string: str, width: int, height: int, roles: Sequence[str]) -> Canvas:
    """plotext's output as cells; the number of a colour is the number of the curve."""
    canvas = Canvas.empty(width, height)
    for y, line in enumerate(string.split("\n")[:height]):
        x, role = 0, ""
        for i, piece in enumerate(_ESCAPE.split(line)):
            if i % 2:
                role = _role(piece, roles)
                continue
            for char in piece[: width - x]:
                blank = char in " ⠀"
                canvas.chars[y][x] = " " if blank else char
                canvas.roles[y][x] = "" if blank else role
                x += 1
    return canvas


def _role(codes: str, roles: Sequence[str]) -> str:
    parts = codes.split(";")
    if parts[:2] == ["38", "5"] and len(parts) > 2:
        number = int(parts[2])
    elif parts[-1].isdigit() and 31 <= int(parts[-1]) <= 37:
        number = int(parts[-1]) - 30
    else:
        return ""
    return roles[number - 1] if 1 <= number <= len(roles) else ""


# what lies over it


def draw_axes(chart: Canvas, frame: Frame, look: Look) -> None:
    """The two lines left of the canvas and below it."""
    bar, corner, line = ("|", "+", "-") if look.ascii_only else ("│", "└", "─")
    for y in range(frame.top, frame.bottom):
        chart.put(frame.left - 1, y, bar, "axis")
    chart.put(frame.left - 1, frame.bottom, corner + line * frame.width, "axis")


def _axes(chart: Canvas, frame: _Frame, look: Look, *, errors: bool) -> None:
    tick = "+" if look.ascii_only else "┤"
    draw_axes(chart, frame, look)
    taken: set[int] = set()
    ticks = TICKS if frame.stretched else EVEN_TICKS
    for share, label in sorted(ticks, key=lambda tick: tick[0] not in (0.9, 0.99, 0.0)):
        y = frame.row(share)
        if y in taken or (y - 1 in taken and frame.height < 12):
            continue
        taken.add(y)
        chart.put(frame.left - 1, y, tick, "axis")
        shown = label if frame.left > 3 else label[:2]
        chart.put(frame.left - 1 - len(shown), y, shown, "axis")
        if errors:
            error = 100 * (1 - share) ** 0.5
            shown = f"{error:.0f}" if error >= 9.95 else f"{error:.1f}"
            chart.put(frame.left + frame.width + 1, y, shown.rjust(4), "axis")
    if errors:
        chart.put(frame.left + frame.width - 4, 0, "error %", "axis")
    chart.put(0, 0, "var %" if frame.left > 3 else "%", "axis")


def _guides(chart: Canvas, frame: _Frame, marks: Marks, look: Look) -> None:
    dash, diamond = ("-", "o") if look.ascii_only else ("┈", "◆")
    for share, _ in marks.levels:
        chart.put(frame.left, frame.row(share), dash * frame.width, "guide", over=False)
    for share, k in marks.levels:
        if k is not None:
            chart.put(frame.column(k), frame.row(share), diamond, "mark")


def _rules(chart: Canvas, frame: _Frame, marks: Marks, look: Look) -> None:
    solid, dashed, dotted = ("|", ":", ":") if look.ascii_only else ("┃", "┊", "╎")

    def rule(k: float, char: str, role: str) -> int:
        x = frame.column(k)
        for y in range(frame.top, frame.bottom):
            there, named = chart.roles[y][x], chart.roles[y][x] == "edge"
            named = named and (chart.chars[y][x].isalpha() or chart.chars[y][x] == " ")
            if there in ("", "guide") or (role == "rule" and there != "mark" and not named):
                chart.put(x, y, char, role)
        return x

    if marks.dear is not None:
        rule(marks.dear, dotted, "dear")
    for number, k in enumerate(marks.pins, start=1):
        if k > frame.last_k:
            continue  # of a method that has more directions
        x = rule(k, dashed, "ghost")
        chart.put(x, frame.top, str(number), "ghost")
    if marks.layer_k is not None and marks.layer_k != marks.k:
        rule(marks.layer_k, dotted, "focus")
    if marks.k is not None:
        rule(marks.k, solid, "rule")
    if marks.dear is not None:
        words = "larger ->" if look.ascii_only else "larger →"
        x, y = frame.column(marks.dear), frame.top + frame.height - 1
        right = x + 2 + len(words) < frame.left + frame.width
        start = x + 2 if right else x - 1 - len(words)
        if set(chart.roles[y][start : start + len(words)]) <= {"", "guide"}:
            chart.put(start, y, words, "dear")


class Labels:
    """Labels in one line below the chart, the first come kept."""

    def __init__(self, chart: Canvas, frame: Frame, y: int) -> None:
        self._chart, self._frame, self._y = chart, frame, y
        self._free = [True] * len(chart.chars[0])

    def put(self, x: int, text: str, role: str) -> bool:
        """Write ``text`` around x, if nothing stands there."""
        frame = self._frame
        x = min(max(frame.left, x - len(text) // 2), frame.left + frame.width - len(text))
        span = range(max(0, x - 1), min(len(self._free), x + len(text) + 1))
        if not all(self._free[i] for i in span):
            return False
        for i in span:
            self._free[i] = False
        self._chart.put(x, self._y, text, role)
        return True


def _k_axis(chart: Canvas, frame: _Frame, marks: Marks, look: Look) -> None:
    bottom = frame.bottom
    labels = Labels(chart, frame, bottom + 1)
    if marks.k is not None:
        low, high = marks.low or marks.k, marks.high or marks.k
        if low != high:
            start, end = frame.column(low), frame.column(high)
            chart.put(start, bottom, ("=" if look.ascii_only else "━") * (end - start + 1), "rule")
        chart.put(frame.column(marks.k), bottom, "^" if look.ascii_only else "▲", "rule")
        words = "" if frame.in_bytes else "k " if low == high else "median k "
        beyond = ">" if marks.k > frame.last_k else "~" if marks.about else ""
        label = f" {words}{beyond}{frame.label(marks.k)} "
        labels.put(frame.column(marks.k), label, "rule-label")
        if marks.layer_k is not None and marks.layer_k != marks.k:
            labels.put(frame.column(marks.layer_k), str(marks.layer_k), "focus")
    labels.put(frame.column(frame.first), frame.label(frame.first), "axis")
    labels.put(frame.column(frame.last_k), frame.label(frame.last_k), "axis")
    for k in _byte_ticks(frame) if frame.in_bytes else _k_ticks(frame):
        x = frame.column(k)
        if labels.put(x, frame.label(k), "axis") and chart.roles[bottom][x] == "axis":
            chart.put(x, bottom, "+" if look.ascii_only else "┬", "axis")


def _k_ticks(frame: _Frame) -> Iterator[int]:
    """k worth a label: powers of two on a logarithmic axis, else about eight cells apart."""
    if frame.last_k > LINEAR_K:
        k = 2
        while k < frame.last_k:
            yield k
            k *= 2
        return
    spacing = frame.last_k * 8 / max(8, frame.width)
    step = next((s for s in (1, 2, 4, 8, 16, 32, 64) if s >= spacing), 128)
    yield from range(step, round(frame.last_k), step)


def _byte_ticks(frame: _Frame) -> Iterator[float]:
    """Round bytes, about twelve cells apart."""
    spacing = max(1.0, (frame.last_k - frame.first) * 12 / max(12, frame.width))
    decade = 10.0 ** np.floor(np.log10(spacing))
    step = next(float(m * decade) for m in (1, 2, 5, 10) if m * decade >= spacing)
    at = (np.floor(frame.first / step) + 1) * step
    while at < frame.last_k:
        yield float(at)
        at += step


def _legend(chart: Canvas, frame: _Frame, data: VarianceData, marks: Marks, look: Look) -> None:
    line, diamond, block = ("--", "o", ":") if look.ascii_only else ("━━", "◆", "▒")
    whole = data.layers == data.expected
    count = f"{data.layers}" if whole else f"{data.layers} of {data.expected}"
    band = f"{block} band: lowest to highest module"
    if data.expected == 1:
        parts = [(f"{line} the module", "median")]
    else:
        parts = [(f"{line} median of {count} modules", "median"), (band, "edge")]
    if data.focus is not None and data.focus_name:
        parts.append((f"{'##' if look.ascii_only else line} {data.focus_name}", "focus"))
    if any(k is not None for _, k in marks.levels):
        parts.append((f"{diamond} all modules", "mark"))
    x = frame.left + (1 if frame.left > 3 else 0)
    end = frame.left + frame.width - (5 if len(chart.chars[0]) >= 56 else 0)
    for text, role in parts:
        fits = next((t for t in (text, *_shorter(text)) if x + len(t) <= end), "")
        if fits:
            chart.put(x, 0, fits, role)
            x += len(fits) + 2


def _shorter(text: str) -> tuple[str, ...]:
    """Other words for a part of the legend, where room is short."""
    sign, _, words = text.partition(" band: ")
    return (f"{sign} {words.removesuffix(' module')}", f"{sign} range") if words else ()


def _runs(
    chars: Sequence[str], roles: Sequence[str], band: Sequence[bool]
) -> Iterator[tuple[str, str, bool]]:
    start = 0
    for i in range(1, len(chars) + 1):
        if i == len(chars) or roles[i] != roles[start] or band[i] != band[start]:
            yield "".join(chars[start:i]), roles[start], band[start]
            start = i
