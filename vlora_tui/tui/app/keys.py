"""The key line: keys of use now; on a narrow terminal those that fit, help and quit always."""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

from rich.cells import cell_len
from rich.text import Text
from textual import events
from textual.screen import Screen
from textual.widget import Widget

from vlora_tui.tui.core.view import View

ALWAYS = ("explain", "leave")  # nobody is left without help or a way out


class ShownKey(NamedTuple):
    """A key of the line: how it is written, its word, what it does, and of which widget."""

    display: str
    name: str
    action: str
    node: Any

    @property
    def width(self) -> int:
        """Cells, with the blank behind it."""
        return cell_len(self.display) + 1 + cell_len(self.name) + 1


class Keys(Widget):
    """One line, painted with what it is about: a step and its keys come into sight together.

    Keys that have nothing to act on are left out, and those that would be cut off.
    """

    ALLOW_SELECT = False
    COMPONENT_CLASSES: ClassVar[set[str]] = {"keys--key", "keys--name"}
    DEFAULT_CSS = """
    Keys {
        dock: bottom;
        height: 1;
        background: $panel;
        & > .keys--key { color: $footer-key-foreground; text-style: bold; }
        & > .keys--name { color: $footer-description-foreground; }
    }
    """

    def __init__(self) -> None:
        super().__init__()
        self._drawn: tuple[ShownKey, ...] = ()

    def on_mount(self) -> None:
        self.screen.bindings_updated_signal.subscribe(self, self._renew)
        self.app.screen_change_signal.subscribe(self, self._renew)

    def on_unmount(self) -> None:
        self.screen.bindings_updated_signal.unsubscribe(self)
        self.app.screen_change_signal.unsubscribe(self)

    def _renew(self, screen: Screen[Any]) -> None:
        if self.is_attached and tuple(self.shown) != self._drawn:
            self.refresh()

    @property
    def shown(self) -> list[ShownKey]:
        """The keys that are of use and fit, in their order."""
        keys = self._of_use()
        left = (self.size.width or self.app.size.width) - sum(
            key.width for key in keys if _name(key.action) in ALWAYS
        )
        fitting = []
        for key in keys:
            if _name(key.action) not in ALWAYS:
                left -= key.width
                if left < -1:  # the last needs no space behind it
                    continue
            fitting.append(key)
        return fitting

    def _of_use(self) -> list[ShownKey]:
        screen = self.app.screen
        # A dialog takes all keys: those of the step below it do nothing.
        view: View | None = getattr(self.app, "view", None) if screen is self.screen else None
        keys: dict[str, ShownKey] = {}
        for active in screen.active_bindings.values():
            binding = active.binding
            if not binding.show or not active.enabled or binding.action in keys:
                continue
            if view is None or view.is_of_use(_name(binding.action)):
                display = self.app.get_key_display(binding)
                key = ShownKey(display, binding.description, binding.action, active.node)
                keys[binding.action] = key
        return list(keys.values())

    def render(self) -> Text:
        self._drawn = tuple(self.shown)
        text = Text(no_wrap=True, overflow="crop")
        of_key, of_name = (self.get_component_rich_style(f"keys--{part}", partial=True)
                           for part in ("key", "name"))  # fmt: skip
        for key in self._drawn:
            text.append(key.display, of_key)
            text.append(f" {key.name} ", of_name)
        return text

    async def on_click(self, event: events.Click) -> None:
        at = 0
        for key in self._drawn:
            if at <= event.x < at + key.width:
                await self.app.run_action(key.action, key.node)
                return
            at += key.width


def _name(action: str) -> str:
    """The name alone, without its place and its arguments."""
    return action.partition("(")[0].rpartition(".")[2]
