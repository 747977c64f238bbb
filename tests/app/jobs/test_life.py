"""Jobs as processes: they start, outlive who started them, stop when asked, go on after a kill."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.app.jobs.conftest import (
    LAYER,
    PATIENCE,
    SAVE,
    Gate,
    build_recipe,
    kill,
    pid_of,
    state,
    until,
)
from tests.witnesses.files import tree
from vlora_engine.catalog.read import read_manifest
from vlora_tui.jobs import (
    Job,
    JobStore,
    JobWatcher,
    State,
    cancel,
    follow,
    look,
    remove,
    resume,
    start,
    wait,
)
from vlora_tui.jobs.control import JobStateError
from vlora_tui.pipeline import events
from vlora_tui.recipe.model import Quantize
from vlora_tui.recipe.reader import load_recipe


def test_a_job_starts_is_followed_and_finishes(
    store: JobStore, adapters: Path, tmp_path: Path
) -> None:
    recipe = build_recipe(adapters, tmp_path / "out" / "s", export=tmp_path / "out" / "tasks")
    job = start(store, recipe)
    assert job.recipe() == recipe  # absolute and resolved before: the same
    told = []
    for seen, new in follow(job):
        view, told = seen, told + new
    assert view.state is State.FINISHED, job.log_tail()
    assert [one.seq for one in told] == list(range(1, len(told) + 1))
    types = [one.event.type for one in told if one.event.type != "progress"]
    assert types[:4] == ["queued", "started", "adapters_found", "checked"]
    assert types[4:10] == ["layer_done"] * 6
    assert types[-1] == "finished"
    assert view.outputs[0] == str(tmp_path / "out" / "s")
    assert (tmp_path / "out" / "s" / "subspace.json").is_file()
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["s", "tasks"]
    wait(job, PATIENCE)  # the last event is told before the process has ended
    assert "written to" in "\n".join(job.log_tail())
    assert view.last(events.Started).job == job.id
    with pytest.raises(JobStateError, match="has finished"):
        resume(store, job)


def test_a_job_has_a_session_of_its_own_and_no_stdin(
    store: JobStore, adapters: Path, tmp_path: Path, gate: Gate
) -> None:
    gate.close_after(LAYER, 1)
    job = start(store, build_recipe(adapters, tmp_path / "s"))
    gate.reached()
    pid = pid_of(job)
    assert os.getsid(pid) == pid
    assert os.readlink(f"/proc/{pid}/fd/0") == "/dev/null"
    assert {os.readlink(f"/proc/{pid}/fd/{n}") for n in (1, 2)} == {str(job.log_path)}
    view = look(job)
    assert view.state is State.RUNNING
    assert view.progress is not None
    assert (view.progress.stage, view.progress.total) == ("build", 6)
    assert view.memory is not None
    assert view.memory > 50_000_000  # torch is in there
    command = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    assert command[1:5] == ["-m", "vlora_tui", "run", "--headless"]
    gate.release()
    assert wait(job, PATIENCE).state is State.FINISHED


@pytest.mark.parametrize("discard", [False, True])
def test_cancel_stops_at_the_next_layer_and_keeps_or_discards(
    store: JobStore, adapters: Path, tmp_path: Path, gate: Gate, discard: bool
) -> None:
    gate.close_after(LAYER, 2)
    job = start(store, build_recipe(adapters, tmp_path / "s"))
    gate.reached()
    cancel(job, discard=discard)
    gate.release()
    view = wait(job, PATIENCE)
    assert view.state is State.CANCELLED
    assert isinstance(view.end, events.Cancelled)
    assert view.end.resumable is not discard
    assert ("discarded" if discard else "kept for a resume") in view.end.text
    assert "2 modules were" in view.end.text
    names = [path.name for path in tmp_path.iterdir()]
    assert names == ([] if discard else [f".s.part-{job.id}"])
    assert job.kept_layers() == (0 if discard else 2)


def test_a_cancelled_job_goes_on_and_its_result_is_the_same(
    store: JobStore, adapters: Path, tmp_path: Path, gate: Gate, undisturbed: Path
) -> None:
    gate.close_after(LAYER, 3)
    out = tmp_path / "cancelled" / "s"  # as deep as the other: sources are stored relative to it
    job = start(store, build_recipe(adapters, out))
    gate.reached()
    cancel(job)
    gate.release()
    assert wait(job, PATIENCE).state is State.CANCELLED
    assert job.kept_layers() == 3
    gate.no_more()
    resume(store, job)
    view = wait(job, PATIENCE)
    assert view.state is State.FINISHED
    assert view.attempts == 2
    assert view.last(events.SubspaceWritten).figures["reused_layers"] == 3
    assert tree(out) == tree(undisturbed / "s")


def test_a_killed_job_is_recognised_and_resumed_byte_for_byte(
    store: JobStore, adapters: Path, tmp_path: Path, gate: Gate, undisturbed: Path
) -> None:
    gate.close_after(LAYER, 4)
    out = tmp_path / "killed"
    job = start(store, build_recipe(adapters, out / "s", export=out / "tasks"))
    gate.reached()
    kill(job)
    left = sorted(path.name for path in out.iterdir())
    assert left == [".s.lock", f".s.part-{job.id}"]  # nothing half-written

    found = JobStore.open().find(job.id)  # as another interface would find it
    view = look(found)
    assert view.state is State.VANISHED
    assert view.can_resume
    assert found.kept_layers() == 4

    gate.no_more()
    resume(store, found)
    view = wait(found, PATIENCE)
    assert view.state is State.FINISHED, found.log_tail()
    assert view.last(events.SubspaceWritten).figures["reused_layers"] == 4
    assert tree(out) == tree(undisturbed)
    assert [path.name for path in sorted(out.iterdir())] == ["s", "tasks"]


def test_a_job_killed_while_it_exports_does_not_build_again(
    store: JobStore, adapters: Path, tmp_path: Path, gate: Gate, undisturbed: Path
) -> None:
    gate.close_after(SAVE, 2)
    out = tmp_path / "killed"
    job = start(store, build_recipe(adapters, out / "s", export=out / "tasks"))
    gate.reached()
    until(lambda: len(look(job).all(events.Exported)) == 1, "the first task was told")
    before = (out / "s" / "subspace.json").stat().st_mtime_ns
    kill(job)
    gate.no_more()
    # The second task is in its place, but the job was killed before it could say so.
    second = sorted(path.name for path in (out / "tasks").iterdir())[1]
    (out / "tasks" / second).rename(tmp_path / "taken-away")
    resume(store, job)
    view = wait(job, PATIENCE)
    assert view.state is State.FINISHED, job.log_tail()
    assert (out / "s" / "subspace.json").stat().st_mtime_ns == before
    assert len(view.all(events.SubspaceWritten)) == 1
    assert {event.task for event in view.all(events.Verified)} == {f"task{i}" for i in range(4)}
    assert tree(out) == tree(undisturbed)


def test_a_vanished_job_is_discarded_or_removed_with_its_layers(
    store: JobStore, adapters: Path, tmp_path: Path, gate: Gate
) -> None:
    gate.close_after(LAYER, 1)
    jobs = []
    for name in ("a", "b"):
        job = start(store, build_recipe(adapters, tmp_path / name))
        gate.reached()
        with pytest.raises(JobStateError, match="running"):
            remove(store, job)
        kill(job)
        gate.release()
        jobs.append(job)
    with pytest.raises(JobStateError, match="vanished"):
        cancel(jobs[0])
    cancel(jobs[0], discard=True)
    view = look(jobs[0])
    assert view.state is State.CANCELLED
    assert isinstance(view.end, events.Cancelled)
    assert "1 module was discarded" in view.end.text
    remove(store, jobs[1])
    assert list(tmp_path.iterdir()) == []
    assert [job.id for job in store.jobs()] == [jobs[0].id]


@pytest.mark.parametrize("goes_on", [True, False])
def test_a_job_killed_before_it_packs_goes_on_with_what_is_built_or_discards_it(
    store: JobStore, adapters: Path, tmp_path: Path, gate: Gate, goes_on: bool
) -> None:
    gate.close_after("vlora_tui.pipeline.unfinished|mark_built", 1)
    job = start(store, replace(build_recipe(adapters, tmp_path / "s"), quantize=Quantize(bits=4)))
    gate.reached()
    kill(job)
    gate.release()
    gate.no_more()
    assert look(job).state is State.VANISHED
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == [
        f".s.part-{job.id}-built"
    ]
    assert job.partial() == tmp_path / f".s.part-{job.id}-built"
    if not goes_on:
        cancel(job, discard=True)
        assert list(tmp_path.iterdir()) == []
        return
    resume(store, job)
    view = wait(job, PATIENCE)
    assert view.state is State.FINISHED, job.log_tail()
    assert [path.name for path in tmp_path.iterdir()] == ["s"]
    assert read_manifest(tmp_path / "s").quantization == Quantize(bits=4).quantization()
    told = [e.text for e in view.all(events.Remark)]
    assert any("packed now" in text for text in told)


def test_the_beginnings_of_exports_go_with_a_vanished_job(
    store: JobStore, adapters: Path, tmp_path: Path, gate: Gate
) -> None:
    gate.close_after(LAYER, 1)
    job = start(store, build_recipe(adapters, tmp_path / "s", export=tmp_path / "tasks"))
    gate.reached()
    kill(job)
    for name in (".task0.part-save", ".task1.part-save", "task2"):
        (tmp_path / "tasks" / name).mkdir(parents=True)
    os.utime(tmp_path / "tasks" / ".task0.part-save", (0, 0))
    future = time.time() + 3600  # begun after the job was gone
    os.utime(tmp_path / "tasks" / ".task1.part-save", (future, future))
    remove(store, job)
    assert sorted(p.name for p in (tmp_path / "tasks").iterdir()) == [".task1.part-save", "task2"]
    assert [path.name for path in tmp_path.iterdir()] == ["tasks"]


LAUNCHER = """\
import os, signal, sys, time
from pathlib import Path
from vlora_tui.jobs import JobStore, start
from vlora_tui.recipe.reader import load_recipe
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it comes ignored
terminal = os.open(sys.argv[1], os.O_RDWR)  # a session leader's first: now its controlling one
assert os.tcgetpgrp(terminal) == os.getpid()
job = start(JobStore.open(), load_recipe(sys.argv[2]))
Path(sys.argv[3]).write_text(job.id)
while True:
    signal.pause()
