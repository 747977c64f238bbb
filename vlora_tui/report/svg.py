"""Plots as SVG, drawn by hand: small files that read in light and dark. No library, no torch.

Colours are classes that follow the reader's scheme; cells and bands are one colour at an opacity,
so that what is strong stands out from any background. Texts may come from files: they are escaped.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from xml.sax.saxutils import escape

from vlora_engine.utils.naming import cosine_text
from vlora_tui.utils.formatting import printable

WIDTH = 760
LEFT, RIGHT, TOP, BOTTOM = 70, 24, 44, 52
LEVELS = 20  # steps of opacity of a cell
LABELLED = 40  # rows of a matrix that are named
WRITTEN = 12  # rows of a matrix whose cells hold their figures
COARSE = 240  # rows of a matrix beyond which several share a cell
SERIES = 7

_STYLE = """
text { font: 12px system-ui, sans-serif; fill: #1f2328; }
.title { font-size: 15px; font-weight: 600; } .dim { fill: #656d76; } .small { font-size: 10px; }
.bg { fill: #ffffff; } .axis { stroke: #8c959f; fill: none; } .grid { stroke: #d8dee4; fill: none; }
.more { fill: #0969da; } .less { fill: #bc4c00; } .mark { fill: #cf222e; } .dot { fill: #57606a; }
.line { fill: none; stroke-width: 2; } .on { fill: #ffffff; }
.s0 { stroke: #0969da; } .s1 { stroke: #bc4c00; } .s2 { stroke: #1a7f37; } .s3 { stroke: #8250df; }
.s4 { stroke: #bf3989; } .s5 { stroke: #9a6700; } .s6 { stroke: #57606a; }
.f0 { fill: #0969da; } .f1 { fill: #bc4c00; } .f2 { fill: #1a7f37; } .f3 { fill: #8250df; }
.f4 { fill: #bf3989; } .f5 { fill: #9a6700; } .f6 { fill: #57606a; }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3; } .dim { fill: #8d96a0; } .bg { fill: #0d1117; } .axis { stroke: #6e7681; }
.grid { stroke: #30363d; } .more { fill: #4493f8; } .less { fill: #f0883e; }
.mark { fill: #ff7b72; } .dot { fill: #9198a1; } .on { fill: #0d1117; }
.s0 { stroke: #4493f8; } .s1 { stroke: #f0883e; } .s2 { stroke: #3fb950; } .s3 { stroke: #ab7df8; }
.s4 { stroke: #db61a2; } .s5 { stroke: #d29922; } .s6 { stroke: #9198a1; }
.f0 { fill: #4493f8; } .f1 { fill: #f0883e; } .f2 { fill: #3fb950; } .f3 { fill: #ab7df8; }
.f4 { fill: #db61a2; } .f5 { fill: #d29922; } .f6 { fill: #9198a1; }
}
"""


@dataclass(frozen=True)
class Series:
    """One line of a chart; with ``least`` and ``most`` a band around it."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    least: Sequence[float] = ()
    most: Sequence[float] = ()


@dataclass
class Drawing:
    """A picture that is being drawn: its parts in order."""

    title: str
    height: float
    about: str = ""
    parts: list[str] = field(default_factory=list)

    def add(self, part: str) -> None:
        """Add one element."""
        self.parts.append(part)

    def text(
        self, x: float, y: float, words: str, kind: str = "", *, anchor: str = "start"
    ) -> None:
        """Add a text; its anchor ``start``, ``middle`` or ``end``."""
        self.add(
            f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">'
            f"{escape(printable(words))}</text>"
        )

    def line(self, x1: float, y1: float, x2: float, y2: float, kind: str = "grid") -> None:
        """Add a straight line."""
        self.add(f'<path class="{kind}" d="M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}"/>')

    def box(
        self, x: float, y: float, width: float, height: float, kind: str, opacity: float = 1.0
    ) -> None:
        """Add a rectangle."""
        faint = "" if opacity == 1 else f' fill-opacity="{opacity:.2f}"'
        self.add(
            f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{max(0.0, width):.1f}" '
            f'height="{max(0.0, height):.1f}"{faint}/>'
        )

    def svg(self) -> str:
        """The whole picture."""
        title, about = escape(printable(self.title)), escape(printable(self.about))
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {self.height:.0f}" '
            f'width="{WIDTH}" height="{self.height:.0f}" role="img" xml:space="preserve">'
            f"<title>{title}</title><desc>{about}</desc><style>{_STYLE}</style>"
            f'<rect class="bg" width="{WIDTH}" height="{self.height:.0f}"/>'
            f'<text class="title" x="16" y="24">{title}</text>'
        )
        return "\n".join([head, *self.parts, "</svg>"]) + "\n"


def matrix(title: str, names: Sequence[str], values: Sequence[Sequence[float]]) -> str:
    """A square matrix of figures from -1 to 1, as cells: blue above zero, orange below."""
    shown, share = _coarsened(values)
    n = len(shown)
    named = n <= LABELLED and share == 1
    side = WIDTH - 2 * 16 - (190 if named else 60)
    cell = min(48.0, side / max(1, n))
    left, top = (200.0 if named else 60.0), 44.0
    drawing = Drawing(title, top + n * cell + (34 if named else 44))
    for kind, level, path in _cells(shown, left, top, cell):
        drawing.add(f'<path class="{kind}" fill-opacity="{level / LEVELS:.2f}" d="{path}"/>')
    for i, row in enumerate(shown if n <= WRITTEN else []):
        for j, value in enumerate(row):
            kind = "on" if abs(value) > 0.55 else ""
            x, y = left + (j + 0.5) * cell, top + (i + 0.5) * cell + 4
            drawing.text(x, y, cosine_text(value), kind, anchor="middle")
    small = "small" if cell < 14 else ""
    for i in range(n if named else 0):
        y = top + (i + 0.5) * cell + 4
        drawing.text(left - 6, y, f"{_short(names[i], 26)}  {i + 1}", small, anchor="end")
        x, below = left + (i + 0.5) * cell, top + n * cell + 14
        drawing.text(x, below, str(i + 1), small, anchor="middle")
    if not named:
        what = f"{len(names)} rows and columns, those that are alike beside each other"
        drawing.text(left, top + n * cell + 18, what, "dim")
    if share > 1:
        words = f"each cell is the mean of up to {share} x {share}"
        drawing.text(left, top + n * cell + 34, words, "dim")
    return drawing.svg()


def lines(
    title: str,
    series: Sequence[Series],
    *,
    x: str,
    y: str,
    log_x: bool = True,
    log_y: bool = False,
    percent: bool = True,
) -> str:
    """Lines over one axis, with a legend."""
    drawing = Drawing(title, 360, about=f"{y} against {x}")
    across = _Axis.over([v for s in series for v in s.x], LEFT, WIDTH - RIGHT - 150, log=log_x)
    heights = [v for s in series for v in (*s.y, *s.least, *s.most)]
    up = _Axis.over(heights, 360 - BOTTOM, TOP, log=log_y, whole=not log_y)
    _frame(drawing, across, up, x, y, percent=percent)
    for i, line in enumerate(series):
        colour = i % SERIES
        if line.least:
            there = [*zip(line.x, line.most, strict=True)]
            back = [*zip(line.x, line.least, strict=True)][::-1]
            area = _path([(across.at(a), up.at(b)) for a, b in [*there, *back]])
            drawing.add(f'<path class="f{colour}" fill-opacity="0.15" d="{area}Z"/>')
        points = [(across.at(a), up.at(b)) for a, b in zip(line.x, line.y, strict=True)]
        if len(points) == 1:
            drawing.add(_dot(*points[0], 4, f"f{colour}"))
        else:
            drawing.add(f'<path class="line s{colour}" d="{_path(points)}"/>')
        at = TOP + 14 + 20 * i
        drawing.box(WIDTH - RIGHT - 138, at - 8, 14, 8, f"f{colour}")
        drawing.text(WIDTH - RIGHT - 118, at, _short(line.name, 18))
    return drawing.svg()


def strips(
    title: str, columns: Sequence[str], dots: Sequence[Sequence[tuple[float, str]]], *, y: str
) -> str:
    """Per column one dot a value, on a logarithmic axis; dots with a name are marked."""
    drawing = Drawing(title, 360, about=y)
    values = [value for column in dots for value, _ in column if value > 0]
    up = _Axis.over(values or [1.0], 360 - BOTTOM, TOP, log=True)
    for tick in up.ticks():
        drawing.line(LEFT, up.at(tick), WIDTH - RIGHT, up.at(tick))
        drawing.text(LEFT - 8, up.at(tick) + 4, f"{tick:g}", "dim", anchor="end")
    drawing.text(16, TOP - 6, y, "dim")
    step = (WIDTH - LEFT - RIGHT) / max(1, len(columns))
    for i, (column, column_dots) in enumerate(zip(columns, dots, strict=True)):
        middle = LEFT + (i + 0.5) * step
        drawing.text(middle, 360 - BOTTOM + 20, _short(column, int(step / 7)), anchor="middle")
        taken: list[float] = []
        for k, (value, name) in enumerate(column_dots):
            at = up.at(max(value, up.low))
            beside = middle + ((k * 0.618) % 1 - 0.5) * min(26, step / 3)
            if not name:
                drawing.add(_dot(beside, at, 2.5, "dot", 0.55))
                continue
            drawing.add(_dot(middle, at, 4.5, "mark"))
            if all(abs(at - other) > 11 for other in taken):
                taken.append(at)
                drawing.text(middle + 8, at + 4, _short(name, int(step / 9) + 6), "small")
    return drawing.svg()


def bars(
    title: str, names: Sequence[str], values: Sequence[float], *, tops: Sequence[float] = ()
) -> str:
    """Horizontal bars of shares, one a name; with ``tops`` a thin mark at a second value."""
    row = 20 if len(names) <= 60 else 9
    drawing = Drawing(title, 56 + row * len(names) + 16)
    most = max([*values, *tops, 1e-12])
    left, width = 250.0, WIDTH - 250.0 - (120 if tops else 70)
    for i, (name, value) in enumerate(zip(names, values, strict=True)):
        y = 44.0 + i * row
        small = "" if row > 12 else "small"
        drawing.text(left - 8, y + row * 0.65, _short(name, 34, head=False), small, anchor="end")
        drawing.box(left, y + 2, width * value / most, row - 5, "more", 0.8)
        words = f"{100 * value:.3g} %"
        if tops:
            drawing.box(left + width * tops[i] / most - 1, y + 1, 2.5, row - 3, "mark")
            words += f", {100 * tops[i]:.3g} %"
        end = left + width * max(value, tops[i] if tops else 0) / most
        drawing.text(end + 6, y + row * 0.65, words, f"dim {small}")
    return drawing.svg()


@dataclass(frozen=True)
class _Axis:
    """From figures to places, linear or logarithmic."""

    low: float
    high: float
    start: float
    end: float
    log: bool

    @classmethod
    def over(
        cls, values: Sequence[float], start: float, end: float, *, log: bool, whole: bool = False
    ) -> _Axis:
        """An axis that holds all values; ``whole``: from 0 on, and to 1 where all are shares."""
        usable = [v for v in values if v > 0] if log else list(values)
        low, high = min(usable, default=1.0), max(usable, default=1.0)
        if whole:
            low, high = min(0.0, low), max(1.0, high)
        if log and low == high:
            low, high = low / 2, high * 2
        return cls(low, high if high > low else low + 1, start, end, log)

    def at(self, value: float) -> float:
        """Where a value lies; values beyond the ends at the ends."""
        inside = min(max(value, self.low), self.high)
        if self.log:
            share = math.log(inside / self.low) / math.log(self.high / self.low)
        else:
            share = (inside - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Round figures inside."""
        if not self.log:
            step = 10.0 ** math.floor(math.log10(self.high - self.low))
            step = next(s for s in (step / 5, step / 2, step) if (self.high - self.low) / s < 9)
            first = math.ceil(self.low / step - 1e-9)
            return [k * step for k in range(first, math.floor(self.high / step + 1e-9) + 1)]
        exponents = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        for steps in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7)):
            found = [s * 10.0**e for e in exponents for s in steps]
            found = [t for t in found if self.low * 0.999 <= t <= self.high * 1.001]
            if len(found) >= 4:
                break
        return found


def _frame(drawing: Drawing, across: _Axis, up: _Axis, x: str, y: str, *, percent: bool) -> None:
    for tick in up.ticks():
        drawing.line(across.start, up.at(tick), across.end, up.at(tick))
        words = f"{100 * tick:.3g} %" if percent else f"{tick:g}"
        drawing.text(across.start - 8, up.at(tick) + 4, words, "dim", anchor="end")
    for tick in across.ticks():
        drawing.line(across.at(tick), up.start, across.at(tick), up.start + 4, "axis")
        drawing.text(across.at(tick), up.start + 18, f"{tick:g}", "dim", anchor="middle")
    drawing.line(across.start, up.start, across.end, up.start, "axis")
    drawing.text((across.start + across.end) / 2, up.start + 38, x, "dim", anchor="middle")
    drawing.text(16, TOP - 6, y, "dim")


def _cells(
    values: Sequence[Sequence[float]], left: float, top: float, cell: float
) -> list[tuple[str, int, str]]:
    """All cells of one colour as one path each; cells of a row that are equal are one stroke."""
    paths: dict[tuple[str, int], list[str]] = defaultdict(list)
    for i, row in enumerate(values):
        keys = [("more" if v >= 0 else "less", round(LEVELS * min(1.0, abs(v)))) for v in row]
        j = 0
        while j < len(keys):
            end = j
            while end < len(keys) and keys[end] == keys[j]:
                end += 1
            if keys[j][1]:
                x, y, wide = left + j * cell, top + i * cell, (end - j) * cell
                paths[keys[j]].append(f"M{x:.1f} {y:.1f}h{wide:.1f}v{cell:.1f}h-{wide:.1f}z")
            j = end
    return [(kind, level, "".join(path)) for (kind, level), path in sorted(paths.items())]


def _coarsened(values: Sequence[Sequence[float]]) -> tuple[list[list[float]], int]:
    """The values, or means of square blocks of them, and the blocks' side."""
    n = len(values)
    share = -(-n // COARSE) if n > COARSE else 1
    if share == 1:
        return [list(row) for row in values], 1
    starts = range(0, n, share)
    blocks = [
        [
            [values[i][j] for i in range(a, min(a + share, n)) for j in range(b, min(b + share, n))]
            for b in starts
        ]
        for a in starts
    ]
    return [[sum(block) / len(block) for block in row] for row in blocks], share


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def _dot(x: float, y: float, radius: float, kind: str, opacity: float = 1.0) -> str:
    faint = "" if opacity == 1 else f' fill-opacity="{opacity:.2f}"'
    return f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{radius}"{faint}/>'


def _short(text: str, limit: int, *, head: bool = True) -> str:
    """``text`` in at most ``limit`` letters: its beginning and end, or its end alone."""
    limit = max(3, limit)
    if len(text) <= limit:
        return text
    if not head:
        return "…" + text[-(limit - 1) :]
    left = limit - 1
    return text[: left - left // 2] + "…" + text[len(text) - left // 2 :]
