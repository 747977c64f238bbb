"""``vlora-tui jobs``: what it prints, for people and for programs, and its exit codes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.app.conftest import Cli
from tests.app.jobs.conftest import LAYER, Gate, build_recipe, kill, state, until
from vlora_tui.jobs import JobStore, look
from vlora_tui.recipe.model import AdapterInput, Input, Recipe


@pytest.fixture
def recipe(adapters: Path, tmp_path: Path) -> Path:
    file = tmp_path / "r.toml"
    file.write_text(build_recipe(adapters, tmp_path / "out" / "s").to_toml())
    return file


def test_no_jobs_is_no_error(cli: Cli) -> None:
    found = cli("jobs")
    assert found.out == ""
    assert "no jobs in" in found.err
    assert cli("jobs", "--json").data["jobs"] == []


def test_what_stands_before_the_command_holds_for_it(
    cli: Cli, store: JobStore, recipe: Path, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "else where"
    before = ["jobs", "--state-dir", elsewhere]
    started = cli(*before, "start", recipe)
    [job] = JobStore.open(elsewhere).jobs()
    assert store.jobs() == []
    assert f"vlora-tui jobs follow {job.id} --state-dir '{elsewhere}'" in started.err
    assert cli(*before, "-q", "list").out == f"{job.id}\n"
    assert cli(*before, "--json", "follow", "last").data["id"] == job.id
    assert cli(*before, "show", "last", "--state-dir", store.state_dir, code=2).err
    cli(*before, "remove", job.id)
    assert JobStore.open(elsewhere).jobs() == []


def test_a_job_from_start_to_removal(
    cli: Cli, store: JobStore, recipe: Path, tmp_path: Path
) -> None:
    job_id = cli("jobs", "start", recipe, "-q").out.strip()
    followed = cli("jobs", "follow", job_id)
    assert "4 adapters, 6 modules" in followed.err
    assert followed.out.startswith("finished in ")
    assert str(tmp_path / "out" / "s") in followed.out

    listed = cli("jobs").out.splitlines()
    assert listed[0].split() == ["job", "state", "what", "progress", "started"]
    assert listed[1].split()[:5] == [job_id, "finished", "runs", "->", "s"]
    assert cli("jobs", "list", "-q").out == f"{job_id}\n"
    [row] = cli("jobs", "--json").data["jobs"]
    assert (row["id"], row["state"], row["kind"]) == (job_id, "finished", "build")
    assert row["outputs"] == [str(tmp_path / "out" / "s")]
    assert row["error"] is None
    assert row["can_resume"] is False
    assert row["pid"] is None

    shown = cli("jobs", "show", "last").out
    for text in (job_id, "finished", "runs -> s", str(tmp_path / "out" / "s"), row["folder"]):
        assert text in shown
    whole = cli("jobs", "show", job_id[-4:], "--json").data
    assert "[compress]" in whole["recipe"]
    assert any("written to" in line for line in whole["log"])

    assert "has finished" in cli("jobs", "resume", job_id, code=2).err
    assert "is over" in cli("jobs", "cancel", job_id, code=2).err
    assert cli("jobs", "remove", job_id).out == f"removed {job_id}\n"
    assert store.jobs() == []
    assert (tmp_path / "out" / "s" / "subspace.json").is_file()


def test_a_running_job_is_shown_cancelled_and_resumed(
    cli: Cli, store: JobStore, recipe: Path, tmp_path: Path, gate: Gate
) -> None:
    gate.close_after(LAYER, 2)
    cli("jobs", "start", recipe)
    gate.reached()
    [row] = cli("jobs", "--json").data["jobs"]
    assert row["state"] == "running"
    assert row["pid"] == store.find("last").standing().identity.pid  # type: ignore[union-attr]
    assert row["progress"]["stage"] == "build"
    assert row["memory"] > 0
    assert "build" in cli("jobs").out
    assert f"process  {row['pid']}" in cli("jobs", "show", "last").out
    assert "cannot be removed" in cli("jobs", "remove", "last", code=2).err

    asked = cli("jobs", "cancel", "last", "--no-wait")
    assert "was asked to stop" in asked.out
    gate.release()
    followed = cli("jobs", "follow", "last", code=130)
    assert "2 modules were kept for a resume" in followed.out
    assert "jobs resume" in followed.out
    gate.no_more()
    until(lambda: not store.find("last").standing().held, "it was gone")
    assert "resumed with 2 modules" in cli("jobs", "resume", "last").out
    assert cli("jobs", "follow", "last", "--json").data["attempts"] == 2


def test_cancel_says_what_became_of_the_layers(
    cli: Cli, store: JobStore, recipe: Path, tmp_path: Path, gate: Gate
) -> None:
    gate.close_after(LAYER, 1)
    cli("jobs", "start", recipe)
    gate.reached()
    kill(store.find("last"))
    listed = cli("jobs")
    assert "vanished" in listed.out
    assert "ended without reporting a result" in listed.err
    shown = cli("jobs", "show", "last").out
    assert "vanished with 1 module built" in shown
    assert "1 module was discarded" in cli("jobs", "cancel", "last", "--discard").out
    assert list((tmp_path / "out").iterdir()) == []
    assert state(store.find("last")) == "cancelled"


def test_a_failed_job_gives_its_error_and_its_exit_code(
    cli: Cli, recipe: Path, tmp_path: Path
) -> None:
    (tmp_path / "out" / "s").mkdir(parents=True)
    (tmp_path / "out" / "s" / "mine").touch()
    cli("jobs", "start", recipe)
    followed = cli("jobs", "follow", "last", code=2)
    assert "already exists" in followed.out
    assert "fix" in followed.out
    data = cli("jobs", "show", "last", "--json").data
    assert data["state"] == "failed"
    assert data["can_resume"] is True
    assert "already exists" in data["error"]["what"]


def test_a_recipe_of_inputs_alone_computes_spectra(
    cli: Cli, store: JobStore, adapters: Path, tmp_path: Path
) -> None:
    file = tmp_path / "s.toml"
    file.write_text(Recipe(Input((AdapterInput(str(adapters)),))).to_toml())
    words = ["jobs", "start", file, "-o", tmp_path / "spectra", "--device", "cpu"]
    assert cli(*words, "--json").data["kind"] == "spectra"
    cli("jobs", "follow", "last")
    assert (tmp_path / "spectra" / "spectra.json").is_file()
    assert look(store.find("last")).spectra == str(tmp_path / "spectra")


def test_where_a_recipe_writes_stands_in_the_recipe(cli: Cli, recipe: Path) -> None:
    found = cli("jobs", "start", recipe, "-o", "elsewhere", code=2)
    assert "says itself where it writes" in found.err


@pytest.mark.parametrize("words", [["show", "x"], ["follow", "x"], ["cancel", "x"]])
def test_a_job_that_is_not_there(cli: Cli, words: list[str]) -> None:
    assert "There are no jobs" in cli("jobs", *words, code=2).err


def test_a_state_directory_that_refuses_says_so(cli: Cli, recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    found = cli("jobs", "start", recipe, "--state-dir", tmp_path / "file", code=1)
    assert "state directory cannot be used" in found.err
    assert "--state-dir" in found.err
