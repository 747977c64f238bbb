"""Where this program keeps what it keeps: the XDG places, one function each."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

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
