"""How long pieces of work say how far they are, and how they are asked to stop."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from vlora_engine.errors import Cancelled

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Progress:
    """One step of a stage: ``done`` of ``total`` units, and what was just finished."""

    stage: str
    done: int
    total: int
    detail: str = ""


ProgressCallback = Callable[[Progress], None]
CancelCheck = Callable[[], bool]


def cores() -> int:
    """The processors this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1


def map_ordered(
    function: Callable[[T], R],
    items: Sequence[T],
    *,
    stage: str,
    describe: Callable[[T], str] = str,
    progress: ProgressCallback | None = None,
    cancelled: CancelCheck | None = None,
    workers: int | None = None,
) -> Generator[R, None, None]:
    """Apply ``function`` to ``items`` in worker threads; yield the results in order.

    At most ``workers + 1`` items are in the air, so memory is bounded by a few of them. Every
    worker runs torch on one thread: results do not depend on how many workers there are. Who may
    leave before the end closes the generator (``contextlib.closing``): the workers end then, and
    not when the garbage is collected, which may be in one of them.

    Raises:
        Cancelled: ``cancelled()`` became true; items under way are finished first.
    """
    import torch

    count = min(workers or cores(), max(1, len(items)))
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            waiting = [pool.submit(function, item) for item in items[: count + 1]]
            for i, item in enumerate(items):
                result = waiting.pop(0).result()
                if i + count + 1 < len(items):
                    waiting.append(pool.submit(function, items[i + count + 1]))
                if progress is not None:
                    progress(Progress(stage, i + 1, len(items), describe(item)))
                yield result
                if cancelled is not None and cancelled() and i + 1 < len(items):
                    for future in waiting:
                        future.cancel()
                    raise Cancelled(f"Stopped at {i + 1} of {len(items)} ({stage}).")
    finally:
        torch.set_num_threads(before)
