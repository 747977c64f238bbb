"""The entropy coder's loops in compiled code, where numba is installed (extra ``[fast]``).

The bytes are the same as with NumPy, so that either reads what the other wrote, and one may take
over from the other at any matrix. That is what happens: numba takes a third of a second to import
and, the first time, some seconds to compile (it keeps the result beside this file, or in the user's
cache). NumPy begins, and the loops are loaded once a process has coded as much as pays for that.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np

from vlora_engine.codec import loops
from vlora_engine.codec.tables import Array, models

logger = logging.getLogger(__name__)

PAYS_OFF = 4_000_000  # numbers that NumPy codes while numba is loaded

# What each loop takes. Of arrays: C-contiguous, with the dimensions given; "!" may be read-only.
_SIGNATURES = {
    loops.row_sums: "i4[2]! i8[1] i8[1]",
    loops.find_symbols: "i4[2]! i8[1] u1[1] i8 i8 i8 u1[1] i8[1] i4[2] u2[1] u1[1]",
    loops.encode_lanes: "u2[1] i8[1] u4[1] f8[1] u4[1] u2[1] u2[1]",
    loops.pack_rest: "i4[2]! i8[1] u1[1] u1[1] u4[1]",
    loops.decode_lanes: (
        "i8[1] i8 i8 i8 u1[1] u1[1] u4[1] i8[1] u2[1] u4[1] u1[1] u1[1] i8[1] u1[1]"
    ),
    loops.join_magnitudes: "u1[1] i8[1] u1[1]! u4[1] i4[2]",
    loops.set_signs: "u1[1] i4[1]",
}


@dataclass(frozen=True)
class Loops:
    """The loops of `vlora_engine.codec.loops`, compiled; they run without Python's lock."""

    row_sums: Callable[..., Any]
    find_symbols: Callable[..., Any]
    encode_lanes: Callable[..., Any]
    pack_rest: Callable[..., Any]
    decode_lanes: Callable[..., Any]
    join_magnitudes: Callable[..., Any]
    set_signs: Callable[..., Any]


@dataclass(frozen=True)
class Tables:
    """The models in the form that the loops read; see there."""

    contexts: int
    code: Array
    inverse: Array
    symbol: Array
    context: Array
    starts: Array
    cost: Array


@cache
def tables() -> Tables:
    """The models in the form that the loops read."""
    table = models()
    return Tables(
        contexts=table.contexts,
        code=(table.frequency << np.uint32(16) | table.first).ravel(),
        # A quotient of a state and a frequency is below 2^18, and 2^-14 away from the next integer:
        # with this much more than 1 / f it never gets there, and is never rounded to the one below.
        inverse=((1 + 2.0**-40) / table.frequency).ravel(),
        symbol=table.symbol,
        context=table.context,
        starts=table.starts.astype(np.int64),
        cost=table.cost.reshape(table.shapes, -1),
    )


class Loader:
    """Loads the loops when that pays off, once in a process."""

    def __init__(self) -> None:
        self._lock, self._numbers, self._tried = threading.Lock(), 0, False
        self._loops: Loops | None = None

    def loops(self, numbers: int) -> Loops | None:
        """What codes so many numbers: the loops, or None for NumPy."""
        if not self._tried:
            self._numbers += numbers
            if self._numbers >= PAYS_OFF:
                self.load()
        return self._loops

    def load(self) -> Loops | None:
        """Load the loops now; None where there is no numba, or another thread is loading them."""
        if not self._tried and self._lock.acquire(blocking=False):
            try:
                self._loops = self._loops or _load()
                self._tried = True
            finally:
                self._lock.release()
        return self._loops


loader = Loader()


def is_installed() -> bool:
    """Whether there is a numba that may be used; its own NUMBA_DISABLE_JIT=1 turns it off."""
    if os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0"):
        return False
    try:
        return find_spec("numba") is not None
    except ValueError:  # a module in its place that does not say where it comes from
        return False


def _load() -> Loops | None:
    if not is_installed():
        return None
    try:
        return _compiled(kept=True)
    except Exception as reason:  # most often there is no place where the result can be kept
        logger.info("numba compiles the entropy coder without keeping it: %s", reason)
    try:
        return _compiled(kept=False)
    except Exception as reason:
        logger.warning("numba cannot be used, NumPy codes instead (slower): %s", reason)
    return None


def _compiled(*, kept: bool) -> Loops:
    import numba

    compiler: Any = numba.njit  # typed for other functions than these
    made = {}
    for function, text in _SIGNATURES.items():
        signature = tuple(_type_of(part) for part in text.split())
        made[function.__name__] = compiler(signature, nogil=True, cache=kept)(function)
    return Loops(**made)


def _type_of(text: str) -> Any:
    """The type of an argument, such as ``i8``, or ``u1[1]!`` for a read-only vector of bytes."""
    from numba import types

    names = {"i4": "int32", "i8": "int64", "u1": "uint8", "u2": "uint16", "u4": "uint32"}
    scalar = getattr(types, {**names, "f8": "float64"}[text[:2]])
    if len(text) == 2:
        return scalar
    return types.Array(scalar, int(text[3]), "C", readonly=text.endswith("!"))
