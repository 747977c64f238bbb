"""Corners of mathematics and files: degenerate adapters, odd modules, long lives, rivals."""

from __future__ import annotations

import errno
import math
import os
import shutil
import threading
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

import vlora_engine.utils.workers as workers_module
from tests.witnesses import make
from tests.witnesses.dense import dense_error
from vlora_engine import SharedSubspace, load_adapter
from vlora_engine.adapters.check import check_adapters
from vlora_engine.adapters.model import LoRAWeights, MemorySource, ModuleShape
from vlora_engine.catalog.open import open_adapter
from vlora_engine.catalog.read import read_manifest
from vlora_engine.compress.build import build_subspace
from vlora_engine.compress.measure import compute_spectra
from vlora_engine.compression_target import CompressionTarget
from vlora_engine.errors import (
    CorruptFileError,
    NotFoundError,
    ParameterError,
    StorageError,
    TargetError,
)
from vlora_engine.linalg.grams import gram_roots, range_basis, update_basis
from vlora_engine.manifest.records import max_k, shared_layers
from vlora_engine.spectra.choose import choose
from vlora_engine.subspace.loadings import LoadingsForm, decode_loadings, encode_loadings
from vlora_engine.subspace.tasks import TaskProjection
from vlora_engine.targets.save import save_adapter
from vlora_engine.utils.files import new_directory, partial_path

METHODS = ("delta", "columns", "flat")
WIDE = {"model.layers.0.q_proj": (40, 48), "model.layers.0.v_proj": (40, 24)}
FIRST, SECOND = WIDE

Adapters = dict[str, LoRAWeights]


def compress(adapters: Mapping[str, LoRAWeights], **options: object) -> SharedSubspace:
    return SharedSubspace.from_adapters(list(adapters.values()), list(adapters), **options)


def top_k(adapters: Mapping[str, LoRAWeights], method: str) -> int:
    sources = {name: MemorySource(own) for name, own in adapters.items()}
    return max(1, *(max(max_k(method, spec, sources)) for spec in shared_layers(sources)))


def assert_true_errors(adapters: Adapters, subspace: SharedSubspace, *, abs_: float = 2e-6) -> None:
    reported = subspace.errors()["tasks"]
    for name, original in adapters.items():
        true = dense_error(original, subspace.reconstruct(name))
        assert reported[name]["error"] == pytest.approx(true, rel=1e-3, abs=abs_), name


# ---- degenerate adapters


def zeroed(own: LoRAWeights, side: str = "b", names: list[str] | None = None) -> LoRAWeights:
    factors = own.lora_b if side == "b" else own.lora_a
    for name in names or own.layer_names:
        factors[name] = torch.zeros_like(factors[name])
    return own


def stretched(own: LoRAWeights, a: float, b: float) -> LoRAWeights:
    for name in own.layer_names:
        own.lora_a[name], own.lora_b[name] = own.lora_a[name] * a, own.lora_b[name] * b
    return own


def deficient(own: LoRAWeights) -> LoRAWeights:
    """Two equal rows of A, two equal columns of B."""
    for name in own.layer_names:
        own.lora_a[name][3] = own.lora_a[name][0]
        own.lora_b[name][:, 2] = own.lora_b[name][:, 1]
    return own


def plain(seed: int, **options: object) -> LoRAWeights:
    return make.weights(WIDE, seed=seed, **options)


def only(name: str, seed: int) -> LoRAWeights:
    return make.weights({name: WIDE[name]}, seed=seed)


def three(a: float, b: float) -> Adapters:
    return {name: stretched(plain(seed), a, b) for seed, name in enumerate("xyz")}


def mirrored(own: LoRAWeights) -> LoRAWeights:
    return stretched(own, -1, -1)


