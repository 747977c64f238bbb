"""Settings as lines: what it is, what it is set to; arrows choose, Enter changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from rich.cells import cell_len, set_cell_size
from rich.segment import Segment
from textual import events
from textual.binding import BindingType
from textual.message import Message
from textual.strip import Strip
from textual.widget import Widget

from vlora_tui.tui.text import cut
from vlora_tui.tui.widgets.bindings import hidden, shown


@dataclass(frozen=True)
class Field:
    """One line.

    Args:
        kind: ``choice`` (left and right go through the values), ``list`` (the same, and Enter
            shows them all), ``text`` (Enter asks for it), ``fixed`` (nothing to choose).
        hint: What it means, said while the line has the cursor.
        wrong: What is wrong with it.
    """

    key: str
    label: str
    value: str
    kind: Literal["choice", "list", "text", "fixed"] = "text"
    hint: str = ""
    wrong: str = ""


class Form(Widget, can_focus=True):
    """Lines of settings with a cursor."""

    ALLOW_SELECT = False
    title = "the settings"
    COMPONENT_CLASSES: ClassVar[set[str]] = {
        "form--label",
        "form--value",
        "form--fixed",
        "form--wrong",
        "form--cursor",
    }
    DEFAULT_CSS = Path(__file__).with_suffix(".tcss").read_text("utf-8")
    BINDINGS: ClassVar[list[BindingType]] = [
        hidden("up,k", "move(-1)", "form.up", "The line above"),
        hidden("down,j", "move(1)", "form.down", "The line below"),
        hidden("left,h", "turn(-1)", "form.before", "The value before"),
        hidden("right,l,space", "turn(1)", "form.next", "The next value"),
        shown("enter", "press", "Change", "form.change", "Change this line"),
        hidden("g,home", "edge(0)", "form.first", "The first line"),
        hidden("G,end", "edge(-1)", "form.last", "The last line"),
    ]  # fmt: skip

    class Moved(Message):
        """The cursor is on another line."""

    class Turned(Message):
        """Another value of a choice is wanted."""

        def __init__(self, key: str, by: int) -> None:
            super().__init__()
            self.key, self.by = key, by

    class Pressed(Message):
        """A text is to be edited."""

        def __init__(self, key: str) -> None:
            super().__init__()
            self.key = key

    def __init__(self, *, ascii_only: bool = False, id: str | None = None) -> None:
        super().__init__(id=id)
        self.ascii_only = ascii_only
        self.cursor = 0
        self._fields: list[Field] = []
        self._top = 0

    def show(self, fields: Sequence[Field]) -> None:
        """Show these lines; the cursor stays on its line."""
        key = self.field.key if self.field is not None else None
        self._fields = list(fields)
        keys = [field.key for field in fields]
        self.cursor = keys.index(key) if key in keys else min(self.cursor, max(0, len(keys) - 1))
        self._keep_in_view()
        self.refresh()

    @property
    def field(self) -> Field | None:
        """The line with the cursor."""
        return self._fields[self.cursor] if self.cursor < len(self._fields) else None

    @property
    def cursor_line(self) -> int:
        """The line of this widget that the cursor is on."""
        return self.cursor - self._top

    def action_move(self, by: int) -> None:
        """One line on."""
        self._go(self.cursor + by)

    def action_edge(self, at: int) -> None:
        """The first or the last line."""
        self._go(at % len(self._fields) if self._fields else 0)

    def action_turn(self, by: int) -> None:
        """Another value, where there is a choice."""
        field = self.field
        if field is not None and field.kind in ("choice", "list"):
            self.post_message(self.Turned(field.key, by))
        elif field is not None and field.kind == "text" and by > 0:
            self.post_message(self.Pressed(field.key))

    def action_press(self) -> None:
        """Change the line, or do what it says."""
        field = self.field
        if field is None or field.kind == "fixed":
            return
        if field.kind == "choice":
            self.post_message(self.Turned(field.key, 1))
        else:
            self.post_message(self.Pressed(field.key))

    def on_click(self, event: events.Click) -> None:
        offset = event.get_content_offset(self)
        if offset is None or self._top + offset.y >= len(self._fields):
            return
        again = self._top + offset.y == self.cursor
        self._go(self._top + offset.y)
        if again or event.chain == 2:
            self.action_press()

    def on_focus(self) -> None:
        self.refresh()

    def on_blur(self) -> None:
        self.refresh()

    def on_resize(self) -> None:
        self._keep_in_view()

    def _go(self, line: int) -> None:
        line = max(0, min(line, len(self._fields) - 1))
        if self._fields and line != self.cursor:
            self.cursor = line
            self._keep_in_view()
            self.refresh()
            self.post_message(self.Moved())

    def _keep_in_view(self) -> None:
        lines = max(1, self.size.height)
        top = min(max(self._top, self.cursor - lines + 1), self.cursor)
        self._top = max(0, min(top, len(self._fields) - lines))

    def render_line(self, y: int) -> Strip:
        base, width = self.rich_style, self.size.width
        at = self._top + y
        if at >= len(self._fields):
            return Strip.blank(width, base)
        field, here = self._fields[at], at == self.cursor
        loud = here and self.has_focus
        styles = {
            name: self.get_component_rich_style("form--cursor" if loud else f"form--{name}")
            for name in ("label", "value", "fixed", "wrong")
        }
        point = ((">" if self.ascii_only else "▌") if here else " ") + " "
        label_width = max(cell_len(f.label) for f in self._fields) + 2
        kind = "wrong" if field.wrong else "fixed" if field.kind == "fixed" else "value"
        value = self._value(field, here, max(4, width - label_width - 3))
        segments = [
            Segment(point + set_cell_size(field.label, label_width), styles["label"]),
            Segment(value, styles[kind]),
        ]
        blank = self.get_component_rich_style("form--cursor") if loud else base
        return Strip(segments).adjust_cell_length(width, blank)

    def _value(self, field: Field, here: bool, label_width: int) -> str:
        text = field.value
        if field.kind in ("choice", "list") and here:
            left, right = ("<", ">") if self.ascii_only else ("‹", "›")
            text = cut(text, label_width - 4, ascii_only=self.ascii_only, lost="start")
            return f"{left} {text} {right}"
        return cut(text, label_width, ascii_only=self.ascii_only, lost="start")
