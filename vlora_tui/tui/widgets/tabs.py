"""The names of the panes in one line, for terminals that show one pane at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, NamedTuple

from rich.text import Text
from textual import events
from textual.message import Message
from textual.widget import Widget


class Tab(NamedTuple):
    """A pane: its id, its name, and how many things are in it where that is worth saying."""

    id: str
    name: str
    number: int | None = None


class PaneTabs(Widget):
    """One line; the pane in view is reversed, a click brings another."""

    ALLOW_SELECT = False
    COMPONENT_CLASSES: ClassVar[set[str]] = {"tabs--current", "tabs--other"}
    DEFAULT_CSS = """
    PaneTabs {
        height: 1;
        & > .tabs--current { text-style: bold reverse; }
        & > .tabs--other { color: $text-muted; }
    }
    """

    class Chosen(Message):
        """Another pane is wanted."""

        def __init__(self, pane: str) -> None:
            super().__init__()
            self.pane = pane

    def __init__(self, id: str | None = None) -> None:
        super().__init__(id=id)
        self._tabs: Sequence[Tab] = ()
        self._current = ""
        self._spans: list[tuple[int, int, str]] = []

    def show(self, tabs: Sequence[Tab], current: str) -> None:
        """Show these panes."""
        if (tabs, current) != (self._tabs, self._current):
            self._tabs, self._current = tabs, current
            self.refresh()

    def render(self) -> Text:
        text = Text(no_wrap=True, overflow="ellipsis")
        self._spans = []
        for tab, label in self._labels():
            part = "current" if tab.id == self._current else "other"
            self._spans.append((text.cell_len, text.cell_len + len(label), tab.id))
            text.append(label, self.get_component_rich_style(f"tabs--{part}"))
        return text

    def _labels(self) -> list[tuple[Tab, str]]:
        """The names that fit: with numbers if there is room, and always the one in view."""
        labels = [
            (tab, f" {tab.name}{'' if tab.number is None else f' {tab.number}'} ")
            for tab in self._tabs
        ]
        if sum(len(label) for _, label in labels) > self.size.width:
            labels = [(tab, f" {tab.name} ") for tab in self._tabs]
        ids = [tab.id for tab in self._tabs]
        at = ids.index(self._current) if self._current in ids else 0
        while at and sum(len(label) for _, label in labels[: at + 1]) > self.size.width:
            labels, at = labels[1:], at - 1
        return labels

    def on_click(self, event: events.Click) -> None:
        for start, end, pane in self._spans:
            if start <= event.x < end:
                self.post_message(self.Chosen(pane))
