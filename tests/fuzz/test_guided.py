"""The corpus that coverage-guided fuzzing left is read again: soundly, or with an error of ours."""

from __future__ import annotations

import pytest

from tests.fuzz.guided import CORPUS, TARGETS, read


@pytest.mark.parametrize("target", TARGETS)
def test_every_input_of_the_corpus_is_read_or_refused(target: str) -> None:
    inputs = sorted((CORPUS / target).iterdir())
    assert inputs
    said = [read(target, path.read_bytes()) for path in inputs]
    assert "" in said, "some of them are sound"
    assert len(set(said)) > 1, "some of them are refused"
