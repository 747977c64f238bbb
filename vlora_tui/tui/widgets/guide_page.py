"""A guide in a box, to be scrolled through; and the list that one is chosen from."""

from __future__ import annotations

from typing import ClassVar

from rich.text import Text
from textual import events
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Vertical, VerticalScroll
from textual.widgets import Static

from vlora_tui.guides import Guide, guides
from vlora_tui.guides.drawing import WIDEST, drawn
from vlora_tui.tui.widgets.bindings import hidden, shown
from vlora_tui.tui.widgets.dialogs import Ask, Dialog, Option

AROUND = 9  # columns of border, padding and scroll bar


class GuidePage(Dialog):
    """One guide from its first line to its last."""

    DEFAULT_CSS = """
    GuidePage > .box { width: 109; } /* WIDEST + AROUND */
    GuidePage .many { max-height: 100%; margin-bottom: 0; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        shown("escape,q,enter,question_mark", "cancel", "Back", "guide.cancel"),
        hidden("j", "down", "guide.down"),
        hidden("k", "up", "guide.up"),
    ]

    def __init__(self, guide: Guide) -> None:
        super().__init__()
        self._guide = guide

    def compose(self) -> ComposeResult:
        with Vertical(classes="box") as box:
            box.border_title = Text(f"vlora-tui guide {self._guide.name}")
            box.border_subtitle = Text("esc closes")
            with VerticalScroll(classes="many"):
                yield Static(markup=False)

    def on_mount(self) -> None:
        super().on_mount()
        self.query_one(VerticalScroll).focus()

    def on_resize(self, event: events.Resize) -> None:
        width = min(WIDEST, event.size.width * 96 // 100 - AROUND)
        ascii_only = bool(getattr(self.app, "ascii_only", False))
        self.query_one(Static).update(drawn(self._guide.text, width, ascii_only=ascii_only))

    def action_down(self) -> None:
        self.query_one(VerticalScroll).scroll_down(animate=False)

    def action_up(self) -> None:
        self.query_one(VerticalScroll).scroll_up(animate=False)


def which_guide() -> Ask:
    """The question which guide to show; its answer is a name."""
    options = [
        Option(str((n + 1) % 10), guide.title, guide.name, guide.name)
        for n, guide in enumerate(guides())
    ]
    return Ask("Guides", "Each does one thing, from its first line to its last.", options)
