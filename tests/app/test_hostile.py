"""Hostile inputs, made on the spot: each ends with a code and words of the program's own, soon."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import tomli_w

from tests.app.conftest import Cli
from tests.witnesses import make
from vlora_tui.cli import main
from vlora_tui.utils.formatting import escaped_json, escaped_toml

SECONDS = 20  # after which whatever waits for a pipe is a failure


@contextmanager
def in_time() -> Iterator[None]:
    """Fail what waits for ever, as opening a pipe does."""

    def stop(*_: object) -> None:
        raise AssertionError("it waits")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def put_pipe(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def put_socket(path: Path) -> None:
    path.unlink(missing_ok=True)
    before = Path.cwd()
    os.chdir(path.parent)  # a socket's path may have a hundred bytes
    try:
        socket.socket(socket.AF_UNIX).bind(path.name)
    finally:
        os.chdir(before)


def put_device(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to("/dev/zero")


SPECIAL = {"pipe": put_pipe, "socket": put_socket, "device": put_device}
RECIPE = '[input]\nadapters = ["{runs}"]\n[compress]\nk = 2\n[output]\nsubspace = "{out}"\n'
MERGE = "merge_method: linear\nmodels:\n- model: {runs}/task00\n- model: {runs}/task01\n"


@pytest.fixture
def place(runs: Path, built: Path, tmp_path: Path, cli: Cli) -> Path:
    """A folder with a collection, its subspace, spectra, a recipe, a merge file and an old job."""
    shutil.copytree(runs, tmp_path / "runs")
    shutil.copytree(built, tmp_path / "built")
    out = tmp_path / "out"
    (tmp_path / "r.toml").write_text(RECIPE.format(runs=tmp_path / "runs", out=out))
    (tmp_path / "m.yml").write_text(MERGE.format(runs=tmp_path / "runs"))
    for name in ("20260101-000000-abcd", "20260102-000000-beef"):
        job = tmp_path / "state" / "jobs" / name
        job.mkdir(parents=True)
        info = {"id": name, "kind": "build", "title": name[-4:], "created": 1.0}
        (job / "job.json").write_text(str(info).replace("'", '"'))
        (job / "recipe.toml").write_text(RECIPE.format(runs=tmp_path / "runs", out=out))
        (job / "events.jsonl").write_text("")
    return tmp_path


PIPED = [
    ("runs/task00/adapter_config.json", "inspect {p}/runs/task00", {0, 2}),
    ("runs/task00/adapter_config.json", "compress {p}/runs -o {p}/out -k 2", {2}),
    ("runs/task00/adapter_model.safetensors", "inspect {p}/runs", {0, 2}),
    ("runs/task00/adapter_model.safetensors", "doctor {p}/runs", {2, 3}),
    ("runs/task00/adapter_model.safetensors", "compress {p}/runs -o {p}/out -k 2", {2}),
    ("runs/task00/adapter_model.safetensors", "merge {p}/runs/task00 {p}/runs/task01 -o {p}/out",
     {2}),
    ("built/subspace.json", "info {p}/built", {2}),
    ("built/subspace.json", "validate {p}/built", {2, 3}),
    ("built/subspace.json", "inspect {p}", {0, 2}),
    ("built/basis.safetensors", "validate {p}/built", {3}),
    ("built/basis.safetensors", "export {p}/built task00 -o {p}/out", {2}),
    ("built/tasks/task00.safetensors", "validate {p}/built", {3}),
    ("built/tasks/task00.safetensors", "export {p}/built task00 -o {p}/out", {2}),
    ("r.toml", "run --headless {p}/r.toml", {2}),
    ("m.yml", "merge {p}/m.yml -o {p}/out", {2}),
    ("state/jobs/20260101-000000-abcd/job.json", "jobs list --state-dir {p}/state", {0}),
    ("state/jobs/20260101-000000-abcd/events.jsonl", "jobs list --state-dir {p}/state", {0}),
    ("state/jobs/20260101-000000-abcd/recipe.toml", "jobs list --state-dir {p}/state", {0}),
]  # fmt: skip


@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.parametrize(("name", "line", "codes"), PIPED)
def test_what_is_no_file_is_not_opened(
    name: str, line: str, codes: set[int], kind: str, place: Path, cli: Cli
) -> None:
    SPECIAL[kind](place / name)

    with in_time():
        found = cli(*line.format(p=place).split(), code=None)

    assert found.code in codes, found
    assert "A fault of vlora-tui" not in found.err
    if found.code == 2:
        assert "no regular file" in found.err
    if line.startswith("jobs"):
        assert "beef" in found.out
    assert not (place / "out").exists()


# --- names -----------------------------------------------------------------------------------

NASTY = ["\x1b[31mred", "a\x9bb", "rtl\u202eeman", "cr\rlf\nx", "*", "?", "[a-z]", "isolate\u2066x"]
RAW = [chr(c) for c in [*range(0x20), *range(0x7F, 0xA0)] if chr(c) != "\n"]
RAW += list("\u061c\u200e\u200f\u2028\u2029\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


@pytest.fixture(scope="session")
def nasty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a subspace of each kind whose tasks have such names, and their adapters."""
    folder = tmp_path_factory.mktemp("nasty")
    make.collection(folder / "runs", len(NASTY))
    runs = sorted(str(path) for path in (folder / "runs").iterdir())
    for method, choice in (("delta", ["-k", "16"]), ("own", ["--max-error", "0.05"])):
        place = ["-o", str(folder / method), "--method", method, *choice, "-q"]
        assert main(["compress", *runs, *place, "--names", *NASTY]) == 0
    return folder


