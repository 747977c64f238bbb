"""Keys as texts name them: by the id of their binding, so that they follow the user's own keys.

A text says ``<adapters.open> opens a folder``; `keyed` puts the key there. A text is written once
and shown often, so the key is put in when it is shown.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from textual.keys import format_key

_NAMED = {
    **{"enter": "Enter", "escape": "Esc", "space": "Space", "backspace": "Backspace"},
    **{"tab": "Tab", "up": "Up", "down": "Down", "left": "Left", "right": "Right"},
    **{"pageup": "PgUp", "pagedown": "PgDn", "home": "Home", "end": "End", "delete": "Del"},
}
_PLACE = re.compile(r"<([a-z]+\.[a-z_0-9]+)>")
_by_default: dict[str, str] = {}
_own: dict[str, str] = {}


def declare(binding_id: str, keys: str) -> None:
    """A binding with this id has these keys, unless the user gave it others."""
    _by_default[binding_id] = keys


def use(own: Mapping[str, str]) -> None:
    """From now on these are the user's own keys, by the ids of bindings."""
    _own.clear()
    _own.update(own)


def key(binding_id: str) -> str:
    """The first key of a binding, as a text says it: ``w``, ``[``, ``Enter``, ``ctrl+o``."""
    keys = _own.get(binding_id) or _by_default.get(binding_id, binding_id)
    return key_name(keys.split(",")[0].strip() or ",")


def key_name(pressed: str) -> str:
    """A key as everything here writes it: texts, the last line, the help and the palette."""
    *modifiers, last = pressed.split("+") if len(pressed) > 1 else [pressed]
    shown = _NAMED.get(last) or format_key(last)
    return "+".join([*modifiers, shown.lower() if modifiers else shown])


def keyed(text: str) -> str:
    """``text`` with the key of the binding for each ``<its.id>`` in it."""
    return _PLACE.sub(lambda found: key(found[1]), text)


def places(text: str) -> list[str]:
    """The ids of the bindings that a text names."""
    return _PLACE.findall(text)
