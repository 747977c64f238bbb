"""Files that are not sound are refused by the place of the fault, and a fault of ours is no file's.

Every value of an index is removed and replaced by one of another type, one after another: the file
must be refused with the place in it, or be read to the same end where nothing depends on the value.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from tests.conftest import ROOT
from vlora_engine.catalog.read import read_manifest
from vlora_engine.codec.forecast import RateTables
from vlora_engine.errors import CorruptFileError, SubspaceError
from vlora_engine.manifest import parse as parse_module
from vlora_engine.spectra import tables
from vlora_engine.spectra.tables import Spectra, rate_tables_file
from vlora_engine.utils.json_reader import JsonFile, parse_json

GOLDEN = ROOT / "tests" / "data" / "subspaces"
Step = str | int
OTHERS: list[Any] = [None, True, -1, 0.5, 1e400, "no", [], {}, [[]], 1 << 70]


def places(value: Any, above: tuple[Step, ...] = ()) -> Iterator[tuple[Step, ...]]:
    """Every place in a value of JSON but the root, the outer ones first."""
    inside: Any = ()
    if isinstance(value, dict):
        inside = value.items()
    elif isinstance(value, list):
        inside = enumerate(value)
    for key, item in inside:
        yield (*above, key)
        yield from places(item, (*above, key))


def at(value: Any, place: tuple[Step, ...]) -> Any:
    """What stands at a place."""
    for step in place:
        value = value[step]
    return value


def test_places_are_all_there_are() -> None:
    assert list(places({"a": [1, {"b": 2}]})) == [("a",), ("a", 0), ("a", 1), ("a", 1, "b")]


# ---- the reader itself

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inside: st.lists(inside) | st.dictionaries(st.text(), inside),
    max_leaves=8,
)
READS: dict[str, Callable[[Any], bool]] = {
    "text": lambda v: isinstance(v, str),
    "natural": lambda v: type(v) is int and 0 <= v < 1 << 62,
    "number": lambda v: type(v) in (int, float) and bool(np.isfinite(float(v))),
    "flag": lambda v: v is True or v is False,
    "items": lambda v: isinstance(v, list),
    "object": lambda v: isinstance(v, dict),
    "texts": lambda v: isinstance(v, list) and all(isinstance(x, str) for x in v),
    "naturals": lambda v: isinstance(v, list) and all(READS["natural"](x) for x in v),
}


@given(VALUES, st.sampled_from(sorted(READS)))
def test_a_value_is_read_if_it_is_of_the_type_and_refused_if_not(value: Any, read: str) -> None:
    held = JsonFile("x.json", "It is not sound.").value({"a": [value]}).object()["a"].items()[0]
    if READS[read](value):
        getattr(held, read)()
        return
    with pytest.raises(CorruptFileError) as caught:
        getattr(held, read)()
    assert str(caught.value.where).startswith("x.json: a[0]")
    assert caught.value.expected
    assert caught.value.found
    assert str(caught.value.found).isprintable()


def test_a_key_that_would_move_the_cursor_is_shown_harmless() -> None:
    row = JsonFile("x.json", "It is not sound.").parse('{"\\u001b[31m": 1}').object()
    (value,) = (value for _, value in row.items())
    assert str(value.error("a text").where).isprintable()


HALVES = [b'"\\ud800"', b'{"\\uDFFF": 1}', b'["\xed\xa0\x80"]', b'"\\udc00\\ud800"', '["\\udfff"]']


@pytest.mark.parametrize("raw", [b"{", b"\xff", b"[" * 100_000, b"", b"NaN", *HALVES])
def test_what_is_no_json_is_said_to_be_none(raw: bytes) -> None:
    with pytest.raises(CorruptFileError) as caught:
        JsonFile("x.json", "It is not sound.").parse(raw)
    assert (caught.value.where, caught.value.expected) == ("x.json", "JSON")


def test_letters_of_two_halves_and_written_escapes_are_read() -> None:
    raw = b'{"a": "\\ud83d\\ude00", "b": "\\\\ud800"}'
    assert parse_json(raw) == {"a": "\U0001f600", "b": "\\ud800"}


def test_the_place_of_what_is_missing_is_named() -> None:
    row = JsonFile("x.json", "Bad.", "copy it").parse('{"layers": [{"k": [1]}]}').object()
    with pytest.raises(CorruptFileError) as caught:
        row["layers"].items()[0].object()["d_in"]
    error = caught.value
    assert (error.what, error.where) == ("Bad.", "x.json: layers[0].d_in")
    assert (error.found, error.remedy) == ("nothing", "copy it")


# ---- the index of a subspace


def indices() -> list[str]:
    """The subspaces that are kept as files, of every format version."""
    return sorted(p.parent.relative_to(GOLDEN).as_posix() for p in GOLDEN.rglob("subspace.json"))


def in_words(place: tuple[Step, ...]) -> str:
    """A place as errors name it."""
    parts = (f"[{step}]" if isinstance(step, int) else f".{step}" for step in place)
    return "".join(parts).removeprefix(".")


def refused_or_read(folder: Path, place: tuple[Step, ...]) -> Exception | None:
    """Whatever is at ``place`` now: the index is read, or the error says where it is wrong."""
    error = refusal_of(lambda: read_manifest(folder))
    if isinstance(error, SubspaceError):
        assert place[0] == "version"
    elif error is not None:
        head, _, inside = str(error.where).partition("subspace.json")
        assert head == f"{folder}/"
        assert error.expected
        assert error.found
        assert not inside or inside.startswith(": ")
    return error


def refusal_of(read: Callable[[], object]) -> CorruptFileError | SubspaceError | None:
    """What reading is refused with; anything else that is raised is a fault of ours."""
    try:
        read()
    except (CorruptFileError, SubspaceError) as error:
        return error
    return None


@pytest.mark.parametrize("name", indices())
def test_an_index_without_one_of_its_values(name: str, tmp_path: Path) -> None:
    shutil.copytree(GOLDEN / name, tmp_path / "s")
    file = tmp_path / "s" / "subspace.json"
    whole = json.loads(file.read_bytes())
    for place in places(whole):
        changed = json.loads(json.dumps(whole))
        del at(changed, place[:-1])[place[-1]]
        file.write_text(json.dumps(changed))
        error = refused_or_read(tmp_path / "s", place)
        if isinstance(error, CorruptFileError) and isinstance(place[-1], str) and name != "coded":
            wanted = str(file) if place == ("format",) else f"{file}: {in_words(place)}"
            assert str(error.where) == wanted


REQUIRED = ("method", "dtype", "base_model", "layers", "basis", "tasks")


@pytest.mark.parametrize("name", indices())
@pytest.mark.parametrize("key", REQUIRED)
def test_what_an_index_has_to_have_is_named(name: str, key: str, tmp_path: Path) -> None:
    shutil.copytree(GOLDEN / name, tmp_path / "s")
    file = tmp_path / "s" / "subspace.json"
    whole = json.loads(file.read_bytes())
    del whole[key]
    file.write_text(json.dumps(whole))
    with pytest.raises(CorruptFileError) as caught:
        read_manifest(tmp_path / "s")
    assert str(caught.value.where) == f"{file}: {key}"


@pytest.mark.parametrize("name", indices())
@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_an_index_with_a_value_of_another_type(
    name: str, data: st.DataObject, tmp_path: Path
) -> None:
    folder = tmp_path / "s"
    if not folder.exists():
        shutil.copytree(GOLDEN / name, folder)
    whole = json.loads((GOLDEN / name / "subspace.json").read_bytes())
    place = data.draw(st.sampled_from(list(places(whole))))
    at(whole, place[:-1])[place[-1]] = data.draw(st.sampled_from(OTHERS))
    (folder / "subspace.json").write_text(json.dumps(whole))
    refused_or_read(folder, place)


def test_a_layer_without_a_width_is_named_by_its_number(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN / "nf4", tmp_path / "s")
    file = tmp_path / "s" / "subspace.json"
    whole = json.loads(file.read_bytes())
    del whole["layers"][1]["d_in"]
    whole["layers"][1]["k"] = [1, "two"]
    file.write_text(json.dumps(whole))
    with pytest.raises(CorruptFileError) as caught:
        read_manifest(tmp_path / "s")
    error = caught.value
    assert (error.where, error.expected, error.found) == (
        f"{file}: layers[1].k[1]", "a count", "'two'",
    )  # fmt: skip


@pytest.mark.parametrize("fault", [TypeError, KeyError, AttributeError, ValueError, IndexError])
def test_a_fault_of_ours_is_not_one_of_the_index(
    fault: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise fault("ours")

    monkeypatch.setattr(parse_module, "TaskRecord", broken)
    with pytest.raises(fault, match="ours"):
        read_manifest(GOLDEN / "nf4")


# ---- spectra, and the tables of the codec


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Spectra with all there is."""
    from tests.witnesses import make
    from vlora_engine.catalog.open import open_adapter
    from vlora_engine.compress.measure import compute_spectra

    runs, out = tmp_path_factory.mktemp("runs"), tmp_path_factory.mktemp("out") / "spectra"
    sources = {path.name: open_adapter(path) for path in make.collection(runs, 3)}
    compute_spectra(sources, out=out, codec=True)
    return out


