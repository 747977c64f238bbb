"""What a heat map and a matrix have in common: cells under a head line, beside labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from rich.cells import cell_len
from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.widget import Widget

from vlora_tui.tui.text import cut

LEGEND_LINES = 6  # of a grid, from which on one is for the legend


@dataclass(frozen=True)
class Legend:
    """What colours of cells mean: some figures from the least to the most, and what they are.

    Args:
        stops: A figure and its heat, from 0 to 1.
    """

    words: str
    stops: tuple[tuple[str, float], ...]


class CellGrid(Widget, can_focus=True):
    """Cells in rows and columns that scroll with the cursor; labels and head stay.

    Attributes:
        cursor: Row and column.
        label_width, cell_width: In columns of the terminal, as `measure` found them.
    """

    def __init__(self, *, ascii_only: bool = False, id: str | None = None) -> None:
        super().__init__(id=id)
        self.ascii_only = ascii_only
        self.cursor = (0, 0)
        self.label_width, self.cell_width = 3, 5
        self.legend: Legend | None = None
        self._top = self._left = 0

    @property
    def shape(self) -> tuple[int, int]:
        """The number of rows and of columns."""
        raise NotImplementedError

    def measure(self) -> None:
        """Set the widths for what is shown and the room there is."""
        raise NotImplementedError

    def repaint(self) -> None:
        """Draw everything anew."""
        self.refresh()

    def fit(self) -> None:
        """Measure, scroll and draw: after other cells came, or another size."""
        self.measure()
        self.keep_in_view()
        self.repaint()

    def keep_in_view(self) -> None:
        """Scroll as little as brings the cursor into sight."""
        (y, x), (rows, columns) = self.cursor, self.shape
        self._top = min(max(self._top, y - self.lines + 1), y)
        self._top = max(0, min(self._top, rows - self.lines))
        self._left = min(max(self._left, x - self.shown_columns + 1), x)
        self._left = max(0, min(self._left, columns - self.shown_columns))

    @property
    def lines(self) -> int:
        """Rows that there is room for."""
        return max(1, self.size.height - 1 - self.has_legend)

    @property
    def has_legend(self) -> bool:
        """Whether the last line is the legend."""
        return self.legend is not None and self.size.height >= LEGEND_LINES

    def legend_line(self, heat: Callable[[float], Style], muted: Style) -> list[Segment]:
        """The legend: what the figures are, and some of them in their colours."""
        if self.legend is None:
            return []
        width, stops = self.size.width, self.legend.stops
        shown = [(f" {text} ", value) for text, value in stops]
        while len(shown) > 2 and sum(cell_len(text) for text, _ in shown) > width - 12:
            shown = shown[::2] if len(shown) % 2 else shown[:-1]
        room = width - sum(cell_len(text) for text, _ in shown) - 1
        words = cut(self.legend.words, max(0, room), ascii_only=self.ascii_only)
        return [Segment(f"{words} ", muted), *(Segment(text, heat(value)) for text, value in shown)]

    @property
    def shown_columns(self) -> int:
        """Columns that there is room for."""
        return max(1, (self.size.width - self.label_width) // self.cell_width)

    def cell_at(self, event: events.Click) -> tuple[int, int] | None:
        """Row and column under the mouse, -1 as the column of a label; None beside the cells."""
        offset = event.get_content_offset(self)
        if offset is None or offset.y < 1:
            return None
        y, x = self._top + offset.y - 1, -1
        if offset.x >= self.label_width:
            x = self._left + (offset.x - self.label_width) // self.cell_width
        rows, columns = self.shape
        return (y, x) if y < rows and x < columns else None

    def action_move(self, down: int, right: int) -> None:
        """So many cells on."""
        raise NotImplementedError

    def on_mouse_scroll_down(self, event: events.MouseScrollDown) -> None:
        event.stop()
        self.action_move(1, 0)

    def on_mouse_scroll_up(self, event: events.MouseScrollUp) -> None:
        event.stop()
        self.action_move(-1, 0)

    def on_resize(self) -> None:
        self.fit()

    def on_focus(self) -> None:
        self.repaint()

    def on_blur(self) -> None:
        self.repaint()
