"""A square matrix of figures, one row and column an adapter, drawn cell by cell."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from rich.cells import cell_len, set_cell_size
from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.binding import BindingType
from textual.message import Message
from textual.strip import Strip

from vlora_engine.utils.naming import cosine_text
from vlora_engine.utils.ranking import ranked
from vlora_tui.tui.text import cut
from vlora_tui.tui.widgets.bindings import hidden
from vlora_tui.tui.widgets.cell_grid import CellGrid, Legend
from vlora_tui.tui.widgets.heatmap import few_colours, heat_style

if TYPE_CHECKING:
    from vlora_engine.analysis.relations import Array

WIDTHS = (5, 4, 3, 2, 1)  # of a cell: the widest that lets all columns in
SHADES = " ░▒▓█"
ASCII_SHADES = " .:*#"
LEAST_NAME = 8
PARTS = (0.25, 0.5, 0.75, 1.0)  # of what is brightest
LEGEND = ((".1", 0.1), (".3", 0.3), (".5", 0.5), (".7", 0.7), (".9", 0.9), ("1", 1.0))


class Matrix(CellGrid):
    """A matrix of cosines, or of other figures up to 1, with a cursor in it; NaN is not known.

    Rows carry a number, a name, and a letter where they belong to a group; columns the numbers.
    """

    ALLOW_SELECT = False
    COMPONENT_CLASSES: ClassVar[set[str]] = {
        "matrix--head",
        "matrix--here",
        "matrix--cursor",
        "matrix--quiet",
        "matrix--group",
        "matrix--below",
    }
    DEFAULT_CSS = Path(__file__).with_suffix(".tcss").read_text("utf-8")
    BINDINGS: ClassVar[list[BindingType]] = [
        hidden("up,k", "move(-1, 0)", "matrix.up", "The adapter above"),
        hidden("down,j", "move(1, 0)", "matrix.down", "The adapter below"),
        hidden("left,h", "move(0, -1)", "matrix.left", "The column before"),
        hidden("right,l", "move(0, 1)", "matrix.right", "The next column"),
        hidden("pageup", "page(-1)", "matrix.page_up", "A page up"),
        hidden("pagedown", "page(1)", "matrix.page_down", "A page down"),
        hidden("g,home", "edge(0)", "matrix.first", "First row"),
        hidden("G,end", "edge(1)", "matrix.last", "Last row"),
        hidden("n", "next(1)", "matrix.next", "The pair of the largest figure, then the next"),
        hidden("p", "next(-1)", "matrix.previous", "The pair of the next larger figure"),
    ]  # fmt: skip

    class Moved(Message):
        """The cursor is on another pair."""

    class Chosen(Message):
        """A pair was double-clicked."""

    def __init__(self, *, ascii_only: bool = False, id: str | None = None) -> None:
        super().__init__(ascii_only=ascii_only, id=id)
        self.order: list[int] = []  # which adapter stands in which row
        self.names: Sequence[str] = ()
        self._letters: dict[int, str] = {}
        self._values: Array | None = None
        self._top_share: float | None = None
        self._styles: dict[tuple[str, int], Style] = {}

    def show(
        self,
        names: Sequence[str],
        values: Array | None,
        order: list[int],
        letters: dict[int, str],
        legend: str = "",
        top: float | None = None,
    ) -> None:
        """Show these adapters in this order; the cursor stays on its pair.

        Args:
            letters: Per adapter that belongs to a group, the group's letter.
            legend: What the figures are; nothing for no legend.
            top: The figures are shares, shown in per cent: so much is brightest.
        """
        pair = self.pair
        self._top_share = top
        stops = LEGEND if top is None else tuple((_percent(top * p), p) for p in PARTS)
        if values is None:
            stops = ()  # of what nobody knows yet
        self.legend = Legend(legend, stops) if legend and order else None
        self.names, self._values, self._letters = names, values, letters
        self.order = order
        position_of = {adapter: position for position, adapter in enumerate(order)}
        if pair is not None and pair[0] in position_of and pair[1] in position_of:
            self.cursor = (position_of[pair[0]], position_of[pair[1]])
        else:
            self.cursor = (0, 1) if len(order) > 1 else (0, 0)
        self.fit()

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.order), len(self.order)

    @property
    def pair(self) -> tuple[int, int] | None:
        """The two adapters under the cursor, by their indices; twice the same on the diagonal."""
        y, x = self.cursor
        if not (y < len(self.order) and x < len(self.order)):
            return None
        return self.order[y], self.order[x]

    def go_to(self, first: int, second: int) -> None:
        """Put the cursor on a pair of adapters."""
        if first in self.order and second in self.order:
            self._go(self.order.index(first), self.order.index(second))

    # moving

    def action_move(self, down: int, right: int) -> None:
        """One cell on."""
        y, x = self.cursor
        self._go(y + down, x + right)

    def action_page(self, direction: int) -> None:
        """A screenful of rows on."""
        y, x = self.cursor
        self._go(y + direction * max(1, self.lines - 1), x)

    def action_edge(self, last: int) -> None:
        """The first or the last row."""
        self._go(len(self.order) - 1 if last else 0, self.cursor[1])

    def action_next(self, by: int) -> None:
        """The pair whose figure comes next after the one under the cursor, or before."""
        if self._values is None or len(self.order) < 2:
            return
        here = tuple(sorted(self.cursor))
        pairs = [
            (value, y, x)
            for y in range(len(self.order))
            for x in range(y + 1, len(self.order))
            if (value := self._larger(self.order[y], self.order[x])) is not None
        ]
        if not pairs:
            return
        positions = [(y, x) for _, y, x in ranked(pairs, lambda pair: pair[0])]
        at = positions.index(here) + by if here in positions else 0
        self._go(*positions[at % len(positions)])

    def _larger(self, first: int, second: int) -> float | None:
        """Of a pair's two cells the larger value; None where neither is known."""
        if self._values is None:
            return None
        there, back = float(self._values[first, second]), float(self._values[second, first])
        measured = [value for value in (there, back) if not math.isnan(value)]
        return max(measured, default=None)

    def _go(self, y: int, x: int) -> None:
        last = len(self.order) - 1
        position = (max(0, min(y, last)), max(0, min(x, last)))
        if last < 0 or position == self.cursor:
            return
        self.cursor = position
        self.keep_in_view()
        self.refresh()
        self.post_message(self.Moved())

    def on_click(self, event: events.Click) -> None:
        cell = self.cell_at(event)
        if cell is None:
            return
        y, x = cell
        self._go(y, x if x >= 0 else y)
        if event.chain == 2:
            self.post_message(self.Chosen())

    def notify_style_update(self) -> None:
        super().notify_style_update()
        self._styles.clear()

    # measures

    @property
    def full_height(self) -> int:
        """Lines that the whole matrix takes."""
        return len(self.order) + 1 + (self.legend is not None)

    @property
    def in_view(self) -> tuple[int, int, int, int]:
        """The rows and columns in sight: first row, end, first column, end."""
        n = len(self.order)
        return (
            self._top,
            min(n, self._top + self.lines),
            self._left,
            min(n, self._left + self.shown_columns),
        )

    @property
    def _number_width(self) -> int:
        return len(str(len(self.order)))

    def measure(self) -> None:
        """The widest cells that let every column in beside the names."""
        count, width = len(self.order), self.size.width
        longest = max((cell_len(self.names[i]) for i in self.order), default=0)
        fixed = self._number_width + 5  # a point, the number, and the letter, with their blanks
        # So much of the names must stay that they can be told apart.
        least = fixed + min(longest, max(LEAST_NAME, width // 3))
        self.cell_width = next((w for w in WIDTHS if w * count <= width - least), WIDTHS[-1])
        self.label_width = min(fixed + longest, max(width - self.cell_width * count, least))

    def render_line(self, y: int) -> Strip:
        base = self.rich_style
        row = self._top + y - 1
        if y == 0:
            segments = self._head_line(base)
        elif self.has_legend and y == self.size.height - 1:
            segments = self.legend_line(self._heat, self._part("head"))
        elif row < len(self.order):
            segments = self._row_line(row, base)
        else:
            segments = []
        return Strip(Segment.simplify(segments)).adjust_cell_length(self.size.width, base)

    def _head_line(self, base: Style) -> list[Segment]:
        width, head = self.cell_width, self._part("head")
        segments = [Segment(" " * self.label_width, base)]
        step = 1 if width > len(str(len(self.order))) else 5 if width > 1 else 10
        blank = 0  # cells that an earlier number has taken
        for x in range(*self.in_view[2:]):
            here = x == self.cursor[1]
            text = str(x + 1) if step == 1 or (x + 1) % step == 0 or x == 0 else ""
            if step > 1:
                if blank > 0:
                    blank -= width
                    continue
                shown = text.ljust(width)
                blank = len(shown) - width
                segments.append(Segment(shown, head))
            else:
                style = self._part("here") if here else head
                segments.append(Segment(text.rjust(width), style))
        return segments

    def _row_line(self, row: int, base: Style) -> list[Segment]:
        adapter = self.order[row]
        here = row == self.cursor[0]
        style = self._part("here") if here else self._part("head")
        point = (">" if self.ascii_only else "▌") if here else " "
        number = str(row + 1).rjust(self._number_width)
        width = self.label_width - self._number_width - 5
        segments = [
            Segment(f"{point}{number} ", style),
            Segment(_fit(self.names[adapter], width, self.ascii_only), style if here else base),
            Segment(f" {self._letters.get(adapter, ' ')} ", self._part("group")),
        ]
        for x in range(*self.in_view[2:]):
            segments.append(self._cell(row, x, base))
        return segments

    def _cell(self, row: int, x: int, base: Style) -> Segment:
        width = self.cell_width
        cursor = self.cursor == (row, x)
        if row == x:
            text = ("\\" if self.ascii_only else "╲").rjust(width - (width > 2)).ljust(width)
            style = self._part("quiet")
            if cursor and width > 2:
                text = "[" + text[1:-1] + "]"
        elif math.isnan(value := self._value(row, x)):
            text, style = self._unknown(width, cursor), self._part("quiet")
        else:
            text = self._text(value, width, cursor)
            heat = value if self._top_share is None else value / self._top_share
            style = base if width <= 2 and few_colours(self.app) else self._heat(heat)
            if width > 2 and not any(c.isdigit() for c in text):
                style = self._part("quiet")  # nothing, to the digits that there is room for
        if cursor and self.has_focus:
            style = self._part("cursor")
        elif cursor and width <= 2:
            style = style + Style(reverse=True)
        return Segment(text, style)

    def _value(self, row: int, x: int) -> float:
        """What a cell shows; NaN where it is not known."""
        if self._values is None:
            return math.nan
        return float(self._values[self.order[row], self.order[x]])

    def _unknown(self, width: int, cursor: bool) -> str:
        if width < WIDTHS[0]:
            return "?".rjust(width)
        return ("[" if cursor else " ") + "?".rjust(width - 2) + ("]" if cursor else " ")

    def _text(self, value: float, width: int, cursor: bool) -> str:
        if width <= 2:
            if not few_colours(self.app):
                return " " * width
            shades = ASCII_SHADES if self.ascii_only else SHADES
            heat = value if self._top_share is None else value / self._top_share
            return shades[round(min(1.0, max(0.0, heat)) * (len(shades) - 1))] * width
        if self._top_share is not None:
            return self._padded(_percent(value), width, cursor)
        text = cosine_text(value) if width > 3 else f"{value:.1f}"
        if width == 3 and float(text):
            text = text.replace("0.", ".", 1).removesuffix(".0")
        return self._padded(text if float(text) else "0", width, cursor)

    def _padded(self, text: str, width: int, cursor: bool) -> str:
        if text == "0":
            text = "." if self.ascii_only else "·"
        if width < WIDTHS[0]:
            return ("[" if cursor and width > len(text) else "") + text.rjust(
                width - (cursor and width > len(text))
            )
        return ("[" if cursor else " ") + text.rjust(width - 2) + ("]" if cursor else " ")

    def _heat(self, value: float) -> Style:
        if value < 0.005:
            return self._part("below" if value < -0.005 else "quiet")
        key = ("heat", round(value * 50))
        if key not in self._styles:
            dark = self.app.current_theme.dark
            heat = heat_style(value, dark=dark, ansi=few_colours(self.app))
            self._styles[key] = self.rich_style + heat  # few colours have none for the least
        return self._styles[key]

    def _part(self, name: str) -> Style:
        if (name, 0) not in self._styles:
            self._styles[name, 0] = self.get_component_rich_style(f"matrix--{name}")
        return self._styles[name, 0]


def _percent(value: float) -> str:
    """A share in per cent in at most three cells."""
    shown = 100 * value
    return "0" if shown < 0.05 else f"{shown:.1f}" if shown < 9.95 else f"{shown:.0f}"


def _fit(text: str, width: int, ascii_only: bool) -> str:
    """``text`` in exactly ``width`` cells; of one that is too long the middle goes."""
    return set_cell_size(cut(text, width, ascii_only=ascii_only, lost="middle"), width)
