"""A fixed sample of `tests.fuzz.readers`; `make soak` makes many more calls."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.readers import READERS, Fuzz, limited_memory
from vlora_engine.utils import json_reader

CALLS = 120
SLOWER = {"coded": 50, "beside": 50, "jobs": 40}
SEED = 20260


@pytest.mark.parametrize("name", READERS)
@pytest.mark.filterwarnings("ignore")  # torch remarks on odd pickles
def test_changed_files_are_read_or_refused_in_words(name: str, tmp_path: Path) -> None:
    if name == "gguf":
        pytest.importorskip("gguf")
    fuzz = Fuzz(name, tmp_path)
    calls = SLOWER.get(name, CALLS)

    with limited_memory():
        for number in range(calls):
            fuzz.call(SEED, number)

    assert not fuzz.failures, "\n\n".join(fuzz.failures.values())
    assert fuzz.outcomes["read"] + fuzz.outcomes["refused"] == calls
    # What is changed must be seen: else the changes stop at a checksum, or the examples are none.
    assert fuzz.outcomes["refused"] or name in ("jobs",)


def test_a_fault_of_a_reader_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fuzz = Fuzz("basis", tmp_path)
    monkeypatch.setattr(json_reader, "_is_natural", lambda value: True)  # as if nobody checked

    for number in range(200):
        fuzz.call(SEED, number)
        if fuzz.failures:
            break

    assert fuzz.failures
