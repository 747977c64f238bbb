"""Saves this session's marks and choices as a draft, and offers the last ones at the start."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from textual.css.query import NoMatches

from vlora_engine.errors import VLoRAError
from vlora_tui.utils import paths

if TYPE_CHECKING:
    from textual.app import App

    from vlora_tui.jobs.drafts import Draft, SavedDraft
    from vlora_tui.recipe.model import Recipe
    from vlora_tui.tui.core.session import Session


class DraftKeeper:
    """Saves what is worth it, off the event loop, and finds what the last session left.

    Args:
        step: The id of the step in sight.
        offered: Called when there is a draft to go on with.
    """

    def __init__(
        self,
        app: App[Any],
        session: Session,
        step: Callable[[], str],
        offered: Callable[[], None],
    ) -> None:
        self._app = app
        self._session = session
        self._step = step
        self._offered = offered
        self._draft: Draft | None = None
        self._left: SavedDraft | None = None
        self._dirty = False

    def changed(self) -> None:
        """Save the draft soon."""
        self._dirty = True
        self._app.run_worker(self._save_soon, thread=True, exclusive=True, group="draft")

    def _save_soon(self) -> None:
        if self._dirty:
            self.save()

    def save(self) -> None:
        """Save marks and choices; a disk that refuses is no reason to fail."""
        from vlora_tui.jobs.drafts import Drafts

        self._dirty = False
        if not self._session.marked:
            return
        try:
            if self._draft is None:
                self._draft = Drafts(paths.state_dir()).new()
            self._draft.save(self._session.recipe(), {"step": self._step()})
        except (VLoRAError, OSError, NoMatches):
            return

    def close(self) -> None:
        """Save the draft for the last time."""
        self.save()
        if self._draft is not None:
            self._draft.close()

    # what the last session left

    def look(self) -> None:
        """Look for what the last session left."""
        self._app.run_worker(self._look, thread=True, group="drafts")

    def _look(self) -> None:
        from vlora_tui.jobs.drafts import Drafts

        try:
            drafts = Drafts(paths.state_dir())
            left = drafts.offered()
            drafts.prune()
        except (VLoRAError, OSError):
            return
        if left:
            self._app.call_from_thread(self._offer, left[0])

    def _offer(self, left: SavedDraft) -> None:
        self._left = left
        self._offered()

    def words(self) -> str | None:
        """What the last session left, in a few words; None if nothing."""
        if self._left is None:
            return None
        entries = self._left.tables.get("input", {}).get("adapters", [])
        return f"{len(entries)} marked adapters, {_ago(self._left.saved)}" if entries else None

    def take(self) -> tuple[Recipe, str] | None:
        """Go on with what the last session left: its recipe, and the step it was on.

        Raises:
            VLoRAError, OSError: It cannot be read, or is another's by now.
        """
        from vlora_tui.jobs.drafts import Drafts

        left, self._left = self._left, None
        if left is None:
            return None
        recipe = left.recipe()
        self._draft = Drafts(paths.state_dir()).take(left)
        return recipe, str(left.state.get("step") or "adapters")


def _ago(when: float) -> str:
    seconds = max(0.0, time.time() - when)
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= length:
            count = int(seconds // length)
            return f"{count} {unit}{'s' if count > 1 else ''} ago"
    return "just now"
