"""What a stranger tries in the first hour: nothing silent, nothing of theirs lost."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from rich.cells import cell_len

from tests.app.conftest import Cli
from tests.conftest import FreshPython
from tests.witnesses import make
from vlora_tui.cli import output
from vlora_tui.cli.output import cut, table_lines
from vlora_tui.recipe.model import Recipe
from vlora_tui.recipe.reader import parse_recipe

EVIL = "\x1b[31mred\x1b]0;pwned\x07"


@pytest.mark.parametrize(
    "target",
    [["--max-error", "0.3"], ["--mean-error", "0.3"], ["--budget", "20kB"], ["--variance", "0.9"]],
)
def test_k_auto_goes_with_any_target(
    cli: Cli, runs: Path, tmp_path: Path, target: list[str]
) -> None:
    plain = cli("compress", runs, "-o", tmp_path / "a", *target, "--json").data
    auto = cli("compress", runs, "-o", tmp_path / "b", "-k", "auto", *target, "--json").data
    assert auto["k"] == plain["k"]


def test_a_target_that_nobody_gave_is_not_in_the_message(
    cli: Cli, runs: Path, tmp_path: Path
) -> None:
    words = ["compress", runs, "-o", tmp_path / "s", "--adaptive-k"]
    found = cli(*words, "--max-error", "0.1", code=2)
    assert "goes with a variance" in found.err
    assert "every module gets its own k anyway" in found.err
    assert "goes with a variance" in cli(*words, "-k", "3", code=2).err
    assert cli(*words[:-1], "--adaptive-k").code == 0


def test_adding_keeps_what_lies_beside_and_tells_what_others_lost(
    cli: Cli, runs: Path, tmp_path: Path
) -> None:
    place = tmp_path / "s"
    cli("compress", runs / "task00", runs / "task01", "-o", place, "-k", "4")
    (place / ".git").mkdir()
    (place / ".git" / "HEAD").write_text("main")
    before = {t["id"]: t["error"] for t in cli("info", place, "--json").data["tasks"]}
    make.write(tmp_path / "other", make.factors(seed=77))
    found = cli("add", place, tmp_path / "other")
    assert (place / ".git" / "HEAD").read_text() == "main"
    after = {t["id"]: t["error"] for t in cli("info", place, "--json").data["tasks"]}
    worst = max(before, key=lambda name: after[name] - before[name])
    assert f"of the others '{worst}' lost most" in found.out


def test_adding_from_another_base_model_is_said(cli: Cli, subspace: Path, tmp_path: Path) -> None:
    make.write(tmp_path / "other", None, make.config(base_model_name_or_path="org/else"))
    found = cli("add", subspace, tmp_path / "other")
    assert "names the base model org/else, the subspace gpt2" in found.err


def test_a_projection_that_keeps_nothing_is_said(cli: Cli, runs: Path, tmp_path: Path) -> None:
    cli("compress", runs / "task00", "-o", tmp_path / "s", "-k", "2")
    make.write(tmp_path / "other", make.factors(seed=78))
    found = cli("add", tmp_path / "s", tmp_path / "other", "--project")
    assert "leave --project out" in found.err


def test_two_base_models_in_one_collection_are_said(cli: Cli, runs: Path, tmp_path: Path) -> None:
    modules = {"model.layers.0.self_attn.q_proj": (8, 8)}
    make.write(tmp_path / "x", make.factors(modules), make.config(base_model_name_or_path="org/x"))
    found = cli("compress", runs, tmp_path / "x", "-o", tmp_path / "s", "-k", "2")
    assert "gpt2, org/x: The adapters name different base models" in found.err
    same = make.config(base_model_name_or_path="unsloth/gpt2-bnb-4bit")
    make.write(tmp_path / "y", None, same)
    found = cli("compress", runs, tmp_path / "y", "-o", tmp_path / "t", "-k", "2")
    assert "base models" not in found.err
    found = cli("merge", runs / "task00", tmp_path / "y", "-o", tmp_path / "m")
    assert "base models" not in found.err


def test_target_modules_that_do_not_fit_are_said(cli: Cli, built: Path, tmp_path: Path) -> None:
    words = ["export", built, "--all", "-o", tmp_path / "o", "--target-modules"]
    found = cli(*words, "q_proj,v_proj")
    assert found.err.count("q_proj, v_proj do not cover the modules that were trained") == 1
    config = json.loads((tmp_path / "o" / "task00" / "adapter_config.json").read_text())
    assert "q_proj" not in config["target_modules"]
    assert cli(*words, "c_attn,c_proj", "--force").err == ""


def test_no_output_inside_an_input_not_even_through_a_link(
    cli: Cli, runs: Path, built: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(runs, tmp_path / "runs"))
    (tmp_path / "link").symlink_to(folder)
    for place, words in (
        (folder / "task00" / "sub", "inside another"),
        (tmp_path / "link" / "task00", "one of the inputs"),
        (tmp_path / "link" / "task01" / "sub", "inside another"),
    ):
        found = cli("compress", folder, "-o", place, "-k", "2", "--force", code=2)
        assert words in found.err
    assert "inside another" in cli("export", built, "--all", "-o", built / "o", code=2).err
    assert cli("inspect", folder, "-q").out.split() == ["task00", "task01", "task02", "task03"]


def test_names_out_of_files_never_move_the_cursor(cli: Cli, tmp_path: Path) -> None:
    evil = make.config(base_model_name_or_path=EVIL)
    make.write(tmp_path / "in" / EVIL, make.factors(seed=1), evil)
    make.write(tmp_path / "in" / "b", make.factors(seed=2), evil)
    each = list((tmp_path / "in").iterdir())
    for words in (
        ["inspect", tmp_path / "in"],
        ["compress", tmp_path / "in", "-o", tmp_path / "s", "--dry-run"],
        ["compress", tmp_path / "in", "-o", tmp_path / "s", "-k", "2"],
        ["info", tmp_path / "s"],
        ["export", tmp_path / "s", "--all", "-o", tmp_path / "o"],
        ["analyze", tmp_path / "in"],
        ["merge", *each, "-o", tmp_path / "m"],
        ["merge", *each, "-o", tmp_path / "m"],  # is there already: an error this time
        ["remove", tmp_path / "s", EVIL],
    ):
        for more in ([], ["-q"], ["--json"]):
            found = cli(*words, *more, code=None)
            assert "\x1b" not in found.out + found.err, words
            assert "\x07" not in found.out + found.err, words


def test_a_merge_tells_its_weights_and_what_cutting_cost(
    cli: Cli, runs: Path, tmp_path: Path
) -> None:
    words = ["merge", runs / "task00", runs / "task01", "--rank", "1"]
    found = cli(*words, "-o", tmp_path / "m", "--weights", "0.7,0.3")
    assert "weights 0.7, 0.3" in found.out
    assert "cutting the rank changed dW by" in found.out
    data = cli(*words, "-o", tmp_path / "n", "--json").data
    assert data["weights"] == [0.5, 0.5]
    assert 0 < data["cut_error"] < 1


def test_a_merge_of_a_folder_says_how_to_name_them(cli: Cli, runs: Path, tmp_path: Path) -> None:
    assert "DIR/*" in cli("merge", runs, "-o", tmp_path / "m", code=2).err


def test_a_recipe_that_asks_for_nothing_is_refused(cli: Cli, runs: Path, tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text(f'[input]\nadapters = ["{runs}"]\n')
    assert "nothing to do" in cli("run", "--headless", tmp_path / "r.toml", code=2).err


def test_events_go_to_a_pipe_or_device_too(
    cli: Cli, runs: Path, tmp_path: Path, fresh_python: FreshPython
) -> None:
    words = ["compress", runs, "-o", tmp_path / "s", "-k", "2", "--events"]
    assert cli(*words, "/dev/null").err.count("could not be written") == 0
    if Path("/dev/full").exists():  # which has no end to be looked for
        assert "events could not be written to /dev/full" in cli(*words, "/dev/full", "--force").err


@pytest.mark.parametrize("words", [["-o", ""], ["-o", "~nobody-of-this-name/x", "-k", "2"]])
def test_an_odd_output_is_no_fault_of_ours(
    cli: Cli, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    found = cli("compress", runs, *words, "--dry-run", code=None)
    assert "bug in vlora-tui" not in found.err
    assert ("names no place" in found.err) == (words[1] == "")


def test_an_empty_name_is_no_name(cli: Cli, runs: Path, tmp_path: Path) -> None:
    catalog_locate = [runs / "task00", runs / "task01"]
    found = cli("compress", *catalog_locate, "-o", tmp_path / "s", "--names", "a", "", code=2)
    assert "A task needs a name" in found.err


def test_a_missing_device_is_said_before_anything_is_read(
    cli: Cli, broken: Path, tmp_path: Path
) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    catalog_locate = [broken / "task00", broken / "with-nan"]
    found = cli(
        "compress", *catalog_locate, "-o", tmp_path / "s", "--device", "cuda", "-k", "2", code=2
    )
    assert "no CUDA device" in found.err


def test_a_single_bad_adapter_is_not_one_of_one(cli: Cli, broken: Path, tmp_path: Path) -> None:
    found = cli("compress", broken / "with-nan", "-o", tmp_path / "s", "-k", "2", code=2)
    assert found.err.splitlines()[-5] == "error: The adapter holds NaN."
    assert "entries not finite" in found.err


def test_layers_taken_from_a_stopped_run_are_said(cli: Cli, runs: Path, tmp_path: Path) -> None:
    from vlora_tui.cli.flags import from_tables
    from vlora_tui.pipeline.run import Run

    done: list[object] = []
    recipe = from_tables(
        {
            "input": {"adapters": [str(runs)]},
            "compress": {"k": 3},
            "output": {"subspace": str(tmp_path / "s")},
        }
    )
    from vlora_engine.errors import Cancelled
    from vlora_tui.pipeline import events

    stop = Run(
        recipe,
        lambda event: done.append(event) if isinstance(event, events.LayerDone) else None,
        cancelled=lambda: len(done) > 0,
    )
    with pytest.raises(Cancelled):
        stop.execute()
    found = cli("compress", runs, "-o", tmp_path / "s", "-k", "3")
    assert "of 4 modules were done already" in found.err


def test_alike_faults_are_told_once(cli: Cli, runs: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(runs, tmp_path / "runs"))
    for name in ("task01", "task03"):
        (folder / name / "adapter_config.json").unlink()
    found = cli("inspect", folder)
    assert found.out.count("has no adapter_config.json") == 1
    assert "the same: task03" in found.out
    assert "1 group that fits together" in found.out


def test_notes_name_the_adapter_not_its_whole_path(cli: Cli, tmp_path: Path) -> None:
    tensors = make.factors() | {
        "base_model.model.score.weight": make.factors()[next(iter(make.factors()))]
    }
    make.write(tmp_path / "with-head", tensors)
    note = next(line for line in cli("inspect", tmp_path).out.splitlines() if "note" in line)
    assert "with-head/adapter_model.safetensors: 1 tensor outside" in note
    assert str(tmp_path) not in note


def test_a_table_is_cut_to_the_screen_and_only_there(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [("n" * 200, 3, "org/base"), ("short", 12, "日本語" * 20)]
    lines = table_lines(("adapter", "rank", "base model"), rows, 60)
    assert all(cell_len(line) <= 60 for line in lines)
    assert "3" in lines[1]
    assert "…" in lines[1]
    out = output.Output()
    out.table(("adapter", "rank", "base model"), rows)
    assert "n" * 200 in capsys.readouterr().out  # no terminal: nothing is left out
    assert cut("abcdefgh", 5) == "ab…gh"
    assert cut("abc", 5) == "abc"


def test_the_next_command_is_one_that_a_shell_takes(cli: Cli, runs: Path, tmp_path: Path) -> None:
    place = tmp_path / "a folder"
    said = cli("compress", runs, "-o", place, "-k", "2").err
    assert f"vlora-tui info '{place}'" in said
    assert "|" not in said.split("next:")[1]


def test_closed_streams_are_no_fault(fresh_python: FreshPython, runs: Path) -> None:
    code = (
        "import sys; from vlora_tui.cli import main; sys.{stream} = None; sys.exit(main({words!r}))"
    )
    words = ["inspect", str(runs)]
    assert fresh_python(code.format(stream="stdout", words=words)).returncode == 0
    found = fresh_python(code.format(stream="stderr", words=["nope"]), check=False)
    assert (found.returncode, found.stdout) == (2, "")


def test_a_recipe_path_keeps_odd_names() -> None:
    text = '[input]\nadapters = ["a"]\n[compress]\nk = 1\n[output]\nsubspace = " "\n'
    assert isinstance(parse_recipe(text), Recipe)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_task_file_that_may_not_be_written(cli: Cli, subspace: Path, runs: Path) -> None:
    (subspace / "tasks").chmod(0o500)
    found = cli("add", subspace, runs / "task00", "--task-id", "x", "--project", code=1)
    assert "may write to" in found.err


def test_spectra_that_were_stopped_say_how_to_go_on(runs: Path, tmp_path: Path) -> None:
    from vlora_engine.errors import Cancelled
    from vlora_tui.cli.flags import from_tables
    from vlora_tui.pipeline import events
    from vlora_tui.pipeline.run import Run

    told: list[events.Event] = []
    recipe = from_tables(
        {
            "input": {"adapters": [str(runs)]},
            "compress": {"method": "delta", "max_error": 0.07},
            "output": {"subspace": str(tmp_path / "s")},
        }
    )

    def measuring() -> bool:
        return any(isinstance(e, events.Progress) and e.stage == "spectra" for e in told)

    with pytest.raises(Cancelled) as stopped:
        Run(recipe, told.append, cancelled=measuring).execute()
    assert "run the same again" in stopped.value.remedy  # the spectra lie in the cache
    assert told[-1] == events.Cancelled(stopped.value.what, resumable=True)
    assert list(tmp_path.iterdir()) == []


def test_what_may_not_be_read_is_not_passed_over(
    cli: Cli, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vlora_engine.catalog import locate as catalog_locate

    folder = Path(shutil.copytree(runs, tmp_path / "runs"))
    look = catalog_locate._list

    def closed(path: Path) -> object:
        if path.name == "task02":
            raise PermissionError(13, "Permission denied", str(path))
        return look(path)

    monkeypatch.setattr(catalog_locate, "_list", closed)
    assert f"{folder / 'task02'}: The directory may not be read" in cli("inspect", folder).out
    found = cli("compress", folder, "-o", tmp_path / "s", "-k", "2")
    assert f"{folder / 'task02'}: The directory may not be read" in found.err


def test_a_link_to_nothing_says_so(cli: Cli, tmp_path: Path) -> None:
    place = make.write(tmp_path / "a")
    (place / "adapter_model.safetensors").unlink()
    (place / "adapter_model.safetensors").symlink_to("../blobs/gone")
    found = cli("compress", place, "-o", tmp_path / "s", "-k", "2", code=2)
    assert "The symbolic link leads nowhere" in found.err
    assert "a link to ../blobs/gone" in found.err


def test_a_folder_of_adapters_is_no_adapter(cli: Cli, subspace: Path, runs: Path) -> None:
    found = cli("add", subspace, runs, "--task-id", "x", code=2)
    assert "a folder of adapters, not an adapter" in found.err
    assert "name one of them" in found.err


def test_adding_what_does_not_fit_names_no_flag_that_add_lacks(
    cli: Cli, subspace: Path, tmp_path: Path
) -> None:
    make.write(tmp_path / "other", make.factors({"transformer.h.0.attn.c_attn": (10, 30)}))
    found = cli("add", subspace, tmp_path / "other", code=2)
    assert "another base model" in found.err
    assert "--skip-bad" not in found.err