"""


@pytest.mark.parametrize("how", ["hang up", "kill -9"])
def test_a_job_outlives_the_terminal_and_the_interface(
    store: JobStore, adapters: Path, tmp_path: Path, gate: Gate, how: str
) -> None:
    gate.close_after(LAYER, 2)
    recipe, told = tmp_path / "r.toml", tmp_path / "id"
    recipe.write_text(build_recipe(adapters, tmp_path / "s").to_toml())
    master, slave = os.openpty()
    words = [sys.executable, "-c", LAUNCHER, os.ttyname(slave), str(recipe), str(told)]
    with subprocess.Popen(words, start_new_session=True, cwd=tmp_path) as launcher:
        os.close(slave)
        until(lambda: told.exists() and told.read_text(), "the launcher had started the job")
        gate.reached()
        if how == "hang up":
            os.close(master)  # the line drops: the kernel sends SIGHUP to the terminal's session
        else:
            launcher.kill()
        try:
            launcher.wait(PATIENCE)
        finally:
            launcher.kill()  # leaving the block waits without a bound
    if how == "hang up":
        assert launcher.returncode == -signal.SIGHUP
    else:
        os.close(master)
    job = store.find(told.read_text())
    assert state(job) == "running"
    gate.release()
    view = wait(job, PATIENCE)
    assert view.state is State.FINISHED
    assert (tmp_path / "s" / "subspace.json").is_file()


def test_two_jobs_on_one_device_run_one_after_the_other(
    store: JobStore, adapters: Path, tmp_path: Path, gate: Gate
) -> None:
    gate.close_after(LAYER, 1)
    first = start(store, build_recipe(adapters, tmp_path / "a"))
    gate.reached()
    gate.no_more()
    second = start(store, build_recipe(adapters, tmp_path / "b"))
    third = start(store, build_recipe(adapters, tmp_path / "c"))
    until(lambda: look(second).ahead == (first.id,), "the second knew for whom it waits")
    until(lambda: look(third).ahead == (first.id, second.id), "the third came behind them")
    assert state(second) == "queued"
    loaded = Path(f"/proc/{pid_of(second)}/maps").read_text()
    assert "libtorch" not in loaded
    gate.release()
    views = [wait(job, PATIENCE) for job in (first, second, third)]
    assert [view.state for view in views] == [State.FINISHED] * 3
    for before, after in itertools.pairwise(views):
        assert before.ended is not None
        assert after.begun is not None
        assert after.begun >= before.ended
    for name in ("b", "c"):
        assert tree(tmp_path / name) == tree(tmp_path / "a")
    assert list((store.state_dir / "devices").glob("*.queue/*")) == []


def test_a_queued_job_can_be_cancelled_and_a_dead_one_holds_nobody_up(
    store: JobStore, adapters: Path, tmp_path: Path, gate: Gate
) -> None:
    gate.close_after(LAYER, 1)
    running = start(store, build_recipe(adapters, tmp_path / "a"))
    gate.reached()
    gate.no_more()
    waiting = [start(store, build_recipe(adapters, tmp_path / name)) for name in "bcd"]
    until(lambda: len(look(waiting[2]).ahead) == 3, "all three waited")
    cancel(waiting[0])
    view = wait(waiting[0], PATIENCE)
    assert view.state is State.CANCELLED
    assert view.begun is None
    kill(waiting[1])
    assert state(waiting[1]) == "vanished"
    gate.release()
    assert wait(waiting[2], PATIENCE).state is State.FINISHED
    assert wait(running, PATIENCE).state is State.FINISHED


def test_a_stopped_job_hears_a_cancel(
    store: JobStore, adapters: Path, tmp_path: Path, gate: Gate
) -> None:
    gate.close_after(LAYER, 1)
    job = start(store, build_recipe(adapters, tmp_path / "s"))
    gate.reached()
    os.kill(pid_of(job), signal.SIGSTOP)
    cancel(job)
    gate.release()
    assert wait(job, PATIENCE).state is State.CANCELLED


def test_an_output_of_a_running_job_is_refused_to_another(
    store: JobStore, adapters: Path, tmp_path: Path, gate: Gate
) -> None:
    from vlora_engine.errors import ParameterError

    gate.close_after(LAYER, 1)
    job = start(store, build_recipe(adapters, tmp_path / "s"))
    gate.reached()
    with pytest.raises(ParameterError, match="Another job is writing there") as caught:
        start(store, build_recipe(adapters, tmp_path / "s"))
    assert job.id in str(caught.value)
    assert [one.id for one in store.jobs()] == [job.id]


def test_a_job_that_fails_says_so(store: JobStore, adapters: Path, tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "mine.txt").write_text("precious")
    job = start(store, build_recipe(adapters, tmp_path / "s"))
    view = wait(job, PATIENCE)
    assert view.state is State.FAILED
    assert view.error is not None
    assert "already exists" in view.error["what"]
    # The last event is told before the process writes its last line.
    until(lambda: "already exists" in "\n".join(job.log_tail()), "the log said so too")
    assert tree(tmp_path / "s") == {"mine.txt": b"precious"}


FAIL = """\
import vlora_engine.compress.build as build
original, calls = build.build_layer, []
def failing(*args):
    calls.append(1)
    if len(calls) == 4:
        raise OSError(5, "Input/output error")
    return original(*args)
