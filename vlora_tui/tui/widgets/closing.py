"""Screens that close once: a second Escape, or a late answer, must not close what lies below."""

from __future__ import annotations

from typing import TypeVar

from textual.await_complete import AwaitComplete
from textual.screen import Screen

Result = TypeVar("Result")


class ClosesOnce(Screen[Result]):
    """A screen whose `dismiss` does nothing unless it is the one on top.

    Textual's pops whatever is on top: a dialog that was answered twice, or whose answer comes while
    another lies above it, would close a screen that nobody asked to close. It goes last among the
    bases: Textual takes styles from the first alone.
    """

    def dismiss(self, result: Result | None = None) -> AwaitComplete:
        """Close with a result, if there is anything to close."""
        if not self.is_active:
            return AwaitComplete()
        return super().dismiss(result)
