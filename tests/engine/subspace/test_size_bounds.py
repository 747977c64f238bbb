"""What an index may claim: what has no effect takes no memory, all else is bounded by its bytes."""

from __future__ import annotations

import contextlib
import json
import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.witnesses import make
from vlora_engine import SharedSubspace, load_adapter
from vlora_engine.adapters.model import LoRAWeights
from vlora_engine.catalog.open import open_adapter
from vlora_engine.compress.build import build_subspace
from vlora_engine.doctor.subspace_check import check_subspace
from vlora_engine.errors import CorruptFileError, InputError, VLoRAError
from vlora_engine.subspace import projection, soundness
from vlora_engine.subspace.soundness import distinct
from vlora_engine.utils.tensor_writer import write_tensors

RANK, WIDTH, DEPTH = 64, 1024, 8
LARGE = 300 << 20
MODULES = 80 * 7  # of a model of 70 billion


@pytest.fixture(autouse=True)
def _little_memory() -> Iterator[None]:
    """No test here may take more than a part of what is claimed."""
    before = peak()
    yield
    assert peak() - before < LARGE


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def without_effect(names: list[str], one: str = "") -> LoRAWeights:
    """Factors that are one zero told for all; those of module ``one`` have an effect."""
    zero = torch.zeros(1, 1, dtype=torch.float16)
    lora_a = {name: zero.expand(RANK, WIDTH) for name in names}
    lora_b = {name: zero.expand(WIDTH, RANK) for name in names}
    if one:
        lora_a[one] = torch.zeros(RANK, 9, dtype=torch.float16)
        lora_b[one] = torch.zeros(7, RANK, dtype=torch.float16)
        lora_a[one][0], lora_b[one][:, 0] = 1, 2
    return LoRAWeights(
        layer_names=names,
        lora_a=lora_a,
        lora_b=lora_b,
        rank=RANK,
        metadata=make.config(r=RANK, lora_alpha=RANK, target_modules=["q_proj", "k_proj"]),
    )


