"""Ordered work in threads, as many as there are cores."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from vlora_engine.errors import Cancelled
from vlora_engine.utils.run_context import RunContext

T = TypeVar("T")
R = TypeVar("R")


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
    describe: Callable[[T], str] = str,
) -> Generator[R, None, None]:
    """Apply ``function`` to ``items`` in worker threads; yield the results in order.

    At most one item more than there are `cores` is in progress, so memory is bounded by a few of
    them. Every worker runs torch on one thread: results do not depend on how many workers there
    are. A caller that may stop before the end wraps the generator in ``contextlib.closing``: the
    workers then end at once, and not at garbage collection, which may run in one of them.

    Args:
        function: Called once for each item.
        items: What to work on.
        run: Told after each item, in order, and asked after each whether to stop.
        stage: The name of the work in progress reports.
        describe: The detail of an item in progress reports.

    Raises:
        Cancelled: That was asked for; items under way are finished first.
    """
    import torch

    count = min(cores(), max(1, len(items)))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            pending = [pool.submit(function, item) for item in items[: count + 1]]
            for i, item in enumerate(items):
                result = pending.pop(0).result()
                if i + count + 1 < len(items):
                    pending.append(pool.submit(function, items[i + count + 1]))
                run.report(stage, i + 1, len(items), describe(item))
                yield result
                if run.is_cancelled() and i + 1 < len(items):
                    for future in pending:
                        future.cancel()
                    raise Cancelled(f"Stopped at {i + 1} of {len(items)} ({stage}).")
    finally:
        torch.set_num_threads(threads)
