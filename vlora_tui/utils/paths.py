"""Where this program keeps what it keeps: the XDG places, one function each."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from vlora_engine import __version__

APP = "vlora-tui"
CACHE_BYTES = 4_000_000_000


def cache_dir() -> Path:
    """What can be made again: spectra of collections."""
    import platformdirs

    return Path(platformdirs.user_cache_dir(APP, appauthor=False))


def state_dir() -> Path:
    """What jobs leave behind."""
    import platformdirs

    return Path(platformdirs.user_state_dir(APP, appauthor=False))


def spectra_root() -> Path:
    """Where the spectra of all collections are cached."""
    return cache_dir() / "spectra"


def spectra_dir(adapters: Iterable[tuple[str, Sequence[object]]], methods: Sequence[str]) -> Path:
    """The cached spectra of a collection: the same inputs under the same names, the same folder.

    Args:
        adapters: Per adapter its task name and its identity (size, mtime, header digest).
        methods: The methods that the spectra cover.
    """
    lines = sorted(f"{name}\0{[str(part) for part in identity]}" for name, identity in adapters)
    text = "\n".join([__version__, *sorted(methods), *lines])
    key = hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:24]
    return spectra_root() / key


def make_room(cache: Path, limit: int = CACHE_BYTES) -> bool:
    """Delete the oldest folders of a cache until ``limit`` is kept; False where it is no use."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
        if not os.access(cache, os.W_OK | os.X_OK):
            return False
        folders = sorted(cache.iterdir(), key=lambda folder: folder.stat().st_mtime, reverse=True)
        total = 0
        for folder in folders:
            total += sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
            if total > limit:
                shutil.rmtree(folder, ignore_errors=True)
    except OSError:
        return False
    return True
