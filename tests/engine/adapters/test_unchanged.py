"""An adapter that is written to while it is read never becomes half of a result."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import Any

import pytest

from tests.witnesses import make
from tests.witnesses.files import tree
from vlora_engine.adapters.model import to_memory
from vlora_engine.catalog.open import open_adapter
from vlora_engine.compress.build import build_subspace
from vlora_engine.compress.measure import compute_spectra
from vlora_engine.convert.convert import convert, plan
from vlora_engine.errors import ConflictError, VLoRAError
from vlora_engine.merging.merge_adapters import merge
from vlora_engine.resizing import resize
from vlora_engine.shared_subspace import SharedSubspace

VICTIM = "task01"


def written_over(victim: Path, other: Path) -> None:
    """Other numbers in the same file, of the same size, at the same time of change."""
    file, before = victim / "adapter_model.safetensors", None
    before = file.stat()
    file.write_bytes((other / "adapter_model.safetensors").read_bytes())
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def replaced(victim: Path, other: Path) -> None:
    shutil.copytree(other, victim.with_name("new"))
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        os.replace(victim.with_name("new") / name, victim / name)
    shutil.rmtree(victim.with_name("new"))


def cut_off(victim: Path, other: Path) -> None:
    os.truncate(victim / "adapter_model.safetensors", 300)


def removed(victim: Path, other: Path) -> None:
    shutil.rmtree(victim)


def config_changed(victim: Path, other: Path) -> None:
    file = victim / "adapter_config.json"
    file.write_text(file.read_text().replace('"lora_alpha": ', '"lora_alpha": 1'))


HARMS = [written_over, replaced, cut_off, removed, config_changed]
Sources = dict[str, Any]


def _build(method: str) -> Callable[[Sources, Path], object]:
    def work(sources: Sources, out: Path) -> object:
        wanted = {"k": 2} if method == "delta" else {"max_error": 0.2}
        return build_subspace(sources, out, method=method, **wanted)

    return work


def _converted(sources: Sources, out: Path) -> object:
    return convert(plan("mlx", out, adapters=sources))


WORK: dict[str, Callable[[Sources, Path], object]] = {
    "delta": _build("delta"),
    "own": _build("own"),
    "auto": _build("auto"),
    "spectra": lambda sources, out: compute_spectra(sources, out),
    "in memory": lambda sources, out: SharedSubspace.from_adapters(
        list(sources.values()), list(sources), method="delta", num_components=2
    ),
    "merge": lambda sources, out: merge(list(sources.values()), "linear"),
    "resize": lambda sources, out: resize(sources[VICTIM], rank=1),
    "load": lambda sources, out: to_memory(sources[VICTIM]),
    "convert": _converted,
}


@pytest.mark.parametrize("harm", HARMS, ids=lambda harm: harm.__name__)
@pytest.mark.parametrize("name", WORK)
def test_what_changes_while_it_is_read_is_named_and_nothing_is_written(
    name: str, harm: Callable[[Path, Path], None], tmp_path: Path
) -> None:
    places = make.collection(tmp_path / "in", 3)
    other = make.collection(tmp_path / "other", 1, noise=0.4)[0]
    sources: Sources = {place.name: open_adapter(place) for place in places}
    victim = next(place for place in places if place.name == VICTIM)
    source = sources[VICTIM]
    reads = [0]
    turn = Lock()

    def harmed(read: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any) -> Any:
            # One at a time: another thread would read the file while it is cut off and not yet
            # filled, and tell that.
            with turn:
                found = read(*arguments)
                reads[0] += 1
                if reads[0] == 1:
                    harm(victim, other)
                return found

        return wrapped

    for way in ("read", "read_many", "read_into"):
        setattr(source, way, harmed(getattr(source, way)))
    out = tmp_path / "out"
    with pytest.raises(VLoRAError) as caught:
        WORK[name](sources, out)
    assert reads[0]
    said = " ".join(caught.value.lines())
    assert str(victim) in said, said
    if harm in (written_over, replaced, config_changed):
        assert isinstance(caught.value, ConflictError)
    assert sorted(os.listdir(tmp_path)) == ["in", "other"]


def test_the_same_files_are_no_change(tmp_path: Path) -> None:
    places = make.collection(tmp_path / "in", 3)
    sources = {place.name: open_adapter(place) for place in places}
    build_subspace(sources, tmp_path / "one", k=2)
    for place in places:
        for file in place.iterdir():
            file.read_bytes()
    build_subspace({p.name: open_adapter(p) for p in places}, tmp_path / "two", k=2)
    assert tree(tmp_path / "one") == tree(tmp_path / "two")
