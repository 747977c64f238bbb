"""The figures of a choice of k: its cost, alternatives at the same error, pinned choices."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from rich.containers import Lines
from rich.style import Style
from rich.text import Text
from textual import events
from textual.binding import BindingType
from textual.geometry import Region
from textual.message import Message
from textual.widget import Widget

from vlora_engine.compression_target import CompressionTarget
from vlora_engine.quantization.dtypes import DTYPE_WORDS
from vlora_tui.tui.choose.text import bar, goal_words, is_seen, short_packing, spread
from vlora_tui.tui.core.session import Figures
from vlora_tui.tui.key_names import keyed
from vlora_tui.tui.text import clean, cut
from vlora_tui.tui.widgets.bindings import hidden
from vlora_tui.utils.formatting import percent, size

LEVELS = (0.9, 0.95, 0.99)
BAR = 12  # columns of a bar


@dataclass(frozen=True)
class Row:
    """A choice and its figures; ``figures`` None while they are computed.

    Args:
        rival: It stands for its method at the error of the present choice.
    """

    label: str
    choosing: CompressionTarget
    figures: Figures | None
    note: str = ""
    rival: bool = False


@dataclass(frozen=True)
class Sheet:
    """Everything the pane shows.

    Args:
        rows: The present choice first, then the pins, then the other methods at its error.
        levels: Shares of variance, and the least k of all layers that reaches each.
        dear: From this k on the result is larger than the originals.
        verdict: What the figures say about the choice; ``bad`` if that is a warning, ``brief`` it.
        so_far: Of which layers it is, while some are not measured.
        mode: A line about what the keys do now, where they do something else than usual.
    """

    rows: tuple[Row, ...] = ()
    levels: tuple[tuple[float, int | None], ...] = ()
    dear: int | None = None
    verdict: str = ""
    bad: bool = False
    brief: str = ""
    so_far: str = ""
    mode: str = ""


class FiguresPane(Widget, can_focus=True):
    """The pane of figures: a small table, the marks, and a plain word about them."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {
        "figures--head",
        "figures--now",
        "figures--cursor",
        "figures--muted",
        "figures--bad",
        "figures--mode",
    }

    BINDINGS: ClassVar[list[BindingType]] = [
        hidden("up,k", "move(-1)", "figures.up", "Row up"),
        hidden("down,j", "move(1)", "figures.down", "Row down"),
        hidden("enter,space", "take", "figures.take",
               "Make the choice under the cursor the present one"),
    ]  # fmt: skip

    class Taken(Message):
        """A row was taken as the present choice."""

        def __init__(self, choosing: CompressionTarget) -> None:
            super().__init__()
            self.choosing = choosing

    def __init__(self, *, ascii_only: bool = False, id: str | None = None) -> None:
        super().__init__(id=id)
        self.ascii_only = ascii_only
        self.sheet = Sheet()
        self.brief = False
        self._shown = Lines()  # as they were rendered last
        self._ahead: tuple[object, Text] | None = None  # rendered before Textual asks, and of what
        self._cursor = 0
        self._top = 0  # lines that are scrolled away, where not all fit

    def show(self, sheet: Sheet) -> None:
        """Show these figures; what is the same is not painted again."""
        if sheet == self.sheet:
            return
        before = self._shown
        self.sheet = sheet
        self._cursor = min(self._cursor, max(0, len(sheet.rows) - 1))
        if not self.size:
            self.refresh()
            return
        text = self.render()
        self._ahead = self._state, text
        after = self._shown
        if len(before) != len(after):
            self.refresh()
            return
        width = self.size.width
        changed = [
            Region(0, y, width, 1)
            for y, (old, new) in enumerate(zip(before, after, strict=True))
            if old != new
        ]
        if changed:
            self.refresh(*changed)

    def action_move(self, step: int) -> None:
        """Another row under the cursor; beyond the last one the words below come into view."""
        line = self._cursor + step
        if 0 <= line < len(self.sheet.rows) and not (step < 0 and self._top):
            self._cursor = line
        else:
            self._top += step
        self.refresh()

    def action_take(self) -> None:
        """Make the row under the cursor the present choice."""
        if self._cursor and self._cursor < len(self.sheet.rows):
            self.post_message(self.Taken(self.sheet.rows[self._cursor].choosing))
            self._cursor = 0

    def on_click(self, event: events.Click) -> None:
        offset = event.get_content_offset(self)
        line = -1 if offset is None else offset.y + self._top - 1
        if 0 <= line < len(self.sheet.rows):
            again, self._cursor = self._cursor == line, line
            self.refresh()
            if again or event.chain == 2:
                self.action_take()

    def row_text(self) -> str | None:
        """The row under the cursor, tab-separated."""
        if self._cursor >= len(self.sheet.rows):
            return None
        cells = _cells(self.sheet.rows[self._cursor], self.ascii_only)
        return "\t".join(f"{name} {text}".strip() for name, text in cells.items() if text)

    def render(self) -> Text:
        ahead, self._ahead = self._ahead, None
        if ahead is not None and ahead[0] == self._state:
            return ahead[1]
        text = self._rendered()
        self._shown = text.split("\n", allow_blank=True)
        return text

    @property
    def _state(self) -> tuple[object, ...]:
        """All that decides what is rendered, the colours apart."""
        return self.sheet, self.size, self.has_focus, self._cursor, self._top, self.brief

    def _rendered(self) -> Text:
        width, height = self.size
        text = self._text(width)
        lines = text.split("\n")
        self._top = max(0, min(self._top, len(lines) - height))
        if len(lines) <= height or not height:
            return text
        shown = lines[self._top : self._top + height]
        if self._top + height < len(lines):
            shown[-1] = Text(("v" if self.ascii_only else "▾").rjust(width), self._style("muted"))
        return Text("\n", no_wrap=True, end="").join(shown)

    def _text(self, width: int) -> Text:
        text = Text(no_wrap=True, overflow="ellipsis", end="")
        if self.brief:
            lines = brief_lines(self.sheet, width, ascii_only=self.ascii_only)
            text.append_text(Text("\n").join(Text(line) for line in lines))
            return text
        lines_ = [*self._table(width), *self._below(width)]
        return text.append_text(Text("\n").join(lines_))

    def _table(self, width: int) -> list[Text]:
        rows = [_cells(row, self.ascii_only) for row in self.sheet.rows]
        if not rows:
            return []
        most = max((size_of(row) for row in self.sheet.rows), default=0)
        for row, cells in zip(self.sheet.rows, rows, strict=True):
            share = size_of(row) / most if most else 0.0
            cells["bar"] = bar(share, BAR, ascii_only=self.ascii_only)
        columns = _columns(rows, width)
        heads = {name: "" if name == "bar" else name for name in columns}
        out = [Text(_line(heads, columns, self.ascii_only), self._style("head"))]
        for i, cells in enumerate(rows):
            cursor = i == self._cursor and self.has_focus
            style = "cursor" if cursor else "now" if i == 0 else ""
            line = _line(cells, columns, self.ascii_only).ljust(width)
            out.append(Text(line, self._style(style)))
        return out

    def _below(self, width: int) -> list[Text]:
        sheet = self.sheet
        out: list[Text] = []
        first = sheet.rows[0].figures if sheet.rows else None
        if first is not None and first.problem is not None:
            for line in first.problem.splitlines()[:3]:
                out.append(Text(clean(line)[:width], self._style("bad")))
        if sheet.mode:
            out += [Text(line, self._style("mode")) for line in _wrapped(sheet.mode, width, 3)]
        if sheet.verdict:
            style, lines = self._style("bad" if sheet.bad else ""), 3 if width > 90 else 5
            out += [Text(line, style) for line in _wrapped(sheet.verdict, width, lines)]
        if rows_hide_worst(sheet, width, self.ascii_only):
            cells = _cells(sheet.rows[0], self.ascii_only)
            words = f"worst adapter {cells['worst task']}, worst module {cells['worst module']}"
            out += [Text(line, self._style("muted")) for line in _wrapped(words, width, 2)]
        marks = _marks_line(sheet, self.ascii_only)
        if marks:
            out += [Text(line, self._style("muted")) for line in _wrapped(marks, width, 2)]
        return out

    def _style(self, name: str) -> Style:
        if not name:
            return Style.null()
        return self.get_component_rich_style(f"figures--{name}")


