"""Text folded to a width so that what goes on does not look like a line of its own."""

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


def hanging(text: Text, width: int) -> Text:
    """``text`` folded to ``width`` columns; what goes on stands below its first word.

    That is behind the label where a line has one, else a little further in.
    """
    if width < 3 * LABEL:
        return text
    console, lines = Console(), []
    for line in text.split("\n", allow_blank=True):
        first, *more = line.wrap(console, width) or [line]
        lines.append(first)
        if more:
            rest = line[len(first) :]
            rest = rest[len(rest.plain) - len(rest.plain.lstrip()) :]
            start = " " * _indent(line.plain)
            lines += [Text(start) + part for part in rest.wrap(console, width - len(start))]
    return Text("\n").join(lines)


def _indent(line: str) -> int:
    if line[LABEL - 1 : LABEL] == " " and line[:LABEL].strip() and line[LABEL : LABEL + 1] != " ":
        return LABEL
    return min(len(line) - len(line.lstrip()) + 2, LABEL)
