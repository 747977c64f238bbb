"""Only changed cells are written, and the terminal shows the same as if all had been."""

from __future__ import annotations

import random
import re

import pytest

from vlora_tui.tui.terminal.shown_cells import BEGIN, END, ShownCells

WIDTH, HEIGHT = 24, 5
STYLES = ["1;38;5;115;48;5;17", "38;5;74;48;5;17", "38;2;1;2;3;48;5;17", "31", "97;100;2;3", "7"]
WORDS = ["ab", "┃ ", "layer", "      ", "0.5 %", "⡠⠤", "x"]
SEQUENCE = re.compile(r"\x1b\[(\d+);(\d+)H|\x1b\[(\d+)C|\x1b\[([\d;]*)m|(\n)|(.)", re.DOTALL)


class Screen:
    """A terminal as its manual describes it: a cursor, a pen, and cells.

    The pen is a set of codes by what they set, so that it does not depend on how they are joined.
    """

    def __init__(self) -> None:
        self.cells: dict[tuple[int, int], tuple[str, tuple[tuple[str, str], ...]]] = {}
        self.row, self.column, self.pen = 1, 1, dict[str, str]()

    def feed(self, text: str) -> None:
        for row, column, right, codes, line, character in SEQUENCE.findall(text):
            if row:
                self.row, self.column = int(row), int(column)
            elif right:
                self.column += int(right)
            elif line:
                self.row, self.column = self.row + 1, 1
            elif character:
                self.cells[self.row, self.column] = character, self._seen_on(character)
                self.column += 1
            else:
                self._draw_with(codes)

    def _seen_on(self, character: str) -> tuple[tuple[str, str], ...]:
        """The pen as far as it is seen: on a blank neither the foreground nor bold is."""
        pen = self.pen
        if character == " " and not pen.keys() & {"4", "7", "9"}:
            pen = {what: code for what, code in pen.items() if what == "back"}
        return tuple(sorted(pen.items()))

    def _draw_with(self, codes: str) -> None:
        for code in re.findall(r"[34]8;(?:5;\d+|2;\d+;\d+;\d+)|\d+", codes) or ["0"]:
            first = int(code.split(";")[0])
            if first == 0:
                self.pen.clear()
            elif first < 10:
                self.pen[code] = code
            else:
                ground = "back" if 40 <= first < 50 or first >= 100 else "fore"
                self.pen[ground] = code
                if first in (39, 49):
                    del self.pen[ground]


def update(chance: random.Random) -> str:
    """Some chops of some rows, as Textual writes them: each run with its style and a reset."""
    out = []
    for _ in range(chance.randrange(1, 5)):
        row, column = chance.randint(1, HEIGHT), chance.randint(1, WIDTH)
        out.append(f"\x1b[{row};{column}H")
        for _ in range(chance.randrange(1, 5)):
            words = chance.choice(WORDS)
            out.append(chance.choice([words, f"\x1b[{chance.choice(STYLES)}m{words}\x1b[0m"]))
        out.append("\n" if chance.random() < 0.5 and row < HEIGHT else "")
    return "".join(out) + f"\x1b[{chance.randint(1, HEIGHT)};{chance.randint(1, WIDTH)}H"


@pytest.mark.parametrize("seed", range(40))
def test_the_terminal_shows_the_same(seed: int) -> None:
    chance = random.Random(seed)
    cells, whole, changed = ShownCells(), Screen(), Screen()
    for _ in range(60):
        text = update(chance)
        whole.feed(text)
        changed.feed(cells.changed(text))
        assert changed.cells == whole.cells
        assert (changed.row, changed.column) == (whole.row, whole.column)
        if chance.random() < 0.05:  # a terminal that lost its content, and is painted whole again
            changed.cells.clear()
            whole.cells.clear()
            cells.forget()


def test_what_is_shown_already_costs_nothing() -> None:
    cells, text = ShownCells(), "\x1b[2;3H\x1b[1;31mlayers\x1b[0m  k 16\x1b[1;1H"
    assert cells.changed(text)
    assert [cells.changed(part) for part in (BEGIN, text, END)] == ["", "", ""]


def test_only_what_changes_is_written() -> None:
    cells = ShownCells()
    cells.changed("\x1b[2;1H\x1b[31mk 16   worst error of a task    5.0 %\x1b[0m\x1b[1;1H")
    again = "\x1b[2;1H\x1b[31mk 17   worst error of a task    4.9 %\x1b[0m\x1b[1;1H"
    parts = [cells.changed(part) for part in (BEGIN, again, END)]
    # The pen is still red; 27 cells are passed over.
    assert parts == ["", BEGIN + "\x1b[2;4H7\x1b[28C4.9\x1b[1;1H", END]


@pytest.mark.parametrize("wide", ["漢字", "👍🏽", "e\N{COMBINING ACUTE ACCENT}"])
def test_rows_with_characters_of_uncertain_width_are_written_as_they_are(wide: str) -> None:
    cells, text = ShownCells(), f"\x1b[1;1H{wide}\x1b[31m and more\x1b[0m"
    for _ in range(2):
        assert re.sub(r"\x1b\[[\d;]*m", "", cells.changed(text)) == f"\x1b[1;1H{wide} and more"


@pytest.mark.parametrize(
    ("text", "forgets"),
    [
        ("\x1b[?1049h", True),
        ("\x1b[2J", True),
        ("words without a place", True),
        ("\x1b[1;1H\x1b[4:3mcurly\x1b[0m", True),
        ("\x1b[1;1H\x1b]8;;https://a.org\x1b\\link\x1b]8;;\x1b\\", True),
        ("\x1b]0;a title\x07", False),
        ("\x1b]9;done\x1b\\", False),
        ("\x1b[?1003h", False),
        ("\x1b[?2026$p", False),
        ("\x07", False),
    ],
)
def test_other_sequences_go_through_with_a_plain_pen(text: str, forgets: bool) -> None:
    cells, known = ShownCells(), "\x1b[2;1H\x1b[31mlayers\x1b[0m"
    cells.changed(known)
    assert cells.changed(text) == "\x1b[0m" + text
    assert bool(cells.changed(known)) == forgets
