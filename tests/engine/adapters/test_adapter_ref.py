"""Where an adapter is: every text means one place and is written back alike; DIR:TASK on a disk."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.witnesses import make
from vlora_engine import SharedSubspace
from vlora_engine.adapters.address import AdapterRef, expanded
from vlora_engine.catalog.locate import existing_path, locate
from vlora_engine.catalog.open import open_adapter
from vlora_engine.catalog.read import read_manifest
from vlora_engine.catalog.scanner import scan
from vlora_engine.errors import NotFoundError, ParameterError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
HOSTILE = ["a b", "a:b", "a@b", "C:", "C:\\x", "*", "[0]", "~", "..", "ü/é", "🙂", "\u202e", "hf:"]
PIECES = st.one_of(st.sampled_from([*HOSTILE, "/", ":", "@", "//", "hf://", "\n"]), st.text())
WORDS = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_]{0,8}", fullmatch=True)


@given(st.lists(PIECES, max_size=6).map("".join))
@example("C:/adapters/law")
@example("runs/law/")
@example("runs/a:b:c")
@example("me@host:runs")
@example("hf-cache:")
@example("hf-search:org/name")
@example("")
@example("hf://")
@example("hf:///a")
def test_any_text_is_written_back_as_it_came(text: str) -> None:
    try:
        ref = AdapterRef.parse(text)
    except ParameterError:
        assert text.startswith("hf:/"), "only a place on the Hub has a form to be of"
        return
    assert AdapterRef.parse(str(ref)) == ref
    assert AdapterRef.parse(ref) is ref
    assert os.fspath(ref) == str(ref) == ref.text
    if not ref.is_hub:
        assert str(ref) == text
        assert ref.task is None, "what of it is a task only the disk says"
    rest = text.removeprefix("hf:/").removeprefix("/")
    on_hub = text.startswith("hf:/") and rest != "" and not rest.startswith("/")
    assert ref.is_hub == on_hub
    assert ref.is_local == (not on_hub and not text.startswith(("hf-cache:", "hf-search:")))


@given(
    WORDS,
    WORDS,
    st.one_of(st.none(), st.just(COMMIT), WORDS, st.just("refs/pr/3"), st.just("feature/x")),
    st.lists(st.text(st.characters(exclude_characters="/:@"), min_size=1), max_size=3),
    st.one_of(st.none(), st.text(min_size=1)),
)
def test_a_place_on_the_hub_is_put_together_and_taken_apart(
    org: str, name: str, revision: str | None, folders: list[str], task: str | None
) -> None:
    folders = [folder for folder in folders if folder not in (".", "..")]
    ref = AdapterRef.of_repo(f"{org}/{name}", revision, "/".join(folders), task)
    assert AdapterRef.parse(str(ref)) == ref
    assert ref.is_hub
    assert AdapterRef.parse(str(ref.base)) == ref.base
    assert ref.base.task is None
    assert ref.base.with_task(task) == ref


@pytest.mark.parametrize("name", HOSTILE)
def test_a_path_is_the_place_that_it_names(name: str, tmp_path: Path) -> None:
    ref = AdapterRef.parse(tmp_path / name)
    assert ref == AdapterRef.parse(str(tmp_path / name)) == AdapterRef.at(tmp_path / name)
    assert Path(ref) == ref.expanded == tmp_path / name
    assert ref.name == (tmp_path / name).name


def test_a_leading_tilde_is_the_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert AdapterRef.parse("~/law").expanded == expanded("~/law") == tmp_path / "law"
    assert str(AdapterRef.parse("~/law")) == "~/law"
    (tmp_path / "s").mkdir()
    assert locate("~/s:law") == AdapterRef.at("~/s", "law")
    assert existing_path("~/s") == tmp_path / "s"


def test_the_disk_says_what_of_a_path_is_a_task(tmp_path: Path) -> None:
    for name in ("s", "s:a", "s:a b", "whole:law"):
        (tmp_path / name).mkdir()
    at = f"{tmp_path}/"
    expected = {
        "s": ("s", None),
        "s:x": ("s", "x"),
        "s:a": ("s:a", None),
        "s:a:x": ("s:a", "x"),
        "s:a b:x:y": ("s:a b", "x:y"),
        "s:x:a/b*": ("s", "x:a/b*"),
        "s:": ("s:", None),
        "whole:law": ("whole:law", None),
        "none:law": ("none:law", None),
        "s/:x": ("s/", "x"),
    }
    for text, (path, task) in expected.items():
        ref = locate(at + text)
        assert ref == AdapterRef.at(at + path, task), text
        assert str(ref) == at + text
        assert locate(str(ref)) == locate(ref) == ref
    for text in ("hf://org/name/s:law", "hf-cache:", "hf-search:org/name:x"):
        assert locate(text) == AdapterRef.parse(text)


def test_every_way_in_takes_a_reference(tmp_path: Path) -> None:
    place = tmp_path / "a: b@c*"
    adapters = [make.weights(rank=2, seed=seed) for seed in range(3)]
    SharedSubspace.from_adapters(adapters, ["x", "y:z", "w"]).save(place)
    ref = AdapterRef.at(place, "y:z")
    expected = open_adapter(f"{place}:y:z")
    assert open_adapter(ref).digest() == expected.digest()
    assert set(read_manifest(ref.base).tasks) == {"w", "x", "y:z"}
    assert [info.path for info in scan(ref).adapters] == [Path(f"{place}:y:z")]
    with pytest.raises(NotFoundError):
        open_adapter(AdapterRef.at(tmp_path, "y:z"))
