"""Runs a command of our own in another process, for what needs weights; returns its JSON."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from vlora_engine.errors import StorageError, VLoRAError
from vlora_engine.utils.json_reader import JsonFile, JsonObject
from vlora_tui.tui.core.warm_commands import WARM, NotBegunError, Reply

POLL_SECONDS = 0.1


def ask_command(
    arguments: Sequence[str],
    cancelled: Callable[[], bool] = lambda: False,
    *,
    background: bool = False,
) -> dict[str, Any] | None:
    """Run ``vlora-tui ARGUMENTS --json``; what it printed, or None where it was cancelled.

    A process that has torch imported runs it, else one of its own.

    Args:
        background: Nobody waits for it: everything else goes first.

    Raises:
        VLoRAError: It failed; with the words, the place and the remedy that it gave.
        StorageError: It cannot be started.
    """
    words = [*arguments, "--json"]
    try:
        reply = WARM.run(words, cancelled, background=background)
    except NotBegunError:
        reply = _run(words, cancelled)
    if reply is None:
        return None
    if reply.code != 0:
        raise _failure(reply.code, reply.stderr)
    try:
        answer = json.loads(reply.stdout)
    except ValueError:
        raise VLoRAError("The command's answer cannot be read.", found=reply.stdout[:200]) from None
    return answer if isinstance(answer, dict) else {}


def _run(words: Sequence[str], cancelled: Callable[[], bool]) -> Reply | None:
    """Run a command in a process of its own, which imports all that it needs."""
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "vlora_tui", *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,  # a Ctrl-C at the terminal is not meant for it
        )
    except OSError as error:
        raise StorageError(f"No process can be started: {error.strerror or error}.") from None
    with process:
        try:
            while True:
                with suppress(subprocess.TimeoutExpired):
                    stdout, stderr = process.communicate(timeout=POLL_SECONDS)
                    return Reply(process.returncode, stdout, stderr)
                if cancelled():
                    return None
        finally:
            if process.poll() is None:
                process.kill()


def read_answer(answer: Mapping[str, Any]) -> JsonObject:
    """What a command answered, for reading with checks."""
    return JsonFile("the command's JSON", "The answer cannot be read.").value(answer).object()


def _failure(code: int | None, stderr: str) -> VLoRAError:
    """The error that the command printed as JSON on stderr, or its last line."""
    start = stderr.find("{")
    with suppress(ValueError):
        row = json.loads(stderr[start:]) if start >= 0 else {}
        if isinstance(row, dict) and isinstance(row.get("what"), str):
            details = {
                key: str(row[key])
                for key in ("where", "expected", "found", "remedy")
                if row.get(key) is not None
            }
            return VLoRAError(row["what"], **details)
    lines = [line for line in stderr.splitlines() if line.strip()]
    if code is None or code < 0:
        return VLoRAError(
            "The command was killed before it had answered.",
            remedy="ask again; where it happens again, memory may be short",
        )
    return VLoRAError(
        f"The command ended with exit code {code}.", found=lines[-1] if lines else None
    )
