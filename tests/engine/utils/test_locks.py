"""One writer at a time, readers that get the old or the new, saves that come too late."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

import vlora_engine.manifest.manifest as manifest_module
import vlora_engine.utils.locks as locks
from tests.witnesses import make
from vlora_engine.catalog.open import load_adapter
from vlora_engine.catalog.read import read_manifest
from vlora_engine.doctor.subspace_check import check_subspace
from vlora_engine.errors import ConflictError, NotFoundError, StorageError
from vlora_engine.shared_subspace import SharedSubspace
from vlora_engine.utils.locks import changing, is_held, lock_path, writing
from vlora_engine.utils.outputs import new_directory, sole_writer
from vlora_engine.utils.partials import former_path, partial_path, put_back


@pytest.fixture
def place(tmp_path: Path) -> Path:
    make.collection(tmp_path / "in", 3)
    built = SharedSubspace.from_adapters(
        [load_adapter(path) for path in sorted((tmp_path / "in").iterdir())],
        ["a", "b", "c"],
        method="delta",
        num_components=4,
    )
    built.save(tmp_path / "s")
    return tmp_path / "s"


def absorb(place: Path, name: str) -> None:
    """Somebody else adds a task, which turns every basis and rewrites every file."""
    opened = SharedSubspace.load(place)
    opened.absorb_incremental(load_adapter(place.parent / "in" / "task00"), name)
    opened.save(place)


@contextmanager
def somebody_else(place: Path) -> Iterator[None]:
    """Another thread holds the lock."""
    has, may_go = threading.Event(), threading.Event()

    def hold() -> None:
        with changing(place):
            has.set()
            may_go.wait()

    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(hold)
        has.wait()
        try:
            yield
        finally:
            may_go.set()
            done.result()


@contextmanager
def somebody_refused(place: Path) -> Iterator[None]:
    """Another thread does not get the lock."""
    with ThreadPoolExecutor(1) as pool:
        refused = pool.submit(changing(place, wait=False).__enter__).exception()
    assert isinstance(refused, ConflictError)
    yield


def test_one_thread_may_take_it_again_and_another_may_not(place: Path) -> None:
    with changing(place), changing(place, wait=False):
        assert not is_held(place)
    with somebody_else(place):
        assert is_held(place)
        with pytest.raises(ConflictError, match="Another command"), changing(place, wait=False):
            pass
    with changing(place, wait=False):
        pass
    assert lock_path(place).exists()  # for good: whoever waits must wait for the same file


def test_writers_of_one_output_are_one_whatever_their_partials(tmp_path: Path) -> None:
    final = tmp_path / "out"
    with sole_writer(partial_path(final, "convert"), final):
        with ThreadPoolExecutor(1) as pool:
            other = pool.submit(lambda: new_directory(final, job="save").__enter__())
        with pytest.raises(StorageError, match="writing this output right now"):
            other.result()
    with new_directory(final, job="save") as partial:
        (partial / "file").touch()
    assert os.listdir(tmp_path) == ["out"]


def test_a_lock_that_was_removed_is_no_lock(place: Path) -> None:
    """Who waited for a lock that went with its output takes the one that there is now."""
    with somebody_else(place):
        lock_path(place).unlink()
        with changing(place, wait=False), somebody_refused(place):
            pass


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOTSUP])
def test_without_locks_it_is_said_once_and_the_work_goes_on(
    place: Path, code: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(locks.fcntl, "flock", refuse)
    monkeypatch.setattr(locks, "_told", set())
    absorb(place, "d")
    absorb(place, "e")
    assert list(read_manifest(place).tasks) == ["a", "b", "c", "d", "e"]
    assert [r.message for r in caplog.records if "cannot be locked" in r.message] == [
        f"{place} cannot be locked: nothing else may change it meanwhile."
    ]


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="a folder that takes no files")
def test_a_folder_that_takes_no_files_is_said_and_not_waited_for(place: Path) -> None:
    with writing(Path("/proc/no-such-output")):
        pass
    with pytest.raises(StorageError, match="cannot be written"):
        SharedSubspace.load(place).save(Path("/proc/no-such-output"))


@pytest.mark.parametrize("how", ["task", "basis"])
def test_a_save_on_what_others_changed_names_the_tasks(place: Path, how: str) -> None:
    late = SharedSubspace.load(place)
    if how == "task":
        late.remove_task("a")
    else:
        late.absorb_incremental(load_adapter(place.parent / "in" / "task01"), "late")
    absorb(place, "d")
    other = SharedSubspace.load(place)
    other.remove_task("b")
    other.save(place)
    before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    with pytest.raises(ConflictError) as caught:
        late.save(place, force=True)
    assert caught.value.found == "added since: d; removed since: b"
    assert {path: path.read_bytes() for path in place.rglob("*") if path.is_file()} == before


def test_one_who_saves_again_and_again_is_in_nobodys_way_but_his_own(place: Path) -> None:
    opened = SharedSubspace.load(place)
    for name in ("d", "e"):
        opened.add_task(opened.project(load_adapter(place.parent / "in" / "task00"), name))
        opened.save(place)
    opened.absorb(load_adapter(place.parent / "in" / "task01"), "f")
    opened.save(place)
    opened.remove_task("a")
    opened.save(place)
    assert sorted(read_manifest(place).tasks) == ["b", "c", "d", "e", "f"]


@pytest.mark.parametrize("first", [None, "b"])
def test_a_reader_gets_the_new_state_where_the_old_is_gone(place: Path, first: str | None) -> None:
    """Also one that has read some of the old state already."""
    reader = SharedSubspace.load(place, lazy=True)
    if first is not None:
        reader.reconstruct(first)
    absorb(place, "d")
    meant = SharedSubspace.load(place).reconstruct("a")
    found = reader.reconstruct("a")
    assert found.layer_names == meant.layer_names
    for name in meant.layer_names:
        assert torch.equal(found.lora_a[name], meant.lora_a[name])
        assert torch.equal(found.lora_b[name], meant.lora_b[name])
    assert "d" in reader.tasks


def test_a_reader_of_a_task_that_went_is_told_so(place: Path) -> None:
    reader = SharedSubspace.load(place, lazy=True)
    other = SharedSubspace.load(place)
    other.remove_task("c")
    other.save(place)
    with pytest.raises(NotFoundError, match="There is no task 'c'"):
        reader.reconstruct("c")


def test_a_reader_with_changes_of_its_own_keeps_them_and_says_so(place: Path) -> None:
    reader = SharedSubspace.load(place, lazy=True)
    reader.remove_task("b")
    absorb(place, "d")
    with pytest.raises(ConflictError, match="changed on disk"):
        reader.reconstruct("a")


def test_damage_is_still_damage(place: Path) -> None:
    reader = SharedSubspace.load(place, lazy=True)
    (place / "tasks" / read_manifest(place).task("a").file).unlink()
    with pytest.raises(NotFoundError):
        reader.reconstruct("a")
    assert {f.code for f in check_subspace(place) if f.severity == "error"} == {"file-missing"}


def test_a_reader_waits_while_the_new_takes_the_place_of_the_old(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited = []

    def until_it_is_there(seconds: float) -> None:
        waited.append(seconds)
        os.rename(former_path(place), place)

    before = read_manifest(place)
    with somebody_else(place):
        os.rename(place, former_path(place))
        assert not put_back(place)  # that is the writer's to do
        monkeypatch.setattr(manifest_module.time, "sleep", until_it_is_there)
        assert read_manifest(place) == before
    assert len(waited) == 1
