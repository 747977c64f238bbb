"""List the adapters in huggingface_hub's cache, without asking the Hub."""

from __future__ import annotations

import os
import re
from pathlib import Path

from vlora_engine.adapters.address import AdapterRef, hub_cache
from vlora_engine.hub.listing import adapter_folders

_COMMIT = re.compile(r"[0-9a-f]{40}")
_REPO = re.compile(r"models--([^/]+?)--(.+)")


def cached_adapters() -> list[AdapterRef]:
    """Every adapter and subspace in the cache, pinned to its commit, sorted.

    Of a repository of which several commits are there, each is listed.
    """
    found = []
    for folder in _folders(hub_cache()):
        match = _REPO.fullmatch(folder.name)
        if match is None:
            continue
        for snapshot in _folders(folder / "snapshots"):
            if _COMMIT.fullmatch(snapshot.name):
                repo = f"{match[1]}/{match[2]}"
                found += [
                    AdapterRef.of_repo(repo, snapshot.name, below)
                    for below in adapter_folders(_names_below(snapshot))
                ]
    return sorted(found, key=str)


def _names_below(folder: Path) -> list[str]:
    return [
        Path(root, name).relative_to(folder).as_posix()
        for root, _, names in os.walk(folder)
        for name in names
    ]


def _folders(path: Path) -> list[Path]:
    try:
        return sorted(Path(entry.path) for entry in os.scandir(path) if entry.is_dir())
    except OSError:
        return []
