"""How many items are in progress: no more than there are cores, and than memory holds."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from vlora_engine.errors import Cancelled, MemoryLimitError
from vlora_engine.utils import memory, workers
from vlora_engine.utils.memory import VARIABLE
from vlora_engine.utils.progress import Progress
from vlora_engine.utils.run_context import RunContext
from vlora_engine.utils.workers import at_a_time, map_ordered

GB = 10**9


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    """Make this machine one of so many cores and so much memory."""

    def make(cores: int, free: int) -> None:
        monkeypatch.setattr(workers, "cores", lambda: cores)
        monkeypatch.setattr(memory, "held", lambda: 0)
        monkeypatch.setenv(VARIABLE, str(free))

    return make


class Together:
    """Work that knows how much of it is in progress at a time."""

    def __init__(self, needs: dict[int, int]) -> None:
        self.needs, self.lock = needs, threading.Lock()
        self.held = self.most = self.count = self.most_count = 0

    def __call__(self, item: int) -> int:
        with self.lock:
            self.held, self.count = self.held + self.needs[item], self.count + 1
            self.most, self.most_count = max(self.most, self.held), max(self.most_count, self.count)
        total = sum(range(20_000))  # others may begin meanwhile
        with self.lock:
            self.held, self.count = self.held - self.needs[item], self.count - 1
        return item + (total - total)


def run(needs: list[int], told: list[Progress] | None = None) -> Together:
    work = Together(dict(enumerate(needs)))
    context = RunContext(told.append if told is not None else None)
    items = range(len(needs))
    found = map_ordered(work, items, context, stage="build", need=needs.__getitem__)
    assert list(found) == list(items)
    return work


def test_64_cores_with_little_memory(machine: Callable[[int, int], None]) -> None:
    machine(64, 5 * GB)
    told: list[Progress] = []
    work = run([2 * GB] * 40, told)
    assert work.most <= 5 * GB
    assert work.most_count <= 2
    (remark,) = [progress.remark for progress in told if progress.remark]
    assert remark.startswith("build: 2 at a time where 40 cores are free")
    assert "2 GB" in remark
    assert "5 GB" in remark


def test_with_memory_enough_the_cores_decide(machine: Callable[[int, int], None]) -> None:
    machine(3, 100 * GB)
    told: list[Progress] = []
    assert run([GB] * 20, told).most_count <= 3
    assert not any(progress.remark for progress in told)


def test_small_items_go_together_beside_a_large_one(machine: Callable[[int, int], None]) -> None:
    machine(8, 4 * GB)
    assert run([GB // 2] * 9 + [4 * GB] + [GB] * 9).most <= 4 * GB


def test_one_at_a_time_where_no_second_fits(machine: Callable[[int, int], None]) -> None:
    machine(8, 3 * GB)
    assert run([2 * GB] * 9).most_count == 1


def test_what_fits_nowhere_is_refused_before_anything_begins(
    machine: Callable[[int, int], None],
) -> None:
    machine(8, 3 * GB)
    begun: list[int] = []
    needs = [GB, 4 * GB, GB]
    results = map_ordered(
        begun.append, range(3), RunContext(), stage="build", need=needs.__getitem__
    )
    with pytest.raises(MemoryLimitError, match="too little memory") as caught:
        next(results)
    assert begun == []
    assert caught.value.where == "1"


def test_the_limit_of_a_call_counts_beside_that_of_the_process(
    machine: Callable[[int, int], None],
) -> None:
    machine(8, 30 * GB)
    context = RunContext(max_memory=GB)
    with pytest.raises(MemoryLimitError):
        next(map_ordered(str, [1], context, stage="build", need=lambda _: 2 * GB))


def test_it_stops_between_two_items(machine: Callable[[int, int], None]) -> None:
    machine(2, GB)
    results = map_ordered(
        str, range(9), RunContext(cancelled=lambda: True), stage="build", need=lambda _: 1
    )
    assert next(results) == "0"
    with pytest.raises(Cancelled, match="1 of 9"):
        next(results)


@pytest.mark.parametrize(
    ("needs", "count", "nbytes", "expected"),
    [
        ([GB], 64, 5 * GB, 5),
        ([GB, 3 * GB], 64, 5 * GB, 1),
        ([GB], 4, 5 * GB, 4),
        ([GB], 4, None, 4),
        ([GB], 4, -GB, 1),
        ([], 4, GB, 4),
        ([0], 4, GB, 4),
    ],
)
def test_at_a_time(needs: list[int], count: int, nbytes: int | None, expected: int) -> None:
    assert at_a_time(needs, count, nbytes) == expected
