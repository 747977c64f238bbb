"""The process that has torch imported: what it answers, and what comes of kills, hangs, cancels."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.witnesses import make
from vlora_engine.errors import VLoRAError
from vlora_tui.tui.core import subcommand, warm_commands
from vlora_tui.tui.core.subcommand import ask_command
from vlora_tui.tui.core.warm_commands import CAN_FORK, NotBegunError, WarmCommands

pytestmark = pytest.mark.skipif(not CAN_FORK, reason="commands are not run in forks here")
LONG = 60.0  # seconds, within which a process that is ended has ended


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("warm") / "runs"
    return [str(path) for path in make.collection(folder, 3)]


@pytest.fixture
def warm(monkeypatch: pytest.MonkeyPatch) -> Iterator[WarmCommands]:
    """A warm process of this test alone."""
    warm = WarmCommands()
    monkeypatch.setattr(subcommand, "WARM", warm)
    yield warm
    warm.close()


def never() -> bool:
    return False


def awaited(pid: int) -> Callable[[], None]:
    """Wait for the end of a process that lives now."""
    handle = os.pidfd_open(pid)

    def wait() -> None:
        ended, _, _ = select.select([handle], [], [], LONG)
        os.close(handle)
        assert ended, f"process {pid} lives on"

    return wait


def children_of(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_forks_of_one_process_answer_as_a_process_of_its_own_does(
    warm: WarmCommands, adapters: list[str]
) -> None:
    words = ["diff", *adapters[:2], "--json"]
    cold = subcommand._run(words, never)
    first, pid = warm.run(words, never), warm.pid
    assert first == cold
    assert pid is not None
    assert warm.run(words, never, background=True) == cold
    assert warm.pid == pid
    assert "Threads:\t1\n" in Path(f"/proc/{pid}/status").read_text()  # nothing runs while it waits
    for fork in children_of(pid):
        awaited(fork)()
    assert children_of(pid) == []  # what they needed they have given back


def test_a_command_that_fails_says_why_and_harms_no_other(
    warm: WarmCommands, adapters: list[str]
) -> None:
    with pytest.raises(VLoRAError) as failed:
        ask_command(["diff", adapters[0], f"{adapters[0]}-nobody"])
    assert "nobody" in str(failed.value)
    pid = warm.pid
    answer = ask_command(["diff", *adapters[:2]])
    assert answer is not None
    assert len(answer["modules"]) > 0
    assert warm.pid == pid


def test_a_killed_process_is_started_again(warm: WarmCommands, adapters: list[str]) -> None:
    assert ask_command(["diff", *adapters[:2]])
    assert warm.pid is not None
    former, ended = warm.pid, awaited(warm.pid)
    os.kill(former, signal.SIGKILL)
    ended()
    assert ask_command(["diff", *adapters[:2]])
    assert warm.pid not in (None, former)


def test_a_fork_that_is_killed_is_told_as_such(
    warm: WarmCommands, adapters: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = warm._begun

    def killed(*args: object) -> int | None:
        pid = begun(*args)  # type: ignore[arg-type]
        assert pid
        os.kill(pid, signal.SIGKILL)
        return pid

    monkeypatch.setattr(warm, "_begun", killed)
    with pytest.raises(VLoRAError, match="killed before it had answered"):
        ask_command(["diff", *adapters[:2]])
    monkeypatch.setattr(warm, "_begun", begun)
    assert ask_command(["diff", *adapters[:2]])


def test_a_cancelled_command_is_killed_and_the_process_stays(
    warm: WarmCommands, adapters: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ask_command(["diff", *adapters[:2]])
    pid, killed = warm.pid, []
    kill = os.kill

    def watched(fork: int, number: int) -> None:
        ended = awaited(fork)
        kill(fork, number)
        ended()
        killed.append(fork)

    begun = warm._begun

    def then_cancelled(ours: object, cancelled: object) -> int | None:
        return begun(ours, never)  # type: ignore[arg-type]

    monkeypatch.setattr(warm, "_begun", then_cancelled)
    monkeypatch.setattr(warm_commands.os, "kill", watched)
    assert ask_command(["diff", *adapters[:2]], lambda: True) is None
    assert len(killed) == 1
    monkeypatch.undo()
    assert warm.run(["diff", *adapters[:2], "--json"], never) is not None
    assert warm.pid == pid


def test_a_process_that_does_not_answer_is_killed_and_the_command_run_without_it(
    warm: WarmCommands, adapters: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ask_command(["diff", *adapters[:2]])
    assert warm.pid is not None
    ended = awaited(warm.pid)
    os.kill(warm.pid, signal.SIGSTOP)
    monkeypatch.setattr(warm_commands, "BEGIN_SECONDS", 0.0)
    monkeypatch.setattr(warm_commands, "FIRST_SECONDS", 0.0)
    with pytest.raises(NotBegunError):
        warm.run(["diff", *adapters[:2], "--json"], never)
    ended()
    answer = ask_command(["diff", *adapters[:2]])
    assert answer is not None
    assert answer["a"] == adapters[0]


SCRIPT = """
import os, sys
from vlora_tui.tui.core.subcommand import ask_command
from vlora_tui.tui.core.warm_commands import WARM
ask_command(["diff", *sys.argv[1:3]])
assert not {"torch", "numpy"} & set(sys.modules)
print(WARM.pid, flush=True)
sys.stdin.read()
"""


def test_it_ends_with_its_interface_however_that_ends(adapters: list[str]) -> None:
    interface = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *adapters], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with interface:
        assert interface.stdout is not None
        ended = awaited(int(interface.stdout.readline()))
        interface.kill()
    ended()
