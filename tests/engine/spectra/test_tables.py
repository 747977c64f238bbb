"""The error surface against dense arithmetic, and the choices made on it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.engine.test_shared_subspace import WIDE, mixed_collection
from tests.witnesses import make
from vlora_engine.adapters.model import MemorySource
from vlora_engine.adapters.stack import read_stack
from vlora_engine.compress.build import build_subspace
from vlora_engine.compress.measure import compute_spectra
from vlora_engine.compression_target import CompressionTarget
from vlora_engine.errors import NotFoundError, ParameterError, SubspaceError, TargetError
from vlora_engine.spectra.choose import choose, match_layers, predict
from vlora_engine.spectra.tables import Spectra, diagonal_k, grid_k, rate_tables_file

NESTED = ["delta", "columns"]


def sources(adapters: dict | None = None) -> dict[str, MemorySource]:
    return {name: MemorySource(w) for name, w in (adapters or mixed_collection()).items()}


def dense_bases(spectra: Spectra, layer: str, method: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Eigenbases from dense d x d arithmetic: an independent way to the same subspaces."""
    adapters = mixed_collection()
    norms = {task.name: task.norm for task in spectra.tasks}
    sums = [0.0, 0.0]
    for name, adapter in adapters.items():
        if layer not in adapter.lora_a:
            continue
        if method == "delta":
            own = adapter.delta(layer) / norms[name]
            sums = [sums[0] + own.T @ own, sums[1] + own @ own.T]
        else:
            a, b = adapter.lora_a[layer].double(), adapter.lora_b[layer].double()
            sums = [sums[0] + a.T @ a, sums[1] + b @ b.T]
    return tuple(torch.linalg.eigh(total).eigenvectors.flip(1).T for total in sums)


@pytest.mark.parametrize("method", NESTED)
def test_the_surface_is_brute_force_for_every_k(method: str) -> None:
    spectra = compute_spectra(sources(), methods=(method,))
    adapters = mixed_collection()
    for layer in WIDE:
        table = spectra.table(layer, method)
        full_a, full_b = dense_bases(spectra, layer, method)
        tasks = [spectra.tasks[i].name for i in spectra.layers[layer].tasks]
        for i, k_b in enumerate(table.grid_b):
            for j, k_a in enumerate(table.grid_a):
                p_a, p_b = full_a[: int(k_a)], full_b[: int(k_b)]
                for t, name in enumerate(tasks):
                    own = adapters[name].delta(layer)
                    missed = (own - p_b.T @ p_b @ own @ p_a.T @ p_a).square().sum()
                    scale = float(own.square().sum())
                    assert float(table.grid[t, i, j]) == pytest.approx(
                        float(missed), abs=1e-6 * scale
                    )
        assert len(table.grid_a) * len(table.grid_b) > 100
        for j, k in enumerate(table.k):
            own = table.at(min(int(k), table.max_a), min(int(k), table.max_b))
            assert np.array_equal(own, table.residual[:, j])


def test_flats_table_is_what_building_gives() -> None:
    adapters = {str(i): make.weights(WIDE, rank=4, seed=i) for i in range(6)}
    spectra = compute_spectra(sources(adapters), methods=("flat",))
    layer = next(iter(WIDE))
    stack = read_stack(layer, sources(adapters), dict.fromkeys(adapters, 1.0))
    for j, k in enumerate(spectra.table(layer, "flat").k):
        sides = []
        for side in ("a", "b"):
            rows = stack.side(side).reshape(6, -1)
            mean = rows.mean(0)
            vh = torch.linalg.svd(rows - mean, full_matrices=False).Vh[: int(k)]
            sides.append((mean + (rows - mean) @ vh.T @ vh).reshape(stack.side(side).shape))
        for i, name in enumerate(sorted(adapters)):
            hat = adapters[name].scales[layer] * sides[1][i].T @ sides[0][i]
            missed = float((adapters[name].delta(layer) - hat).square().sum())
            assert float(spectra.table(layer, "flat").residual[i, j]) == pytest.approx(
                missed, rel=1e-4, abs=1e-6
            )


