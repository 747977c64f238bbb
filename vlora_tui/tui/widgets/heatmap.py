"""Layers down, module types across: one coloured cell with a number for every layer."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from rich.color import Color
from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.app import App
from textual.binding import BindingType
from textual.message import Message
from textual.strip import Strip

from vlora_tui.tui.text import clean, cut
from vlora_tui.tui.widgets.bindings import hidden
from vlora_tui.tui.widgets.cell_grid import CellGrid, Legend
from vlora_tui.tui.widgets.changed import changed_regions

# From cheap to dear, in lightness too, so that it reads without colour and with any eyes. All are
# of the 256 that every terminal beyond 16 colours shows alike.
DARK = ("#262626", "#005f87", "#0087af", "#00afaf", "#5fd7af", "#afd787", "#d7d75f", "#ffff5f")
LIGHT = ("#eeeeee", "#d7d7af", "#afd7af", "#87afaf", "#5f87af", "#5f5faf", "#5f0087")
ANSI = ("default", "blue", "green", "cyan", "yellow", "white")


@dataclass(frozen=True)
class Cell:
    """What a layer's cell shows.

    Args:
        text: A short number. heat: From 0 (cheap) to 1 (dear), None where there is none.
        own: The layer has a k of its own.
    """

    text: str
    heat: float | None = None
    own: bool = False


UNKNOWN = Cell("·")


@dataclass(frozen=True)
class LayerGrid:
    """Module names as rows and columns: the block's number down, what is in it across.

    Args:
        names: (rows, columns) of module names; None where a block has no such module.
    """

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    names: tuple[tuple[str | None, ...], ...]

    def find(self, name: str | None) -> tuple[int, int] | None:
        """Row and column of a module."""
        for y, row in enumerate(self.names):
            if name is not None and name in row:
                return y, row.index(name)
        return None


_NUMBER = re.compile(r"(?:^|\.)(\d+)(?=\.|$)")


def arrange(names: Sequence[str]) -> LayerGrid:
    """Lay module names out by the first number in them."""
    positions: dict[str, tuple[str, str]] = {}
    for name in names:
        found = _NUMBER.search(name)
        if found is None:
            positions[name] = ("", name)
        else:
            block = name[: found.start()] + "." + found[1]
            positions[name] = (block, name[found.end() :].lstrip(".") or found[1])
    blocks = list(dict.fromkeys(block for block, _ in positions.values()))
    kinds = list(dict.fromkeys(kind for _, kind in positions.values()))
    name_at = {position: name for name, position in positions.items()}
    return LayerGrid(
        rows=tuple(clean(label) for label in _row_labels(blocks)),
        columns=tuple(clean(label) for label in _short(kinds)),
        names=tuple(tuple(name_at.get((block, kind)) for kind in kinds) for block in blocks),
    )


def _row_labels(blocks: Sequence[str]) -> list[str]:
    """The block's number; where two towers count alike, with the tower's first letters."""
    heads = {block.rpartition(".")[0] for block in blocks if block}
    numbers = [block.rpartition(".")[2] if block else "-" for block in blocks]
    if len(heads) <= 1:
        return numbers
    short = {
        head: next((p for p in head.split(".") if p not in _SHARED), head)[:3] for head in heads
    }
    return [
        f"{short[block.rpartition('.')[0]]}{number}" if block else number
        for block, number in zip(blocks, numbers, strict=True)
    ]


_SHARED = ("model", "transformer", "base_model", "")


def _short(kinds: Sequence[str]) -> list[str]:
    """Each kind by the shortest tail of its path that no other kind shares."""
    labels = []
    for kind in kinds:
        parts = kind.split(".")
        for take in range(1, len(parts) + 1):
            tail = ".".join(parts[-take:])
            others = (k for k in kinds if k != kind)
            if not any(k == tail or k.endswith("." + tail) for k in others):
                break
        labels.append(tail)
    return labels


class Heatmap(CellGrid):
    """Cells with numbers, coloured from cheap to dear; moving in it focuses a layer."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {
        "heatmap--head",
        "heatmap--here",
        "heatmap--cursor",
        "heatmap--unknown",
    }

    BINDINGS: ClassVar[list[BindingType]] = [
        hidden("up,k", "move(-1, 0)", "layers.up", "Layer up"),
        hidden("down,j", "move(1, 0)", "layers.down", "Layer down"),
        hidden("left,h", "move(0, -1)", "layers.left", "Module left"),
        hidden("right,l", "move(0, 1)", "layers.right", "Module right"),
        hidden("pageup", "page(-1)", "layers.page_up", "Page up"),
        hidden("pagedown", "page(1)", "layers.page_down", "Page down"),
        hidden("g,home", "edge(-1)", "layers.first", "First layer"),
        hidden("G,end", "edge(1)", "layers.last", "Last layer"),
    ]

    class Focused(Message):
        """Another layer has the focus."""

        def __init__(self, layer: str) -> None:
            super().__init__()
            self.layer = layer

    def __init__(self, *, ascii_only: bool = False, id: str | None = None) -> None:
        super().__init__(ascii_only=ascii_only, id=id)
        self.grid = LayerGrid((), (), ())
        self.cells: Mapping[str, Cell] = {}
        self._base: Style | None = None
        self._strips: dict[int, Strip] = {}  # lines as painted; a new border text needs no others
        self._styles: dict[tuple[float | None, bool], Style] = {}

    def show(
        self,
        grid: LayerGrid,
        cells: Mapping[str, Cell],
        focus: str | None,
        legend: Legend | None = None,
    ) -> None:
        """Show these cells, the focus on that layer; what is the same is not painted again."""
        position = grid.find(focus) or (0, 0)
        same = cells == self.cells and legend == self.legend
        if grid is self.grid and same and position == self.cursor:
            return
        before, lines = self._layout, self._strips
        self.grid, self.cells, self.cursor, self.legend = grid, cells, position, legend
        self.measure()
        self.keep_in_view()
        if self._layout != before or not lines:
            self.repaint()
            return
        self._base = None
        self._strips = {y: self._paint_line(y) for y in lines}
        changed = [
            region.translate((0, y))
            for y, line in lines.items()
            for region in changed_regions([line], [self._strips[y]])
        ]
        if changed:
            self.refresh(*changed)

    @property
    def _layout(self) -> tuple[object, ...]:
        """What decides on where cells lie; where none of it changes, lines stay in their places."""
        place = self._top, self._left, self.label_width, self.cell_width
        return self.grid, place, self.has_legend, self.size

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.grid.rows), len(self.grid.columns)

    @property
    def focused_layer(self) -> str | None:
        """The focused layer."""
        y, x = self.cursor
        return self.grid.names[y][x] if y < len(self.grid.names) else None

    # moving

    def action_move(self, down: int, right: int) -> None:
        """One cell on; cells that hold no module are stepped over."""
        y, x = self.cursor
        while True:
            y, x = y + down, x + right
            if not (0 <= y < len(self.grid.rows) and 0 <= x < len(self.grid.columns)):
                return
            if self.grid.names[y][x] is not None:
                self._go(y, x)
                return

    def action_page(self, direction: int) -> None:
        """A screenful of layers on."""
        y, x = self.cursor
        line = y + direction * max(1, self.lines - 1)
        self._nearest(min(max(0, line), len(self.grid.rows) - 1), x)

    def action_edge(self, direction: int) -> None:
        """The first or the last layer."""
        self._nearest(0 if direction < 0 else len(self.grid.rows) - 1, self.cursor[1])

    def _nearest(self, y: int, x: int) -> None:
        if not 0 <= y < len(self.grid.rows):
            return
        there = [i for i, name in enumerate(self.grid.names[y]) if name is not None]
        if there:
            self._go(y, min(there, key=lambda i: abs(i - x)))

    def _go(self, y: int, x: int) -> None:
        if (y, x) == self.cursor:
            return
        self.cursor = (y, x)
        self.keep_in_view()
        self.repaint()
        layer = self.focused_layer
        if layer is not None:
            self.post_message(self.Focused(layer))

    def on_click(self, event: events.Click) -> None:
        cell = self.cell_at(event)
        if cell is not None and cell[1] >= 0:
            self._nearest(*cell)

    def notify_style_update(self) -> None:
        super().notify_style_update()
        self._styles.clear()
        self._strips.clear()
        self._base = None

    # drawing

    def repaint(self) -> None:
        self._base = None
        self._strips.clear()
        self.refresh()

    def measure(self) -> None:
        columns = self.grid.columns
        numbers = max((len(c.text) + c.own for c in self.cells.values()), default=1)
        least = max(5, numbers + 2)
        heads = max((len(_head(column, columns)) for column in columns), default=0) + 1
        self.label_width = max([3, *(len(row) + 2 for row in self.grid.rows)])
        cell_width = (self.size.width - self.label_width) // max(1, len(columns))
        self.cell_width = max(least, min(cell_width, max(heads, least)))

    def render_line(self, y: int) -> Strip:
        if y not in self._strips:
            self._strips[y] = self._paint_line(y)
        return self._strips[y]

    def _paint_line(self, y: int) -> Strip:
        if self._base is None:
            self._base = self.rich_style
        base, width = self._base, self.size.width
        if y == 0:
            segments = self._head_line()
        elif self.has_legend and y == self.size.height - 1:
            head = self.get_component_rich_style("heatmap--head")
            segments = self.legend_line(lambda heat: self._style(heat, False), head)
        elif self._top + y - 1 < len(self.grid.rows):
            segments = self._row_line(self._top + y - 1, y, base)
        else:
            segments = []
        return Strip(segments).adjust_cell_length(width, base)

    def _head_line(self) -> list[Segment]:
        head = self.get_component_rich_style("heatmap--head")
        here = self.get_component_rich_style("heatmap--here")
        end = self._left + self.shown_columns
        mark = "<" if self.ascii_only else "‹"
        segments = [Segment((mark if self._left else "").rjust(self.label_width), head)]
        for x, name in enumerate(self.grid.columns[self._left : end], start=self._left):
            text = _fit(_head(name, self.grid.columns), self.cell_width - 1, self.ascii_only)
            style = here if x == self.cursor[1] else head
            segments.append(Segment(text.rjust(self.cell_width - 1) + " ", style))
        if end < len(self.grid.columns):
            segments.append(Segment(">" if self.ascii_only else "›", head))
        return segments

    def _row_line(self, row: int, line: int, base: Style) -> list[Segment]:
        head = self.get_component_rich_style("heatmap--head")
        here = self.get_component_rich_style("heatmap--here")
        above = line == 1 and self._top > 0
        below = line == self.lines and row < len(self.grid.rows) - 1
        up, down = ("^", "v") if self.ascii_only else ("▴", "▾")
        more = up if above else down if below else " "
        label = self.grid.rows[row].rjust(self.label_width - 2)
        segments = [Segment(f"{more}{label} ", here if row == self.cursor[0] else head)]
        end = self._left + self.shown_columns
        for x, name in enumerate(self.grid.names[row][self._left : end], start=self._left):
            segments.append(self._cell(name, (row, x) == self.cursor, base))
        return segments

    def _cell(self, name: str | None, cursor: bool, base: Style) -> Segment:
        if name is None:
            return Segment(" " * self.cell_width, base)
        cell = self.cells.get(name, UNKNOWN)
        text = "." if self.ascii_only and cell.text == "·" else cell.text
        text += "*" if cell.own else ""
        left, right = ("[", "]") if cursor else (" ", " ")
        shown = (left + text).rjust(self.cell_width - 1) + right
        return Segment(shown[: self.cell_width], self._style(cell.heat, cursor))

    def _style(self, heat: float | None, cursor: bool) -> Style:
        """Colour by heat; the cursor's own style only while the map has the focus."""
        cursor_style = cursor and self.has_focus
        key = (None if heat is None else round(heat, 2), cursor_style)
        if key not in self._styles:
            if cursor_style:
                style = self.get_component_rich_style("heatmap--cursor")
            elif heat is None:
                style = self.get_component_rich_style("heatmap--unknown")
            else:
                dark = self.app.current_theme.dark
                heat_alone = heat_style(heat, dark=dark, ansi=few_colours(self.app))
                base = self._base or self.rich_style  # worked out anew at each call
                style = base + heat_alone  # few colours have none for the least
            self._styles[key] = style
        return self._styles[key]


