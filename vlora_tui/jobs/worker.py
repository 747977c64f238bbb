"""A warm worker: a process that has imported torch and waits to become the next job.

An interface may keep one while somebody is still choosing, so that the job begins at once. It
touches no device before it has a job. It ends with the interface, whose end of the socket closes
however that ends, or after five idle minutes.
"""

from __future__ import annotations

import importlib
import os
import select
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

from vlora_tui.jobs.joblock import JobLock
from vlora_tui.jobs.store import Job

IDLE_SECONDS = 300.0
ANSWER_SECONDS = 2.0
READY, TAKEN = b"r", b"t"


class WarmWorker:
    """The interface's side: `hand_over` makes the worker a job, after which it is used up."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "vlora_tui", "run", "--headless", "-"),
                    *("--warm", str(theirs.fileno())),
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                pass_fds=(theirs.fileno(),),
            )
        self._socket: socket.socket | None = ours
        self._ready = False
        threading.Thread(target=self.process.wait, name="warm worker", daemon=True).start()

    @property
    def is_ready(self) -> bool:
        """Whether it has imported all that it will need, and waits."""
        if self._socket is not None and not self._ready:
            self._ready = _answer(self._socket, 0.0) == READY
        return self._ready and self._socket is not None and self.process.poll() is None

    def hand_over(self, job: Job, lock: JobLock) -> bool:
        """Let the worker run the job; False where it cannot, and somebody else has to.

        It has said that it holds the lock by the time this returns True.
        """
        if not self.is_ready or self._socket is None:
            return False
        taken = False
        with suppress(OSError), job.log_path.open("ab") as log:
            descriptors = [lock.descriptor, log.fileno()]
            socket.send_fds(self._socket, [os.fsencode(job.folder)], descriptors)
            taken = _answer(self._socket, ANSWER_SECONDS) == TAKEN
        if not taken:
            self.process.kill()  # it must not wake up later and begin after all
        self.close()
        return taken

    def close(self) -> None:
        """Let go of the worker; one that still waits ends."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def wait_for_job(descriptor: int) -> tuple[Path, int] | None:
    """The worker's side: import, wait, become the job whose directory and lock come in.

    Returns:
        The job's directory and the descriptor of its lock; None where none came.
    """
    with socket.socket(fileno=descriptor) as theirs:
        theirs.set_inheritable(False)
        _import_all()
        with suppress(OSError):
            theirs.send(READY)
            if not select.select([theirs], [], [], IDLE_SECONDS)[0]:
                return None
            message, descriptors, *_ = socket.recv_fds(theirs, 65536, 2)
            if not message or len(descriptors) != 2:
                return None
            lock, log = descriptors
            folder = Path(os.fsdecode(message))
            os.set_inheritable(lock, False)
            for stream in (1, 2):
                os.dup2(log, stream)
            os.close(log)
            os.chdir(folder)
            theirs.send(TAKEN)
            return folder, lock
    return None


def _import_all() -> None:
    for module in (
        "vlora_tui.pipeline.run",
        "vlora_engine.compress.measure",
        "vlora_engine.compress.build",
    ):
        importlib.import_module(module)


def _answer(ours: socket.socket, seconds: float) -> bytes:
    with suppress(OSError):
        if select.select([ours], [], [], seconds)[0]:
            return ours.recv(1)
    return b""
