"""The lock of a job: who runs it, and that he still does.

The file holds one record of fixed size that is written over in place, so that a heartbeat, and the
word with which the job ended, find room on a disk that is full.
"""

from __future__ import annotations

import json
import os
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

from vlora_engine.errors import CorruptFileError, InputError, StorageError
from vlora_engine.utils.json_reader import JsonFile, JsonValue
from vlora_tui.jobs.identity import Identity, boot_id, host_name, is_running, of_process
from vlora_tui.utils.locking import open_lock, try_lock

HEARTBEAT_SECONDS = 10.0
SILENT_SECONDS = 60.0  # of another machine's job: so long without a heartbeat is worth a word
RECORD_BYTES = 1024
PATIENCE_SECONDS = 2.0  # whoever looks at a lock holds it for some microseconds


class JobRunningError(InputError):
    """The job runs already, or somebody is just starting or removing it."""


@dataclass(frozen=True)
class LockState:
    """What a lock file tells.

    Args:
        held: Some process holds the lock.
        identity: Who held it last; None until the process can hear signals.
        heartbeat: When it last said that it lives, in seconds since 1970.
        ended: The type of its last event, once it is through.
    """

    held: bool
    identity: Identity | None = None
    heartbeat: float | None = None
    ended: str = ""

    @property
    def is_here(self) -> bool:
        """Whether the holder belongs to this machine, so that the lock itself can be believed."""
        identity = self.identity
        if identity is None:
            return True
        return identity.boot == boot_id() if identity.boot else identity.host == host_name()

    @property
    def can_be_signalled(self) -> bool:
        """Whether the holder is a process of this machine that is there, by all its marks."""
        return self.held and self.identity is not None and is_running(self.identity)


def probe(path: Path) -> LockState:
    """Look at a lock without disturbing who holds it."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return LockState(held=False)
    try:
        try:
            held = not try_lock(descriptor, shared=True)
        except OSError:
            held = False
        return _parse(os.pread(descriptor, RECORD_BYTES, 0), held)
    finally:
        os.close(descriptor)


class JobLock:
    """A job's lock while this process holds it.

    The process that starts a job takes the lock and hands it down to the job's process: there is
    no moment at which the job is there and nobody holds it.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._identity: Identity | None = None
        self._ended = ""
        self._done = threading.Event()
        self._beating: threading.Thread | None = None

    @classmethod
    def take(cls, path: Path, *, inherited: int | None = None) -> JobLock:
        """Take the lock, or the one that was handed down.

        Raises:
            JobRunningError: Another process holds it.
            StorageError: The file system cannot lock files.
        """
        try:
            if inherited is not None and _is_file(inherited, path):
                os.set_inheritable(inherited, False)
                return cls(inherited)
            descriptor = open_lock(path)
            end = time.monotonic() + PATIENCE_SECONDS
            while not try_lock(descriptor):
                if time.monotonic() > end:
                    os.close(descriptor)
                    raise JobRunningError("The job runs already.", where=path.parent)
                time.sleep(0.01)
        except OSError as error:
            raise StorageError(
                f"The job's lock cannot be taken: {error.strerror or error}.",
                where=path,
                remedy="name a state directory on a file system that locks files: --state-dir DIR",
            ) from None
        return cls(descriptor)

    def clear(self) -> None:
        """Forget who held the lock before."""
        with suppress(OSError):
            os.ftruncate(self.descriptor, 0)
            os.pwrite(self.descriptor, b" " * RECORD_BYTES, 0)

    def publish(self) -> None:
        """Write who this process is, now and with every heartbeat. Signals must be heard by now."""
        self._identity = of_process(os.getpid())
        self.beat()
        self._beating = threading.Thread(target=self._keep_beating, name="heartbeat", daemon=True)
        self._beating.start()

    def beat(self) -> None:
        """Say that the process lives."""
        if self._identity is not None:
            row = {**asdict(self._identity), "heartbeat": round(time.time(), 3)}
            record = json.dumps({**row, "ended": self._ended}).encode()
            with suppress(OSError):
                os.pwrite(self.descriptor, record.ljust(RECORD_BYTES), 0)

    def end(self, word: str) -> None:
        """Write how the job ended: the events may have found no room."""
        self._ended = word
        self.beat()

    def release(self) -> None:
        """Let go."""
        self._done.set()
        if self._beating is not None:
            self._beating.join()
        os.close(self.descriptor)

    def __enter__(self) -> JobLock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self.release()

    def _keep_beating(self) -> None:
        while not self._done.wait(HEARTBEAT_SECONDS):
            self.beat()


def _is_file(descriptor: int, path: Path) -> bool:
    """Whether a number from the command line is really a descriptor of this file."""
    with suppress(OSError):
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    return False


def _parse(raw: bytes, held: bool) -> LockState:
    try:
        row = JsonFile("lock", "The lock cannot be read.").parse(raw).object()
        pid, started = row["pid"].natural(), row["started"].text()
        identity = Identity(row["host"].text(), row["boot"].text(), pid, started)
        beat, ended = row["heartbeat"].number(), row.read("ended", JsonValue.text, "")
    except CorruptFileError:
        return LockState(held)
    return LockState(held, identity, beat, ended)
