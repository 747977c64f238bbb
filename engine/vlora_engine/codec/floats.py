"""Read the packed floats of a coded module."""

from __future__ import annotations

import numpy as np

from vlora_engine.codec.tables import Array
from vlora_engine.errors import CorruptFileError

MODULE_HEAD = 10  # bytes before a module's in its task's file: coded bytes, norm, error


def unsound(
    what: str, found: str, expected: str = "the bytes that were written"
) -> CorruptFileError:
    """The error for coded bytes that are not what was written."""
    return CorruptFileError(
        what,
        expected=expected,
        found=found,
        remedy="restore the file from a copy, or compress the adapters again",
    )


def open_floats(raw: bytes, at: int, count: int, fine: bool = False) -> Array:
    """Unpack floats that `blobs.pack_floats` packed: (count,) in fp64.

    Args:
        raw: The module's bytes.
        at: Where the floats begin.
        count: How many there are.
        fine: Four bytes each, not three.

    Raises:
        ValueError: Too few bytes.
    """
    width = 4 if fine else 3
    whole = np.zeros((count, 4), dtype=np.uint8)
    whole[:, 4 - width :] = np.frombuffer(raw, np.uint8, width * count, at).reshape(-1, width)
    return whole.reshape(-1).view("<f4").astype(np.float64)
