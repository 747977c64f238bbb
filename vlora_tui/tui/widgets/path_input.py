"""A line for a path: what is typed anew takes the place of what stands there."""

from __future__ import annotations

import re
from typing import Any

from textual.widgets import Input

# Where a path begins anew within a line, as in Emacs: ~/runs//tmp, ~/runs/~/x, ~/runs/hf://a/b.
_ANEW = re.compile(r"(?<=/)[a-z][a-z0-9+.-]*://|(?<=[^:]/)/|(?<=^/)/|(?<=/)~")


class PathInput(Input):
    """An `Input` in which ``/abs``, ``~`` and ``hf://`` begin anew wherever they are typed.

    Args:
        replace: The first key replaces the whole of what stands there, whatever it is.
    """

    def __init__(self, value: str = "", *, replace: bool = True, **given: Any) -> None:
        super().__init__(value, select_on_focus=replace, **given)
        self.cursor_blink = False

    def replace(self, text: str, start: int, end: int) -> None:
        super().replace(text, start, end)
        typed, behind = self.value[: self.cursor_position], self.value[self.cursor_position :]
        anew = begun_anew(typed)
        if anew != typed:
            self.value = anew + behind
            self.cursor_position = len(anew)


def begun_anew(text: str) -> str:
    """The last path in a line that was typed on: ``~/runs//tmp`` means ``/tmp``."""
    starts = [found.start() for found in _ANEW.finditer(text)]
    return text[starts[-1] :] if starts else text
