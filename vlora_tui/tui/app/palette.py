"""The palette's entries: every action that has a key, the guides, the themes, the settings."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from textual.app import App, SystemCommand
from textual.command import CommandList, CommandPalette
from textual.screen import Screen

from vlora_tui.tui.widgets.closing import ClosesOnce


class Palette(CommandPalette, ClosesOnce[None]):
    """Textual's palette, closed once however often it is asked to."""

    def _action_command_list(self, action: str) -> None:
        """Move in the list; one that is not drawn, as nothing was found, has no lines for it."""
        commands = self.query_one(CommandList)
        if action == "select" or (commands.option_count and commands.size):
            super()._action_command_list(action)


def palette_entries(
    app: App[Any],
    screen: Screen[Any],
    *,
    show_guide: Callable[[str], None],
    settings_file: str,
    say_settings: Callable[[], None],
) -> Iterable[SystemCommand]:
    """Every action that a key has, then guides, themes and the settings.

    Args:
        show_guide: Shows the guide of this name.
        settings_file: Where the settings lie, as a person reads it; ``say_settings`` says it.
    """
    from vlora_tui.guides import guides

    seen: dict[tuple[Any, str], list[Any]] = {}
    for active in screen.active_bindings.values():
        if active.enabled and not active.binding.system and active.binding.id:
            where = active.node, active.binding.action
            seen.setdefault(where, []).append(active.binding)
    for (node, action), bindings in seen.items():
        first = bindings[0]
        if action in ("command_palette", "app.filter") or first.id.startswith("table."):
            continue
        keys = ", ".join(dict.fromkeys(app.get_key_display(b) for b in bindings))
        words = first.tooltip or first.description
        if words:
            action = "leave(True)" if action == "leave" else action
            yield SystemCommand(words, keys, _runner(app, action, node))
    for page in guides():
        words = f"vlora-tui guide {page.name}"
        yield SystemCommand(f"Guide: {page.title}", words, partial(show_guide, page.name))
    for name in sorted(app.available_themes):
        if name != app.theme and (not app.no_color or name.startswith("ansi")):
            yield SystemCommand(f"Theme: {name}", "for this session", _themer(app, name))
    yield SystemCommand("Where the settings are", settings_file, say_settings)


def _runner(app: App[Any], action: str, node: Any) -> Any:
    return lambda: app.call_later(app.run_action, action, node)


def _themer(app: App[Any], name: str) -> Any:
    def change() -> None:
        app.theme = name

    return change
