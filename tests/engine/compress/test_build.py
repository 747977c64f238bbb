"""Builds that are interrupted, refused by the disk, or find their output taken."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
from pathlib import Path

import pytest
import torch

import vlora_engine.compress.build as build_module
from tests.engine.test_shared_subspace import files
from tests.witnesses import make
from vlora_engine import SharedSubspace
from vlora_engine.catalog.open import open_adapter
from vlora_engine.catalog.read import read_manifest
from vlora_engine.compress.build import build_subspace
from vlora_engine.errors import (
    Cancelled,
    CollectionError,
    CorruptFileError,
    NotFoundError,
    OutputExistsError,
    ParameterError,
    StorageError,
    SubspaceError,
)
from vlora_engine.utils.progress import Progress
from vlora_engine.utils.tensor_writer import TensorWriter


def inputs(folder: Path, count: int = 4) -> dict[str, object]:
    return {path.name: open_adapter(path) for path in make.collection(folder, count)}


class Stop:
    """Asks to stop once ``layers`` layers of ``stage`` are done."""

    def __init__(self, layers: int, stage: str = "build") -> None:
        self.layers, self.stage, self.seen = layers, stage, 0

    def progress(self, step: Progress) -> None:
        if step.stage == self.stage:
            self.seen = step.done

    def __call__(self) -> bool:
        return self.seen >= self.layers


@pytest.mark.parametrize("target", [{"k": 3}, {"method": "delta", "max_error": 0.3}], ids=str)
def test_a_cancelled_build_goes_on_where_it_stopped(target: dict, tmp_path: Path) -> None:
    sources = inputs(tmp_path / "in")
    build_subspace(sources, tmp_path / "undisturbed", **target)
    stop = Stop(2)
    with pytest.raises(Cancelled):
        build_subspace(sources, tmp_path / "out", progress=stop.progress, cancelled=stop, **target)
    assert not (tmp_path / "out").exists()
    report = build_subspace(sources, tmp_path / "out", **target)
    assert 2 <= report.reused_layers < 4
    assert files(tmp_path / "out") == files(tmp_path / "undisturbed")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "out", "undisturbed"]


def test_a_layer_that_was_damaged_meanwhile_is_built_again(tmp_path: Path) -> None:
    sources = inputs(tmp_path / "in")
    build_subspace(sources, tmp_path / "undisturbed", k=3)
    stop = Stop(3)
    with pytest.raises(Cancelled):
        build_subspace(sources, tmp_path / "out", k=3, progress=stop.progress, cancelled=stop)
    part = tmp_path / ".out.part-run" / "layers" / "00000.safetensors"
    raw = bytearray(part.read_bytes())
    raw[-5] ^= 0xFF
    part.write_bytes(raw)
    report = build_subspace(sources, tmp_path / "out", k=3)
    assert report.reused_layers == 2
    assert files(tmp_path / "out") == files(tmp_path / "undisturbed")


def test_parts_of_another_build_are_not_used(tmp_path: Path) -> None:
    sources = inputs(tmp_path / "in")
    stop = Stop(2)
    with pytest.raises(Cancelled):
        build_subspace(sources, tmp_path / "out", k=3, progress=stop.progress, cancelled=stop)
    assert build_subspace(sources, tmp_path / "out", k=4).reused_layers == 0


def test_a_killed_build_leaves_only_its_parts(tmp_path: Path, monkeypatch) -> None:
    sources = inputs(tmp_path / "in")

    def die(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(build_module, "write_subspace", die)
    with pytest.raises(KeyboardInterrupt):
        build_subspace(sources, tmp_path / "out", k=3)
    monkeypatch.undo()
    assert not (tmp_path / "out").exists()
    assert build_subspace(sources, tmp_path / "out", k=3).reused_layers == 4
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "out"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EDQUOT])
@pytest.mark.parametrize("when", ["part", "result"])
def test_a_disk_that_refuses_leaves_nothing_half_written(
    code: int, when: str, tmp_path: Path, monkeypatch
) -> None:
    sources = inputs(tmp_path / "in")
    name = "write_tensors" if when == "part" else "write_task"
    home = "vlora_engine.subspace.layer_parts" if when == "part" else "vlora_engine.subspace.write"

    def full(path: Path, *_: object, **__: object) -> None:
        from vlora_engine.utils.safetensors_file import write_error

        raise write_error(path, OSError(code, os.strerror(code)))

    monkeypatch.setattr(f"{home}.{name}", full)
    with pytest.raises(StorageError, match=os.strerror(code)) as caught:
        build_subspace(sources, tmp_path / "out", k=3)
    assert caught.value.remedy
    whole = [f"{i:05d}.sha256" for i in range(4)] if when == "result" else []
    assert sorted(p.name for p in tmp_path.rglob("*.sha256")) == whole
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / ".out.part-run" / "result").exists()
    monkeypatch.undo()
    assert build_subspace(sources, tmp_path / "out", k=3).reused_layers == len(whole)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "out"]


def test_a_real_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """/dev/full refuses every write, as a full disk does."""
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full here")
    monkeypatch.setattr(Path, "open", lambda path, mode: io.FileIO(full, "w"))
    with (
        pytest.raises(StorageError, match="No space left"),
        TensorWriter(tmp_path / "file", [("zeros", "F32", (100_000,))]) as writer,
    ):
        writer.write(torch.zeros(100_000))


def test_an_output_that_exists_is_kept(tmp_path: Path) -> None:
    sources = inputs(tmp_path / "in")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("x")
    for force, words in ((False, "already exists"), (True, "did not write")):
        with pytest.raises(OutputExistsError, match=words):
            build_subspace(sources, tmp_path / "out", k=2, force=force)
    assert (tmp_path / "out" / "precious").read_text() == "x"
    build_subspace(sources, tmp_path / "ours", k=2)
    with pytest.raises(OutputExistsError, match="--force"):
        build_subspace(sources, tmp_path / "ours", k=3)
    assert build_subspace(sources, tmp_path / "ours", k=3, force=True).k
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "ours", "out"]


def test_a_bad_adapter_stops_before_anything_is_written(tmp_path: Path) -> None:
    sources = inputs(tmp_path / "in")
    broken = make.factors(seed=5)
    key = next(iter(broken))
    broken[key][0, 0] = float("nan")
    sources["broken"] = open_adapter(make.write(tmp_path / "in" / "broken", broken))
    with pytest.raises(CollectionError) as caught:
        build_subspace(sources, tmp_path / "out", k=2)
    module = key.removeprefix(make.PREFIX).removesuffix(".weight")
    assert module in str(caught.value)
    assert str(tmp_path / "in" / "broken") in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["in"]
    report = build_subspace(sources, tmp_path / "out", k=2, skip_bad=True)
    assert "broken" not in report.tasks
    assert "NaN" in report.skipped[0]["what"]


def test_memory_is_that_of_a_layer_not_of_the_collection(tmp_path: Path, monkeypatch) -> None:
    """At no time are more than a few layers of the inputs alive."""
    sources = inputs(tmp_path / "in", 6)
    alive: set[str] = set()
    most = 0
    read = build_module.read_stack

    def counting(layer: str, *args: object, **kwargs: object):
        nonlocal most
        import weakref

        stack = read(layer, *args, **kwargs)
        alive.add(layer)
        most = max(most, len(alive))
        weakref.finalize(stack, alive.discard, layer)
        return stack

    monkeypatch.setattr(build_module, "read_stack", counting)
    monkeypatch.setattr("vlora_engine.utils.workers.cores", lambda: 1)
    build_subspace(sources, tmp_path / "out", k=2)
    assert 1 <= most <= 2


@pytest.mark.parametrize("target", ["basis.safetensors", "tasks/task00.safetensors"])
def test_changed_bytes_are_found_and_named(target: str, tmp_path: Path) -> None:
    build_subspace(inputs(tmp_path / "in"), tmp_path / "out", k=3)
    file = tmp_path / "out" / target
    raw = bytearray(file.read_bytes())
    raw[-3] ^= 0x10
    file.write_bytes(raw)
    with pytest.raises(CorruptFileError, match="changed after the subspace was written") as caught:
        SharedSubspace.load(tmp_path / "out").reconstruct("task00")
    assert str(file) in str(caught.value)


def edit(path: Path, change) -> None:
    index = json.loads((path / "subspace.json").read_text())
    change(index)
    (path / "subspace.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    "change",
    [
        lambda i: i["tasks"][0].update(file="../../../evil.safetensors"),
        lambda i: i["tasks"][0].update(file="/etc/passwd"),
        lambda i: i["tasks"][0].update(file="a/b.safetensors"),
        lambda i: i["tasks"][0].update(file=i["tasks"][1]["file"]),
        lambda i: i["basis"][0].update(file="../basis.safetensors"),
        lambda i: i["tasks"][0].update(ranks=-4),
        lambda i: i["tasks"][0].update(id=i["tasks"][1]["id"]),
        lambda i: i["layers"][0].update(k=[1 << 80, 1]),
        lambda i: i["layers"][0].pop("d_in"),
        lambda i: i["basis"][0].update(layers=[0, 1]),
        lambda i: i["tasks"][0].update(layers=[0, 99]),
        lambda i: i["tasks"][0].update(config="no"),
        lambda i: i.update(tasks=7),
        lambda i: i.update(method="magic"),
    ],
)
def test_an_index_that_lies_is_refused(change, tmp_path: Path) -> None:
    build_subspace(inputs(tmp_path / "in"), tmp_path / "out", k=3)
    edit(tmp_path / "out", change)
    with pytest.raises(CorruptFileError, match="index is not sound"):
        read_manifest(tmp_path / "out")


def test_an_index_whose_counts_do_not_fit_the_files(tmp_path: Path) -> None:
    build_subspace(inputs(tmp_path / "in"), tmp_path / "out", k=3)
    edit(tmp_path / "out", lambda i: i["layers"][0].update(k=[500, 500]))
    with pytest.raises(CorruptFileError):
        SharedSubspace.load(tmp_path / "out").reconstruct("task00")


def test_other_versions_and_other_folders(tmp_path: Path) -> None:
    build_subspace(inputs(tmp_path / "in"), tmp_path / "out", k=3)
    edit(tmp_path / "out", lambda i: i.update(version=99))
    with pytest.raises(SubspaceError, match="another format version"):
        read_manifest(tmp_path / "out")
    with pytest.raises(NotFoundError, match="no subspace here"):
        read_manifest(tmp_path / "in")
    (tmp_path / "out" / "subspace.json").write_text("{ broken")
    with pytest.raises(CorruptFileError, match="not sound"):
        read_manifest(tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    with pytest.raises(NotFoundError):
        SharedSubspace.load(tmp_path / "out")


def test_opening_reads_no_tensor(tmp_path: Path) -> None:
    build_subspace(inputs(tmp_path / "in"), tmp_path / "out", k=3)
    for file in (tmp_path / "out").rglob("*.safetensors"):
        file.unlink()
    subspace = SharedSubspace.load(tmp_path / "out")
    assert len(subspace.tasks) == 4
    assert subspace.num_components == 3
    with pytest.raises(NotFoundError):
        subspace.reconstruct("task00")


def test_a_large_basis_is_written_in_shards(tmp_path: Path, monkeypatch) -> None:
    sources = inputs(tmp_path / "in")
    build_subspace(sources, tmp_path / "one", k=3)
    monkeypatch.setattr("vlora_engine.subspace.write.MAX_SHARD_BYTES", 700)
    build_subspace(sources, tmp_path / "many", k=3)
    shards = sorted(p.name for p in (tmp_path / "many").glob("basis-*"))
    assert len(shards) >= 3
    assert shards[0] == f"basis-00001-of-{len(shards):05d}.safetensors"
    one, many = SharedSubspace.load(tmp_path / "one"), SharedSubspace.load(tmp_path / "many")
    for layer in one.layer_names:
        left = one.reconstruct("task01").delta(layer)
        assert left.equal(many.reconstruct("task01").delta(layer))


def test_a_device_that_is_not_there(tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    with pytest.raises(ParameterError, match="no CUDA device"):
        build_subspace(inputs(tmp_path / "in"), tmp_path / "out", k=2, device="cuda")
