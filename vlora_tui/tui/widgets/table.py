"""A table that draws only the lines in sight: as smooth with 100,000 rows as with ten."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, TypeVar

from rich.cells import cell_len, set_cell_size
from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.binding import BindingType
from textual.geometry import Region, Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip

from vlora_tui.tui.text import cut
from vlora_tui.tui.widgets.bindings import hidden

Row = TypeVar("Row")
Cell = tuple[str, str]  # the text, and its tone: "", muted, good, warning, error, accent
MEASURED = 1000  # rows that column widths are taken from
GAP = 2


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Args:
        least: The narrowest it may become; 0: as wide as its cells.
        most: The widest that it may become.
        right: Set flush right, as figures are.
        keep: The higher, the longer it stays when room is short.
        lost: Which part of a text that is too long goes: ``start`` keeps the end of a path,
            ``middle`` both ends of a name.
    """

    key: str
    title: str
    least: int = 0
    most: int = 60
    right: bool = False
    keep: int = 0
    lost: Literal["start", "middle", "end"] = "end"


class Table(ScrollView, Generic[Row], can_focus=True):
    """Rows under a header that stays; the cursor is a row.

    Args:
        draw: The cells of a row, one for each column.
        mark: What stands before a row: one character and its tone.
        key: What a row is known by when the rows change.
        loud: The cursor looks as if the table had the focus, whoever has it.
    """

    ALLOW_SELECT = False
    help_title = "In the table"
    COMPONENT_CLASSES: ClassVar[set[str]] = {
        "table--header",
        "table--cursor",
        "table--cursor-blurred",
        "table--range",
        "table--marked",
        "table--muted",
        "table--good",
        "table--warning",
        "table--error",
        "table--accent",
    }
    DEFAULT_CSS = Path(__file__).with_suffix(".tcss").read_text("utf-8")
    BINDINGS: ClassVar[list[BindingType]] = [
        hidden("up,k", "move(-1)", "table.up", "One row up"),
        hidden("down,j", "move(1)", "table.down", "One row down"),
        hidden("pageup", "page(-1)", "table.page_up", "A page up"),
        hidden("pagedown", "page(1)", "table.page_down", "A page down"),
        hidden("home,g", "edge(0)", "table.first", "First row"),
        hidden("end,G", "edge(1)", "table.last", "Last row"),
    ]

    class Moved(Message):
        """The cursor is on another row."""

        def __init__(self, table: Table[Any]) -> None:
            super().__init__()
            self.table = table

        @property
        def control(self) -> Table[Any]:
            return self.table

    class Pressed(Moved):
        """A row was double-clicked."""

    class MarkPressed(Moved):
        """The place of a row's mark was clicked."""

    class HeaderPressed(Moved):
        """The title of a column was clicked."""

        def __init__(self, table: Table[Any], column: str) -> None:
            super().__init__(table)
            self.column = column

    def __init__(
        self,
        columns: Sequence[Column],
        draw: Callable[[Row], Sequence[Cell]],
        *,
        key: Callable[[Row], str],
        mark: Callable[[Row], Cell] | None = None,
        header: bool = True,
        loud: bool = False,
        id: str | None = None,
    ) -> None:
        super().__init__(id=id)
        self._loud = loud
        self.columns = list(columns)
        self.rows: Sequence[Row] = []
        self.cursor = 0
        self.range_from: int | None = None  # the other end of a range
        self.sorted_by: tuple[str, bool] | None = None  # column, descending
        self.was_moved = False  # somebody chose the row that the cursor is on
        self.cells_of = draw
        self._key, self._mark = key, mark
        self._head = 1 if header else 0
        self._widths: list[tuple[int, int]] = []  # (index of the column, width)
        self._wanted: list[int] = []
        self._arranged = Size()  # for which the widths are
        self._styles_of: dict[str, Style] = {}

    # what is shown

    def show(self, rows: Sequence[Row], *, cursor: int | None = None) -> None:
        """Show other rows; the cursor stays on its row while that is among them."""
        before = self.row
        key = None if before is None else self._key(before)
        self.rows = rows
        self.range_from = None
        if cursor is None:
            keys = (i for i, row in enumerate(rows) if self._key(row) == key)
            cursor = next(keys, min(self.cursor, max(0, len(rows) - 1)))
        self.cursor = cursor
        self._wanted = self._measure()
        self._arrange()
        # Out of sight it has no width; that of the last time spares it another layout.
        width = self.size.width or self.virtual_size.width
        self.virtual_size = Size(width, len(rows) + self._head)
        self._keep_in_sight()
        self.refresh()

    @property
    def row(self) -> Row | None:
        """The row under the cursor."""
        return self.rows[self.cursor] if 0 <= self.cursor < len(self.rows) else None

    @property
    def range(self) -> range:
        """The rows of the range that is being taken; the cursor's row where none is."""
        ends = sorted((self.cursor, self.cursor if self.range_from is None else self.range_from))
        return range(ends[0], min(ends[1] + 1, len(self.rows)))

    @property
    def shown_columns(self) -> list[Column]:
        """The columns that there is room for."""
        return [self.columns[index] for index, _ in self._widths]

    @property
    def cursor_line(self) -> int:
        """The line of this widget that the cursor is on."""
        return self.cursor + self._head - round(self.scroll_y)

    def tone(self, name: str) -> Style:
        """The style of a tone, for texts beside the table."""
        return self._style(name)

    def move_to(self, row: int) -> None:
        """Put the cursor on a row, as near as there is one."""
        self.was_moved = True
        row = max(0, min(row, len(self.rows) - 1))
        if row == self.cursor or not self.rows:
            return
        before, self.cursor = self.cursor, row
        self._keep_in_sight()
        if self.range_from is not None:
            self.refresh()
        else:
            for line in (before, row):
                self.refresh_lines(line + self._head, 1)
        self.post_message(self.Moved(self))

    def find(self, key: str) -> bool:
        """Put the cursor on the row of this key; whether there is one."""
        at = next((i for i, row in enumerate(self.rows) if self._key(row) == key), None)
        if at is not None:
            self.move_to(at)
        return at is not None

    # keys and mouse

    def action_move(self, by: int) -> None:
        self.move_to(self.cursor + by)

    def action_page(self, by: int) -> None:
        self.move_to(self.cursor + by * max(1, self.size.height - self._head - 1))

    def action_edge(self, last: int) -> None:
        self.move_to(len(self.rows) - 1 if last else 0)

    def on_click(self, event: events.Click) -> None:
        at = event.get_content_offset(self)
        if at is None:
            return
        if at.y < self._head:
            x = GAP
            for index, width in self._widths:
                if x <= at.x < x + width + GAP:
                    self.post_message(self.HeaderPressed(self, self.columns[index].key))
                x += width + GAP
            return
        row = at.y - self._head + round(self.scroll_y)
        if row >= len(self.rows):
            return
        self.move_to(row)
        if at.x < GAP + 1 and self._mark is not None:
            self.post_message(self.MarkPressed(self))
        elif event.chain == 2:
            self.post_message(self.Pressed(self))

    def on_resize(self, event: events.Resize) -> None:
        self._arrange()
        self.virtual_size = Size(self.size.width, len(self.rows) + self._head)
        self._keep_in_sight()

    def on_focus(self) -> None:
        self.refresh_lines(self.cursor + self._head, 1)

    def on_blur(self) -> None:
        self.refresh_lines(self.cursor + self._head, 1)

    def notify_style_update(self) -> None:
        self._styles_of.clear()
        super().notify_style_update()

    # drawing

    def render_line(self, y: int) -> Strip:
        width = self.size.width
        if self._arranged != self.size:  # it is drawn before it hears that it has another size
            self._arrange()
        if y < self._head:
            return self._header(width)
        row = y - self._head + round(self.scroll_y)
        if row >= len(self.rows):
            return Strip.blank(width, self.rich_style)
        return self._line(row, width)

    def _header(self, width: int) -> Strip:
        parts = [" " * (GAP + 1)]
        up, down = ("^", "v") if self._ascii else ("▴", "▾")
        for index, column_width in self._widths:
            column = self.columns[index]
            title = column.title
            if self.sorted_by is not None and self.sorted_by[0] == column.key:
                title = f"{title}{down if self.sorted_by[1] else up}"
            parts.append(_fit(title, column_width, column.right, "end", self._ascii) + " " * GAP)
        text = set_cell_size("".join(parts), width)
        return Strip([Segment(text, self._style("header"))], width)

    def _line(self, row: int, width: int) -> Strip:
        item = self.rows[row]
        is_cursor = row == self.cursor
        in_range = self.range_from is not None and row in self.range
        loud = in_range or (is_cursor and (self.has_focus or self._loud))  # one colour for all
        base = self.rich_style
        if in_range and not is_cursor:
            base = base + self._style("range")
        elif loud:
            base = self._style("cursor")
        elif is_cursor:
            base = base + self._style("cursor-blurred")
        mark, mark_tone = self._mark(item) if self._mark is not None else (" ", "")
        point = (">" if self._ascii else "▌") if is_cursor else " "
        segments = [
            Segment(point, base),
            Segment(mark + " ", base if loud else base + self._style(mark_tone)),
        ]
        cells = self.cells_of(item)
        for index, column_width in self._widths:
            text, tone = cells[index]
            column = self.columns[index]
            fitted = _fit(text, column_width, column.right, column.lost, self._ascii) + " " * GAP
            segments.append(Segment(fitted, base if loud else base + self._style(tone)))
        return Strip(Segment.simplify(segments)).adjust_cell_length(width, base)

    @property
    def _ascii(self) -> bool:
        return bool(getattr(self.app, "ascii_only", False))

    def _style(self, tone: str) -> Style:
        if not tone:
            return Style.null()
        if tone not in self._styles_of:
            style = self.get_component_rich_style(f"table--{tone}")
            if tone not in _GROUNDED:
                style = _without_ground(style)
            self._styles_of[tone] = style
        return self._styles_of[tone]

    def _measure(self) -> list[int]:
        widths = [cell_len(column.title) + 1 for column in self.columns]
        for row in self.rows[:MEASURED]:
            for i, (text, _) in enumerate(self.cells_of(row)):
                length = cell_len(text)
                if length > widths[i]:
                    widths[i] = length
        return [min(w, c.most) for w, c in zip(widths, self.columns, strict=True)]

    def _arrange(self) -> None:
        """Choose the columns that fit, then share out what is left among those that can grow."""
        self._arranged = self.size
        if not self._wanted:
            self._wanted = self._measure()
        # Without the scroll bar whether it is there by now or not: it comes and goes by itself.
        width = self.size.width + self.show_vertical_scrollbar - GAP - 1 - 1
        if len(self.rows) + self._head > self.size.height:
            width -= 1
        shown = sorted(range(len(self.columns)), key=lambda i: -self.columns[i].keep)
        least = [min(c.least or w, w) for c, w in zip(self.columns, self._wanted, strict=True)]
        while len(shown) > 1 and sum(least[i] + GAP for i in shown) - GAP > width:
            shown.pop()
        spare = width - sum(least[i] + GAP for i in shown) + GAP
        widths = {}
        for i in shown:
            more = max(0, min(self._wanted[i] - least[i], spare))
            widths[i] = min(least[i] + more, max(1, width))
            spare -= more
        self._widths = [(i, widths[i]) for i in sorted(shown)]

    def _keep_in_sight(self) -> None:
        height = self.size.height - self._head
        if height <= 0:
            return
        top = round(self.scroll_y)
        if self.cursor < top:
            self.scroll_to(y=self.cursor, animate=False, force=True)
        elif self.cursor >= top + height:
            self.scroll_to(y=self.cursor - height + 1, animate=False, force=True)

    def refresh_lines(self, y_start: int, line_count: int = 1) -> None:
        self.refresh(Region(0, y_start - round(self.scroll_y), self.size.width, line_count))


_GROUNDED = ("cursor", "cursor-blurred", "range", "header")


def _without_ground(style: Style) -> Style:
    """The style without its background, which is that of the row."""
    return Style(
        color=style.color,
        bold=style.bold or None,
        dim=style.dim or None,
        reverse=style.reverse or None,
        underline=style.underline or None,
    )


def _fit(
    text: str, width: int, right: bool, lost: Literal["start", "middle", "end"], ascii_only: bool
) -> str:
    """``text`` in exactly ``width`` cells."""
    text = cut(text, width, ascii_only=ascii_only, lost=lost)
    space = " " * (width - cell_len(text))
    return space + text if right else text + space
