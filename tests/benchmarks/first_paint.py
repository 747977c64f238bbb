"""How long the interface takes from the start of its process to its first paint, on a pty.

The limit is a bare Textual application of one Static, started the same way in turn with ours, as
the machine is shared; neither peer has an interface.
"""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import statistics
import struct
import sys
import termios
import time
from collections.abc import Sequence
from contextlib import suppress

from tests.benchmarks import made
from tests.benchmarks.measure import Bench, ChildFailed, ours
from tests.benchmarks.table import Table, ratio

ROWS, COLUMNS = 36, 120
ADAPTERS = 8
GOAL_SECONDS, GOAL_RATIO = 0.6, 1.4
PATIENCE = 60.0  # seconds; only something broken paints nothing for so long

BARE = """
from textual.app import App
from textual.widgets import Static

class Bare(App):
    def compose(self):
        yield Static("bare")

Bare().run()
"""


def section(bench: Bench) -> list[Table]:
    """The interface on a small folder, and the bare application."""
    folder = bench.path("adapters")
    folder.mkdir()
    for path in made.adapters(bench, made.SMALL, ADAPTERS):
        (folder / path.name).symlink_to(path)
    last = made.name_of(ADAPTERS - 1)
    bare = [sys.executable, "-c", BARE]
    own = [*ours(), str(folder)]
    runs: dict[str, list[float]] = {"bare": [], "own": [], "rows": []}
    for _ in range(1 + (4 if bench.quick else 12)):
        runs["bare"] += seconds_until(bench, bare, ["bare"])
        paint, rows = seconds_until(bench, own, ["Adapters", last])
        runs["own"].append(paint)
        runs["rows"].append(rows)
    least = {name: min(times[1:]) for name, times in runs.items()}  # the first one fills caches
    table = Table(
        f"first paint: vlora-tui on {ADAPTERS} adapters, {COLUMNS} x {ROWS} "
        f"(goals: {GOAL_SECONDS} s and {GOAL_RATIO} of bare Textual)",
        ["", "wall s", "median s", "wall / limit", f"wall / {GOAL_SECONDS} s"],
    )
    for name, label in (
        ("bare", "limit: bare Textual, one Static"),
        ("own", "vlora-tui, its first screen"),
        ("rows", "vlora-tui, all adapters listed"),
    ):
        wall, middle = least[name], statistics.median(runs[name][1:])
        over = ratio(wall, least["bare"])
        table.rows.append([label, wall, middle, over, ratio(wall, GOAL_SECONDS)])
    table.notes.append(
        f"the best of {len(runs['bare']) - 1} runs, in turn; from the start of the process to the "
        "bytes on the terminal"
    )
    return [table]


def seconds_until(bench: Bench, command: Sequence[str], words: Sequence[str]) -> list[float]:
    """Seconds from the start of ``command`` on a pty until it has written each word, in order."""
    environment = {**bench.environment, "TERM": "xterm-256color", "COLORTERM": "truecolor"}
    del environment["NO_COLOR"]
    start = time.perf_counter()
    pid, terminal = pty.fork()
    if pid == 0:
        become(command, environment)
    taken: list[float] = []
    text = b""
    try:
        for word in words:
            while word.encode() not in text:
                text += _read(terminal, start + PATIENCE - time.perf_counter(), text)
            taken.append(time.perf_counter() - start)
    finally:
        # Killing by process id is safe here: the child is not reaped before waitpid returns.
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(terminal)
    return taken


def become(command: Sequence[str], environment: dict[str, str]) -> None:
    """In the child: a terminal of the right size from the first moment, then the program."""
    try:
        fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
        os.execve(command[0], list(command), environment)
    finally:
        os._exit(127)


def _read(terminal: int, seconds: float, before: bytes) -> bytes:
    """The next bytes of a terminal."""
    with suppress(OSError):  # EIO: the program has ended
        if select.select([terminal], [], [], max(0.0, seconds))[0]:
            return os.read(terminal, 1 << 16)
    said = before.decode(errors="replace")[-300:]
    raise ChildFailed(f"nothing was painted: {said!r}")
