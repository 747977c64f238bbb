"""The process that an interface keeps ready for its next job."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.app.jobs.conftest import PATIENCE, Gate, build_recipe, pid_of, until
from tests.witnesses.files import tree
from vlora_tui.jobs import JobStore, State, WarmWorker, start, wait
from vlora_tui.jobs import worker as worker_module
from vlora_tui.jobs.identity import is_running, of_process


@pytest.fixture
def worker() -> Iterator[WarmWorker]:
    worker = WarmWorker()
    until(lambda: worker.is_ready, "the worker was warm")
    yield worker
    worker.close()
    until(lambda: worker.process.poll() is not None, "the worker was gone")


def test_a_warm_worker_becomes_the_job(
    store: JobStore, adapters: Path, tmp_path: Path, gate: Gate, worker: WarmWorker
) -> None:
    pid = worker.process.pid
    assert "libtorch" in Path(f"/proc/{pid}/maps").read_text()
    job = start(store, build_recipe(adapters, tmp_path / "s"), worker=worker)
    assert pid_of(job) == pid
    assert os.getsid(pid) == pid
    view = wait(job, PATIENCE)
    assert view.state is State.FINISHED, job.log_tail()
    until(lambda: "written to" in "\n".join(job.log_tail()), "the log was its own")
    assert not worker.is_ready  # used up
    second = start(store, build_recipe(adapters, tmp_path / "t"), worker=worker)
    assert wait(second, PATIENCE).state is State.FINISHED
    assert tree(tmp_path / "s") == tree(tmp_path / "t")


def test_a_warm_worker_that_died_costs_nothing_but_time(
    store: JobStore, adapters: Path, tmp_path: Path, worker: WarmWorker
) -> None:
    worker.process.kill()
    worker.process.wait()
    job = start(store, build_recipe(adapters, tmp_path / "s"), worker=worker)
    assert wait(job, PATIENCE).state is State.FINISHED


def test_a_warm_worker_that_does_not_answer_is_ended_and_replaced(
    store: JobStore, adapters: Path, tmp_path: Path, worker: WarmWorker
) -> None:
    os.kill(worker.process.pid, signal.SIGSTOP)
    job = start(store, build_recipe(adapters, tmp_path / "s"), worker=worker)
    assert wait(job, PATIENCE).state is State.FINISHED
    assert pid_of(job) != worker.process.pid


def test_a_warm_worker_ends_with_its_interface() -> None:
    code = (
        "from vlora_tui.jobs import WarmWorker\n"
        "worker = WarmWorker()\n"
        "while not worker.is_ready: pass\n"
        "print(worker.process.pid, flush=True)\n"
        "input()\n"
    )
    words = [sys.executable, "-c", code]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as interface:
        assert interface.stdout is not None
        pid = int(interface.stdout.readline())
        identity = of_process(pid)
        assert identity is not None
        interface.kill()
    until(lambda: not is_running(identity) or is_zombie(pid), "the worker was gone")


def test_a_warm_worker_waits_five_minutes_and_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    assert worker_module.IDLE_SECONDS == 300
    monkeypatch.setattr(worker_module, "IDLE_SECONDS", 0.0)
    ours, theirs = socket.socketpair()
    with ours:
        assert worker_module.wait_for_job(theirs.detach()) is None
        assert ours.recv(9) == worker_module.READY
        assert ours.recv(9) == b""  # it has let go


def is_zombie(pid: int) -> bool:
    """Ended, though nobody has asked for its exit status: its parent was killed."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True
