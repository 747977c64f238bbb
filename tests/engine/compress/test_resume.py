"""Work that stopped in its middle, by request or by a failure, goes on with its finished layers."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import vlora_engine.compress.build as build_module
import vlora_engine.compress.measure as spectrum_module
import vlora_engine.subspace.request as request_module
from tests.engine.compress.test_build import Stop, inputs
from tests.witnesses.files import tree
from vlora_engine.compress.build import build_subspace
from vlora_engine.compress.measure import compute_spectra
from vlora_engine.errors import AdapterError, Cancelled, StorageError
from vlora_engine.spectra.tables import Spectra
from vlora_engine.utils.progress import Progress
from vlora_engine.utils.unfinished import kept_layers, spectra_partial

LAYERS = 4
REFUSED = OSError(errno.EIO, os.strerror(errno.EIO))


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, object]:
    return inputs(tmp_path / "in")


@pytest.fixture
def one_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers one after the other, so that it is known which are finished when one fails."""
    monkeypatch.setattr("vlora_engine.utils.workers.cores", lambda: 1)


Fail = Callable[[object, str, int, BaseException], list[int]]


@pytest.fixture
def fail_at(monkeypatch: pytest.MonkeyPatch, one_worker: None) -> Fail:
    """Let the nth call of a function fail once; counts its calls."""

    def arrange(module: object, name: str, call: int, error: BaseException) -> list[int]:
        original, calls = getattr(module, name), []

        def failing(*args: object, **kwargs: object) -> object:
            calls.append(len(calls))
            if len(calls) == call + 1:
                raise error
            return original(*args, **kwargs)

        monkeypatch.setattr(module, name, failing)
        return calls

    return arrange


# spectra


@pytest.fixture
def undisturbed(sources: dict[str, object], tmp_path: Path) -> dict[str, bytes]:
    compute_spectra(sources, tmp_path / "undisturbed")
    return tree(tmp_path / "undisturbed")


def stop_spectra(sources: dict[str, object], out: Path, layers: int = 2) -> None:
    stop = Stop(layers, "spectra")
    with pytest.raises(Cancelled):
        compute_spectra(sources, out, progress=stop.progress, cancelled=stop)


def test_stopped_spectra_go_on_where_they_stopped(
    sources: dict[str, object], tmp_path: Path, undisturbed: dict[str, bytes], fail_at: Fail
) -> None:
    stop_spectra(sources, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert kept_layers(spectra_partial(tmp_path / "out")) == 2
    computed = fail_at(spectrum_module, "layer_spectrum", 99, REFUSED)
    again = compute_spectra(sources, tmp_path / "out")
    assert again.reused_layers == 2
    assert len(computed) == LAYERS - 2
    assert tree(tmp_path / "out") == undisturbed
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "out", "undisturbed"]
    from_disk, here = Spectra.load(tmp_path / "undisturbed"), again
    assert (here.inner == from_disk.inner).all()
    for name in from_disk.layer_names:
        for method in from_disk.methods:
            own, other = here.table(name, method), from_disk.table(name, method)
            assert (own.residual == other.residual).all()


