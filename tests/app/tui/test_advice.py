"""What screens make of advice that was written for the command line."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from tests.conftest import ROOT
from vlora_engine.errors import AdapterError, CollectionError
from vlora_tui.cli.app import COMMANDS
from vlora_tui.tui.text import COMMAND_ALONE, advice, in_words, needs_command, problem_words

ROOMS = ("engine/vlora_engine", "vlora_tui/pipeline", "vlora_tui/jobs", "vlora_tui/recipe")
SAID = ("expected", "found", "what", "unknown", "where")  # beside the first two arguments
# Said where somebody has typed a flag, or asked for a file from a command.
TYPED = ("targets/sizing.py", "recipe/model.py", "jobs/control.py", "jobs/store.py")


@pytest.mark.parametrize("command", [name for name, entry in COMMANDS.items() if entry.help])
def test_every_command_is_known_as_one(command: str) -> None:
    word = "run --headless" if command == "run" else command
    assert needs_command(f"list them with `vlora-tui {word}`")
    assert advice(f"vlora-tui {word} X, or wait") == "wait"


def test_other_programs_keep_their_flags() -> None:
    text = "start vLLM with --max-lora-rank 32 --enable-lora"
    assert advice(text) == text
    assert advice("mount it, or run vlora-tui there") == "mount it, or run vlora-tui there"


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("check the path; `vlora-tui inspect DIR` lists what a folder holds", "check the path"),
        ("compress each group of `vlora-tui inspect` separately", "compress each group by itself"),
        ("make one with `vlora-tui compress ADAPTERS -o DIR`", "compress the adapters first"),
        (
            "check the subspace (vlora-tui validate), or compress the adapters again",
            "check the subspace, or compress the adapters again",
        ),
        (
            "free some space; then vlora-tui jobs resume 20261130-1: it goes on with the modules "
            "that are done",
            "free some space; then resume it in Run: it goes on with the modules that are done",
        ),
        ("if that machine is gone for good, add --gone", COMMAND_ALONE),
        ("", ""),
    ],
)
def test_commands_become_what_the_screen_has(said: str, shown: str) -> None:
    assert advice(said) == shown


def test_every_fix_of_several_errors_is_said_so() -> None:
    inner = AdapterError("It is broken.", remedy="leave it out with --skip-bad, or fix it")
    outer = CollectionError("Two cannot be used.", errors=[inner, inner], remedy="see --names")
    shown = problem_words(outer)
    assert "--" not in shown
    assert shown.count("fix: skip it, or fix it") == 2
    assert f"fix: {COMMAND_ALONE}" in shown


def test_a_detail_that_has_the_words_of_the_fix_stays() -> None:
    error = AdapterError("It failed.", found="no room: free some", remedy="free some")
    assert "found: no room: free some" in problem_words(error)


def test_no_message_names_a_command() -> None:
    """What went wrong, not how to mend it: these texts are shown as they are."""
    named = [f"{place}: {text}" for place, text in messages() if needs_command(in_words(text))]
    assert named == []


def messages() -> Iterator[tuple[str, str]]:
    for room in ROOMS:
        for file in sorted((ROOT / room).rglob("*.py")):
            place = str(file.relative_to(ROOT))
            if place.endswith(TYPED):
                continue
            for node in ast.walk(ast.parse(file.read_text("utf-8"))):
                if isinstance(node, ast.Call) and _is_message(node.func):
                    given = [word.value for word in node.keywords if word.arg in SAID]
                    for value in (*node.args[:2], *given):
                        yield f"{place}:{value.lineno}", _text(value)


def _is_message(func: ast.expr) -> bool:
    name = func.attr if isinstance(func, ast.Attribute) else getattr(func, "id", "")
    return name.endswith("Error") or name in ("Remark", "Finding", "Hit", "Reach")


def _text(value: ast.expr) -> str:
    """The words of a constant or an f-string; what is put in stands as ``X``."""
    if isinstance(value, ast.JoinedStr):
        return "".join(
            _text(part) if isinstance(part, ast.Constant) else "X" for part in value.values
        )
    return value.value if isinstance(value, ast.Constant) and isinstance(value.value, str) else ""
