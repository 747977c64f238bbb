"""What the panes of step 2 say."""

from __future__ import annotations

from typing import Any

from tests.app.tui.choose.opened import Opened
from vlora_tui.tui.widgets.table import Table


def said(opened: Opened) -> list[str]:
    """What the view tells from now on."""
    words: list[str] = []
    opened.view.notify = lambda text, **_: words.append(text)  # type: ignore
    return words


def sharing(opened: Opened) -> str:
    return opened.view._sharing.plain


def losses(opened: Opened) -> list[Any]:
    return list(opened.view.query_one("#losses", Table).rows)