@pytest.mark.parametrize("method", [*NESTED, "flat"])
@pytest.mark.parametrize(
    "target",
    [
        {"max_error": 0.3},
        {"mean_error": 0.2},
        {"variance": 0.9},
        {"variance": 0.9, "adaptive": True},
        {"budget": 40_000},
        {"k": 2},
    ],
    ids=str,
)
def test_a_choice_keeps_its_promise_on_disk(method: str, target: dict, tmp_path: Path) -> None:
    adapters = {str(i): make.weights(WIDE, rank=4, seed=i % 6) for i in range(9)}
    adapters |= mixed_collection()
    report = build_subspace(sources(adapters), tmp_path / "s", method=method, **target)
    if "max_error" in target:
        assert report.max_error <= target["max_error"]
    if "mean_error" in target:
        assert report.mean_error <= target["mean_error"]
    if "variance" in target and "adaptive" not in target:
        assert report.variance >= target["variance"]
    if "budget" in target:
        assert report.nbytes <= target["budget"]
        assert report.nbytes >= 0.97 * target["budget"]  # tiny layers: one direction is 1 %
    if report.choice is not None:
        predicted = report.choice.prediction
        rounding = 5e-4  # of fp16
        assert report.mean_error == pytest.approx(predicted.mean_error, abs=rounding)
        assert report.max_error == pytest.approx(predicted.max_error, abs=rounding)
        assert report.variance == pytest.approx(predicted.variance, abs=1e-4)
        assert 0 <= predicted.nbytes - report.nbytes < 60 * len(adapters) + 300
    on_disk = sum(f.stat().st_size for f in (tmp_path / "s").rglob("*") if f.is_file())
    assert report.nbytes == on_disk


def test_a_budget_is_used_to_one_percent(tmp_path: Path) -> None:
    modules = {f"model.layers.{i}.q_proj": (96, 128) for i in range(6)}
    adapters = {str(i): make.weights(modules, rank=6, seed=i) for i in range(8)}
    spectra = compute_spectra(sources(adapters), methods=("delta",))
    for budget in (70_000, 120_000, 200_000, 260_000):
        for dtype in ("fp32", "fp16"):
            out = tmp_path / f"{budget}{dtype}"
            report = build_subspace(
                sources(adapters), out, spectra=spectra, budget=budget, dtype=dtype
            )
            assert 0.99 * budget <= report.nbytes <= budget or report.max_error < 1e-3


def test_more_bytes_never_hurt() -> None:
    spectra = compute_spectra(sources())
    for method in spectra.methods:
        errors = [
            choose(spectra, CompressionTarget(method, budget=b)).prediction.mean_error
            for b in range(20_000, 60_000, 4_000)
        ]
        assert errors == sorted(errors, reverse=True)


def test_the_allocation_beats_one_k_for_all() -> None:
    modules = {"easy.q": (64, 64), "hard.q": (64, 64)}
    adapters = {}
    for i in range(6):
        adapter = make.weights(modules, rank=4, seed=i)
        adapter.lora_b["easy.q"] = adapter.lora_b["easy.q"] * 0.05
        adapters[str(i)] = adapter
    spectra = compute_spectra(sources(adapters), methods=("delta",))
    uniform = choose(spectra, CompressionTarget("delta", k=8)).prediction
    chosen = choose(spectra, CompressionTarget("delta", budget=uniform.nbytes))
    assert chosen.prediction.mean_error < 0.95 * uniform.mean_error
    assert chosen.k["hard.q"] > chosen.k["easy.q"]


def test_layers_can_be_pinned() -> None:
    spectra = compute_spectra(sources(), methods=("delta",))
    chosen = choose(spectra, CompressionTarget("delta", max_error=0.7, layers={"*v_proj": 2}))
    assert chosen.k["model.layers.0.v_proj"] == (2, 2)
    assert chosen.prediction.max_error <= 0.7


