"""Where the adapter of a task came from, as a subspace tells it and as it holds here."""

from __future__ import annotations

import os
from pathlib import Path

from vlora_engine.hub.address import address_of, is_address, parse_address


def relative_source(path: str | Path | None, out: Path) -> str | None:
    """Where a source lies, seen from the directory that holds the subspace; never absolute.

    What came from the Hub is named by its address and commit, which hold on every machine.
    """
    if path is None or not str(path):
        return None
    if is_address(path):
        return str(parse_address(path))
    address = address_of(path)
    if address is not None:
        return str(address)
    return Path(os.path.relpath(Path(path).absolute(), out.absolute().parent)).as_posix()


def absolute_source(source: str | None, home: Path) -> str | None:
    """The same as it holds here, for the subspace in the directory ``home``."""
    if source is None or is_address(source):
        return source
    return os.path.normpath(home.absolute().parent / source)
