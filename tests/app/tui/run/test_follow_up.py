"""Further work on a subspace: forms, typed words, and the jobs that come of them."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot
from textual.widgets import Static

from tests.app.tui.drive import run, until
from tests.app.tui.run.test_run import session_of
from tests.witnesses import make
from vlora_engine.catalog.read import read_manifest
from vlora_engine.compression_target import CompressionTarget
from vlora_engine.demo import BASE_FOLDER, TEXTS, make_demo_collection
from vlora_tui.cli import main
from vlora_tui.jobs import JobStore, start_action, wait
from vlora_tui.jobs.devices import devices
from vlora_tui.pipeline import events
from vlora_tui.pipeline.actions import Action, AddTask, Evaluate, Pull, RemoveTasks, read_action
from vlora_tui.recipe.model import Recipe
from vlora_tui.tui.app.app import VLoRAApp
from vlora_tui.tui.run import forms
from vlora_tui.tui.run.job_form import JobForm
from vlora_tui.tui.run.view import RunView
from vlora_tui.tui.widgets.dialogs import ListProblems, Prompt
from vlora_tui.tui.widgets.form import Form
from vlora_tui.utils.formatting import size
from vlora_tui.utils.json_text import finite


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path]]:
    """A subspace of three adapters, and four adapters; to be read only."""
    folder = tmp_path_factory.mktemp("follow")
    paths = make.collection(folder / "in", 4)
    words = ["compress", *map(str, paths[:3]), "-o", str(folder / "out"), "-k", "4", "-q"]
    assert main(words) == 0
    return folder / "out", paths


def opened(subspace: Path) -> VLoRAApp:
    app = VLoRAApp()
    app.session.manifest = read_manifest(subspace)
    return app


def started(app: VLoRAApp, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the application would start, instead of starting it."""
    told: list[Any] = []
    monkeypatch.setattr(app.jobs, "start", lambda recipe, **given: told.append((recipe, given)))
    monkeypatch.setattr(app.jobs, "start_action", lambda action, **given: told.append(action))
    return told


ACTIONS: list[Action] = [
    AddTask("/s", "/a", "a", "project", "cpu"),
    RemoveTasks("/s", ("a", "[*]")),
    Evaluate("/s", "org/base", ("/texts",), ("a",), ("/o",), 100, 50, "cpu", True),
    Evaluate("/s"),
    Pull("hf://org/name", "/here"),
]


@pytest.mark.parametrize("action", ACTIONS, ids=lambda action: action.kind)
def test_an_action_survives_its_file(action: Action) -> None:
    import json

    raw = json.dumps(finite(action.as_dict())).encode()
    assert read_action(Path("action.json"), raw) == action


def test_jobs_add_and_remove_a_task_as_the_commands_do(
    built: tuple[Path, list[Path]], tmp_path: Path
) -> None:
    """Beside a twin that the commands changed: the same tasks with the same errors and bytes."""
    import shutil

    subspace, paths = built
    ours, twin = (Path(shutil.copytree(subspace, tmp_path / name)) for name in ("ours", "twin"))
    store = JobStore.open(tmp_path / "state")
    name = paths[3].name
    view = wait(start_action(store, AddTask(str(ours), str(paths[3]), name)))
    assert str(view.state) == "finished", view.error
    added = view.last(events.TaskAdded)
    assert added is not None
    assert main(["add", str(twin), str(paths[3]), "-q"]) == 0
    expected = read_manifest(twin)
    assert read_manifest(ours).tasks == expected.tasks
    assert (added.tasks, added.error) == (4, expected.task(name).error)
    assert added.nbytes == read_manifest(ours).nbytes
    first = next(iter(expected.tasks))
    view = wait(start_action(store, RemoveTasks(str(ours), (first,))))
    removed = view.last(events.TasksRemoved)
    assert removed is not None
    assert main(["remove", str(twin), first, "-q"]) == 0
    assert read_manifest(ours).tasks == read_manifest(twin).tasks
    assert (removed.removed, removed.tasks) == ((first,), 3)
    again = wait(start_action(store, RemoveTasks(str(ours), ("*",))))
    assert again.error is not None
    assert "no task" in again.error["what"]
    assert len(read_manifest(ours).tasks) == 3


