"""Which job the status line tells of, and what is said of one that waits."""

from __future__ import annotations

from pathlib import Path

import pytest

from vlora_tui.jobs.store import Job, JobInfo
from vlora_tui.jobs.watch import JobView, State
from vlora_tui.pipeline import events
from vlora_tui.tui.core.job_news import foremost, job_words, left_words, waiting_words
from vlora_tui.tui.widgets.topbar import fitting


def job(id: str, state: State, ahead: tuple[str, ...] = ()) -> JobView:
    view = JobView(Job(Path("/jobs") / id, JobInfo(id, "build", f"build {id}", 0.0)), state=state)
    view.ahead = ahead
    return view


def own(view: JobView) -> bool:
    return view.job.id.startswith("own")


def test_running_comes_before_waiting_and_ours_before_others() -> None:
    views = [
        job("elsewhere", State.ELSEWHERE),
        job("other-waits", State.QUEUED),
        job("own-waits", State.QUEUED, ("other-runs",)),
        job("other-runs", State.RUNNING),
        job("own-runs", State.RUNNING),
    ]
    order = []
    while views:
        first = foremost(views, own)
        assert first is not None
        order.append(first.job.id)
        views.remove(first)
    assert order == ["own-runs", "other-runs", "own-waits", "other-waits", "elsewhere"]
    assert foremost([], own) is None
    assert job_words([], own) == ""


def test_the_words_have_the_time_left() -> None:
    view = job("own", State.RUNNING)
    view.progress = events.Progress("layers", 3, 9)
    view.stage_since, view.stage_from, view.progress_time = 0.0, 0, 30.0
    waiting = job("own-2", State.QUEUED, ("own",))
    assert job_words([waiting, view], own) == "job: layers 3/9, 60 s left +1"
    assert job_words([job("x", State.RUNNING)], own) == "other job: starting"
    assert job_words([waiting], own) == "job: waiting for 1 job"
    assert fitting("a model", "other job: layers 3/9, 60 s left", 12) == "layers 3/9"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "1 s left"), (89, "89 s left"), (100, "2 min left"), (5400, "1.5 h left")],
)
def test_time_left(seconds: float, words: str) -> None:
    assert left_words(seconds) == words


def test_who_waits_says_for_whom() -> None:
    first = job("first", State.RUNNING)
    first.progress = events.Progress("build", 1, 4)
    waits = job("own", State.QUEUED, ("first", "second"))
    views = [waits, first]
    told = "Waiting for: build first (building 1/4), then 1 more job."
    assert waiting_words(waits, views) == told
    assert waiting_words(first, views) == ""
    assert waiting_words(None, views) == ""
    gone = job("own", State.QUEUED, ("unknown",))
    assert waiting_words(gone, views) == "Waiting for: another job."