def test_either_side_of_a_layer_can_be_pinned(tmp_path: Path) -> None:
    """The choice, the error there and what is built are those of the pair, by dense arithmetic."""
    layer, adapters = "model.layers.0.v_proj", mixed_collection()
    spectra = compute_spectra(sources(), methods=("delta",))
    target = CompressionTarget("delta", k=4, layers={layer: [3, 5], "*q_proj": (4, 4)})
    assert target.layers == {layer: (3, 5), "*q_proj": 4}
    assert target.k_range == (3, 5)
    chosen = choose(spectra, target)
    assert chosen.k[layer] == (3, 5)
    p_a, p_b = (
        basis[:k] for basis, k in zip(dense_bases(spectra, layer, "delta"), (3, 5), strict=True)
    )
    errors = []
    for adapter in adapters.values():
        if layer in adapter.lora_a:
            own = adapter.delta(layer)
            missed = (own - p_b.T @ p_b @ own @ p_a.T @ p_a).square().sum()
            errors.append(float((missed / own.square().sum()).sqrt()))
    assert chosen.prediction.layer_errors[layer] == pytest.approx(np.mean(errors), abs=1e-5)
    report = build_subspace(sources(), tmp_path / "out", targets=target)
    assert report.k[layer] == (3, 5)
    assert report.layer_errors[layer] == pytest.approx(np.mean(errors), abs=1e-5)
    with pytest.raises(ParameterError, match="no k of a module"):
        CompressionTarget(k=3, layers={layer: [1, 2, 3]})  # type: ignore[dict-item]
    with pytest.raises(ParameterError, match="at least 1"):
        choose(spectra, CompressionTarget(k=3, layers={layer: (0, 3)}))


def test_a_name_stands_for_its_layer_whatever_is_in_it() -> None:
    names = ["h[0].q", "h[1].q", "h0.q"]
    assert match_layers(names, {"*": 2, "h[0].q": (3, 4)}) == {
        "h[0].q": (3, 4), "h[1].q": (2, 2), "h0.q": (2, 2),
    }  # fmt: skip


def test_targets_that_cannot_be_met_say_what_can() -> None:
    spectra = compute_spectra(sources(), methods=("delta",))
    with pytest.raises(TargetError, match=r"0\.0007"):
        choose(spectra, CompressionTarget("delta", max_error=1e-4, dtype="fp16"))
    with pytest.raises(TargetError, match="rest tensors"):
        choose(spectra, CompressionTarget("delta", budget=1000))
    with pytest.raises(TargetError, match="meets the error target"):
        choose(spectra, CompressionTarget("delta", max_error=0.01, layers={"*": 1}))
    with pytest.raises(ParameterError, match="no surface of method 'flat'"):
        choose(spectra, CompressionTarget("flat", k=1))
    with pytest.raises(ParameterError, match="more than one target"):
        choose(spectra, CompressionTarget("delta", max_error=0.1, mean_error=0.1))


def test_a_k_beyond_what_there_is_is_all_there_is() -> None:
    spectra = compute_spectra(sources(), methods=("delta",))
    tables = {name: spectra.table(name, "delta") for name in spectra.layer_names}
    choice = choose(spectra, CompressionTarget("delta", k=10_000))
    assert choice.k == {name: (table.max_a, table.max_b) for name, table in tables.items()}


def test_spectra_on_disk_are_those_in_memory(tmp_path: Path) -> None:
    held = compute_spectra(sources())
    compute_spectra(sources(), tmp_path / "spectra")
    read = Spectra.load(tmp_path / "spectra")
    assert read.complete
    for method in held.methods:
        for target in ({"max_error": 0.3}, {"k": 3}):
            assert choose(held, CompressionTarget(method, **target)) == choose(
                read, CompressionTarget(method, **target)
            )
    assert np.array_equal(held.inner, read.inner)
    k, share = read.variance(next(iter(WIDE)), "delta")
    assert share[0] == pytest.approx(0, abs=1e-6)
    assert share[-1] == pytest.approx(1)
    assert list(np.diff(share) >= -1e-9) == [True] * (len(k) - 1)


