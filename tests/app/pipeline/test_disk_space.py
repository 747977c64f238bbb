"""Free space is looked at before anything is written, on the file system of the output."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.app.conftest import Cli
from vlora_engine.catalog.read import read_manifest
from vlora_engine.compression_target import CompressionTarget
from vlora_engine.errors import StorageError
from vlora_tui.pipeline.disk_space import (
    Need,
    first_shortage,
    needs_of,
    require_room,
    shortage_of,
    subspace_bytes,
)
from vlora_tui.pipeline.inputs import gather
from vlora_tui.recipe.model import AdapterInput, Compress, Export, Input, Merge, Recipe
from vlora_tui.recipe.resolve import resolve


class Usage(NamedTuple):
    total: int
    used: int
    free: int


Free = Callable[[int], list[Path]]


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Free:
    """Pretend that every disk has so many bytes free; which places were asked about."""

    def pretend(nbytes: int) -> list[Path]:
        asked: list[Path] = []

        def usage(place: Path) -> Usage:
            asked.append(Path(place))
            return Usage(10**12, 10**12 - nbytes, nbytes)

        monkeypatch.setattr(shutil, "disk_usage", usage)
        return asked

    return pretend


def test_a_build_that_does_not_fit_writes_nothing(
    cli: Cli, runs: Path, tmp_path: Path, free: Free
) -> None:
    asked = free(1000)
    told = cli("run", "--headless", runs, "-k", "4", "-o", tmp_path / "new" / "out", code=1).err
    assert "not enough room" in told
    assert "1 kB free" in told
    assert str(tmp_path / "new" / "out") in told
    assert set(asked) == {tmp_path}  # the disk of the output, which is not there yet
    assert list(tmp_path.iterdir()) == []


def test_a_target_is_refused_once_k_is_chosen(
    cli: Cli, runs: Path, tmp_path: Path, free: Free
) -> None:
    free(1000)
    words = ("run", "--headless", runs, "--max-error", "0.05", "-o", tmp_path / "out")
    assert "not enough room" in cli(*words, code=1).err
    assert list(tmp_path.iterdir()) == []
    free(10**9)
    cli(*words)


def test_an_export_that_does_not_fit_writes_nothing(
    cli: Cli, built: Path, tmp_path: Path, free: Free
) -> None:
    free(1000)
    told = cli("export", built, "--all", "-o", tmp_path / "out", code=1).err
    assert "not enough room" in told
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("method", ["delta", "columns", "flat"])
@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_the_size_of_a_given_k_is_known_from_the_headers(
    cli: Cli, runs: Path, tmp_path: Path, method: str, dtype: str
) -> None:
    target = CompressionTarget(method=method, k=3, dtype=dtype)
    collection = gather(resolve(Recipe(Input((AdapterInput(str(runs)),)))))
    told = subspace_bytes(collection, target)
    out = tmp_path / "out"
    cli("compress", runs, "-o", out, "-k", "3", "--method", method, "--dtype", dtype)
    made = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    assert told is not None
    assert 0.98 * made <= told <= 1.1 * made  # the index is estimated, the payload exact


def test_a_budget_is_what_is_needed_and_other_targets_are_not_known(runs: Path) -> None:
    collection = gather(resolve(Recipe(Input((AdapterInput(str(runs)),)))))
    assert subspace_bytes(collection, CompressionTarget(budget=12_345)) == 12_345
    assert subspace_bytes(collection, CompressionTarget(max_error=0.1)) is None


def test_all_outputs_of_one_disk_are_added_up(built: Path, tmp_path: Path, free: Free) -> None:
    manifest = read_manifest(built)
    recipe = Recipe(
        Input(subspace=str(built)),
        exports=(Export(str(tmp_path / "{task}")),),
        merges=(Merge(tuple(manifest.tasks), str(tmp_path / "merged"), source="subspace"),),
    )
    needs = needs_of(recipe, gather(recipe))
    assert len(needs) == len(manifest.tasks) + 1
    total = sum(need.nbytes for need in needs)
    free(total)
    assert first_shortage(needs) is None
    free(total - 1)
    lack = first_shortage(needs)
    assert lack is not None
    assert (lack.need, lack.free) == (total, total - 1)
    assert shortage_of(recipe) == lack
    with pytest.raises(StorageError) as refused:
        require_room(needs)
    assert refused.value.exit_code == 1
    assert refused.value.where == str(lack.path)
    assert "free" in str(refused.value.found)


def test_layers_that_are_kept_need_no_room_again(runs: Path, tmp_path: Path) -> None:
    recipe = Recipe(
        Input((AdapterInput(str(runs)),)),
        Compress(CompressionTarget(budget=5000)),
        output=str(tmp_path / "out"),
    )
    collection = gather(resolve(recipe))
    assert needs_of(recipe, collection, job="j") == [Need(tmp_path / "out", 10_000)]
    layers = tmp_path / ".out.part-j" / "layers"
    layers.mkdir(parents=True)
    (layers / "0").write_bytes(bytes(3000))
    assert needs_of(recipe, collection, job="j") == [Need(tmp_path / "out", 7000)]
    assert needs_of(recipe, collection, done=frozenset({str(tmp_path / "out")})) == []
