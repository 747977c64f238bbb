"""The panes with charts: explained variance against k, and error against size."""

from __future__ import annotations

from typing import ClassVar, Generic, TypeVar

from rich.segment import Segment
from rich.style import Style
from rich.text import Text
from textual.binding import BindingType
from textual.geometry import Region
from textual.message import Message
from textual.strip import Strip
from textual.widget import Widget

from vlora_tui.tui.charts.size_plot import SizeData, SizeMarks, size_chart
from vlora_tui.tui.charts.variance_plot import (
    ROLES,
    Look,
    Marks,
    VarianceData,
    segments,
    variance_chart,
)
from vlora_tui.tui.widgets.bindings import hidden
from vlora_tui.tui.widgets.changed import changed_regions

Data = TypeVar("Data")
Over = TypeVar("Over")


class ChartPane(Widget, Generic[Data, Over], can_focus=True):
    """A chart in the colours of the theme; subclasses say what is drawn.

    Args:
        marks: What lies over the curves at first.
    """

    COMPONENT_CLASSES: ClassVar[set[str]] = {
        *(f"curve--{role}" for role in ROLES),
        "curve--rule-label",
        "curve--band",
    }

    class Stepped(Message):
        """k, or the target, shall move by so much; ``smaller``: to fewer bytes, else to more."""

        def __init__(self, step: int, *, smaller: bool) -> None:
            super().__init__()
            self.step, self.smaller = step, smaller

    no_marks: Over
    smaller = False  # whether a positive step leads to fewer bytes

    def __init__(self, *, ascii_only: bool = False, id: str | None = None) -> None:
        super().__init__(id=id)
        self.ascii_only = ascii_only
        self.data: Data | None = None
        self.marks = self.no_marks
        self._look: Look | None = None
        self._lines: list[Strip] | None = None
        self._title = self._words = ""

    def show(self, data: Data | None, marks: Over) -> None:
        """Show these curves and marks; what is the same is not painted again."""
        if data is self.data and marks == self.marks:
            return
        self.data, self.marks = data, marks
        before, self._lines = self._lines, None
        if before is None or not self.size:
            self.refresh()
            return
        self._lines = self._paint()
        changed = changed_regions(before, self._lines)
        if changed:
            self.refresh(*changed)

    def entitle(self, title: str, words: str) -> None:
        """Write above and below the chart, as markup; the chart itself is not painted again."""
        if title != self._title:
            self._title = self.border_title = title
        if words != self._words:
            self._words = words
            # As its setter does it, which would paint all of the pane.
            self._border_subtitle = self.render_str(words)
            offset, (width, height) = self.content_offset, self.outer_size
            self.refresh(Region(-offset.x, height - 1 - offset.y, width, 1))

    def draw(self, size: tuple[int, int], look: Look) -> Text:
        """The chart in so many columns and lines."""
        raise NotImplementedError

    def action_step(self, step: int) -> None:
        """Move k, or the target."""
        self.post_message(self.Stepped(step, smaller=self.smaller))

    def notify_style_update(self) -> None:
        super().notify_style_update()
        self._look = self._lines = None

    @property
    def look(self) -> Look:
        """The theme's colours by role."""
        if self._look is None:
            styles = {role: _ink(self.get_component_rich_style(f"curve--{role}")) for role in ROLES}
            styles["rule-label"] = self.get_component_rich_style("curve--rule-label")
            plain = self.ascii_only or self.app.native_ansi_color
            tint = self.get_component_rich_style("curve--band").bgcolor
            band = None if plain else Style(bgcolor=tint)
            name = f"{self.app.theme} {self.app.native_ansi_color}"
            self._look = Look(name, styles, band, self.ascii_only)
        return self._look

    def render_line(self, y: int) -> Strip:
        if self._lines is None:
            self._lines = self._paint()
        return self._lines[y] if y < len(self._lines) else Strip.blank(self.size.width)

    def _paint(self) -> list[Strip]:
        """The chart as strips; the way through Textual's markup would cost ten times as much."""
        width, height = self.size
        base = self.rich_style
        lines = segments(self.draw((width, height), self.look))
        lines += [[] for _ in range(height - len(lines))]
        return [
            Strip(Segment.apply_style(line, base)).adjust_cell_length(width, base) for line in lines
        ]

    def on_resize(self) -> None:
        self.repaint()

    def on_focus(self) -> None:
        self.repaint()

    def on_blur(self) -> None:
        self.repaint()

    def repaint(self) -> None:
        """Paint again; what was painted before Textual told of a change may be in sight already."""
        self._lines = None
        self.refresh()


class CurvePane(ChartPane[VarianceData, Marks]):
    """Explained variance against k."""

    BINDINGS: ClassVar[list[BindingType]] = [
        hidden("left", "step(-1)", "curve.left", "Decrease k (or the bytes)"),
        hidden("right", "step(1)", "curve.right", "Increase k (or the bytes)"),
        hidden("up,k", "layer(-1)", "curve.up", "Layer up"),
        hidden("down,j", "layer(1)", "curve.down", "Layer down"),
    ]

    class LayerStepped(Message):
        """The focus shall go to another layer, so many rows on."""

        def __init__(self, step: int) -> None:
            super().__init__()
            self.step = step

    no_marks = Marks()

    def draw(self, size: tuple[int, int], look: Look) -> Text:
        return variance_chart(self.data, self.marks, size, look)

    def action_layer(self, step: int) -> None:
        """Another layer on top."""
        self.post_message(self.LayerStepped(step))


class SizesPane(ChartPane[SizeData, SizeMarks]):
    """Error against size, of every method."""

    BINDINGS: ClassVar[list[BindingType]] = [
        hidden("left", "step(-1)", "sizes.left",
               "Move the target to the left: more bytes, less error"),
        hidden("right", "step(1)", "sizes.right",
               "Move the target to the right: fewer bytes, more error"),
        hidden("up,k", "step(1)", "sizes.up",
               "Move the target up the curve: more error, fewer bytes"),
        hidden("down,j", "step(-1)", "sizes.down",
               "Move the target down the curve: less error, more bytes"),
    ]  # fmt: skip

    no_marks = SizeMarks()
    smaller = True

    def draw(self, size: tuple[int, int], look: Look) -> Text:
        return size_chart(self.data, self.marks, size, look)


def _ink(style: Style) -> Style:
    """A style without its background, so that it can lie on the band."""
    return Style(
        color=style.color,
        bold=style.bold,
        dim=style.dim,
        italic=style.italic,
        reverse=style.reverse,
    )
