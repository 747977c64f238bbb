"""The glossary in a box, to be scrolled through."""

from __future__ import annotations

from typing import ClassVar

from rich.text import Text
from textual.binding import BindingType
from textual.containers import VerticalScroll

from vlora_tui.tui.key_names import keyed
from vlora_tui.tui.widgets.bindings import hidden, shown
from vlora_tui.tui.widgets.dialogs import Page
from vlora_tui.tui.widgets.folding import Hanging
from vlora_tui.tui.widgets.terms import TERMS


class TermsPage(Page):
    """All terms and what they mean.

    Args:
        term: The one to begin with.
    """

    DEFAULT_CSS = """
    TermsPage > .box { width: 92; }
    TermsPage .many { max-height: 100%; margin-bottom: 0; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        shown("escape,q,enter,question_mark", "cancel", "Back", "terms.cancel", "Close"),
        hidden("j", "down", "terms.down"),
        hidden("k", "up", "terms.up"),
    ]

    def __init__(self, term: str = "") -> None:
        super().__init__("Terms")
        self.subtitle = keyed("<terms.cancel> close")
        self._term = term

    def text(self) -> Hanging:
        text = Text()
        first = [term for term in TERMS if term.name == self._term]
        for term in [*first, *(term for term in TERMS if term not in first)]:
            text.append(f"{term.name}\n", style="bold")
            text.append(f"  {term.meaning}\n")
        text.rstrip()
        return Hanging(text)

    def on_mount(self) -> None:
        super().on_mount()
        self.query_one(VerticalScroll).scroll_home(animate=False)
