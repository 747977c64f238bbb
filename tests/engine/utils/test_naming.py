"""Names of tasks, names of files."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlora_engine.errors import ParameterError
from vlora_engine.utils.naming import (
    MAX_SLUG,
    cosine_text,
    percent_text,
    slugs,
    threshold_text,
    unique_names,
)


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["/a/legal", "/b/sports"], ["legal", "sports"]),
        (["/a/x/final", "/a/y/final", "/a/y/b"], ["x/final", "y/final", "b"]),
        (["/a/x/1/f", "/a/y/1/f", "/a/y/2/f"], ["x/1/f", "y/1/f", "2/f"]),
        (["final", "x/final"], ["final", "x/final"]),
        (["/"], ["/"]),
        ([], []),
        (["/m/日本語", "/m/naïve task"], ["日本語", "naïve task"]),
    ],
)
def test_the_shortest_suffix_that_no_other_path_ends_in(paths, names):
    assert unique_names(paths) == names


def test_a_path_listed_twice_is_an_error():
    with pytest.raises(ParameterError, match=r"(?s)listed twice.*a/b"):
        unique_names(["/a/b", "/a/c", "/a/b"])


PARTS = st.lists(st.sampled_from(["a", "b", "final", "Final", "é"]), min_size=1, max_size=4)


@given(st.lists(PARTS.map(lambda parts: "/" + "/".join(parts)), unique=True, max_size=12))
def test_names_are_distinct_suffixes_and_no_shorter_one_would_do(paths):
    names = unique_names(paths)

    assert len(set(names)) == len(paths)
    for path, name in zip(paths, names, strict=True):
        assert path.endswith("/" + name)
        shorter = name.partition("/")[2]
        if shorter:
            assert sum(p.endswith("/" + shorter) for p in paths) > 1


@given(st.lists(st.text(max_size=30), unique=True, max_size=12))
def test_slugs_are_safe_distinct_by_letters_and_do_not_depend_on_order(names):
    table = slugs(names)

    assert table.keys() == set(names)
    assert len({slug.casefold() for slug in table.values()}) == len(names)
    for slug in table.values():
        assert 0 < len(slug) <= MAX_SLUG
        assert slug.isascii()
        assert slug[0].isalnum()
        assert not set(slug) - set(
            "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-"
        )
        assert slug.strip("-.") == slug
    for order in itertools.islice(itertools.permutations(names), 4):
        assert slugs(order) == table


@pytest.mark.parametrize(
    ("name", "slug"),
    [
        ("legal", "legal"),
        ("a/b", "a-b"),
        ("../../etc/passwd", "etc-passwd"),
        ("..", "task"),
        ("日本語", "task"),
        ("Café au lait", "Cafe-au-lait"),
        ("CON", "task-CON"),
        ("nul.txt", "task-nul.txt"),
        ("x" * 300, "x" * MAX_SLUG),
        ("", "task"),
    ],
)
def test_single_slugs(name, slug):
    assert slugs([name]) == {name: slug}


def test_collisions_leave_real_slugs_alone():
    assert slugs(["a b", "a/b", "a-b", "A-B"]) == {
        "A-B": "A-B",
        "a-b": "a-b-2",
        "a b": "a-b-3",
        "a/b": "a-b-4",
    }
    assert slugs(["legal"], taken=["Legal"]) == {"legal": "legal-2"}
    long = {"y" * 200 + str(i): None for i in range(12)}
    assert len(set(slugs(long).values())) == 12


@pytest.mark.parametrize(
    ("cosine", "text"),
    [
        (0.934, ".93"),
        (-0.4, "-.40"),
        (0.002, "0"),
        (-0.002, "0"),
        (1.0, "1.0"),
        (0.99999997, "1.0"),  # of copies, as floats have it
        (0.9993, ".99"),  # not a copy
        (-0.998, "-.99"),
        (-1.0, "-1.0"),
    ],
)
def test_cosines_have_one_form(cosine, text):
    assert cosine_text(cosine) == text


def test_a_threshold_keeps_its_digits():
    assert [threshold_text(t) for t in (0.9, 0.9995, -0.5, 1)] == [".9", ".9995", "-.5", "1"]


def test_shares_have_one_form():
    assert [percent_text(s) for s in (0.0498, 0.05, 1)] == ["4.98 %", "5 %", "100 %"]