def size_of(row: Row) -> int:
    """The bytes of a row's choice, 0 where they are not known."""
    prediction = None if row.figures is None else row.figures.prediction
    return 0 if prediction is None else prediction.nbytes


def rows_hide_worst(sheet: Sheet, width: int, ascii_only: bool) -> bool:
    """Whether the table is too narrow for the worst adapter and module of the present choice."""
    now = sheet.rows[0].figures if sheet.rows else None
    if now is None or now.prediction is None or now.estimate is not None:
        return False
    return "worst module" not in _columns([_cells(r, ascii_only) for r in sheet.rows], width)


def brief_lines(sheet: Sheet, width: int, *, ascii_only: bool) -> list[str]:
    """The present choice in two lines, for small terminals."""
    if not sheet.rows:
        return ["", ""]
    row = sheet.rows[0]
    if row.figures is not None and row.figures.problem is not None:
        return [clean(line) for line in [*row.figures.problem.splitlines(), ""][:2]]
    cells = _cells(row, ascii_only)
    task = cells["worst task"]
    first = [
        f"mean {cells['mean']}",
        f"worst {cells['worst']}" + (f" ({task})" if task else ""),
        f"k {cells['k']}" if cells["k"] and " k " not in cells["choice"] else "",
        cells["choice"],
    ]
    known = row.figures is not None and row.figures.prediction is not None
    second = [cells["on disk"], f"{cells['ratio']} smaller" if known else "", cells["dtype"]]
    second += [f"{100 * share:g} % k {k}" for share, k in sheet.levels if k is not None]
    if sheet.so_far:
        second.insert(0, sheet.so_far)
    if sheet.brief:
        second.insert(2, sheet.brief)
    if sheet.mode:
        mode = keyed(f"{sheet.mode.partition(':')[0]}  (<choose.done> ends)")
        return [mode[:width], _joined(first, width)]
    return [_joined(first, width), _joined(second, width)]


