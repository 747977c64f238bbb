"""The floats of a coded module, packed and read back."""

from __future__ import annotations

import numpy as np

from vlora_engine.codec.tables import Array

MODULE_HEAD = 10  # bytes of a module in its task's file: how many are coded, norm, error


def open_floats(raw: bytes, at: int, count: int, fine: bool = False) -> Array:
    """The inverse of `blobs.pack_floats`: (count,) in fp64."""
    width = 4 if fine else 3
    whole = np.zeros((count, 4), dtype=np.uint8)
    whole[:, 4 - width :] = np.frombuffer(raw, np.uint8, width * count, at).reshape(-1, width)
    return whole.reshape(-1).view("<f4").astype(np.float64)