def test_quantizing_is_a_job_with_before_and_after(built: tuple[Path, list[Path]]) -> None:
    subspace, _ = built
    app = opened(subspace)
    out = subspace.parent / "packed"

    async def steps(pilot: Pilot) -> None:
        await pilot.press("3")
        await pilot.pause()
        assert "subspace" in str(app.query_one("#review", Static).content)
        await pilot.press("Q")
        await until(pilot, lambda: isinstance(app.screen, JobForm), "the form")
        asked = app.screen.fields  # type: ignore[attr-defined]
        assert isinstance(asked, forms.QuantizeFields)
        form = app.screen.query_one(Form)
        assert form.field is not None
        assert form.field.key == "packing"  # the first line that can be changed
        await pilot.press("right", "right", "down", "right", "down", "right")
        assert (asked.packing, asked.block, asked.double) == ("nf4", 128, True)
        asked.take("output", str(out))
        await pilot.press("w")
        view = app.query_one(RunView)
        await until(pilot, lambda: view.has_class("result"), "the card")
        before, after = read_manifest(subspace), read_manifest(out)
        assert after.quantization is not None
        assert after.quantization.as_json()["block_size"] == 128
        card = str(app.query_one("#card", Static).content)
        assert f"{size(before.nbytes)} → {size(after.nbytes)}" in card
        assert "blocks of 128, double quantization" in card.replace("\n          ", " ")

    run(app, steps)


