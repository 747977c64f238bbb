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

POLL_SECONDS = 0.1


def ask_command(
    arguments: Sequence[str], cancelled: Callable[[], bool] = lambda: False
) -> dict[str, Any] | None:
    """Run ``vlora-tui ARGUMENTS --json``; what it printed, or None where it was cancelled.

    Raises:
        VLoRAError: It failed; with the words, the place and the remedy that it gave.
        StorageError: It cannot be started.
    """
    command = [sys.executable, "-m", "vlora_tui", *arguments, "--json"]
    try:
        process = subprocess.Popen(
            command,
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
                    break
                if cancelled():
                    return None
        finally:
            if process.poll() is None:
                process.kill()
    if process.returncode:
        raise _failure(process.returncode, stderr)
    try:
        answer = json.loads(stdout)
    except ValueError:
        raise VLoRAError("The command's answer cannot be read.", found=stdout[:200]) from None
    return answer if isinstance(answer, dict) else {}


def read_answer(answer: Mapping[str, Any]) -> JsonObject:
    """What a command answered, for reading with checks."""
    return JsonFile("the command's JSON", "The answer cannot be read.").value(answer).object()


def _failure(code: int, stderr: str) -> VLoRAError:
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
    what = f"signal {-code}" if code < 0 else f"exit code {code}"
    return VLoRAError(f"The command ended with {what}.", found=lines[-1] if lines else None)
