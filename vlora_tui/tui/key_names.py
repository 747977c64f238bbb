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
    first = keys.split(",")[0].strip() or ","
    *modifiers, last = first.split("+") if len(first) > 1 else [first]
    shown = _NAMED.get(last) or format_key(last)
    return "+".join([*modifiers, shown.lower() if modifiers else shown])


def keyed(text: str) -> str:
    """``text`` with the key of the binding for each ``<its.id>`` in it."""
    return _PLACE.sub(lambda found: key(found[1]), text)


def places(text: str) -> list[str]:
    """The ids of the bindings that a text names."""
    return _PLACE.findall(text)
