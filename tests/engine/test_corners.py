"""Corners of the mathematics: rounding, ranges, tiny errors, and the same bytes on any threads."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch

import vlora_engine.utils.workers as workers_module
from tests.witnesses import make
from tests.witnesses.dense import dense_error
from tests.witnesses.promises import FIRST, METHODS, SECOND, compress, only, plain, top_k, zeroed
from vlora_engine import SharedSubspace
from vlora_engine.adapters.check import check_adapters
from vlora_engine.adapters.model import LoRAWeights, MemorySource
from vlora_engine.catalog.open import open_adapter
from vlora_engine.compress.build import build_subspace
from vlora_engine.compress.measure import compute_spectra
from vlora_engine.compression_target import CompressionTarget
from vlora_engine.errors import ParameterError, StorageError, TargetError
from vlora_engine.linalg.grams import gram_roots, range_basis
from vlora_engine.spectra.choose import choose
from vlora_engine.subspace.loadings import LoadingsForm, decode_loadings, encode_loadings


@pytest.mark.parametrize(
    "goal",
    [{"k": 3}, {"method": "columns", "max_error": 0.4}, {"method": "flat", "k": 2}],
    ids=str,
)
def test_the_same_bytes_with_one_worker_and_with_two(
    goal: dict[str, object], tmp_path: Path, monkeypatch
) -> None:
    sources = {path.name: open_adapter(path) for path in make.collection(tmp_path / "in", 5)}
    written = []
    for workers in (1, 2):
        monkeypatch.setattr(workers_module, "cores", lambda count=workers: count)
        out = tmp_path / "made" / str(workers) / "s"
        before = torch.get_num_threads()
        torch.set_num_threads(workers)
        try:
            build_subspace(sources, out, **goal)
            subspace = SharedSubspace.load(out)
            subspace.absorb_incremental(plain_gpt2(60), "absorbed")
            subspace.add_task(subspace.project(plain_gpt2(61), "added"))
            subspace.save(out)
        finally:
            torch.set_num_threads(before)
        written.append({p.relative_to(out): p.read_bytes() for p in out.rglob("*") if p.is_file()})
    assert written[0] == written[1]


def plain_gpt2(seed: int) -> LoRAWeights:
    return make.weights(seed=seed)


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("magnitude", [1e-12, 1.0, 1e12])
@pytest.mark.parametrize(
    "form",
    [
        LoadingsForm("delta", 4, 3, 2),  # a dense core
        LoadingsForm("delta", 2, 9, 8),  # its factors
        LoadingsForm("delta", 3, 0, 5),  # one side keeps nothing
        LoadingsForm("columns", 4, 3, 2),
        LoadingsForm("flat", 4, 3, 0),
    ],
    ids=str,
)
def test_loadings_come_back_from_their_encoding(
    form: LoadingsForm, magnitude: float, dtype: str
) -> None:
    rank = () if form.method == "flat" else (form.rank,)
    generator = torch.Generator().manual_seed(4)
    a, b = (
        magnitude * torch.randn(5, *rank, k, generator=generator, dtype=torch.float64)
        for k in (form.k_a, form.k_b)
    )
    loadings = encode_loadings(form, a, b, dtype)
    assert loadings.values.shape == (5, form.elements)
    back_a, back_b = decode_loadings(form, loadings)
    rounding = {"F32": 1e-6, "F16": 2e-3, "BF16": 1.6e-2}[dtype]
    if form.is_core:  # the gauge is another one, what it stands for is not
        assert form.elements < form.rank * (form.k_a + form.k_b)
        core, back = b.transpose(1, 2) @ a, back_b.transpose(1, 2) @ back_a
        assert torch.allclose(back, core, rtol=0, atol=rounding * 5 * magnitude**2)
    else:
        assert torch.allclose(back_a, a, rtol=rounding, atol=rounding * magnitude)
        assert torch.allclose(back_b, b, rtol=rounding, atol=rounding * magnitude)


def test_halves_are_exact_for_grams_that_cholesky_cannot_take() -> None:
    """A Gram whose middle pivot vanishes stops Cholesky before it has seen the rest."""
    rows = [
        [[0, 0, 0], [0, 0, 0], [0, 0, 0]],
        [[1, 1, 1], [1, 1, 1], [1, 1, 2]],
        [[0, 0, 0], [0, 4, 2], [0, 2, 5]],
        [[4, 2, 0], [2, 2, 1], [0, 1, 1]],
        [[2, 0, 1], [0, 3, 0], [1, 0, 4]],
    ]
    grams = torch.tensor(rows, dtype=torch.float64)
    factors = gram_roots(grams)
    # a decomposition of n rows and the product of its halves: n roundings each, of the norm
    rounding = 8 * 3 * torch.finfo(torch.float64).eps * float(grams.flatten(1).norm(dim=1).max())
    assert torch.allclose(factors @ factors.transpose(1, 2), grams, rtol=0, atol=rounding)


def test_the_range_finder_repeats_itself_to_the_bit() -> None:
    rows = torch.randn(300, 280, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    torch.manual_seed(1)
    one = range_basis(rows, 4)
    torch.manual_seed(2)
    two = range_basis(rows, 4)
    assert torch.equal(one.components, two.components)


@pytest.mark.parametrize("method", METHODS)
def test_tiny_errors_keep_their_digits(method: str) -> None:
    """Below 1e-5, the difference of Gram products is noise; the reported error is not."""
    adapters = {name: plain(seed, dtype=torch.float64) for seed, name in enumerate("vwxyz")}
    subspace = compress(adapters, method=method, num_components=top_k(adapters, method))
    assert 1e-9 < subspace.errors()["max"] < 1e-6
    for name, original in adapters.items():
        true = dense_error(original, subspace.reconstruct(name))
        assert subspace.errors()["tasks"][name]["error"] == pytest.approx(true, rel=0.01)


@pytest.mark.parametrize("method", METHODS)
def test_the_surface_knows_of_modules_without_effect(method: str) -> None:
    adapters = {
        "x": zeroed(plain(1), names=[SECOND]),
        "y": zeroed(plain(2)),
        "z": plain(3),
        "w": plain(4),
    }
    spectra = compute_spectra({name: MemorySource(own) for name, own in adapters.items()})
    predicted = choose(spectra, CompressionTarget(method, k=1)).prediction.task_errors
    measured = compress(adapters, method=method, num_components=1).errors()["tasks"]
    for name in adapters:
        assert predicted[name] == pytest.approx(measured[name]["error"], rel=1e-5)
    assert predicted["y"] == 0


def test_the_report_names_the_mean_error_of_every_layer(tmp_path: Path) -> None:
    adapters = {"x": plain(1), "y": plain(2), "z": only(FIRST, 3)}
    sources = {name: MemorySource(own) for name, own in adapters.items()}
    report = build_subspace(sources, tmp_path / "s", k=3)
    subspace = SharedSubspace.load(tmp_path / "s")
    for layer, names in {FIRST: "xyz", SECOND: "xy"}.items():
        errors = []
        for name in names:
            own = adapters[name].delta(layer)
            errors.append(
                float((own - subspace.reconstruct(name).delta(layer)).norm() / own.norm())
            )
        assert report.layer_errors[layer] == pytest.approx(sum(errors) / len(errors), rel=1e-5)


def test_a_flat_subspace_says_that_a_higher_rank_does_not_fit() -> None:
    subspace = compress({"x": plain(1), "y": plain(2)}, method="flat", num_components=1)
    for take in (subspace.project, subspace.absorb_incremental):
        with pytest.raises(ParameterError, match="higher rank"):
            take(plain(3, rank=5), "z")
    subspace.absorb(plain(3, rank=5), "z")
    assert subspace.rank == 5


def test_which_of_two_bases_is_the_odd_one_does_not_depend_on_the_order() -> None:
    sources = {"x": MemorySource(plain(1)), "y": MemorySource(make.weights({FIRST: (40, 50)}))}
    turned = dict(reversed(sources.items()))
    assert check_adapters(sources).good == check_adapters(turned).good == ["x"]


def test_a_target_near_the_rounding_of_the_store_is_kept() -> None:
    adapters = {name: plain(seed, dtype=torch.float16) for seed, name in enumerate("xyz")}
    for method in METHODS:
        for target in (7.5e-4, 1e-3, 2e-3):
            subspace = compress(adapters, method=method, max_error=target)
            assert subspace.dtype == "F16"
            assert subspace.errors()["max"] <= target
        with pytest.raises(TargetError, match="Storing in F16 alone"):
            compress(adapters, method=method, max_error=4e-4)


@pytest.mark.parametrize("goal", [2e-3, 4e-3, 8e-3])
def test_a_target_leaves_room_for_the_rounding_of_the_store(goal: float) -> None:
    """A choice whose error is the target to the last digit would miss it once it is stored."""
    adapters = {name: plain(seed) for seed, name in enumerate("xyz")}
    for own in adapters.values():
        for factor in own.lora_a.values():
            factor[1:] *= 4e-3  # one strong direction an adapter, and a faint rest
    spectra = compute_spectra({name: MemorySource(own) for name, own in adapters.items()})
    exactly = choose(
        spectra, CompressionTarget("delta", max_error=goal, dtype="fp16")
    ).prediction.max_error
    assert exactly > 1.5e-3
    target = exactly * (1 + 1e-6)
    assert compress(adapters, max_error=target, dtype="fp16").errors()["max"] <= target


def test_a_replacement_that_fails_at_its_last_step_puts_back_what_was_there(
    tmp_path: Path, monkeypatch
) -> None:
    compress({"x": plain(1), "y": plain(2)}, num_components=1).save(tmp_path / "s")
    before = {p: p.read_bytes() for p in (tmp_path / "s").rglob("*") if p.is_file()}
    rename = os.rename

    def refuse(source: Path, target: Path) -> None:
        if Path(source).name.endswith("part-run"):
            raise OSError(errno.EIO, "the disk is ill")
        rename(source, target)

    monkeypatch.setattr("vlora_engine.utils.outputs.os.rename", refuse)
    with pytest.raises(StorageError, match="the disk is ill"):
        compress({"x": plain(1), "z": plain(3)}, num_components=2).save(tmp_path / "s", force=True)
    monkeypatch.undo()
    assert {p: p.read_bytes() for p in (tmp_path / "s").rglob("*") if p.is_file()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["s"]
