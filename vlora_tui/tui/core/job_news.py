"""What is said of jobs outside the list of jobs: which one matters, how far it is, who waits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from vlora_tui.tui.text import clean, plural
from vlora_tui.utils.formatting import how_much, stage_words

if TYPE_CHECKING:
    from vlora_tui.jobs import JobView

RUNNING, WAITING = "running", "queued"


def foremost(views: Sequence[JobView], is_own: Callable[[JobView], bool]) -> JobView | None:
    """The job that matters most: one that runs before one that waits, this window's before others'.

    Args:
        views: Jobs that are not over, the newest first.
    """
    order = (RUNNING, WAITING)

    def rank(view: JobView) -> tuple[int, bool]:
        state = str(view.state)
        return order.index(state) if state in order else len(order), not is_own(view)

    return min(views, key=rank, default=None)


def job_words(views: Sequence[JobView], is_own: Callable[[JobView], bool]) -> str:
    """The job that matters most in a few words; nothing where there is none."""
    view = foremost(views, is_own)
    if view is None:
        return ""
    whose = "job" if is_own(view) else "other job"
    more = f" +{len(views) - 1}" if len(views) > 1 else ""
    return f"{whose}: {far_words(view)}{more}"


def far_words(view: JobView) -> str:
    """How far a job is, and how long it still takes."""
    if str(view.state) == WAITING:
        return f"waiting for {plural(len(view.ahead), 'job')}" if view.ahead else "waiting"
    if view.progress is None:
        return "starting" if str(view.state) == RUNNING else str(view.state)
    at = view.progress
    left = "" if view.eta is None else f", {left_words(view.eta)}"
    return f"{stage_words(at.stage)} {how_much(at.stage, at.done, at.total)}{left}"


def left_words(seconds: float) -> str:
    """How long something still takes: ``40 s left``, ``3 min left``."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s left"
    if seconds < 5400:
        return f"{round(seconds / 60)} min left"
    return f"{seconds / 3600:.1f} h left"


def waiting_words(view: JobView | None, views: Sequence[JobView]) -> str:
    """Whom a job waits for, and how far that is; nothing where it does not wait."""
    if view is None or str(view.state) != WAITING or not view.ahead:
        return ""
    first = next((other for other in views if other.job.id == view.ahead[0]), None)
    what = "another job" if first is None else clean(first.title)
    far = "" if first is None else f" ({far_words(first)})"
    more = f", then {plural(len(view.ahead) - 1, 'more job')}" if len(view.ahead) > 1 else ""
    return f"Waiting for: {what}{far}{more}."
