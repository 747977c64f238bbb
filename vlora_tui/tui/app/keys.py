"""The key line: keys of use now; on a narrow terminal those that fit, help and quit always."""

from __future__ import annotations

from rich.cells import cell_len
from textual.app import ComposeResult
from textual.dom import DOMNode
from textual.events import Resize
from textual.widget import Widget
from textual.widgets import Footer
from textual.widgets._footer import FooterKey

from vlora_tui.tui.core.view import View

ALWAYS = ("explain", "leave")  # nobody is left without help or a way out


class Keys(Footer):
    """A footer that leaves keys out that have nothing to act on, or would be cut off."""

    def compose(self) -> ComposeResult:
        view: View | None = getattr(self.app, "view", None)
        shown = [key for key in super().compose() if view is None or view.is_of_use(_action(key))]
        width_left = (self.size.width or self.app.size.width) - sum(
            _width(key) for key in shown if _action(key) in ALWAYS
        )
        for key in shown:
            if _action(key) not in ALWAYS:
                width_left -= _width(key)
                if width_left < -1:  # the last needs no space behind it
                    continue
            yield key

    async def recompose(self) -> None:
        await super().recompose()
        # Each key watches the footer, and Textual forgets those that are gone only when what they
        # watch changes, which is never: every key that was ever shown would stay in memory.
        watchers: dict[str, list[tuple[DOMNode, object]]] = getattr(self, "__watchers", {})
        for entries in watchers.values():
            entries[:] = [entry for entry in entries if entry[0].is_attached]

    async def on_resize(self, event: Resize) -> None:
        if self._bindings_ready:
            await self.recompose()


def _action(key: Widget) -> str:
    """The name alone, without its place and its arguments."""
    return key.action.partition("(")[0].rpartition(".")[2] if isinstance(key, FooterKey) else ""


def _width(key: Widget) -> int:
    if not isinstance(key, FooterKey):
        return 0
    return cell_len(key.key_display) + 1 + cell_len(key.description) + 1
