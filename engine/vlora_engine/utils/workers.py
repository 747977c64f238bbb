"""Ordered work in threads: as many items at a time as there are cores, and as memory holds."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from vlora_engine.errors import Cancelled
from vlora_engine.utils.memory import Room, return_free_blocks, return_large_blocks, room
from vlora_engine.utils.run_context import RunContext
from vlora_engine.utils.sizes import size

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
R = TypeVar("R")

logger = logging.getLogger(__name__)


def cores() -> int:
    """The number of processors that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1


def map_ordered(
    function: Callable[[T], R],
    items: Sequence[T],
    run: RunContext,
    *,
    stage: str,
    need: Callable[[T], int],
    device: torch.device | None = None,
    describe: Callable[[T], str] = str,
) -> Generator[R, None, None]:
    """Apply ``function`` to ``items`` in worker threads; yield the results in order.

    As many items are in progress as there are `cores` (and one that waits), and no more than memory
    holds. Every worker runs torch on one thread: results do not depend on how many workers there
    are. A caller that may stop before the end wraps the generator in ``contextlib.closing``: the
    workers then end at once, and not at garbage collection, which may run in one of them.

    Args:
        function: Called once for each item.
        items: What to work on.
        run: Told after each item, in order, and asked after each whether to stop.
        stage: The name of the work in progress reports.
        need: The bytes that work on an item holds at its peak, its result included.
        device: Where the items are held, if not in this machine's memory.
        describe: The detail of an item in progress reports.

    Raises:
        Cancelled: That was asked for; items under way are finished first.
        MemoryLimitError: Memory does not hold even one item; nothing was begun.
    """
    import torch

    return_large_blocks()
    return_free_blocks()
    needs = [need(item) for item in items]
    space = room(run.max_memory, device)
    if needs:
        largest = max(range(len(items)), key=needs.__getitem__)
        space.require(
            needs[largest], f"the step {stage!r}, even one at a time", describe(items[largest])
        )
    count = min(cores(), max(1, len(items)))
    _tell_if_few(run, stage, needs, count, space)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            pending: deque[Future[R]] = deque()
            begun = 0

            def begin(done: int) -> None:
                nonlocal begun
                while begun < len(items) and len(pending) <= count:
                    together = sum(needs[done : begun + 1])
                    if pending and space.nbytes is not None and together > space.nbytes:
                        return
                    pending.append(pool.submit(function, items[begun]))
                    begun += 1

            begin(0)
            for i, item in enumerate(items):
                result = pending.popleft().result()
                begin(i + 1)
                run.report(stage, i + 1, len(items), describe(item))
                yield result
                if run.is_cancelled() and i + 1 < len(items):
                    for future in pending:
                        future.cancel()
                    raise Cancelled(f"Stopped at {i + 1} of {len(items)} ({stage}).")
    finally:
        torch.set_num_threads(threads)


def at_a_time(needs: Sequence[int], count: int, nbytes: int | None) -> int:
    """How many of the largest items are held together: by the cores, or else by memory."""
    fit = count if nbytes is None else max(0, nbytes) // max([1, *needs])
    return max(1, min(count, fit))


def _tell_if_few(
    run: RunContext, stage: str, needs: Sequence[int], count: int, space: Room
) -> None:
    fit = at_a_time(needs, count, space.nbytes)
    if fit < count and space.nbytes is not None:
        text = (
            f"{stage}: {fit} at a time where {count} cores are free, as one needs up to "
            f"{size(max(needs))} and there are {size(space.nbytes)} ({space.words})"
        )
        logger.info("%s", text)
        run.remark(stage, len(needs), text)
