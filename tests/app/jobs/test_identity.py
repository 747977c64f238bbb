"""Locks and identities: who runs a job, and that no other process is ever taken for it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from tests.app.jobs.conftest import state, until
from vlora_tui.jobs import Job, JobStore, State, cancel, look, remove, resume
from vlora_tui.jobs import joblock as joblock_module
from vlora_tui.jobs.control import JobStateError
from vlora_tui.jobs.identity import Identity, is_running, of_process, resident_bytes, send
from vlora_tui.jobs.joblock import RECORD_BYTES, JobLock, JobRunningError, probe
from vlora_tui.pipeline import events


@pytest.fixture
def bystander() -> Iterator[subprocess.Popen[bytes]]:
    """A process that has nothing to do with any job."""
    code = "import signal; print('here', flush=True); signal.pause()"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        assert process.poll() is None, "somebody ended the bystander"
        process.kill()


def claim(job: Job, identity: Identity, **changes: Any) -> None:
    """Write into the lock file that this process runs the job."""
    row = {**asdict(identity), "heartbeat": time.time(), "ended": "", **changes}
    job.lock_path.write_bytes(json.dumps(row).encode().ljust(RECORD_BYTES))


def test_a_process_is_known_by_more_than_its_pid(bystander: subprocess.Popen[bytes]) -> None:
    identity = of_process(bystander.pid)
    assert identity is not None
    assert is_running(identity)
    assert (resident_bytes(identity) or 0) > 1_000_000
    for wrong in (
        replace(identity, pid=os.getpid()),
        replace(identity, started="1"),
        replace(identity, boot="another"),
        replace(identity, host="another"),
        replace(identity, pid=2**22 + 1),
    ):
        assert not is_running(wrong)
        assert not send(wrong, signal.SIGKILL)
        assert resident_bytes(wrong) is None


def test_a_signal_reaches_the_process_that_is_meant() -> None:
    with subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"]) as process:
        identity = of_process(process.pid)
        assert identity is not None
        assert send(identity, signal.SIGKILL)
        process.wait()
        assert not send(identity, signal.SIGKILL)


@pytest.mark.parametrize("wrong", [{"started": "1"}, {"boot": "b", "host": "h"}, {"host": "h"}])
def test_a_pid_that_came_round_again_is_not_signalled(
    job: Job, bystander: subprocess.Popen[bytes], wrong: dict[str, str]
) -> None:
    identity = of_process(bystander.pid)
    assert identity is not None
    claim(job, replace(identity, **wrong))
    # Somebody holds the lock, and it is not the bystander.
    with JobLock.take(job.lock_path), pytest.raises(JobStateError) as caught:
        cancel(job)
    assert "not by the process" in str(caught.value) or "another machine" in str(caught.value)


def test_a_free_lock_is_believed_whatever_it_says(
    store: JobStore, job: Job, bystander: subprocess.Popen[bytes]
) -> None:
    identity = of_process(bystander.pid)
    assert identity is not None
    claim(job, identity)  # all its marks are right, but it holds no lock
    assert state(job) == "vanished"
    cancel(job, discard=True)
    remove(store, job)
    assert store.jobs() == []


def test_a_job_of_another_machine_is_only_watched(store: JobStore, job: Job) -> None:
    claim(job, Identity("far-away", "its-boot", 1, "1"))
    view = look(job)
    assert view.state is State.ELSEWHERE
    assert view.silent_for is None
    for act in (
        lambda: cancel(job),
        lambda: resume(store, job),
        lambda: remove(store, job),
    ):
        with pytest.raises(JobStateError, match="another machine") as caught:
            act()
        assert "far-away" in str(caught.value)
    claim(job, Identity("far-away", "its-boot", 1, "1"), heartbeat=time.time() - 500)
    silent = look(job).silent_for
    assert silent is not None
    assert silent > 400
    remove(store, job, gone=True)
    assert store.jobs() == []


def test_a_restarted_container_finds_its_jobs_again(job: Job) -> None:
    here = of_process(os.getpid())
    assert here is not None
    claim(job, replace(here, host="the-name-before"))  # same kernel: the lock can be believed
    assert state(job) == "vanished"


def test_a_lock_is_held_once_and_looking_at_it_disturbs_nobody(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(joblock_module, "PATIENCE_SECONDS", 0.05)
    with JobLock.take(job.lock_path) as lock:
        assert probe(job.lock_path).held
        assert probe(job.lock_path).identity is None  # not before it hears signals
        lock.publish()
        found = probe(job.lock_path)
        assert found.identity == of_process(os.getpid())
        assert found.can_be_signalled
        with pytest.raises(JobRunningError):
            JobLock.take(job.lock_path)
    assert not probe(job.lock_path).held
    assert job.lock_path.stat().st_size == RECORD_BYTES


def test_the_heartbeat_goes_on_and_needs_no_room(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joblock_module, "HEARTBEAT_SECONDS", 0.01)
    with JobLock.take(job.lock_path) as lock:
        lock.publish()
        first = probe(job.lock_path).heartbeat
        assert first is not None
        until(lambda: (probe(job.lock_path).heartbeat or 0) > first, "the heart beat again")
        assert job.lock_path.stat().st_size == RECORD_BYTES
        lock.end(events.Finished.type)
    assert probe(job.lock_path).ended == "finished"
    assert state(job) == "finished"  # though no event says so


def test_a_descriptor_that_is_no_lock_of_this_job_is_not_believed(job: Job, tmp_path: Path) -> None:
    (tmp_path / "other").touch()
    with (
        (tmp_path / "other").open() as other,
        JobLock.take(job.lock_path, inherited=other.fileno()) as lock,
    ):
        assert lock.descriptor != other.fileno()
        assert probe(job.lock_path).held
