"""Tasks of a subspace as adapters (``DIR:TASK``): what is read for them, and when it is stale."""

from __future__ import annotations

import hashlib
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.witnesses import make
from vlora_engine import SharedSubspace
from vlora_engine.adapters.model import LoRAWeights
from vlora_engine.catalog.open import open_adapter

WIDE = {"model.layers.0.q_proj": (40, 48), "model.layers.0.v_proj": (40, 24)}
NAMES = ["law", "health", "code", "maths", "news"]


def saved(out: Path, seeds: range, **options: Any) -> Path:
    adapters = [make.weights(WIDE, rank=3, seed=seed) for seed in seeds]
    names = NAMES[: len(adapters)]
    SharedSubspace.from_adapters(adapters, names, **options).save(out)
    return out


def deltas_of(source: Any) -> dict[str, torch.Tensor]:
    factors = {name: source.read(name) for name in source.modules}
    return {n: source.scales[n] * b.double() @ a.double() for n, (a, b) in factors.items()}


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each file was checked against its checksum, by name."""
    counts: Counter[str] = Counter()
    digest = hashlib.file_digest

    def counted(file: Any, *args: Any) -> Any:
        counts[Path(file.name).name] += 1
        return digest(file, *args)

    monkeypatch.setattr(hashlib, "file_digest", counted)
    return counts


@pytest.mark.parametrize("method", ["delta", "columns", "flat", "own"])
def test_every_file_is_checked_once_however_many_tasks_are_opened(
    method: str, tmp_path: Path, hashed: Counter[str]
) -> None:
    place = saved(tmp_path / "s", range(len(NAMES)), method=method)
    alone = SharedSubspace.load(place)
    expected = {name: alone.reconstruct(name) for name in NAMES}
    hashed.clear()
    for name in NAMES:
        source = open_adapter(f"{place}:{name}")
        for module, delta in deltas_of(source).items():
            assert torch.equal(delta, expected[name].delta(module).double())
    files = [file.name for file in place.rglob("*.safetensors")]
    assert dict(hashed) == dict.fromkeys(files, 1)


def test_a_subspace_that_was_changed_is_opened_anew(tmp_path: Path) -> None:
    place = saved(tmp_path / "s", range(3), method="delta")
    open_adapter(f"{place}:law")
    subspace = SharedSubspace.load(place)
    subspace.absorb(make.weights(WIDE, rank=3, seed=9), "late")
    subspace.save(place)
    for name in (*NAMES[:3], "late"):
        assert_is(f"{place}:{name}", SharedSubspace.load(place).reconstruct(name))


def test_another_subspace_in_the_same_place_is_opened_anew(tmp_path: Path) -> None:
    place = saved(tmp_path / "s", range(3), method="delta")
    before = deltas_of(open_adapter(f"{place}:law"))
    other = saved(tmp_path / "other", range(10, 13), method="delta")
    shutil.rmtree(place)
    shutil.copytree(other, place)  # its times are those of the copied files
    expected = SharedSubspace.load(other).reconstruct("law")
    assert_is(f"{place}:law", expected)
    assert not torch.equal(before["model.layers.0.q_proj"], expected.delta("model.layers.0.q_proj"))


def assert_is(place: str, expected: LoRAWeights) -> None:
    for module, delta in deltas_of(open_adapter(place)).items():
        assert torch.equal(delta, expected.delta(module).double())
