"""Buttons in a line, ``[ w Write 18 adapters ]``: what a key does, in sight and for the mouse."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, NamedTuple

from rich.cells import cell_len
from rich.text import Text
from textual import events
from textual.widget import Widget

from vlora_tui.tui.key_names import key
from vlora_tui.tui.text import cut

GAP = 2


class Button(NamedTuple):
    """One button.

    Args:
        binding: The id of the binding whose key it shows; empty for one that does nothing now.
        label: What it does, or why nothing can be done.
        action: What a click runs, in the names of the view that the buttons are in.
    """

    binding: str
    label: str
    action: str = ""


class Buttons(Widget):
    """A line of buttons; a click on one does what its key does."""

    ALLOW_SELECT = False
    COMPONENT_CLASSES: ClassVar[set[str]] = {"buttons--on", "buttons--off"}
    DEFAULT_CSS = """
    Buttons {
        height: 1;
        & > .buttons--on { color: $text-accent; text-style: bold; }
        & > .buttons--off { color: $text-muted; }
        &:ansi > .buttons--on { color: $accent; }
        &:ansi > .buttons--off { text-style: dim; }
    }
    """

    def __init__(self, id: str | None = None) -> None:
        super().__init__(id=id)
        self._buttons: tuple[Button, ...] = ()

    def show(self, buttons: Sequence[Button]) -> None:
        """Show these, the first ones where there is no room for all."""
        if tuple(buttons) != self._buttons:
            self._buttons = tuple(buttons)
            self.refresh(layout=True)

    @property
    def text(self) -> str:
        """What stands there."""
        return (" " * GAP).join(_words(button) for button in self._buttons)

    def get_content_width(self, container: object, viewport: object) -> int:
        return cell_len(self.text)

    def render(self) -> Text:
        text = Text(no_wrap=True)
        ascii_only = bool(getattr(self.app, "ascii_only", False))
        for start, button in self._placed():
            room = max(0, self.size.width - start)
            text.append(" " * (start - text.cell_len))
            style = self.get_component_rich_style(f"buttons--{'on' if button.action else 'off'}")
            text.append(cut(_words(button), room, ascii_only=ascii_only), style)
        return text

    def _placed(self) -> list[tuple[int, Button]]:
        placed, at = list[tuple[int, Button]](), 0
        for button in self._buttons:
            if placed and at + cell_len(_words(button)) > self.size.width:
                break
            placed.append((at, button))
            at += cell_len(_words(button)) + GAP
        return placed

    async def on_click(self, event: events.Click) -> None:
        for start, button in self._placed():
            if button.action and start <= event.x < start + cell_len(_words(button)):
                event.stop()
                view = next((w for w in self.ancestors if isinstance(w, Widget) and
                             hasattr(w, f"action_{button.action}")), self)  # fmt: skip
                await self.app.run_action(button.action, view)


def _words(button: Button) -> str:
    named = f"{key(button.binding)} " if button.binding else ""
    return f"[ {named}{button.label} ]"
