"""What a subspace lost and spent in each layer: against the adapters, and against its files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from tests.witnesses import make
from vlora_engine.catalog.open import open_adapter
from vlora_engine.catalog.read import read_manifest
from vlora_engine.errors import CorruptFileError
from vlora_engine.manifest.layer_figures import layer_figures
from vlora_engine.manifest.manifest import Manifest
from vlora_engine.manifest.task_errors import task_figures
from vlora_engine.shared_subspace import SharedSubspace
from vlora_tui.cli import main

METHODS = {
    "auto": ["--max-error", "0.2"],
    "own": ["--method", "own", "--max-error", "0.2"],
    "delta": ["--method", "delta", "-k", "5"],
    "columns": ["--method", "columns", "-k", "5"],
    "flat": ["--method", "flat", "-k", "2"],
    "nf4": ["--method", "delta", "-k", "5", "--quantize", "nf4"],
}
AROUND = ("norms", "errors", "exponents", "mean_exponents", "sizes")  # that are no layer's numbers


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve that resemble each other, so that a collection of them shares something."""
    folder = tmp_path_factory.mktemp("figures") / "runs"
    modules = {"transformer.h.0.mlp.c_proj": (192, 128), "transformer.h.1.mlp.c_proj": (96, 128)}
    common = make.factors(modules, seed=1)
    for i in range(12):
        own = make.factors(modules, seed=100 + i)
        make.write(folder / f"task{i}", {k: common[k] + 0.02 * own[k] for k in common})
    return folder


@pytest.mark.parametrize("method", METHODS)
def test_layers_tell_what_was_lost_and_what_it_takes(
    method: str, runs: Path, tmp_path: Path
) -> None:
    place = tmp_path / "subspace"
    assert main(["compress", str(runs), "-o", str(place), *METHODS[method], "-q"]) == 0
    manifest = read_manifest(place)
    figures = layer_figures(manifest)
    assert figures is not None
    lost, energy, weights = (dict.fromkeys(figures.layers, 0.0) for _ in range(3))
    space = SharedSubspace.load(place)
    for path in sorted(runs.iterdir()):
        source, stored = open_adapter(path), space.reconstruct(path.name)
        for name in figures.layers:
            a, b = (t.double() for t in source.read(name))
            dense = source.scales[name] * b @ a
            back = stored.lora_b[name].double() @ stored.lora_a[name].double()
            back = back * stored.scales[name]
            lost[name] += float((dense - back).square().sum())
            energy[name] += float(dense.square().sum())
            weights[name] += a.numel() + b.numel()
    for at, name in enumerate(figures.layers):
        error = (lost[name] / energy[name]) ** 0.5
        assert figures.errors[at] == pytest.approx(error, rel=2e-3, abs=1e-6)
        assert figures.norms[at] == pytest.approx(energy[name] ** 0.5, rel=1e-3)
        assert figures.weights[at] == weights[name]
    assert figures.nbytes.sum() == pytest.approx(_written(place, manifest), abs=8)
    assert figures.bits.tolist() == pytest.approx(
        [8 * n / weights[name] for n, name in zip(figures.nbytes, figures.layers, strict=True)]
    )


def _written(place: Path, manifest: Manifest) -> int:
    """The bytes of what files hold of layers, as safetensors reads them."""
    total = 0
    for path in place.rglob("*.safetensors"):
        for name, tensor in load_file(path).items():
            if name.split("/")[0] not in (*AROUND, "rest"):
                total += tensor.nbytes
    heads = sum(10 * len(task.layers) for task in manifest.tasks.values())
    return total - (heads if manifest.coding is not None else 0)


def test_what_a_task_takes_is_what_its_file_holds(runs: Path, tmp_path: Path) -> None:
    place = tmp_path / "subspace"
    assert main(["compress", str(runs), "-o", str(place), "--max-error", "0.2", "-q"]) == 0
    manifest = read_manifest(place)
    for name, record in manifest.tasks.items():
        with safe_open(place / "tasks" / record.file, "pt") as file:
            (count,) = file.get_slice("coded").get_shape()
        figures = task_figures(manifest, name)
        assert figures.nbytes.sum() + 10 * len(figures.layers) == count


def test_a_shared_file_without_its_sizes_is_corrupt(runs: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    place = tmp_path / "subspace"
    assert main(["compress", str(runs), "-o", str(place), "--max-error", "0.2", "-q"]) == 0
    manifest = read_manifest(place)
    assert manifest.basis  # something is shared
    save_file({"coded": torch.zeros(3)}, place / manifest.basis[0].name)
    with pytest.raises(CorruptFileError, match="sizes"):
        layer_figures(manifest)