def copy_of(place: Path, tmp_path: Path) -> Path:
    shutil.copytree(place, tmp_path / "s", dirs_exist_ok=True)
    return tmp_path / "s"


def test_spectra_without_one_of_their_values(measured: Path, tmp_path: Path) -> None:
    folder = copy_of(measured, tmp_path)
    whole = json.loads((measured / "spectra.json").read_bytes())
    free = {"fingerprint", "path"}  # what is not needed to read them
    for place in places(whole):
        if isinstance(place[-1], int) or place[-1] in free or place[0] == "overhead" != place[-1]:
            continue
        changed = json.loads(json.dumps(whole))
        del at(changed, place[:-1])[place[-1]]
        (folder / "spectra.json").write_text(json.dumps(changed))
        with pytest.raises(CorruptFileError) as caught:
            Spectra.load(folder)
        assert place[-1] in ("format", "version") or str(caught.value.where).endswith(
            str(place[-1])
        )


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_spectra_with_a_value_of_another_type(
    data: st.DataObject, measured: Path, tmp_path: Path
) -> None:
    folder = copy_of(measured, tmp_path)
    whole = json.loads((measured / "spectra.json").read_bytes())
    place = data.draw(st.sampled_from(list(places(whole))))
    at(whole, place[:-1])[place[-1]] = data.draw(st.sampled_from(OTHERS))
    (folder / "spectra.json").write_text(json.dumps(whole))
    error = refusal_of(lambda: Spectra.load(folder).rate_tables())
    assert error is None or str(folder) in str(error.where)


