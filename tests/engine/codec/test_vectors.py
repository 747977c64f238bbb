"""The entropy coder: what goes in comes out, at about its entropy; what is altered is refused."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlora_engine.codec.quantizer import quantize
from vlora_engine.codec.rates import normal_rate, number_bits
from vlora_engine.codec.tables import FILE
from vlora_engine.codec.vectors import decode_matrices, encode_matrices
from vlora_engine.errors import CorruptFileError

TABLES = "a48a49392ef9dc9d00d5b1e832adce54b1a9d6fae0430c84160d37ae7c57d5a1"


@st.composite
def matrices(draw: st.DrawFn) -> list[np.ndarray]:
    """Some matrices: empty ones, rows of zeros, escapes, low bits, the largest numbers."""
    made = []
    for _ in range(draw(st.integers(1, 4))):
        n = draw(st.integers(0, 12))
        d = draw(st.sampled_from([0, 1, 2, 17, 64, 300, 2047, 2048, 2049, 4500]))
        rng = np.random.default_rng(draw(st.integers(0, 2**32)))
        spread = 2.0 ** rng.uniform(-6, 27, size=(n, 1))
        rows = rng.standard_t(draw(st.sampled_from([1.5, 3, 50])), size=(n, d)) * spread
        made.append(np.rint(rows.clip(1 - 2**31, 2**31 - 1)).astype(np.int32))
    return made


@settings(max_examples=60, deadline=None)
@given(matrices())
def test_what_goes_in_comes_out(given_: list[np.ndarray]) -> None:
    coded = encode_matrices(given_)
    parts = [(raw, *rows.shape) for raw, rows in zip(coded, given_, strict=True)]
    for found, rows in zip(decode_matrices(parts), given_, strict=True):
        assert found.shape == rows.shape
        assert (found == rows).all()
    # Each is coded as it would be alone: what is coded beside it changes nothing.
    assert encode_matrices(given_[-1:]) == coded[-1:]


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5, 6, 12])
def test_normal_numbers_cost_about_their_entropy(bits: int) -> None:
    deviation = 2.0**bits / np.sqrt(2 * np.pi * np.e)  # of about so many bits in steps of 1
    rng = np.random.default_rng(1)
    rows = quantize(rng.normal(0, deviation, size=(24, 2000)))
    many = quantize(rng.normal(0, deviation, size=(100, 20_000)))
    share = np.unique(many, return_counts=True)[1] / many.size
    entropy = float(-(share * np.log2(share)).sum())
    cost = 8 * len(encode_matrices([rows])[0]) / rows.size
    a_vector = 64 / 2000  # its scale, and the state and the length of its lane
    assert 0.97 * entropy < cost - a_vector < 1.02 * entropy
    # ... and what a choice is told that it costs is what it costs.
    assert number_bits(rows).sum() / rows.size == pytest.approx(cost - a_vector, rel=0.03)


def test_what_a_number_costs_only_grows_with_it() -> None:
    deviation = np.exp2(np.arange(-6, 28, 0.1))
    bits, error = normal_rate(deviation)
    assert (np.diff(bits) >= 0).all()
    high = deviation > 8
    assert np.diff(bits[high]) == pytest.approx(0.1, abs=0.01)  # of log2: a bit a doubling
    assert error[high] == pytest.approx(1 / 12, rel=0.01)
    assert error[deviation < 0.03] == pytest.approx(deviation[deviation < 0.03] ** 2)


def test_altered_bytes_are_refused_or_numbers_never_anything_else() -> None:
    rng = np.random.default_rng(0)
    rows = np.rint(rng.normal(size=(5, 300)) * np.array([[0.3], [2], [40], [900], [1e6]]))
    (raw,) = encode_matrices([rows.astype(np.int32)])
    refused = 0
    for place in range(0, len(raw), 19):
        for change in (1, 0x80, 0xFF):
            altered = bytearray(raw)
            altered[place] ^= change
            try:
                (found,) = decode_matrices([(bytes(altered), 5, 300)])
                assert found.shape == (5, 300)
            except CorruptFileError:
                refused += 1
    assert refused > 15
    for cut in range(0, len(raw), 41):
        with pytest.raises(CorruptFileError):
            decode_matrices([(raw[:cut], 5, 300)])
    for wrong in ((raw + b"\0", 5, 300), (raw, 6, 300), (raw, 5, 301), (raw, 0, 300), (raw, 5, 0)):
        with pytest.raises(CorruptFileError):
            decode_matrices([wrong])
    with pytest.raises(CorruptFileError):  # sizes that no file of these bytes can have
        decode_matrices([(raw, 1 << 16, 1 << 20)])


def test_the_models_are_those_that_files_were_written_with() -> None:
    """If this fails, no file that was ever written can be read: put the tables back."""
    assert hashlib.sha256(FILE.read_bytes()).hexdigest() == TABLES
