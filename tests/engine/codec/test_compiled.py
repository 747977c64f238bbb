"""The compiled entropy coder: the bytes, the numbers and the refusals of the one in NumPy."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.engine.codec.test_golden import GOLDEN, LAYERS, write_golden
from tests.engine.codec.test_vectors import matrices
from tests.engine.test_shared_subspace import files
from vlora_engine import SharedSubspace
from vlora_engine.codec import compiled, vectors
from vlora_engine.codec.compiled import Loader, Loops
from vlora_engine.codec.tables import models
from vlora_engine.codec.vectors import decode_matrices, encode_matrices
from vlora_engine.errors import CorruptFileError

Part = tuple[bytes, int, int]

NUMPY = SimpleNamespace(loops=lambda numbers: None)


def written_out() -> Loops:
    """The loops as they stand there, in Python."""
    return Loops(**{function.__name__: function for function in compiled._SIGNATURES})


@pytest.fixture(scope="module", params=["written out", "compiled"])
def way(request: pytest.FixtureRequest) -> Any:
    """What codes otherwise than NumPy."""
    loops: Loops | None = written_out()
    if request.param == "compiled":
        numba = pytest.importorskip("numba")
        with pytest.MonkeyPatch.context() as patch:
            patch.delenv("NUMBA_DISABLE_JIT", raising=False)
            patch.setattr(numba.config, "DISABLE_JIT", 0)
            loops = Loader().load()
        assert loops is not None
        assert hasattr(loops.encode_lanes, "signatures")
    return SimpleNamespace(loops=lambda numbers: loops, quick=request.param == "compiled")


def under(way: Any, function: Callable[..., Any], *arguments: Any) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vectors, "loader", way)
        return function(*arguments)


def outcome(way: Any, parts: Sequence[Part]) -> Any:
    """What decoding comes to: the matrices, or the error as it is shown."""
    try:
        found = under(way, decode_matrices, parts)
    except CorruptFileError as error:
        return str(error)
    return [(rows.dtype, rows.tolist()) for rows in found]


def of(rows: Any) -> np.ndarray:
    return np.array(rows, dtype=np.int32)


EDGES = {
    "none": [],
    "without numbers": [of(np.zeros((3, 0))), of(np.zeros((0, 7)))],
    "one number": [of([[0]]), of([[1]]), of([[-1]]), of([[62]]), of([[63]]), of([[-64]])],
    "the largest": [of([[2**31 - 1, 1 - 2**31] * 40]), of([[2**31 - 1] + [0] * 2100])],
    "one symbol": [of(np.zeros((2, 5000))), of(np.full((40, 100), 7)), of(np.full((3, 81), -63))],
    "no sign at the end": [of([[5] * 8 + [0] * 90]), of([[5] * 9 + [0] * 90])],
    "ten pieces": [of(np.arange(40_000).reshape(2, 20_000) % 11 - 5)],
}


@pytest.mark.parametrize("edge", EDGES)
def test_the_bytes_are_the_same_at_the_edges(way: Any, edge: str) -> None:
    coded = under(NUMPY, encode_matrices, EDGES[edge])
    assert under(way, encode_matrices, EDGES[edge]) == coded
    parts = [(raw, *rows.shape) for raw, rows in zip(coded, EDGES[edge], strict=True)]
    wanted = [(rows.dtype, rows.tolist()) for rows in EDGES[edge]]
    assert outcome(way, parts) == outcome(NUMPY, parts) == wanted


def check_same(way: Any, given_: list[np.ndarray]) -> None:
    coded = under(NUMPY, encode_matrices, given_)
    assert under(way, encode_matrices, given_) == coded
    parts = [(raw, *rows.shape) for raw, rows in zip(coded, given_, strict=True)]
    assert outcome(way, parts) == [(rows.dtype, rows.tolist()) for rows in given_]


def test_the_bytes_are_the_same(way: Any) -> None:
    @settings(max_examples=30 if way.quick else 4, deadline=None, database=None)
    @given(matrices())
    def check(given_: list[np.ndarray]) -> None:
        check_same(way, given_)

    check()


def test_the_bytes_are_the_same_with_vectors_of_every_shape(way: Any) -> None:
    rng, count = np.random.default_rng(3), 60 if way.quick else 8
    rows = np.concatenate(
        [
            np.rint(rng.standard_t(tail, size=(count, 500)) * rng.uniform(0.2, 9, (count, 1)))
            for tail in (1.5, 2, 4, 100)
        ]
        + [rng.integers(-6, 7, size=(count, 500))]
    )
    raw = under(NUMPY, encode_matrices, [of(rows)])[0]
    assert set(np.frombuffer(raw[: len(rows)], np.uint8) >> 6) == set(range(models().shapes))
    check_same(way, [of(rows)])


def test_what_is_altered_comes_to_the_same(way: Any) -> None:
    """Refused with the same error, or read as the same numbers; nothing else is ever touched."""
    rng = np.random.default_rng(0)
    spread = np.array([[0.3], [2], [40], [900], [1e6]])
    rows = of(np.rint(rng.normal(size=(5, 300)) * spread))
    raw = under(NUMPY, encode_matrices, [rows])[0]
    # The vectors' bytes and the lanes' heads, number by number; what comes after in strides.
    places = [*range(20), *range(20, len(raw), 59 if way.quick else 401)]
    refused = 0
    for place in places:
        for change in (1, 0xFF):
            altered = bytearray(raw)
            altered[place] ^= change
            parts = [(raw, 5, 300), (bytes(altered), 5, 300)]
            found = outcome(way, parts)
            assert found == outcome(NUMPY, parts)
            refused += isinstance(found, str)
    assert refused > len(places)
    wrong = [(raw[:cut], 5, 300) for cut in range(0, len(raw), 101 if way.quick else 601)]
    wrong += [(raw + b"\0", 5, 300), (raw, 6, 300), (raw, 5, 301), (raw, 0, 300), (raw, 5, 0)]
    wrong += [(raw, 1 << 16, 1 << 20), (b"", 1, 1), (b"\0" * 700, 5, 300), (b"\xff" * 900, 5, 300)]
    for part in wrong:
        found = outcome(way, [part])
        assert isinstance(found, str)
        assert found == outcome(NUMPY, [part])


def test_any_bytes_come_to_the_same(way: Any) -> None:
    @settings(max_examples=200 if way.quick else 20, deadline=None, database=None)
    @given(
        st.integers(1, 5),
        st.sampled_from([1, 7, 64, 300, 2049]),
        st.binary(max_size=400),
        st.booleans(),
    )
    def check(n: int, d: int, raw: bytes, no_words: bool) -> None:
        if no_words:  # sound lengths, so that what comes after them is read
            layout = vectors.Layout(n, d)
            raw = (raw + bytes(9 * n))[: n + 4 * layout.lanes] + bytes(2 * layout.lanes) + raw
        assert outcome(way, [(raw, n, d)]) == outcome(NUMPY, [(raw, n, d)])

    check()


def test_a_directory_is_written_and_read_the_same(way: Any, tmp_path: Path) -> None:
    under(way, write_golden, tmp_path / "s")
    written, golden = files(tmp_path / "s"), files(GOLDEN)
    assert all(written[name] == golden[name] for name in golden if name.endswith(".safetensors"))

    def deltas() -> dict[str, bytes]:
        loaded = SharedSubspace.load(GOLDEN)
        back = {task: loaded.reconstruct(task) for task in sorted(loaded.tasks)}
        return {
            f"{task} {spec.name}": weights.delta(spec.name).numpy().tobytes()
            for task, weights in back.items()
            for spec in LAYERS
        }

    assert under(way, deltas) == under(NUMPY, deltas)


# which of the two codes


@pytest.fixture
def numba_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "is_installed", lambda: True)


def test_numpy_codes_until_loading_pays_off(
    monkeypatch: pytest.MonkeyPatch, numba_there: None
) -> None:
    loops, loads = written_out(), []
    monkeypatch.setattr(compiled, "_compiled", lambda kept: loads.append(kept) or loops)
    loader = Loader()
    assert loader.loops(compiled.PAYS_OFF - 1) is None
    assert not loads
    assert loader.loops(1) is loops
    assert loader.loops(1) is loops
    assert loads == [True]


def test_while_one_thread_loads_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch, numba_there: None
) -> None:
    begun, go_on, loops = threading.Event(), threading.Event(), written_out()

    def load(*, kept: bool) -> Loops:
        begun.set()
        assert go_on.wait(60)
        return loops

    monkeypatch.setattr(compiled, "_compiled", load)
    loader = Loader()
    thread = threading.Thread(target=loader.load)
    thread.start()
    assert begun.wait(60)
    assert loader.loops(compiled.PAYS_OFF) is None
    go_on.set()
    thread.join(60)
    assert loader.loops(1) is loops


@pytest.mark.parametrize("kept", [True, False])
def test_a_numba_that_does_not_work_is_done_without(
    kept: bool,
    monkeypatch: pytest.MonkeyPatch,
    numba_there: None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Where what was compiled cannot be kept it is compiled all the same; else NumPy codes."""
    caplog.set_level(logging.INFO, "vlora_engine")
    loops, tries = written_out(), []

    def load(*, kept: bool) -> Loops:
        tries.append(kept)
        if kept or not works_unkept:
            raise OSError("no locator available")
        return loops

    works_unkept = kept
    monkeypatch.setattr(compiled, "_compiled", load)
    assert Loader().load() is (loops if works_unkept else None)
    assert tries == [True, False]
    levels = [record.levelname for record in caplog.records]
    assert levels == (["INFO"] if works_unkept else ["INFO", "WARNING"])
    assert "no locator available" in caplog.text
    assert not any(record.exc_info for record in caplog.records)


def test_a_broken_numba_is_said_once_and_a_missing_one_never(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("NUMBA_DISABLE_JIT", raising=False)
    monkeypatch.setitem(sys.modules, "numba", SimpleNamespace(__spec__=object()))
    loader = Loader()
    assert loader.load() is None
    assert loader.load() is None
    assert [r.levelname for r in caplog.records if r.levelname == "WARNING"] == ["WARNING"]
    caplog.clear()
    monkeypatch.setattr(compiled, "find_spec", lambda name: None)
    assert Loader().load() is None
    assert not caplog.records


def test_numba_is_turned_off_by_its_own_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "find_spec", lambda name: object())
    for value, there in (("1", False), ("0", True), ("", True)):
        monkeypatch.setenv("NUMBA_DISABLE_JIT", value)
        assert compiled.is_installed() is there
