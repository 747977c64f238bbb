"""The way in and the ways out, on a real terminal: a pty."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.app.conftest import Cli
from tests.conftest import ROOT, FreshPython

COMMAND = "import sys; from vlora_tui.cli import main; sys.exit(main(sys.argv[1:]))"


class Terminal:
    """A pseudo terminal of 120 x 36 with a program on it."""

    def __init__(self, *words: str, ignore_hang_up: bool = False, code: str = COMMAND) -> None:
        path = os.pathsep.join([str(ROOT), str(ROOT / "engine")])
        environment = {**os.environ, "PYTHONPATH": path, "TERM": "xterm-256color"}
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            if ignore_hang_up:
                signal.signal(signal.SIGHUP, signal.SIG_IGN)
            os.execve(sys.executable, [sys.executable, "-c", code, *words], environment)
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", 36, 120, 0, 0))
        self.open = True

    def read(self, until: bytes | None = None, seconds: float = 30) -> bytes:
        """What it writes, until ``until`` was in it or the time is over."""
        text, end = b"", time.monotonic() + seconds
        while time.monotonic() < end and (until is None or until not in text):
            if select.select([self.fd], [], [], 0.05)[0]:
                try:
                    text += os.read(self.fd, 65536)
                except OSError:
                    break
        assert until is None or until in text, text[-2000:]
        return text

    def quiet(self) -> None:
        """Wait until nothing was written for a while."""
        while self.read(seconds=0.7):
            pass

    def press(self, keys: str) -> None:
        os.write(self.fd, keys.encode())

    def hang_up(self) -> None:
        os.close(self.fd)
        self.open = False

    def ends(self, seconds: float = 15) -> int:
        """Its exit code; a failure if it does not end."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.pid = 0
                return os.waitstatus_to_exitcode(status)
            if self.open:
                self.read(seconds=0.02)
            else:
                time.sleep(0.02)
        pytest.fail("it goes on without its terminal")

    def close(self) -> None:
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        if self.open:
            os.close(self.fd)


@pytest.fixture
def drafts(home: Path) -> Path:
    return home / "state" / "vlora-tui" / "drafts"


@pytest.fixture
def terminal(runs: Path) -> Iterator[Terminal]:
    """The interface on a folder of four adapters, all marked."""
    there = Terminal(str(runs))
    there.read(b"task03")
    there.press("+")
    there.read(b"4 marked")
    yield there
    there.close()


def test_without_a_terminal_it_says_so_before_textual_is_imported(
    fresh_python: FreshPython,
) -> None:
    code = (
        "import sys\nfrom vlora_tui.cli import main\ncode = main([])\n"
        "print(code, 'textual' in sys.modules)"
    )
    done = fresh_python(code)
    assert done.stdout.split() == ["2", "False"]
    assert "stdin and stderr are none" in done.stderr
    assert "run --headless" in done.stderr


@pytest.mark.parametrize("words", [("./x",), ("run", "x.toml"), ("run", "a", "-k", "4")])
def test_every_way_in_needs_a_terminal(cli: Cli, words: tuple[str, ...]) -> None:
    assert "run --headless" in cli(*words, code=2).err


def test_a_dumb_terminal_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from vlora_tui.tui.app.start import NoTerminalError, require_terminal

    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "dumb")
    with pytest.raises(NoTerminalError, match="TERM"):
        require_terminal()
    monkeypatch.setenv("TERM", "xterm")
    require_terminal()


def test_a_mistyped_command_is_not_taken_for_a_folder(cli: Cli) -> None:
    assert "Did you mean 'inspect'" in cli("inspct", code=2).err


def test_it_quits_and_leaves_the_terminal_as_it_was(terminal: Terminal, drafts: Path) -> None:
    terminal.quiet()
    terminal.press("q")
    text = terminal.read(b"\x1b[?1049l")
    assert b"Traceback" not in text
    assert terminal.ends() == 0
    assert len(list(drafts.glob("*.toml"))) == 1


def test_idle_it_writes_nothing(terminal: Terminal) -> None:
    terminal.quiet()
    assert terminal.read(seconds=2) == b""


def test_a_key_paints_the_screen_anew(terminal: Terminal) -> None:
    terminal.quiet()
    terminal.press("\x0c")
    painted = terminal.read(b"task03")
    assert all(f"task{i:02d}".encode() in painted for i in range(4))


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
def test_a_signal_saves_the_draft_and_ends_it(
    terminal: Terminal, drafts: Path, number: signal.Signals
) -> None:
    os.kill(terminal.pid, number)
    assert terminal.ends() == 128 + number
    assert "task00" in next(iter(drafts.glob("*.toml"))).read_text()


@pytest.mark.parametrize("ignore_hang_up", [False, True])
def test_it_ends_with_its_terminal(runs: Path, drafts: Path, ignore_hang_up: bool) -> None:
    there = Terminal(str(runs), ignore_hang_up=ignore_hang_up)
    try:
        there.read(b"task03")
        there.press("+")
        there.read(b"4 marked")
        there.hang_up()
        assert there.ends() == 128 + signal.SIGHUP
        assert "task00" in next(iter(drafts.glob("*.toml"))).read_text()
    finally:
        there.close()


def test_the_demo_opens_the_interface_on_a_terminal(tmp_path: Path) -> None:
    there = Terminal("demo", str(tmp_path / "demo"))
    try:
        there.read(b"19 found")
        there.press("q")
        assert there.ends() == 0
        assert (tmp_path / "demo" / "adapters").is_dir()
    finally:
        there.close()


def test_a_recipe_opens_the_interface(runs: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        f'[input]\nadapters = ["{runs}"]\n[compress]\nk = 2\n[output]\nsubspace = "out"\n'
    )
    there = Terminal("--ascii", "run", str(recipe))
    try:
        there.read(b"Ready to run")
        there.quiet()
        there.press("q")
        assert there.ends() == 0
    finally:
        there.close()


@pytest.mark.parametrize("name", ["SIGINT", "SIGQUIT", "SIGTSTP"])
def test_keys_typed_ahead_of_the_end_come_as_signals_and_do_no_harm(name: str, runs: Path) -> None:
    code = (
        "import os, signal, sys\nfrom vlora_tui.cli import main\ncode = main(sys.argv[1:])\n"
        f"os.kill(os.getpid(), signal.{name})\nprint('through')\nsys.exit(code)"
    )
    there = Terminal(str(runs), code=code)
    try:
        there.read(b"task03")
        there.press("q")
        said = there.read(b"1049l")  # the terminal is given back
        assert there.ends() == 0
        assert b"Traceback" not in said
    finally:
        there.close()
