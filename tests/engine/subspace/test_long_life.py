"""A subspace over a long life: tasks come and go, it is moved, copied and cut short."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.witnesses import make
from tests.witnesses.dense import dense_error
from tests.witnesses.promises import METHODS, assert_true_errors, compress, plain
from vlora_engine import SharedSubspace
from vlora_engine.catalog.open import open_adapter
from vlora_engine.catalog.read import read_manifest
from vlora_engine.compress.build import build_subspace
from vlora_engine.errors import NotFoundError


@pytest.mark.parametrize("method", METHODS)
def test_tasks_come_and_go_for_a_whole_life(method: str, tmp_path: Path) -> None:
    adapters = {name: plain(seed) for seed, name in enumerate("wxyz")}
    first = compress(adapters, method=method, num_components=2)
    known = {name: first.reconstruct(name) for name in adapters}
    home = tmp_path / "s"
    first.save(home)
    first.save(home)  # twice, and nothing changes

    life = SharedSubspace.load(home)
    life.remove_task("x")
    life.save(home)
    assert not (home / "tasks" / "x.safetensors").exists()

    life = SharedSubspace.load(home)
    life.add_task(life.project(adapters["x"], "x"))
    life.save(home)
    assert dense_error(SharedSubspace.load(home).reconstruct("x"), known["x"]) < 1e-6

    life.remove_task("x")
    life.add_task(life.project(adapters["w"], "x"))  # another adapter under a known name
    assert dense_error(life.reconstruct("x"), known["w"]) < 1e-6
    life.save(home)
    assert dense_error(SharedSubspace.load(home).reconstruct("x"), known["w"]) < 1e-6

    files = {path.name for path in (home / "tasks").iterdir()}
    assert len(files) == 4
    assert files == {record.file for record in read_manifest(home).tasks.values()}


def test_an_update_that_is_cut_short_leaves_the_subspace_as_it_was(
    tmp_path: Path, monkeypatch
) -> None:
    """New files go beside old ones of the same task; the index, written last, decides."""
    adapters = {name: plain(seed) for seed, name in enumerate("xyz")}
    subspace = compress(adapters, num_components=3)
    subspace.save(tmp_path / "s")
    before = {p: p.read_bytes() for p in (tmp_path / "s").rglob("*") if p.is_file()}
    known = subspace.reconstruct("x")
    subspace.remove_task("x")
    subspace.add_task(subspace.project(adapters["y"], "x"))
    subspace.remove_task("z")

    def cut(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("vlora_engine.subspace.save.write_index", cut)
    with pytest.raises(KeyboardInterrupt):
        subspace.save(tmp_path / "s")
    monkeypatch.undo()
    assert {path: path.read_bytes() for path in before} == before
    assert dense_error(SharedSubspace.load(tmp_path / "s").reconstruct("x"), known) == 0

    subspace.save(tmp_path / "s")  # the next attempt goes through and leaves no ghost
    after = SharedSubspace.load(tmp_path / "s")
    assert sorted(after.tasks) == ["x", "y"]
    assert dense_error(after.reconstruct("x"), known) > 0.1
    assert len(list((tmp_path / "s" / "tasks").iterdir())) == 2


@pytest.mark.parametrize("method", METHODS)
def test_a_subspace_without_tasks_is_still_a_subspace(method: str, tmp_path: Path) -> None:
    adapters = {name: plain(seed) for seed, name in enumerate("wxyz")}
    subspace = compress(adapters, method=method, num_components=2)
    known = subspace.reconstruct("y")
    for name in adapters:
        subspace.remove_task(name)
    subspace.save(tmp_path / "s")
    empty = SharedSubspace.load(tmp_path / "s")
    assert len(empty.tasks) == 0
    assert empty.errors()["max"] == 0
    assert read_manifest(tmp_path / "s").as_dict()["ratio"] == 0
    with pytest.raises(NotFoundError, match="no task 'y'"):
        empty.reconstruct("y")
    empty.add_task(empty.project(adapters["y"], "y"))
    assert dense_error(empty.reconstruct("y"), known) < 1e-6
    empty.remove_task("y")
    empty.absorb_incremental(adapters["z"], "z")
    assert_true_errors({"z": adapters["z"]}, empty)


def test_a_copy_of_a_loaded_subspace_needs_the_original_no_longer(tmp_path: Path) -> None:
    adapters = {name: plain(seed) for seed, name in enumerate("wxyz")}
    compress(adapters, num_components=3).save(tmp_path / "one")
    subspace = SharedSubspace.load(tmp_path / "one")
    subspace.remove_task("w")
    subspace.add_task(subspace.project(adapters["w"], "W"))
    subspace.save(tmp_path / "two")
    shutil.rmtree(tmp_path / "one")
    for name in subspace.tasks:
        subspace.reconstruct(name)
    subspace.add_task(subspace.project(adapters["x"], "more"))
    subspace.save(tmp_path / "two")
    subspace.save(tmp_path / "three")
    shutil.rmtree(tmp_path / "two")
    assert sorted(SharedSubspace.load(tmp_path / "three").tasks) == ["W", "more", "x", "y", "z"]
    assert_true_errors({"W": adapters["w"]}, SharedSubspace.load(tmp_path / "three"))


def test_sources_are_found_again_when_all_was_moved_together(tmp_path: Path, monkeypatch) -> None:
    paths = make.collection(tmp_path / "here" / "in", 3)
    build_subspace({path.name: open_adapter(path) for path in paths}, tmp_path / "here" / "s", k=3)
    shutil.move(tmp_path / "here", tmp_path / "there")
    new = make.weights(seed=99)
    assert SharedSubspace.load(tmp_path / "there" / "s").absorb(new, "new") == []
    monkeypatch.chdir(tmp_path / "there")
    assert SharedSubspace.load("s").absorb(new, "new") == []
    shutil.move(tmp_path / "there" / "s", tmp_path / "alone")
    alone = SharedSubspace.load(tmp_path / "alone")
    assert alone.absorb(new, "new") == ["task00", "task01", "task02"]


def test_a_changed_original_is_not_taken_for_the_task(tmp_path: Path) -> None:
    paths = make.collection(tmp_path / "in", 3)
    build_subspace({path.name: open_adapter(path) for path in paths}, tmp_path / "s", k=3)
    shutil.rmtree(paths[1])
    make.write(paths[1], make.factors(seed=500))
    subspace = SharedSubspace.load(tmp_path / "s")
    before = subspace.reconstruct("task01")
    assert subspace.absorb(make.weights(seed=99), "new") == ["task01"]
    assert dense_error(before, subspace.reconstruct("task01")) < 0.5
    assert not subspace.tasks.record("task01").measured
