"""Grams of loadings up to each k, against dense products."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vlora_engine.linalg.grams import cumulative_grams


@pytest.mark.parametrize("points", [[0], [3], [0, 1, 2, 3, 4], [0, 1, 2, 5, 5, 11], [4, 9, 12]])
def test_cumulative_grams_are_those_of_the_first_columns(points: list[int]) -> None:
    p = torch.randn(5, 3, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    k = np.array(points)
    found = cumulative_grams(p, k).at(k)
    for grams, at in zip(found, points, strict=True):
        dense = p[:, :, :at] @ p[:, :, :at].transpose(1, 2)
        torch.testing.assert_close(grams, dense, rtol=1e-13, atol=1e-13)


def test_cumulative_grams_are_found_at_some_of_their_points() -> None:
    p = torch.randn(2, 2, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    grams = cumulative_grams(p, np.arange(10))
    torch.testing.assert_close(grams.at(np.array([2, 7])), grams.values[[2, 7]])
