"""Coded collections over time: the same bytes again, resumed, added to, removed from, compacted."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch

from tests.engine.codec import made
from tests.engine.compress.test_build import Stop
from tests.engine.test_shared_subspace import compress, files
from tests.witnesses import make
from tests.witnesses.dense import dense_error
from vlora_engine import SharedSubspace, load_adapter
from vlora_engine.adapters.model import LoRAWeights, as_source
from vlora_engine.catalog.open import open_adapter
from vlora_engine.catalog.read import read_manifest
from vlora_engine.compress.build import build_subspace
from vlora_engine.doctor.subspace_check import check_subspace
from vlora_engine.errors import Cancelled, CorruptFileError, ParameterError, SubspaceError
from vlora_engine.utils.progress import Progress

HEAD = {"base_model.model.score.weight": torch.randn(3, 40, dtype=torch.float64)}


def collection() -> dict[str, LoRAWeights]:
    """Eight of one checkpoint, three alike, and strangers of other ranks and modules."""
    alike = {f"alike {i}": make.weights(made.SQUARE, rank=8, seed=70) for i in range(3)}
    return {
        **made.around(8, rank=4),
        **alike,
        "stranger": make.weights(made.SQUARE, rank=3, seed=50, rest=HEAD),
        "elsewhere": make.weights({"x.k_proj": (40, 200)}, rank=4, seed=51),
        "half": make.weights(made.SQUARE, rank=4, seed=52, dtype=torch.bfloat16),
        "nothing": made.without_effect(),
    }


def on_disk(adapters: dict[str, LoRAWeights], out: Path, **target: object) -> Path:
    sources = {name: as_source(own) for name, own in adapters.items()}
    build_subspace(sources, out, **(target or {"max_error": 0.05}))
    return out


@pytest.fixture(scope="module")
def coded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """To be read only."""
    return on_disk(collection(), tmp_path_factory.mktemp("coded") / "s")


@pytest.fixture
def copy(coded: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(coded, tmp_path / "copy"))


def test_both_ways_of_sharing_are_in_this_collection(tmp_path: Path) -> None:
    manifest = read_manifest(on_disk(collection(), tmp_path / "s", max_error=0.1))
    assert manifest.method == "auto"
    assert manifest.coding is not None
    assert set("".join(manifest.coding.modes.values())) >= {"k", "d"}


def test_the_same_bytes_in_memory_and_on_disk_in_any_order(coded: Path, tmp_path: Path) -> None:
    turned = dict(reversed(collection().items()))
    torch.set_num_threads(2)
    try:
        compress(turned, method="auto", max_error=0.05).save(tmp_path / "memory")
    finally:
        torch.set_num_threads(1)
    assert files(tmp_path / "memory") == files(coded)
    SharedSubspace.load(coded).save(tmp_path / "again")
    assert files(tmp_path / "again") == files(coded)


def test_the_same_bytes_with_two_threads_of_everything(fresh_python, tmp_path: Path) -> None:
    """NumPy's own products come out otherwise with another number of threads."""
    code = (
        "import sys; from tests.engine.codec import made; "
        "from tests.engine.codec.test_collections import on_disk; from pathlib import Path; "
        "on_disk(made.planted(24, {'m': (600, 600)}, shared=30, rank=12), Path(sys.argv[1]))"
    )
    for threads in ("1", "2"):
        variables = {f"{name}_NUM_THREADS": threads for name in ("OMP", "MKL", "OPENBLAS")}
        fresh_python("-c", code, str(tmp_path / threads), env=variables)
    assert files(tmp_path / "1") == files(tmp_path / "2")


def test_everything_of_an_adapter_comes_back(coded: Path) -> None:
    loaded = SharedSubspace.load(coded)
    for name, own in collection().items():
        back = loaded.reconstruct(name)
        assert (back.metadata, back.scales, back.rank) == (own.metadata, own.scales, own.rank)
        assert back.layer_names == sorted(own.layer_names)
        for module in own.layer_names:
            for side in ("lora_a", "lora_b"):
                mine, theirs = getattr(back, side)[module], getattr(own, side)[module]
                assert (mine.shape, mine.dtype) == (theirs.shape, theirs.dtype)
        assert all(torch.equal(back.rest[key], own.rest[key]) for key in own.rest)
        if name != "nothing":
            assert 0 < dense_error(own, back) <= 0.0502  # a little of it is bf16


@pytest.mark.parametrize("kind", ["conv2d", "embedding"])
def test_other_kinds_of_modules(kind: str, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)

    def base() -> torch.nn.Module:
        first = torch.nn.Conv2d(3, 8, 3) if kind == "conv2d" else torch.nn.Embedding(30, 8)
        return torch.nn.Sequential(first)

    for seed in range(3):
        torch.manual_seed(seed)
        model = peft.get_peft_model(base(), peft.LoraConfig(r=2, target_modules=["0"]))
        make.randomise(model)
        model.save_pretrained(tmp_path / "in" / f"t{seed}")
    sources = {p.name: open_adapter(p) for p in sorted((tmp_path / "in").iterdir())}
    build_subspace(sources, tmp_path / "s", max_error=0.01)
    loaded = SharedSubspace.load(tmp_path / "s")
    for name in sources:
        original, back = load_adapter(tmp_path / "in" / name), loaded.reconstruct(name)
        assert back.shapes == original.shapes
        assert dense_error(original, back) <= 0.0101


