"""Identifies a process by host, boot, pid and start time, as pids are used again."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

PROC = Path("/proc")
TERMINAL_STREAMS = (0, 2, 1)  # stdout last: it may be a file


@dataclass(frozen=True)
class Identity:
    """One process among all that ever ran.

    Args:
        boot: What the kernel calls this boot; empty where it says nothing.
        started: When the process began, in the kernel's own words: compared, never computed with.
    """

    host: str
    boot: str
    pid: int
    started: str


@dataclass(frozen=True)
class Starter:
    """Who started a job: a process, and the terminal that it was started from.

    Args:
        tty: The terminal's device; empty where there was none.
    """

    identity: Identity
    tty: str = ""

    @property
    def is_this_process(self) -> bool:
        """Whether it was started by this very process, which for the interface is its window."""
        return self.identity == of_process(os.getpid())

    def words(self) -> str:
        """Where a job was started, for people; ``this window`` for this process."""
        identity = self.identity
        terminal = f", {self.tty}" if self.tty else ""
        if identity.host != host_name():
            return f"on {identity.host} (process {identity.pid}{terminal})"
        if self.is_this_process:
            return f"in this window (process {identity.pid}{terminal})"
        ended = "" if is_running(identity) else ", which has ended"
        where = "in another window" if self.tty else "without a terminal"
        return f"{where} (process {identity.pid}{terminal}{ended})"


def this_process() -> Starter | None:
    """This process as the one that starts a job; None where the system does not tell of it."""
    identity = of_process(os.getpid())
    return None if identity is None else Starter(identity, _terminal())


def _terminal() -> str:
    for stream in TERMINAL_STREAMS:
        with suppress(OSError):
            return os.ttyname(stream)
    return ""


def of_process(pid: int) -> Identity | None:
    """The identity of a process of this machine; None if there is none with this pid."""
    started = process_start(pid)
    return None if started is None else Identity(host_name(), boot_id(), pid, started)


def is_running(identity: Identity) -> bool:
    """Whether the very process is there, on this machine, in this boot."""
    return of_process(identity.pid) == identity


def send(identity: Identity, number: int) -> bool:
    """Send a signal if all that is known of the process matches; say whether it was sent."""
    if not is_running(identity):
        return False
    opener = getattr(os, "pidfd_open", None)
    with suppress(ProcessLookupError):
        if opener is None:
            os.kill(identity.pid, number)
            return True
        with suppress(OSError):  # a kernel without pidfd
            descriptor = opener(identity.pid)
            try:  # what the descriptor means cannot change between this look and the signal
                if not is_running(identity):
                    return False
                signal.pidfd_send_signal(descriptor, number)
                return True
            finally:
                os.close(descriptor)
        os.kill(identity.pid, number)
        return True
    return False


def resident_bytes(identity: Identity) -> int | None:
    """The memory that the process holds now; None where the system does not say."""
    if not is_running(identity):
        return None
    with suppress(OSError, ValueError):
        for line in (PROC / str(identity.pid) / "status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
    return None


@cache
def host_name() -> str:
    """This machine's name."""
    return socket.gethostname()


@cache
def boot_id() -> str:
    """What tells this boot of this machine from all others."""
    with suppress(OSError):
        return (PROC / "sys/kernel/random/boot_id").read_text().strip()
    if sys.platform == "darwin":
        return _output_of("sysctl", "-n", "kern.bootsessionuuid")
    return ""


def process_start(pid: int) -> str | None:
    """When the process began, as the kernel counts; None if it is not there."""
    if sys.platform == "darwin":
        return _output_of("ps", "-o", "lstart=", "-p", str(pid)) or None
    try:
        stat = (PROC / str(pid) / "stat").read_text("utf-8", "replace")
    except OSError:
        return None
    # Field 2, the command's name, may hold spaces and brackets; starttime is field 22.
    return stat.rpartition(")")[2].split()[19]


def _output_of(*command: str) -> str:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=5, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
