"""A key in one line of a table: those on the last line of the screen, and those that are not."""

from __future__ import annotations

from textual.binding import Binding

from vlora_tui.tui.key_names import declare


def shown(
    keys: str, action: str, name: str, id: str, tooltip: str = "", *, display: str | None = None
) -> Binding:
    """A key that stands under ``name`` on the last line of the screen."""
    declare(id, keys)
    return Binding(keys, action, name, id=id, tooltip=tooltip, key_display=display)


def hidden(
    keys: str, action: str, id: str, tooltip: str = "", *, display: str | None = None
) -> Binding:
    """A key that the help and the palette alone tell of, in the words of ``tooltip``.

    Args:
        id: The word that stands for it in the config file.
        display: How the key is written, where not by its own name.
    """
    declare(id, keys)
    return Binding(keys, action, show=False, id=id, tooltip=tooltip, key_display=display)
