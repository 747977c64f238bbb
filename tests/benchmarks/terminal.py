"""What the interface writes to its terminal and takes of the CPU: per key, per second, at start.

The limit is a bare Textual application of one Static, started in the same run; neither peer has an
interface. CPU seconds are of all threads of the process, from Linux's own count.
"""

from __future__ import annotations

import os
import pty
import select
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks import made
from tests.benchmarks.first_paint import BARE, become
from tests.benchmarks.measure import Bench, ChildFailed, ours
from tests.benchmarks.table import Table, ratio

QUIET = 0.5  # seconds without a byte and without work after which a key is done
WORK = 0.002  # CPU seconds that are no work: threads that wait wake up now and then
REST = 6.0  # seconds in which what stands beside a choice is worked out, once for all keys before
PATIENCE = 60.0
LARGE = "224 layers x 100 tasks"

# The interface on made spectra: it takes steps, but has nothing to run.
SHOWN = """
from tests.benchmarks.key_presses import synthetic
from vlora_engine.compression_target import CompressionTarget
from vlora_tui.tui.app.app import VLoRAApp
from vlora_tui.tui.core.session import Session
from vlora_tui.tui.terminal.driver import Terminal

session = Session(choosing=CompressionTarget(k=32))
session.set_spectra(synthetic(100, 32))
app = VLoRAApp(session=session)
app.driver_class = Terminal
app.run()
"""
# The same while a layer arrives every quarter of a second.
FILLING = """
import sys
from tests.benchmarks.key_presses import synthetic
from vlora_engine.compression_target import CompressionTarget
from vlora_tui.tui.app.app import VLoRAApp
from vlora_tui.tui.core.messages import SpectraChanged
from vlora_tui.tui.core.session import Session
from vlora_tui.tui.terminal.driver import Terminal

session = Session(choosing=CompressionTarget(k=32))
spectra = synthetic(100, 32)
late = list(spectra.layers.items())[int(sys.argv[1]):]
for name, _ in late:
    del spectra.layers[name]
session.set_spectra(spectra)
app = VLoRAApp(session=session)
app.driver_class = Terminal

def arrive():
    if not late:
        return
    name, layer = late.pop(0)
    spectra.layers[name] = layer
    session.set_spectra(spectra)
    app.post_message(SpectraChanged())

app.call_later(lambda: app.set_interval(0.25, arrive))
app.run()
"""
# Before the first layer: a job that gets on twice a second, as often as jobs are looked at.
WAITING = """
import time
from pathlib import Path
from tests.benchmarks.key_presses import synthetic
from vlora_tui.jobs.store import Job, JobInfo
from vlora_tui.jobs.watch import JobView, State
from vlora_tui.pipeline import events
from vlora_tui.tui.app.app import VLoRAApp
from vlora_tui.tui.core.job_client import POLL_SECONDS
from vlora_tui.tui.core.messages import JobsChanged
from vlora_tui.tui.core.session import Session
from vlora_tui.tui.terminal.driver import Terminal

session = Session()
spectra = synthetic(3, 2)
spectra.layers.clear()
session.set_spectra(spectra)
app = VLoRAApp(session=session)
app.driver_class = Terminal
view = JobView(Job(Path("/jobs/a"), JobInfo("a", "build", "spectra", time.time())))
view.state = State.RUNNING
done = 0

def move():
    global done
    done += 1
    view.progress = events.Progress("spectra", done, 10_000)
    view.stage_since, view.progress_time = 1.0, 1.0 + 0.7 * done
    app.jobs.views, app.jobs.spectra_job = [view], "a"
    app.post_message(JobsChanged())

app.call_later(lambda: app.set_interval(POLL_SECONDS, move))
app.run()
"""


@dataclass(frozen=True)
class Cost:
    """Bytes for the terminal, and CPU seconds."""

    nbytes: int
    cpu: float


class Watched:
    """A program on a pseudo-terminal of its own whose bytes and CPU are counted."""

    def __init__(self, pid: int, terminal: int) -> None:
        self._pid, self._terminal = pid, terminal
        self.begun = time.perf_counter()

    def until(self, word: str) -> Cost:
        """What it costs until ``word`` was written."""
        return self._cost(lambda text, quiet: word.encode() in text)

    def settled(self) -> Cost:
        """What it costs until it has nothing more to say."""
        return self._cost(lambda text, quiet: quiet >= QUIET)

    def press(self, key: str) -> None:
        """Press a key and wait for nothing."""
        os.write(self._terminal, key.encode())

    def key(self, key: str) -> Cost:
        """What a key costs until it is done."""
        before = self._cpu()
        self.press(key)
        cost = self._cost(lambda text, quiet: bool(text) and quiet >= QUIET)
        return Cost(cost.nbytes, self._cpu() - before)

    def each_second(self, seconds: float) -> Cost:
        """What a second costs in which nobody does anything."""
        end = time.perf_counter() + seconds
        cost = self._cost(lambda text, quiet: time.perf_counter() >= end)
        return Cost(round(cost.nbytes / seconds), cost.cpu / seconds)

    def _cost(self, done: Callable[[bytes, float], bool]) -> Cost:
        before, text, last = self._cpu(), b"", time.perf_counter()
        give_up, worked = last + PATIENCE, before
        while not done(text, time.perf_counter() - last):
            if time.perf_counter() > give_up:
                raise ChildFailed(f"the terminal waits in vain: {text[-300:]!r}")
            if select.select([self._terminal], [], [], 0.02)[0]:
                with suppress(OSError):  # EIO: the program has ended
                    text += os.read(self._terminal, 1 << 16)
                    last = time.perf_counter()
            if (cpu := self._cpu()) > worked + WORK:
                worked, last = cpu, time.perf_counter()
        return Cost(len(text), self._cpu() - before)

    def _cpu(self) -> float:
        """CPU seconds of all its threads so far."""
        tasks = Path(f"/proc/{self._pid}/task")
        spent = 0
        for task in tasks.iterdir():
            with suppress(OSError):  # a thread that ends meanwhile
                spent += int((task / "schedstat").read_text().split()[0])
        return spent / 1e9


