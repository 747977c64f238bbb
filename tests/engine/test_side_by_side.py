"""Side by side: our three methods with each other, and two of them with the packages they follow.

Every error here is that of dW, and every comparison of methods is at equal codec ratio: what the
method stores (headers and index with it, heads left out) over A and B at 16 bit.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest
from torch import Tensor

from tests.witnesses.make import collection, config, factors, write
from vlora_engine.adapters.check import check_adapters
from vlora_engine.adapters.model import AdapterSource, LoRAWeights
from vlora_engine.catalog.open import load_adapter, open_adapter
from vlora_engine.compress.build import build_subspace
from vlora_engine.compress.measure import compute_spectra
from vlora_engine.compression_target import CompressionTarget
from vlora_engine.errors import TargetError
from vlora_engine.linalg.low_rank import relative_error
from vlora_engine.shared_subspace import SharedSubspace
from vlora_engine.spectra.choose import choose
from vlora_engine.spectra.sizes import factor_bytes_16, rest_bytes
from vlora_engine.spectra.tables import Spectra
from vlora_engine.subspace.request import BuildReport

SETS = ("gpt2-medical-sports-legal", "roberta-checkpoints")
RATIOS = (2, 4, 8, 16, 32)
METHODS = ("delta", "columns", "flat")
ROUNDING = 1e-3  # what fp16 may add to an error that the surface promises, relative to ||dW||

Weights = Mapping[str, LoRAWeights]


# ---- our methods, at equal codec ratio


@cache
def opened(folder: Path) -> dict[str, AdapterSource]:
    return {path.name: open_adapter(path) for path in sorted(folder.iterdir())}


@cache
def spectra_of(folder: Path) -> Spectra:
    return compute_spectra(opened(folder))


@cache
def loaded(folder: Path) -> dict[str, LoRAWeights]:
    return {path.name: load_adapter(path) for path in sorted(folder.iterdir())}


def budget_at(spectra: Spectra, ratio: float) -> int:
    """The bytes on disk that are this codec ratio: heads come on top of it."""
    return int(factor_bytes_16(spectra) / ratio) + rest_bytes(spectra)


def build_at(folder: Path, out: Path, method: str, ratio: float) -> BuildReport | None:
    """A real build at a codec ratio of at least ``ratio``; None where the method has none."""
    spectra = spectra_of(folder)
    budget = budget_at(spectra, ratio)
    try:
        promised = choose(
            spectra, CompressionTarget(method, budget=budget, dtype="fp16")
        ).prediction
    except TargetError:
        return None
    sources = opened(folder)
    report = build_subspace(
        sources,
        out / f"{method}-{ratio}",
        method=method,
        budget=budget,
        dtype="fp16",
        spectra=spectra,
        check=check_adapters(sources),
    )
    assert report.nbytes <= budget
    assert ratio <= report.codec_ratio < 1.05 * ratio  # equal, not merely above
    for task, error in report.task_errors.items():
        assert error == pytest.approx(promised.task_errors[task], abs=ROUNDING)
    return report


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("name", SETS)
def test_delta_is_the_best_shared_basis(real_adapters, tmp_path, name, ratio):
    built = {m: build_at(real_adapters / name, tmp_path, m, ratio) for m in METHODS}
    delta = built.pop("delta")
    assert delta is not None
    for method, other in built.items():
        if other is None:  # flat's means alone exceed the budget
            assert method == "flat"
            assert ratio >= 8
        else:
            allowed = 1.0 if ratio >= 4 else 1.02
            assert delta.mean_error < allowed * other.mean_error, method


@pytest.mark.parametrize("ratio", [4, 8, 16])
@pytest.mark.parametrize("name", SETS)
def test_delta_is_the_best_for_the_worst_task_too(real_adapters, name, ratio):
    spectra = spectra_of(real_adapters / name)
    budget = budget_at(spectra, ratio)
    delta = choose(spectra, CompressionTarget("delta", budget=budget, dtype="fp16")).prediction
    columns = choose(spectra, CompressionTarget("columns", budget=budget, dtype="fp16")).prediction
    assert delta.max_error < columns.max_error


# ---- the packages that `flat` and `columns` follow


def peer(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError:
        pytest.skip(f"{name} is not installed; `make bench` installs both peers")


def same_errors(adapters: Weights, ours: Weights, theirs: Weights, rel: float = 1e-4) -> None:
    """Equal dW errors and equal dW, task by task.

    Both are compared on the scale of ||dW||: the peers compute in fp32.
    """
    for task, original in adapters.items():
        mine = dw_error(original, factors_of(ours[task], original))
        other = dw_error(original, factors_of(theirs[task], original))
        assert mine == pytest.approx(other, rel=rel, abs=1e-5), task
        apart = relative_error(
            (scaled(original, theirs[task], name), scaled(original, ours[task], name))
            for name in original.layer_names
        )
        assert apart < rel, task


def dw_error(original: LoRAWeights, other: Mapping[str, tuple[Tensor, Tensor]]) -> float:
    return relative_error(
        (scaled(original, original, name), other[name]) for name in original.layer_names
    )


def factors_of(weights: LoRAWeights, original: LoRAWeights) -> dict[str, tuple[Tensor, Tensor]]:
    return {name: scaled(original, weights, name) for name in original.layer_names}


def scaled(original: LoRAWeights, weights: LoRAWeights, name: str) -> tuple[Tensor, Tensor]:
    """A and B of ``weights`` with the original's scale, which vlora-dev does not keep."""
    return weights.lora_a[name].double(), weights.lora_b[name].double() * original.scales[name]


