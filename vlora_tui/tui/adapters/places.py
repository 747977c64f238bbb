"""Places that are looked into: what they are called, and which were opened before."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress

from vlora_engine.adapters.address import CACHE_PLACE, SEARCH_PLACE, is_hub_place
from vlora_engine.errors import VLoRAError
from vlora_engine.utils.files import write_json
from vlora_engine.utils.reading import read_text
from vlora_tui.tui.text import clean, tilde
from vlora_tui.utils import paths

MAX_RECENT = 12


def place_words(address: str) -> str:
    """A place that is looked into: a path, the Hub's cache, or a search on the Hub."""
    if address.startswith(CACHE_PLACE):
        return "the Hub cache"
    if address.startswith(SEARCH_PLACE):
        return f"the Hub: adapters of {clean(address.removeprefix(SEARCH_PLACE))}"
    return tilde(address)


def places_of(paths: Sequence[str]) -> list[str]:
    """Where to look for these: several in one folder are that folder, a single one is itself."""
    beside = Counter(os.path.dirname(path) for path in paths)
    above = {path: os.path.dirname(path) for path in paths}
    return list(dict.fromkeys(above[p] if beside[above[p]] > 1 else p for p in paths))


def current_folder() -> str:
    """The folder that this process is in; empty where it is gone."""
    try:
        return os.getcwd()
    except OSError:
        return ""


def recent_folders() -> list[str]:
    """Folders that were opened before, the latest first, those that are still there."""
    try:
        folders = json.loads(read_text(paths.state_dir() / "recent.json"))
    except (OSError, ValueError, RecursionError):
        return []
    if not isinstance(folders, list):
        return []
    return [
        folder
        for folder in folders
        if isinstance(folder, str) and (is_hub_place(folder) or os.path.exists(folder))
    ]


def remember_folder(folder: str) -> None:
    """Put a folder at the head of the recent ones; a state directory that refuses is no matter."""
    folders = [folder, *(other for other in recent_folders() if other != folder)]
    with suppress(OSError, VLoRAError):
        paths.state_dir().mkdir(parents=True, exist_ok=True)
        write_json(paths.state_dir() / "recent.json", folders[:MAX_RECENT])