build.build_layer = failing
"""


def test_a_job_that_failed_in_its_middle_goes_on_and_its_result_is_the_same(
    store: JobStore,
    adapters: Path,
    tmp_path: Path,
    undisturbed: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook" / "sitecustomize.py").write_text(FAIL)
    out = tmp_path / "failed" / "s"
    with monkeypatch.context() as patch:
        before = os.environ.get("PYTHONPATH")
        hooked = [str(tmp_path / "hook"), *([before] if before else [])]
        patch.setenv("PYTHONPATH", os.pathsep.join(hooked))
        job = start(store, build_recipe(adapters, out))
        view = wait(job, PATIENCE)
    assert view.state is State.FAILED
    assert view.error is not None
    assert "Input/output error" in view.error["what"]
    assert f"jobs resume {job.id}" in view.error["remedy"]
    kept = job.kept_layers()
    assert kept >= 2  # two are under way at a time
    resume(store, job)
    view = wait(job, PATIENCE)
    assert view.state is State.FINISHED, job.log_tail()
    assert view.last(events.SubspaceWritten).figures["reused_layers"] == kept
    assert tree(out) == tree(undisturbed / "s")


def test_the_watcher_tells_what_changed_and_nothing_else(
    store: JobStore, adapters: Path, tmp_path: Path, gate: Gate
) -> None:
    gate.close_after(LAYER, 2)
    watcher = JobWatcher(store)
    assert watcher.poll() == []
    job = start(store, build_recipe(adapters, tmp_path / "s"))
    assert [view.job.id for view in watcher.poll()] == [job.id]
    assert watcher[job.id].state is State.QUEUED
    gate.reached()
    watcher.poll()
    assert watcher[job.id].state is State.RUNNING
    os.kill(pid_of(job), signal.SIGSTOP)
    watcher.poll()
    assert watcher.poll() == []
    os.kill(pid_of(job), signal.SIGCONT)
    kill(job)
    assert [view.state for view in watcher.poll()] == [State.VANISHED]
    assert watcher.poll() == []
    gate.release()
    gate.no_more()
    resume(store, job)
    watcher.poll()
    assert watcher[job.id].state in (State.QUEUED, State.RUNNING)
    wait(job, PATIENCE)
    watcher.poll()
    assert watcher[job.id].state is State.FINISHED
    remove(store, job)
    watcher.poll()
    assert watcher.views == {}


def test_the_recipe_of_a_job_has_no_patterns_and_no_relative_paths(
    store: JobStore, adapters: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = adapters.parent / "r.toml"
    file.write_text(
        '[input]\nadapters = ["runs/task[01]"]\n[compress]\nk = 2\n[output]\nsubspace = "gone"\n'
    )
    recipe = load_recipe(file)
    job, lock = store.create(recipe)
    lock.release()
    loaded = Job.load(job.folder)
    assert loaded == job
    assert [entry.path for entry in loaded.recipe().input.adapters] == [
        str(adapters / "task0"),
        str(adapters / "task1"),
    ]
    assert loaded.recipe().output == str(adapters.parent / "gone")