@pytest.mark.parametrize("options", [{"method": "auto"}, {"method": "own"}, {"k": 2}], ids=str)
@pytest.mark.parametrize("one", ["", "model.layers.0.self_attn.k_proj"], ids=["none", "one"])
def test_an_adapter_without_effect_is_read_as_it_was_written(
    options: dict[str, Any], one: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (soundness, projection):
        monkeypatch.setattr(module, "MOST_OF_A_TASK", 1 << 16)
    monkeypatch.setattr(soundness, "MOST_A_BYTE", 256)
    names = [f"model.layers.{i}.self_attn.q_proj" for i in range(DEPTH)] + ([one] if one else [])
    adapter = without_effect(names, one)
    k = {"num_components": options["k"]} if "k" in options else options
    SharedSubspace.from_adapters([adapter], ["a"], **k).save(tmp_path / "s")
    held = sum(file.stat().st_size for file in tmp_path.rglob("*.safetensors"))
    assert (1 << 16) + 256 * held < 2 * RANK * WIDTH * DEPTH
    assert check_subspace(tmp_path / "s") == []
    back = SharedSubspace.load(tmp_path / "s").reconstruct("a")
    assert back.layer_names == sorted(names)
    for name in names:
        for found, was in (
            (back.lora_a[name], adapter.lora_a[name]),
            (back.lora_b[name], adapter.lora_b[name]),
        ):
            assert (found.shape, found.dtype) == (was.shape, was.dtype)
            assert bool(distinct(found).any()) == (name == one)
    if one:
        delta = back.lora_b[one].double() @ back.lora_a[one].double()
        assert float((delta - 2).norm()) < 0.1 * float(torch.full((7, 9), 2.0).norm())


def test_one_of_full_size_takes_no_memory(tmp_path: Path) -> None:
    names = [f"model.layers.{i}.mlp.up_proj" for i in range(MODULES)]
    zeros = {"lora_a": torch.zeros(1, 3), "lora_b": torch.zeros(3, 1)}
    weights = {side: dict.fromkeys(names, zero) for side, zero in zeros.items()}
    config = make.config(r=1, lora_alpha=1, target_modules=["up_proj"])
    adapter = LoRAWeights(layer_names=names, **weights, rank=1, metadata=config)
    SharedSubspace.from_adapters([adapter], ["a"]).save(tmp_path / "s")
    claim(tmp_path / "s", rank=256, width=16384)
    assert check_subspace(tmp_path / "s") == []
    back = SharedSubspace.load(tmp_path / "s").reconstruct("a")
    assert sum(x.numel() for x in (*back.lora_a.values(), *back.lora_b.values())) > 4 * 10**9


def test_zeros_that_are_one_zero_are_written_as_all(tmp_path: Path) -> None:
    one = torch.ones(1, 1, dtype=torch.int16).expand(1100, 1000)
    told, whole = tmp_path / "told.safetensors", tmp_path / "whole.safetensors"
    digest = write_tensors(told, {"x": one})
    assert digest == write_tensors(whole, {"x": one.contiguous()})
    assert told.read_bytes() == whole.read_bytes()


# ---- what an index claims of files that are tiny


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """Format 3 with a task that is loadings."""
    paths = make.collection(tmp_path / "in", 3)
    adapters = [load_adapter(path) for path in paths]
    subspace = SharedSubspace.from_adapters(adapters, [path.name for path in paths])
    subspace = subspace.with_basis(k=2)
    subspace.add_task(subspace.in_basis().project(adapters[0], "inside"))
    subspace.save(tmp_path / "s")
    return tmp_path / "s"


def claim(path: Path, *, rank: int = 0, width: int = 0, k: tuple[int, int] | None = None) -> None:
    """Let the index claim other sizes."""
    index = json.loads((path / "subspace.json").read_text())
    for family in index["families"]:
        family[1:4] = [width or family[1], width or family[2], rank or family[3]]
    tasks = index["tasks"]
    if rank:
        tasks["each"].pop("ranks", None)
        tasks["same"] |= {"ranks": rank, "rank": rank}
    if k:
        index["shared_basis"]["k"] = [list(k) for _ in index["shared_basis"]["k"]]
    (path / "subspace.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    "claims",
    [
        {"width": 10**9},
        {"width": 10**9, "k": (10**9, 10**9)},
        {"width": 10**9, "k": (1, 10**6)},
        {"width": 10**9, "k": (1, 1)},
        {"width": 10**9, "rank": 10**9},
        {"rank": 10**12},
        {"rank": 10**7},
        {"rank": 2**62},
        {"width": 10**6, "rank": 10**6, "k": (0, 0)},
    ],
    ids=str,
)
def test_claims_beyond_the_bytes_are_refused(claims: dict[str, Any], small: Path) -> None:
    claim(small, **claims)
    with contextlib.suppress(VLoRAError):
        assert check_subspace(small)
    reads: list[Callable[[SharedSubspace], Any]] = [
        lambda s: dict(s.components_a),
        lambda s: [s.reconstruct(name) for name in s.tasks],
        lambda s: s.reconstruct("inside"),
        lambda s: s.reconstruct("task00"),
        lambda s: s.in_basis().tasks["task00"],
        lambda s: s.with_basis(k=1),
    ]
    refused = 0
    for read in reads:
        try:
            read(SharedSubspace.load(small))
        except VLoRAError:
            refused += 1
    assert refused


def test_ranks_that_are_nothing_but_zeros_cost_nothing_in_a_basis(small: Path) -> None:
    meant = SharedSubspace.load(small)
    found = SharedSubspace.load(small).with_basis(k=1).basis_figures
    claim(small, rank=65535)
    claimed = SharedSubspace.load(small)
    for name in claimed.tasks:
        error, was = (s.in_basis().tasks[name].error for s in (claimed, meant))
        assert error == pytest.approx(was, abs=1e-6)
    again = claimed.with_basis(k=1).basis_figures
    assert again.variance == pytest.approx(found.variance, abs=1e-6)


def test_scales_beyond_all_numbers_are_refused(small: Path) -> None:
    index = json.loads((small / "subspace.json").read_text())
    index["tasks"]["each"].pop("scales", None)
    index["tasks"]["same"]["scales"] = -1e308
    (small / "subspace.json").write_text(json.dumps(index))
    with pytest.raises(CorruptFileError):
        SharedSubspace.load(small).with_basis(k=1)


@pytest.mark.parametrize("options", [{"method": "own"}, {"k": 1}], ids=str)
def test_what_could_not_be_read_again_is_not_written(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One direction in a high rank: a file so small for what it stands for would be refused."""
    sparse = make.factors({"h.0.attn.c_attn": (300, 300)}, rank=64)
    for key, tensor in sparse.items():
        (tensor[1:] if "lora_A" in key else tensor[:, 1:]).zero_()
    large = make.write(tmp_path / "in" / "large", sparse, make.config(r=64))
    small = {key: (x[:4] if "lora_A" in key else x[:, :4]).clone() for key, x in sparse.items()}
    plain = load_adapter(make.write(tmp_path / "in" / "plain", small, make.config(r=4)))
    monkeypatch.setattr(soundness, "MOST_OF_A_TASK", 1 << 12)
    monkeypatch.setattr(soundness, "MOST_A_BYTE", 2)
    wanted = {"num_components": options["k"]} if "k" in options else options

    with pytest.raises(InputError, match="resize") as caught:
        SharedSubspace.from_adapters([load_adapter(large)], ["large"], **wanted).save(
            tmp_path / "s"
        )
    assert "'large'" in caught.value.what
    assert not (tmp_path / "s").exists()
    with pytest.raises(InputError, match="resize"):
        build_subspace({"large": open_adapter(large)}, tmp_path / "s", **options)
    assert sorted(os.listdir(tmp_path)) == ["in"]

    SharedSubspace.from_adapters([plain], ["plain"], **wanted).save(tmp_path / "s")
    before = {p: p.read_bytes() for p in (tmp_path / "s").rglob("*") if p.is_file()}
    opened = SharedSubspace.load(tmp_path / "s")
    opened.absorb(load_adapter(large), "large")
    with pytest.raises(InputError, match="resize"):
        opened.save(tmp_path / "s")
    assert {p: p.read_bytes() for p in (tmp_path / "s").rglob("*") if p.is_file()} == before
    assert check_subspace(tmp_path / "s") == []
