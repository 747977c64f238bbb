"""Texts that name keys follow the user's own keys; no text names a key by itself."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot

from tests.app.tui.adapters.test_adapters import settle
from tests.app.tui.drive import run
from tests.conftest import ROOT
from vlora_engine.errors import StorageError
from vlora_tui.tui.app.app import VLoRAApp
from vlora_tui.tui.app.keymap import all_bindings
from vlora_tui.tui.key_names import key, keyed, places, use
from vlora_tui.tui.text import advice, problem_words
from vlora_tui.tui.widgets.dialogs import Help
from vlora_tui.utils.config import config_file, load_config

ROOMS = (
    *("adapters", "app", "charts", "choose", "core", "export", "inspect", "run", "terminal"),
    "widgets",
)
TUI = ROOT / "vlora_tui" / "tui"
# A key in prose: Enter and Esc, or a letter or a step's number on its own before what it does.
NAMED = re.compile(
    r"(?<![<.\w])(?:[Ee]nter|[Ee]sc|[Ee]scape)(?![\w>])"
    r"|(?<![<.\w])(?:tab|[Ss]pace|[Bb]ackspace)(?=:? (?:who|marks?|clears?|goes|keeps?))"
    r"|(?:^|[ (;.])[b-jl-zC-HJ-Z](?= [a-z]{3,}s? ?)"
    r"|(?:^|[ (;.])[1-5] (?:shows|goes|opens|the job)|[Pp]ress [\w*](?: |$)"
    r"|\((?:[b-zB-Z]|[1-5])\)|^[a-zS]: |\([a-z] to "
)
# Fields take Enter whatever the keys are; the others are no keys.
FIXED = re.compile(
    r"Enter (?:accept|open)\b|Enter (?:an?|from) |^ [hs] left|^x (?:smaller|larger|typical)"
    r"|^x the (?:size|typical)"
    r"| x k |r x |Esc cancel|[dky] (?:keep|discard|yes).*"
)


def texts() -> Iterator[tuple[str, int, str]]:
    """Every text constant of the rooms, without docstrings."""
    for room in ROOMS:
        for file in sorted((TUI / room).glob("*.py")):
            tree = ast.parse(file.read_text("utf-8"))
            skip = {
                id(node.value)
                for node in ast.walk(tree)
                if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            }
            for node in ast.walk(tree):
                if not isinstance(node, ast.Constant) or id(node) in skip:
                    continue
                if isinstance(node.value, str) and " " in node.value:
                    yield f"{room}/{file.name}", node.lineno, node.value


def test_no_text_names_a_key_by_itself() -> None:
    found = [
        f"{where}:{line}: {text!r}"
        for where, line, text in texts()
        if NAMED.search(FIXED.sub("", text))
    ]
    assert not found, "\n".join(found)


def test_the_keys_that_texts_name_are_there() -> None:
    known = all_bindings()
    for file in sorted(TUI.rglob("*.py")):
        if file.name == "key_names.py":
            continue
        source = file.read_text("utf-8")
        named = places(source) + re.findall(r"\bkey\([\"']([a-z_.]+)[\"']\)", source)
        for name in named:
            assert name in known, f"{file.name}: {name}"


def test_keys_as_texts_say_them() -> None:
    use({})
    assert key("adapters.go") == "Enter"
    assert key("adapters.all") == "+"
    assert key("export.lighter") == "["
    assert key("open.look") == "ctrl+o"
    use({"adapters.go": "f5,enter", "adapters.all": "ctrl+t"})
    assert keyed("<adapters.go> opens, <adapters.all> marks") == "f5 opens, ctrl+t marks"
    assert keyed("a < b > c, <{task}>") == "a < b > c, <{task}>"
    use({})


def test_hints_and_help_follow_a_key_of_the_users_own(runs: Path, messages: list[str]) -> None:
    config_file().parent.mkdir(parents=True, exist_ok=True)
    own = {"adapters.mark": "f6", "adapters.go": "f7", "step.choose": "f8", "dialog.cancel": "f9"}
    lines = [f'"{name}" = "{keys}"' for name, keys in own.items()]
    config_file().write_text("\n".join(["[keys]", *lines, ""]))

    async def steps(pilot: Pilot[Any]) -> None:
        await settle(pilot)
        screen = pilot.app.screen
        assert "f6 one" in str(screen.query_one("#adapters-hint").render())
        await pilot.press("f7")
        assert any("Press f8 to continue" in text for text in messages)
        assert screen.query_one("Buttons").text == "[ f8 Choose k ]"
        await pilot.press("question_mark")
        assert isinstance(pilot.app.screen, Help)
        assert "f7 opens what the cursor is on" in pilot.app.screen.text().plain

    run(VLoRAApp([str(runs)], config=load_config()), steps)
    use({})


def test_the_texts_of_the_other_steps_follow_them_too(runs: Path) -> None:
    config_file().parent.mkdir(parents=True, exist_ok=True)
    own = {"step.adapters": "f6", "step.choose": "f8", "choose.build": "f7", "inspect.write": "f9"}
    own |= {"step.inspect": "f5", "choose.k": "f4", "inspect.enter": "f3"}
    lines = [f'"{name}" = "{keys}"' for name, keys in own.items()]
    config_file().write_text("\n".join(["[keys]", *lines, ""]))

    async def steps(pilot: Pilot[Any]) -> None:
        await settle(pilot)
        screen = pilot.app.screen
        await pilot.press("f8")
        await pilot.pause()
        waits = str(screen.query_one("#choose-wait").render())
        assert "Press f6 and mark the adapters" in waits
        assert "then press f8" in waits
        await pilot.press("question_mark")
        words = pilot.app.screen.text().plain  # type: ignore[attr-defined]
        assert "f7 builds the present choice" in words
        assert "f4 types k" in words
        await pilot.press("escape", "f5")
        await pilot.pause()
        await pilot.press("question_mark")
        assert "f3 on a pair compares" in pilot.app.screen.text().plain  # type: ignore[attr-defined]
        await pilot.press("escape", "f9")
        assert any("f7 builds on step 2" in n.message for n in pilot.app._notifications)

    run(VLoRAApp([str(runs)], config=load_config()), steps)
    use({})


def test_errors_on_a_screen_name_no_flags() -> None:
    remedy = "name another with --state-dir DIR (or XDG_STATE_HOME)"
    error = StorageError("The state directory cannot be written.", where="/x", remedy=remedy)
    assert "--state-dir" in str(error)
    assert problem_words(error).splitlines() == [
        "The state directory cannot be written.",
        "  where: /x",
        "  fix: set XDG_STATE_HOME to another folder",
    ]
    by_command = "Full.\n  fix: the command line has an option for it"
    assert problem_words(StorageError("Full.", remedy="use --force")) == by_command
    assert problem_words(OSError("gone")) == "gone"


def test_what_a_step_says_of_an_error_goes_that_way() -> None:
    """A plain ``str`` of an error would show the flags of a command."""
    plain = re.compile(r"\bstr\(error\)|\{(?!advice)[a-z_.\[\]\"']*remedy")
    fine = re.compile(r"strerror or str\(error\)|clean\(str\(error\)\)\[")
    for file in sorted(TUI.rglob("*.py")):
        if file.name != "text.py":
            assert not plain.search(fine.sub("", file.read_text("utf-8"))), file


@pytest.mark.parametrize(
    ("remedy", "shown"),
    [
        ("use an earlier checkpoint of it, or leave it out with --skip-bad",
         "use an earlier checkpoint of it, or skip it"),
        ("choose another output, or replace it with --force (in Python force=True)",
         "choose another output, or confirm replacing it"),
        ("allow more error, or store components in fp32: --method delta", "allow more error"),
        ("give every adapter a name of its own (--names)", "give every adapter a name of its own"),
        ("start the server with --max-lora-rank 32", "start the server with --max-lora-rank 32"),
        ("wait until it is done (without --no-wait, a command does)", "wait until it is done"),
        ("leave them out: export --target peft --drop-rest", 'set "other tensors" to drop'),
        ("leave them out on purpose: --drop-rest, when exporting", 'set "other tensors" to drop'),
        ("name the base model's folder, or its config.json: --base DIR",
         'set "base" to the base model\'s folder, or its config.json'),
        ("is this the base model that the adapter was trained on? --base names it",
         'is this the base model that the adapter was trained on? Set "base" to that one'),
        ("lower it first: resize --target vllm; or export to sglang",
         "lower it first (action resize, for a server); or export to sglang"),
        ("export it with --target portable -o 'a b', then with llama.cpp's own converter: python "
         "convert_lora_to_gguf.py 'a b' --base m --outfile x, y.gguf",
         "export it for the target portable, then use llama.cpp's own convert_lora_to_gguf.py"),
        ("name the rank and take the loss: --rank 8; or allow it: --max-error; or serve it "
         "where any rank is taken (sglang, tgi, lorax)",
         'take the loss: resize by "fixed rank" 8; or serve it where any rank is taken '
         "(sglang, tgi, lorax)"),
        ("--method linear takes the weight as it is; so does --no-normalize",
         'method linear takes the weight as it is; so does "normalize" set to no'),
        ("--rank 16", "the command line has an option for it"),
        ("", ""),
    ],
)  # fmt: skip
def test_flags_are_not_advised_on_a_screen(remedy: str, shown: str) -> None:
    assert advice(remedy) == shown
