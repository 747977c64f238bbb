"""Bad input ends with a code and words, before anything is written, and never with a traceback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.app.conftest import Cli
from tests.conftest import FreshPython
from tests.witnesses import make
from tests.witnesses.files import tree


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("compress {no} -o {out}", "no such file or directory"),
        ("compress {empty} -o {out}", "directory is empty"),
        ("compress org/name -o {out}", "hf://org/name"),
        ("compress hf://org -o {out}", "names no place on the Hugging Face Hub"),
        ("compress {runs}/zz* -o {out}", "matches no adapter"),
        ("compress {runs}", "Missing option"),
        ("compress -o {out}", "Missing argument"),
        ("compress {runs} -o {out} -k 0", "at least 1"),
        ("compress {runs} -o {out} -k -1", "at least 1"),
        ("compress {runs} -o {out} -k eight", "whole number or auto"),
        ("compress {runs} -o {out} -k 4 --budget 3MB", "both given"),
        ("compress {runs} -o {out} -k 4 --variance 0.9", "both given"),
        ("compress {runs} -o {out} --variance 1.5", "between 0 and 1"),
        ("compress {runs} -o {out} --budget 1kB", "budget"),
        ("compress {runs} -o {out} --max-error 1e-12", "finest step"),
        ("compress {runs} -o {out} --mean-error 1e-11", "finest step"),
        ("compress {runs} -o {out} --method own --max-error 1e-12", "finest step"),
        ("compress {runs} -o {out} --budget lots", "no size"),
        ("compress {runs} -o {out} --max-error nan", "between 0 and 1"),
        ("compress {runs} -o {out} --method svd", "delta, columns, flat"),
        ("compress {runs} -o {out} --method auto -k 4", "chooses its bits itself"),
        ("compress {runs} -o {out} --quantize int3", "none, int8, int4, nf4"),
        ("compress {runs} -o {out} --quantize nf4 --max-error 0.05", "Packing as nf4 alone"),
        ("resize {runs}/task00 -o {out}", "not said what to resize to"),
        ("resize {runs} -o {out} --rank 0", "too small"),
        ("resize {runs} -o {out} --energy 2", "at most 1"),
        ("resize {runs} -o {out} --energy 0.9 --target vllm", "both given"),
        ("resize {runs} -o {out} --dynamic sv_fro 7", "at most 1"),
        ("resize {runs} -o {out} --dynamic sv_best 7", "sv_cumulative"),
        ("resize {runs} -o {out} --target vllm --rank 513", "at most 512"),
        ("resize {runs} -o {out} --target moon", "vllm, sglang"),
        ("quantize {built} -o {out} --bits 5", "8 or 4 bits"),
        ("quantize {built} -o {out} --method nf4 --bits 3", "nf4 with 4"),
        ("quantize {built} -o {out} --method int9", "symmetric"),
        ("quantize {built} -o {out} --block-size 0", "block size is out of range"),
        ("quantize {built}", "Missing option"),
        ("quantize {built} -o {built} --force", "one of the inputs"),
        ("quantize {runs} -o {out}", "no subspace here"),
        ("compress {runs} -o {out} --device tpu", "cuda:N"),
        ("compress {runs} -o {out} --dtype int8", "fp16"),
        ("compress {runs} -o {out} --names a b", "one name for each adapter"),
        ("compress {runs}/task00 {runs}/task01 -o {out} --names a a -k 2", "both named 'a'"),
        ("compress {runs}/task00 {runs}/task01 -o {out} --names task01 x y", "one name for each"),
        ("compress {runs} -o {out} --layers nope=4 -k 2", "matches no module"),
        ("compress {runs} -o {out} --layers x", "pattern and its k"),
        ("compress {runs} -o {out} --spectra {empty}", "spectra"),
        ("compress {runs} -o {out} --colour red", "No such option"),
        ("compress {runs} {built} -o {out} -k 2 --names a b c d e f", "one name for each"),
        ("compress {runs} -o {runs} -k 2 --force", "inside another"),
        ("compress {runs}/task00 -o {runs}/task00 -k 2 --force", "one of the inputs"),
        ("info {no}", "no subspace here"),
        ("info {runs}", "no subspace here"),
        ("inspect {no}", "no such file or directory"),
        ("inspect {empty}", "directory is empty"),
        ("export {built} nope -o {out}", "no task 'nope'"),
        ("export {built} task0 -o {out}", "did you mean"),
        ("export {built} -o {out}", "--adapter TASK or --all"),
        ("export {built} task00 --all -o {out}", "--adapter TASK or --all"),
        ("export {built} task00 -o {out} --target vlm", "llamacpp"),
        ("export {built} task00 -o {out} --target llamacpp", "--base DIR"),
        ("export {built} task00 -o {out} --target ollama --base {no}", "no config of a base model"),
        ("export {built} task00 -o {out} --target portable --dtype fp32", "fp16, bf16"),
        ("export {built} task00 -o {out} --alpha -3", "positive"),
        ("export {built} task00 -o {out} --dtype int3", "fp32"),
        ("export {runs} task00 -o {out}", "no such file or directory"),
        ("reconstruct {built} --adapter nope -o {out}", "no task 'nope'"),
        ("add {built} {no} --task-id x", "no such file or directory"),
        ("add {built} {runs}/task00 --task-id task00", "already"),
        ("add {built} {runs}/task00 --task-id x --incremental --project", "two ways"),
        ("remove {built} nope", "no task 'nope'"),
        ("remove {built} *", "leave no task"),
        ("diff {runs}/task00", "compares two"),
        ("diff {built} task00 nope", "no task 'nope'"),
        ("diff {runs}/task00 {no}", "no such file or directory"),
        ("diff {runs}/task00 {runs}/task01 --fail-above -1", "0 or more"),
        ("analyze {runs}/task00", "nothing to compare"),
        ("analyze {runs} --threshold 2", "cosine"),
        ("analyze {runs} --outliers 0", "above 0"),
        ("analyze {runs} --csv {runs}/task00/adapter_config.json", "already exists"),
        ("analyze {runs} --csv {runs} --force", "already exists"),
        ("coverage {runs} {runs}/task00", "no subspace here"),
        ("coverage {built} {no}", "no such file or directory"),
        ("coverage {built} {runs} --fail-below 2", "0 to 1"),
        ("report {no} -o {out}.md", "no such file or directory"),
        ("report {runs} -o {out}", "ends in .md"),
        ("report {runs} -o {empty}", "ends in .md"),
        ("report {runs} -o {out}.md --threshold 7", "cosine"),
        ("report {built} -o {out}.md --measure", "nothing is left to measure"),
        ("report {runs} -o {out}.md --spectra {empty}", "spectra"),
        ("merge {runs}/task00 -o {out}", "two adapters or more"),
        ("merge {runs}/task00 {runs}/task01 -o {out} --method slurp", "no such merge method"),
        ("merge {runs}/task00 {runs}/task01 {runs}/task02 -o {out} --method slerp", "takes 2"),
        ("merge {runs}/task00 {runs}/task01", "-o DIR"),
        ("merge -o {out}", "nothing to merge"),
        ("merge {runs}/task00 {runs}/task01 -o {out} --method sce --no-normalize", "always norm"),
        ("merge {runs}/task00 {runs}/task01 -o {out} --method sce --space factors", "has no sce"),
        ("merge {runs}/task00 {runs}/task01 -o {out} --rank 2 --energy 0.9", "both given"),
        ("merge {runs}/task00 {runs}/task01 -o {out} --scale 0", "scale is out of range"),
        ("merge {runs}/task00 {runs}/task01 -o {out} --layers nope=1,1", "matches no module"),
        ("merge {runs}/task00 {runs}/task01 -o {out} --layers *=1", "one weight for each"),
        ("merge {runs}/task00 {runs}/task01 -o {out} --layers 1,1", "pattern and its weights"),
        ("merge {runs}/task00 {runs}/task01 -o {out} --dialect cat", "is no dialect"),
        (
            "merge {runs}/task00 {runs}/task01 -o {out} --dialect peft --method ties_svd",
            "--method ties --rank",
        ),
        (
            "merge {runs}/task00 {runs}/task01 -o {out} --method della --density 0.1",
            "do not fit together",
        ),
        ("merge {runs}/task00 {runs}/task01 -o {out} --density 1,2,3 --method ties", "one density"),
        ("merge {runs}/no.toml --preview", "no such recipe"),
        ("interference {runs}/task00", "nothing to compare"),
        ("merge {runs}/task00 {runs}/task01 -o {out} --method ties --density 2", "out of range"),
        ("merge {runs}/task00 {runs}/task01 -o {out} --method ties --seed 2", "no parameter"),
        ("merge {runs}/task00 {runs}/task01 -o {out} --weights 1", "one weight for each"),
        ("merge {runs}/task00 {runs}/task01 -o {out} --weights a,b", "commas between"),
        ("convert {runs} --to ggml -o {out}", "no format 'ggml'"),
        ("doctor {runs} --merged {runs} --fix -o {out}", "both given"),
        ("convert {runs} -o {out}", "Missing option"),
        ("convert {no} --to mlx -o {out}", "no such file or directory"),
        ("convert {runs} --to subspace -o {out}", "vlora-tui compress"),
        ("convert {built} --to subspace -o {out}", "already"),
        ("convert {runs}/task00 --to vlora-dev -o {out}", "two adapters or more"),
        ("convert {runs} --to lorashare -o {out} -k 0", "at least 1"),
        ("convert {built}:nope --to peft -o {out}", "no task 'nope'"),
        ("merge config.yml -o {out}", "no such merge file"),
        ("merge config.yml {runs}/task00 -o {out}", "already names"),
        ("validate {no}", "no subspace here"),
        ("benchmark {no}", "no subspace here"),
        ("benchmark {built} --repeats 0", "at least 1"),
        ("spectra {no}", "no such file or directory"),
        ("run {no}.toml --headless", "no such recipe"),
        ("run {runs} --headless", "-o DIR"),
        ("demo {runs}/task00/adapter_config.json", "would lie in an adapter"),
        ("nonsense", "No such command"),
        ("compres {runs}", "Did you mean 'compress'"),
        ("--nonsense", "No such option"),
    ],
)
def test_bad_input_is_refused(
    cli: Cli, runs: Path, built: Path, tmp_path: Path, line: str, words: str
) -> None:
    (tmp_path / "empty").mkdir()
    places = {
        "no": tmp_path / "not-there",
        "empty": tmp_path / "empty",
        "out": tmp_path / "out",
        "runs": runs,
        "built": built,
    }
    before = tree(runs.parent) | tree(built.parent)
    code = 2
    command = [word.format(**places) for word in line.split()]
    rehearsed = [[*command, "--dry-run"]] if line.startswith("compress") else []
    for words_given in (*rehearsed, command):
        found = cli(*words_given, code=code)
        assert found.out == ""
        assert words in found.err
        assert [line for line in found.err.splitlines() if line.startswith("error: ")]
    assert os.listdir(tmp_path) == ["empty"], "something was written"
    assert tree(runs.parent) | tree(built.parent) == before


def test_the_same_as_json(cli: Cli, tmp_path: Path) -> None:
    found = cli("info", tmp_path / "no", "--json", code=2)
    assert found.out == ""
    row = json.loads(found.err)
    assert (row["schema"], row["version"]) == ("vlora-tui/error", 1)
    assert row["error"] == "NotFoundError"
    assert row["exit_code"] == 2
    assert row["where"] == str(tmp_path / "no")
    assert row["remedy"]
    usage = json.loads(cli("info", "--json", code=2).err)
    assert usage["error"] == "UsageError"


def test_one_bad_adapter_stops_the_run_before_it_starts(
    cli: Cli, broken: Path, tmp_path: Path
) -> None:
    found = cli("compress", broken, "-o", tmp_path / "s", "-k", "2", code=2)
    assert "1 of 6 adapters cannot be used" in found.err
    assert "truncated" in found.err or "cut-short" in found.err
    assert "--skip-bad" in found.err
    assert not (tmp_path / "s").exists()


def test_a_dry_run_reads_every_tensor(cli: Cli, broken: Path, tmp_path: Path) -> None:
    words = ["compress", broken, "-o", tmp_path / "s", "--dry-run"]
    (broken / "cut-short").rename(tmp_path / "elsewhere")
    assert "NaN" in cli(*words, code=2).err
    found = cli(*words, "--skip-bad", "--json")
    assert found.data["left_out"] == ["with-nan"]
    assert sorted(p.name for p in tmp_path.iterdir() if p.name == "s") == []


def test_bad_adapters_are_left_out_when_asked(cli: Cli, broken: Path, tmp_path: Path) -> None:
    words = ["compress", broken, "-o", tmp_path / "s", "-k", "2", "--skip-bad"]
    found = cli(*words, "--json")
    assert found.data["tasks"] == [f"task{n:02d}" for n in range(4)]
    assert {row["name"] for row in found.data["left_out"]} == {"with-nan", "cut-short"}
    said = cli(*words, "--force").err
    assert "warning: with-nan is left out" in said
    assert "warning: cut-short is left out" in said


def test_a_nan_alone_is_named_with_its_tensor(cli: Cli, broken: Path, tmp_path: Path) -> None:
    places = [broken / "task00", broken / "with-nan"]
    found = cli("compress", *places, "-o", tmp_path / "s", "-k", "2", code=2)
    assert "NaN" in found.err
    assert "lora_A" in found.err
    assert "with-nan" in found.err


def test_when_all_are_bad_nothing_is_left(cli: Cli, broken: Path, tmp_path: Path) -> None:
    places = [broken / "cut-short", broken / "with-nan"]
    found = cli("compress", *places, "-o", tmp_path / "s", "-k", "2", "--skip-bad", code=2)
    assert "No usable adapter is left" in found.err


def test_inspect_shows_the_bad_ones_and_why(cli: Cli, broken: Path) -> None:
    found = cli("inspect", broken)
    assert "cut-short" in found.out
    assert "cannot be used" in found.out
    bad = [row for row in cli("inspect", broken, "--json").data["adapters"] if row["error"]]
    assert [row["name"] for row in bad] == ["cut-short"]


def test_adapters_of_two_base_models_do_not_mix(cli: Cli, runs: Path, tmp_path: Path) -> None:
    others = {"transformer.h.0.attn.c_attn": (10, 30)}
    make.write(tmp_path / "other", make.factors(others))
    places = [runs / "task00", runs / "task01", tmp_path / "other"]
    found = cli("compress", *places, "-o", tmp_path / "s", "-k", "2", code=2)
    assert "another base model" in found.err


def test_an_output_that_exists_is_not_overwritten(cli: Cli, runs: Path, tmp_path: Path) -> None:
    place = tmp_path / "s"
    place.mkdir()
    (place / "mine.txt").write_text("precious")
    for words in (
        ["compress", runs, "-o", place, "-k", "2"],
        ["spectra", runs, "-o", place],
        ["merge", runs / "task00", runs / "task01", "-o", place],
    ):
        found = cli(*words, code=2)
        assert "already exists" in found.err
        assert "move this away" in cli(*words, "--force", code=2).err
        assert tree(tmp_path) == {"s/mine.txt": b"precious"}
    ours = tmp_path / "ours"
    cli("compress", runs, "-o", ours, "-k", "2")
    assert "--force" in cli("compress", runs, "-o", ours, "-k", "3", code=2).err
    cli("compress", runs, "-o", ours, "-k", "3", "--force")
    assert cli("info", ours, "--json").data["num_components"] == 3


def test_exports_are_all_checked_before_the_first_is_written(
    cli: Cli, built: Path, tmp_path: Path
) -> None:
    (tmp_path / "o" / "task03").mkdir(parents=True)
    (tmp_path / "o" / "task03" / "mine.txt").write_text("precious")
    cli("export", built, "--all", "-o", tmp_path / "o", code=2)
    assert tree(tmp_path) == {"o/task03/mine.txt": b"precious"}


@pytest.mark.parametrize(
    "line",
    [
        "compress {runs} -o {out}",
        "compress {runs} -o {out} -k 3",
        "spectra {runs} -o {out}",
        "spectra {runs}",
        "export {built} --all -o {out}",
        "merge {runs}/task00 {runs}/task01 -o {out}",
        "add {built} {runs}/task00 --task-id more",
        "resize {runs} -o {out} --rank 2",
        "remove {built} task00",
        "run {runs} -o {out} -k 3",
        "run {runs} -o {out} -k 3 --headless",
    ],
)
@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_a_dry_run_writes_nothing(
    cli: Cli, runs: Path, built: Path, tmp_path: Path, home: Path, line: str, flags: list[str]
) -> None:
    places = {"runs": runs, "built": built, "out": tmp_path / "out"}
    before = tree(runs.parent) | tree(built.parent)
    found = cli(*(word.format(**places) for word in line.split()), "--dry-run", *flags)
    if flags:
        assert found.data["dry_run"] is True
    else:
        assert "Would " in found.out
    assert os.listdir(tmp_path) == []
    assert tree(home) == {}
    assert tree(runs.parent) | tree(built.parent) == before


def test_a_dry_run_finds_what_a_run_would_refuse(cli: Cli, runs: Path, tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "mine").touch()
    found = cli("compress", runs, "-o", tmp_path / "s", "-k", "2", "--dry-run", code=2)
    assert "already exists" in found.err


def test_names_from_paths_cannot_drive_the_terminal(cli: Cli, runs: Path, tmp_path: Path) -> None:
    make.write(tmp_path / "a\x1b[31mred")
    shown = cli("inspect", tmp_path).out
    assert "\x1b" not in shown
    assert "\\x1b[31mred" in shown


def test_a_path_of_bytes_that_are_no_text(cli: Cli, tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/runs\xff"))
    try:
        make.collection(folder, 2)
    except OSError:
        pytest.skip("this file system takes only text")
    assert len(cli("inspect", folder, "--json").data["adapters"]) == 2
    cli("inspect", folder)
    words = ["compress", folder, "-o", folder / "s", "-k", "2", "--events", tmp_path / "e"]
    assert cli(*words, "--json").data["tasks"] == ["task00", "task01"]
    assert cli("info", folder / "s", "--json").data["num_tasks"] == 2
    cli("export", folder / "s", "--all", "-o", folder / "o")
    assert "\\udcff" in (tmp_path / "e").read_text("utf-8")


def test_an_adapter_whose_path_is_no_text(cli: Cli, tmp_path: Path) -> None:
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/in/odd\xff"))
    try:
        make.write(odd)
    except OSError:
        pytest.skip("this file system takes only text")
    plain, folder = make.write(tmp_path / "in" / "plain", make.factors(seed=2)), tmp_path / "in"
    cli("plan", folder)
    cli("spectra", folder, "-o", tmp_path / "spectra")
    cli("report", folder, "-o", Path(os.fsdecode(os.fsencode(tmp_path) + b"/r\xff.md")))
    s = tmp_path / "s"
    cli("compress", plain, "-o", s)
    before = tree(s)
    for words in (
        ["compress", folder, "-o", tmp_path / "new", "-k", "1"],
        ["compress", folder, "-o", tmp_path / "new"],
        ["add", s, odd, "--task-id", "odd"],
    ):
        said = cli(*words, code=2).err
        assert "no text" in said
        assert "rename" in said
    assert tree(s) == before
    assert not [p for p in tmp_path.iterdir() if "new" in p.name]


def test_a_fault_of_ours_says_so_and_hides_its_traceback(
    cli: Cli, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr("vlora_engine.catalog.scanner.scan", fail)
    found = cli("inspect", runs, code=1)
    assert "A bug in vlora-tui" in found.err
    assert "ZeroDivisionError: oops" in found.err


def test_a_disk_that_refuses_is_no_traceback(fresh_python: FreshPython, runs: Path) -> None:
    found = fresh_python(
        "-m", "vlora_tui", "compress", str(runs), "-o", "/proc/nothing/s", "-k", "2", check=False
    )
    assert found.returncode == 1
    assert found.stdout == ""
    assert found.stderr.splitlines()[-3].startswith("error: The output cannot be written")
    assert "Traceback" not in found.stderr


def test_very_verbose_shows_where_it_happened(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from vlora_tui.cli import main

    monkeypatch.setattr("vlora_engine.catalog.scanner.scan", lambda *_: 1 / 0)
    assert main(["-vv", "inspect", str(runs)]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_reader_that_goes_away_is_no_error(fresh_python: FreshPython, runs: Path) -> None:
    import subprocess
    import sys

    from tests.conftest import ROOT

    line = f"{sys.executable} -m vlora_tui inspect {runs} --json | head -c 10"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", line],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'engine'}"},
    )
    assert done.stderr == ""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_standard_output_that_is_full_is_called_so(
    unbuffered: str, runs: Path, tmp_path: Path
) -> None:
    words = [sys.executable, "-m", "vlora_tui", "compress", runs, "-o", tmp_path / "s", "-k", "1"]
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    with open("/dev/full", "w") as full:
        done = subprocess.run(words, stdout=full, stderr=-1, text=True, env=environment)

    assert done.returncode == 1
    assert "Standard output takes no more" in done.stderr
    assert "where: standard output" in done.stderr
    assert (tmp_path / "s" / "subspace.json").is_file()


def test_a_current_directory_that_is_gone_is_called_so(
    cli: Cli, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "here").rmdir()

    assert "current directory is not there" in cli("compress", runs, "-o", "s", code=1).err
