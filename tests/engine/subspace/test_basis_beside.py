"""The shared basis beside coded tasks: what it holds, how it is kept, and what works with it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.engine.test_shared_subspace import dense_error, mixed_collection
from tests.witnesses import make
from vlora_engine import (
    SharedSubspace,
    SubspaceTrainer,
    TaskRouter,
    load_adapter,
    orthogonal_init,
    subspace_coverage,
)
from vlora_engine.adapters.model import LoRAWeights
from vlora_engine.catalog.read import read_manifest
from vlora_engine.doctor.subspace_check import check_subspace
from vlora_engine.errors import CorruptFileError, OutputExistsError, ParameterError
from vlora_engine.manifest.task_errors import task_figures
from vlora_engine.subspace.coded.basis import BasisTarget, make_basis
from vlora_engine.utils.output_checks import foreign_entries

pytestmark = pytest.mark.filterwarnings("ignore:The blend loses")
METHODS = ["auto", "own"]


def folder_of(folder: Path, count: int = 5) -> dict[str, LoRAWeights]:
    return {path.name: load_adapter(path) for path in make.collection(folder, count)}


def coded(
    adapters: dict[str, LoRAWeights], method: str = "auto", **options: object
) -> SharedSubspace:
    return SharedSubspace.from_adapters(
        list(adapters.values()), list(adapters), method=method, **options
    )


def dense(weights: LoRAWeights, name: str) -> Tensor:
    return weights.scales[name] * weights.lora_b[name].double() @ weights.lora_a[name].double()


def captured(subspace: SharedSubspace) -> float:
    """Of the decoded tasks, every one counting alike: the energy between the bases, dense."""
    held = whole = 0.0
    for task in subspace.tasks:
        weights = subspace.reconstruct(task)
        alike = 1 / subspace.tasks.record(task).norm ** 2
        for name in weights.layer_names:
            delta = dense(weights, name)
            a, b = (
                torch.linalg.qr(side[name].double().T).Q
                for side in (subspace.components_a, subspace.components_b)
            )
            whole += alike * float((delta**2).sum())
            held += alike * float(((b.T @ delta @ a) ** 2).sum())
    return held / whole


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("target", [{}, {"k": 3}, {"variance": 0.8}, {"k": 500}], ids=str)
def test_it_holds_what_the_dense_computation_says(method: str, target: dict[str, float]) -> None:
    # Of no common directions: what is held grows a little with every k.
    adapters = {f"task{i}": make.weights(seed=i) for i in range(5)}
    made = coded(adapters, method).with_basis(**target)
    figures = made.space.tasks.basis.figures
    assert figures.variance == pytest.approx(captured(made), abs=1e-6)
    if "k" not in target:
        wanted = target.get("variance", 0.99)
        assert figures.variance >= wanted
        # one direction less on the layers would not do
        fewer = {name: max(1, k_a - 1) for name, (k_a, _) in made.space.tasks.basis.k.items()}
        pairs = {name: (k, k) for name, k in fewer.items()}
        smaller = make_basis(made.space.tasks, BasisTarget(pairs)).figures
        assert smaller.variance < wanted
    if target.get("k") == 3:
        assert {len(rows) for rows in made.components_a.values()} == {3}
    if target.get("k") == 500:
        assert "no more directions" in made.notes[-1]
        assert figures.variance > 1 - 1e-6


def test_it_is_the_same_again_and_changes_no_task(tmp_path: Path) -> None:
    subspace = coded(folder_of(tmp_path))
    before = {name: subspace.reconstruct(name) for name in subspace.tasks}
    once, again = subspace.with_basis(), subspace.with_basis()
    for name in subspace.layer_names:
        assert torch.equal(once.components_a[name], again.components_a[name])
        assert torch.equal(once.singular_values_b[name], again.singular_values_b[name])
    assert not subspace.has_basis, "with_basis gives another subspace"
    for name, weights in before.items():
        assert dense_error(weights, once.reconstruct(name)) == 0


def test_made_on_demand_it_stays_in_memory_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    coded(folder_of(tmp_path / "in")).save(tmp_path / "s")
    before = sorted(path.name for path in (tmp_path / "s").rglob("*"))
    loaded = SharedSubspace.load(tmp_path / "s")
    components = loaded.components_a
    (told,) = caplog.messages
    assert re.match(r"made a shared basis: k \d+.* bytes, error .*%.* s ", told)
    assert set(components) == set(loaded.singular_values_a) == set(loaded.layer_names)
    assert loaded.surface(loaded.layer_names[0])["tasks"] == list(loaded.tasks)
    loaded.save(tmp_path / "s")
    assert sorted(path.name for path in (tmp_path / "s").rglob("*")) == before
    assert read_manifest(tmp_path / "s").version == 2


@pytest.mark.parametrize("method", METHODS)
def test_kept_it_is_format_3_and_comes_back(method: str, tmp_path: Path) -> None:
    adapters = folder_of(tmp_path / "in")
    coded(adapters, method).save(tmp_path / "s")
    made = SharedSubspace.load(tmp_path / "s").with_basis(k=2)
    made.save(tmp_path / "s")
    assert read_manifest(tmp_path / "s").version == 3
    assert check_subspace(tmp_path / "s") == []
    again = SharedSubspace.load(tmp_path / "s")
    assert again.has_basis
    assert again.num_components == 2
    for name in made.layer_names:
        assert torch.equal(again.components_b[name], made.components_b[name])
    # Tasks that come are coded, and the basis stays.
    again.absorb_incremental(make.weights(seed=77), "more")
    again.save(tmp_path / "s")
    assert read_manifest(tmp_path / "s").version == 3
    assert check_subspace(tmp_path / "s") == []
    assert (
        dense_error(make.weights(seed=77), SharedSubspace.load(tmp_path / "s").reconstruct("more"))
        < 0.06
    )


@pytest.mark.parametrize("method", METHODS)
def test_it_can_be_replaced_as_any_output(method: str, tmp_path: Path) -> None:
    adapters = folder_of(tmp_path / "in")
    out = tmp_path / "s"
    for subspace in (coded(adapters, method).with_basis(), coded(adapters, method)):
        subspace.save(out, force=True)
        assert foreign_entries(out) == []
        with pytest.raises(OutputExistsError, match="replace it"):
            coded(adapters, method).save(out)
    assert read_manifest(out).shared_basis is None


@pytest.mark.parametrize("method", METHODS)
def test_what_is_trained_in_it_is_stored_as_loadings(method: str, tmp_path: Path) -> None:
    coded(folder_of(tmp_path / "in"), method).save(tmp_path / "s")
    files = {path: path.read_bytes() for path in (tmp_path / "s" / "tasks").iterdir()}
    subspace = SharedSubspace.load(tmp_path / "s")
    orthogonal_init(subspace, "new")
    trainer = SubspaceTrainer(subspace, "new")
    with torch.no_grad():
        for parameter in trainer.params.values():
            parameter.copy_(
                torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
            )
    trainer.write_back()
    meant = subspace.reconstruct("new")
    subspace.save(tmp_path / "s")
    for path, content in files.items():
        assert path.read_bytes() == content, "the others stay coded"
    manifest = read_manifest(tmp_path / "s")
    assert [task.id for task in manifest.tasks.values() if task.in_basis] == ["new"]
    assert check_subspace(tmp_path / "s") == []
    again = SharedSubspace.load(tmp_path / "s")
    assert dense_error(meant, again.reconstruct("new")) < 1e-6
    for name in again.tasks:  # the index's readers tell both kinds apart
        figures = task_figures(manifest, name)
        task = again.tasks[name]
        assert dict(zip(figures.layers, figures.norms, strict=True)) == task.source_norms
    record = again.tasks.record("new")
    for index in record.layers:  # one layer of it is what it is in the whole
        ((a, b),) = again.space.tasks.layer_factors(index, [record])
        wanted = dense(meant, again.layer_names[index])
        assert float((b @ a - wanted).norm()) < 1e-5 * float(wanted.norm())
    for name in again.layer_names:  # it lies in the basis
        delta = dense(again.reconstruct("new"), name)
        a = again.components_a[name].double()
        assert float((delta - delta @ a.T @ a).norm()) < 2e-3 * float(delta.norm())
    # compact leaves it, and so does what is made anew around it
    compacted, _ = again.compact()
    assert dense_error(meant, compacted.reconstruct("new")) < 1e-5
    turned = again.with_basis(variance=0.999)
    assert dense_error(meant, turned.reconstruct("new")) <= turned.tasks.record("new").error + 1e-6
    assert not turned.tasks.record("new").measured


@pytest.mark.parametrize("method", METHODS)
def test_routing_coverage_and_projection_have_figures(method: str, tmp_path: Path) -> None:
    adapters = folder_of(tmp_path)
    subspace = coded(adapters, method)
    own = subspace_coverage(subspace, adapters["task00"])
    assert min(row["coverage"] for row in own.values()) > 0.9
    stranger = make.weights(seed=99)
    assert max(row["coverage"] for row in subspace_coverage(subspace, stranger).values()) < 0.9
    inside = subspace.in_basis().project(stranger, "stranger")
    subspace.add_task(inside)
    assert dense_error(stranger, subspace.reconstruct("stranger")) == pytest.approx(
        inside.error, abs=2e-3
    )
    router = TaskRouter.from_subspace(subspace, 8)
    blended = router.blend_loadings(torch.randn(3, 8), subspace)
    subspace.tasks["__routed__"] = blended
    assert subspace.reconstruct("__routed__").layer_names
    subspace.save(tmp_path / "s")
    assert check_subspace(tmp_path / "s") == []


def test_growing_turns_it_towards_the_new_adapter(tmp_path: Path) -> None:
    subspace = coded(folder_of(tmp_path)).with_basis(k=6)
    stranger = make.weights(seed=99)

    def held() -> float:
        return float(sum(row["coverage"] for row in subspace_coverage(subspace, stranger).values()))

    before = held()
    subspace.absorb_incremental(stranger, "stranger")
    assert held() > before + 0.5
    assert not subspace.tasks.record("stranger").in_basis, "it is coded"
    other = make.weights({"transformer.h.2.mlp": (12, 20)}, seed=5)
    mixed = make.weights({**make.MODULES, "transformer.h.2.mlp": (12, 20)}, seed=5)
    subspace.absorb_incremental(mixed, "wider")
    subspace.save(tmp_path / "s")
    assert check_subspace(tmp_path / "s") == []
    again = SharedSubspace.load(tmp_path / "s")
    assert "transformer.h.2.mlp" not in again.space.tasks.basis.k
    assert dense_error(mixed, again.reconstruct("wider")) < 0.06
    seen = again.in_basis()
    assert "transformer.h.2.mlp" in seen.tasks["wider"].own
    again.absorb(other, "other")
    assert "transformer.h.2.mlp" in again.space.tasks.basis.k, "absorb makes it anew"


def test_every_method_can_have_another_basis(tmp_path: Path) -> None:
    adapters = mixed_collection()
    for method in ("delta", "columns", "flat"):
        subspace = coded(adapters, method, num_components=3)
        same, other = subspace.with_basis(), subspace.with_basis(k=8)
        assert (same.method, other.method) == (method, "delta")
        for name, adapter in adapters.items():
            true = dense_error(adapter, other.reconstruct(name))
            assert true <= other.tasks.record(name).error + 1e-3


def test_numbers_out_of_range_are_refused(tmp_path: Path) -> None:
    subspace = coded(folder_of(tmp_path))
    for wrong in ({"k": 0}, {"variance": 0.0}, {"variance": 1.5}, {"k": 2, "variance": 0.5}):
        with pytest.raises(ParameterError):
            subspace.with_basis(**wrong)


def test_a_basis_that_was_changed_on_disk_is_noticed(tmp_path: Path) -> None:
    coded(folder_of(tmp_path / "in")).with_basis().save(tmp_path / "s")
    file = tmp_path / "s" / "components.safetensors"
    raw = bytearray(file.read_bytes())
    raw[-40] ^= 255
    file.write_bytes(raw)
    assert [finding.file for finding in check_subspace(tmp_path / "s")] == [file.name]
    with pytest.raises(CorruptFileError):
        dict(SharedSubspace.load(tmp_path / "s").components_a)


def in_bytes(adapters: dict[str, LoRAWeights], kind: str) -> int:
    """What A and B take packed, by hand."""
    bits = 8 if kind == "int8" else 4
    total = 0
    for weights in adapters.values():
        for side in (weights.lora_a, weights.lora_b):
            for factor in side.values():
                total += -(-factor.numel() * bits // 8) + 2 * -(-factor.numel() // 64)
    return total


WIDE = {f"model.layers.{i}.self_attn.q_proj": (160, 160) for i in range(4)}


@pytest.mark.parametrize("kind", ["int8", "int4", "nf4"])
def test_quantizing_means_at_most_these_bytes(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    adapters = {f"t{i}": make.weights(WIDE, rank=8, seed=i) for i in range(4)}
    subspace = coded(adapters, max_error=0.001)
    allowed = in_bytes(adapters, kind)
    bits = {"bits": 8} if kind == "int8" else {"bits": 4} if kind == "int4" else {"method": "nf4"}
    assert subspace.quantize(**bits) is subspace
    assert "recoded" in caplog.messages[-1]
    subspace.save(tmp_path / "s")
    nbytes = sum(p.stat().st_size for p in (tmp_path / "s").rglob("*") if p.is_file())
    assert nbytes <= allowed
    packed = SharedSubspace.from_adapters(
        list(adapters.values()), list(adapters), method="delta", budget=nbytes, quantize=kind
    )
    ours, theirs = (
        max(dense_error(adapter, s.reconstruct(name)) for name, adapter in adapters.items())
        for s in (subspace, packed)
    )
    assert ours <= theirs
    subspace.quantize(**bits)
    assert "left as it is" in caplog.messages[-1]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["int8", "int4", "nf4"])
def test_what_is_said_of_its_bytes_is_what_it_takes(method: str, kind: str, tmp_path: Path) -> None:
    adapters = folder_of(tmp_path / "in", 3)
    once = coded(adapters, method, max_error=0.001, quantize=kind)
    before, after, allowed = (
        int(n.replace(",", "")) for n in re.findall(r"[\d,]{4,}", once.notes[-1])
    )
    assert after <= allowed < before
    once.save(tmp_path / "s")
    again = SharedSubspace.load(tmp_path / "s")
    assert once.space.sizes() == again.space.sizes()
    assert sum(again.space.sizes()) == after
    manifest = read_manifest(tmp_path / "s")
    # Only how the place of the adapters is written is another on disk.
    assert 0 <= after - manifest.nbytes <= len(f"{tmp_path}/")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("max_error", [0.05, 0.001])
def test_the_smallest_adapters_are_quantized_too(method: str, kind: str, max_error: float) -> None:
    # Their index takes many times what their numbers take.
    sizes = {"q": (16, 24), "v": (16, 12)}
    adapters = {f"t{i}": make.weights(sizes, rank=2, seed=i) for i in range(3)}
    subspace = coded(adapters, method, max_error=max_error)
    subspace.quantize(bits=int(kind[3:]))
    assert subspace.space.sizes()[0] <= in_bytes(adapters, kind)
    for name, weights in adapters.items():
        assert dense_error(weights, subspace.reconstruct(name)) < (0.06 if kind == "int8" else 0.6)


def test_quantizing_leaves_what_is_smaller(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    adapters = {f"t{i}": make.weights(WIDE, rank=8, seed=i) for i in range(3)}
    subspace = coded(adapters, max_error=0.3)
    before = {name: subspace.reconstruct(name) for name in subspace.tasks}
    subspace.quantize(bits=8)
    assert "left as it is" in caplog.messages[-1]
    for name, weights in before.items():
        assert dense_error(weights, subspace.reconstruct(name)) == 0
    subspace.save_quantized(tmp_path / "q")
    assert "left as it is" in caplog.messages[-1]
    assert check_subspace(tmp_path / "q") == []
