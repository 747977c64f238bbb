"""What the parts of Run know of the step they belong to."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from vlora_tui.tui.core.pane_view import PaneView

if TYPE_CHECKING:
    from vlora_tui.jobs import JobView


class Desk(PaneView):
    """The step, as its parts see it."""

    @property
    def job(self) -> JobView | None:
        """The selected job."""
        raise NotImplementedError

    @property
    def marked_job(self) -> JobView | None:
        """The job that another is compared with."""
        raise NotImplementedError

    @property
    def subspace(self) -> str | None:
        """The subspace that further work is about."""
        raise NotImplementedError

    def redraw(self) -> None:
        """Draw everything anew."""
        raise NotImplementedError

    def confirm_replacing(self, output: str, start: Callable[..., None]) -> None:
        """Start with ``force`` once the word was typed that says so."""
        raise NotImplementedError