@pytest.mark.parametrize("stage", ["codec", "groups", "build"])
def test_a_stopped_build_goes_on_and_comes_to_the_same(
    stage: str, coded: Path, tmp_path: Path
) -> None:
    stop, out = Stop(2, stage), tmp_path / "s"
    sources = {name: as_source(own) for name, own in collection().items()}
    with pytest.raises(Cancelled):
        build_subspace(sources, out, max_error=0.05, progress=stop.progress, cancelled=stop)
    assert not out.exists()
    build_subspace(sources, out, max_error=0.05)
    assert files(out) == files(coded)
    assert [p.name for p in tmp_path.iterdir()] == ["s"]


def test_looking_at_groups_is_one_stage_that_never_falls_back(tmp_path: Path) -> None:
    sizes = {f"h.{i}.attn": (24, 24) for i in range(7)} | {"head": (24, 24)}
    adapters = made.around(4, sizes, rank=4)
    told: list[Progress] = []
    sources = {name: as_source(own) for name, own in adapters.items()}
    build_subspace(sources, tmp_path / "s", max_error=0.05, progress=told.append)
    done = [step.done for step in told if step.stage == "groups"]
    assert len({step.total for step in told if step.stage == "groups"}) == 1
    assert done == sorted(set(done))
    assert done[-1] == next(step.total for step in told if step.stage == "groups")


def test_adding_leaves_every_other_task_as_it_was(copy: Path) -> None:
    before, subspace = files(copy), SharedSubspace.load(copy)
    new = {
        "wider": make.weights(made.SQUARE, rank=20, seed=60),
        "new module": make.weights({"y.v_proj": (50, 70), **made.SQUARE}, rank=4, seed=61),
        "empty": made.without_effect(),
    }
    for name, own in new.items():
        subspace.absorb(own, name)
    with pytest.raises(ParameterError, match="already a task 'wider'"):
        subspace.absorb(new["wider"], "wider")
    with pytest.raises(SubspaceError, match="shares no module"):  # of another base model
        subspace.absorb(make.weights({"z.fc": (40, 30)}, rank=4, seed=62), "astray")
    subspace.save(copy)
    after, loaded = files(copy), SharedSubspace.load(copy)
    for file, data in before.items():
        if file.endswith(".safetensors"):
            assert after[file] == data, file
    for name in ("wider", "new module"):
        error = dense_error(new[name], loaded.reconstruct(name))
        assert 0.045 < error <= 0.05
        assert loaded.errors()["tasks"][name]["error"] == pytest.approx(error, rel=1e-4)
    for name, own in collection().items():
        if name != "nothing":
            assert dense_error(own, loaded.reconstruct(name)) <= 0.0502
    assert check_subspace(copy) == []


def test_what_is_removed_is_gone(copy: Path) -> None:
    subspace = SharedSubspace.load(copy)
    kept = read_manifest(copy).task("t01")
    for name in ("t00", "elsewhere"):
        subspace.remove_task(name)
    subspace.save(copy)
    manifest = read_manifest(copy)
    assert "t00" not in manifest.tasks
    assert manifest.task("t01").sha256 == kept.sha256
    assert len(list((copy / "tasks").iterdir())) == len(manifest.tasks)
    assert check_subspace(copy) == []
    SharedSubspace.load(copy).reconstruct("t01")


def test_compacting_plans_anew_from_the_originals(tmp_path: Path) -> None:
    adapters = made.family(6)
    paths = {n: make_on_disk(own, tmp_path / "in" / n) for n, own in adapters.items()}
    first, late = dict(list(paths.items())[:3]), dict(list(paths.items())[3:])
    build_subspace({n: open_adapter(p) for n, p in first.items()}, tmp_path / "s", max_error=0.05)
    subspace = SharedSubspace.load(tmp_path / "s")
    for name, path in late.items():
        subspace.absorb(open_adapter(path), name)
    subspace.save(tmp_path / "s")
    grown = read_manifest(tmp_path / "s").nbytes
    compacted, rebuilt = SharedSubspace.load(tmp_path / "s").compact()
    assert rebuilt == []
    compacted.save(tmp_path / "compacted")
    assert read_manifest(tmp_path / "compacted").nbytes < 0.8 * grown
    build_subspace({n: open_adapter(p) for n, p in paths.items()}, tmp_path / "new", max_error=0.05)
    assert files(tmp_path / "compacted") == files(tmp_path / "new")


