"""Open files, replaced directories, and others who write or read at the same time."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
import torch

from tests.witnesses import make
from vlora_engine import SharedSubspace
from vlora_engine.catalog.open import open_adapter
from vlora_engine.compress.build import build_subspace
from vlora_engine.compress.measure import compute_spectra
from vlora_engine.compression_target import CompressionTarget
from vlora_engine.errors import CorruptFileError, NotFoundError, StorageError
from vlora_engine.spectra.choose import choose
from vlora_engine.utils.outputs import new_directory
from vlora_engine.utils.partials import partial_path


def open_files() -> list[str]:
    folder = Path("/proc/self/fd")
    if not folder.exists():
        pytest.skip("needs /proc")
    names = []
    for entry in folder.iterdir():
        try:
            names.append(os.readlink(entry))
        except OSError:
            continue  # the listing's own
    return names


def test_no_deleted_file_stays_open(tmp_path: Path) -> None:
    """An open file that was deleted keeps its blocks on the disk until the process ends."""
    sources = {path.name: open_adapter(path) for path in make.collection(tmp_path / "in", 3)}
    for _ in range(2):
        build_subspace(sources, tmp_path / "s", max_error=0.3, force=True)
        subspace = SharedSubspace.load(tmp_path / "s")
        subspace.reconstruct("task00")
        subspace.remove_task("task00")
        subspace.save(tmp_path / "s")
    ours = [name for name in open_files() if str(tmp_path) in name]
    assert [name for name in ours if name.endswith("(deleted)")] == []
    assert len(ours) < 20


def test_a_subspace_that_was_replaced_is_not_read_with_the_old_index(tmp_path: Path) -> None:
    """Two layers of two builds are never mixed: the reader is told to open it again."""
    one = {path.name: open_adapter(path) for path in make.collection(tmp_path / "in", 3)}
    two = {
        path.name: open_adapter(path) for path in make.collection(tmp_path / "in2", 3, noise=2.0)
    }
    build_subspace(one, tmp_path / "s", k=3)
    old = SharedSubspace.load(tmp_path / "s", lazy=True)
    first, second = old.layer_names[:2]
    assert old.components_a[first].shape == (3, 12)
    build_subspace(two, tmp_path / "s", k=3, force=True)
    SharedSubspace.load(tmp_path / "s").reconstruct("task00")
    with pytest.raises(CorruptFileError, match="replaced while it was in use"):
        _ = old.components_a[second]
    assert SharedSubspace.load(tmp_path / "s").components_a[second].shape == (3, 12)


def test_two_builds_of_one_output_do_not_meet(tmp_path: Path) -> None:
    sources = {path.name: open_adapter(path) for path in make.collection(tmp_path / "in", 3)}
    out = tmp_path / "s"
    refused: list[Exception] = []

    def rival(step: object) -> None:
        if refused or getattr(step, "stage", "") != "build":
            return
        try:
            build_subspace(sources, out, k=2)
        except StorageError as error:
            refused.append(error)

    build_subspace(sources, out, k=3, progress=rival)
    assert "writing this output right now" in str(refused[0])
    subspace = SharedSubspace.load(out)
    assert subspace.num_components == 3
    assert sorted(subspace.tasks) == sorted(sources)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "s"]
    build_subspace(sources, out, k=2, force=True)  # nothing is held any more


def test_a_directory_that_is_being_written_is_held(tmp_path: Path) -> None:
    final = tmp_path / "out"
    with new_directory(final) as partial:
        (partial / "a").write_text("1")
        with pytest.raises(StorageError, match="right now"), new_directory(final):
            pass
        assert (partial / "a").read_text() == "1"
    assert (final / "a").read_text() == "1"


def test_what_an_earlier_attempt_left_is_cleared(tmp_path: Path) -> None:
    left = partial_path(tmp_path / "out")
    (left / "deep").mkdir(parents=True)
    (left / "deep" / "old").write_text("x")
    with new_directory(tmp_path / "out") as partial:
        (partial / "a").write_text("1")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["a"]


def test_one_subspace_read_by_several_threads(tmp_path: Path) -> None:
    paths = make.collection(tmp_path / "in", 6)
    build_subspace({path.name: open_adapter(path) for path in paths}, tmp_path / "s", k=3)
    layer = next(iter(make.MODULES))
    expected = SharedSubspace.load(tmp_path / "s").reconstruct("task03").delta(layer)
    shared = SharedSubspace.load(tmp_path / "s")
    wrong: list[object] = []

    def read() -> None:
        try:
            for name in shared.tasks:
                own = shared.reconstruct(name)
                if name == "task03" and not own.delta(layer).equal(expected):
                    wrong.append(name)
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_choosing_on_spectra_under_way_names_the_layer_that_is_missing(tmp_path: Path) -> None:
    sources = {path.name: open_adapter(path) for path in make.collection(tmp_path / "in", 3)}
    spectra = compute_spectra(sources)
    last = spectra.layer_names[-1]
    del spectra.layers[last]
    for goal in ({"k": 2}, {"max_error": 0.2}, {"budget": 100_000}, {"variance": 0.9}):
        with pytest.raises(NotFoundError, match="no module"):
            choose(spectra, CompressionTarget("delta", **goal))


def test_a_build_that_fails_has_no_worker_left(tmp_path: Path, monkeypatch) -> None:
    """Workers end with the build, not when the garbage is collected, maybe in one of them."""
    sources = {path.name: open_adapter(path) for path in make.collection(tmp_path / "in", 3)}

    def full(*_: object, **__: object) -> None:
        raise StorageError("The disk is full.")

    before = torch.get_num_threads(), threading.active_count()
    for place in (
        "vlora_engine.subspace.layer_parts.write_tensors",
        "vlora_engine.compress.measure.write_layer",
    ):
        monkeypatch.setattr(place, full)
        with pytest.raises(StorageError) as kept:
            build_subspace(sources, tmp_path / place, method="delta", max_error=0.3)
        assert (torch.get_num_threads(), threading.active_count()) == before
        monkeypatch.undo()
        del kept
