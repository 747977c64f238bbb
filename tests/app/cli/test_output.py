"""What the command line says where: data on stdout, all else on stderr, help at once."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from tests.app.conftest import Cli
from tests.conftest import FreshPython
from vlora_engine import __version__
from vlora_engine.manifest.manifest import Manifest
from vlora_tui.cli import output
from vlora_tui.cli.app import COMMANDS
from vlora_tui.cli.output import Output, table_lines
from vlora_tui.utils.formatting import percent, plural, printable, size

READING = [
    "inspect {runs}",
    "info {built}",
    "spectra {runs}",
    "analyze {runs}",
    "diff {built} task00 task01",
    "coverage {built} {runs}/task00",
    "validate {built}",
    "benchmark {built} --repeats 1",
]
WRITING = [
    "compress {runs} -o {out} -k 3",
    "compress {runs} -o {out}",
    "compress {runs} -o {out} --method flat -k 2",
    "export {built} task00 -o {out}",
    "merge {runs}/task00 {runs}/task01 -o {out}",
    "report {runs} -o {out}.md",
    "report {built} -o {out}.md",
    "add {copy} {runs}/task00 --task-id more",
    "remove {copy} task00",
    "run {runs} --headless -o {out} -k 3",
]


def words_of(line: str, runs: Path, built: Path, tmp_path: Path) -> list[str]:
    import shutil

    if "{copy}" in line:
        shutil.copytree(built, tmp_path / "copy")
    places = {"runs": runs, "built": built, "out": tmp_path / "o", "copy": tmp_path / "copy"}
    return [word.format(**places) for word in line.split()]


@pytest.mark.parametrize("line", [*READING, *WRITING])
def test_json_is_one_object_and_nothing_else(
    cli: Cli, runs: Path, built: Path, tmp_path: Path, line: str
) -> None:
    words = words_of(line, runs, built, tmp_path)
    found = cli(*words, "--json")
    assert found.data["schema"] == f"vlora-tui/{words[0]}"
    assert found.err == ""


@pytest.mark.parametrize("line", [*READING, *WRITING])
def test_quiet_leaves_stderr_empty_and_stdout_short(
    cli: Cli, runs: Path, built: Path, tmp_path: Path, line: str
) -> None:
    found = cli(*words_of(line, runs, built, tmp_path), "-q")
    assert found.err == ""
    assert len(found.out.splitlines()) <= 4


@pytest.mark.parametrize("line", [*READING, *WRITING])
def test_people_get_words_without_colour_when_it_is_no_terminal(
    cli: Cli, runs: Path, built: Path, tmp_path: Path, line: str
) -> None:
    found = cli(*words_of(line, runs, built, tmp_path))
    assert found.out.strip()
    assert "\x1b" not in found.out + found.err


def test_bars_are_drawn_on_a_terminal_and_only_on_stderr(
    cli: Cli, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("sys.stderr", screen)
    found = cli("compress", runs, "-o", tmp_path / "s", "--max-error", "0.2")
    drawn = screen.getvalue()
    assert "building" in drawn
    assert "\x1b" in drawn
    assert "\x1b" not in found.out
    assert found.out.startswith("auto, ")


@pytest.mark.parametrize(("variable", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_no_colour_where_it_is_not_wanted(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm")
    assert output.paint("error", "error", Terminal()) == "\x1b[31merror\x1b[0m"
    assert output.paint("error", "error", io.StringIO()) == "error"
    monkeypatch.setenv(variable, value)
    assert output.paint("error", "error", Terminal()) == "error"


def test_version(cli: Cli) -> None:
    assert cli("--version").out == f"vlora-tui {__version__}\n"


@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_help_is_data(cli: Cli, command: str | None) -> None:
    found = cli(*([command] if command else []), "--help")
    assert found.err == ""
    assert found.out.startswith("Usage: vlora-tui")
    if command is None:
        for name, entry in COMMANDS.items():
            assert name in found.out
            assert entry.help in found.out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_speaks_json(cli: Cli, command: str) -> None:
    assert "--json" in cli(command, "--help").out


def test_help_imports_no_command_and_nothing_heavy(fresh_python: FreshPython) -> None:
    code = (
        "import sys\nfrom vlora_tui.cli import main\nmain(['--help'])\n"
        "print('LOADED', *sorted(sys.modules))"
    )
    loaded = fresh_python(code).stdout.splitlines()[-1].split()[1:]
    heavy = {
        "torch",
        "numpy",
        "rich",
        "textual",
        "vlora_engine.catalog.open",
        "yaml",
        "safetensors",
    }
    assert not heavy & set(loaded)
    assert not [name for name in loaded if name.startswith("vlora_tui.cli.comp")]


def test_verbose_shows_the_engines_log_and_silence_is_the_default(
    cli: Cli, built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import logging

    from vlora_engine.catalog import read as catalog_read

    original = catalog_read.read_manifest

    def read(path: str | Path) -> Manifest:
        logging.getLogger("vlora_engine.catalog.read").info("reading it")
        logging.getLogger("vlora_engine.catalog.read").debug("every byte")
        return original(path)

    monkeypatch.setattr(catalog_read, "read_manifest", read)
    assert cli("info", built).err == ""
    assert cli("info", built, "-v").err == "vlora_engine.catalog.read: reading it\n"
    assert cli("-vv", "info", built).err.count("vlora_engine.catalog.read: ") == 2
    assert cli("info", built).err == ""  # and nothing stays behind


def test_validate_finds_what_is_wrong(cli: Cli, subspace: Path) -> None:
    assert cli("validate", subspace, "--json").data["findings"] == []
    basis = subspace / "basis.safetensors"
    raw = bytearray(basis.read_bytes())
    raw[-3] ^= 0xFF
    basis.write_bytes(raw)
    (subspace / "tasks" / "task01.safetensors").unlink()
    (subspace / "tasks" / "ghost.safetensors").touch()
    found = cli("validate", subspace, "--json", code=3)
    assert found.data["ok"] is False
    assert {(f["code"], f["where"]) for f in found.data["findings"]} == {
        ("checksum", "basis.safetensors"),
        ("file-missing", "tasks/task01.safetensors"),
        ("stray-file", "tasks/ghost.safetensors"),
    }
    said = cli("validate", subspace, code=3)
    assert "fix" in said.out
    assert "3 findings" in said.err


def test_validate_of_an_index_that_is_no_index(cli: Cli, subspace: Path) -> None:
    (subspace / "subspace.json").write_text('{"format": "vlora-subspace"')
    found = cli("validate", subspace, "--json", code=3)
    assert [f["code"] for f in found.data["findings"]] == ["unreadable"]


def test_diff_fails_above(cli: Cli, runs: Path, built: Path) -> None:
    same = ["diff", runs / "task00", f"{built}:task00", "--fail-above"]
    cli(*same, "0.001")
    found = cli(*same, "1e-12", "--json", code=3)
    assert found.data["exceeds"] is True
    assert found.data["total"]["relative_difference"] > 0
    other = cli("diff", runs / "task00", runs / "task01", "--fail-above", "0.5", code=3)
    assert "exceeds 50 %" in other.err


def test_a_table_sets_figures_flush_right() -> None:
    lines = table_lines(("name", "k", "what"), [("a", 8, "x"), ("bcd", 16, None)])
    assert lines == ["name   k  what", "a      8  x", "bcd   16"]


def test_wide_letters_keep_columns_straight() -> None:
    lines = table_lines(("name", "k"), [("日本", 1), ("ab", 2)])
    assert lines == ["name  k", "日本  1", "ab    2"]


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (45_600, "45.6 kB"), (999_600, "1 MB"),
     (123_456_789, "123 MB"), (5e12, "5 TB")],
)  # fmt: skip
def test_sizes_for_people(nbytes: float, text: str) -> None:
    assert size(nbytes) == text


def test_small_words() -> None:
    assert percent(0.0486) == "4.86 %"
    assert percent(None) == "-"
    assert percent(3e-9) == "<0.001 %"
    assert plural(1, "task") == "1 task"
    assert plural(0, "task") == "0 tasks"
    assert printable("a\nb\x07ü") == "a\\x0ab\\x07ü"


def test_a_figure_that_json_cannot_hold_is_null(capsys: pytest.CaptureFixture[str]) -> None:
    Output(as_json=True).json("x", {"a": float("nan"), "b": [float("-inf"), 1.5], 3: {"c": (1,)}})
    assert json.loads(capsys.readouterr().out) == {
        "schema": "vlora-tui/x",
        "version": 1,
        "a": None,
        "b": [None, 1.5],
        "3": {"c": [1]},
    }


REFUSED_IN_A_FINALIZER = """
import errno
import vlora_tui.cli.app as app
from vlora_tui.cli import main

class Folder:
    def __init__(self, error):
        self.error = error
    def __del__(self):
        raise self.error

def command(words):
    Folder(OSError(errno.EROFS, "read-only"))
    Folder(ValueError("not of the disk"))
    return 1

app.run_app = command
raise SystemExit(main(["info", "x"]))
"""


def test_a_finalizer_that_the_disk_refuses_says_nothing(fresh_python: FreshPython) -> None:
    done = fresh_python(REFUSED_IN_A_FINALIZER, check=False)
    assert done.returncode == 1
    assert "read-only" not in done.stderr
    assert "ValueError: not of the disk" in done.stderr