def test_spectra_under_way_show_the_layers_that_are_done(tmp_path: Path) -> None:
    compute_spectra(sources(), tmp_path / "spectra")
    (tmp_path / "spectra" / "layers" / "00001.safetensors").unlink()
    read = Spectra.load(tmp_path / "spectra")
    assert not read.complete
    assert list(read.layers) == ["model.layers.0.q_proj"]
    with pytest.raises(NotFoundError, match="v_proj' yet"):
        read.table("model.layers.0.v_proj", "delta")


def test_spectra_need_no_torch_to_choose(tmp_path: Path, fresh_python) -> None:
    compute_spectra(sources(), tmp_path / "spectra")
    fresh_python(
        "import sys\n"
        "from vlora_engine.spectra.tables import Spectra\n"
        "from vlora_engine.spectra.choose import choose\n"
        "from vlora_engine.compression_target import CompressionTarget\n"
        f"spectra = Spectra.load({str(tmp_path / 'spectra')!r})\n"
        "choose(spectra, CompressionTarget('delta', max_error=0.3))\n"
        "assert 'torch' not in sys.modules\n"
    )


def test_similarity_is_the_cosine_of_dense_updates() -> None:
    adapters = mixed_collection()
    spectra = compute_spectra(sources(), methods=("delta",))
    cosines = spectra.cosines()
    names = [task.name for task in spectra.tasks]
    flat = {
        name: torch.cat(
            [
                w.delta(layer).flatten()
                if layer in w.lora_a
                else torch.zeros(d_in * d_out, dtype=torch.float64)
                for layer, (d_in, d_out) in WIDE.items()
            ]
        )
        for name, w in adapters.items()
    }
    for i, one in enumerate(names):
        for j, two in enumerate(names):
            true = torch.nn.functional.cosine_similarity(flat[one], flat[two], dim=0)
            assert cosines[i, j] == pytest.approx(float(true), abs=1e-9)


def test_spectra_of_other_adapters_are_refused(tmp_path: Path) -> None:
    spectra = compute_spectra(sources())
    other = sources({**mixed_collection(), "plain": make.weights(WIDE, rank=3, seed=123)})
    with pytest.raises(SubspaceError, match="other adapters"):
        build_subspace(other, tmp_path / "s", spectra=spectra, method="delta", max_error=0.3)
    assert list(tmp_path.iterdir()) == []


def test_kept_k_are_dense_then_logarithmic() -> None:
    assert list(diagonal_k(5)) == [0, 1, 2, 3, 4, 5]
    kept = diagonal_k(4096)
    assert list(kept[:257]) == list(range(257))
    assert kept[-1] == 4096
    assert len(kept) <= 257 + 64
    grid = grid_k(kept, 1000, 48)
    assert grid[0] == 0
    assert grid[-1] >= 900
    assert len(grid) <= 48


def test_predict_agrees_with_choose() -> None:
    spectra = compute_spectra(sources(), methods=("delta",))
    chosen = choose(spectra, CompressionTarget("delta", k=4))
    assert predict(spectra, "delta", chosen.k, chosen.dtype) == chosen.prediction


@pytest.mark.parametrize("moves", [False, True])
def test_tables_that_come_while_others_are_read_are_read_at_the_next_look(
    tmp_path: Path, moves: bool
) -> None:
    place = tmp_path / "spectra"
    assert compute_spectra(sources(), place, codec=True).is_whole
    file = rate_tables_file(place)
    aside = file.rename(tmp_path / "aside")
    spectra = Spectra.load(place)  # all of it but the codec's tables: these come at this moment
    aside.rename(file)
    if moves:  # to where finished spectra lie
        assert spectra.move(place.rename(tmp_path / "final"))
    assert spectra.has_all_tables
    assert not spectra.is_whole
    assert spectra.refresh()
    assert spectra.is_whole
    assert spectra.rate_tables() is not None
