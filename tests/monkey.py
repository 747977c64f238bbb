"""A monkey at the real interface: random keys on a pseudo-terminal, with fixed seeds.

    python -m tests.monkey --keys 33334 --size 120x36 --seed 1 --adapters DIR

It starts `vlora-tui` on adapters (small ones of its own where no folder is named, with a subspace
built of them), sends keys, mouse, pasted text and changes of size, and watches: the program ends
only where it was asked to, says "Traceback" neither on the screen nor in its log, reads what it is
sent, and holds at the end at most 1.2 times the memory that it held after 5,000 keys (after the
same share of a shorter run). It prints keys, restarts, faults and memory; exit code 1 if anything
was wrong.

Nothing waits for a length of time: the next keys go when the program has read the last ones, says
nothing more and its threads rest. What it does with them still depends on how fast threads
and jobs are, so a seed repeats the keys, not every state.

The user's own files, jobs and settings are safe: home and working directory are temporary, a hook
(`HOOK`) in every process refuses to write, or to list folders, outside of them, and the jobs that
the monkey has started are ended. So that jobs do not take all the time, only some of them are let
through; the others die as they begin, which the interface has to live with.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import random
import select
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from textual.keys import _character_to_key

from tests.witnesses import make
from vlora_tui.jobs import JobStore
from vlora_tui.jobs.identity import send
from vlora_tui.tui.app.keymap import all_bindings

ROOT = Path(__file__).resolve().parents[1]
SIZES = ("120x36", "80x24", "40x12")
SETTLED = 5_000  # keys after which memory is first looked at ...
SETTLED_SHARE = 0.15  # ... or so much of a run that is shorter
GROWTH = 1.2  # of the memory since then
BATCH = 12  # keys at most that are sent at once
QUIET_SECONDS = 0.045  # so long without output and work it rests: more than two frames
BUSY_NS = 1_000_000  # less than that in such a time is rest: timers look after themselves
PATIENCE = 60.0  # seconds until a program that does not rest, or read, is taken to hang
BUSY_PATIENCE = 10.0  # a job that reports keeps it busy for ever: then keys go all the same
JOBS_ALIVE, JOBS_KEPT = 3, 20

HOOK = '''
"""Refuses what the monkey must not reach; lets only so many jobs and subcommands through."""
import os, sys

def install():
    roots = os.environ["VLORA_MONKEY_ROOTS"].split(os.pathsep)
    readable = [*roots, *os.environ["VLORA_MONKEY_READABLE"].split(os.pathsep)]
    readable += ["/proc", "/sys", "/dev", "/usr", "/lib", "/etc", sys.prefix, sys.base_prefix]

    def inside(path, among):
        if isinstance(path, int) or path is None:
            return True
        path = os.path.realpath(os.fsdecode(path))
        return any(path == root or path.startswith(root + os.sep) for root in among)

    refuse = {"os.mkdir": 1, "os.rmdir": 1, "os.remove": 1, "os.rename": 2, "os.link": 2,
              "os.symlink": 2, "os.truncate": 1, "os.chmod": 1, "os.utime": 1}

    def hook(event, args):
        if event in refuse:
            paths, among = args[: refuse[event]], roots
            if event == "os.symlink":
                paths = args[1:2]
        elif event in ("os.listdir", "os.scandir"):
            paths, among = args[:1] if args[0] is not None else ["."], readable
        elif event == "open":
            writes = args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            paths, among = args[:1], roots
            if not writes or str(args[0]).startswith(("/dev/", "/proc/")):
                return
        else:
            return
        for path in paths:
            if not inside(path, among):
                raise PermissionError(13, "Permission denied (by the monkey)", path)

    sys.addaudithook(hook)

def allowed():
    """Whether this job or subcommand may work: each takes one of a number of tickets."""
    words = sys.orig_argv
    if "vlora_tui" not in words or not {"--job", "--json"} & set(words):
        return True
    for number in range(int(os.environ["VLORA_MONKEY_CHILDREN"])):
        try:
            ticket = os.path.join(os.environ["VLORA_MONKEY_TICKETS"], str(number))
            os.close(os.open(ticket, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            return True
        except FileExistsError:
            pass
    return False

if "VLORA_MONKEY_ROOTS" in os.environ:
    if not allowed():
        sys.stderr.write("the monkey lets no more processes work\\n")
        os._exit(1)
    install()
'''

NAMED = {
    "enter": "\r", "tab": "\t", "shift+tab": "\x1b[Z", "escape": "\x1b", "space": " ",
    "backspace": "\x7f", "delete": "\x1b[3~", "up": "\x1b[A", "down": "\x1b[B",
    "right": "\x1b[C", "left": "\x1b[D", "home": "\x1b[H", "end": "\x1b[F",
    "pageup": "\x1b[5~", "pagedown": "\x1b[6~", "insert": "\x1b[2~", "f1": "\x1bOP",
    "f5": "\x1b[15~", "ctrl+end": "\x1b[1;5F", "ctrl+home": "\x1b[1;5H",
    "shift+up": "\x1b[1;2A", "shift+down": "\x1b[1;2B", "ctrl+left": "\x1b[1;5D",
    "ctrl+right": "\x1b[1;5C", "alt+x": "\x1bx",
}  # fmt: skip
TOUR = ("1", "+", "2", "3", "4", "5", "?", "\x1b", ":", "\x1b", "1")  # all is loaded then
QUITS = ("q", "\x11")  # they end it at once where nothing runs
QUIT_DIALOG = (b"choices are kept", b"leave it running", b"leave them running")
PASTES = ("12", "0.05", "task01", "~/", "replace", "/", "..", "hf://", "x" * 300, "a\nb\n\n",
          "\u202e\x07\x1b[2J", "é漢字🙂", "-1", "1e999", "nan", "%", "#", "[b]", "sort:bytes",
          "is:broken", "\x1b[Aw\x1bq", "\udcff\udce9")  # fmt: skip
ODD = ("\x1b[I", "\x1b[O", "\x1b[", "\x1b[<", "\x1b[?2026;2$y", "\x1b[99;99R",
       "\x1b]11;rgb:0/0/0\x07", "\x1b[200~", "\x1b[201~", "\x00", "\x9b", "é", "漢",
       "\udce9", "\udcff\udcfe", "\x1b[99999999999999;5u")  # fmt: skip


_CHARACTERS = {_character_to_key(chr(code)): chr(code) for code in range(32, 127)}


def bytes_of(key: str) -> str | None:
    """What a terminal sends for one of Textual's key names; None where it has no way to."""
    if len(key) == 1:
        return key
    if key in NAMED:
        return NAMED[key]
    modifier, _, last = key.rpartition("+")
    if modifier == "ctrl" and len(last) == 1 and last.isalpha():
        return chr(ord(last) & 31)
    return _CHARACTERS.get(key)


