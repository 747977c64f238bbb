"""Count what a process does to the disk, and let the n-th of it end, fail, stop or fall short."""

from __future__ import annotations

import builtins
import errno
import io
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import vlora_engine.utils.outputs as outputs_module

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
KILLED = 137
# One path or more, by name or by number, that the call changes.
CALLS = (
    "rename", "replace", "mkdir", "unlink", "remove", "rmdir", "fsync", "ftruncate", "truncate",
    "link", "symlink", "write", "chmod", "utime",
)  # fmt: skip


class Faults:
    """Operations on the disk below some roots, counted from 1; ``act`` says what the n-th does.

    Args:
        act: "count"; "kill" ends the process at once, a write half done; "stop" halts it; "short"
            writes half; a name of errno fails, and with "!" so does everything after it.
    """

    def __init__(self, *roots: Path, act: str = "count", at: int = 0) -> None:
        self.roots, self.at, self.count = tuple(str(root) for root in roots), at, 0
        self.act, self.lasts = act.rstrip("!"), act.endswith("!")
        self._descriptors: set[int] = set()

    def install(self) -> None:
        """Put the counting calls into the place of the system's; for the rest of the process."""
        for name in CALLS:
            setattr(os, name, self._counted(getattr(os, name), name))
        os.open = self._opened(os.open)  # type: ignore[assignment]
        plain = io.open
        io.open = builtins.open = self._file_opened(plain)  # type: ignore[assignment]
        offered = outputs_module.exchange
        if offered.__module__ == "vlora_engine.utils.exchange":
            outputs_module.exchange = self._counted(offered, "exchange")  # type: ignore[assignment]

    def strike(self, *, writes: bool = False) -> bool:
        """Count one operation; True if it is to be done by half."""
        self.count += 1
        if self.count < self.at or (self.count > self.at and not self.lasts) or not self.at:
            return False
        if self.act == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
            return False
        if self.act in ("kill", "short"):
            if self.act == "kill" and not writes:
                os._exit(KILLED)
            return writes
        number = getattr(errno, self.act)
        raise OSError(number, os.strerror(number))

    def _is_below(self, place: Any, options: dict[str, Any]) -> bool:
        if isinstance(place, int):
            return place in self._descriptors
        if options.get("dir_fd") is not None or options.get("src_dir_fd") is not None:
            return True
        return os.path.abspath(os.fsdecode(place)).startswith(self.roots)

    def _counted(self, call: Callable[..., Any], name: str) -> Callable[..., Any]:
        def counted(place: Any, *rest: Any, **options: Any) -> Any:
            if self._is_below(place, options) and self.strike(writes=name == "write"):
                done = call(place, rest[0][: len(rest[0]) // 2])
                if self.act == "kill":
                    os._exit(KILLED)
                return done
            return call(place, *rest, **options)

        return counted

    def _opened(self, call: Callable[..., int]) -> Callable[..., int]:
        def opened(place: Any, flags: int, *rest: Any, **options: Any) -> int:
            below = self._is_below(place, options) and bool(flags & WRITING)
            if below:
                self.strike()
            descriptor = call(place, flags, *rest, **options)
            (self._descriptors.add if below else self._descriptors.discard)(descriptor)
            return descriptor

        return opened

    def _file_opened(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def opened(
            place: Any,
            mode: str = "r",
            buffering: int = -1,
            encoding: str | None = None,
            errors: str | None = None,
            newline: str | None = None,
            closefd: bool = True,
            opener: Any = None,
        ) -> Any:
            below = set(mode) & set("wax+") and self._is_below(place, {})
            if not below or opener is not None:
                return call(place, mode, buffering, encoding, errors, newline, closefd, opener)
            if not isinstance(place, int):
                self.strike()
            raw = _CountedFile(self, place, mode.replace("b", "").replace("t", ""), closefd)
            self._descriptors.add(raw.fileno())
            if buffering == 0:
                return raw
            buffered = (io.BufferedRandom if "+" in mode else io.BufferedWriter)(raw)
            return (
                buffered if "b" in mode else io.TextIOWrapper(buffered, encoding, errors, newline)
            )

        return opened


class _CountedFile(io.FileIO):
    def __init__(self, faults: Faults, place: Any, mode: str, closefd: bool) -> None:
        self._faults = faults
        super().__init__(os.fspath(place) if not isinstance(place, int) else place, mode, closefd)

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        if self._faults.strike(writes=True):
            done = super().write(view[: max(1, len(view) // 2)])
            if self._faults.act == "kill":
                os._exit(KILLED)
            return done
        return super().write(view)
