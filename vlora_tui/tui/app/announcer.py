"""Tells of jobs where the interface is not looked at: terminal title, notification, message."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from vlora_tui.tui.core.job_news import foremost
from vlora_tui.tui.key_names import key
from vlora_tui.tui.terminal.announce import notification, title
from vlora_tui.tui.text import clean
from vlora_tui.utils.formatting import stage_words

if TYPE_CHECKING:
    from vlora_tui.jobs import JobView

NAME = "vlora-tui"
LONG_SECONDS = 10.0  # a job that took no longer was waited for


class Announcer:
    """Says how the jobs stand to who looks elsewhere.

    Args:
        write: Writes to the terminal.
        say: Shows a message in the interface; the second argument is whether it is bad news.
        is_seen: Whether somebody looks at the step that shows a job.
        has_focus: Whether the terminal has the focus, as far as it tells.
        titled: Whether the title is wanted; ``notifies``: whether notifications are.
    """

    def __init__(
        self,
        write: Callable[[str], None],
        say: Callable[[str, bool], None],
        *,
        is_seen: Callable[[JobView], bool],
        has_focus: Callable[[], bool],
        titled: bool,
        notifies: bool,
    ) -> None:
        self._write, self._say = write, say
        self._is_seen, self._has_focus = is_seen, has_focus
        self._titled, self._notifies = titled, notifies
        self._title = NAME
        self._under_way: set[str] = set()

    def looked(self, views: Sequence[JobView], is_own: Callable[[JobView], bool]) -> None:
        """The jobs were looked at: set the title, and tell of those that have ended since."""
        going = [view for view in views if not view.state.is_over]
        self._show_title(foremost(going, is_own))
        ended = [view for view in views if view.state.is_over and view.job.id in self._under_way]
        self._under_way = {view.job.id for view in going if is_own(view)}
        for view in ended:
            if _took(view) >= LONG_SECONDS:
                self._tell(view)

    def forget_title(self) -> None:
        """The terminal's title was given back, and taken again: it says nothing of jobs."""
        self._title = NAME

    def _show_title(self, view: JobView | None) -> None:
        words = NAME
        if view is not None and view.progress is not None:
            far = "" if view.share is None else f"{int(100 * view.share)} % "
            words = f"{far}{stage_words(view.progress.stage)} - {NAME}"
        if self._titled and words != self._title:
            self._title = words
            self._write(title(words))

    def _tell(self, view: JobView) -> None:
        if self._has_focus() and self._is_seen(view):
            return
        what, how = clean(view.title), str(view.state)
        if self._notifies:
            self._write(notification(NAME, f"{what} {how}"))
        if not self._is_seen(view):
            failed = how not in ("finished", "cancelled")
            self._say(f"{what}: {how}. {key('step.run')} shows it.", failed)


def _took(view: JobView) -> float:
    if view.begun is None or view.ended is None:
        return 0.0
    return view.ended - view.begun
