"""Settings: flag > variable > file > default, each with its source; what is wrong has a line."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.app.conftest import Cli
from vlora_tui.utils.config import config_file, load_config, template


@pytest.fixture
def file(home: Path) -> Path:
    """The config file, not there yet."""
    config_file().parent.mkdir(parents=True, exist_ok=True)
    assert config_file().is_relative_to(home)
    return config_file()


def test_the_nearer_source_wins(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_config().values["theme"] == ("textual-dark", "default")
    file.write_text('# mine\ntheme = "nord"\n')
    assert load_config().values["theme"] == ("nord", "line 2")
    monkeypatch.setenv("VLORA_THEME", "dracula")
    assert load_config().values["theme"] == ("dracula", "VLORA_THEME")
    assert load_config({"theme": "gruvbox"}).values["theme"] == ("gruvbox", "--theme")
    assert load_config({"theme": None}).values["theme"].source == "VLORA_THEME"


@pytest.mark.parametrize(
    ("text", "line", "word"),
    [
        ("theme = 3", 1, "text"),
        ("\nasci = true", 2, "did you mean ascii?"),
        ("scan_limit = 0", 1, "1 or more"),
        ('mouse = "yes"', 1, "true or false"),
        ("theme = ", 1, "no TOML"),
        ('[keys]\n"app.help" = 1', 2, "must be text"),
    ],
)
def test_a_mistake_is_told_with_its_line(file: Path, text: str, line: int, word: str) -> None:
    file.write_text(text)
    config = load_config()
    assert [problem.line for problem in config.problems] == [line]
    assert word in config.problems[0].text(file)
    assert config["theme"] == "textual-dark"


def test_a_variable_that_is_no_value_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLORA_SCAN_DEPTH", "deep")
    config = load_config()
    assert config["scan_depth"] == 4
    assert "VLORA_SCAN_DEPTH" in config.problems[0].what


def test_the_template_is_a_sound_file_that_changes_nothing(file: Path) -> None:
    before = load_config()
    file.write_text(template())
    after = load_config()
    assert not after.problems
    assert {n: v.value for n, v in before.values.items()} == {
        n: v.value for n, v in after.values.items()
    }


@pytest.mark.parametrize(
    ("keys", "line", "word"),
    [
        ('"app.hlep" = "f1"', 2, "did you mean app.help?"),
        ('"app.help" = "hyperspace"', 2, "no key"),
        ('"app.help" = "ctrl+b"', 2, "tmux"),
        ('"app.help" = "q"', 2, "app.leave"),
        ('"app.help" = "f1"\n"app.copy" = "f1"', 3, "app.help"),
        ('app.help = "f1"\nadapters.nothing = "x"', 3, "no binding"),
    ],
)
def test_keys_that_cannot_be_are_told_with_their_line(
    file: Path, keys: str, line: int, word: str
) -> None:
    from vlora_tui.tui.app.keymap import check_keys

    file.write_text(f"[keys]\n{keys}\n")
    problems = check_keys(load_config())
    assert [problem.line for problem in problems] == [line]
    assert word in problems[0].text(file)


def test_good_keys_are_no_problem(file: Path) -> None:
    from vlora_tui.tui.app.keymap import check_keys

    file.write_text('[keys]\n"app.help" = "f1,?"\napp.copy = "c"\n"step.run" = ["f3", "3"]\n')
    config = load_config()
    assert config.keys == {"app.help": "f1,?", "app.copy": "c", "step.run": "f3,3"}
    assert not config.problems
    assert not check_keys(config)


def test_config_show_and_path(cli: Cli, file: Path) -> None:
    file.write_text('theme = "nord"\n')
    data = cli("config", "show", "--json").data
    assert {"name": "theme", "value": "nord", "source": "line 1"} in data["settings"]
    assert cli("config", "path").out.strip() == str(file)
    assert "nord" in cli("config").out
    file.write_text("them = 1\n")
    assert "line 1" in cli("config", code=3).err


def test_config_edit_makes_the_file_and_opens_it(
    cli: Cli, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "terminal" in cli("config", "edit", code=2).err
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    for wrong in ("no-such-editor", "'vi", "''"):
        monkeypatch.setenv("EDITOR", wrong)
        told = cli("config", "edit", code=2).err
        assert "No editor was found." in told
        assert f"$EDITOR is {wrong}" in told
    monkeypatch.setenv("EDITOR", "true")
    cli("config", "edit")
    assert file.read_text() == template()
