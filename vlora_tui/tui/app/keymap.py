"""The user's own keys: every binding's id, and what is wrong with the keys configured for it."""

from __future__ import annotations

import difflib
import importlib
import re
from collections.abc import Iterator

from textual.binding import Binding, BindingsMap
from textual.keys import _get_unicode_name_from_key, key_to_character

from vlora_tui.utils.config import Config, Problem

TERMINAL_KEYS = ("ctrl+a", "ctrl+b", "ctrl+h", "ctrl+j", "ctrl+s")
MODULES = (
    "vlora_tui.tui.app.app",
    "vlora_tui.tui.app.palette",
    "vlora_tui.tui.adapters.view",
    "vlora_tui.tui.choose.view",
    "vlora_tui.tui.run.view",
    "vlora_tui.tui.run.compare",
    "vlora_tui.tui.run.job_form",
    "vlora_tui.tui.run.log",
    "vlora_tui.tui.inspect.view",
    "vlora_tui.tui.inspect.module",
    "vlora_tui.tui.export.view",
    "vlora_tui.tui.adapters.open_folder",
    "vlora_tui.tui.widgets.table",
    "vlora_tui.tui.choose.curve_pane",
    "vlora_tui.tui.choose.figures_pane",
    "vlora_tui.tui.widgets.heatmap",
    "vlora_tui.tui.widgets.matrix",
    "vlora_tui.tui.widgets.dialogs",
    "vlora_tui.tui.widgets.guide_page",
    "vlora_tui.tui.widgets.terms_page",
    "vlora_tui.tui.widgets.form",
    "vlora_tui.tui.export.merge",
)


def all_bindings() -> dict[str, tuple[str, Binding]]:
    """Every binding with an id: the class it belongs to, and the binding with all its keys."""
    found: dict[str, tuple[str, Binding]] = {}
    for module in MODULES:
        try:
            loaded = importlib.import_module(module)
        except ModuleNotFoundError:
            continue
        for defined in vars(loaded).values():
            if isinstance(defined, type) and defined.__module__ == module:
                for binding in _declared_bindings(defined):
                    if binding.id:
                        found.setdefault(binding.id, (defined.__name__, binding))
    return found


def check_keys(config: Config) -> list[Problem]:
    """What is wrong with the keys of the config file, each with its line."""
    bindings = all_bindings()
    problems = []
    taken: dict[tuple[str, str], str] = {}
    for binding_id, keys in config.keys.items():
        line = config.key_line(binding_id)
        if binding_id not in bindings:
            near = difflib.get_close_matches(binding_id, bindings, 1)
            remedy = f"did you mean {near[0]}?" if near else "`?` in the interface shows the ids"
            problems.append(Problem(line, f"no binding is called {binding_id!r}", remedy))
            continue
        for key in _split(keys):
            wrong = _wrong_key(key)
            if wrong:
                problems.append(Problem(line, f"{binding_id}: {wrong}"))
                continue
            owner = bindings[binding_id][0]
            other: str | None = taken.setdefault((owner, key), binding_id)
            if other == binding_id:
                other = _default_owner(bindings, owner, key, config)
            if other and other != binding_id:
                what = f"{binding_id}: the key {key!r} is that of {other} already"
                problems.append(Problem(line, what))
    return problems


def _declared_bindings(cls: type) -> Iterator[Binding]:
    for binding in vars(cls).get("BINDINGS", ()):
        if isinstance(binding, Binding):
            yield binding


def _split(keys: str) -> list[str]:
    return [key.strip() for key in keys.split(",") if key.strip()] or [","]


def _default_owner(
    bindings: dict[str, tuple[str, Binding]], owner: str, key: str, config: Config
) -> str | None:
    """The binding of the same class that has this key by default and was not given another."""
    normal = _normal(key)
    for binding_id, (cls, binding) in bindings.items():
        if cls == owner and binding_id not in config.keys and normal in _normals(binding):
            return binding_id
    return None


def _normals(binding: Binding) -> set[str]:
    return set(BindingsMap([binding]).key_to_bindings)


def _normal(key: str) -> str:
    return next(iter(BindingsMap([Binding(key, "x")]).key_to_bindings))


def _wrong_key(key: str) -> str | None:
    """Why a key cannot be used, None if it can."""
    if key in TERMINAL_KEYS:
        return f"{key} is taken by terminals or tmux"
    *modifiers, last = key.split("+") if len(key) > 1 else [key]
    odd = [m for m in modifiers if m not in ("ctrl", "shift", "alt", "super", "hyper", "meta")]
    if odd:
        return f"{odd[0]!r} is no modifier (ctrl, shift, alt)"
    if len(last) == 1 or re.fullmatch(r"f([1-9]|1\d|2[0-4])", last):
        return None
    if last in _NAMED or _is_character_name(last):
        return None
    return f"there is no key {key!r}"


_NAMED = frozenset(
    {
        *("up", "down", "left", "right", "home", "end", "pageup", "pagedown", "insert", "delete"),
        *("enter", "escape", "tab", "space", "backspace"),
    }
)


def _is_character_name(name: str) -> bool:
    return key_to_character(name) is not None or _get_unicode_name_from_key(name) != name
