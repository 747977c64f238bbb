"""Styles without colours."""

from __future__ import annotations

import pytest

from vlora_tui.tui.terminal.sgr import without_colour


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