class Alphabet:
    """What may be sent, and how often."""

    def __init__(self, seed: int, columns: int, lines: int) -> None:
        self._random = random.Random(seed)
        self.terminal = columns, lines  # as it is now; a click goes somewhere in it
        bound = [key for _, b in all_bindings().values() for key in b.key.split(",")]
        self._bound = sorted({found for key in bound if (found := bytes_of(key.strip()))})
        moves = ("up", "down", "left", "right", "tab", "shift+tab", "home", "end", "pageup",
                 "pagedown")  # fmt: skip
        self._kinds: list[tuple[float, Callable[[], str]]] = [
            (30, lambda: self._pick(self._bound)),
            (20, lambda: NAMED[self._pick(moves)]),
            (8, lambda: "\r"),
            (9, lambda: "\x1b"),
            (5, lambda: self._pick("12345")),
            (5, lambda: " "),
            (6, lambda: self._pick("abcdefghijklmnoprstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")),
            (3, lambda: self._pick("0123456789")),
            (4, lambda: self._pick("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~")),
            (2, lambda: self._pick(list(NAMED.values()))),
            (2, lambda: chr(self._random.choice([n for n in range(1, 32) if n != 17]))),
            (4, self._mouse),
            (1, lambda: f"\x1b[200~{self._pick(PASTES)}\x1b[201~"),
            (0.5, lambda: self._pick(ODD)),
        ]

    def _pick(self, among: object) -> str:
        return str(self._random.choice(list(among)))  # type: ignore[call-overload]

    def _mouse(self) -> str:
        """A click, a turn of the wheel or a movement. The last line has a key that quits."""
        columns, lines = self.terminal
        x, y = self._random.randint(1, columns), self._random.randint(1, lines - 1)
        button = self._random.choice((0, 0, 0, 2, 35, 64, 65))
        pressed = f"\x1b[<{button};{x};{y}M"
        return pressed + (f"\x1b[<{button};{x};{y}m" if button < 3 else "")

    def key(self, *, may_quit: bool) -> str:
        """The next key."""
        if may_quit and self._random.random() < 0.02:
            return self._random.choice(QUITS)
        while True:
            weights = [weight for weight, _ in self._kinds]
            ((_, make_one),) = self._random.choices(self._kinds, weights)
            key = make_one()
            if key not in QUITS:
                return key

    def batch(self, most: int) -> int:
        """How many keys go at once."""
        return self._random.randint(1, max(1, min(BATCH, most)))

    def size(self, columns: int, lines: int) -> tuple[int, int] | None:
        """Another size of the terminal, now and then."""
        if self._random.random() > 0.004:
            return None
        others = [(20, 5), (60, 20), (200, 60), (columns, lines // 2 + 3), (columns - 9, lines)]
        return self._random.choice(others)


class Program:
    """`vlora-tui` on a pseudo-terminal."""

    def __init__(self, words: list[str], cwd: Path, environ: dict[str, str],
                 columns: int, lines: int) -> None:  # fmt: skip
        self.master, self._slave = os.openpty()
        self.resize(columns, lines)
        os.set_blocking(self.master, False)

        def controlling() -> None:
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        self.process = subprocess.Popen(
            [sys.executable, "-m", "vlora_tui", *words],
            cwd=cwd, env=environ, stdin=self._slave, stdout=self._slave, stderr=self._slave,
            start_new_session=True, preexec_fn=controlling,
        )  # fmt: skip
        self.tail = b""
        self.written = 0
        self.keys = 0
        self.memory: dict[int, int] = {}  # by the number of keys

    def resize(self, columns: int, lines: int) -> None:
        """Give the terminal another size."""
        fcntl.ioctl(self._slave, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    @property
    def is_alive(self) -> bool:
        return self.process.poll() is None

    def start(self) -> bool:
        """Wait for its first screen, then press what loads all of it; whether it answered."""
        end = time.monotonic() + PATIENCE
        while b"Quit" not in self.tail and self.is_alive and time.monotonic() < end:
            self.drain(0.05)
        for key in TOUR:
            if not self.rest():
                return False
            self.send(key)
        return self.rest()

    def send(self, text: str) -> None:
        """Type; what the terminal's queue does not take at once waits until it does."""
        data = text.encode("utf-8", "surrogateescape")
        end = time.monotonic() + PATIENCE
        while data and self.is_alive and time.monotonic() < end:
            self.drain(0.0)
            try:
                data = data[os.write(self.master, data) :]
            except BlockingIOError:
                self.drain(0.002)

    def drain(self, seconds: float) -> bool:
        """Read what it has to say; whether that was anything."""
        got = False
        while select.select([self.master], [], [], 0.0 if got else seconds)[0]:
            try:
                said = os.read(self.master, 1 << 16)
            except OSError:
                break
            if not said:
                break
            got = True
            self.written += len(said)
            self.tail = (self.tail + said)[-200_000:]
        return got

    def rest(self) -> bool:
        """Wait until it has read its keys and done with them; False if it hangs.

        All threads rest for a while, or the main one for twice as long: what another computes for
        it may take its time.
        """
        begun, idle = time.monotonic(), 0
        while self.is_alive:
            self._continue_if_stopped()
            before, ran = time.monotonic(), self._ran()
            said = self.drain(QUIET_SECONDS)
            while not said and time.monotonic() - before < QUIET_SECONDS:
                said = self.drain(QUIET_SECONDS - (time.monotonic() - before))
            waited = time.monotonic() - begun
            if self._unread() == 0:
                main, others = (now - then for now, then in zip(self._ran(), ran, strict=True))
                idle = idle + 1 if not said and main < BUSY_NS else 0
                if idle and (others < BUSY_NS or idle > 1):
                    return True
                if waited > BUSY_PATIENCE:
                    return True
            elif waited > PATIENCE:
                return False
        return True

    def _continue_if_stopped(self) -> None:
        """What a shell's ``fg`` does after ctrl+z."""
        with suppress(OSError):
            state = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()[0]
            if state == "T":
                self.process.send_signal(signal.SIGCONT)

    def _unread(self) -> int:
        """The bytes that were sent and not read yet."""
        found = bytearray(4)
        fcntl.ioctl(self._slave, termios.FIONREAD, found)
        return int(struct.unpack("i", found)[0])

    def _ran(self) -> tuple[int, int]:
        """How long its main thread and its others have worked, or waited for a processor.

        In nanoseconds; 0 where the system does not say.
        """
        pid, main, others = self.process.pid, 0, 0
        for task in Path(f"/proc/{pid}/task").glob("*/schedstat"):
            with suppress(OSError, ValueError):
                ran = sum(map(int, task.read_text().split()[:2]))
                if task.parent.name == str(pid):
                    main = ran
                else:
                    others += ran
        return main, others

    def resident(self) -> int:
        """The memory it holds, in bytes; 0 where the system does not say."""
        with suppress(OSError):
            for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
                if line.startswith("VmRSS:"):
                    return int(line.split()[1]) * 1024
        return 0

    def close(self) -> None:
        """End it, as a terminal that is closed does, or by force."""
        if self.is_alive:
            self.process.send_signal(signal.SIGHUP)
            end = time.monotonic() + 10
            while self.is_alive and time.monotonic() < end:
                self.drain(0.05)
            if self.is_alive:
                self.process.kill()
        self.process.wait()
        self.drain(0.0)
        os.close(self.master)
        os.close(self._slave)


@dataclass
class Outcome:
    """What a run came to."""

    size: str
    seed: int
    keys: int = 0
    restarts: int = 0
    jobs: int = 0
    seconds: float = 0.0
    faults: list[str] = field(default_factory=list)
    early: int = 0  # bytes held after the first keys, by the program that lived longest
    early_keys: int = 0
    late: int = 0
    late_keys: int = 0

    @property
    def growth(self) -> float | None:
        """The memory at the end in terms of that before; None where there is nothing to compare."""
        return self.late / self.early if self.early and self.late_keys > self.early_keys else None

    def words(self) -> str:
        grown = "not measured (it was started again too late)"
        if self.growth is not None:
            grown = (
                f"{self.early / 1e6:.0f} MB after {self.early_keys:,} keys, "
                f"{self.late / 1e6:.0f} MB after {self.late_keys:,}: {self.growth:.2f}x"
            )
        lines = [
            f"monkey {self.size}, seed {self.seed}: {self.keys:,} keys in {self.seconds:.0f} s, "
            f"{self.restarts} restarts, {self.jobs} jobs, {len(self.faults)} faults",
            f"  memory: {grown}",
        ]
        return "\n".join([*lines, *(f"  FAULT: {fault}" for fault in self.faults)])


class Place:
    """A home of its own for the program, with adapters to work on."""

    def __init__(self, folder: Path, adapters: Path | None, children: int, hook_more: str) -> None:
        self.home, self.work = folder / "home", folder / "work"
        hook, tickets = folder / "hook", folder / "tickets"
        for each in (self.home, self.work, hook, tickets):
            each.mkdir()
        (hook / "sitecustomize.py").write_text(HOOK + hook_more)
        self.state = self.home / "state" / "vlora-tui"
        self.log = self.state / "interface.log"
        (self.home / "tmp").mkdir()
        (self.home / "run").mkdir(mode=0o700)
        kept = {k: v for k, v in os.environ.items()
                if not k.startswith(("VLORA_", "TMUX", "SSH_", "TEXTUAL"))
                and k not in ("COLUMNS", "LINES", "NO_COLOR")}  # fmt: skip
        self.environ = {
            **kept,
            "HOME": str(self.home),
            **{f"XDG_{n}_HOME": str(self.home / n.lower())
               for n in ("CACHE", "CONFIG", "DATA", "STATE")},
            "XDG_RUNTIME_DIR": str(self.home / "run"),
            "HF_HOME": str(self.home / "hf"), "HF_HUB_OFFLINE": "1",
            "TMPDIR": str(self.home / "tmp"), "TEXTUAL_ANIMATIONS": "none",
            "TERM": "xterm-256color", "LC_ALL": "C.UTF-8", "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "engine")]),
        }  # fmt: skip
        self.places = [self._adapters(adapters)]
        self.environ |= {
            "PYTHONPATH": os.pathsep.join([str(hook), str(ROOT), str(ROOT / "engine")]),
            "VLORA_MONKEY_ROOTS": str(folder),
            "VLORA_MONKEY_READABLE": os.pathsep.join([str(ROOT), *map(str, self.places)]),
            "VLORA_MONKEY_TICKETS": str(tickets),
            "VLORA_MONKEY_CHILDREN": str(children),
        }

    def _adapters(self, given: Path | None) -> Path:
        """The folder to open, with links to what was given, or small ones; and a subspace of it."""
        folder = self.work / "runs"
        if given is None:
            make.collection(folder, 6)
            wanted = [folder]
        else:
            folder.mkdir()
            shutil.copytree(given, folder / given.name, symlinks=True)
            if any(folder.rglob("subspace.json")):
                return folder
            names = sorted(p.parent for p in folder.rglob("adapter_config.json"))
            wanted = [names[0].parent] if names else [folder]
        done = subprocess.run(
            [sys.executable, "-m", "vlora_tui", "compress", *map(str, wanted), "-k", "4",
             "--skip-bad", "-q", "-o", str(self.work / "runs" / "subspace")],
            env=self.environ, cwd=self.work, stdin=subprocess.DEVNULL, capture_output=True,
            text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            print(f"monkey: no subspace: {done.stderr.strip()}", file=sys.stderr)
        return folder

    def tidy_jobs(self, *, alive: int, kept: int) -> int:
        """Kill all but some of the jobs that run, and forget all but some of the others."""
        store = JobStore(self.state)
        jobs = store.jobs()
        running = [(job, lock) for job in jobs if (lock := job.standing()).held]
        for _, lock in running[alive:]:
            if lock.identity is not None:
                send(lock.identity, signal.SIGKILL)
        held = {job.id for job, _ in running}
        over = [job for job in jobs if job.id not in held]
        for job in over[: max(0, len(over) - kept)]:
            shutil.rmtree(job.folder, ignore_errors=True)
        return len(running)


@contextmanager
def a_place(adapters: Path | None, children: int, hook_more: str) -> Iterator[Place]:
    """A temporary place; jobs that were started in it are ended, then it is deleted."""
    folder = Path(os.path.realpath(tempfile.mkdtemp(prefix="vlora-monkey-")))
    place = Place(folder, adapters, children, hook_more)
    try:
        yield place
    finally:
        end = time.monotonic() + PATIENCE
        while place.tidy_jobs(alive=0, kept=0) and time.monotonic() < end:
            time.sleep(0.02)
        shutil.rmtree(folder, ignore_errors=True)


def play(
    keys: int,
    size: str = SIZES[0],
    seed: int = 1,
    adapters: Path | None = None,
    *,
    children: int | None = None,
    hook_more: str = "",
    tell: Callable[[str], None] = lambda words: None,
) -> Outcome:
    """Send ``keys`` keys to the interface on a terminal of this size.

    Args:
        adapters: A folder of adapters, copied; small ones are made where there is none.
        children: Jobs and subcommands that may work; by default one for every 1,000 keys.
        hook_more: What every process is to do besides as it begins, in Python.
    """
    columns, lines = map(int, size.split("x"))
    outcome, begun = Outcome(size, seed), time.monotonic()
    alphabet = Alphabet(seed, columns, lines)
    settled = min(SETTLED, round(keys * SETTLED_SHARE))
    quitting = keys // 20  # so many keys may be those that quit; then one program takes the rest
    if children is None:
        children = max(2, keys // 1000)
    with a_place(adapters, children, hook_more) as place:
        program: Program | None = None
        last: deque[str] = deque(maxlen=200)
        usual = True
        try:
            while outcome.keys < keys:
                if program is None:
                    words = list(map(str, place.places))
                    program = Program(words, place.work, place.environ, columns, lines)
                    usual, alphabet.terminal = True, (columns, lines)
                    if not program.start():
                        outcome.faults.append("it does not read its keys after the start")
                        break
                other = alphabet.size(columns, lines)
                if other is not None or not usual:
                    alphabet.terminal = (columns, lines) if other is None else other
                    program.resize(*alphabet.terminal)
                    usual = other is None
                count = alphabet.batch(keys - outcome.keys)
                batch = [alphabet.key(may_quit=outcome.keys < quitting) for _ in range(count)]
                last.extend(batch)
                program.send("".join(batch))
                outcome.keys += count
                program.keys += count
                rested = program.rest()
                fault = _wrong(program, place, last, rested)
                if fault:
                    outcome.faults.append(fault)
                    tell(f"FAULT {fault}")
                if not program.is_alive or not rested:
                    tell(f"it ended after {program.keys:,} keys: {list(last)[-12:]!r}")
                    outcome.restarts += 1
                    _compare(program, settled, outcome)
                    program.close()
                    program = None
                    continue
                if program.keys % 500 < count:
                    outcome.jobs = max(outcome.jobs, len(JobStore(place.state).jobs()))
                    place.tidy_jobs(alive=JOBS_ALIVE, kept=JOBS_KEPT)
                    program.memory[program.keys] = program.resident()
                    tell(f"{outcome.keys:,} keys, {program.resident() / 1e6:.0f} MB")
                elif not any(n >= settled for n in program.memory) and program.keys >= settled:
                    program.memory[program.keys] = program.resident()
            if program is not None:
                _compare(program, settled, outcome)
        finally:
            if program is not None:
                program.close()
    outcome.seconds = time.monotonic() - begun
    return outcome


def _wrong(program: Program, place: Place, last: deque[str], rested: bool) -> str:
    """What is wrong now, with the keys that led there; empty if nothing is."""
    wrong = ""
    if not rested:
        wrong = "it does not read its keys any more"
    elif not program.is_alive:
        code = program.process.wait()
        program.drain(0.05)
        seen = any(words in program.tail for words in QUIT_DIALOG)
        asked = seen or any(key in QUITS for key in last) or _answered_unseen(list(last))
        if code != 0 or not asked:
            words = program.tail[-1500:].decode("utf-8", "replace")
            wrong = f"it ended unasked, exit code {code}: {words!r}"
    elif b"Traceback" in program.tail:
        wrong = f"a traceback on the screen: {program.tail[-1500:]!r}"
        program.tail = b""
    if place.log.exists():
        wrong += f" in the log: {place.log.read_text('utf-8', 'replace')}"
        place.log.unlink()
    return f"{wrong}\n    after {list(last)[-40:]!r}" if wrong else ""


def _answered_unseen(last: list[str]) -> bool:
    """Whether the keys may have taken "quit" in the palette, which asks only where a job runs."""
    opened = [at for at, key in enumerate(last) if key in (":", "\x10")]
    return bool(opened) and "\r" in last[opened[0] :]


def _compare(program: Program, settled: int, outcome: Outcome) -> None:
    """The memory at the end beside that after the first keys, if no other has lived longer."""
    if program.is_alive:
        program.memory[program.keys] = program.resident()
    at = [number for number in sorted(program.memory) if number >= settled]
    if at and at[-1] > outcome.late_keys:
        outcome.early_keys, outcome.early = at[0], program.memory[at[0]]
        outcome.late_keys, outcome.late = at[-1], program.memory[at[-1]]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--keys", type=int, default=33_334)
    parser.add_argument("--size", default="all", help="120x36, 80x24, 40x12 ...; all: those three")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--adapters", type=Path, help="a folder of adapters; small ones are made")
    parser.add_argument("-v", "--verbose", action="store_true")
    args = parser.parse_args()

    def tell(words: str) -> None:
        if args.verbose:
            print(f"  {words}", file=sys.stderr, flush=True)

    sizes = SIZES if args.size == "all" else (args.size,)
    good, total, faults = True, 0, 0
    for number, size in enumerate(sizes):
        outcome = play(args.keys, size, args.seed + number, args.adapters, tell=tell)
        print(outcome.words(), flush=True)
        total, faults = total + outcome.keys, faults + len(outcome.faults)
        good = good and not outcome.faults and (outcome.growth or 1.0) <= GROWTH
    print(f"monkey: {total:,} keys, {faults} faults, {'sound' if good else 'NOT SOUND'}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
