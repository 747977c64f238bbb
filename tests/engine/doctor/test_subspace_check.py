"""What is wrong with a subspace directory is found, all of it, by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from tests.witnesses import make
from vlora_engine.catalog.open import open_adapter
from vlora_engine.compress.build import build_subspace
from vlora_engine.doctor.subspace_check import check_subspace
from vlora_engine.errors import NotFoundError
from vlora_engine.findings import Finding
from vlora_engine.shared_subspace import SharedSubspace
from vlora_engine.utils.files import sha256_file
from vlora_engine.utils.progress import Progress


@pytest.fixture(params=["delta", "columns", "flat"])
def subspace(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    paths = make.collection(tmp_path / "runs", 3)
    sources = {path.name: open_adapter(path) for path in paths}
    build_subspace(sources, tmp_path / "s", method=request.param, k=2)
    return tmp_path / "s"


def codes(findings: list[Finding]) -> set[str]:
    return {finding.code for finding in findings}


def edit(subspace: Path, file: str, key: str, value: float) -> None:
    """Change one number of a tensor file, and vouch for it in the index."""
    place = subspace / file
    tensors = load_file(place)
    tensors[key].view(-1)[1] = value
    save_file(tensors, place)
    index = json.loads((subspace / "subspace.json").read_text())
    rows = index["basis"] if file.startswith("basis") else index["tasks"]
    row = next(row for row in rows if file.endswith(row["file"]))
    row |= {"sha256": sha256_file(place), "bytes": place.stat().st_size}
    (subspace / "subspace.json").write_text(json.dumps(index))


def test_a_sound_one_has_no_findings(subspace: Path) -> None:
    assert check_subspace(subspace) == []


@pytest.mark.parametrize("kind", ["delta", "auto", "auto with a basis"])
def test_progress_goes_to_its_end(kind: str, tmp_path: Path) -> None:
    paths = make.collection(tmp_path / "runs", 3)
    sources = {path.name: open_adapter(path) for path in paths}
    goal: dict[str, Any] = {"k": 2} if kind == "delta" else {"max_error": 0.1}
    build_subspace(sources, tmp_path / "s", method=kind.split()[0], **goal)
    if kind.endswith("basis"):
        SharedSubspace.load(tmp_path / "s").with_basis(k=2).save(tmp_path / "s")
    steps: list[Progress] = []
    assert check_subspace(tmp_path / "s", progress=steps.append) == []
    assert [step.done for step in steps] == list(range(1, len(steps) + 1))
    assert {step.total for step in steps} == {len(steps)}


def test_there_is_none(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        check_subspace(tmp_path)


@pytest.mark.parametrize(
    ("file", "key", "value", "code"),
    [
        ("basis.safetensors", "components", float("nan"), "not-finite"),
        ("basis.safetensors", "components", 3.0, "not-orthonormal"),
        ("tasks/task01.safetensors", "loadings", float("inf"), "not-finite"),
        ("tasks/task01.safetensors", "norms", float("nan"), "not-finite"),
    ],
)
def test_a_wrong_number_is_found(
    subspace: Path, file: str, key: str, value: float, code: str
) -> None:
    edit(subspace, file, key, value)
    findings = check_subspace(subspace)
    assert codes(findings) == {code}
    assert all(finding.where.startswith(file) for finding in findings)


def test_files_that_are_missing_changed_cut_or_strange(subspace: Path) -> None:
    (subspace / "tasks" / "task00.safetensors").unlink()
    changed = subspace / "tasks" / "task01.safetensors"
    raw = bytearray(changed.read_bytes())
    raw[-1] ^= 1
    changed.write_bytes(raw)
    cut = subspace / "tasks" / "task02.safetensors"
    cut.write_bytes(cut.read_bytes()[:-1])
    (subspace / "tasks" / "ghost.safetensors").touch()
    assert {(f.code, f.where) for f in check_subspace(subspace)} == {
        ("file-missing", "tasks/task00.safetensors"),
        ("checksum", "tasks/task01.safetensors"),
        ("file-size", "tasks/task02.safetensors"),
        ("stray-file", "tasks/ghost.safetensors"),
    }


def test_an_index_of_another_version(subspace: Path) -> None:
    file = subspace / "subspace.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"version": 99}))
    assert codes(check_subspace(subspace)) == {"unreadable"}


def test_a_rank_that_the_file_does_not_have(subspace: Path) -> None:
    file = subspace / "subspace.json"
    index = json.loads(file.read_text())
    index["tasks"][1]["ranks"] = 3
    file.write_text(json.dumps(index))
    found = check_subspace(subspace)
    if index["method"] == "columns":
        assert [(f.code, f.where) for f in found] == [("unreadable", "tasks/task01.safetensors")]
    else:  # what flat keeps, and a dense core of delta, do not depend on a task's rank
        assert found == []