@pytest.mark.parametrize("method", ["delta", "own"])
@pytest.mark.parametrize(
    "line",
    [
        "info {s}",
        "validate {s}",
        "inspect {s}",
        "analyze {s}",
        "analyze {s} --csv -",
        "diff {s}:* {s}:?",
        "export {s} --all -o {out}",
        "export {s} --all -o {out} --dry-run",
        "export {s} nope -o {out}",
        "resize {s} -o {out} --rank 2",
        "interference {s}",
        "doctor {s}",
        "convert {s} --to peft -o {out}",
        "remove {copy} ? --dry-run",
    ],
)
def test_no_command_prints_what_moves_the_cursor(
    line: str, method: str, nasty: Path, tmp_path: Path, cli: Cli
) -> None:
    space = nasty / method
    words = line.format(s=space, out=tmp_path / "out", copy=space).split()
    forms = [words, [*words, "--json"]] if "--csv" not in words else [words]
    for form in forms:
        shutil.rmtree(tmp_path / "out", ignore_errors=True)

        found = cli(*form, code=None)

        assert found.code in (0, 2, 3), found
        printed = found.out + found.err
        assert not [c for c in RAW if c in printed], form
        assert "A fault of vlora-tui" not in printed
        if "--json" in form and found.code != 2:
            assert found.data


def test_json_holds_the_names_as_they_are(nasty: Path, cli: Cli) -> None:
    names = [task["id"] for task in cli("info", nasty / "own", "--json").data["tasks"]]

    assert sorted(names) == sorted(NASTY)


def test_names_that_a_format_cannot_hold_are_refused_or_kept(
    nasty: Path, tmp_path: Path, cli: Cli
) -> None:
    found = cli("convert", nasty / "delta", "--to", "vlora-dev", "-o", tmp_path / "o", code=None)

    if found.code:
        assert found.code == 2
        assert not (tmp_path / "o").exists()
    else:
        cli("validate", tmp_path / "o")


def test_what_is_escaped_is_the_same_value() -> None:
    texts = [*map(chr, range(0x3000)), "\ud800", "\udc80", "\U000e0001", "\U0001f600", *RAW]
    row = {text: [text, {"in": text}] for text in texts}

    shown = escaped_json(json.dumps(row, ensure_ascii=False, indent=1))

    assert json.loads(shown) == row
    assert shown.replace("\n", "").isprintable()
    kept = {f"k{text}": text for text in texts if not "\ud800" <= text <= "\udfff"}
    assert tomllib.loads(escaped_toml(tomli_w.dumps(kept))) == kept