SMALL = {"m.x": (6, 5), "m.y": (5, 9)}
DEGENERATE = {
    "one adapter": lambda: {"x": plain(1)},
    "a module of one adapter": lambda: {"x": plain(1), "y": only(FIRST, 2)},
    "no module in common": lambda: {"x": only(SECOND, 1), "y": only(FIRST, 2)},
    "a module that is zero everywhere": lambda: {
        "x": zeroed(plain(1), names=[FIRST]),
        "y": zeroed(plain(2), names=[FIRST]),
    },
    "one without effect by B": lambda: {"x": zeroed(plain(1)), "y": plain(2), "z": plain(3)},
    "one without effect by A": lambda: {"x": zeroed(plain(1), "a"), "y": plain(2), "z": plain(3)},
    "one module without effect": lambda: {
        "x": zeroed(plain(1), names=[SECOND]),
        "y": plain(2),
        "z": plain(3),
    },
    "none with an effect": lambda: {"x": zeroed(plain(1)), "y": zeroed(plain(2), "a")},
    "rank-deficient factors": lambda: {"x": deficient(plain(1)), "y": deficient(plain(2))},
    "the same three times": lambda: {"x": plain(1), "y": plain(1), "z": plain(1)},
    "the same in another gauge": lambda: {"x": plain(1), "y": mirrored(plain(1))},
    "ranks above the dimensions": lambda: {
        "x": make.weights(SMALL, rank=12, seed=1),
        "y": make.weights(SMALL, rank=3, seed=2),
        "z": make.weights(SMALL, rank=7, seed=3),
    },
    "rank 0 in one adapter": lambda: {
        "x": make.weights(WIDE, rank={FIRST: 0, SECOND: 3}, seed=1),
        "y": plain(2),
    },
    "rank 0 everywhere": lambda: {
        "x": make.weights(WIDE, rank={FIRST: 0, SECOND: 3}, seed=1),
        "y": make.weights(WIDE, rank={FIRST: 0, SECOND: 2}, seed=2),
    },
    "alpha negative and zero": lambda: {
        "x": plain(1, metadata=make.config(lora_alpha=-8)),
        "y": plain(2, metadata=make.config(lora_alpha=0)),
        "z": plain(3),
    },
    "norms of 1e-20": lambda: three(1e-10, 1e-11),
    "norms of 1e20": lambda: three(1e10, 1e9),
    "a gauge of 1e20": lambda: three(1e10, 1e-10),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", DEGENERATE)
def test_degenerate_adapters_keep_every_promise(kind: str, method: str, tmp_path: Path) -> None:
    adapters = DEGENERATE[kind]()
    goals = [
        {"num_components": top_k(adapters, method)},
        {"num_components": 1},
        {"max_error": 0.3, "dtype": "fp32"},
        {"variance_threshold": 0.8, "adaptive_k": True},
    ]
    for i, goal in enumerate(goals):
        compress(adapters, method=method, **goal).save(tmp_path / str(i))
        subspace = SharedSubspace.load(tmp_path / str(i))
        assert_true_errors(adapters, subspace, abs_=5e-6)
        worst = subspace.errors()["max"]
        assert math.isfinite(worst)
        if i == 0:
            assert worst < 1e-6  # the largest k is exact
        if "max_error" in goal:
            assert worst <= 0.3
    if "1e" in kind and method != "flat":
        assert worst > 0.1  # figures out of fp32's range are not answered by keeping everything


def test_a_strong_and_a_weak_adapter_lose_the_same_share() -> None:
    """delta weighs every task by 1 / ||dW||: a run that diverged does not push the others out."""
    even = {"x": plain(1), "y": plain(2), "z": plain(3)}
    odd = {"x": stretched(plain(1), 1e9, 1e9), "y": plain(2), "z": stretched(plain(3), 1, 1e-12)}
    errors = [
        [task["error"] for task in compress(own, num_components=5).errors()["tasks"].values()]
        for own in (even, odd)
    ]
    assert errors[1] == pytest.approx(errors[0], rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("gauge", [1.0, 1e4, 1e-4])
def test_sixteen_bit_adapters_come_back_in_their_dtype_within_its_rounding(
    dtype: torch.dtype, gauge: float, tmp_path: Path
) -> None:
    """The exponents of the store hold what fp16 alone cannot: factors of 1e4 and of 1e-4."""
    adapters = {
        name: stretched(plain(seed, dtype=dtype), gauge, 1 / gauge)
        for seed, name in enumerate("xyz")
    }
    for method in METHODS:
        out = tmp_path / method
        compress(adapters, method=method, num_components=top_k(adapters, method)).save(out)
        subspace = SharedSubspace.load(out)
        assert subspace.dtype == "F16"
        assert subspace.errors()["max"] < 1e-3
        for name, original in adapters.items():
            back = subspace.reconstruct(name)
            assert {t.dtype for t in [*back.lora_a.values(), *back.lora_b.values()]} == {dtype}
            assert dense_error(original, back) < (1e-3 if dtype == torch.float16 else 5e-3)


@pytest.mark.parametrize("exponent", [-30, -18, 0, 18, 30])
def test_the_range_finder_works_at_any_magnitude(exponent: int) -> None:
    """Its first power step is in fp32, where squares of 1e20 and of 1e-25 do not exist."""
    generator = torch.Generator().manual_seed(0)
    strengths = torch.logspace(0, -20, 300, dtype=torch.float64)
    left, right = (
        torch.linalg.qr(torch.randn(300, 300, generator=generator, dtype=torch.float64)).Q
        for _ in range(2)
    )
    rows = (left * strengths) @ right * 10.0**exponent
    found = range_basis(rows, 5)
    exact = strengths[:5] * 10.0**exponent
    assert torch.allclose(found.singular_values, exact, rtol=2e-3, atol=0)
    gram = found.components @ found.components.T
    assert torch.allclose(gram, torch.eye(5, dtype=torch.float64), atol=1e-9)


def test_a_basis_of_nothing_can_grow() -> None:
    rows = torch.randn(3, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    empty = torch.zeros(0, 20, dtype=torch.float64), torch.zeros(0, dtype=torch.float64)
    components, values = update_basis(*empty, rows, 5)
    assert torch.allclose(values, torch.linalg.svdvals(rows))
    assert torch.allclose(rows @ components.T @ components, rows)
    same, still = update_basis(components, values, torch.zeros_like(rows), 5)
    assert torch.allclose(still, values)
    assert torch.allclose(same, components)


# ---- modules that are no plain linear maps, modules that the basis lacks


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


# ---- the same bytes however many threads


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


# ---- a long life


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


# ---- files and rivals


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
        with pytest.raises(NotFoundError, match="no layer"):
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


# ---- what only a look at the parts can see


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

    monkeypatch.setattr("vlora_engine.utils.files.os.rename", refuse)
    with pytest.raises(StorageError, match="the disk is ill"):
        compress({"x": plain(1), "z": plain(3)}, num_components=2).save(tmp_path / "s", force=True)
    monkeypatch.undo()
    assert {p: p.read_bytes() for p in (tmp_path / "s").rglob("*") if p.is_file()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["s"]
