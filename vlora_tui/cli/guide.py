"""``guide``: how to do one thing, from its first line to its last; drawn for a terminal."""

from __future__ import annotations

import shutil
import sys
from typing import Annotated

from rich.console import Console

from vlora_tui.cli.declare import argument
from vlora_tui.cli.output import Output, is_terminal
from vlora_tui.guides import Guide, guides
from vlora_tui.guides import guide as find_guide


def guide(
    out: Output,
    name: Annotated[str | None, argument("Which one; without a name they are listed.")] = None,
) -> None:
    """Print a guide: Python, PEFT, training, servers; coming from PEFT, vLoRA or lorashare.

    A terminal gets it drawn, a pipe gets the Markdown as it is.
    """
    if name is None:
        _list(out)
        return
    found = find_guide(name)
    out.json("guide", found._asdict())
    if out.as_json:
        return
    if is_terminal(sys.stdout):
        _draw(found)
    else:
        sys.stdout.write(found.text)


def _list(out: Output) -> None:
    found = guides()
    rows = [{"name": guide.name, "title": guide.title} for guide in found]
    out.json("guides", {"guides": rows})
    out.table(["guide", "what it shows"], [[guide.name, guide.title] for guide in found])
    out.note("vlora-tui guide NAME prints one; piped, as Markdown.")
    for guide in found:
        out.essence(guide.name)


def _draw(found: Guide) -> None:
    from vlora_tui.guides.drawing import STYLES, WIDEST, page

    width = min(shutil.get_terminal_size().columns, WIDEST)
    Console(file=sys.stdout, width=width, theme=STYLES).print(page(found.text))
