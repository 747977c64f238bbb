"""Builds keep to the memory that they are allowed, and are the same bytes whatever that is."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import FreshPython
from tests.engine.compress.test_build import inputs
from tests.engine.test_shared_subspace import files
from tests.witnesses import make
from vlora_engine import SharedSubspace
from vlora_engine.adapters.needs import StackShape, building, coding, measuring
from vlora_engine.catalog.open import open_adapter
from vlora_engine.compress.build import build_subspace
from vlora_engine.compress.measure import compute_spectra
from vlora_engine.errors import MemoryLimitError
from vlora_engine.utils import memory, workers
from vlora_engine.utils.memory import VARIABLE
from vlora_engine.utils.progress import Progress
from vlora_engine.utils.unfinished import kept_layers

SHAPE = StackShape(tasks=48, rank=16, d_in=512, d_out=512)
LAYERS = 8
CORES = 8
BETWEEN = 40 << 20  # what stays of one stage when the next begins
# How to build, and what the most hungry step of it needs.
BUILDS: dict[str, tuple[dict[str, Any], int]] = {
    "fixed": ({"method": "delta", "k": 8}, building(SHAPE, "delta", (8, 8), exact=False)),
    "auto": ({"method": "auto", "max_error": 0.5}, coding(SHAPE, shares=True)),
    "chosen": ({"method": "delta", "max_error": 0.5}, measuring(SHAPE, ["delta"])),
}
# A process on a machine of many cores. Each build may take some bytes more than the process holds;
# it tells the limit and the peak, and builds smaller ones first, for what loads at first use.
PEAKS = """
import json, os, re, sys
from pathlib import Path
from vlora_engine.catalog.open import open_adapter
from vlora_engine.catalog.open import open_adapter
from vlora_engine.compress.build import build_subspace
from vlora_engine.utils import memory, workers

folder, out, cores, builds = Path(sys.argv[1]), Path(sys.argv[2]), *map(json.loads, sys.argv[3:])
workers.cores = lambda: cores
sources = {path.name: open_adapter(path) for path in sorted(folder.iterdir())}
few = dict(list(sources.items())[:3])
for name, (target, _) in builds.items():
    build_subspace(few, out / f"few-{name}", **target)
told = {}
for name, (target, more) in builds.items():
    limit = memory.held() + more
    os.environ[memory.VARIABLE] = str(limit)
    build_subspace(sources, out / name, **target)
    # Not ru_maxrss: a child's begins at its parent's.
    peak = re.search("VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())
    told[name] = {"limit": limit, "peak": int(peak[1]) * 1024}
print(json.dumps(told))
"""


def large(folder: Path) -> Path:
    """Adapters large enough for their layers to stand out from what a process holds anyway."""
    modules = {f"m.{layer}.q_proj": (SHAPE.d_in, SHAPE.d_out) for layer in range(LAYERS)}
    settings = make.config(r=SHAPE.rank, target_modules=["q_proj"], fan_in_fan_out=False)
    for i in range(SHAPE.tasks):
        tensors = make.factors(modules, rank=SHAPE.rank, seed=i, dtype=torch.float16)
        make.write(folder / f"task{i:02d}", tensors, settings)
    return folder


@pytest.mark.skipif(sys.platform != "linux", reason="measures resident memory as Linux counts it")
def test_the_peak_of_a_build_stays_under_the_limit(
    tmp_path: Path, fresh_python: FreshPython
) -> None:
    builds = {name: (target, need + BETWEEN) for name, (target, need) in BUILDS.items()}
    folder = large(tmp_path / "in")
    arguments = [str(folder), str(tmp_path), json.dumps(CORES), json.dumps(builds)]
    told = json.loads(fresh_python(PEAKS, *arguments).stdout)
    for name, figures in told.items():
        assert figures["peak"] <= figures["limit"], (name, figures, builds[name])


@pytest.mark.parametrize("name", BUILDS)
def test_the_bytes_are_the_same_however_many_layers_are_in_flight(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources, (target, _) = inputs(tmp_path / "in"), BUILDS[name]
    monkeypatch.setattr(memory, "held", lambda: 0)
    for cores, most in ((1, None), (3, None), (8, 10**8), (8, 10**9)):
        monkeypatch.setattr(workers, "cores", lambda cores=cores: cores)
        build_subspace(sources, tmp_path / f"{cores}-{most}", max_memory=most, **target)
    first = files(tmp_path / "1-None")
    for other in ("3-None", "8-100000000", "8-1000000000"):
        assert files(tmp_path / other) == first


def test_spectra_are_the_same_however_many_layers_are_in_flight(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = inputs(tmp_path / "in")
    monkeypatch.setattr(memory, "held", lambda: 0)
    compute_spectra(sources, tmp_path / "few", codec=True, max_memory=10**8)
    compute_spectra(sources, tmp_path / "many", codec=True)
    assert files(tmp_path / "few") == files(tmp_path / "many")


@pytest.mark.parametrize("name", BUILDS)
def test_a_layer_that_does_not_fit_is_refused_and_nothing_is_written(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "held", lambda: 0)
    target, _ = BUILDS[name]
    with pytest.raises(MemoryLimitError) as caught:
        build_subspace(inputs(tmp_path / "in"), tmp_path / "out", max_memory=10**6, **target)
    assert "--max-memory" in str(caught.value.remedy)
    assert not (tmp_path / "out").exists()


def test_with_more_memory_it_goes_on_with_the_layers_that_are_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory that runs short between two stages costs nothing that was computed."""
    monkeypatch.setattr(memory, "held", lambda: 0)
    sources, spent = inputs(tmp_path / "in"), []

    def shrink(step: Progress) -> None:
        if step.stage == "spectra" and step.done == step.total:
            monkeypatch.setenv(VARIABLE, "1MB")
            spent.append(step)

    target = {"method": "delta", "max_error": 0.3}
    with pytest.raises(MemoryLimitError):
        build_subspace(sources, tmp_path / "out", progress=shrink, **target)
    assert spent
    monkeypatch.delenv(VARIABLE)
    seen: list[str] = []
    build_subspace(
        sources, tmp_path / "out", progress=lambda step: seen.append(step.stage), **target
    )
    assert "spectra" not in seen
    assert not kept_layers(tmp_path / ".out.part-run")


def test_it_is_told_where_memory_sets_the_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "held", lambda: 0)
    monkeypatch.setattr(workers, "cores", lambda: 4)
    told: list[Progress] = []
    sources = inputs(tmp_path / "in")
    build_subspace(sources, tmp_path / "out", k=3, max_memory=40 << 20, progress=told.append)
    remarks = [step.remark for step in told if step.remark]
    assert any(text.startswith("build: ") and "at a time" in text for text in remarks)


@pytest.mark.parametrize("method", ["delta", "auto"])
def test_reconstructions_in_place_of_lost_adapters_are_bounded(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = inputs(tmp_path / "in")
    goal = {"k": 3} if method == "delta" else {"max_error": 0.1}
    build_subspace(sources, tmp_path / "s", method=method, **goal)
    space = SharedSubspace.load(tmp_path / "s")
    (tmp_path / "in").rename(tmp_path / "elsewhere")
    monkeypatch.setattr(memory, "held", lambda: 0)
    added = open_adapter(make.write(tmp_path / "more", make.factors(seed=77)))
    take = partial(space.absorb, added, "more") if method == "delta" else space.compact
    with pytest.raises(MemoryLimitError, match="reconstructions"):
        take(max_memory=1000)
