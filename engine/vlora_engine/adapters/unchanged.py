"""Notice that an adapter's files were changed while they were being read.

A file that is written over in its place, cut off or replaced during the work gives a mixture of two
adapters that no checksum knows. So what the system says of each file when the adapter is opened is
compared with what it says at the end, before anything of the result is published.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vlora_engine.errors import ConflictError

# Device, inode, size, and the times of the last change of content and of anything about it (ns).
FileState = tuple[int, int, int, int, int]


def file_states(*paths: Path) -> dict[Path, FileState | None]:
    """What the system says of these files now; None of one that is not there."""
    return {path: _state(path) for path in paths}


def require_unchanged(sources: Iterable[Any]) -> None:
    """Refuse to go on where a file of ``sources`` is not the one that was opened.

    Of those that have no ``files`` (see `file_states`), in memory, nothing can have changed.

    Raises:
        ConflictError: A file was written, replaced or removed meanwhile; it is named.
    """
    for source in sources:
        opened: Mapping[Path, FileState | None] = getattr(source, "files", {})
        for path, before in opened.items():
            now = _state(path)
            if now != before:
                raise ConflictError(
                    "An adapter was changed while it was read; nothing was written.",
                    where=path,
                    expected="the file as it was when the work began",
                    found=_difference(before, now),
                    remedy="wait until whatever writes it is done, and run the same again",
                    adapter=str(source.path or ""),
                )


def _state(path: Path) -> FileState | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    changed = (status.st_mtime_ns, status.st_ctime_ns)
    return status.st_dev, status.st_ino, status.st_size, *changed


def _difference(before: FileState | None, now: FileState | None) -> str:
    if now is None:
        return "no file any more"
    if before is None or before[:2] != now[:2]:
        return "another file in its place"
    if before[2] != now[2]:
        return f"{now[2]} bytes instead of {before[2]}"
    return "the file was written to"
