"""A guide in a box, to be scrolled through; and the list that one is chosen from."""

from __future__ import annotations

from typing import ClassVar

from textual import events
from textual.binding import BindingType
from textual.widgets import Static

from vlora_tui.guides import Guide, guides
from vlora_tui.guides.drawing import WIDEST, drawn
from vlora_tui.tui.key_names import keyed
from vlora_tui.tui.widgets.bindings import hidden, shown
from vlora_tui.tui.widgets.dialogs import Ask, Option, Page

AROUND = 9  # columns of border, padding and scroll bar


class GuidePage(Page):
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
        super().__init__(guide.title)
        self._guide = guide
        self.subtitle = keyed("<guide.cancel> close")

    def on_resize(self, event: events.Resize) -> None:
        width = min(WIDEST, event.size.width * 96 // 100 - AROUND)
        ascii_only = bool(getattr(self.app, "ascii_only", False))
        self.query_one(Static).update(drawn(self._guide.text, width, ascii_only=ascii_only))


def which_guide() -> Ask:
    """The question which guide to show; its answer is a name."""
    options = [
        Option(str((n + 1) % 10), guide.title, guide.name, guide.name)
        for n, guide in enumerate(guides())
    ]
    return Ask("Guides", "Short guides, each from start to end.", options)
