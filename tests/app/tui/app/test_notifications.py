"""What a terminal gets when a long job ends out of sight: the raw bytes on a pty."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.app.tui.app.test_start import Terminal

# The interface as it is, with a job that ends once the terminal has lost the focus, or at once.
PROGRAM = """
import sys
from pathlib import Path
from vlora_tui.jobs.store import Job, JobInfo
from vlora_tui.jobs.watch import JobView, State
from vlora_tui.tui.app.app import VLoRAApp
from vlora_tui.tui.core.messages import JobsChanged
from vlora_tui.tui.terminal.driver import Terminal

title, waits = sys.argv[1], sys.argv[2] == "away"
app = VLoRAApp([])
app.driver_class = Terminal
view = JobView(Job(Path("/jobs/a"), JobInfo("a", "build", title, 0.0)))
view.state, view.begun = State.RUNNING, 100.0
app.jobs.is_own = lambda view: True
looks = 0

def look():
    global looks
    looks += 1
    app.jobs.views = [view]
    if looks > 5 and app.view is not None and app.view.id == "run" and app.app_focus != waits:
        view.state, view.ended = State.FINISHED, 160.0
        app.post_message(JobsChanged())
        app.set_timer(0.3, app.exit)
    app.post_message(JobsChanged())

app.call_later(lambda: app.set_interval(0.1, look))
app.run()
"""
EVIL = "x\x1b]0;taken\x07\x1b[2J\x9c\x9d;y"
TOLD = re.compile(rb"\x1b\](?:9|777);[^\x07\x1b]*\x07\x07")
KNOWN = ("TMUX", "TERM_PROGRAM", "LC_TERMINAL", *("ITERM_SESSION_ID", "WEZTERM_PANE"))


@pytest.fixture(autouse=True)
def _plain_terminal(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*KNOWN, "GHOSTTY_RESOURCES_DIR", "KITTY_WINDOW_ID"):
        monkeypatch.delenv(name, raising=False)


def written(title: str = "compress 9 adapters", *, away: bool = True) -> bytes:
    """All that the terminal gets in Run, from the loss of the focus on."""
    there = Terminal(title, "away" if away else "there", code=PROGRAM)
    try:
        there.read(b"Where are your")
        there.press("3")
        there.read(b"Selected job")
        if away:
            there.press("\x1b[O")
        return there.read(b"\x1b[?1049l")
    finally:
        there.close()


def test_who_looks_elsewhere_is_notified() -> None:
    told = TOLD.findall(written())
    assert told == [b"\x1b]777;notify;vlora-tui;compress 9 adapters finished\x07\x07"]


def test_who_looks_is_not() -> None:
    assert TOLD.findall(written(away=False)) == []


@pytest.mark.parametrize(
    ("name", "value"), [("TERM_PROGRAM", "iTerm.app"), ("LC_TERMINAL", "iTerm2")]
)
def test_iterm_is_asked_in_its_own_way(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    told = TOLD.findall(written())
    assert told == [b"\x1b]9;vlora-tui: compress 9 adapters finished\x07\x07"]


def test_in_tmux_it_is_wrapped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMUX", "/nowhere,1,0")
    text = written()
    inside = b"\x1b\x1b]777;notify;vlora-tui;compress 9 adapters finished\x07"
    assert b"\x1bPtmux;" + inside + b"\x1b\\\x07" in text


def test_a_name_takes_no_command_to_the_terminal() -> None:
    text = written(EVIL)
    for harm in (b"\x1b]0;taken", b"\x1b[2J", "\x9c".encode(), "\x9d".encode()):
        assert harm not in text
    (told,) = TOLD.findall(text)
    assert told.startswith(b"\x1b]777;notify;vlora-tui;x")
    assert told.count(b";") == 3


def test_a_setting_turns_it_off(home: Path) -> None:
    place = home / "config" / "vlora-tui"
    place.mkdir(parents=True, exist_ok=True)
    (place / "config.toml").write_text("notify = false\ntitle = false\n")
    text = written()
    assert TOLD.findall(text) == []
    assert b"\x1b]2;" not in text
