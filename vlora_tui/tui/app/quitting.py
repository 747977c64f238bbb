"""The question that quitting asks while jobs run: which they are, and whose."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vlora_tui.tui.text import clean, tilde
from vlora_tui.tui.widgets.dialogs import ListProblems, Option

if TYPE_CHECKING:
    from vlora_tui.jobs import JobView

LEAVE, CANCEL, STAY = "leave", "cancel", "stay"


def quit_dialog(running: Sequence[JobView], own: Sequence[JobView]) -> ListProblems:
    """Ask whether to leave the jobs running, which is the default, or to cancel this window's.

    Args:
        running: All jobs that run or wait.
        own: Those of them that this window started; no others can be cancelled here.
    """
    if not running:  # whoever presses Enter once too often stays
        options = [Option("s", "stay", STAY), Option("l", "leave", LEAVE, "and quit")]
        return ListProblems("Quit", "No job is running. Marks and choices are kept.", [], options)
    many = len(running) > 1
    words = f"{len(running)} jobs are running." if many else "A job is running."
    words += " You can leave and reattach later."
    options = [Option("l", f"leave {'them' if many else 'it'} running", LEAVE, "and quit")]
    if own:
        others = len(running) - len(own)
        which = "them" if many else "it"
        more = "and quit; what is built is kept"
        if others:  # which is what must not be cut off
            which = f"the {len(own)} of this window" if len(own) > 1 else "this window's one"
            more = "and quit; others go on"
        options.append(Option("c", f"cancel {which}", CANCEL, more))
    options.append(Option("s", "stay", STAY))
    return ListProblems("Quit", words, [_told(view) for view in running], options)


def _told(view: JobView) -> tuple[str, list[str]]:
    """A job: its title; what it writes, and where it was started."""
    info = view.job.info
    output = ", ".join(tilde(path) for path in info.outputs) or "the cache of spectra"
    starter = info.started_by
    where = "where is not known" if starter is None else starter.words()
    return clean(view.title), [f"writes   {output}", f"started  {where}"]
