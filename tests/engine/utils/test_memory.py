"""How much memory work may take: sizes, limits, what the system says is left."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vlora_engine.errors import MemoryLimitError, ParameterError
from vlora_engine.utils import memory
from vlora_engine.utils.memory import VARIABLE, Room, available, held, limit, limited, room
from vlora_engine.utils.sizes import parse_bytes, size

GB = 10**9


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [("4GB", 4 * GB), ("500MB", 5 * 10**8), ("1.5 GiB", 3 << 29), ("800000", 800_000), (7, 7)],
)
def test_sizes_are_read(text: str | int, nbytes: int) -> None:
    assert parse_bytes(text) == nbytes


@pytest.mark.parametrize("text", ["", "GB", "4 apples", "-4GB", "0", True, "1e30"])
def test_what_is_no_size_is_refused(text: str | int) -> None:
    with pytest.raises(ParameterError, match="no size"):
        parse_bytes(text)


def test_sizes_are_written() -> None:
    assert [size(n) for n in (0, 999, 1500, 4 * GB)] == ["0 B", "999 B", "1.5 kB", "4 GB"]


def test_the_smaller_of_two_limits_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert limit() is None
    with limited(3 * GB):
        assert limit() == 3 * GB
        with limited(5 * GB):
            assert limit() == 3 * GB
        with limited(2 * GB), limited(None):
            assert limit() == 2 * GB
        assert limit() == 3 * GB
    assert limit() is None


def test_a_limit_is_handed_on_by_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "2GB")
    assert limit() == 2 * GB
    with limited(GB):
        assert os.environ[VARIABLE] == str(GB)
    assert os.environ[VARIABLE] == "2GB"
    monkeypatch.setenv(VARIABLE, "much")
    with pytest.raises(ParameterError):
        limit()


def test_what_the_process_holds_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(memory, "held", lambda: GB)
    assert room(3 * GB).nbytes == room(3 * GB).most == 2 * GB
    with limited(2 * GB):
        assert room(3 * GB).nbytes == GB


def test_without_a_limit_a_share_of_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(memory, "available", lambda: 8 * GB)
    assert (room().nbytes, room().most) == (6 * GB, 8 * GB)
    monkeypatch.setattr(memory, "available", lambda: None)
    assert room().nbytes is None
    room().require(10**15, "anything")


def test_this_process_holds_something() -> None:
    assert 10**6 < held() < 10**12


def test_what_does_not_fit_is_refused_with_the_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "held", lambda: GB)
    Room(GB, GB, "").require(GB, "it")
    with pytest.raises(MemoryLimitError) as caught:
        Room(GB, GB, "what is left of 2 GB").require(4 * GB, "one layer", "q_proj")
    error = caught.value
    assert isinstance(error, MemoryError)
    assert error.where == "q_proj"
    assert "4 GB" in str(error.expected)
    assert "what is left of 2 GB" in str(error.found)
    assert "allow at least 5.07 GB" in str(error.remedy)  # what is held, needed, and a little
    assert "--max-memory" in str(error.remedy)


def write(root: Path, files: dict[str, object]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")
    return root


MEMINFO = {"proc/meminfo": "MemTotal: 16000 kB\nMemAvailable: 9000 kB"}


def test_the_machine_says_what_is_available(tmp_path: Path) -> None:
    assert available(write(tmp_path, MEMINFO)) == 9000 * 1024


def test_groups_of_version_2_and_those_above_count(tmp_path: Path) -> None:
    top = "sys/fs/cgroup/user"
    files = {
        **MEMINFO,
        "proc/self/cgroup": "0::/user/job",
        f"{top}/memory.max": 5_000_000,
        f"{top}/memory.current": 3_000_000,
        f"{top}/memory.stat": "anon 5\ninactive_file 1000000",
        f"{top}/job/memory.max": "max",
        f"{top}/job/memory.current": 2_000_000,
        f"{top}/job/memory.stat": "anon 5",
    }
    assert available(write(tmp_path, files)) == 3_000_000


def test_groups_of_version_1_count(tmp_path: Path) -> None:
    group = "sys/fs/cgroup/memory/box"
    files = {
        **MEMINFO,
        "proc/self/cgroup": "5:cpu:/box\n4:memory:/box\n0::/",
        f"{group}/memory.limit_in_bytes": 4_000_000,
        f"{group}/memory.usage_in_bytes": 1_000_000,
        f"{group}/memory.stat": "total_inactive_file 0",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": 9223372036854771712,
        "sys/fs/cgroup/memory/memory.usage_in_bytes": 1,
        "sys/fs/cgroup/memory/memory.stat": "",
    }
    assert available(write(tmp_path, files)) == 3_000_000


def test_in_a_container_the_mount_is_the_group(tmp_path: Path) -> None:
    files = {
        **MEMINFO,
        "proc/self/cgroup": "0::/outside/of/here",
        "sys/fs/cgroup/memory.max": 2_000_000,
        "sys/fs/cgroup/memory.current": 500_000,
        "sys/fs/cgroup/memory.stat": "inactive_file 0",
    }
    assert available(write(tmp_path, files)) == 1_500_000
