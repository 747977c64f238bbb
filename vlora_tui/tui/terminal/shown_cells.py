"""Writes only the cells that change: it remembers what the terminal shows.

Textual repaints whole widgets, and a change of screen as a whole. Most cells of such a repaint are
on the terminal already; over a slow line they are what a key costs. What is written is read here as
a terminal would read it and compared with what was written before.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache

from rich.cells import get_character_cell_size

from vlora_tui.tui.terminal.sgr import PLAIN, Look, after, blank_look, change, with_ground

Cell = tuple[str, Look]  # a character and how it looks; of a blank only what is seen of it
Span = tuple[int, list[Cell]]  # the column where it begins, and its cells

BEGIN, END = "\x1b[?2026h", "\x1b[?2026l"  # of an update that is to be shown at once
SKIP = 5  # unchanged cells that are passed over; fewer are written again, which costs no more

_TOKEN = re.compile(
    r"\x1b\[(?P<row>\d+);(?P<column>\d+)H"
    r"|\x1b\[(?P<codes>[\d;:]*)m"
    r"|(?P<line>\r?\n)"
    r"|(?P<words>[^\x00-\x1f\x7f-\x9f]+)"
)
# Sequences that change no cell: modes of the mouse, of keys, of pasting, questions, titles.
_HARMLESS = re.compile(
    r"(?:\x1b\[\?(?:7|25|1000|1003|1004|1006|1015|1016|2004|2048)[hl]"
    r"|\x1b\[\?\d+\$p|\x1b\[[<>]\d*u|\x07"
    r"|\x1b\](?!8;)[^\x07\x1b]*(?:\x07|\x1b\\)"
    r"|\x1bPtmux;(?:[^\x1b]|\x1b\x1b)*\x1b\\)*"
)


class ShownCells:
    """What a terminal shows, as far as it is known from what was written to it."""

    def __init__(self) -> None:
        self._rows: dict[int, dict[int, Cell]] = {}
        self._look: Look | None = None  # what the terminal draws with; None: not known
        self._held = ""  # the begin of an update in which nothing was written yet
        self._at: tuple[int, int] | None = None  # row and column of the cursor

    def forget(self) -> None:
        """Take nothing for known any more: the next update is written whole."""
        self._rows, self._look, self._at = {}, None, None

    def changed(self, text: str) -> str:
        """What of ``text`` must be written for the terminal to show the same.

        Text that is no plain update of cells goes through as it is; where it may have changed what
        is shown, what was known is forgotten.
        """
        if text == BEGIN:
            self._held = BEGIN
            return ""
        if text == END:
            ended, self._held = "" if self._held else END, ""
            return ended
        update = _read(text)
        if update is None:
            # Whatever it does, it does it with the plain look, as if nothing had been left open.
            reset = "" if self._look is None or self._look == PLAIN else change(self._look, PLAIN)
            if not _HARMLESS.fullmatch(text):
                self.forget()
            else:
                self._look = PLAIN if reset else self._look
            return self._begun(reset + text)
        spans, cursor = update
        out = "".join(self._row(row, spans[row]) for row in sorted(spans))
        if cursor is not None and cursor != self._at:
            out += _move(*cursor)
            self._at = cursor
        return self._begun(out)

    def _begun(self, out: str) -> str:
        """``out`` behind the begin of its update, where that was held back."""
        if not out:
            return ""
        held, self._held = self._held, ""
        return held + out

    def _row(self, row: int, spans: list[Span]) -> str:
        """What changes in a row."""
        if not all(_is_simple(cell[0]) for _, cells in spans for cell in cells):
            # Terminals do not agree how wide these are: as it is, and known of nothing.
            self._rows.pop(row, None)
            out = "".join(_move(row, at) + self._drawn(cells) for at, cells in spans)
            self._at = None
            return out
        known = self._rows.setdefault(row, {})
        wanted = {at + i: cell for at, cells in spans for i, cell in enumerate(cells)}
        columns = sorted(column for column, cell in wanted.items() if known.get(column) != cell)
        known.update(wanted)
        return "".join(self._run(row, run, known) for run in _runs(columns, known))

    def _run(self, row: int, run: range, known: dict[int, Cell]) -> str:
        at = self._at
        if at == (row, run.start):
            move = ""
        elif at is not None and at[0] == row and at[1] < run.start:
            move = f"\x1b[{run.start - at[1]}C"
        else:
            move = _move(row, run.start)
        self._at = row, run.stop
        return move + self._drawn([known[column] for column in run])

    def _drawn(self, cells: list[Cell]) -> str:
        """Cells behind each other, with a change of look where it changes."""
        out = []
        for character, look in cells:
            if not look[0]:
                look = with_ground(self._look, look[1])
            if look != self._look:
                out.append(change(self._look, look))
                self._look = look
            out.append(character)
        return "".join(out)


def _read(text: str) -> tuple[dict[int, list[Span]], tuple[int, int] | None] | None:
    """An update as spans of cells by row (rows and columns from 1), and where the cursor is put.

    None if it is anything else.
    """
    spans: dict[int, list[Span]] = {}
    look, at = PLAIN, 0
    cursor: tuple[int, int] | None = None
    begins = True  # a span, with the next words
    while at < len(text):
        found = _TOKEN.match(text, at)
        if found is None:
            return None
        at = found.end()
        kind = found.lastgroup
        if kind == "column":
            cursor, begins = (int(found["row"]), int(found["column"])), True
        elif kind == "codes":
            new = after(found["codes"], look)
            if new is None:
                return None
            look = new
        elif cursor is None:
            return None
        elif kind == "line":
            cursor, begins = (cursor[0] + 1, 1), True
        else:
            words = found["words"]
            row, column = cursor
            if begins:
                spans.setdefault(row, []).append((column, []))
                begins = False
            blank = blank_look(look)
            spans[row][-1][1].extend([(c, blank if c == " " else look) for c in words])
            cursor = row, column + len(words)
    return spans, cursor if begins else None


def _runs(columns: list[int], known: dict[int, Cell]) -> Iterator[range]:
    """Runs of cells to write: those that changed, and short stretches between them."""
    start = last = None
    for column in columns:
        if start is None or last is None:
            start = column
        elif column - last > SKIP or any(c not in known for c in range(last + 1, column)):
            yield range(start, last + 1)
            start = column
        last = column
    if start is not None and last is not None:
        yield range(start, last + 1)


def _move(row: int, column: int) -> str:
    return f"\x1b[{row};{column}H"


@lru_cache(maxsize=4096)
def _is_simple(character: str) -> bool:
    """Whether a character takes one cell, everywhere."""
    return get_character_cell_size(character) == 1