# one line of the table

_WIDTHS = (
    *("", "choice", "k", "dtype", "on disk", "bar", "ratio"),
    *("mean", "worst", "worst task", "worst module"),
)
_RIGHT = {"k", "on disk", "ratio", "mean", "worst"}
_DROPPED = ("worst module", "worst task", "dtype", "", "ratio", "k")  # the first goes first
_FLEXIBLE = {"worst task": 10, "worst module": 16, "choice": 15}


def _cells(row: Row, ascii_only: bool) -> dict[str, str]:
    cells = dict.fromkeys(_WIDTHS, "")
    figures = row.figures
    layers = len(figures.choice.k) if figures is not None and figures.choice is not None else 0
    words = goal_words(row.choosing, layers or 1) if not row.rival else row.choosing.method
    cells |= {"": row.label, "choice": words, "worst module": clean(row.note)}
    if figures is None:
        return cells
    prediction, packed = figures.prediction, row.choosing.quantization
    if prediction is None:
        return cells | {"worst task": "not possible"}
    about = "" if figures.is_exact else "~"  # what coding and packing cost is an estimate
    bytes_about = "~" if figures.so_far or figures.choice is None else ""
    if figures.choice is None:
        cells |= {"dtype": "coded", "on disk": bytes_about + size(prediction.nbytes)}
    else:
        _, low, high = spread(figures)
        dtype = DTYPE_WORDS.get(figures.choice.dtype, figures.choice.dtype)
        cells |= {
            "k": str(low) if low == high else f"{low}-{high}",
            "dtype": dtype if packed is None else short_packing(packed),
            "on disk": bytes_about + size(prediction.nbytes),
        }
    return cells | {
        "ratio": f"{bytes_about}{prediction.ratio:.3g}x",
        "mean": about + percent(prediction.mean_error),
        "worst": about + percent(prediction.max_error),
        "worst task": clean(prediction.worst_task) if is_seen(prediction.max_error) else "",
    }


def _columns(rows: Sequence[dict[str, str]], width: int) -> dict[str, int]:
    """Which columns fit, and how wide each is."""
    wide = {name: max(len(name), *(len(cells[name]) for cells in rows)) for name in _WIDTHS}
    wide["bar"] = BAR
    shown = list(_WIDTHS)

    def least(names: Sequence[str]) -> int:
        return sum(min(wide[n], _FLEXIBLE.get(n, wide[n])) for n in names) + 2 * (len(names) - 1)

    if sum(wide.values()) + 2 * (len(wide) - 1) > width:
        shown.remove("bar")  # where it would have others cut
    for name in _DROPPED:
        if least(shown) > width:
            shown.remove(name)
    width_left = width - least(shown)
    columns = {name: min(wide[name], _FLEXIBLE.get(name, wide[name])) for name in shown}
    for name in ("choice", "worst module", "worst task"):
        if name in columns:
            extra = min(max(0, width_left), wide[name] - columns[name])
            columns[name] += extra
            width_left -= extra
    return columns


def _line(cells: dict[str, str], columns: dict[str, int], ascii_only: bool) -> str:
    parts = []
    for name, width in columns.items():
        text = cut(cells[name], width, ascii_only=ascii_only)
        parts.append(text.rjust(width) if name in _RIGHT else text.ljust(width))
    return "  ".join(parts).rstrip()


def _marks_line(sheet: Sheet, ascii_only: bool) -> str:
    dot = " - " if ascii_only else " · "
    marks = [f"{100 * share:g} % at k {k}" for share, k in sheet.levels if k is not None]
    if marks:
        marks[0] = marks[0].replace(" at", " of variance at")
    if sheet.dear is not None:
        marks.append(f"from k {sheet.dear} on larger than the originals")
    if sheet.so_far:
        marks.insert(0, f"figures with a ~ are {sheet.so_far}")
    return dot.join(marks)


def _joined(parts: Sequence[str], width: int) -> str:
    line = ""
    for part in parts:
        longer = f"{line}  {part}" if line else part
        if part and len(longer) <= width:
            line = longer
    return line


def _wrapped(text: str, width: int, limit: int) -> list[str]:
    return textwrap.wrap(text, max(10, width), max_lines=limit, placeholder=" ...")
