"""A replacement that is killed between its steps loses nothing: the next command finds the old."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

import vlora_engine.utils.files as files_module
from tests.engine.compress.test_resume import tree
from tests.witnesses import make
from vlora_engine.catalog.open import open_adapter
from vlora_engine.catalog.read import read_manifest
from vlora_engine.compress.build import build_subspace
from vlora_engine.errors import NotFoundError, OutputExistsError
from vlora_engine.utils.files import check_output, former_path, new_directory, put_back, sole_writer


class Killed(BaseException):
    """Stands for the end of the process: nothing after it is tidied up."""


STEPS = ("flushed", "the old moved away", "the new in its place", "the old removed")


@pytest.fixture
def kill_after(monkeypatch: pytest.MonkeyPatch):
    """End a replacement after one of its steps, and leave the disk as a kill would."""

    def arrange(step: str) -> None:
        rename, remove, check = os.rename, files_module._hand_over, files_module.fsync
        monkeypatch.setattr(files_module, "discard", lambda path: None)

        def renamed(source: Path, target: Path) -> None:
            rename(source, target)
            moved = STEPS[1] if target.name.endswith(".part-old") else STEPS[2]
            if moved == step:
                raise Killed

        def removed(old: Path, new: Path) -> None:
            there = old.exists()
            remove(old, new)
            if step == STEPS[3] and there:
                raise Killed

        def flushed(path: Path) -> None:
            check(path)
            if step == STEPS[0]:
                raise Killed

        monkeypatch.setattr(files_module.os, "rename", renamed)
        monkeypatch.setattr(files_module, "_hand_over", removed)
        monkeypatch.setattr(files_module, "fsync", flushed)

    return arrange


def replace(final: Path, text: str) -> None:
    with new_directory(final, force=True) as partial:
        (partial / "spectra.json").write_text(text)


@pytest.mark.parametrize("step", STEPS)
def test_a_kill_at_any_step_leaves_the_old_or_the_new(
    step: str, tmp_path: Path, kill_after, monkeypatch: pytest.MonkeyPatch
) -> None:
    final = tmp_path / "out"
    replace(final, "old")
    kill_after(step)
    with pytest.raises(Killed):
        replace(final, "new")
    monkeypatch.undo()
    assert final.exists() == (step != STEPS[1])

    with pytest.raises(OutputExistsError):
        check_output(final)  # the next command that would write there
    wanted = "old" if step in STEPS[:2] else "new"
    assert (final / "spectra.json").read_text() == wanted
    replace(final, "newest")
    assert tree(final) == {"spectra.json": b"newest"}
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_subspace_is_put_back_by_the_next_build(
    tmp_path: Path, kill_after, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = {p.name: open_adapter(p) for p in make.collection(tmp_path / "in", 3)}
    out = tmp_path / "out"
    build_subspace(sources, out, k=2)
    before = tree(out)
    kill_after(STEPS[1])
    with pytest.raises(Killed):
        build_subspace(sources, out, k=3, force=True)
    monkeypatch.undo()
    assert not out.exists()
    with pytest.raises(NotFoundError) as caught:  # who only reads moves nothing, and says where
        read_manifest(out)
    assert f"mv {former_path(out)} {out}" in str(caught.value.remedy)
    assert not out.exists()
    with pytest.raises(OutputExistsError):
        build_subspace(sources, out, k=3)
    assert tree(out) == before
    assert build_subspace(sources, out, k=3, force=True).k
    build_subspace(sources, tmp_path / "undisturbed", k=3)
    assert tree(out) == tree(tmp_path / "undisturbed")


def test_an_adapter_that_is_missing_says_where_the_former_is(tmp_path: Path) -> None:
    place = make.write(tmp_path / "a b")
    place.rename(former_path(place))
    with pytest.raises(NotFoundError) as caught:
        open_adapter(place)
    assert f"mv '{former_path(place)}' '{place}'" in str(caught.value.remedy)
    with pytest.raises(OutputExistsError):
        check_output(place)
    assert open_adapter(place).modules


def test_nothing_is_put_back_while_somebody_is_writing(tmp_path: Path) -> None:
    final = tmp_path / "out"
    former_path(final).mkdir()
    with sole_writer(tmp_path / ".out.part-job", final):
        assert not put_back(final)
        check_output(final)
    assert put_back(final)
    assert final.is_dir()


def test_what_is_there_is_never_replaced_by_the_former(tmp_path: Path) -> None:
    final = tmp_path / "out"
    for place, text in ((final, "new"), (former_path(final), "old")):
        place.mkdir()
        (place / "spectra.json").write_text(text)
    assert not put_back(final)
    assert (final / "spectra.json").read_text() == "new"
    shutil.rmtree(final)
    assert put_back(final)
    assert (final / "spectra.json").read_text() == "old"


def test_a_name_that_is_a_pattern_is_a_name(tmp_path: Path) -> None:
    final = tmp_path / "out[1]*"
    former_path(final).mkdir()
    with sole_writer(tmp_path / ".out[1]*.part-job", final):
        assert not put_back(final)
    with sole_writer(tmp_path / ".out1.part-job", tmp_path / "out1"):
        assert put_back(final)
