"""The queue before a device: one job at a time each, small ones that measure before the others.

Otherwise they go in the order in which they were started. Somebody waits for a measurement with a
screen in front of him; a build takes longer, and nobody looks.

There is no scheduler: every waiting job looks for itself whether its turn has come, before it has
imported torch.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from vlora_engine.errors import Cancelled
from vlora_tui.jobs.identity import host_name
from vlora_tui.utils.locking import POLL_SECONDS, open_lock, try_lock

DEV = Path("/dev")
FIRST_NS = 10 * 365 * 86_400 * 10**9  # so far is the ticket of a job dated back that goes first


def device_key(device: str, environ: Mapping[str, str] = os.environ) -> str:
    """The device of this machine that a recipe's word means, told without torch.

    ``auto`` is taken for CUDA where the machine has a GPU: at worst two CPU jobs wait for each
    other. ``cuda:1`` is the second of CUDA_VISIBLE_DEVICES.
    """
    kind, _, index = device.partition(":")
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    shown = None if visible is None else [v.strip() for v in visible.split(",") if v.strip()]
    if kind == "auto":
        kind = "cuda" if shown not in ([], ["-1"]) and _has_gpu() else "cpu"
    if kind != "cuda":
        return kind
    number = int(index or 0)
    return f"cuda-{shown[number]}" if shown and number < len(shown) else f"cuda-{number}"


def devices(environ: Mapping[str, str] = os.environ) -> list[str]:
    """The words for the devices that this machine seems to have, told without torch."""
    found = ["auto", "cpu"]
    if device_key("auto", environ) != "cpu":
        many = len(list(DEV.glob("nvidia[0-9]*")))
        found += ["cuda", *(f"cuda:{n}" for n in range(many) if many > 1)]
    if sys.platform == "darwin":
        found.append("mps")
    return found


class DeviceQueue:
    """Who has a device of this machine, and who waits for it."""

    def __init__(self, state_dir: Path, device: str) -> None:
        stem = re.sub(r"[^\w.-]", "_", f"{host_name()}.{device}")
        self.lock = state_dir / "devices" / f"{stem}.lock"
        self.tickets = state_dir / "devices" / f"{stem}.queue"

    def enter(self, job: str, *, first: bool = False) -> None:
        """Stand at the end of the queue. Without a queue the jobs run together.

        Args:
            first: Before all that did not say so. The ticket is dated back for it, so that every
                process sees the same order.
        """
        with suppress(OSError):
            self.tickets.mkdir(parents=True, exist_ok=True, mode=0o700)
            ticket = self.tickets / job
            ticket.touch()
            if first:
                at = ticket.stat().st_mtime_ns - FIRST_NS
                os.utime(ticket, ns=(at, at))

    def is_free(self) -> bool:
        """Whether nobody has the device or waits for it, as far as a look can tell."""
        if self._in_order():
            return False
        try:
            descriptor = os.open(self.lock, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return True
        try:
            return try_lock(descriptor, shared=True)
        except OSError:
            return True
        finally:
            os.close(descriptor)

    def leave(self, job: str) -> None:
        """Wait no longer."""
        with suppress(OSError):
            (self.tickets / job).unlink()

    def ahead_of(self, job: str, is_alive: Callable[[str], bool]) -> list[str]:
        """The jobs that wait and came before; tickets of the dead are taken away."""
        ahead = []
        for name in self._in_order():
            if name == job:
                break
            if is_alive(name):
                ahead.append(name)
            else:
                self.leave(name)
        return ahead

    @contextmanager
    def turn(
        self,
        job: str,
        *,
        is_alive: Callable[[str], bool],
        cancelled: Callable[[], bool],
        waiting: Callable[[tuple[str, ...]], None],
        first: bool = False,
    ) -> Iterator[None]:
        """Have the device for as long as the block runs.

        Args:
            first: As for `enter`, which this does for a job that has not.
            waiting: Told the jobs ahead, whoever has the device first, whenever they change.

        Raises:
            Cancelled: ``cancelled()`` while waiting.
        """
        try:
            self.lock.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            descriptor = open_lock(self.lock)
        except OSError:
            yield  # nowhere to queue: rather together than not at all
            return
        try:
            if job not in self._in_order():
                self.enter(job, first=first)
            with suppress(OSError):  # a file system without locks
                self._wait(descriptor, job, is_alive, cancelled, waiting)
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, job.encode(), 0)
            self.leave(job)
            yield
        finally:
            self.leave(job)
            os.close(descriptor)

    def _wait(
        self,
        descriptor: int,
        job: str,
        is_alive: Callable[[str], bool],
        cancelled: Callable[[], bool],
        waiting: Callable[[tuple[str, ...]], None],
    ) -> None:
        reported: tuple[str, ...] = ()
        while True:
            ahead = self.ahead_of(job, is_alive)
            if not ahead and try_lock(descriptor):
                return
            if cancelled():
                raise Cancelled("Stopped as asked, before its turn came.")
            holder = os.pread(descriptor, 256, 0).decode("utf-8", "replace")
            first = [holder] if holder and is_alive(holder) else []
            now = tuple(dict.fromkeys([*first, *ahead]))
            if now != reported:
                waiting(now)
                reported = now
            time.sleep(POLL_SECONDS)

    def _in_order(self) -> list[str]:
        entries = []
        with suppress(OSError):
            for entry in os.scandir(self.tickets):
                with suppress(OSError):  # just taken away
                    entries.append((entry.stat().st_mtime_ns, entry.name))
        return [name for _, name in sorted(entries)]


def _has_gpu() -> bool:
    return any(DEV.glob("nvidia[0-9]*")) or (DEV / "kfd").exists() or (DEV / "dxg").exists()
