"""Where names cannot be exchanged, a replacement that is killed loses nothing all the same.

Two renames stand in there, and between them an output is not in its place: whoever writes there
next puts it back, whoever reads says where it is.
"""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest

import vlora_engine.utils.outputs as outputs_module
from tests.witnesses import make
from tests.witnesses.files import tree
from vlora_engine.catalog.open import open_adapter
from vlora_engine.catalog.read import read_manifest
from vlora_engine.catalog.scanner import scan
from vlora_engine.compress.build import build_subspace
from vlora_engine.errors import NotFoundError, OutputExistsError
from vlora_engine.utils import exchange as exchange_module
from vlora_engine.utils.exchange import exchange
from vlora_engine.utils.output_checks import check_output
from vlora_engine.utils.outputs import new_directory, sole_writer, strays
from vlora_engine.utils.partials import former_path, how_to_put_back, put_back


class Killed(BaseException):
    """Stands for the end of the process: nothing after it is tidied up."""


@pytest.fixture
def killed_between(monkeypatch: pytest.MonkeyPatch):
    """End a replacement between its two renames, and leave the disk as a kill would."""

    def arrange() -> None:
        rename = os.rename
        monkeypatch.setattr(outputs_module, "exchange", lambda one, other: False)
        monkeypatch.setattr(outputs_module, "discard", lambda path: None)

        def renamed(source: Path, target: Path) -> None:
            rename(source, target)
            if target.name.endswith(".part-old"):
                monkeypatch.setattr(outputs_module.os, "rename", lambda source, target: None)
                raise Killed

        monkeypatch.setattr(outputs_module.os, "rename", renamed)

    return arrange


def replace(final: Path, text: str) -> None:
    with new_directory(final, force=True) as partial:
        (partial / "spectra.json").write_text(text)


def test_a_kill_between_two_renames_leaves_the_old_to_be_put_back(
    tmp_path: Path, killed_between, monkeypatch: pytest.MonkeyPatch
) -> None:
    final = tmp_path / "out"
    replace(final, "old")
    killed_between()
    with pytest.raises(Killed):
        replace(final, "new")
    monkeypatch.undo()
    assert not final.exists()
    with pytest.raises(OutputExistsError):
        check_output(final)  # the next command that would write there
    assert (final / "spectra.json").read_text() == "old"
    replace(final, "newest")
    assert tree(final) == {"spectra.json": b"newest"}
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_subspace_is_put_back_by_the_next_build(
    tmp_path: Path, killed_between, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = {p.name: open_adapter(p) for p in make.collection(tmp_path / "in", 3)}
    out = tmp_path / "out"
    build_subspace(sources, out, k=2)
    before = tree(out)
    killed_between()
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


def test_a_scan_lists_what_is_hidden_as_missing(tmp_path: Path) -> None:
    places = make.collection(tmp_path / "runs", 4)
    lost, doubled = places[1], places[2]
    lost.rename(former_path(lost))
    shutil.copytree(doubled, former_path(doubled))  # the new one is there: nothing is missing
    (tmp_path / "runs" / ".other.part-old").mkdir()  # holds no adapter
    catalog = scan(tmp_path / "runs")
    assert [info.name for info in catalog.usable] == ["task00", "task02", "task03"]
    (broken,) = [info for info in catalog.adapters if info.error is not None]
    assert broken.path == lost
    assert f"mv {former_path(lost)} {lost}" in str(broken.error.remedy)


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


# ---- the exchange itself


def test_an_exchange_is_of_both_or_of_none(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir()
    (one / "in").touch()
    other.symlink_to("elsewhere")
    if exchange(one, other):
        assert os.readlink(one) == "elsewhere"
        assert (other / "in").exists()
        with pytest.raises(FileNotFoundError):
            exchange(one, tmp_path / "missing")
        assert os.readlink(one) == "elsewhere"
    else:
        assert os.readlink(other) == "elsewhere"


@pytest.mark.parametrize("code", ["ENOSYS", "EINVAL", "ENOTSUP"])
def test_where_exchanging_is_not_offered_two_renames_do(
    code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def refused(one: bytes, other: bytes) -> int:
        asked.append(other)
        exchange_module.ctypes.set_errno(getattr(errno, code))
        return -1

    monkeypatch.setattr(exchange_module, "_system_call", lambda: refused)
    replace(tmp_path / "out", "old")
    replace(tmp_path / "out", "new")
    assert asked == [os.fsencode(tmp_path / "out")]
    assert tree(tmp_path / "out") == {"spectra.json": b"new"}
    assert os.listdir(tmp_path) == ["out"]


def test_an_interrupted_exchange_is_tried_again_and_one_that_fails_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    codes = [errno.EINTR, errno.EINTR, errno.EIO]

    def failing(one: bytes, other: bytes) -> int:
        exchange_module.ctypes.set_errno(codes.pop(0))
        return -1

    replace(tmp_path / "out", "old")
    monkeypatch.setattr(exchange_module, "_system_call", lambda: failing)
    with pytest.raises(OSError, match="Input/output error"):
        replace(tmp_path / "out", "new")
    assert not codes
    assert tree(tmp_path / "out") == {"spectra.json": b"old"}
    assert os.listdir(tmp_path) == ["out"]


def test_what_cannot_be_deleted_is_a_warning_and_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    final = tmp_path / "out"
    replace(final, "old")

    def refused(path: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(outputs_module, "_remove_marked", refused)
    replace(final, "new")
    monkeypatch.undo()
    assert tree(final) == {"spectra.json": b"new"}
    (left,) = strays(final)
    assert f"rm -r {left}" in caplog.text
    assert "complete and in place" in caplog.text
    replace(final, "newest")  # the next writer sweeps it
    assert os.listdir(tmp_path) == ["out"]


def test_what_others_put_into_an_output_outlives_a_kill_that_left_it_in_the_former(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    final = tmp_path / "out"
    replace(final, "old")
    (final / "notes.txt").write_text("mine")

    def killed(old: Path, new: Path) -> None:
        raise Killed

    monkeypatch.setattr(outputs_module, "_hand_over", killed)
    monkeypatch.setattr(outputs_module, "discard", lambda path: None)
    with pytest.raises(Killed), new_directory(final, keep_foreign=True) as partial:
        (partial / "spectra.json").write_text("new")
    monkeypatch.undo()
    assert tree(final) == {"spectra.json": b"new"}
    with new_directory(final, keep_foreign=True) as partial:
        (partial / "spectra.json").write_text("newest")
    assert tree(final) == {"spectra.json": b"newest", "notes.txt": b"mine"}
    assert os.listdir(tmp_path) == ["out"]


def test_what_is_no_output_is_not_put_back(tmp_path: Path) -> None:
    final = tmp_path / "out"
    os.mkfifo(former_path(final))
    assert not put_back(final)
    assert how_to_put_back(final) is None
    assert not os.path.lexists(final)
