"""Folds text to a width so that a continued line does not look like a line of its own."""

from __future__ import annotations

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

LABEL = 10  # columns before the text of a line: "found     4 adapters"


class Hanging:
    """A text that folds itself so, to whatever width it is drawn in."""

    def __init__(self, text: Text) -> None:
        self.text = text

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield hanging(self.text, options.max_width)


def hanging(text: Text, width: int, label: int = LABEL) -> Text:
    """``text`` folded to ``width`` columns; what goes on stands below its first word.

    That is behind the label where a line has one, which is so many columns wide, else a little
    further in.
    """
    if width < 3 * label:
        return text
    console, lines = Console(), []
    for line in text.split("\n", allow_blank=True):
        start = " " * _indent(line.plain, label)
        first, *more = line.wrap(console, width) or [line]
        if more and not first.plain[len(start) :].strip():
            first = line[:width]  # a long word, such as a path, begins behind its label
        lines.append(first)
        if more:
            rest = line[len(first) :]
            rest = rest[len(rest.plain) - len(rest.plain.lstrip()) :]
            lines += [Text(start) + part for part in rest.wrap(console, width - len(start))]
    return Text("\n").join(lines)


def _indent(line: str, label: int) -> int:
    if line[label - 1 : label] == " " and line[:label].strip() and line[label : label + 1] != " ":
        return label
    return min(len(line) - len(line.lstrip()) + 2, label)
