"""The three steps in one call each, and the names that users of the first library know."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import vlora_engine
from tests.witnesses import make
from tests.witnesses.dense import dense_error
from vlora_engine import absorb_task, extract_adapter, init_subspace, load_adapter
from vlora_engine.errors import NotFoundError, OutputExistsError


def test_from_folders_to_an_adapter_and_back(tmp_path: Path) -> None:
    paths = make.collection(tmp_path / "in", 5)
    subspace = init_subspace(paths[:4], num_components=6)
    assert sorted(subspace.tasks) == ["task00", "task01", "task02", "task03"]
    absorb_task(subspace, paths[4], "fifth")
    weights = extract_adapter(subspace, "fifth", tmp_path / "out")
    written, original = load_adapter(tmp_path / "out"), load_adapter(paths[4])
    for layer in original.layer_names:
        assert torch.equal(written.lora_a[layer], weights.lora_a[layer])
    assert written.scales == original.scales
    report = subspace.errors()["tasks"]["fifth"]["error"]
    assert dense_error(original, written) == pytest.approx(report, rel=1e-3)
    with pytest.raises(OutputExistsError):
        extract_adapter(subspace, "fifth", tmp_path / "out")
    with pytest.raises(NotFoundError):
        extract_adapter(subspace, "sixth", tmp_path / "other")


def test_without_a_target_no_task_loses_more_than_five_percent(tmp_path: Path) -> None:
    subspace = init_subspace(make.collection(tmp_path / "in", 5), ["a", "b", "c", "d", "e"])
    assert subspace.method == "auto"
    assert 0 < subspace.errors()["max"] <= 0.05


def test_the_first_librarys_call_forms(tmp_path: Path) -> None:
    paths = make.collection(tmp_path / "in", 4)
    adapters = [load_adapter(path) for path in paths]
    subspace = vlora_engine.SharedSubspace.from_adapters(
        adapters, ["a", "b", "c", "d"], 0.6, None, True, method="flat"
    )
    assert {len(c) for c in subspace.components_a.values()} <= {1, 2, 3}
    subspace = vlora_engine.SharedSubspace.from_adapters(adapters, num_components=2)
    assert list(subspace.tasks) == ["task_0", "task_1", "task_2", "task_3"]
    subspace.add_task(subspace.project(adapters[0], "again"))
    assert "again" in subspace.tasks


def test_every_public_name_can_be_had() -> None:
    for name in vlora_engine.__all__:
        assert getattr(vlora_engine, name) is not None, name
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        vlora_engine.nonsense  # noqa: B018