def test_removing_takes_a_typed_word(
    built: tuple[Path, list[Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    app = opened(built[0])
    told = started(app, monkeypatch)

    async def steps(pilot: Pilot) -> None:
        await pilot.press("3")
        await pilot.press("minus")
        await until(pilot, lambda: isinstance(app.screen, JobForm), "the form")
        await pilot.press("w")  # nothing is chosen
        assert isinstance(app.screen, JobForm)
        await pilot.press("enter", "w")
        await until(pilot, lambda: isinstance(app.screen, Prompt), "the question")
        await pilot.press(*"remov", "enter")
        assert told == []
        await pilot.press("e", "enter")
        await pilot.pause()
        assert [type(action) for action in told] == [RemoveTasks]
        assert len(told[0].tasks) == 1

    run(app, steps)


def test_nothing_is_pushed_before_the_repository_was_typed_twice(
    built: tuple[Path, list[Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    app = opened(built[0])
    told = started(app, monkeypatch)
    monkeypatch.setattr(forms.PushFields, "has_token", property(lambda self: self.repo != "x/none"))

    async def steps(pilot: Pilot) -> None:
        await pilot.press("3", "p")
        await until(pilot, lambda: isinstance(app.screen, JobForm), "the form")
        asked = app.screen.fields  # type: ignore[attr-defined]
        await pilot.press("w")
        assert "Name a repository" in str(app.screen.query_one("#job-hint", Static).content)
        asked.take("repo", "x/none")
        await pilot.press("w")
        assert "token" in str(app.screen.query_one("#job-hint", Static).content)
        asked.take("repo", "me/mine")
        await pilot.press("w")
        await until(pilot, lambda: isinstance(app.screen, Prompt), "the question")
        assert told == []
        await pilot.press(*"me/other", "enter")
        assert told == []
        await pilot.press("escape")
        await pilot.pause()
        assert told == []
        await pilot.press("p")
        await until(pilot, lambda: isinstance(app.screen, JobForm), "the form")
        app.screen.fields.take("repo", "me/mine")  # type: ignore[attr-defined]
        await pilot.press("w")
        await until(pilot, lambda: isinstance(app.screen, Prompt), "the question")
        await pilot.press(*"me/mine", "enter")
        await pilot.pause()
        ((recipe, _),) = told
        assert isinstance(recipe, Recipe)
        assert [push.repo for push in recipe.pushes] == ["me/mine"]
        assert recipe.pushes[0].private

    run(app, steps)


def test_evaluate_takes_the_demo_s_base_and_texts_unasked(tmp_path: Path) -> None:
    demo = make_demo_collection(tmp_path / "demo").path
    out = tmp_path / "out"
    adapters = [str(demo / name) for name in ("legal", "sql")]
    assert main(["compress", *adapters, "-o", str(out), "-k", "2", "-q"]) == 0
    asked = forms.EvaluateFields.of(read_manifest(out), devices())
    assert asked.made
    assert asked.action.base == str(demo / BASE_FOLDER)
    assert asked.action.prompts == (str(demo / TEXTS),)
    rows = {row.key: row.value for row in asked.rows()}
    assert "made by the demo" in rows["base"]
    assert "ten, made" in rows["texts"]
    asked.take("base", "org/other")
    assert "made" not in {row.key: row.value for row in asked.rows()}["base"]


def test_without_the_libraries_evaluation_says_what_to_install(
    built: tuple[Path, list[Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forms, "find_spec", lambda name: None)
    asked = forms.EvaluateFields(read_manifest(built[0]), base="org/base")
    assert "pip install" in asked.problem()


def test_an_added_adapter_needs_a_place_and_a_new_name(built: tuple[Path, list[Path]]) -> None:
    subspace, paths = built
    asked = forms.AddFields(read_manifest(subspace))
    assert asked.problem()
    asked.take("adapter", str(subspace / "nowhere"))
    assert "nothing at" in asked.problem()
    asked.take("adapter", str(paths[0]))
    assert "already" in asked.problem()
    asked.take("name", "another")
    assert not asked.problem()
    assert asked.action == AddTask(str(subspace), str(paths[0]), "another")


def test_the_device_is_chosen_in_the_review_and_reaches_the_recipe(tmp_path: Path) -> None:
    session = session_of(make.collection(tmp_path / "in", 2))
    app = VLoRAApp(session=session)

    async def steps(pilot: Pilot) -> None:
        await pilot.press("3")
        app.query_one(RunView).go_to_pane("run-review")
        await pilot.press("down", "enter")
        await pilot.pause()
        compress = session.recipe().compress
        assert compress is not None
        assert compress.device == devices()[1]

    run(app, steps)


def editor(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """An editor that runs ``sed`` on the recipe; the screen is not there to be lent."""
    from contextlib import nullcontext

    path = folder / "editor"
    path.write_text(f"#!/bin/sh\nsed -i.bak -e '{script}' \"$1\"\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("VISUAL", str(path))
    monkeypatch.setattr(VLoRAApp, "suspend", lambda self: nullcontext())


def test_the_recipe_comes_back_from_the_editor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = session_of(make.collection(tmp_path / "in", 2))
    session.choose(CompressionTarget("auto", max_error=0.05))
    app = VLoRAApp(session=session)
    told = started(app, monkeypatch)

    async def steps(pilot: Pilot) -> None:
        await pilot.press("3")
        editor(tmp_path, monkeypatch, "s/max_error = 0.05/max_error = 0.1/")
        await pilot.press("r")
        await pilot.pause()
        assert session.choosing.max_error == 0.1
        assert "10 %" in str(app.query_one("#review", Static).content)
        editor(tmp_path, monkeypatch, "s/max_error = 0.1/max_error = 7/")
        await pilot.press("r")
        await until(pilot, lambda: isinstance(app.screen, ListProblems), "what is wrong")
        problems = app.screen.problems  # type: ignore[attr-defined]
        assert "max_error" in problems[0][0]
        assert any("line" in line for line in problems[0][1])
        await pilot.press("x")
        await pilot.pause()
        assert session.choosing.max_error == 0.1
        packed = '$ a\\\n[quantize]\\\nmethod = "nf4"\\\nblock_size = 32'
        editor(tmp_path, monkeypatch, packed)
        await pilot.press("r")
        await pilot.pause()
        review = str(app.query_one("#review", Static).content)
        assert "nf4, blocks of 32" in review
        await pilot.press("w")
        await pilot.pause()
        ((recipe, _),) = told
        assert recipe.quantize is not None
        assert recipe.quantize.block_size == 32

    run(app, steps)
