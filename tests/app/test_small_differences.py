"""What users of the first libraries meet first: one default, a k too large, flags, figures."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.app.conftest import Cli
from tests.witnesses import make
from vlora_engine import SharedSubspace, init_subspace
from vlora_engine.compression_target import CompressionTarget
from vlora_tui.cli.flags import compress_recipe
from vlora_tui.recipe.reader import read_tables
from vlora_tui.tui.core.session import Session

NO_DEVICES = ["mps", "cuda", "cuda:7"]


# ---- one default


@pytest.mark.parametrize(
    ("asked", "python"),
    [
        ({}, {}),
        ({"k": 2}, {"num_components": 2}),
        ({"variance": 0.9}, {"variance_threshold": 0.9}),
        ({"max_error": 0.2}, {"max_error": 0.2}),
        ({"mean_error": 0.2}, {"mean_error": 0.2}),
        ({"budget": 60_000}, {"budget": 60_000}),
        ({"method": "columns"}, {"method": "columns"}),
        ({"dtype": "fp16"}, {"dtype": "fp16"}),
        ({"quantize": "int8", "k": 2}, {"quantize": "int8", "num_components": 2}),
        ({"refine": 1}, {"refine": 1}),
    ],
)
def test_every_entrance_has_the_same_method_and_target(
    runs: Path, asked: dict[str, object], python: dict[str, object]
) -> None:
    meant = CompressionTarget(**asked).checked()  # type: ignore[arg-type]
    flags = {n: str(v) if n in ("k", "budget") else v for n, v in asked.items()}
    recipe = read_tables(
        {
            "input": {"adapters": [str(runs)]},
            "output": {"subspace": "out"},
            "compress": {n: str(v) if n == "budget" else v for n, v in asked.items()},
        },
        where="a test",
    )
    command = compress_recipe([str(runs)], "out", **flags)  # type: ignore[arg-type]
    for found in (recipe, command):
        assert found.compress is not None
        assert found.compress.target.checked() == meant
    paths = sorted(runs.iterdir())
    made = [
        SharedSubspace.from_adapters_streaming(paths, **python),
        init_subspace(paths, **python),  # type: ignore[arg-type]
    ]
    for subspace in made:
        assert subspace.method == meant.method
        if meant.is_coded:
            assert subspace.space.coding.target == {meant.goal[0]: meant.goal[1]}  # type: ignore[union-attr]


def test_the_interface_begins_with_the_same() -> None:
    assert Session().choosing == CompressionTarget().checked()
    assert CompressionTarget().checked().words() == "max_error 0.05"


# ---- k beyond what there is


@pytest.mark.parametrize("method", ["delta", "columns", "flat"])
def test_k_beyond_what_there_is_gives_all_there_is_and_one_line(
    cli: Cli, tmp_path: Path, method: str
) -> None:
    runs = tmp_path / "runs"
    make.collection(runs, 3)
    words = ["compress", runs, "-o", tmp_path / "s", "-k", "32", "--method", method]
    dry = cli(*words, "--dry-run")
    assert [line for line in dry.err.splitlines() if "clamped" in line] == [
        line for line in dry.err.splitlines() if line.startswith("note: k = 32 is clamped")
    ]
    assert dry.err.count("clamped") == 1
    codes = [f["code"] for f in cli(*words, "--dry-run", "--json").data["findings"]]
    assert codes.count("k-clamped") == 1
    found = cli(*words)
    assert found.err.count("clamped") == 1
    again = cli(*words, "--force", "--json").data
    assert [f["code"] for f in again["findings"]].count("k-clamped") == 1
    assert max(max(pair) for pair in again["k"].values()) == (2 if method == "flat" else 12)


def test_a_script_sees_one_line(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    make.collection(runs, 3)
    script = "import sys, vlora_engine as v; v.init_subspace(sys.argv[1:], num_components=500)"
    paths = [str(path) for path in sorted(runs.iterdir())]
    done = subprocess.run(
        [sys.executable, "-c", script, *paths], capture_output=True, text=True, check=True
    )
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("k = 500 is clamped")


def test_convert_clamps_too(cli: Cli, runs: Path, tmp_path: Path) -> None:
    words = ["convert", runs, "--to", "lorashare", "-o"]
    assert cli(*words, tmp_path / "s", "-k", "999").err.count("clamped") == 1
    assert "clamped" not in cli(*words, tmp_path / "all").err  # all there is: no k was asked for


# ---- devices


@pytest.mark.parametrize("device", NO_DEVICES)
@pytest.mark.parametrize(
    "line",
    [
        "compress {bad} -o {out} -k 2",
        "compress {bad} -o {out} -k 2 --dry-run",
        "run {bad} --headless -o {out} -k 2",
        "plan {bad}",
        "spectra {bad} -o {out}",
        "spectra {bad} -o {out} --dry-run",
        "report {bad} -o {out} --measure",
        "compact {bad}",
        "eval {bad}",
    ],
)
def test_a_device_that_is_not_here_is_refused_before_anything_is_read(
    cli: Cli, tmp_path: Path, line: str, device: str
) -> None:
    if device == "mps" and torch.backends.mps.is_available():
        pytest.skip("there is one")
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("there is one")
    bad = tmp_path / "bad"  # whatever is read of it first is an error of its own
    bad.mkdir()
    (bad / "adapter_config.json").write_text("{")
    words = [word.format(bad=bad, out=tmp_path / "out") for word in line.split()]
    found = cli(*words, "--device", device, code=2)
    assert "device" in found.err.splitlines()[0]
    assert device in found.err
    assert not (tmp_path / "out").exists()


# ---- a dry run


def test_a_dry_run_refuses_an_output_that_exists_or_lies_in_an_input(
    cli: Cli, runs: Path, tmp_path: Path
) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").write_text("mine")
    for out in (tmp_path / "there", runs / "task00" / "s", runs / "task00"):
        found = [
            cli("compress", runs, "-o", out, *more, code=2).err for more in ([], ["--dry-run"])
        ]
        lines = [[x for x in text.splitlines() if x.startswith("error: ")] for text in found]
        assert lines[0]
        assert lines[0] == lines[1]


def test_a_dry_run_refuses_events_that_would_go_into_another_file(
    cli: Cli, runs: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine.txt").write_text("not events\n")
    words = ["compress", runs, "-o", tmp_path / "s", "--events", tmp_path / "mine.txt"]
    for more in ([], ["--dry-run"]):
        assert "holds something else" in cli(*words, *more, code=2).err
    words[-1] = tmp_path
    for more in ([], ["--dry-run"]):
        assert "it is a directory" in cli(*words, *more, code=1).err


def test_a_dry_run_refuses_what_the_disk_has_no_room_for(
    cli: Cli, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vlora_tui.pipeline.disk_space.free_bytes", lambda path: 10)
    words = ["compress", runs, "-o", tmp_path / "s", "-k", "3"]
    for more in ([], ["--dry-run"]):
        assert "not enough room" in cli(*words, *more, code=1).err


@pytest.mark.parametrize("more", [["--method", "columns"], ["--method", "flat", "-k", "2"]])
def test_a_dry_run_refuses_what_the_method_does_not_have(
    cli: Cli, runs: Path, tmp_path: Path, more: list[str]
) -> None:
    words = ["compress", runs, "-o", tmp_path / "s", "--refine", "2", *more]
    found = [cli(*words, *dry, code=2).err for dry in ([], ["--dry-run"])]
    assert found[0] == found[1]
    assert found[0].startswith("error: Only delta is refined.")


def test_a_dry_run_refuses_an_output_below_a_file(cli: Cli, runs: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    words = ["compress", runs, "-o", tmp_path / "file" / "deep" / "s"]
    for more in ([], ["--dry-run"]):
        found = cli(*words, *more, code=1).err
        assert "cannot be written" in found
        assert f"found: {tmp_path / 'file'}" in found


# ---- flags without effect


@pytest.mark.parametrize("flag", ["--incremental", "--project"])
def test_a_flag_without_effect_on_a_coded_collection_says_so(
    cli: Cli, runs: Path, tmp_path: Path, flag: str
) -> None:
    coded = tmp_path / "coded"
    cli("compress", runs / "task00", runs / "task01", "-o", coded)
    said = cli("add", coded, runs / "task02", flag).err
    assert said.count(f"{flag}: no effect") == 1
    found = cli("add", coded, runs / "task03", flag, "--json").data
    assert len(found["notes"]) == 1
    assert found["how"] == "absorb"


def test_on_a_basis_these_flags_work_and_nothing_is_said(
    cli: Cli, runs: Path, tmp_path: Path
) -> None:
    cli("compress", runs / "task00", runs / "task01", "-o", tmp_path / "s", "-k", "8")
    found = cli("add", tmp_path / "s", runs / "task02", "--incremental")
    assert "no effect" not in found.err


@pytest.mark.parametrize("method", ["auto", "own"])
def test_a_coded_collection_has_no_loadings_to_pack(
    cli: Cli, runs: Path, tmp_path: Path, method: str
) -> None:
    cli("compress", runs, "-o", tmp_path / "s", "--method", method)
    words = ["quantize", tmp_path / "s", "-o", tmp_path / "q"]
    assert cli(*words, "--loadings").err.count("loadings: no effect") == 1
    notes = cli(*words, "--force", "--loadings", "--json").data["notes"]
    assert sum("no effect" in note for note in notes) == 1
    assert len(notes) == 2  # and what was done
    for plain in (words, ["compress", runs, "-o", tmp_path / "q", "--method", method]):
        assert "no effect" not in cli(*plain, "--force").err
    packed = ["compress", runs, "-o", tmp_path / "q", "--method", method, "--quantize", "int8"]
    assert "no effect" not in cli(*packed, "--force").err


def test_nf4_has_four_bits_whatever_is_asked_for(cli: Cli, runs: Path, tmp_path: Path) -> None:
    cli("compress", runs, "-o", tmp_path / "s", "-k", "2")
    words = ["quantize", tmp_path / "s", "-o", tmp_path / "q", "--force", "--method", "nf4"]
    assert cli(*words, "--bits", "8").err.count("--bits 8: no effect") == 1
    assert cli(*words, "--bits", "8", "--json").data["notes"] == ["--bits 8: no effect; nf4 has 4"]
    for more in ([], ["--bits", "4"]):
        assert "no effect" not in cli(*words, *more).err


def test_flags_of_the_second_library_without_effect_are_in_the_json_too(
    cli: Cli, runs: Path, tmp_path: Path
) -> None:
    words = ["compress", runs, "-o", tmp_path / "s", "-k", "2"]
    (note,) = cli(*words, "--layer-by-layer", "--chunk-size", "8", "--json").data["notes"]
    assert note.startswith("--layer-by-layer and --chunk-size: no effect")
    assert cli(*words, "--force", "--json").data["notes"] == []


# ---- figures


def test_bytes_that_a_collection_was_coded_for_are_a_count(
    cli: Cli, runs: Path, tmp_path: Path
) -> None:
    cli("compress", runs, "-o", tmp_path / "s", "--budget", "6kB")
    for words in (("add", tmp_path / "s", runs / "task00", "--task-id", "more"), ("compact",)):
        cli(*words[:1], *(words[1:] or [tmp_path / "s"]))
        stored = (tmp_path / "s" / "subspace.json").read_text()
        for text in (stored, cli("info", tmp_path / "s", "--json").out):
            target = json.loads(text)["coding"]["target"]
            assert json.dumps(target) == '{"budget": 6000}'


def test_info_gives_the_variance_of_both_sides(cli: Cli, runs: Path, tmp_path: Path) -> None:
    shares = []
    for k in (1, 2, 16):
        cli("compress", runs, "-o", tmp_path / str(k), "-k", k)
        data = cli("info", tmp_path / str(k), "--json").data
        assert data["variance_explained_note"] is None
        shares.append((data["variance_explained_a"], data["variance_explained_b"]))
        assert min(shares[-1]) >= data["variance"] - 1e-6
    assert shares[0] < shares[1] < shares[2]
    assert shares[2] == pytest.approx((1.0, 1.0), abs=1e-6)
    for k, pair in zip((1, 2), shares, strict=False):
        opened = SharedSubspace.load(tmp_path / str(k))
        kept = whole = 0.0
        for name in sorted(p.name for p in runs.iterdir()):
            from vlora_engine import load_adapter

            weights, norm2 = load_adapter(runs / name), opened.tasks.record(name).norm ** 2
            for layer in opened.layer_names:
                dw = weights.scales[layer] * weights.lora_b[layer].double()
                dw = dw @ weights.lora_a[layer].double()
                rows = opened.components_a[layer].double()
                kept += float((dw @ rows.T).square().sum()) / norm2
                whole += float(dw.square().sum()) / norm2
        assert pair[0] == pytest.approx(kept / whole, rel=1e-3)


def test_where_there_is_no_basis_the_variance_is_null_with_a_reason(
    cli: Cli, runs: Path, tmp_path: Path
) -> None:
    cli("compress", runs, "-o", tmp_path / "coded")
    data = cli("info", tmp_path / "coded", "--json").data
    assert data["variance_explained_a"] is data["variance_explained_b"] is None
    assert "no basis" in data["variance_explained_note"]


def test_benchmark_prints_the_ratio_and_takes_seconds(
    cli: Cli, built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vlora_tui.cli import care

    assert care.SECONDS * 5 * 2 < 10  # every operation once to warm up, then as long again
    seen: list[str] = []
    monkeypatch.setattr(
        "vlora_tui.cli.progress.Watcher.on_progress",
        lambda self, progress: seen.append(progress.detail),
    )
    found = cli("benchmark", built)
    assert "compression ratio" in found.out
    assert len(seen) == 5
    ratio = cli("info", built, "--json").data["compression_ratio"]
    assert cli("benchmark", built, "--json").data["compression_ratio"] == ratio


def test_the_first_librarys_info_has_the_same_keys(cli: Cli, runs: Path, tmp_path: Path) -> None:
    pytest.importorskip("vlora")
    from click.testing import CliRunner
    from vlora import SharedSubspace as Theirs
    from vlora import load_adapter as load
    from vlora.cli import info

    theirs = Theirs.from_adapters([load(p) for p in sorted(runs.iterdir())], num_components=2)
    theirs.save(tmp_path / "theirs")
    row = json.loads(CliRunner().invoke(info, [str(tmp_path / "theirs"), "--json"]).output)
    cli("compress", runs, "-o", tmp_path / "ours", "-k", "2")
    ours = cli("info", tmp_path / "ours", "--json").data
    wanted = {"variance_explained_a", "variance_explained_b", "num_components", "task_ids"}
    assert wanted <= row.keys() & ours.keys()


def test_streaming_takes_adapter_paths(runs: Path) -> None:
    vlora = pytest.importorskip("vlora")
    for cls in (SharedSubspace, vlora.SharedSubspace):
        assert "adapter_paths" in inspect.signature(cls.from_adapters_streaming).parameters
        made = cls.from_adapters_streaming(adapter_paths=sorted(runs.iterdir()), num_components=2)
        assert sorted(made.tasks) == [p.name for p in sorted(runs.iterdir())]
