"""The output of every command: data on stdout, as text, JSON or one value; all else on stderr."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from vlora_tui.cli.bundles import Bundle
from vlora_tui.cli.declare import option
from vlora_tui.utils.formatting import escaped_json, printable
from vlora_tui.utils.json_text import finite

JSON_VERSION = 1
NARROWEST = 8  # a column of texts is not cut below this
MARKS = {"error": "31", "warning": "33", "good": "32", "dim": "2", "strong": "1"}


@dataclass
class Output(Bundle):
    """Where a command's words go. They may hold names out of files: nothing moves the cursor.

    A command takes it as a parameter: these are its last two options.

    Args:
        as_json: Data are one JSON object; texts for people are left out.
        quiet: Of the data only what a script would want; no notes.
    """

    comes_last = True

    as_json: Annotated[bool, option("--json", "The data as one JSON object.")] = False
    quiet: Annotated[bool, option("-q", "--quiet", "Print only what a script needs.")] = False

    def __post_init__(self) -> None:
        self.only_data = False  # stdout is taken, by CSV: nothing for people goes there
        self._said: set[str] = set()

    def text(self, text: str = "") -> None:
        """A line of data for people."""
        if self._for_people:
            print(printable(text))

    def essence(self, text: str) -> None:
        """What is left of the data when the user wants quiet: a path, a name, a figure."""
        if self.quiet and not self.as_json and not self.only_data:
            print(printable(text))

    def json(self, schema: str, payload: dict[str, Any]) -> None:
        """The command's data as a program wants them; printed only when asked for."""
        if self.as_json:
            row = {"schema": f"vlora-tui/{schema}", "version": JSON_VERSION, **payload}
            print(dumps(row, sys.stdout, indent=2))

    def table(self, headers: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        """A table for people: figures to the right, texts to the left."""
        if self._for_people:
            width = shutil.get_terminal_size().columns if is_terminal(sys.stdout) else None
            for line in table_lines(headers, rows, width):
                print(line)

    @property
    def _for_people(self) -> bool:
        return not self.as_json and not self.quiet and not self.only_data

    def note(self, text: str) -> None:
        """A remark on stderr; no data."""
        if not self.quiet and not self.as_json and sys.stderr is not None:
            print(printable(text), file=sys.stderr)

    def once(self, text: str) -> None:
        """A remark that is made once."""
        if text not in self._said:
            self._said.add(text)
            self.note(text)

    def warn(self, text: str) -> None:
        """Something that the user should know, even when quiet."""
        if sys.stderr is not None:
            mark = paint("warning:", "warning", sys.stderr)
            print(f"{mark} {printable(text)}", file=sys.stderr)


def dumps(row: dict[str, Any], stream: Any, *, indent: int | None = None) -> str:
    """``row`` as JSON that ``stream`` can hold, figures that JSON cannot hold as null.

    What does not print (control characters, marks of direction, half surrogates) is escaped.
    """
    unicode = (getattr(stream, "encoding", None) or "").lower().replace("-", "") == "utf8"
    text = json.dumps(finite(row), ensure_ascii=not unicode, allow_nan=False, indent=indent)
    return escaped_json(text)


def table_lines(
    headers: Sequence[str], rows: Iterable[Sequence[object]], max_width: int | None = None
) -> list[str]:
    """The lines of a table; a column of figures is set flush right.

    Args:
        max_width: The width of the screen: where the table is wider, its longest texts are cut.
    """
    body = [["" if cell is None else printable(str(cell)) for cell in row] for row in rows]
    cells = [list(headers), *body]
    widths = [max(_width(row[i]) for row in cells) for i in range(len(headers))]
    right = [_is_figures([row[i] for row in body]) for i in range(len(headers))]
    if max_width is not None:
        _narrow(widths, right, max_width)
    lines = []
    for row in cells:
        row = [cut(cell, width) for cell, width in zip(row, widths, strict=True)]
        parts = [
            " " * (width - _width(cell)) + cell if flush else cell + " " * (width - _width(cell))
            for cell, width, flush in zip(row, widths, right, strict=True)
        ]
        lines.append("  ".join(parts).rstrip())
    return lines


def cut(text: str, width: int) -> str:
    """``text`` in at most ``width`` columns, its middle left out where it is longer."""
    if _width(text) <= width:
        return text
    head, tail = text[: len(text) // 2], text[len(text) // 2 :]
    while _width(head) + _width(tail) + 1 > width and (head or tail):
        if _width(head) > _width(tail):
            head = head[:-1]
        else:
            tail = tail[1:]
    return f"{head}…{tail}"


def _narrow(widths: list[int], right: Sequence[bool], width: int) -> None:
    """Take from the widest column of texts until the table fits, or none is left to take from."""
    over = sum(widths) + 2 * (len(widths) - 1) - width
    while over > 0:
        texts = [i for i, flush in enumerate(right) if not flush and widths[i] > NARROWEST]
        if not texts:
            return
        widths[max(texts, key=widths.__getitem__)] -= 1
        over -= 1


def paint(text: str, mark: str, stream: Any) -> str:
    """``text`` coloured, where ``stream`` is a terminal and NO_COLOR is not set."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" or not is_terminal(stream):
        return text
    return f"\x1b[{MARKS[mark]}m{text}\x1b[0m"


def is_terminal(stream: Any) -> bool:
    """Whether a person looks at ``stream``."""
    try:
        return bool(stream.isatty())
    except (AttributeError, ValueError):
        return False


def _is_figures(cells: Sequence[str]) -> bool:
    filled = [cell for cell in cells if cell not in ("", "-")]
    return bool(filled) and all(cell[0].isdigit() or cell[0] in "+-." for cell in filled)


def _width(text: str) -> int:
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)
