"""The protocol of what steps need from the application, so that none has to import it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from textual.widget import Widget

    from vlora_tui.jobs import JobView
    from vlora_tui.recipe.model import Recipe
    from vlora_tui.tui.core.bad_adapters import BadAdapterPrompt
    from vlora_tui.tui.core.job_client import JobClient
    from vlora_tui.tui.core.session import Session
    from vlora_tui.utils.config import Config


class Host(Protocol):
    """The application, as a step knows it.

    News go to it as messages (`vlora_tui.tui.core.messages`), which any widget can post.

    Attributes:
        start_paths: Folders that were named on the command line.
    """

    session: Session
    jobs: JobClient
    config: Config
    ascii_only: bool
    start_paths: list[str]

    @property
    def bad_adapters(self) -> BadAdapterPrompt:
        """What asks about bad adapters."""

    @property
    def view(self) -> Widget | None:
        """The step in sight."""

    def complain(self, text: str) -> None:
        """Say that something failed; the interface goes on."""

    def action_escape(self) -> None:
        """Escape, where the step has nothing of its own to leave."""

    def refresh_bar(self) -> None:
        """Draw the status line again."""

    def call_later(self, callback: Callable[..., Any], *args: Any) -> bool:
        """Call something once what has been posted so far is done."""

    # drafts

    def draft_changed(self) -> None:
        """Marks or choices changed: save the draft soon."""

    def draft_words(self) -> str | None:
        """What the last session left, in a few words; None if nothing."""

    def open_draft(self) -> None:
        """Go on where the last session was left."""

    # jobs

    def job_views(self) -> list[JobView]:
        """All jobs as of the last look, the newest first."""

    def start_job(self, recipe: Recipe, *, force: bool = False) -> None:
        """Start a job of this recipe in a process of its own."""

    # from step to step

    async def show_step(self, step_id: str) -> None:
        """Bring a step into view."""

    async def show_adapters(self, places: list[str]) -> None:
        """Go to the adapters, look into these places too, and point at the first of them."""

    async def export_adapters(self, paths: list[str]) -> None:
        """Mark these adapters alone, and go to Export with them."""

    async def open_subspace(self, path: str) -> None:
        """Open a subspace directory for Inspect and Export; a complaint where it is none."""

    async def scanned(self) -> None:
        """All places were looked into: go where the recipe or the draft wanted to be."""
