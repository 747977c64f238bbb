"""The interface's side of the process that has torch imported and answers commands.

The process is started with the first command, and stays until the interface ends, whose end of the
socket closes however that happens. Idle it waits for a byte. Where it was killed it is started
again; where it does not answer at all it is killed, and the caller runs its command another way.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NamedTuple

POLL_SECONDS = 0.05
FIRST_SECONDS = 120.0  # for importing torch, on a slow disk
BEGIN_SECONDS = 20.0  # for a fork to begin
BACKGROUND = 10  # how nice a command is that nobody waits for

# On macOS a fork may not go on with the system's own libraries; Windows has none.
CAN_FORK = hasattr(os, "fork") and sys.platform != "darwin"


class Reply(NamedTuple):
    """What a command printed, and its exit code; None where it was ended by somebody else."""

    code: int | None
    stdout: str
    stderr: str


class NotBegunError(Exception):
    """No process took the command; it can be run another way."""


class WarmCommands:
    """Runs commands in forks of one warm process, any number at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._has_answered = False

    def run(
        self, words: Sequence[str], cancelled: Callable[[], bool], *, background: bool = False
    ) -> Reply | None:
        """Run ``vlora-tui WORDS``; None where it was cancelled, which kills it.

        Raises:
            NotBegunError: It was not begun.
        """
        if not CAN_FORK:
            raise NotBegunError
        for _ in range(2):  # the process may have been killed since the last command
            ours, theirs = socket.socketpair()
            with ours:
                with theirs:
                    self._hand_over(theirs)
                pid = self._begun(ours, cancelled)
                if pid is None:
                    return None
                if pid:
                    return _answer(ours, pid, words, cancelled, background)
        raise NotBegunError

    def close(self) -> None:
        """Let go of the process; it ends, and what it runs for others with it."""
        with self._lock:
            self._close()

    def kill(self) -> None:
        """End the process at once, for it does not answer."""
        with self._lock:
            if self._process is not None:
                self._process.kill()
            self._close()

    @property
    def pid(self) -> int | None:
        """The process's id, while there is one."""
        return None if self._process is None else self._process.pid

    def _hand_over(self, theirs: socket.socket) -> None:
        """Give the process the other end of a request's socket, starting it where need be."""
        with self._lock:
            for _ in range(2):
                if self._socket is None:
                    self._start()
                with suppress(OSError):
                    assert self._socket is not None  # noqa: S101  (just started)
                    socket.send_fds(self._socket, [b"c"], [theirs.fileno()])
                    return
                self._close()

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                process = subprocess.Popen(
                    [sys.executable, "-m", "vlora_tui.cli.answering", str(theirs.fileno())],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,  # a Ctrl-C at the terminal is not meant for it
                    pass_fds=(theirs.fileno(),),
                )
            except OSError:
                ours.close()
                raise NotBegunError from None
        self._process, self._socket, self._has_answered = process, ours, False
        threading.Thread(target=process.wait, name="warm commands", daemon=True).start()

    def _close(self) -> None:
        if self._socket is not None:
            self._socket.close()
        self._process = self._socket = None

    def _begun(self, ours: socket.socket, cancelled: Callable[[], bool]) -> int | None:
        """The id of the fork that has taken a request; 0 where none will; None: cancelled."""
        limit = time.monotonic() + (BEGIN_SECONDS if self._has_answered else FIRST_SECONDS)
        line = b""
        while not line.endswith(b"\n"):
            if cancelled():
                return None
            if not select.select([ours], [], [], POLL_SECONDS)[0]:
                if time.monotonic() > limit:
                    self.kill()
                    return 0
                continue
            try:
                more = ours.recv(64)
            except OSError:
                return 0
            if not more:
                return 0
            line += more
        self._has_answered = True
        return int(line)


WARM = WarmCommands()  # of this interface


def _answer(
    ours: socket.socket,
    pid: int,
    words: Sequence[str],
    cancelled: Callable[[], bool],
    background: bool,
) -> Reply | None:
    """Tell a fork its command and wait for what it prints."""
    request = {
        "words": list(words),
        "cwd": os.getcwd(),
        "environ": dict(os.environ),
        "nice": BACKGROUND if background else 0,
    }
    parts: list[bytes] = []
    try:
        ours.sendall(json.dumps(request).encode() + b"\n")
        while not parts or not parts[-1].endswith(b"\n"):
            if cancelled():
                with suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
                return None
            if not select.select([ours], [], [], POLL_SECONDS)[0]:
                continue
            more = ours.recv(1 << 20)
            if not more:
                return Reply(None, "", "")
            parts.append(more)
    except OSError:
        return Reply(None, "", "")
    row = json.loads(b"".join(parts))
    return Reply(int(row["code"]), str(row["stdout"]), str(row["stderr"]))
