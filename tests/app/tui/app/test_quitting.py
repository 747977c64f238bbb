"""Quitting while jobs run: which they are, whose they are, and that no other's is cancelled."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot

from tests.app.tui.adapters.test_adapters import app, settle
from tests.app.tui.drive import run
from vlora_tui.jobs import Job, JobStore, JobView, State
from vlora_tui.jobs.identity import Identity, Starter, of_process, this_process
from vlora_tui.jobs.store import JobInfo
from vlora_tui.tui.app.quitting import quit_dialog
from vlora_tui.tui.widgets.dialogs import ListProblems
from vlora_tui.tui.widgets.table import Table


def running(name: str, starter: Starter | None, *outputs: str) -> JobView:
    title = f"4 inputs -> {name}"
    info = JobInfo(name, "build", title, 0.0, outputs=outputs, started_by=starter)
    return JobView(Job(Path("/nowhere") / name, info), State.RUNNING)


def here() -> Starter:
    starter = this_process()
    assert starter is not None
    return starter


def elsewhere(**fields: Any) -> Starter:
    """Another process of this machine: the one that started this one."""
    parent = of_process(os.getppid())
    assert parent is not None
    return Starter(replace(parent, **fields), "/dev/pts/77")


OWN, OTHER, UNKNOWN = "own", "other", "unknown"


def jobs_of(*kinds: str) -> list[JobView]:
    starters = {OWN: here(), OTHER: elsewhere(), UNKNOWN: None}
    return [
        running(f"{kind}-{i}", starters[kind], f"/data/{kind}-{i}") for i, kind in enumerate(kinds)
    ]


@pytest.mark.parametrize("key", ["q", "ctrl+q"])
@pytest.mark.parametrize(
    ("kinds", "cancelled"),
    [
        ([OWN], ["own-0"]),
        ([OWN, OTHER, OWN, UNKNOWN], ["own-0", "own-2"]),
        ([OTHER], []),
        ([OTHER, UNKNOWN], []),
    ],
)
def test_c_cancels_the_jobs_of_this_window_alone(
    key: str, kinds: list[str], cancelled: list[str]
) -> None:
    asked: list[str] = []
    application = app()

    async def steps(pilot: Pilot[Any]) -> None:
        await settle(pilot)
        application.jobs.views = jobs_of(*kinds)
        application.jobs.cancel = lambda job, discard: asked.append(job)  # type: ignore[method-assign]
        await pilot.press(key)
        assert isinstance(application.screen, ListProblems)
        await pilot.press("s")
        assert not isinstance(application.screen, ListProblems)
        assert application.is_running
        await pilot.press(key, "c")
        await pilot.pause()
        assert asked == cancelled
        if not cancelled:  # there is nothing that c could mean
            assert isinstance(application.screen, ListProblems)
            await pilot.press("l")

    run(application, steps)
    assert asked == cancelled
    assert application.return_code == 0


def test_enter_leaves_them_running() -> None:
    asked: list[str] = []
    application = app()

    async def steps(pilot: Pilot[Any]) -> None:
        await settle(pilot)
        application.jobs.views = jobs_of(OWN, OTHER)
        application.jobs.cancel = lambda job, discard: asked.append(job)  # type: ignore[method-assign]
        await pilot.press("q", "enter")
        await pilot.pause()

    run(application, steps)
    assert application.return_code == 0
    assert asked == []


@pytest.mark.parametrize("size", [(120, 36), (80, 24), (40, 12)])
def test_the_question_can_be_answered_on_every_terminal(size: tuple[int, int]) -> None:
    application = app()

    async def steps(pilot: Pilot[Any]) -> None:
        await settle(pilot)
        application.jobs.views = jobs_of(OWN, *[OTHER] * 12)
        await pilot.press("q")
        await pilot.pause()
        table = application.screen.query_one(Table)
        assert table.region.height == 3
        assert table.region.bottom < size[1]
        shown = "\n".join(table.render_line(y).text for y in range(3))
        for words in ("leave them running", "cancel this window's one", "stay"):
            assert words in shown
        assert ("others go on" in shown) == (size[0] >= 80)
        await pilot.press("s")

    run(application, steps, size=size)


@pytest.mark.parametrize("keys", [("s",), ("enter",), ("escape",), ("l",)])
def test_the_palette_never_quits_at_one_key(keys: tuple[str, ...]) -> None:
    """Its first line is "Back / Quit": Enter on an open palette ended the interface."""
    application = app()

    async def steps(pilot: Pilot[Any]) -> None:
        await settle(pilot)
        entries = {
            entry.title: entry for entry in application.get_system_commands(application.screen)
        }
        entries["Back / Quit"].callback()
        await pilot.pause()
        assert isinstance(application.screen, ListProblems)
        assert application.is_running
        await pilot.press(*keys)
        await pilot.pause()
        assert (application.return_code is not None) == (keys == ("l",))

    run(application, steps)


def test_each_job_is_named_with_its_output_and_where_it_was_started() -> None:
    views = [*jobs_of(OWN, OTHER), running("unknown", None)]
    views.append(running("gone", elsewhere(started="1")))
    views.append(running("remote", elsewhere(host="gpu-box")))
    told = quit_dialog(views, views[:1]).problems
    assert [name for name, _ in told] == [view.job.info.title for view in views]
    lines = ["\n".join(lines) for _, lines in told]
    assert "/data/own-0" in lines[0]
    assert f"in this window (process {os.getpid()}" in lines[0]
    assert f"in another window (process {os.getppid()}, /dev/pts/77)" in lines[1]
    assert "the cache of spectra" in lines[2]
    assert "not known" in lines[2]
    assert "which has ended" in lines[3]
    assert "on gpu-box" in lines[4]


def test_a_job_says_who_started_it_and_who_resumed_it(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record as another process reads it, and a job of an earlier version."""
    from tests.app.jobs.conftest import SPECTRUM, Gate, kill
    from vlora_tui.jobs import JobWatcher, resume, start
    from vlora_tui.recipe.model import AdapterInput, Input, Recipe

    other = (
        "import sys; from vlora_tui.jobs import JobStore, start, wait, cancel\n"
        "from vlora_tui.recipe.model import AdapterInput, Input, Recipe\n"
        "entry = AdapterInput(sys.argv[1], 'task00')\n"
        "job = start(JobStore.open(), Recipe(input=Input(adapters=(entry,))))\n"
        "from tests.app.jobs.conftest import kill\n"
        "kill(job)\n"
        "print(job.id)\n"
    )
    root = Path(__file__).resolve().parents[4]
    gate = Gate(tmp_path, monkeypatch)
    gate.close_after(SPECTRUM)  # no job ends before it is killed
    done = subprocess.run(
        [sys.executable, "-c", other, str(runs / "task00")],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(
                [os.environ["PYTHONPATH"], str(root), str(root / "engine")]
            ),
        },
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    store = JobStore.open()
    watcher = JobWatcher(store)
    watcher.poll()
    (view,) = watcher.views.values()
    starter = view.job.info.started_by
    assert starter is not None
    assert not starter.is_this_process
    assert starter.tty == ""
    assert "without a terminal" in starter.words()

    assert view.can_resume
    again = resume(JobStore.open(), view.job)  # another store: the watcher's cannot know
    kill(again)
    watcher.poll()
    assert view.job.info.started_by == this_process()

    ours = start(store, Recipe(input=Input(adapters=(AdapterInput(str(runs / "task01"), "b"),))))
    kill(ours)
    assert Job.load(ours.folder).info.started_by == this_process()
    path = ours.folder / "job.json"
    told = json.loads(path.read_text())
    odd = {"host": 1, "boot": "", "pid": -1, "started": ""}
    for value in (None, 3, {"identity": []}, {"identity": odd}, {"identity": odd, "tty": 1}):
        path.write_text(json.dumps({**told, "started_by": value}))
        assert Job.load(ours.folder).info.started_by is None
    del told["started_by"]  # as earlier versions wrote it
    path.write_text(json.dumps(told))
    assert Job.load(ours.folder).info.started_by is None


def test_a_pid_that_is_used_again_is_nobody() -> None:
    identity = here().identity
    assert Starter(identity).is_this_process
    assert not Starter(Identity(identity.host, identity.boot, identity.pid, "0")).is_this_process
    assert not Starter(replace(identity, boot="another")).is_this_process
