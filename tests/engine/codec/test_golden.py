"""A directory of every form that coded files have: read as it was written, on any machine."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.engine.test_shared_subspace import files
from vlora_engine import SharedSubspace
from vlora_engine.codec.blobs import (
    Columns,
    Share,
    pack_columns,
    pack_cores,
    pack_own,
    pack_share,
    pack_transform,
)
from vlora_engine.codec.delta import Core, orthonormal
from vlora_engine.codec.klt import SharedSide
from vlora_engine.codec.own import Directions
from vlora_engine.doctor.subspace_check import check_subspace
from vlora_engine.manifest.coding import Coding
from vlora_engine.manifest.manifest import LayerSpec, TaskRecord
from vlora_engine.subspace.coded.store import CodedTask, write_coded

GOLDEN = Path(__file__).parents[2] / "data" / "subspaces" / "coded"
LAYERS = [LayerSpec("l.0.q", 24, 40, 4, 0, 0), LayerSpec("l.0.v", 24, 17, 4, 0, 0)]
TASKS = ("own", "share", "core", "dense")


class Numbers:
    """Integers and gains from a formula: the same wherever Python runs."""

    def __init__(self) -> None:
        self._state = 1

    def rows(self, n: int, d: int, size: int) -> np.ndarray:
        found = [self._next() % (2 * size + 1) - size for _ in range(n * d)]
        return np.array(found, dtype=np.int32).reshape(n, d)

    def _next(self) -> int:
        self._state = self._state * 6364136223846793005 + 1442695040888963407 & (1 << 64) - 1
        return self._state >> 33


def directions(numbers: Numbers, left: int, right: int, *, fine: bool) -> Directions:
    count = 3
    gains = np.array([2.0**-9, -(2.0**-11), 3 * 2.0**-14])
    sizes = (3, 500) if fine else (1, 90)
    return Directions(
        numbers.rows(count, left, sizes[0]), numbers.rows(count, right, sizes[1]), gains, 0.0, fine
    )


def side(numbers: Numbers, width: int, *, fine: bool) -> SharedSide:
    rows = numbers.rows(3, width, 70)
    turn, mix = numbers.rows(3, 4, 64) / 128, numbers.rows(2, 2, 16) / 32
    return SharedSide(rows, np.array([0, 0, 1]), turn, mix, fine)


def parts() -> tuple[dict[tuple[int, int], object], dict[str, list[object]]]:
    """What groups share, and what every task has on the two layers, before it is packed."""
    numbers, units, tasks = Numbers(), {}, {}
    for i, spec in enumerate(LAYERS):
        fine = bool(i)
        columns = Columns(numbers.rows(4, spec.d_out, 6), numbers.rows(5, spec.d_in, 200))
        units[i, 1] = (side(numbers, spec.d_in, fine=fine), side(numbers, spec.d_out, fine=fine))
        units[i, 2] = columns
        own = directions(numbers, spec.d_out, spec.d_in, fine=fine)
        low = Core(None, 0.0, directions(numbers, 4, 5, fine=fine), 0.0)
        dense = Core(numbers.rows(4, 5, 9), 0.125, None, 0.0)
        for name, form in zip(TASKS, (own, units[i, 1], low, dense), strict=True):
            tasks.setdefault(name, []).append(form)
    return units, tasks


def packed(form: object, number: int) -> bytes:
    if isinstance(form, Directions):
        return pack_own([form])[0]
    if isinstance(form, Core):
        return pack_cores(number, [form], [0.5])[0]
    a, b = form  # type: ignore[misc]
    return pack_share(Share(1, a.mix[1], b.mix[1], 0.25, a.fine))


def write_golden(out: Path) -> None:
    """The directory; what lies in the repository was written by this."""
    out.mkdir()
    units, tasks = parts()
    coding = Coding(0.001, {"max_error": 0.05}, {1: "kk", 2: "dd"})
    shared = [units[unit] for unit in coding.units()]
    write_coded(
        out,
        method="auto",
        base_model="golden/base",
        layers=LAYERS,
        coding=coding,
        shared=[
            pack_columns(unit) if isinstance(unit, Columns) else pack_transform(unit)  # type: ignore[arg-type]
            for unit in shared
        ],
        tasks=(golden_task(name, forms) for name, forms in tasks.items()),
    )


def golden_task(name: str, forms: list[object]) -> tuple[TaskRecord, CodedTask]:
    record = TaskRecord(
        id=name, file=f"{name}.safetensors", sha256="", nbytes=0, digest="0" * 64,
        layers=(0, 1), ranks=(4, 4), scales=(2.0, 2.0), dtypes=("F32", "F32"),
        norm=1.0, error=0.0, rank=4, config={"r": 4, "lora_alpha": 8}, rest=1, rest_bytes=8,
        kept=(("head", "F32", (2,)),),
    )  # fmt: skip
    figures = torch.tensor([1.0, 2.0])
    task = CodedTask([packed(f, 2) for f in forms], figures, figures / 64, {"head": figures})
    return record, task


def by_hand(form: object, columns: Columns) -> np.ndarray:
    """dW of one module, written out."""
    if isinstance(form, Directions):
        return sum(
            g * np.outer(left, right)
            for g, left, right in zip(form.gains, form.left, form.right, strict=True)
        )
    if isinstance(form, Core):
        q_b, q_a = orthonormal(columns.b), orthonormal(columns.a)
        return 0.5 * q_b.T @ form.value(4, 5) @ q_a
    a, b = (
        sum(
            own.mix[1, own.component[j]] * np.outer(own.turn[j], own.rows[j])
            for j in range(len(own.rows))
        )
        for own in form  # type: ignore[attr-defined]
    )
    return 0.25 * b.T @ a


def test_what_was_written_is_written_still(tmp_path: Path) -> None:
    """If this fails, the format has changed: raise the version, and keep reading the old one."""
    write_golden(tmp_path / "s")
    written, golden = files(tmp_path / "s"), files(GOLDEN)
    assert written.keys() == golden.keys()
    for file in written:
        if file.endswith(".safetensors"):
            assert written[file] == golden[file], file
    new, old = (json.loads(own["subspace.json"]) for own in (written, golden))
    assert {**new, "engine": ""} == {**old, "engine": ""}


def test_what_was_written_is_read_still(tmp_path: Path) -> None:
    loaded = SharedSubspace.load(GOLDEN)
    assert check_subspace(GOLDEN) == []
    units, tasks = parts()
    for name, forms in tasks.items():
        back = loaded.reconstruct(name)
        assert torch.equal(back.rest["head"], torch.tensor([1.0, 2.0]))
        for i, (spec, form) in enumerate(zip(LAYERS, forms, strict=True)):
            wanted = by_hand(form, units[i, 2])  # type: ignore[arg-type]
            found = back.delta(spec.name).numpy()
            assert np.abs(found).max() > 0
            assert found == pytest.approx(wanted, rel=1e-5, abs=1e-5 * np.abs(wanted).max())
    loaded.save(tmp_path / "again")
    for file, data in files(GOLDEN).items():
        if file.endswith(".safetensors"):
            assert files(tmp_path / "again")[file] == data
