"""The short form of a coded collection's index: nothing is lost, nothing is said twice."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlora_engine.errors import CorruptFileError
from vlora_engine.manifest.coded_index import open_layers, open_tasks, pack_layers, pack_tasks
from vlora_engine.utils.json_reader import JsonFile, JsonObject

NAMES = st.text(st.sampled_from("ab.#0123456789"), min_size=1, max_size=12)
DIGESTS = st.one_of(st.just(""), st.text("0123456789abcdef", min_size=64, max_size=64))
ROWS = st.fixed_dictionaries(
    {
        "id": NAMES,
        "file": NAMES.map(lambda name: f"{name}.safetensors"),
        "sha256": DIGESTS,
        "bytes": st.integers(0, 10**12),
        "digest": DIGESTS,
        "rank": st.integers(0, 3),
        "ranks": st.one_of(st.integers(1, 2), st.lists(st.integers(1, 2), max_size=3)),
        "norm": st.floats(0, 10),
        "error": st.floats(0, 1),
        "source": st.fixed_dictionaries(
            {
                "path": st.one_of(st.none(), st.text("ab/.é", max_size=8)),
                "bytes": st.integers(0, 2),
                "elements": st.integers(0, 2),
                "rest": st.just([0, 0]),
            }
        ),
        "config": st.integers(0, 1),
    },
    optional={"layers": st.just([0, 2]), "cluster": st.integers(1, 2), "measured": st.just(False)},
)


def as_read(value: object) -> JsonObject:
    """What a file would hold."""
    return JsonFile("subspace.json", "It is not sound.").parse(json.dumps(value)).object()


def plain(row: JsonObject) -> dict[str, object]:
    """The values of a row without their places."""
    return {key: value.value for key, value in row.items()}


@given(st.lists(NAMES, max_size=8))
def test_layers_come_back(names: list[str]) -> None:
    rows = [[name, 8, 8 + len(name) % 2, 4] for name in names]
    found = open_layers(as_read(pack_layers(rows)))
    assert [[name, *(value.value for value in rest)] for name, rest in found] == rows


@given(st.lists(ROWS, max_size=5))
def test_tasks_come_back(rows: list[dict[str, object]]) -> None:
    found = open_tasks(as_read(pack_tasks(rows)))
    assert [{**plain(row), "source": plain(source)} for row, source in found] == rows


def test_layers_of_one_kind_are_named_once() -> None:
    rows = [[f"model.layers.{i}.self_attn.{x}_proj", 64, 64, 8] for i in range(30) for x in "qv"]
    packed = pack_layers(rows)
    assert [family[0] for family in packed["families"]] == [
        "model.layers.#.self_attn.q_proj",
        "model.layers.#.self_attn.v_proj",
    ]
    assert len(json.dumps(packed)) < len(json.dumps(rows)) / 3


@pytest.mark.parametrize(
    "broken",
    [
        {"families": [["a.#", 1]], "layers": [[0]]},
        {"families": [["a.#", 1]], "layers": [[0, 1, 2]]},
        {"families": [["a.#", 1]], "layers": [[0, -1]]},
        {"families": [["a.#", 1]], "layers": [[-1, 1]]},
        {"families": [["a.#", 1]], "layers": [[1, 1]]},
    ],
)
def test_layers_that_make_no_sense_are_refused(broken: dict[str, object]) -> None:
    if broken["layers"] == [[0]]:  # a name may hold a hole's mark, if it has no numbers
        [(name, [rest])] = open_layers(as_read(broken))
        assert (name, rest.value) == ("a.#", 1)
        return
    with pytest.raises(CorruptFileError) as caught:
        open_layers(as_read(broken))
    assert str(caught.value.where).startswith("subspace.json: layers[0]")
