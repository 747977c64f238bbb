"""When an application has done all that was asked of it, told without a length of time.

Textual's own answer, for every key that a test presses, is that the process used next to no CPU
for two times 20 ms: an idle machine waits for nothing, and a busy one may be taken for done. Here
the event loop is asked: nothing is ready to run, no timer is due within a moment, and no worker
computes in a thread.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections import deque
from contextlib import suppress
from time import monotonic, process_time
from typing import Any

from textual._context import active_app
from textual.app import App

SOON = 0.02  # a timer that is due so soon belongs to what was asked
SLICE = 0.001
WINDOW, IDLE = 0.02, 0.001  # a thread that used so little CPU in so long waits for something
PATIENCE = 10.0  # for what threads compute, however busy the machine is
FRAME = 0.001  # between two looks whether something is to be painted; 1/60 outside of tests


async def wait_for_idle(min_sleep: float = 0.0, max_sleep: float = 1.0, soon: float = SOON) -> None:
    """Return once nothing is left to do; after ``max_sleep`` at the latest if no thread works."""
    loop: Any = asyncio.get_running_loop()
    begun = monotonic()
    used: deque[tuple[float, float]] = deque([(begun, process_time())])
    empty = 0
    while (now := monotonic()) < begun + (PATIENCE if _threads_at_work() else max_sleep):
        await asyncio.sleep(0)
        if loop._ready:
            empty = 0
            continue
        empty += 1
        if empty < 3:
            continue
        due = min((t.when() for t in loop._scheduled if not t.cancelled()), default=float("inf"))
        wait = due - loop.time()
        if wait <= soon:
            await asyncio.sleep(max(wait, 0))
            empty = 0
        elif not _threads_at_work():
            return
        else:
            used.append((now, process_time()))
            while len(used) > 1 and used[1][0] <= now - WINDOW:
                used.popleft()
            idle = now - used[0][0] >= WINDOW and used[-1][1] - used[0][1] < IDLE
            if idle and not _others_want_to_run():
                return
            await asyncio.sleep(SLICE)


def _threads_at_work() -> bool:
    app: App[Any] | None = active_app.get(None)
    return app is not None and any(
        worker._thread_worker and not worker.is_finished for worker in app.workers
    )


def _others_want_to_run() -> bool:
    """Whether another thread of this process could run, and only the machine keeps it waiting."""
    with suppress(OSError):
        for name in os.listdir("/proc/self/task"):
            if int(name) == threading.get_native_id():
                continue
            with suppress(OSError), open(f"/proc/self/task/{name}/stat") as file:
                if file.read().rpartition(")")[2].split()[0] == "R":
                    return True
    return False
