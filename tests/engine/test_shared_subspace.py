"""What a subspace promises: exactness, independence of gauge and order, errors that are true."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from tests.witnesses import make
from tests.witnesses.dense import dense_error
from vlora_engine import SharedSubspace, load_adapter
from vlora_engine.adapters.model import LoRAWeights, ModuleShape
from vlora_engine.catalog.open import open_adapter
from vlora_engine.compress.build import build_subspace
from vlora_engine.doctor.subspace_check import check_subspace
from vlora_engine.errors import (
    CollectionError,
    NotFoundError,
    OutputExistsError,
    ParameterError,
    SubspaceError,
    VLoRAError,
)

METHODS = ["delta", "columns", "flat"]
WIDE = {"model.layers.0.q_proj": (40, 48), "model.layers.0.v_proj": (40, 24)}


def mixed_collection() -> dict[str, LoRAWeights]:
    """Different ranks, alphas, dtypes and module sets; one with rsLoRA, one with a head."""
    first = next(iter(WIDE))
    only_first = {first: WIDE[first]}
    rslora = make.config(r=4, lora_alpha=5, use_rslora=True)
    head = {"base_model.model.score.weight": torch.randn(3, 40, dtype=torch.float64)}
    return {
        "plain": make.weights(WIDE, rank=3, seed=1),
        "wide rank": make.weights(WIDE, rank=7, seed=2),
        "rs": make.weights(WIDE, rank=4, seed=3, metadata=rslora),
        "one module": make.weights(only_first, rank=2, seed=4),
        "ranks differ": make.weights(WIDE, rank=dict(zip(WIDE, (2, 5), strict=True)), seed=5),
        "head": make.weights(WIDE, rank=3, seed=6, rest=head),
    }


def compress(adapters: Mapping[str, LoRAWeights], **options: object) -> SharedSubspace:
    return SharedSubspace.from_adapters(list(adapters.values()), list(adapters), **options)


@pytest.mark.parametrize("method", METHODS)
def test_full_k_is_exact(method: str, tmp_path: Path) -> None:
    adapters = mixed_collection()
    top = 5 if method == "flat" else 22
    subspace = compress(adapters, method=method, num_components=top)
    subspace.save(tmp_path / "s")
    loaded = SharedSubspace.load(tmp_path / "s")
    for name, adapter in adapters.items():
        assert dense_error(adapter, loaded.reconstruct(name)) < 1e-6
        assert loaded.errors()["tasks"][name]["error"] < 1e-6


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("k", [1, 3])
def test_the_reported_error_is_that_of_what_is_on_disk(
    method: str, dtype: str, k: int, tmp_path: Path
) -> None:
    adapters = mixed_collection()
    compress(adapters, method=method, num_components=k, dtype=dtype).save(tmp_path / "s")
    loaded = SharedSubspace.load(tmp_path / "s")
    reported = loaded.errors()
    for name, adapter in adapters.items():
        true = dense_error(adapter, loaded.reconstruct(name))
        assert reported["tasks"][name]["error"] == pytest.approx(true, rel=2e-4)
    errors = [task["error"] for task in reported["tasks"].values()]
    assert reported["mean"] == pytest.approx(sum(errors) / len(errors))
    assert reported["max"] == max(errors)


@pytest.mark.parametrize("method", METHODS)
def test_everything_of_an_adapter_comes_back(method: str, tmp_path: Path) -> None:
    adapters = mixed_collection()
    compress(adapters, method=method, num_components=2).save(tmp_path / "s")
    for name, adapter in adapters.items():
        back = SharedSubspace.load(tmp_path / "s").reconstruct(name)
        assert back.metadata == adapter.metadata
        assert back.scales == adapter.scales
        assert back.rank == adapter.rank
        assert back.layer_names == sorted(adapter.layer_names)
        assert {n: t.dtype for n, t in back.lora_a.items()} == {
            n: t.dtype for n, t in adapter.lora_a.items()
        }
        assert {n: t.shape for n, t in back.lora_b.items()} == {
            n: t.shape for n, t in adapter.lora_b.items()
        }
        assert back.rest.keys() == adapter.rest.keys()
        for key, tensor in adapter.rest.items():
            assert torch.equal(back.rest[key], tensor)
            assert back.rest[key].dtype == tensor.dtype


def test_delta_does_not_depend_on_the_gauge() -> None:
    plain = mixed_collection()
    turned = {}
    for i, (name, adapter) in enumerate(plain.items()):
        generator = torch.Generator().manual_seed(i)
        a, b = {}, {}
        for layer in adapter.layer_names:
            rank = adapter.lora_a[layer].shape[0]
            q1, _ = torch.linalg.qr(torch.randn(rank, rank, generator=generator).double())
            q2, _ = torch.linalg.qr(torch.randn(rank, rank, generator=generator).double())
            g = q1 @ torch.diag(torch.logspace(0, 1, rank).double()) @ q2  # condition 10
            a[layer] = (torch.linalg.inv(g) @ adapter.lora_a[layer].double()).float()
            b[layer] = (adapter.lora_b[layer].double() @ g).float()
        turned[name] = LoRAWeights(
            adapter.layer_names, a, b, adapter.rank, adapter.metadata, adapter.scales
        )
    one = compress(plain, num_components=4)
    two = compress(turned, num_components=4)
    for name in plain:
        for layer in plain[name].layer_names:
            first = one.reconstruct(name).delta(layer)
            second = two.reconstruct(name).delta(layer)
            assert float((first - second).norm() / first.norm()) < 1e-5
        error = one.errors()["tasks"][name]["error"]
        assert two.errors()["tasks"][name]["error"] == pytest.approx(error, rel=1e-5)


def files(directory: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(directory)): file.read_bytes()
        for file in sorted(directory.rglob("*"))
        if file.is_file()
    }


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("target", [{"k": 3}, {"mean_error": 0.4}], ids=["k", "error"])
def test_the_same_bytes_whatever_the_order_and_the_way(
    method: str, target: dict[str, float], tmp_path: Path
) -> None:
    paths = make.collection(tmp_path / "in", 5)
    names = [path.name for path in paths]
    forward = {path.name: open_adapter(path) for path in paths}
    backward = dict(reversed(forward.items()))
    build_subspace(forward, tmp_path / "one", method=method, **target)
    build_subspace(backward, tmp_path / "two", method=method, **target)
    options = {"num_components" if key == "k" else key: value for key, value in target.items()}
    loaded = [load_adapter(path) for path in paths]
    SharedSubspace.from_adapters(loaded, names, method=method, **options).save(tmp_path / "three")
    streamed = SharedSubspace.from_adapters_streaming(
        list(reversed(paths)), list(reversed(names)), method=method, **options
    )
    streamed.save(tmp_path / "four")
    first = files(tmp_path / "one")
    for other in ("two", "three", "four"):
        assert files(tmp_path / other) == first, other


def test_the_index_holds_no_absolute_path(tmp_path: Path) -> None:
    paths = make.collection(tmp_path / "in", 3)
    sources = {path.name: open_adapter(path) for path in paths}
    build_subspace(sources, tmp_path / "out", k=2)
    text = (tmp_path / "out" / "subspace.json").read_text()
    assert str(tmp_path) not in text
    assert json.loads(text)["tasks"][0]["source"]["path"] == "in/task00"


def test_a_task_without_effect_costs_and_loses_nothing() -> None:
    adapters = mixed_collection()
    zero = make.weights(WIDE, rank=3, seed=9)
    zero.lora_b = {name: torch.zeros_like(b) for name, b in zero.lora_b.items()}
    without = compress(adapters, num_components=3)
    subspace = compress({**adapters, "zero": zero}, num_components=3)
    assert subspace.errors()["tasks"]["zero"]["error"] == 0
    for layer in WIDE:
        assert float(subspace.reconstruct("zero").delta(layer).norm()) == 0
        assert torch.allclose(subspace.components_a[layer], without.components_a[layer], atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_bases_are_orthonormal_and_signed(method: str) -> None:
    subspace = compress(mixed_collection(), method=method, num_components=4)
    for layer in subspace.layer_names:
        for components in (subspace.components_a[layer], subspace.components_b[layer]):
            gram = components.double() @ components.double().T
            assert torch.allclose(gram, torch.eye(len(gram), dtype=torch.float64), atol=1e-6)
            largest = components.gather(1, components.abs().argmax(1, keepdim=True))
            assert bool((largest > 0).all())


def test_flat_keeps_the_first_librarys_shapes() -> None:
    adapters = {str(i): make.weights(rank=4, seed=i) for i in range(5)}
    subspace = compress(adapters, method="flat", num_components=2)
    for layer, (d_in, d_out) in make.MODULES.items():
        assert subspace.components_a[layer].shape == (2, 4 * d_in)
        assert subspace.means_b[layer].shape == (d_out * 4,)
        task = subspace.tasks["3"]
        flat = subspace.means_b[layer] + task.loadings_b[layer] @ subspace.components_b[layer]
        rebuilt = subspace.reconstruct("3").lora_b[layer]
        assert torch.allclose(flat.reshape(d_out, 4), rebuilt, atol=1e-6)


def test_refinement_is_never_worse() -> None:
    adapters = mixed_collection()
    plain = compress(adapters, num_components=3).errors()
    refined = compress(adapters, num_components=3, refine=4).errors()
    squares = [
        sum(task["error"] ** 2 for task in report["tasks"].values()) for report in (plain, refined)
    ]
    assert squares[1] < squares[0]


def test_projecting_adds_one_file_and_leaves_the_others(tmp_path: Path) -> None:
    adapters = mixed_collection()
    compress(adapters, num_components=3).save(tmp_path / "s")
    before = files(tmp_path / "s")
    subspace = SharedSubspace.load(tmp_path / "s")
    new = make.weights(WIDE | {"model.layers.9.only_here": (5, 6)}, rank=3, seed=77)
    projection = subspace.project(new, "new one")
    assert projection.own.keys() == {"model.layers.9.only_here"}
    subspace.add_task(projection)
    subspace.save(tmp_path / "s")
    after = files(tmp_path / "s")
    changed = {name for name in after if after[name] != before.get(name)}
    assert changed == {"subspace.json", "README.md", "tasks/new-one.safetensors"}
    loaded = SharedSubspace.load(tmp_path / "s")
    rebuilt = loaded.reconstruct("new one")
    error = loaded.tasks.record("new one").error
    assert error == pytest.approx(dense_error(new, rebuilt), rel=1e-5)
    assert torch.equal(
        rebuilt.lora_a["model.layers.9.only_here"], new.lora_a["model.layers.9.only_here"]
    )
    loaded.remove_task("new one")
    loaded.save(tmp_path / "s")
    final = files(tmp_path / "s")
    assert final == before


def test_projecting_a_task_again_gives_its_loadings() -> None:
    adapters = mixed_collection()
    subspace = compress(adapters, method="columns", num_components=4)
    again = subspace.project(adapters["plain"], "again")
    for layer, loadings in subspace.tasks["plain"].loadings_a.items():
        assert torch.allclose(again.loadings_a[layer], loadings, atol=1e-6)


def test_a_warning_below_the_threshold() -> None:
    subspace = compress(mixed_collection(), num_components=1)
    with pytest.warns(UserWarning, match="absorb it"):
        subspace.project(make.weights(WIDE, seed=99), "stranger", warn_threshold=0.9)


@pytest.mark.parametrize("method", METHODS)
def test_absorbing_from_originals_is_a_rebuild(method: str, tmp_path: Path) -> None:
    paths = make.collection(tmp_path / "in", 6)
    names = [path.name for path in paths]
    whole = SharedSubspace.from_adapters_streaming(paths, names, 3, method=method)
    part = SharedSubspace.from_adapters_streaming(paths[:5], names[:5], 3, method=method)
    part.save(tmp_path / "part")
    grown = SharedSubspace.load(tmp_path / "part")
    assert grown.absorb(open_adapter(paths[5]), names[5]) == []
    for name in names:
        for layer in whole.layer_names:
            one, two = whole.reconstruct(name).delta(layer), grown.reconstruct(name).delta(layer)
            assert float((one - two).norm() / one.norm()) < 1e-5


def test_absorbing_without_the_originals_says_so() -> None:
    adapters = mixed_collection()
    subspace = compress(adapters, num_components=6)
    before = {n: t["error"] for n, t in subspace.errors()["tasks"].items()}
    rebuilt = subspace.absorb(make.weights(WIDE, seed=50), "new")
    assert sorted(rebuilt) == sorted(adapters)
    after = subspace.errors()["tasks"]
    for name, adapter in adapters.items():
        assert not after[name]["measured"]
        true = dense_error(adapter, subspace.reconstruct(name))
        assert true <= after[name]["error"] * (1 + 1e-4)
        assert after[name]["error"] >= before[name] * (1 - 1e-6)
    assert after["new"]["measured"]


@pytest.mark.parametrize("method", METHODS)
def test_incremental_equals_a_rebuild_where_k_covers_the_rank(method: str, tmp_path: Path) -> None:
    shared = 3
    paths = make.collection(tmp_path / "in", 7, shared=shared, noise=0.0)
    names = [path.name for path in paths]
    if method == "flat":
        # Blends of three adapters: their mean and k = 2 hold everything from the third on.
        base = [load_adapter(path) for path in paths[:3]]
        mixes = [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0.5, 0.25, 0.25), (0.2, 0.2, 0.6)]
        adapters = {str(i): _blend(base, mix) for i, mix in enumerate(mixes)}
        whole = compress(adapters, method="flat", num_components=2)
        first = dict(list(adapters.items())[:3])
        grown = compress(first, method="flat", num_components=2)
        for name in list(adapters)[3:]:
            grown.absorb_incremental(adapters[name], name)
        names = list(adapters)
    else:
        whole = SharedSubspace.from_adapters_streaming(paths, names, shared, method=method)
        grown = SharedSubspace.from_adapters_streaming(paths[:3], names[:3], shared, method=method)
        for path in paths[3:]:
            grown.absorb_incremental(open_adapter(path), path.name)
    for layer in whole.layer_names:
        values = grown.singular_values_a[layer]
        assert torch.allclose(values, whole.singular_values_a[layer], rtol=1e-4)
        for name in names:
            one, two = whole.reconstruct(name).delta(layer), grown.reconstruct(name).delta(layer)
            assert float((one - two).norm() / one.norm()) < 1e-5


def _blend(base: list[LoRAWeights], mix: tuple[float, ...]) -> LoRAWeights:
    """Factors that are a weighted sum of the factors of ``base``."""
    first = base[0]
    a = {n: sum(w * x.lora_a[n] for w, x in zip(mix, base, strict=True)) for n in first.layer_names}
    b = {n: sum(w * x.lora_b[n] for w, x in zip(mix, base, strict=True)) for n in first.layer_names}
    return LoRAWeights(first.layer_names, a, b, first.rank, first.metadata)


def test_incremental_bounds_what_the_others_lose() -> None:
    adapters = mixed_collection()
    subspace = compress(adapters, num_components=4)
    new = make.weights(WIDE, seed=31)
    subspace.absorb_incremental(new, "new")
    report = subspace.errors()["tasks"]
    for name, adapter in adapters.items():
        assert dense_error(adapter, subspace.reconstruct(name)) <= report[name]["error"] * 1.0001
    assert report["new"]["error"] == pytest.approx(
        dense_error(new, subspace.reconstruct("new")), rel=1e-4
    )


@pytest.mark.parametrize("method", ["delta", "columns"])
def test_the_surface_within_a_subspace_is_exact(method: str) -> None:
    adapters = mixed_collection()
    subspace = compress(adapters, method=method, num_components=5)
    layer = next(iter(WIDE))
    surface = subspace.surface(layer)
    bases = subspace.components_a[layer].double(), subspace.components_b[layer].double()
    for name, errors in zip(surface["tasks"], surface["errors"], strict=True):
        own = adapters[name].delta(layer)
        for k_b in range(6):
            for k_a in range(6):
                side_a, side_b = bases[0][:k_a], bases[1][:k_b]
                kept = side_b.T @ side_b @ own @ side_a.T @ side_a
                true = float((own - kept).norm() / own.norm())
                assert float(errors[k_b, k_a]) == pytest.approx(true, abs=2e-5)


def test_statistics_count_every_stored_number(tmp_path: Path) -> None:
    adapters = mixed_collection()
    for method in METHODS:
        subspace = compress(adapters, method=method, num_components=3)
        subspace.save(tmp_path / method)
        stats = subspace.compression_stats()
        stored = 0
        for file in (tmp_path / method).rglob("*.safetensors"):
            from safetensors.torch import load_file

            kept = ("components", "singular_values", "means", "loadings")
            stored += sum(t.numel() for n, t in load_file(file).items() if n in kept)
        assert stats["total_params_compressed"] == stored
        factors = sum(
            t.numel() for w in adapters.values() for t in [*w.lora_a.values(), *w.lora_b.values()]
        )
        assert stats["total_params_original"] == factors
        assert stats["compression_ratio"] == pytest.approx(factors / stored)
        assert stats["num_tasks"] == len(adapters)


def test_moving_to_another_dtype_changes_the_reconstruction_only() -> None:
    subspace = compress(mixed_collection(), num_components=4)
    before = subspace.reconstruct("plain")
    assert subspace.to(dtype=torch.bfloat16) is subspace
    after = subspace.reconstruct("plain")
    layer = next(iter(WIDE))
    assert subspace.components_a[layer].dtype == torch.bfloat16
    assert after.lora_a[layer].dtype == before.lora_a[layer].dtype
    difference = (after.delta(layer) - before.delta(layer)).norm() / before.delta(layer).norm()
    assert 0 < float(difference) < 0.02


def test_names_are_data(tmp_path: Path) -> None:
    names = ["../../etc/passwd", "a/b", "a b", "a:b", "A B", "日本語", ".", "CON", "x" * 300]
    adapters = {name: make.weights(WIDE, seed=i) for i, name in enumerate(names)}
    compress(adapters, num_components=2).save(tmp_path / "s")
    assert [p.name for p in tmp_path.iterdir()] == ["s"]
    loaded = SharedSubspace.load(tmp_path / "s")
    assert sorted(loaded.tasks) == sorted(names)
    stored = [p.name.lower() for p in (tmp_path / "s" / "tasks").iterdir()]
    assert len(set(stored)) == len(names)
    for name, adapter in adapters.items():
        assert dense_error(adapter, loaded.reconstruct(name)) < 1.0


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"num_components": 0}, "k is at least 1"),
        ({"num_components": -3}, "k is at least 1"),
        ({"variance_threshold": 0.0}, "variance"),
        ({"max_error": 1.5}, "relative error"),
        ({"budget": 10}, "budget is smaller"),
        ({"max_error": 0.1, "mean_error": 0.1}, "more than one target"),
        ({"method": "magic"}, "Unknown method"),
        ({"num_components": 2, "dtype": "int3"}, "storage dtype"),
        ({"num_components": 2, "device": "toaster"}, "Unknown device"),
        ({"num_components": 2, "layers": {"nope*": 3}}, "matches no module"),
    ],
)
def test_bad_parameters_are_refused(options: dict[str, object], text: str) -> None:
    with pytest.raises((ParameterError, CollectionError, SubspaceError, ValueError), match=text):
        compress(mixed_collection(), **options)


def test_k_beyond_some_layers_is_clamped_and_said() -> None:
    small = {"tiny": (3, 4), **WIDE}
    adapters = {str(i): make.weights(small, rank=4, seed=i) for i in range(4)}
    subspace = compress(adapters, num_components=10)
    assert subspace.shapes_a["tiny"] == (4, 3)
    assert len(subspace.components_a["tiny"]) == 3
    assert any("clamped" in note for note in subspace.notes)


@pytest.mark.parametrize("method", METHODS)
def test_k_beyond_what_there_is_is_all_there_is_and_said_once(
    method: str, caplog: pytest.LogCaptureFixture
) -> None:
    adapters = {str(i): make.weights(WIDE, rank=4, seed=i) for i in range(3)}
    most = 2 if method == "flat" else 12
    subspace = compress(adapters, method=method, num_components=32)
    assert {(spec.k_a, spec.k_b) for spec in subspace.layers} == {(most, most)}
    assert subspace.notes == [f"k = 32 is clamped: 2 of 2 modules have less, at most {most}."]
    said = [r for r in caplog.records if r.name.startswith("vlora_engine")]
    assert [(r.levelname, r.getMessage()) for r in said] == [("WARNING", subspace.notes[0])]
    caplog.clear()
    exact = compress(adapters, method=method, num_components=most)
    assert not exact.notes
    assert not caplog.records
    assert exact.errors()["max"] == pytest.approx(subspace.errors()["max"], abs=1e-9)


def test_bad_adapters_are_all_named() -> None:
    adapters = mixed_collection()
    nan = make.weights(WIDE, seed=7)
    nan.lora_a["model.layers.0.v_proj"][1, 2] = float("nan")
    inf = make.weights(WIDE, seed=8)
    inf.lora_b["model.layers.0.q_proj"][0, 0] = float("inf")
    other = make.weights({"model.layers.0.q_proj": (41, 48)}, seed=9)
    bad = {**adapters, "nan": nan, "inf": inf, "other": other}
    with pytest.raises(CollectionError) as caught:
        compress(bad, num_components=2)
    text = str(caught.value)
    assert "model.layers.0.v_proj.lora_A" in text
    assert "model.layers.0.q_proj.lora_B" in text
    assert "another base model" in text
    assert "--skip-bad" in text
    kept = compress(bad, num_components=2, skip_bad=True)
    assert sorted(kept.tasks) == sorted(adapters)


def test_two_equal_names_are_an_error() -> None:
    adapters = [make.weights(WIDE, seed=i) for i in range(2)]
    with pytest.raises(ParameterError, match="Two adapters are named 'x'"):
        SharedSubspace.from_adapters(adapters, ["x", "x"], num_components=2)


def test_unknown_tasks_and_existing_outputs(tmp_path: Path) -> None:
    subspace = compress(mixed_collection(), num_components=2)
    with pytest.raises(NotFoundError, match="no task 'nope'"):
        subspace.reconstruct("nope")
    with pytest.raises(ParameterError, match="already a task"):
        subspace.add_task(subspace.project(make.weights(WIDE, seed=1), "plain"))
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "precious").write_text("x")
    for force in (False, True):
        with pytest.raises(OutputExistsError, match="move this away yourself"):
            subspace.save(tmp_path / "there", force=force)
        assert (tmp_path / "there" / "precious").read_text() == "x"
    subspace.save(tmp_path / "ours")
    other = compress(mixed_collection(), num_components=3)
    with pytest.raises(OutputExistsError, match="--force"):
        other.save(tmp_path / "ours")
    other.save(tmp_path / "ours", force=True)
    assert SharedSubspace.load(tmp_path / "ours").num_components == 3


def test_convolutions_of_another_kernel_do_not_fit() -> None:
    def convolution(shape: tuple[int, ...], seed: int) -> LoRAWeights:
        adapter = make.weights({"conv": (36, 8)}, rank=2, seed=seed)
        kernel = ModuleShape(2, 36, 8, "F32", "conv2d", (2, *shape), (8, 2, 1, 1))
        adapter.shapes = {"conv": kernel}
        return adapter

    alike = {str(i): convolution((4, 3, 3), i) for i in range(3)}
    assert len(compress(alike, num_components=2).tasks) == 3
    with pytest.raises(CollectionError, match="another base model"):
        compress({**alike, "other": convolution((36, 1, 1), 9)}, num_components=2)


@pytest.mark.parametrize("method", ["delta", "columns", "flat", "auto", "own"])
def test_what_is_loaded_outlives_its_directory(method: str, tmp_path: Path) -> None:
    adapters = mixed_collection()
    options = {} if method in ("auto", "own") else {"num_components": 3}
    built = compress(adapters, method=method, **options)
    (built if options else built.with_basis(k=2)).save(tmp_path / "s")
    loaded, lazy = (SharedSubspace.load(tmp_path / "s", lazy=lazy) for lazy in (False, True))
    shutil.rmtree(tmp_path / "s")
    for name in adapters:
        assert dense_error(built.reconstruct(name), loaded.reconstruct(name)) == 0
    assert dict(loaded.components_a)
    loaded.save(tmp_path / "again")
    assert check_subspace(tmp_path / "again") == []
    with pytest.raises(VLoRAError):
        lazy.reconstruct("plain")


def test_a_large_one_is_read_when_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compress(mixed_collection(), method="delta", num_components=3).save(tmp_path / "s")
    monkeypatch.setattr("vlora_engine.shared_subspace.HELD_BYTES", 1000)
    loaded = SharedSubspace.load(tmp_path / "s")
    shutil.rmtree(tmp_path / "s")
    with pytest.raises(VLoRAError):
        loaded.reconstruct("plain")
