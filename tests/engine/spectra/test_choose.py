"""Choosing k for a target: hulls of all layers at once against one hull at a time."""

from __future__ import annotations

import random
from itertools import pairwise

import numpy as np
import pytest

from vlora_engine.spectra.choose import _lower_hulls

Points = list[tuple[float, float]]


def lower_hull(points: Points) -> list[int]:
    """The corners from the fewest bytes to the least loss, found by trying every line.

    A point is one where no line between two others, and no other point, is as low at its bytes.
    """
    best: dict[float, int] = {}
    for i, (x, y) in enumerate(points):
        if x not in best or y < points[best[x]][1]:
            best[x] = i
    corners = []
    for x, i in sorted(best.items()):
        y = points[i][1]
        left = [points[j] for z, j in best.items() if z < x]
        right = [points[j] for z, j in best.items() if z > x]
        below = any(b <= y for _, b in left)
        lines = ((a, b, c, d) for a, b in left for c, d in right)
        if not below and all(b + (d - b) * (x - a) / (c - a) > y for a, b, c, d in lines):
            corners.append(i)
    return corners


@pytest.mark.parametrize("seed", range(30))
def test_the_hulls_of_all_rows_are_those_of_each(seed: int) -> None:
    chance = random.Random(seed)
    rows: list[Points] = []
    for _ in range(chance.randint(1, 6)):
        points = [
            (float(chance.randint(1, 30)), float(chance.randint(0, 200)))
            for _ in range(chance.randint(1, 25))
        ]
        rows.append(sorted(points, key=lambda point: point[0]))
    nbytes = np.full((len(rows), 25), np.inf)
    loss = nbytes.copy()
    for i, points in enumerate(rows):
        nbytes[i, : len(points)], loss[i, : len(points)] = zip(*points, strict=True)
    layers, columns = _lower_hulls(nbytes, loss)
    for i, points in enumerate(rows):
        found = columns[layers == i].tolist()
        # As values: of equal points either may be named.
        assert [points[j] for j in found] == [points[j] for j in lower_hull(points)]
        slopes = [
            (points[b][1] - points[a][1]) / (points[b][0] - points[a][0])
            for a, b in pairwise(found)
        ]
        assert slopes == sorted(slopes)
