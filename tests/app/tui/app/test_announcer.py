"""Terminal title and notifications: when they come, and what they are made of."""

from __future__ import annotations

from pathlib import Path

import pytest

from vlora_tui.jobs.store import Job, JobInfo
from vlora_tui.jobs.watch import JobView, State, TimedEvent
from vlora_tui.pipeline import events
from vlora_tui.tui.app import app  # noqa: F401  (declares the keys)
from vlora_tui.tui.app.announcer import Announcer
from vlora_tui.tui.terminal.announce import notification, title
from vlora_tui.tui.terminal.shown_cells import ShownCells


def job(state: State, *, seconds: float = 60.0, done: int = 0, kind: str = "build") -> JobView:
    view = JobView(Job(Path("/jobs/a"), JobInfo("a", kind, "compress\x1b 9; adapters", 0.0)))
    view.state, view.begun = state, 100.0
    if state.is_over:
        view.ended = 100.0 + seconds
    view.take(TimedEvent(1, 100.0, events.Progress("build", done, 200)))
    return view


def announcer(
    *, seen: bool = False, focus: bool = True, titled: bool = True, notifies: bool = True
) -> tuple[Announcer, list[str], list[tuple[str, bool]]]:
    written: list[str] = []
    said: list[tuple[str, bool]] = []
    made = Announcer(
        written.append,
        lambda text, failed: said.append((text, failed)),
        is_seen=lambda view: seen,
        has_focus=lambda: focus,
        titled=titled,
        notifies=notifies,
    )
    return made, written, said


def own(view: JobView) -> bool:
    return True


def ended(made: Announcer, last: JobView) -> None:
    made.looked([job(State.RUNNING)], own)
    made.looked([last], own)


def test_the_title_follows_whole_percents() -> None:
    made, written, _ = announcer()
    for done in (0, 1, 2, 3, 4):
        made.looked([job(State.RUNNING, done=done)], own)
    made.looked([], own)
    titles = [text.partition(";")[2].rstrip("\x07") for text in written]
    assert titles == [
        "0 % building - vlora-tui", "1 % building - vlora-tui", "2 % building - vlora-tui",
        "vlora-tui",
    ]  # fmt: skip
    made, written, _ = announcer(titled=False)
    made.looked([job(State.RUNNING, done=100)], own)
    assert written == []


@pytest.mark.parametrize(
    ("recipe", "stages"),
    [
        ("[input]", ["check", "spectra", "groups", "methods"]),
        ('[input]\n[compress]\nmethod = "auto"', ["check", "codec", "groups", "build", "refine"]),
        ("[input]\n[compress]\n[quantize]\n[[export]]", ["check", "spectra", "build", "quantize"]),
        ("[input]\n[[merge]]", ["download", "merge"]),
        ("", ["evaluate"]),
    ],
)
def test_the_percentage_never_falls(recipe: str, stages: list[str]) -> None:
    view = job(State.RUNNING)
    view.take(TimedEvent(1, 100.0, events.Started(recipe)))
    made, written, _ = announcer()
    for stage in stages:
        for done in (1, 4, 2, 8):  # a stage may be begun anew
            view.take(TimedEvent(2, 101.0, events.Progress(stage, done, 8)))
            made.looked([view], own)
    titles = [text.partition(";")[2] for text in written]
    shown = [int(text.split(" %")[0]) for text in titles if " %" in text]
    assert shown == sorted(shown)
    assert len(shown) > 2
    assert shown[-1] == 100 or "export" in recipe  # which comes last, and says nothing on its way
    assert [text for text in titles if " %" not in text] == [
        "downloading - vlora-tui\x07"
    ] * stages.count("download")


def test_another_attempt_begins_at_nothing() -> None:
    view = job(State.RUNNING, done=150)
    assert view.share == 0.75
    view.take(TimedEvent(2, 100.0, events.Started("[input]")))
    assert view.share is None


def test_a_long_job_that_ends_out_of_sight_is_told() -> None:
    made, written, said = announcer(titled=False)
    ended(made, job(State.FINISHED))
    assert len(written) == 1
    assert "compress" in written[0]
    assert "finished" in written[0]
    assert said == [("compress\\x1b 9; adapters: finished. 3 shows it.", False)]
    made, _, said = announcer(titled=False)
    ended(made, job(State.FAILED))
    assert said[0][1]


def test_what_is_short_or_seen_or_turned_off_is_not() -> None:
    for kind in ({"seen": True}, {"notifies": False}):
        made, written, _ = announcer(titled=False, **kind)
        ended(made, job(State.FINISHED))
        assert written == []
    made, written, said = announcer(titled=False)
    ended(made, job(State.FINISHED, seconds=3.0))
    assert (written, said) == ([], [])
    made, written, said = announcer(titled=False)
    made.looked([job(State.RUNNING)], lambda view: False)  # another window's
    made.looked([job(State.FINISHED)], lambda view: False)
    assert (written, said) == ([], [])
    made, written, said = announcer(titled=False, seen=True, focus=False)  # the window is covered
    ended(made, job(State.FINISHED))
    assert len(written) == 1
    assert said == []


def test_names_cannot_end_a_sequence_early() -> None:
    evil = "a\x1b\\b\x07c;d"
    for text in (title(evil), notification("x", evil, {"TERM": "xterm"})):
        inside = text.removesuffix("\x07").removesuffix("\x07").lstrip("\x1b")
        assert "\x1b" not in inside
        assert "\x07" not in inside
    assert notification("x", "y;z", {}).count(";") == 3
    assert notification("x", "y", {"TERM_PROGRAM": "WezTerm"}).startswith("\x1b]9;x: y\x07")
    assert notification("x", "y", {"TERM_PROGRAM": "vte"}).endswith("\x07\x07")  # and the bell


def test_in_tmux_the_terminal_outside_gets_the_notification() -> None:
    plain = notification("x", "y", {"TERM": "tmux-256color"})
    inside = notification("x", "y", {"TERM": "tmux-256color", "TMUX": "/tmp/s,1,0"})
    head, tail = "\x1bPtmux;", "\x1b\\\x07"  # tmux's own form; the bell is tmux's to ring
    assert inside.startswith(head)
    assert inside.endswith(tail)
    assert (
        inside.removeprefix(head).removesuffix(tail).replace("\x1b\x1b", "\x1b") + "\x07" == plain
    )
    marked = {"TMUX": "/tmp/s,1,0", "TERM_PROGRAM": "tmux", "WEZTERM_PANE": "3"}
    assert "\x1b\x1b]9;x: y" in notification("x", "y", marked)
    cells = ShownCells()
    cells.changed("\x1b[1;1Habc")
    assert cells.changed(inside) == inside
    assert cells.changed("\x1b[1;1Habc") == ""  # what is shown is still known


def test_after_a_suspension_the_title_is_set_anew() -> None:
    made, written, _ = announcer()
    made.looked([job(State.RUNNING, done=100)], own)
    made.looked([job(State.RUNNING, done=100)], own)
    assert len(written) == 1
    made.forget_title()
    made.looked([job(State.RUNNING, done=100)], own)
    assert written == [written[0]] * 2