def make_on_disk(own: LoRAWeights, path: Path) -> Path:
    tensors = {}
    for name in own.layer_names:
        tensors[f"{make.PREFIX}{name}.lora_A.weight"] = own.lora_a[name].contiguous()
        tensors[f"{make.PREFIX}{name}.lora_B.weight"] = own.lora_b[name].contiguous()
    return make.write(path, tensors, own.metadata)


def test_without_the_originals_errors_are_bounds(copy: Path, tmp_path: Path) -> None:
    compacted, rebuilt = SharedSubspace.load(copy).compact()
    assert sorted(rebuilt) == sorted(collection())
    compacted.save(tmp_path / "s")
    manifest, loaded = read_manifest(tmp_path / "s"), SharedSubspace.load(tmp_path / "s")
    for name, own in collection().items():
        record = manifest.task(name)
        assert not record.measured
        if name != "nothing":
            error = dense_error(own, loaded.reconstruct(name))
            assert 0.05 < error <= record.error + (2e-3 if name == "half" else 0) < 0.11
    assert loaded.reconstruct("half").lora_a[next(iter(made.SQUARE))].dtype == torch.bfloat16


def test_components_are_made_when_they_are_asked_for(
    coded: Path, caplog: pytest.LogCaptureFixture
) -> None:
    subspace = SharedSubspace.load(coded)
    assert not subspace.has_basis
    assert dict(subspace.means_a) == {}
    assert not subspace.has_basis, "there are no means to look up"
    assert set(subspace.components_a) == set(subspace.layer_names)
    assert "made a shared basis" in caplog.text
    assert subspace.has_basis


def test_any_altered_byte_is_found(copy: Path) -> None:
    names = [copy / "basis.safetensors", *sorted((copy / "tasks").iterdir())[::5]]
    for path in names:
        sound = path.read_bytes()
        for place in (0, 30, len(sound) // 2, len(sound) - 1):
            altered = bytearray(sound)
            altered[place] ^= 0x41
            path.write_bytes(bytes(altered))
            assert check_subspace(copy), (path, place)
            with pytest.raises(CorruptFileError):
                read_all(copy)
        path.write_bytes(sound[:-3])
        with pytest.raises(CorruptFileError):
            read_all(copy)
        path.write_bytes(sound)
    read_all(copy)


def read_all(directory: Path) -> None:
    subspace = SharedSubspace.load(directory)
    for name in subspace.tasks:
        subspace.reconstruct(name)


def test_bytes_that_no_checksum_guards_end_in_one_error_too(coded: Path) -> None:
    """Whoever writes the checksums himself gets other numbers or an error, never a crash."""
    from vlora_engine.subspace.coded.store import CodedStore, Decoder, MemoryShared

    manifest = read_manifest(coded)
    store = CodedStore(manifest)
    units = {unit: store.shared(*unit) for unit in manifest.coding.units()}  # type: ignore[union-attr]
    random = torch.Generator().manual_seed(0)
    refused = 0
    for name in ("t01", "alike 1", "stranger"):
        record = manifest.task(name)
        blobs = store.task(record).blobs
        for _ in range(20):
            kind = int(torch.randint(3, (1,), generator=random))
            own, shared = [bytearray(b) for b in blobs], {k: bytearray(v) for k, v in units.items()}
            pool = own if kind else list(shared.values())
            victim = pool[int(torch.randint(len(pool), (1,), generator=random))]
            most = min(len(victim), 40) if kind == 1 else len(victim)
            place = int(torch.randint(most, (1,), generator=random))
            victim[place] ^= 1 << int(torch.randint(8, (1,), generator=random))
            try:
                source = MemoryShared({k: bytes(v) for k, v in shared.items()})
                Decoder(source).factors(manifest.layers, record, [bytes(b) for b in own])
            except (CorruptFileError, KeyError):  # a group that is not there, in memory
                refused += 1
    assert refused > 10


def test_an_index_that_promises_giants_is_refused(copy: Path) -> None:
    import json

    index = json.loads((copy / "subspace.json").read_text())
    index["families"][0][1] = index["families"][0][2] = 1 << 40
    (copy / "subspace.json").write_text(json.dumps(index))
    subspace = SharedSubspace.load(copy)
    for name in ("nothing", "t00", "alike 0"):
        with pytest.raises(CorruptFileError):
            subspace.reconstruct(name)


def test_what_was_killed_leaves_nothing_that_looks_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import vlora_engine.subspace.coded.store as store

    calls = []
    original = store.write_task

    def failing(*args: object) -> str:
        calls.append(1)
        if len(calls) == 3:
            raise OSError(28, os.strerror(28))
        return original(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(store, "write_task", failing)
    with pytest.raises(OSError, match="space"):
        on_disk(made.family(4), tmp_path / "s")
    assert not (tmp_path / "s").exists()
    monkeypatch.undo()
    on_disk(made.family(4), tmp_path / "s")
    assert check_subspace(tmp_path / "s") == []
    assert [p.name for p in tmp_path.iterdir()] == ["s"]