def few_colours(app: App[Any]) -> bool:
    """Whether the terminal has 16 colours at most; one that is not there has all."""
    sixteen = app.console.color_system in ("standard", None) and not app.is_headless
    return app.native_ansi_color or sixteen


def heat_style(heat: float, *, dark: bool, ansi: bool) -> Style:
    """Background and readable foreground for a heat from 0 to 1."""
    heat = min(1.0, max(0.0, heat))
    if ansi:
        name = ANSI[round(heat * (len(ANSI) - 1))]
        if name == "default":
            return Style()
        return Style(color="bright_white" if name == "blue" else "black", bgcolor=name)
    ramp = DARK if dark else LIGHT
    colour = Color.parse(ramp[round(heat * (len(ramp) - 1))])
    channels = [channel / 255 for channel in colour.get_truecolor()]
    red, green, blue = (c / 12.92 if c <= 0.04 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    light = 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.179  # where black is read better
    return Style(color="#000000" if light else "#eeeeee", bgcolor=colour)


def _head(name: str, columns: Sequence[str]) -> str:
    """A column's name without the ending that all of them share, such as ``_proj``."""
    ending = "_proj"
    if len(columns) > 4 and all(column.endswith(ending) for column in columns):
        return name[: -len(ending)]
    return name


def _fit(text: str, width: int, ascii_only: bool) -> str:
    return cut(text, width, ascii_only=ascii_only)
