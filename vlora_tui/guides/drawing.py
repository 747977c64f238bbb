"""A guide as it looks on a screen: rich's Markdown, without backgrounds that fight a terminal's."""

from __future__ import annotations

import io
from typing import ClassVar

from rich import box
from rich.console import Console, ConsoleOptions, JustifyMethod, RenderResult
from rich.markdown import CodeBlock, Heading, Markdown, TableElement
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text
from rich.theme import Theme

WIDEST = 100  # columns; longer lines are hard to follow
CODE_THEME = "ansi_dark"  # the terminal's own colours
STYLES = Theme({"markdown.code": "bold cyan", "markdown.h1": "bold", "markdown.h2": "bold"})
IN_ASCII = str.maketrans({"•": "*"})


class _Left(Heading):
    """A heading that starts where the text does."""

    LEVEL_ALIGN: ClassVar[dict[str, JustifyMethod]] = {}


class _Open(TableElement):
    """A table with a blank line between rows, as most of its cells take several."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for table in super().__rich_console__(console, options):
            if isinstance(table, Table):
                table.box, table.leading = box.SIMPLE_HEAD, 1
                for column in table.columns:
                    column.overflow = "fold"  # a long name is never cut
            yield table


class _Code(CodeBlock):
    """A block of code with no empty lines of its own around it."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for syntax in super().__rich_console__(console, options):
            if isinstance(syntax, Syntax):
                syntax.padding = (0, 1)
            yield syntax


class _Page(Markdown):
    elements: ClassVar = {
        **Markdown.elements,
        "heading_open": _Left,
        "table_open": _Open,
        "fence": _Code,
    }


def page(text: str) -> Markdown:
    """Markdown for a console that knows `STYLES`."""
    return _Page(text, code_theme=CODE_THEME)


def drawn(text: str, width: int, *, ascii_only: bool = False) -> Text:
    """Markdown as styled lines of at most ``width`` columns."""
    paper = io.TextIOWrapper(io.BytesIO(), encoding="ascii" if ascii_only else "utf-8")
    console = Console(file=paper, width=width, theme=STYLES, force_terminal=True, no_color=False)
    lines = console.render_lines(page(text), console.options, pad=False)
    result = Text("\n", no_wrap=True).join(
        Text.assemble(*((part.text, part.style or "") for part in line)) for line in lines
    )
    result.no_wrap = True
    if ascii_only:
        result.plain = result.plain.translate(IN_ASCII)
    result.rstrip()
    return result