def by_vlora(adapters: Weights, k: int) -> dict[str, LoRAWeights]:
    vlora = peer("vlora")
    theirs = vlora.SharedSubspace.from_adapters(
        [vlora.LoRAWeights(w.layer_names, w.lora_a, w.lora_b, w.rank) for w in adapters.values()],
        task_ids=list(adapters),
        num_components=k,
    )
    return {task: as_ours(adapters[task], theirs.reconstruct(task)) for task in adapters}


def as_ours(original: LoRAWeights, theirs: LoRAWeights) -> LoRAWeights:
    return LoRAWeights(
        layer_names=original.layer_names,
        lora_a={name: theirs.lora_a[name] for name in original.layer_names},
        lora_b={name: theirs.lora_b[name] for name in original.layer_names},
        rank=original.rank,
        scales=original.scales,
    )


def by_lorashare(adapters: Weights, places: Mapping[str, Path], k: int) -> dict[str, LoRAWeights]:
    lorashare = peer("lorashare")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = lorashare.SHAREModel.from_adapters(
            {task: str(places[task]) for task in adapters}, num_components=k, device="cpu"
        )
    found = {}
    for task, original in adapters.items():
        tensors = model.reconstruct(task)
        sides = {
            side: {n: tensors[f"base_model.model.{n}.lora_{side}.weight"] for n in original.lora_a}
            for side in "AB"
        }
        found[task] = LoRAWeights(
            original.layer_names, sides["A"], sides["B"], original.rank, scales=original.scales
        )
    return found


def by_us(adapters: Weights, method: str, k: int) -> dict[str, LoRAWeights]:
    subspace = SharedSubspace.from_adapters(
        list(adapters.values()), list(adapters), num_components=k, method=method
    )
    return {task: subspace.reconstruct(task) for task in adapters}


def zero_mean(folder: Path, originals: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Path]:
    """Every adapter and its mirror image ``(-A, -B)``, the same dW: columns whose mean is zero."""
    places = {}
    for name, tensors in originals.items():
        settings = config(r=4, lora_alpha=8)
        places[name] = write(folder / name, tensors, settings)
        mirrored = {key: -tensor for key, tensor in tensors.items()}
        places[f"{name}-mirrored"] = write(folder / f"{name}-mirrored", mirrored, settings)
    return places


@pytest.mark.peers
@pytest.mark.parametrize("k", [1, 2, 5])
def test_flat_is_what_vlora_computes(tmp_path, k):
    adapters = {path.name: load_adapter(path) for path in collection(tmp_path, 6)}
    same_errors(adapters, by_us(adapters, "flat", k), by_vlora(adapters, k))


@pytest.mark.peers
@pytest.mark.parametrize("k", [1, 2, 4])
@pytest.mark.parametrize("name", SETS)
def test_flat_is_what_vlora_computes_on_real_adapters(real_adapters, name, k):
    adapters = loaded(real_adapters / name)
    same_errors(adapters, by_us(adapters, "flat", k), by_vlora(adapters, k))


@pytest.mark.peers
@pytest.mark.parametrize("k", [1, 3, 8])
def test_columns_is_what_lorashare_computes_where_the_mean_is_zero(tmp_path, k):
    originals = {f"task{i}": factors(seed=i) for i in range(4)}
    places = zero_mean(tmp_path, originals)
    adapters = {name: load_adapter(place) for name, place in places.items()}
    same_errors(adapters, by_us(adapters, "columns", k), by_lorashare(adapters, places, k))


@pytest.mark.peers
@pytest.mark.parametrize("k", [9, 19])
def test_columns_has_no_floor_where_the_mean_is_not_zero(real_adapters, k):
    """lorashare takes the mean off to find its directions and never puts it back."""
    adapters = loaded(real_adapters / "roberta-checkpoints")
    places = {task: real_adapters / "roberta-checkpoints" / task for task in adapters}
    ours, theirs = by_us(adapters, "columns", k), by_lorashare(adapters, places, k)

    def mean_error(found: Weights) -> float:
        errors = [dw_error(w, factors_of(found[task], w)) for task, w in adapters.items()]
        return sum(errors) / len(errors)

    assert mean_error(ours) < 0.5 * mean_error(theirs)
