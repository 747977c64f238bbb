"""Orders by a figure do not change with the last digits of the figures."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlora_engine.analysis.relations import clusters_of, order_by_likeness
from vlora_engine.utils.ranking import CLOSE, FLOOR, by_number, foremost, ranked, worst

# Levels are clearly apart, a tenth each; noise stays clearly within the tolerance of its level.
levels = st.lists(st.integers(0, 20), min_size=1, max_size=12)
noises = st.lists(st.floats(-0.4, 0.4), min_size=12, max_size=12)


def figures(own: list[int], noise: list[float], sign: int) -> dict[str, float]:
    """One figure a task, level by level, each off by a share of what still counts as equal."""
    values = [0.0 if not n else 1.1**n for n in own]
    return {
        f"task{i}": sign * value + max(FLOOR, CLOSE * value) * off
        for i, (value, off) in enumerate(zip(values, noise, strict=False))
    }


@settings(deadline=None)
@given(levels, noises, st.sampled_from([1, -1]), st.booleans(), st.randoms())
def test_rounding_never_changes_an_order(own, noise, sign, largest, random):
    seen = figures(own, noise, sign)
    order = list(seen)
    random.shuffle(order)
    found = ranked(order, seen.__getitem__, lambda name: name, largest=largest)
    # the levels are integers, so their order knows of no rounding
    down = -1 if (sign > 0) == largest else 1
    assert found == sorted(seen, key=lambda name: (down * own[int(name[4:])], int(name[4:])))
    assert found[0] == worst(seen, largest=largest)


@given(st.lists(st.floats(-100, 100), max_size=30))
def test_an_order_falls_but_for_the_tolerance(values):
    found = ranked(values, lambda value: value)
    assert sorted(found) == sorted(values)
    for i, value in enumerate(found):
        highest = max(found[i:])
        assert value >= highest - 1.01 * max(FLOOR, CLOSE * abs(highest))


def test_without_names_equals_stay_as_they_came():
    rows = [(1.0, "z"), (2.0, "b"), (1.0 + 1e-9, "a"), (1.0 - 1e-9, "c")]
    assert [name for _, name in ranked(rows, lambda row: row[0])] == ["b", "z", "a", "c"]


def test_what_is_no_number_comes_last_and_infinities_at_their_end():
    rows = {"a": math.nan, "b": 1.0, "c": math.inf, "d": -math.inf, "e": math.inf}
    names = [ranked(rows, rows.__getitem__, lambda n: n, largest=largest) for largest in (1, 0)]
    assert names == [["c", "e", "b", "d", "a"], ["d", "b", "c", "e", "a"]]
    assert foremost([], float) is None
    assert worst({}) is None
    assert worst({"a": math.nan}) == "a"


def test_names_decide_in_natural_order_and_every_name_is_told_apart():
    names = ["h.10", "h.9", "H.9", "x2", "x10"]
    assert ranked(names, lambda _: 0.5, lambda name: name) == ["H.9", "h.9", "h.10", "x2", "x10"]
    assert by_number("step-500") < by_number("step-1000")
    pairs = [("b", "a10"), ("a", "c"), ("b", "a9")]
    assert ranked(pairs, lambda _: 0.0, lambda pair: pair) == [pairs[1], pairs[2], pairs[0]]


@pytest.mark.parametrize("seed", range(5))
def test_likeness_that_differs_by_rounding_gives_the_same_clusters_and_order(seed):
    rng = np.random.default_rng(seed)
    cosines = rng.choice([0.0, 0.25, 0.5, 0.75], (9, 9))
    cosines = np.maximum(cosines, cosines.T)
    np.fill_diagonal(cosines, 1.0)
    off = rng.uniform(-1e-13, 1e-13, (9, 9))
    noisy = cosines + off + off.T
    assert order_by_likeness(noisy) == order_by_likeness(cosines)
    for threshold in (0.25, 0.5, 0.75):
        assert clusters_of(noisy, threshold) == clusters_of(cosines, threshold)


@given(levels, noises, st.booleans(), st.booleans())
@settings(deadline=None)
def test_the_foremost_is_the_first_of_all_in_order(own, noise, largest, named):
    values = figures(own, noise, 1) | {"none": math.nan}
    name = str if named else None
    ordered = ranked(values, values.__getitem__, name, largest=largest)
    assert foremost(values, values.__getitem__, name, largest=largest) == ordered[0]
