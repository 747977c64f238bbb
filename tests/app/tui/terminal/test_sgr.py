"""Merged styles: the same picture in fewer bytes."""

from __future__ import annotations

import random
import re

import pytest

from vlora_tui.tui.terminal.sgr import _PLAIN, _look, merged, without_colour

STYLES = ["1;38;5;115;48;5;17", "38;5;74;48;5;17", "38;2;1;2;3;48;5;17", "31", "97;100;2;3", "7"]


def cells(text: str) -> list[tuple[str, object]]:
    """Each character with the style that it has."""
    look, found = _PLAIN, []
    for codes, character in re.findall(r"\x1b\[([\d;]*)m|(\x1b\[\d+;\d+H|.)", text, re.DOTALL):
        if character:
            found.append((character, look if character[0] != "\x1b" else None))
        else:
            look = _look(codes, look) or look
    return [*found, ("end", look)]


def test_the_picture_stays_the_same() -> None:
    chance = random.Random(5)
    for _ in range(300):
        text = "".join(
            chance.choice(["", "\x1b[3;7H", "x"])
            + f"\x1b[{chance.choice(STYLES)}m{chance.choice(['ab', '', '┃ '])}\x1b[0m"
            for _ in range(chance.randrange(1, 12))
        )
        assert cells(merged(text)) == cells(text)


def test_only_what_changes_is_told() -> None:
    text = "\x1b[38;5;1;48;5;2ma\x1b[0m\x1b[38;5;3;48;5;2mb\x1b[0m\x1b[1;38;5;3;48;5;2mc\x1b[0m"
    assert merged(text) == "\x1b[0;38;5;1;48;5;2ma\x1b[38;5;3mb\x1b[1mc\x1b[0m"


@pytest.mark.parametrize(
    "text", ["", "words", "\x1b[4:3mx\x1b[0m", "\x1b[58;5;1mx", "\x1b[38;5mx", "\x1b[?25l\x1b[2J"]
)
def test_what_is_not_understood_is_left_alone(text: str) -> None:
    assert merged(text) == text


@pytest.mark.parametrize(
    ("codes", "kept"),
    [
        ("1;38;5;115;48;5;17;7", "1;7"),
        ("0;38;2;1;2;3;4", "0;4"),
        ("31;42;97;104;39;49", None),
        ("38:2::1:2:3;9", "9"),
        ("4:3", "4:3"),
        ("", ""),
        ("38;5;4;5", "5"),
    ],
)
def test_without_colour_attributes_stay(codes: str, kept: str | None) -> None:
    wanted = "a" if kept is None else f"\x1b[{kept}ma"
    assert without_colour(f"\x1b[{codes}ma") == wanted


def test_without_colour_nothing_else_is_touched() -> None:
    text = "\x1b[2;38H\x1b[?1049h31m \x1b[38;5;1mred\x1b[0m"
    assert without_colour(text) == "\x1b[2;38H\x1b[?1049h31m red\x1b[0m"