@pytest.mark.parametrize("error", [REFUSED, RuntimeError("out of memory"), KeyboardInterrupt()])
def test_spectra_that_failed_keep_their_layers(
    error: BaseException,
    sources: dict[str, object],
    tmp_path: Path,
    undisturbed: dict[str, bytes],
    fail_at: Fail,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fail_at(spectrum_module, "layer_spectrum", 3, error)
    told = StorageError if error is REFUSED else type(error)
    with pytest.raises(told):
        compute_spectra(sources, tmp_path / "out")
    monkeypatch.undo()
    # The layer that was under way when its neighbour failed may be lost with it.
    assert 2 <= kept_layers(spectra_partial(tmp_path / "out")) <= 3
    assert compute_spectra(sources, tmp_path / "out").reused_layers >= 2
    assert tree(tmp_path / "out") == undisturbed


def test_vectors_that_were_too_many_stay_away_after_a_resume(
    sources: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compute_spectra(sources, tmp_path / "measured")
    sizes = [p.stat().st_size for p in sorted((tmp_path / "measured" / "vectors").iterdir())]
    for name, limit in (("early", sizes[0] + 100), ("late", sum(sizes[:3]) + 100)):
        monkeypatch.setattr(spectrum_module, "VECTORS_LIMIT_BYTES", limit)
        compute_spectra(sources, tmp_path / name)
        assert not (tmp_path / name / "vectors").exists()
        stop_spectra(sources, tmp_path / "out")
        assert (spectra_partial(tmp_path / "out") / "vectors").exists() == (name == "late")
        compute_spectra(sources, tmp_path / "out")
        assert tree(tmp_path / "out") == tree(tmp_path / name)
        (tmp_path / "out").rename(tmp_path / f"{name}-resumed")


def test_a_table_that_was_damaged_meanwhile_is_computed_again(
    sources: dict[str, object], tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    stop_spectra(sources, tmp_path / "out", 3)
    table = spectra_partial(tmp_path / "out") / "layers" / "00001.safetensors"
    table.write_bytes(table.read_bytes()[:-9])
    assert compute_spectra(sources, tmp_path / "out").reused_layers == 2
    assert tree(tmp_path / "out") == undisturbed


@pytest.mark.parametrize("other", ["adapter", "scale", "methods", "version", "device"])
def test_spectra_of_anything_else_begin_anew(
    other: str, sources: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_spectra(sources, tmp_path / "out")
    settings: dict[str, object] = {}
    if other == "adapter":
        sources = {**sources, "task00": sources["task01"], "task01": sources["task00"]}
    elif other == "scale":
        sources["task00"].scales.update(dict.fromkeys(sources["task00"].scales, 3.0))
    elif other == "methods":
        settings = {"methods": ["delta", "flat"]}
    elif other == "version":
        monkeypatch.setattr(request_module, "__version__", "another")
    else:
        monkeypatch.setattr(request_module, "pick_device", lambda _: torch.device("cuda"))
    assert compute_spectra(sources, tmp_path / "out", **settings).reused_layers == 0
    compute_spectra(sources, tmp_path / "anew", **settings)
    assert tree(tmp_path / "out") == tree(tmp_path / "anew")


def test_a_killed_process_that_wrote_the_vectors_but_not_the_table(
    sources: dict[str, object], tmp_path: Path, undisturbed: dict[str, bytes], fail_at: Fail
) -> None:
    fail_at(spectrum_module, "write_layer", 2, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        compute_spectra(sources, tmp_path / "out")
    partial = spectra_partial(tmp_path / "out")
    assert len(list((partial / "vectors").iterdir())) == 3
    assert compute_spectra(sources, tmp_path / "out").reused_layers == 2
    assert tree(tmp_path / "out") == undisturbed


def test_with_the_codec_a_choice_can_be_made_layer_by_layer(
    sources: dict[str, object], tmp_path: Path, one_worker: None
) -> None:
    seen: list[tuple[str, int, int, bool]] = []  # stage, layers, of these in the codec, whole
    partial = spectra_partial(tmp_path / "out")

    def watch(progress: Progress) -> None:
        if progress.stage in ("spectra", "groups", "methods") and any(partial.glob("layers/*")):
            read = Spectra.load(partial)
            assert read.own.keys() >= read.layers.keys() or read.is_coded
            seen.append((progress.stage, len(read.layers), len(read.own), read.is_coded))
            first, *others = read.methods
            complete = progress.stage == "methods"
            assert all(first in table.methods for table in read.layers.values())
            assert complete or not any(set(others) & t.methods.keys() for t in read.layers.values())

    compute_spectra(sources, tmp_path / "out", codec=True, progress=watch)
    stages = list(dict.fromkeys(stage for stage, *_ in seen))
    assert stages == ["spectra", "groups", "methods"]
    assert [layers for stage, layers, *_ in seen if stage == "spectra"] == [1, 2, 3]
    assert not any(coded for stage, _, _, coded in seen if stage != "methods")
    assert all(coded for stage, _, _, coded in seen if stage == "methods")
    assert not (tmp_path / "out" / "codec").exists()


@pytest.mark.parametrize("stage", ["spectra", "groups", "methods"])
def test_spectra_with_the_codec_go_on_in_any_stage(
    stage: str, sources: dict[str, object], tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    compute_spectra(sources, tmp_path / "whole", codec=True)
    stop = Stop(1 if stage == "groups" else 2, stage)
    with pytest.raises(Cancelled):
        compute_spectra(
            sources, tmp_path / "out", codec=True, progress=stop.progress, cancelled=stop
        )
    compute_spectra(sources, tmp_path / "out", codec=True)
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")
    # The layers are those that are computed all at once, without the codec.
    layers = {k: v for k, v in undisturbed.items() if k.startswith(("layers", "vectors"))}
    assert layers.items() <= tree(tmp_path / "whole").items()
    whole = Spectra.load(tmp_path / "whole").rate_tables()
    held = compute_spectra(sources, codec=True)
    for one, other in zip(whole.layers, held.codec.layers, strict=True):
        assert (one.shares == other.shares).all()
    assert whole.clusters == held.codec.clusters


# builds


@pytest.mark.parametrize("target", [{"k": 3}, {"method": "delta", "max_error": 0.3}], ids=str)
@pytest.mark.parametrize("error", [REFUSED, RuntimeError("out of memory")], ids=repr)
def test_a_build_that_failed_goes_on_where_it_failed(
    error: BaseException,
    target: dict[str, float],
    sources: dict[str, object],
    tmp_path: Path,
    fail_at: Fail,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    build_subspace(sources, tmp_path / "undisturbed", **target)
    fail_at(build_module, "build_layer", 3, error)
    with pytest.raises(StorageError if error is REFUSED else RuntimeError):
        build_subspace(sources, tmp_path / "out", **target)
    monkeypatch.undo()
    assert not (tmp_path / "out").exists()
    kept = kept_layers(tmp_path / ".out.part-run")
    assert 2 <= kept <= 3
    report = build_subspace(sources, tmp_path / "out", **target)
    assert report.reused_layers == kept
    assert tree(tmp_path / "out") == tree(tmp_path / "undisturbed")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "out", "undisturbed"]


def test_a_build_that_failed_in_its_spectra_keeps_those(
    sources: dict[str, object], tmp_path: Path, fail_at: Fail, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_subspace(sources, tmp_path / "undisturbed", method="delta", max_error=0.3)
    fail_at(spectrum_module, "layer_spectrum", 3, REFUSED)
    with pytest.raises(StorageError):
        build_subspace(sources, tmp_path / "out", method="delta", max_error=0.3)
    monkeypatch.undo()
    report = build_subspace(sources, tmp_path / "out", method="delta", max_error=0.3)
    assert report.spectra.reused_layers >= 2
    assert tree(tmp_path / "out") == tree(tmp_path / "undisturbed")


def test_a_failure_before_the_first_layer_leaves_nothing(
    sources: dict[str, object], tmp_path: Path, fail_at: Fail
) -> None:
    fail_at(build_module, "build_layer", 0, REFUSED)
    fail_at(spectrum_module, "layer_spectrum", 0, REFUSED)
    with pytest.raises(StorageError):
        build_subspace(sources, tmp_path / "out", k=3)
    with pytest.raises(StorageError):
        compute_spectra(sources, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


def test_an_input_at_fault_leaves_nothing(
    sources: dict[str, object], tmp_path: Path, fail_at: Fail
) -> None:
    fail_at(build_module, "build_layer", 3, AdapterError("It changed meanwhile."))
    with pytest.raises(AdapterError):
        build_subspace(sources, tmp_path / "out", k=3)
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize("name", ["__version__", "pick_device"])
def test_built_layers_of_another_version_or_device_are_not_used(
    name: str, sources: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vlora_engine.compress.build import fingerprint, make_plan
    from vlora_engine.compression_target import CompressionTarget
    from vlora_engine.subspace.request import prepare

    collection = prepare(sources)
    plan = make_plan(collection, CompressionTarget(k=3))
    before = fingerprint(collection, plan, "cpu")
    assert before == fingerprint(prepare(sources), plan, "cpu")
    other = "another" if name == "__version__" else lambda _: torch.device("cuda")
    monkeypatch.setattr(request_module, name, other)
    assert fingerprint(collection, plan, "cpu") != before


def test_spectra_that_stopped_while_they_cleaned_up_come_out_the_same(
    tmp_path: Path, sources: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What only a stopped run needs is deleted, or nothing is published."""
    compute_spectra(sources, tmp_path / "whole", codec=True)

    def one_file(folder: Path) -> None:
        next(folder.iterdir()).unlink()
        raise REFUSED

    with monkeypatch.context() as patch:
        patch.setattr("vlora_engine.utils.files.shutil.rmtree", one_file)
        with pytest.raises(StorageError):
            compute_spectra(sources, tmp_path / "out", codec=True)
    assert not (tmp_path / "out").exists()
    compute_spectra(sources, tmp_path / "out", codec=True)
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")