@contextmanager
def on_terminal(bench: Bench, command: Sequence[str]) -> Iterator[Watched]:
    """``command`` on a pseudo-terminal; it is killed at the end."""
    environment = {**bench.environment, "TERM": "xterm-256color", "COLORTERM": "truecolor"}
    environment.pop("NO_COLOR", None)
    environment["SSH_CONNECTION"] = "here"  # over a line there are no animations
    pid, terminal = pty.fork()
    if pid == 0:
        become(command, environment)
    try:
        yield Watched(pid, terminal)
    finally:
        # Killing by process id is safe here: the child is not reaped before waitpid returns.
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(terminal)


def section(bench: Bench) -> list[Table]:
    """Keys and seconds on a large collection, and starts on small and large folders."""
    if not Path("/proc/self/schedstat").exists():
        raise ChildFailed("CPU seconds of threads are counted on Linux only")
    repeats = 2 if bench.quick else 5
    bare = _start(bench, [sys.executable, "-c", BARE], "bare", repeats)
    keys = Table(
        f"bytes and CPU: {LARGE}, 120 x 36",
        ["", "bytes", "goal", "CPU s", "CPU / bare start", "goal"],
    )
    keys.rows.append(["limit: bare Textual, its start", bare.nbytes, None, bare.cpu, 1.0, None])
    for label, cost, most, share in (*_keys(bench, repeats), *_seconds(bench)):
        keys.rows.append([label, cost.nbytes, most, cost.cpu, ratio(cost.cpu, bare.cpu), share])
    keys.notes.append(
        "a key until half a second passes without a byte or work; the median of its presses"
    )
    return [keys, _starts(bench, bare, repeats)]


Row = tuple[str, Cost, int | None, float | None]


def _keys(bench: Bench, repeats: int) -> Iterator[Row]:
    with on_terminal(bench, [sys.executable, "-c", SHOWN]) as shown:
        shown.until("Adapters")
        shown.settled()
        first = [(name, shown.key(key)) for name, key in _STEPS]
        again = [shown.key(key) for _ in range(repeats) for _, key in _STEPS]
        shown.key("2")
        moves = [shown.key("]") for _ in range(4 * repeats)]
        rest = shown.each_second(REST)
    yield "] on Choose k", _median(moves), 6_000, 0.1
    whole = Cost(round(REST * rest.nbytes), REST * rest.cpu)
    yield "] and then none: the other methods at its error", whole, None, None
    for name, cost in first:
        yield f"a first step to {name}", cost, 15_000, 0.5
    yield "a step to a screen that was shown before", _median(again), 15_000, 0.5


_STEPS = (("Choose k", "2"), ("Run", "3"), ("Inspect", "4"), ("Export", "5"), ("Adapters", "1"))


def _seconds(bench: Bench) -> Iterator[Row]:
    seconds = 4.0 if bench.quick else 12.0
    with on_terminal(bench, [sys.executable, "-c", FILLING, "8"]) as filling:
        filling.until("Adapters")
        filling.press("2")
        filling.until("Explained variance")
        yield "a second while a curve fills", filling.each_second(seconds), 10_000, None
    with on_terminal(bench, [sys.executable, "-c", WAITING]) as waiting:
        waiting.until("Adapters")
        waiting.press("2")
        waiting.until("no module is done")
        waiting.until("spectra")
        yield "a second before the first layer", waiting.each_second(seconds), 1_000, None


def _start(bench: Bench, command: Sequence[str], word: str, repeats: int) -> Cost:
    """The least that a start costs until ``word`` is on the terminal."""
    found = []
    for _ in range(1 + repeats):  # the first one fills caches
        with on_terminal(bench, command) as program:
            found.append(program.until(word))
    return Cost(min(cost.nbytes for cost in found[1:]), min(cost.cpu for cost in found[1:]))


def _starts(bench: Bench, bare: Cost, repeats: int) -> Table:
    table = Table(
        "start: CPU from the first instruction to what is on the terminal",
        ["", "bytes", "CPU s", "CPU / bare start", "goal"],
    )
    table.rows.append(["limit: bare Textual, one Static", bare.nbytes, bare.cpu, 1.0, None])
    for count, goal in ((9, 2.0), (500, 4.0)):
        folder = _folder(bench, count)
        if count == 9:
            cost = _start(bench, [*ours(), str(folder)], "Adapters", repeats)
            row = ["vlora-tui, its first screen", cost.nbytes, cost.cpu]
            table.rows.append([*row, ratio(cost.cpu, bare.cpu), 1.4])
        cost = _start(bench, [*ours(), str(folder)], f"{count} found", repeats)
        row = [f"vlora-tui, {count} adapters listed", cost.nbytes, cost.cpu]
        table.rows.append([*row, ratio(cost.cpu, bare.cpu), goal])
    return table


def _folder(bench: Bench, count: int) -> Path:
    """A folder of so many adapters, which share the bytes of a few."""
    folder = bench.path(f"adapters-{count}")
    paths = made.adapters(bench, made.SMALL, 8)
    for i in range(count):
        shutil.copytree(
            paths[i % len(paths)], folder / f"task-{i:03}", copy_function=os.link, symlinks=True
        )
    return folder


def _median(costs: Sequence[Cost]) -> Cost:
    middle = len(costs) // 2
    return Cost(
        sorted(cost.nbytes for cost in costs)[middle], sorted(cost.cpu for cost in costs)[middle]
    )
