"""Hostile inputs, made on the spot: each ends with a code and words of the program's own, soon."""

from __future__ import annotations

import hashlib
import json
import os
import re
import resource
import shutil
import signal
import socket
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import torch
from safetensors.torch import load_file, save_file

from tests.app.conftest import Cli
from tests.witnesses import make
from vlora_tui.cli import main
from vlora_tui.cli.errors import report_on
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
    assert "A bug in vlora-tui" not in found.err
    if found.code == 2:
        assert "no regular file" in found.err
    if line.startswith("jobs"):
        assert "beef" in found.out
    assert not (place / "out").exists()


def put_folder(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.mkdir()


def put_link_to_nothing(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to("gone")


def put_link_in_a_circle(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to(path.name)


NO_FILES = {
    "pipe": (put_pipe, "a named pipe"),
    "device": (put_device, "a device"),
    "folder": (put_folder, "a directory"),
    "dangling": (put_link_to_nothing, "leads nowhere"),
    "circle": (put_link_in_a_circle, "in a circle"),
}
GPT2 = '{"model_type": "gpt2", "n_layer": 2, "n_head": 2, "n_embd": 12}'
NAMED = [
    ("runs/task00/adapter_config.json", "compress {p}/runs/task00 {p}/runs/task01 -o {p}/out -k 2"),
    ("runs/task00/adapter_config.json", "doctor {p}/runs/task00"),
    ("built/basis.safetensors", "validate {p}/built"),
    ("built/tasks/task00.safetensors", "validate {p}/built"),
    ("built/tasks/task00.safetensors", "doctor {p}/built"),
    ("built/subspace.json", "info {p}/built"),
    ("built/subspace.json", "validate {p}/built"),
    ("built/subspace.json", "export {p}/built task00 -o {p}/out"),
    ("share/share_config.json", "info {p}/share"),
    ("share/adapters/task00/loadings.safetensors", "validate {p}/share"),
    ("share/adapters/task00/adapter_meta.json", "convert {p}/share --to subspace -o {p}/out"),
    ("dev/subspace_meta.json", "validate {p}/dev"),
    ("dev/subspace_meta.json", "convert {p}/dev --to subspace -o {p}/out"),
    ("mlx/adapters.safetensors", "doctor {p}/mlx"),
    ("gguf/adapter.gguf", "inspect {p}/gguf"),
    ("gguf/adapter.gguf", "export {p}/gguf -o {p}/out"),
    ("base/config.json", "doctor {p}/runs/task00 --base {p}/base"),
    ("base/config.json", "convert {p}/runs/task00 --to gguf --base {p}/base -o {p}/out"),
    ("base/config.json", "eval {p}/built --originals {p}/runs --base {p}/base"),
    ("spectra/spectra.json", "report {p}/runs --spectra {p}/spectra -o {p}/out.md"),
    ("r.toml", "run --headless {p}/r.toml"),
    ("m.yml", "merge {p}/m.yml -o {p}/out"),
]


@pytest.fixture(scope="module")
def every_kind(runs: Path, built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one of all that is read from files."""
    place = tmp_path_factory.mktemp("every-kind")
    shutil.copytree(runs, place / "runs")
    shutil.copytree(built, place / "built")
    (place / "base").mkdir()
    (place / "base" / "config.json").write_text(GPT2)
    for words in (
        "convert {p}/built --to lorashare -o {p}/share",
        "convert {p}/built --to vlora-dev -o {p}/dev",
        "convert {p}/runs/task00 --to mlx -o {p}/mlx",
        "convert {p}/runs/task00 --to gguf --base {p}/base -o {p}/gguf",
        "spectra {p}/runs -o {p}/spectra",
    ):
        assert main([*words.format(p=place).split(), "-q"]) == 0
    return place


@pytest.mark.parametrize("kind", NO_FILES)
@pytest.mark.parametrize(("name", "line"), NAMED)
def test_what_is_there_and_is_no_file_is_called_by_its_name(
    name: str, line: str, kind: str, every_kind: Path, tmp_path: Path, cli: Cli
) -> None:
    p = Path(shutil.copytree(every_kind, tmp_path / "p"))
    (p / "r.toml").write_text(RECIPE.format(runs=p / "runs", out=p / "out"))
    (p / "m.yml").write_text(MERGE.format(runs=p / "runs"))
    put, called = NO_FILES[kind]
    put(p / name)

    with in_time():
        found = cli(*line.format(p=p).split(), code=None)

    assert found.code in ((0, 2) if line.startswith("inspect") else (2, 3)), found
    said = found.out + found.err
    assert called in said, said
    assert not re.search("is missing|no such|not there|There is no", said), said
    assert not (p / "out").exists()


@pytest.mark.parametrize("kind", [kind for kind in NO_FILES if kind != "folder"])
def test_what_is_no_folder_in_the_place_of_the_tasks_is_called_by_its_name(
    kind: str, every_kind: Path, tmp_path: Path, cli: Cli
) -> None:
    share = Path(shutil.copytree(every_kind / "share", tmp_path / "share"))
    shutil.rmtree(share / "adapters")
    put, called = NO_FILES[kind]
    put(share / "adapters")
    with in_time():
        assert called in cli("info", share, code=2).err


@pytest.mark.parametrize("part", [".processor.", "unet.", ".lora.", ".lora_A", "lora_te_", "a."])
@pytest.mark.parametrize("config", [True, False])
def test_a_name_of_a_million_characters_is_matched_in_time(
    part: str, config: bool, tmp_path: Path, cli: Cli
) -> None:
    name = part * (1_000_000 // len(part))
    save_file(
        {name: torch.zeros(1, 1), "b": torch.zeros(1)}, tmp_path / "adapter_model.safetensors"
    )
    if config:
        (tmp_path / "adapter_config.json").write_text(json.dumps(make.config()))

    with in_time():
        found = cli("inspect", tmp_path, "-q", code=None)

    assert found.code in (0, 2), found.code


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
        assert "A bug in vlora-tui" not in printed
        if "--json" in form and found.code != 2:
            assert found.data


@pytest.mark.parametrize(
    "line",
    [
        "analyze {f}",
        "interference {f}",
        "coverage {s} {f}",
        "diff {s}:? {s}:*",
        "doctor {f} --json",
    ],
)
def test_no_sheet_on_a_terminal_moves_the_cursor(
    line: str, runs: Path, nasty: Path, tmp_path: Path, cli: Cli
) -> None:
    for i, name in enumerate(NASTY[:3]):
        shutil.copytree(runs / f"task0{i}", tmp_path / "named" / name)
    words = line.format(f=tmp_path / "named", s=nasty / "delta").split()
    found = cli(*words, *([] if "--json" in words else ["--csv", "-"]))
    assert not [c for c in RAW if c in found.out + found.err]


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


# --- paths and recipes -----------------------------------------------------------------------

LONG = ["x" * 300, "abc/" * 1500]


@pytest.mark.parametrize("path", LONG)
@pytest.mark.parametrize(
    "line",
    [
        "inspect {long}",
        "info {long}",
        "validate {long}",
        "compress {runs} -o {long} -k 2",
        "compress {runs} -o {out} -k 2 --spectra {long}",
        "export {built} task00 -o {long}",
        "merge {runs}/task00 {runs}/task01 -o {long}",
        "convert {runs}/task00 --to mlx -o {long}",
        "spectra {runs} -o {long}",
        "run --headless {long}.toml",
        "merge {long}.yml -o {out}",
    ],
)
def test_paths_that_no_system_has(
    line: str, path: str, runs: Path, built: Path, tmp_path: Path, cli: Cli
) -> None:
    found = cli(
        *line.format(long=path, runs=runs, built=built, out=tmp_path / "out").split(), code=2
    )

    assert "A bug in" not in found.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "changed",
    [
        'adapters = ["a\\u0000b", "{runs}/task01"]',
        'adapters = ["{long}", "{runs}/task01"]',
        "adapters = " + "[" * 5000,
        "adapters = " + "[" * 900 + "]" * 900,
        "adapters = [" + "{a = " * 3000 + "1" + "}" * 3000 + "]",
        "adapters = 1" + "0" * 5000,
        ".".join(["a"] * 5000) + " = 1",
    ],
)
def test_recipes_that_no_reader_was_made_for(
    changed: str, runs: Path, tmp_path: Path, cli: Cli
) -> None:
    text = RECIPE.format(runs=runs, out=tmp_path / "out").splitlines()
    text[1] = changed.replace("{runs}", str(runs)).replace("{long}", LONG[0])
    (tmp_path / "r.toml").write_text("\n".join(text))

    found = cli("run", "--headless", tmp_path / "r.toml", code=2)

    assert "A bug in" not in found.err
    assert not (tmp_path / "out").exists()


def test_a_recipe_comes_from_standard_input(
    runs: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(runs, tmp_path / "runs")
    recipe = RECIPE.format(runs="runs", out="made").encode()  # from where it is read

    for place in ("-", "/dev/fd/{}"):
        reading, writing = os.pipe()
        os.write(writing, recipe)
        os.close(writing)
        before = os.dup(0)
        os.dup2(reading, 0)
        try:
            with in_time():
                cli("run", "--headless", place.format(reading), "--force")
        finally:
            os.dup2(before, 0)
            os.close(before)
            os.close(reading)
        assert cli("validate", tmp_path / "made")
        shutil.rmtree(tmp_path / "made")


# --- numbers and sizes -----------------------------------------------------------------------


def repack(space: Path, change: Callable[[dict[str, Any], dict[str, torch.Tensor]], None]) -> None:
    """Change the index and the first task of a subspace, and put its checksum right."""
    index = json.loads((space / "subspace.json").read_bytes())
    row = index["tasks"][0] if isinstance(index["tasks"], list) else None
    name = row["file"] if row else f"{index['tasks']['each']['id'][0]}.safetensors"
    file = space / "tasks" / name
    tensors = load_file(file)
    change(index, tensors)
    save_file(tensors, file)
    digest, nbytes = hashlib.sha256(file.read_bytes()), file.stat().st_size
    if row:
        row |= {"sha256": digest.hexdigest(), "bytes": nbytes}
    else:
        each = index["tasks"]["each"]
        each["sha256"][0] = digest.hexdigest()
        each["bytes"][0] = nbytes
    (space / "subspace.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("packing", "name"),
    [("none", "loadings"), ("none", "norms"), ("int8", "scales"), ("nf4", "errors")],
)
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_numbers_that_are_none_are_never_exported(
    value: float, name: str, packing: str, runs: Path, tmp_path: Path, cli: Cli
) -> None:
    space = tmp_path / "s"
    cli("compress", runs, "-o", space, "-k", "3", "--quantize", packing)

    def spoil(index: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        tensors[name][0] = value

    repack(space, spoil)
    cli("export", space, "task00", "-o", tmp_path / "out", code=2)
    assert not (tmp_path / "out").exists()
    cli("validate", space, code=3)
    cli("diff", f"{space}:task00", runs / "task00", code=2)


@pytest.mark.parametrize("method", ["own", "delta"])
@pytest.mark.parametrize("rank", [512, 2047, 1 << 40])
def test_sizes_are_bounded_by_the_bytes_that_are_there(
    rank: int, method: str, tmp_path: Path, cli: Cli
) -> None:
    tensors = make.factors()
    nothing = {k: torch.zeros_like(t) if "lora_B" in k else t for k, t in tensors.items()}
    paths = [make.write(tmp_path / name, nothing) for name in "ab"]
    space, wide = tmp_path / "s", 1 << 20
    cli("compress", *paths, "-o", space, "--method", method, *(["-k", "1"] * (method == "delta")))
    index = json.loads((space / "subspace.json").read_bytes())
    if method == "own":
        for family in index["families"]:
            family[1:4] = [wide, wide, rank]
        index["tasks"]["same"]["ranks"] = rank
    else:
        for layer in index["layers"]:
            layer |= {"rank": rank}
        for task in index["tasks"]:
            task["ranks"] = rank
    (space / "subspace.json").write_text(json.dumps(index))

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    checked = cli("validate", space, code=None)
    exported = cli("export", space, "a", "-o", tmp_path / "out", code=None)

    few = method == "delta" and rank < 1 << 30  # in modules of at most 36: nothing to refuse
    assert checked.code == (0 if few else 3)
    if few:
        return
    assert exported.code in (1, 2)  # 1 where there is no room on the disk for so much
    assert "A bug in" not in exported.err
    assert not (tmp_path / "out").exists()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2_000_000  # kB


def test_what_has_no_effect_still_comes_back(tmp_path: Path, cli: Cli) -> None:
    modules = {f"h.{i}.up": (512, 1024) for i in range(4)}
    tensors = make.factors(modules, rank=64)
    nothing = {k: torch.zeros_like(t) if "lora_B" in k else t for k, t in tensors.items()}
    settings = make.config(r=64, target_modules=["up"])
    paths = [make.write(tmp_path / name, nothing, settings) for name in "ab"]
    cli("compress", *paths, "-o", tmp_path / "s", "--method", "own")

    cli("validate", tmp_path / "s")
    cli("export", tmp_path / "s", "a", "-o", tmp_path / "out")

    assert load_file(tmp_path / "out" / "adapter_model.safetensors").keys() == nothing.keys()


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 17171480576 bytes"),
        RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB"),
    ],
)
def test_too_little_memory_is_no_fault_of_the_program(error: Exception) -> None:
    reported = report_on(error)

    assert reported.details["error"] == "MemoryError"
    assert "Out of memory" in reported.lines[0]


LAUGHS = "name: [&a0 [q, q], " + ", ".join(
    f"&a{i + 1} [{', '.join([f'*a{i}'] * 9)}]" for i in range(12)
)
MERGES = {
    "a list that holds itself": "merge_method: linear\nmodels: &m [*m]\n",
    "a weight that holds itself": (
        "merge_method: linear\nmodels:\n- model: {a}\n  parameters: {weight: &w [{value: *w}]}\n"
        "- model: {b}\n  parameters: {weight: 1}\n"
    ),
    "aliases of aliases": LAUGHS + "]\nmerge_method: linear\nmodels: *a12\n",
    "a dtype that is a list": "merge_method: linear\ndtype: [1]\n" + MERGE,
    "deep lists": "merge_method: linear\nmodels: " + "[" * 3000 + "]" * 3000,
}


@pytest.mark.parametrize("name", MERGES)
def test_merge_files_without_end(name: str, runs: Path, tmp_path: Path, cli: Cli) -> None:
    text = MERGES[name].replace("{runs}", str(runs))
    text = text.replace("{a}", str(runs / "task00")).replace("{b}", str(runs / "task01"))
    (tmp_path / "m.yml").write_text(text)

    found = cli("merge", tmp_path / "m.yml", "-o", tmp_path / "out", code=2)

    assert "A bug in" not in found.err
    assert not (tmp_path / "out").exists()
