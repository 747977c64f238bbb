"""How much memory work may take, and how resident memory is kept close to what is in use.

A limit is of the whole process: what it holds before any work counts, too.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from vlora_engine.errors import MemoryLimitError
from vlora_engine.utils.sizes import parse_bytes, size

if TYPE_CHECKING:
    import torch

VARIABLE = "VLORA_MAX_MEMORY"  # the limit of this process and of those that it starts
SHARE = 0.75  # of the memory that is available, where nobody names a limit
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_BLOCK = 4 << 20
_BETWEEN = 64 << 20  # what a process holds more of in its later steps: libraries, results
_NO_LIMIT = 1 << 60  # version 1 of control groups writes about 2^63 where there is none


@dataclass(frozen=True)
class Room:
    """The memory that work may still take.

    Args:
        nbytes: What it should keep to; None where the system does not say.
        most: What it must not exceed, even for the least that it can do.
        words: Where the figures come from.
    """

    nbytes: int | None
    most: int | None
    words: str

    def require(self, need: int, what: str, where: str = "") -> None:
        """Refuse what does not fit.

        Raises:
            MemoryLimitError: It needs more than there is.
        """
        if self.most is None or need <= self.most:
            return
        before = held()
        raise MemoryLimitError(
            f"There is too little memory for {what}.",
            where=where or None,
            expected=f"about {size(need)}, beside the {size(before)} that this process holds",
            found=f"{size(max(0, self.most))} ({self.words})",
            remedy=f"allow at least {size(need + before + _BETWEEN)} (--max-memory, or {VARIABLE}; "
            "a later step may need more), or take fewer adapters",
        )


def limit() -> int | None:
    """The limit of this process in bytes, out of `VARIABLE`; None where nobody set one.

    Raises:
        ParameterError: The variable holds no size.
    """
    text = os.environ.get(VARIABLE)
    return parse_bytes(text) if text else None


def smaller(first: int | None, second: int | None) -> int | None:
    """The smaller of two limits; None where there is none."""
    return min((n for n in (first, second) if n is not None), default=None)


@contextmanager
def limited(nbytes: int | None) -> Iterator[None]:
    """Hold this process, and those that it starts meanwhile, to a limit; the smaller of two counts.

    Args:
        nbytes: None changes nothing.
    """
    before = os.environ.get(VARIABLE)
    if nbytes is not None:
        os.environ[VARIABLE] = str(smaller(nbytes, limit()))
    try:
        yield
    finally:
        if nbytes is not None:
            os.environ.pop(VARIABLE)
            if before is not None:
                os.environ[VARIABLE] = before


def room(max_memory: int | None = None, device: torch.device | None = None) -> Room:
    """What work may still take: of a limit what this process does not hold, else a share of what
    the system has left.

    Args:
        max_memory: A limit of this work, beside that of the process.
        device: Where it computes: of a GPU its own memory counts as well.
    """
    most = smaller(max_memory, limit())
    if most is not None:
        left = most - held()
        found = Room(left, left, f"what is left of {size(most)}")
    elif (free := available()) is not None:
        found = Room(int(SHARE * free), free, f"what is available of this machine's, {size(free)}")
    else:
        found = Room(None, None, "")
    if device is None or device.type != "cuda":
        return found
    import torch

    free = smaller(torch.cuda.mem_get_info(device)[0], most) or 0
    if found.most is not None and found.most <= free:
        return found
    return Room(int(SHARE * free), free, f"what is left on {device}")


def held() -> int:
    """The resident memory of this process in bytes: now, or at its peak where that is not told."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        pass
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def available(root: Path = Path("/")) -> int | None:
    """The bytes that this process could still take without others giving way; None: unknown.

    Of the memory of the machine, and of every control group that this process is in.
    """
    found = [_left_on_machine(root), *_left_in_groups(root)]
    known = [nbytes for nbytes in found if nbytes is not None]
    return min(known) if known else None


def _left_on_machine(root: Path) -> int | None:
    try:
        for line in (root / "proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, AttributeError):
        return None


def _left_in_groups(root: Path) -> Iterator[int]:
    """What is left in each control group, version 2 or 1, and in those above it."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers:
            mount, files = root / "sys/fs/cgroup", ("memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            mount = root / "sys/fs/cgroup/memory"
            files = ("memory.limit_in_bytes", "memory.usage_in_bytes")
        else:
            continue
        place = mount / path.lstrip("/")
        # In a container the path may be that outside of it; the mount is then its own group.
        for group in [mount, place, *(p for p in place.parents if mount in p.parents)]:
            left = _left_in(group, *files)
            if left is not None:
                yield left


def _left_in(group: Path, limit_file: str, usage_file: str) -> int | None:
    try:
        most = int((group / limit_file).read_text())  # "max" is no number
        used = int((group / usage_file).read_text())
        stat = (group / "memory.stat").read_text().split()
    except (OSError, ValueError):
        return None
    if most >= _NO_LIMIT:
        return None
    rows = dict(zip(stat[::2], stat[1::2], strict=False))
    # Files that were read count as used until the memory is wanted.
    given_back = rows.get("total_inactive_file", rows.get("inactive_file", "0"))
    return max(0, most - used + int(given_back))


@cache
def return_large_blocks() -> None:
    """Have glibc give blocks of 4 MiB and more back to the system as soon as they are freed.

    glibc's threshold grows with what a program frees, up to 32 MiB, and blocks below it stay in the
    arena of the thread that used them: eight layers of 100 adapters then hold 1.8 GB where
    0.8 GB are in use. Does nothing with another C library.
    """
    libc = _glibc()
    if libc is not None:
        libc.mallopt(_M_MMAP_THRESHOLD, _BLOCK)
        libc.mallopt(_M_TRIM_THRESHOLD, _BLOCK)


def return_free_blocks() -> None:
    """Have glibc give back what threads that ended left free; nothing with another C library."""
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)


@cache
def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    try:
        libc = ctypes.CDLL("libc.so.6")
        _ = libc.mallopt, libc.malloc_trim
    except (OSError, AttributeError):
        return None  # another C library, which has its own way
    return libc
