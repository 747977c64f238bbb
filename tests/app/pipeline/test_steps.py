"""The steps that follow a subspace: packed after it is compressed, converted, pushed."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.app.conftest import Cli
from tests.app.jobs.conftest import build_recipe
from tests.engine.test_shared_subspace import files
from tests.witnesses import make
from tests.witnesses.dense import dense_error
from tests.witnesses.hub import TOKEN, Hub
from vlora_engine import SharedSubspace, load_adapter
from vlora_engine.catalog.read import read_manifest
from vlora_engine.quantization.packing import quantization
from vlora_tui.cli.progress import Watcher
from vlora_tui.jobs.store import outputs_of, title_of
from vlora_tui.pipeline import events
from vlora_tui.pipeline.disk_space import needs_of
from vlora_tui.pipeline.inputs import gather
from vlora_tui.pipeline.run import Run
from vlora_tui.pipeline.unfinished import (
    built_path,
    forget_built,
    is_yet_to_be_packed,
    mark_built,
    unfinished_build,
)
from vlora_tui.recipe.model import Recipe
from vlora_tui.recipe.reader import load_recipe, parse_recipe
from vlora_tui.recipe.resolve import resolve

PACKED = "[quantize]\nbits = 4\nblock_size = 32\n"


def recipe_file(folder: Path, text: str) -> Path:
    file = folder / "recipe.toml"
    file.write_text(text)
    return file


def compressing(runs: Path, more: str = "", *, out: str = "s") -> str:
    return (
        f'[input]\nadapters = ["{runs}"]\n[compress]\nk = 8\n[output]\nsubspace = "{out}"\n{more}'
    )


def of_subspace(subspace: Path, more: str) -> str:
    return f'[input]\nsubspace = "{subspace}"\n{more}'


@pytest.fixture
def signal_at(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """``signal_at(stage)``: the process gets SIGTERM when that stage moves first."""
    todo: list[str] = []
    original = Watcher.__call__

    def watch(self: Watcher, event: events.Event) -> None:
        if todo and isinstance(event, events.Progress) and event.stage == todo[0]:
            todo.pop()
            os.kill(os.getpid(), signal.SIGTERM)
        original(self, event)

    monkeypatch.setattr(Watcher, "__call__", watch)
    yield todo.append
    assert not todo, "the signal was never sent"


# packing


def test_quantize_packs_what_compress_has_made(cli: Cli, runs: Path, tmp_path: Path) -> None:
    place = tmp_path / "events.jsonl"
    text = compressing(runs, PACKED + '[[export]]\npath = "out/{task}"\n')
    run = ("run", recipe_file(tmp_path, text), "--headless", "--events", place)
    told = cli(*run, "--json")
    out = tmp_path / "s"
    assert read_manifest(out).quantization == quantization("symmetric", 4, block_size=32)
    assert sorted(os.listdir(tmp_path)) == ["events.jsonl", "out", "recipe.toml", "s"]
    errors = told.data["subspace"]["task_errors"]
    for name, error in errors.items():
        true = dense_error(load_adapter(runs / name), load_adapter(tmp_path / "out" / name))
        assert error == pytest.approx(true, rel=1e-3), "measured on the adapters, as packed"
    assert told.data["subspace"]["bounded"] == []
    rows = [json.loads(line) for line in place.read_text().splitlines()]
    assert [row["path"] for row in rows if row["type"] == "subspace_written"] == [str(out)]
    before = next(row for row in rows if row.get("code") == "before-packing")
    assert "Before it is packed" in before["text"]

    cli("compress", runs, "-k", "8", "-o", tmp_path / "plain")
    flags = ("--bits", "4", "--block-size", "32")
    cli("quantize", tmp_path / "plain", "-o", tmp_path / "packed", *flags)
    assert files(out) == files(tmp_path / "packed"), "the same as the two commands"


def test_a_coded_collection_is_packed_to_the_bytes_of_its_adapters(
    cli: Cli, runs: Path, tmp_path: Path
) -> None:
    """At most the bytes that A and B take so; or it stays as it is, and that is said."""
    words = ("compress", runs, "--method", "auto", "--max-error", "0.001")
    cli(*words, "-o", tmp_path / "plain")
    told = cli(*words, "--quantize", "int4", "-o", tmp_path / "s").err
    assert sorted(os.listdir(tmp_path)) == ["plain", "s"]
    plain, packed = (read_manifest(tmp_path / name) for name in ("plain", "s"))
    assert packed.method == "auto"
    if "left as it is" in told:
        assert packed.nbytes == plain.nbytes
    else:
        factors = sum(task.factor_elements for task in packed.tasks.values())
        assert "recoded" in told
        around = 3000  # the index of so small a collection
        assert packed.nbytes < min(plain.nbytes, factors * (0.5 + 2 / 64) + around)


@pytest.mark.parametrize("stage", ["build", "quantize"])
def test_stopped_on_the_way_the_same_again_goes_on(
    cli: Cli, runs: Path, tmp_path: Path, signal_at: Any, stage: str
) -> None:
    run = ("run", "--headless", recipe_file(tmp_path, compressing(runs, PACKED)))
    signal_at(stage)
    place = tmp_path / "e"
    stopped = cli(*run, "--events", place, code=130)
    assert "run the same again" in stopped.err
    assert json.loads(place.read_text().splitlines()[-1])["resumable"] is True
    assert not (tmp_path / "s").exists()
    again = cli(*run)
    assert "by a run that was stopped" in again.err
    assert sorted(os.listdir(tmp_path)) == ["e", "recipe.toml", "s"], "and nothing else is left"
    other = tmp_path / "other"
    other.mkdir()
    cli("run", "--headless", recipe_file(other, compressing(runs, PACKED)))
    names = ["basis.safetensors", "tasks/task00.safetensors"]
    for name in names:
        assert (tmp_path / "s" / name).read_bytes() == (other / "s" / name).read_bytes()


def test_what_was_built_of_other_adapters_is_not_packed(
    cli: Cli, tmp_path: Path, signal_at: Any
) -> None:
    runs = tmp_path / "runs"
    make.collection(runs, 3)
    run = ("run", "--headless", recipe_file(tmp_path, compressing(runs, PACKED)))
    signal_at("quantize")
    cli(*run, code=130)
    make.write(runs / "task01", make.factors(seed=77))
    told = cli(*run, "--json")
    assert "packed now" not in told.err
    error = told.data["subspace"]["task_errors"]["task01"]
    true = dense_error(
        load_adapter(runs / "task01"), SharedSubspace.load(tmp_path / "s").reconstruct("task01")
    )
    assert error == pytest.approx(true, rel=1e-3)


def test_another_command_sweeps_what_was_not_packed(
    cli: Cli, runs: Path, tmp_path: Path, signal_at: Any
) -> None:
    signal_at("quantize")
    cli("run", "--headless", recipe_file(tmp_path, compressing(runs, PACKED)), code=130)
    assert len([name for name in os.listdir(tmp_path) if ".part-" in name]) == 1
    cli("compress", runs, "-k", "4", "-o", tmp_path / "s")
    assert sorted(os.listdir(tmp_path)) == ["recipe.toml", "s"]


def test_an_output_that_exists_is_replaced_in_one_step_and_only_by_force(
    cli: Cli, runs: Path, tmp_path: Path
) -> None:
    run = ("run", "--headless", recipe_file(tmp_path, compressing(runs, PACKED)))
    cli("compress", runs, "-k", "4", "-o", tmp_path / "s")
    before = files(tmp_path / "s")
    assert "already exists" in cli(*run, code=2).err
    assert files(tmp_path / "s") == before
    cli(*run, "--force")
    assert read_manifest(tmp_path / "s").quantization is not None


def test_two_runs_do_not_write_one_output(cli: Cli, runs: Path, tmp_path: Path) -> None:
    from threading import Thread

    from vlora_engine.utils.locks import writing

    run = ("run", "--headless", recipe_file(tmp_path, compressing(runs, PACKED)))
    found: list[Any] = []
    with writing(tmp_path / "s"):
        other = Thread(target=lambda: found.append(cli(*run, code=1)))
        other.start()
        other.join()
    assert "Another process is writing this output" in found[0].err
    assert str(tmp_path / "s") in found[0].err


def test_a_job_knows_what_it_has_built(tmp_path: Path, runs: Path) -> None:
    recipe = parse_recipe(compressing(runs, PACKED, out=f"{tmp_path}/s"))
    built = built_path(recipe, "j1")
    assert built == tmp_path / ".s.part-j1-built"
    assert unfinished_build(recipe, "j1") == tmp_path / ".s.part-j1"
    built.mkdir()
    assert not is_yet_to_be_packed(recipe, "j1"), "half of it, as far as anybody knows"
    assert recipe.compress is not None
    mark_built(built, recipe.compress)
    assert unfinished_build(recipe, "j1") == built
    other = parse_recipe(recipe.to_toml(), given={"compress": {"k": 3}})
    assert unfinished_build(other, "j1") == tmp_path / ".s.part-j1"
    forget_built(built)
    assert not built.exists()
    assert built_path(build_recipe(runs, tmp_path / "s"), "j1") == tmp_path / "s"


# converting


@pytest.mark.parametrize("to", ["peft", "mlx"])
def test_several_adapters_are_converted(cli: Cli, runs: Path, tmp_path: Path, to: str) -> None:
    place = tmp_path / "events.jsonl"
    text = f'[input]\nadapters = ["{runs}"]\n'
    text += f'[[convert]]\nto = "{to}"\npath = "c"\ntasks = ["task0[0-2]"]\n'
    text += f'[[convert]]\nto = "{to}"\npath = "d/{{task}}-x"\ntasks = ["task03"]\n'
    run = ("run", "--headless", recipe_file(tmp_path, text))
    data = cli(*run, "--json", "--events", place).data
    paths = [str(tmp_path / "c" / f"task0{i}") for i in range(3)] + [
        str(tmp_path / "d" / "task03-x")
    ]
    assert data["outputs"] == paths
    assert [(row["name"], row["to"], row["path"]) for row in data["converted"]] == [
        (f"task0{i}", to, path) for i, path in enumerate(paths)
    ]
    for i, path in enumerate(paths):
        assert dense_error(load_adapter(runs / f"task0{i}"), load_adapter(path)) < 1e-6
    types = [json.loads(line)["type"] for line in place.read_text().splitlines()]
    assert types.count("converted") == 4
    again = cli(*run, "--json").data["converted"]
    assert [row["skipped"] for row in again] == [True] * 4, "the same stays as it is"
    make.write(tmp_path / "c" / "task01", make.factors(seed=5))
    assert "Another adapter is in the place" in cli(*run, code=2).err


def test_a_subspace_is_converted_after_it_is_made(cli: Cli, runs: Path, tmp_path: Path) -> None:
    text = compressing(
        runs,
        '[[convert]]\nto = "lorashare"\npath = "share"\n'
        '[[convert]]\nto = "vlora-dev"\npath = "vlora"\ntasks = ["task00", "task02"]\n'
        '[[convert]]\nto = "mlx"\npath = "mlx"\n'
        '[[convert]]\nto = "peft"\npath = "one"\ntasks = ["task01"]\nsource = "input"\n',
    )
    cli("run", "--headless", recipe_file(tmp_path, text))
    made = SharedSubspace.load(tmp_path / "s")
    share = SharedSubspace.load(tmp_path / "share")
    assert list(share.tasks) == list(made.tasks)
    assert list(SharedSubspace.load(tmp_path / "vlora").tasks) == ["task00", "task02"]
    for name in made.tasks:
        mlx = load_adapter(tmp_path / "mlx" / name)
        assert dense_error(made.reconstruct(name), mlx) < 1e-5
        assert dense_error(made.reconstruct(name), share.reconstruct(name)) < 1e-4
    assert dense_error(load_adapter(runs / "task01"), load_adapter(tmp_path / "one")) < 1e-7


def test_a_subspace_of_another_library_is_converted(cli: Cli, built: Path, tmp_path: Path) -> None:
    first = of_subspace(built, '[[convert]]\nto = "lorashare"\npath = "share"\n')
    cli("run", "--headless", recipe_file(tmp_path, first))
    back = of_subspace(tmp_path / "share", '[[convert]]\nto = "subspace"\npath = "ours"\n')
    cli("run", "--headless", recipe_file(tmp_path, back))
    assert list(SharedSubspace.load(tmp_path / "ours").tasks) == list(read_manifest(built).tasks)


WRONG = [
    ('[[convert]]\nto = "subspace"\npath = "c"\n', "of the format subspace already"),
    ('[[convert]]\nto = "mlx"\npath = "c"\ntasks = ["task9"]\n', "There is no task 'task9'"),
    ('[[convert]]\nto = "vlora-dev"\npath = "c"\ntasks = ["task00"]\n', "two adapters or more"),
    ('[[convert]]\nto = "mlx"\npath = "{built}"\n', "lies inside another path"),
    ('[[convert]]\nto = "peft"\npath = "c"\n[[convert]]\nto = "mlx"\npath = "c"\n', "one place"),
    ('[[convert]]\nto = "mlx"\npath = "c"\n[[export]]\npath = "c/{{task}}"\n', "one place"),
    ('[[push]]\nrepo = "me/x"\npath = "nowhere"\n', "no such file"),
    ('[[push]]\nrepo = "me/x"\ntasks = ["task9"]\n', "There is no task 'task9'"),
]


@pytest.mark.parametrize(("more", "words"), WRONG)
def test_what_cannot_work_is_refused_before_anything_is_written(
    cli: Cli, built: Path, tmp_path: Path, more: str, words: str
) -> None:
    file = recipe_file(tmp_path, of_subspace(built, more.format(built=built)))
    for flags in ((), ("--dry-run",)):
        assert words in cli("run", "--headless", file, *flags, code=2).err
    assert os.listdir(tmp_path) == ["recipe.toml"]


def test_what_would_be_lost_is_refused_and_allowed(cli: Cli, tmp_path: Path) -> None:
    tensors = make.factors()
    tensors["base_model.model.score.weight"] = next(iter(tensors.values()))[:2].clone()
    make.write(tmp_path / "in" / "head", tensors)
    text = f'[input]\nadapters = ["{tmp_path}/in"]\n[[convert]]\nto = "mlx"\npath = "c"\n'
    file = recipe_file(tmp_path, text)
    assert "cannot hold all of this" in cli("run", "--headless", file, code=2).err
    assert not (tmp_path / "c").exists()
    recipe_file(tmp_path, text + "allow_loss = true\n")
    assert "note:" in cli("run", "--headless", file).err
    assert (tmp_path / "c" / "adapters.safetensors").is_file()


def test_conversions_stop_between_two_and_go_on(
    cli: Cli, built: Path, tmp_path: Path, signal_at: Any
) -> None:
    file = recipe_file(tmp_path, of_subspace(built, '[[convert]]\nto = "mlx"\npath = "c"\n'))
    signal_at("convert")
    cli("run", "--headless", file, code=130)
    assert os.listdir(tmp_path / "c") == ["task00"]
    rows = cli("run", "--headless", file, "--json").data["converted"]
    assert [row["skipped"] for row in rows] == [True, False, False, False]


def test_the_command_stops_and_leaves_nothing(
    cli: Cli, built: Path, tmp_path: Path, signal_at: Any
) -> None:
    signal_at("convert")
    cli("convert", built, "--to", "peft", "-o", tmp_path / "c", code=130)
    assert os.listdir(tmp_path) == []


def test_a_dry_run_names_all_places(cli: Cli, runs: Path, tmp_path: Path) -> None:
    more = PACKED + '[[convert]]\nto = "mlx"\npath = "c"\n[[push]]\nrepo = "me/x@next"\n'
    more += '[[push]]\nrepo = "me/y"\npath = "c"\n'
    file = recipe_file(tmp_path, compressing(runs, more))
    data = cli("run", "--headless", file, "--dry-run", "--json").data
    places = [tmp_path / "s", *(tmp_path / "c" / f"task0{i}" for i in range(4))]
    assert data["outputs"] == [str(place) for place in places]
    assert data["pushes"] == [
        {"path": str(tmp_path / "s"), "to": "hf://me/x@next"},
        {"path": str(tmp_path / "c"), "to": "hf://me/y"},
    ]
    assert "Would push" in cli("run", "--headless", file, "--dry-run").out
    assert os.listdir(tmp_path) == ["recipe.toml"]


def test_the_room_that_steps_take_is_asked_for(runs: Path, built: Path, tmp_path: Path) -> None:
    def needs(text: str) -> dict[str, int]:
        file = recipe_file(tmp_path, text)
        recipe = resolve(load_recipe(file))
        return {need.path.name: need.nbytes for need in needs_of(recipe, gather(recipe))}

    plain, packed = needs(compressing(runs)), needs(compressing(runs, PACKED))
    assert plain == packed
    found = needs(of_subspace(built, '[[convert]]\nto = "mlx"\npath = "c"\ntasks = ["task00"]\n'))
    size = sum(path.stat().st_size for path in (runs / "task00").iterdir())
    assert size / 2 < found["c"] < 2 * size
    pushed = needs(of_subspace(built, '[[push]]\nrepo = "me/x"\nadapters = true\n'))
    assert sum(pushed.values()) > 3 * size / 2


# pushing


def test_everything_is_pushed_last(
    cli: Cli, hub: Hub, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    place = tmp_path / "events.jsonl"
    more = (
        '[[push]]\nrepo = "me/subspace"\nprivate = true\nmessage = "First."\n'
        '[[push]]\nrepo = "me/adapters"\npath = "out"\n'
        '[[push]]\nrepo = "me/tasks"\ntasks = ["task0[12]"]\nrevision = "next"\n'
        '[[export]]\npath = "out/{task}"\n'
    )
    file = recipe_file(tmp_path, compressing(runs, more))
    data = cli("run", "--headless", file, "--json", "--events", place).data
    assert hub.repos["me/subspace"].private
    assert "subspace.json" in hub.repos["me/subspace"].files
    folders = {name.rpartition("/")[0] for name in hub.repos["me/adapters"].files}
    assert {f"task0{i}" for i in range(4)} <= folders
    branch = hub.repos["me/tasks"]
    assert set(branch.commits[branch.refs["next"]]) >= {"task01/adapter_config.json"}
    assert [row["to"] for row in data["pushed"]] == [
        "hf://me/subspace", "hf://me/adapters", "hf://me/tasks@next",
    ]  # fmt: skip
    assert data["outputs"][-3:] == [row["commit"] for row in data["pushed"]]
    meant = SharedSubspace.load(tmp_path / "s").reconstruct("task02")
    assert dense_error(meant, load_adapter("hf://me/adapters/task02")) < 1e-7
    text = place.read_text()
    assert TOKEN not in text
    assert text.count('"type": "pushed"') == 3


def test_a_subspace_that_is_there_is_pushed(
    cli: Cli, hub: Hub, built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    file = recipe_file(tmp_path, of_subspace(built, '[[push]]\nrepo = "me/x"\n'))
    told = cli("run", "--headless", file)
    assert "pushed" in told.out
    assert (
        hub.repos["me/x"].files["basis.safetensors"] == (built / "basis.safetensors").read_bytes()
    )
    found = cli("run", "--headless", file, code=2).err
    assert "holds files already" in found
    cli("run", "--headless", file, "--force")


@pytest.mark.parametrize(
    ("token", "repo", "words", "code"),
    [
        (None, "me/x", "takes a token", 2),
        ("hf_wrongTokenOfThisTest", "me/x", "does not accept the token", 2),
        (TOKEN, "me/full", "holds files already", 2),
    ],
)
def test_what_the_hub_refuses_is_refused_before_the_work(
    cli: Cli, hub: Hub, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    token: str | None, repo: str, words: str, code: int,
) -> None:  # fmt: skip
    hub.add("me/full", runs / "task00")
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
    file = recipe_file(tmp_path, compressing(runs, f'[[push]]\nrepo = "{repo}"\n'))
    found = cli("run", "--headless", file, code=code)
    assert words in found.err
    assert token is None or token not in found.err
    assert os.listdir(tmp_path) == ["recipe.toml"]


def test_without_a_network_it_says_so(
    cli: Cli, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    file = recipe_file(tmp_path, compressing(runs, '[[push]]\nrepo = "me/x"\n'))
    assert "HF_HUB_OFFLINE" in cli("run", "--headless", file, code=1).err
    assert os.listdir(tmp_path) == ["recipe.toml"]


def test_a_push_that_fails_after_the_work_says_how_to_send_it_later(
    cli: Cli, hub: Hub, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.broken["/commit/"] = 500
    file = recipe_file(tmp_path, compressing(runs, '[[push]]\nrepo = "me/x"\n'))
    found = cli("run", "--headless", file, code=1)
    assert "written before, and complete" in found.err
    assert f"vlora-tui push {tmp_path / 's'} me/x" in found.err
    assert (tmp_path / "s" / "subspace.json").is_file()


def test_an_upload_stops_before_the_commit(
    cli: Cli, hub: Hub, built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    signal_at: Any,
) -> None:  # fmt: skip
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    file = recipe_file(tmp_path, of_subspace(built, '[[push]]\nrepo = "me/x"\n'))
    signal_at("upload")
    assert "before the commit" in cli("run", "--headless", file, code=130).err
    assert "subspace.json" not in hub.repos["me/x"].files


def test_what_was_done_is_not_done_again(
    hub: Hub, built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    more = '[[convert]]\nto = "lorashare"\npath = "c"\n[[push]]\nrepo = "me/x"\n'
    recipe = load_recipe(recipe_file(tmp_path, of_subspace(built, more)))
    assert title_of(recipe) == "subspace -> c and 1 more"
    assert title_of(Recipe(recipe.input, pushes=recipe.pushes)) == "subspace -> x"
    assert outputs_of(recipe, None) == [str(tmp_path / "c")]
    seen: list[events.Event] = []
    Run(recipe, seen.append).execute()
    sent = len(hub.asked("POST .*/commit/"))
    from vlora_tui.jobs.watch import TimedEvent, written_paths

    done = written_paths([TimedEvent(i, 0.0, event) for i, event in enumerate(seen)])
    assert done == {str(tmp_path / "c"), "hf://me/x"}
    again: list[events.Event] = []
    Run(recipe, again.append, done=frozenset(done)).execute()
    assert len(hub.asked("POST .*/commit/")) == sent
    assert [e.type for e in again] == ["started", "finished"]
