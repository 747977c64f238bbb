"""Modules that are no plain linear maps, and modules that the basis lacks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.witnesses import make
from tests.witnesses.dense import dense_error
from tests.witnesses.promises import (
    FIRST,
    METHODS,
    SECOND,
    assert_true_errors,
    compress,
    only,
    plain,
    top_k,
)
from vlora_engine import SharedSubspace, load_adapter
from vlora_engine.adapters.model import LoRAWeights, ModuleShape
from vlora_engine.subspace.tasks import TaskProjection
from vlora_engine.targets.save import save_adapter


def odd_modules(seed: int) -> LoRAWeights:
    own = make.weights({"conv": (18, 8), "emb": (20, 6), "lin": (7, 5)}, rank=3, seed=seed)
    own.shapes = {
        "conv": ModuleShape(3, 18, 8, "F32", "conv2d", (3, 2, 3, 3), (8, 3, 1, 1)),
        "emb": ModuleShape(3, 20, 6, "F32", "embedding", (3, 20), (6, 3)),
    }
    return own


@pytest.mark.parametrize("method", METHODS)
def test_convolutions_and_embeddings_pass_through_a_subspace(method: str, tmp_path: Path) -> None:
    adapters = {name: odd_modules(seed) for seed, name in enumerate("xyz")}
    k = top_k(adapters, method)
    compress(adapters, method=method, num_components=k, dtype="fp32").save(tmp_path / "s")
    subspace = SharedSubspace.load(tmp_path / "s")
    for name, original in adapters.items():
        back = subspace.reconstruct(name)
        assert back.shapes == original.shapes
        save_adapter(back, tmp_path / name)
        again = load_adapter(tmp_path / name)
        assert {n: s.shape_a for n, s in again.shapes.items() if n in original.shapes} == {
            n: s.shape_a for n, s in original.shapes.items()
        }
        assert dense_error(original, again) < 1e-6


@pytest.mark.parametrize("method", METHODS)
def test_a_module_that_the_basis_lacks_keeps_its_kind(method: str, tmp_path: Path) -> None:
    linear = {name: make.weights({"lin": (7, 5)}, rank=3, seed=i) for i, name in enumerate("xyz")}
    subspace = compress(linear, method=method, num_components=2)
    new = odd_modules(9)
    subspace.add_task(subspace.project(new, "new"))
    subspace.save(tmp_path / "s")
    loaded = SharedSubspace.load(tmp_path / "s")
    back = loaded.reconstruct("new")
    assert back.shapes == new.shapes
    for name in ("conv", "emb"):
        assert torch.equal(back.lora_a[name], new.lora_a[name])
        assert torch.equal(back.lora_b[name], new.lora_b[name])
    assert_true_errors({"new": new}, loaded)
    save_adapter(back, tmp_path / "out")
    assert load_adapter(tmp_path / "out").shapes["conv"].shape_a == (3, 2, 3, 3)

    rebuilt = loaded.absorb(make.weights({"lin": (7, 5)}, rank=3, seed=77), "more")
    assert sorted(rebuilt) == ["new", "x", "y", "z"]  # they never lay on a disk
    assert [spec.kind for spec in loaded.layers] == ["conv2d", "embedding", "linear"]
    assert loaded.reconstruct("new").shapes == new.shapes


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("incremental", [False, True])
def test_absorbing_a_module_that_the_subspace_lacks(
    method: str, incremental: bool, tmp_path: Path
) -> None:
    adapters = {name: only(FIRST, seed) for seed, name in enumerate("wxyz")}
    subspace = compress(adapters, method=method, num_components=3)
    new = plain(50)
    (subspace.absorb_incremental if incremental else subspace.absorb)(new, "new")
    subspace.save(tmp_path / "s")
    loaded = SharedSubspace.load(tmp_path / "s")
    assert loaded.layer_names == ([FIRST] if incremental else [FIRST, SECOND])
    assert_true_errors({"new": new}, loaded)
    if incremental:
        assert torch.equal(loaded.reconstruct("new").lora_b[SECOND], new.lora_b[SECOND])
    reported = loaded.errors()["tasks"]
    for name, original in adapters.items():
        back = loaded.reconstruct(name)
        assert dense_error(original, back) <= reported[name]["error"] * 1.001
        layer = float((original.delta(FIRST) - back.delta(FIRST)).norm())
        bound = reported[name]["layers"][FIRST] * float(original.delta(FIRST).norm())
        assert layer <= bound * 1.001  # the bound of a rebuilt task holds layer by layer too


def test_a_blend_keeps_modules_of_its_own(tmp_path: Path) -> None:
    """A projection that stands for no adapter: nothing of it is lost on the way to the disk."""
    subspace = compress({"x": plain(1), "y": plain(2)}, num_components=3)
    one = subspace.tasks["x"]
    extra = torch.ones(2, 5), torch.ones(4, 2)
    blend = TaskProjection(
        "blend", one.loadings_a, one.loadings_b, {**one.scales, "extra": 0.5}, own={"extra": extra}
    )
    subspace.add_task(blend)
    subspace.save(tmp_path / "s")
    back = SharedSubspace.load(tmp_path / "s").reconstruct("blend")
    assert torch.equal(back.delta("extra"), 0.5 * (extra[1] @ extra[0]).double())
    assert torch.allclose(back.delta(FIRST), subspace.reconstruct("x").delta(FIRST), atol=1e-5)