def arrays_in(file: Path) -> dict[str, Any]:
    return dict(load_file(file))


def test_a_table_without_one_of_its_arrays(measured: Path, tmp_path: Path) -> None:
    folder = copy_of(measured, tmp_path)
    file = tables.layer_file(folder, 0)
    whole = arrays_in(file)
    for name in whole:
        save_file({key: value for key, value in whole.items() if key != name}, file)
        with pytest.raises(CorruptFileError) as caught:
            Spectra.load(folder)
        assert str(caught.value.where) == f"{file}: {name}"


def test_a_table_with_an_array_of_another_shape(measured: Path, tmp_path: Path) -> None:
    folder = copy_of(measured, tmp_path)
    file = tables.layer_file(folder, 0)
    whole = arrays_in(file)
    for name, array in whole.items():
        save_file({**whole, name: np.zeros((*array.shape, 2), array.dtype)}, file)
        with pytest.raises(CorruptFileError) as caught:
            Spectra.load(folder)
        assert str(caught.value.where) == f"{file}: {name}"


def test_tables_of_the_codec_without_one_of_their_arrays(measured: Path, tmp_path: Path) -> None:
    from safetensors import safe_open

    file = rate_tables_file(copy_of(measured, tmp_path))
    with safe_open(file, "np") as opened:
        metadata = opened.metadata()
    whole = arrays_in(file)
    for name in whole.keys() - {"cosines"}:
        save_file({k: v for k, v in whole.items() if k != name}, file, metadata)
        with pytest.raises(CorruptFileError) as caught:
            RateTables.load(file)
        assert str(caught.value.where) == f"{file}: {name}"
    content = json.loads(metadata["outlook"])
    for key in content:
        rest = {k: v for k, v in content.items() if k != key}
        save_file(whole, file, {"outlook": json.dumps(rest)})
        with pytest.raises(CorruptFileError) as caught:
            RateTables.load(file)
        assert str(caught.value.where) == f"{file}: {key}"


def test_a_fault_of_ours_is_not_one_of_the_spectra(
    measured: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise TypeError("ours")

    monkeypatch.setattr(tables, "LayerTable", broken)
    with pytest.raises(TypeError, match="ours"):
        Spectra.load(measured)
    monkeypatch.setattr("vlora_engine.codec.forecast.OwnTable", broken)
    with pytest.raises(TypeError, match="ours"):
        RateTables.load(rate_tables_file(measured))
