"""Nothing is ever half there."""

from __future__ import annotations

import errno
import os

import pytest

from vlora_engine.errors import OutputExistsError, StorageError
from vlora_engine.utils import outputs
from vlora_engine.utils.files import directory_bytes, dump_json, sha256_file, write_file, write_json
from vlora_engine.utils.output_checks import check_output
from vlora_engine.utils.outputs import new_directory


def names(path):
    return sorted(p.name for p in path.iterdir())


def test_a_directory_appears_whole(tmp_path):
    final = tmp_path / "deep" / "out"
    with new_directory(final) as partial:
        (partial / "a").write_text("1")
        assert not final.exists()

    assert names(final) == ["a"]
    assert names(tmp_path / "deep") == ["out"]


@pytest.mark.parametrize("force", [False, True])
def test_a_failure_leaves_what_was_there(force, tmp_path):
    final = tmp_path / "out"
    if force:
        final.mkdir()
        (final / "spectra.json").write_text("1")

    def interrupted():
        with new_directory(final, force=force) as partial:
            (partial / "a").write_text("1")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()

    assert names(tmp_path) == (["out"] if force else [])
    assert not force or names(final) == ["spectra.json"]


def test_force_replaces_without_ghosts(tmp_path):
    final = tmp_path / "out"
    final.mkdir()
    (final / "spectra.json").write_text("1")

    with pytest.raises(OutputExistsError, match=r"(?s)nothing was written.*--force"):
        check_output(final)
    with new_directory(final, force=True) as partial:
        (partial / "a").write_text("1")

    assert names(final) == ["a"]
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("place", ["folder", "file", "ours with more in it"])
def test_force_deletes_nothing_that_others_wrote(place, tmp_path):
    final = tmp_path / "out"
    if place == "file":
        final.write_text("thesis")
    else:
        final.mkdir()
        (final / "thesis.txt").write_text("thesis")
    if place == "ours with more in it":
        (final / "subspace.json").write_text("{}")

    with (
        pytest.raises(OutputExistsError, match=r"(?s)did not write.*move this away yourself"),
        new_directory(final, force=True) as partial,
    ):
        (partial / "a").write_text("1")

    assert (final if place == "file" else final / "thesis.txt").read_text() == "thesis"
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize(
    "place",
    ["tasks/thesis.txt", "layers/x/thesis.txt", "vectors/thesis.txt", "README.md/thesis.txt"],
)
def test_force_deletes_nothing_in_the_folders_of_an_output(place, tmp_path):
    final = tmp_path / "out"
    (final / place).parent.mkdir(parents=True)
    (final / "subspace.json").write_text("{}")
    (final / place).write_text("thesis")

    with pytest.raises(OutputExistsError, match="did not write"):
        check_output(final, force=True)

    (final / "subspace.json").unlink()
    (final / "share_config.json").write_text('{"written_by": "vlora-tui"}')
    with pytest.raises(OutputExistsError, match="did not write"):
        check_output(final, force=True)


def test_what_others_wrote_into_a_peers_form_is_not_ours(tmp_path):
    (tmp_path / "adapters" / "a").mkdir(parents=True)
    (tmp_path / "share_config.json").write_text('{"written_by": "vlora-tui"}')
    (tmp_path / "adapters" / "a" / "loadings.safetensors").write_text("")
    check_output(tmp_path, force=True)

    (tmp_path / "adapters" / "a" / "thesis.txt").write_text("thesis")

    with pytest.raises(OutputExistsError, match="did not write"):
        check_output(tmp_path, force=True)


def test_renewing_keeps_what_others_put_beside(tmp_path):
    final = tmp_path / "out"
    (final / ".git").mkdir(parents=True)
    (final / ".git" / "HEAD").write_text("main")
    (final / "subspace.json").write_text("old")
    (final / "tasks").mkdir()
    (final / "tasks" / "a.safetensors").write_text("old")
    (final / "tasks" / "notes.txt").write_text("mine")
    left = tmp_path / ".out.part-old"  # of a renewal that was killed before its last step
    left.mkdir()
    (left / "notes.txt").write_text("mine")
    (left / "subspace.json").write_text("older")

    with new_directory(final, keep_foreign=True) as partial:
        (partial / "subspace.json").write_text("new")

    assert names(final) == [".git", "notes.txt", "subspace.json", "tasks"]
    assert names(final / "tasks") == ["notes.txt"]
    assert (final / "subspace.json").read_text() == "new"
    assert (final / ".git" / "HEAD").read_text() == "main"
    assert names(tmp_path) == ["out"]


def test_force_takes_the_link_away_not_what_it_leads_to(tmp_path):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "a").write_text("1")
    (tmp_path / "out").symlink_to(tmp_path / "precious")

    with new_directory(tmp_path / "out", force=True):
        pass

    assert names(tmp_path / "precious") == ["a"]
    assert not (tmp_path / "out").is_symlink()


def test_an_empty_directory_is_no_output_yet(tmp_path):
    (tmp_path / "out").mkdir()

    with new_directory(tmp_path / "out") as partial:
        (partial / "a").write_text("1")

    assert names(tmp_path / "out") == ["a"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_disk_that_refuses_is_said_so_and_leaves_nothing(code, tmp_path, monkeypatch):
    def refuse(path):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(outputs, "fsync", refuse)

    with (
        pytest.raises(StorageError, match=f"cannot be written: {os.strerror(code)}"),
        new_directory(tmp_path / "out") as partial,
    ):
        (partial / "a").write_text("1")

    assert names(tmp_path) == []


def test_files_are_replaced_in_one_step(tmp_path, monkeypatch):
    write_json(tmp_path / "a.json", {"ü": 1})
    assert (tmp_path / "a.json").read_text() == '{"ü":1}\n'

    def refuse(*_):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(StorageError, match=r"(?s)full.*free some space"):
        write_file(tmp_path / "a.json", "new")

    assert names(tmp_path) == ["a.json"]
    assert (tmp_path / "a.json").read_text() == '{"ü":1}\n'


def test_json_is_the_same_everywhere_and_never_nan():
    assert dump_json({"b": 1, "a": [1.5]}) == '{"b":1,"a":[1.5]}\n'
    with pytest.raises(ValueError, match="not JSON compliant"):
        dump_json({"a": float("nan")})


def test_bytes_and_hashes(tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "a").write_bytes(b"abc")
    (tmp_path / "b").write_bytes(b"12345")

    assert directory_bytes(tmp_path) == 8
    assert sha256_file(tmp_path / "d" / "a").startswith("ba7816bf8f01cfea")
    with pytest.raises(StorageError):
        sha256_file(tmp_path / "none")


def test_a_directory_that_is_closed_to_writing_is_not_replaced(tmp_path, monkeypatch):
    final = tmp_path / "out"
    final.mkdir()
    (final / "subspace.json").write_text("old")
    monkeypatch.setattr(outputs.os, "access", lambda path, mode: False)  # root may write anywhere

    with (
        pytest.raises(StorageError, match="cannot be written: Permission denied"),
        new_directory(final, force=True) as partial,
    ):
        (partial / "subspace.json").write_text("new")

    assert (final / "subspace.json").read_text() == "old"
    assert names(tmp_path) == ["out"]


def test_what_is_in_the_place_of_a_partial_is_named(tmp_path):
    (tmp_path / ".out.part-run").write_text("mine")

    with (
        pytest.raises(StorageError, match=r"(?s)prepared.*remove it: rm .*\.out\.part-run"),
        new_directory(tmp_path / "out"),
    ):
        pass

    assert (tmp_path / ".out.part-run").read_text() == "mine"
