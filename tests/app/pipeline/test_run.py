"""Running recipes: events as they come, stopping and going on, one engine behind every command."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.app.conftest import Cli
from tests.witnesses.files import tree
from vlora_engine.catalog.open import open_adapter
from vlora_engine.compression_target import CompressionTarget
from vlora_tui.cli.progress import Watcher
from vlora_tui.pipeline import events
from vlora_tui.pipeline.forecast import k_text
from vlora_tui.pipeline.run import Run
from vlora_tui.pipeline.task_patterns import match_tasks
from vlora_tui.recipe.reader import load_recipe


@pytest.fixture
def recipe(runs: Path, tmp_path: Path) -> Path:
    """A recipe that compresses, exports two tasks and merges twice."""
    file = tmp_path / "recipe.toml"
    file.write_text(
        f"""\
[input]
adapters = ["{runs}/task0[0-2]", {{ path = "{runs}/task03", name = "the fourth" }}]

[compress]
k = 8

[output]
subspace = "out/subspace"

[[export]]
tasks = ["the *", "task00"]
path = "out/adapters/{{task}}"

[[merge]]
adapters = ["task00", "the fourth"]
weights = [0.25, 0.75]
path = "out/merged"

[[merge]]
adapters = ["task0*"]
source = "subspace"
method = "ties"
density = 0.7
path = "out/ties"
"""
    )
    return file


def lines_of(place: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in place.read_text("utf-8").splitlines()]


def test_a_recipe_runs_whole(cli: Cli, recipe: Path, runs: Path, tmp_path: Path) -> None:
    place = tmp_path / "events.jsonl"
    data = cli("run", recipe, "--headless", "--json", "--events", place).data
    out = tmp_path / "out"
    assert data["outputs"] == [
        str(out / "subspace"),
        str(out / "adapters" / "task00"),
        str(out / "adapters" / "the-fourth"),
        str(out / "merged"),
        str(out / "ties"),
    ]
    assert data["subspace"]["tasks"] == ["task00", "task01", "task02", "the fourth"]
    assert [row["task"] for row in data["exported"]] == ["task00", "the fourth"]
    assert [row["adapters"] for row in data["merged"]] == [
        ["task00", "the fourth"],
        ["task00", "task01", "task02"],
    ]
    for path in data["outputs"][1:]:
        assert open_adapter(path).modules

    rows = lines_of(place)
    assert [row["seq"] for row in rows] == list(range(1, len(rows) + 1))
    types = [row["type"] for row in rows if row["type"] != "progress"]
    expected = ["started", "adapters_found", "checked"] + ["layer_done"] * 4
    expected += (
        ["subspace_made", "subspace_written"]
        + ["exported", "verified"] * 2
        + ["merged", "verified"] * 2
    )
    expected += ["finished"]
    assert types == expected
    assert len(list(events.read_events(place))) == len(rows)
    started = rows[0]
    assert started["schema"] == "vlora-tui/events"
    assert str(runs / "task01") in started["recipe"]  # patterns resolved, paths absolute


def test_flags_and_a_file_do_the_same(cli: Cli, runs: Path, tmp_path: Path) -> None:
    flags = ["-k", "5", "-o", tmp_path / "a", "--method", "columns"]
    cli("run", runs, *flags, "--headless")
    printed = cli("compress", runs, *flags, "--print-recipe").out
    file = tmp_path / "same.toml"
    file.write_text(printed.replace(str(tmp_path / "a"), "b"))
    cli("run", file, "--headless")
    first, second = (
        {p.relative_to(d): p.read_bytes() for p in sorted(d.rglob("*")) if p.is_file()}
        for d in (tmp_path / "a", tmp_path / "b")
    )
    assert first == second


def test_print_recipe_prints_what_reads_back(cli: Cli, recipe: Path, tmp_path: Path) -> None:
    printed = cli("run", recipe, "--print-recipe").out
    again = tmp_path / "elsewhere" / "copy.toml"
    again.parent.mkdir()
    again.write_text(printed)
    assert cli("run", again, "--print-recipe").out == printed
    assert load_recipe(again).output == str(tmp_path / "out" / "subspace")


def test_flags_go_before_what_a_recipe_file_says(cli: Cli, recipe: Path, tmp_path: Path) -> None:
    printed = cli("run", recipe, "--print-recipe", "--max-error", "0.2", "-o", "elsewhere").out
    file = tmp_path / "changed.toml"
    file.write_text(printed)
    changed = load_recipe(file)
    assert changed.compress is not None
    assert changed.compress.target == CompressionTarget(max_error=0.2)
    assert changed.output == str(Path.cwd() / "elsewhere")
    assert changed.exports == load_recipe(recipe).exports


@pytest.mark.parametrize("words", [[], ["run", "x"], ["run", "x.toml", "-k", "3"]])
def test_what_needs_the_interface_names_the_headless_form(cli: Cli, words: list[str]) -> None:
    found = cli(*words, code=2)
    assert found.out == ""
    assert "run --headless" in found.err


def test_a_failure_is_the_last_event(cli: Cli, broken: Path, tmp_path: Path) -> None:
    place = tmp_path / "events.jsonl"
    words = ["run", broken, "-k", "2", "-o", tmp_path / "s", "--headless", "--events", place]
    cli(*words, code=2)
    rows = lines_of(place)
    assert rows[-1]["type"] == "failed"
    assert rows[-1]["exit_code"] == 2
    assert "cannot be used" in rows[-1]["error"]["what"]
    cli(*words, "--skip-bad")
    rows = lines_of(place)
    skipped = [row for row in rows if row["type"] == "adapter_skipped"]
    assert {row["name"] for row in skipped} == {"with-nan", "cut-short"}
    assert all(row["error"]["what"] for row in skipped)
    checked = next(row for row in rows if row["type"] == "checked")
    assert (checked["good"], checked["bad"]) == (4, ["with-nan"])
    assert [row["seq"] for row in rows] == list(range(1, len(rows) + 1))


def test_a_pattern_without_match_fails_after_the_first_event(tmp_path: Path) -> None:
    from vlora_engine.errors import NotFoundError
    from vlora_tui.recipe.model import AdapterInput, Compress, Input, Recipe

    recipe = Recipe(
        Input((AdapterInput(f"{tmp_path}/no*"),)),
        Compress(CompressionTarget(k=2)),
        str(tmp_path / "s"),
    )
    seen: list[events.Event] = []
    with pytest.raises(NotFoundError):
        Run(recipe, seen.append).execute()
    assert [event.type for event in seen] == ["started", "failed"]


@pytest.fixture
def signal_at(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """``signal_at(SIGTERM, stage)``: the process gets the signal when that stage moves first."""
    todo: list[tuple[int, str]] = []
    original = Watcher.__call__

    def watch(self: Watcher, event: events.Event) -> None:
        while todo and isinstance(event, events.Progress) and event.stage == todo[0][1]:
            os.kill(os.getpid(), todo.pop(0)[0])
        original(self, event)

    monkeypatch.setattr(Watcher, "__call__", watch)
    yield lambda number, stage: todo.append((number, stage))
    assert not todo, "the signal was never sent"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_at_the_next_layer_and_the_same_again_goes_on(
    cli: Cli, runs: Path, tmp_path: Path, signal_at: Any, number: int
) -> None:
    place, words = tmp_path / "events.jsonl", ["compress", runs, "-o", tmp_path / "s", "-k", "4"]
    signal_at(number, "build")
    before = signal.getsignal(number)
    found = cli(*words, "--events", place, code=130)
    assert signal.getsignal(number) is before
    assert found.out == ""
    assert "stopping after this module" in found.err
    assert "run the same again" in found.err
    last = lines_of(place)[-1]
    assert last["type"] == "cancelled"
    assert last["resumable"] is True
    assert not (tmp_path / "s").exists()
    again = cli(*words, "--json").data
    assert again["reused_layers"] > 0
    whole = cli("compress", runs, "-o", tmp_path / "whole", "-k", "4", "--json").data
    assert whole["reused_layers"] == 0
    names = ["subspace.json", "basis.safetensors"]
    for name in names:
        assert (tmp_path / "s" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_signal_before_the_build_leaves_nothing(
    cli: Cli, runs: Path, tmp_path: Path, signal_at: Any
) -> None:
    signal_at(signal.SIGTERM, "check")
    cli("compress", runs, "-o", tmp_path / "s", "-k", "4", code=130)
    assert os.listdir(tmp_path) == []


def test_exports_stop_between_two_tasks(
    cli: Cli, built: Path, tmp_path: Path, signal_at: Any
) -> None:
    signal_at(signal.SIGTERM, "export")
    cli("export", built, "--all", "-o", tmp_path / "o", code=130)
    written = list((tmp_path / "o").iterdir())
    assert [path.name for path in written] == ["task00"]
    assert open_adapter(written[0]).modules


def test_a_second_interrupt_stops_at_once(
    cli: Cli, runs: Path, tmp_path: Path, signal_at: Any
) -> None:
    signal_at(signal.SIGINT, "check")
    signal_at(signal.SIGINT, "check")
    place = tmp_path / "events.jsonl"
    found = cli("compress", runs, "-o", tmp_path / "s", "-k", "4", "--events", place, code=130)
    assert "Interrupted" in found.err
    assert lines_of(place)[-1]["type"] == "cancelled"
    assert os.listdir(tmp_path) == ["events.jsonl"]


def test_an_interrupt_elsewhere_is_130_too(
    cli: Cli, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("vlora_engine.catalog.scanner.scan", interrupt)
    assert "Interrupted" in cli("inspect", runs, code=130).err


def test_progress_of_the_engine_reaches_the_listener(runs: Path, tmp_path: Path) -> None:
    from vlora_tui.recipe.model import AdapterInput, Compress, Input, Recipe

    recipe = Recipe(
        Input((AdapterInput(str(runs)),)),
        Compress(CompressionTarget("delta", max_error=0.3)),
        str(tmp_path / "s"),
    )
    seen: list[events.Event] = []
    Run(recipe, seen.append).execute()
    stages = {event.stage for event in seen if isinstance(event, events.Progress)}
    assert {"check", "spectra", "build"} <= stages
    chosen = next(event for event in seen if isinstance(event, events.Chosen))
    written = next(event for event in seen if isinstance(event, events.SubspaceWritten))
    assert chosen.max_error == pytest.approx(written.figures["max_error"], rel=1e-4)
    assert chosen.max_error <= 0.3


@pytest.mark.parametrize("method", ["delta", "auto"])
@pytest.mark.parametrize("spectra", ["", 'spectra = "cache"'])
def test_without_a_cache_the_same_bytes_are_built(
    method: str,
    spectra: str,
    cli: Cli,
    runs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "file").touch()
    for name in ("with", "without"):
        if name == "without":
            monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
        file = tmp_path / f"{name}.toml"
        file.write_text(
            f"[input]\nadapters = ['{runs}']\n"
            f"[compress]\nmethod = '{method}'\nmax_error = 0.3\n{spectra}\n"
            f"[output]\nsubspace = '{tmp_path}/{name}/s'\n"
        )
        (tmp_path / name).mkdir()
        told = cli("run", file, "--headless").err
    assert ("The cache cannot be written" in told) == bool(spectra or method == "delta")
    assert tree(tmp_path / "with") == tree(tmp_path / "without")


def test_what_only_the_cache_could_keep_is_refused_without_one(
    cli: Cli, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    refused = cli("plan", runs, code=1).err
    assert "The cache cannot be written." in refused
    assert "fix: set XDG_CACHE_HOME to a folder that can be written" in refused
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    cli("plan", runs)


def test_changed_inputs_are_not_taken_from_the_cache(cli: Cli, runs: Path, tmp_path: Path) -> None:
    import shutil

    from tests.witnesses import make

    folder = Path(shutil.copytree(runs, tmp_path / "mine"))
    first = cli("spectra", folder, "--json").data
    make.write(folder / "task00", make.factors(seed=77))
    second = cli("spectra", folder, "--json").data
    assert not second["reused"]
    assert second["path"] != first["path"]
    assert second["costs"] != first["costs"]


@pytest.mark.parametrize(
    ("k", "text"),
    [
        ({"a": (8, 8), "b": (8, 8)}, "8"),
        ({"a": (4, 4), "b": (24, 24)}, "4-24"),
        ({"a": (4, 16), "b": (6, 16)}, "4-6 x 16"),
        ({}, "-"),
    ],
)
def test_k_in_few_words(k: dict[str, tuple[int, int]], text: str) -> None:
    assert k_text(k) == text


def test_a_name_that_looks_like_a_pattern_is_a_name() -> None:
    assert match_tasks(["a[1]"], ["a1", "a[1]"]) == ["a[1]"]
    assert match_tasks(["a*"], ["b", "a1", "a[1]"]) == ["a1", "a[1]"]
