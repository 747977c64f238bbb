"""The base of every step: the session it shows, and what the application asks of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, cast

from textual.containers import Vertical

if TYPE_CHECKING:
    from vlora_tui.tui.core.host import Host
    from vlora_tui.tui.core.messages import SessionChanged
    from vlora_tui.tui.core.session import Session


class View(Vertical):
    """One step: subclasses say what they are for, and redraw what has changed.

    The application calls ``shown`` each time the step comes into view and ``changed`` when what
    it shows may have changed while it is in view; what is out of view is never drawn.
    """

    step: ClassVar[int] = 0
    title: ClassVar[str] = ""
    help_text: ClassVar[str] = ""
    messages_below: ClassVar[bool] = False  # its fields are above, where messages come otherwise
    output_action: ClassVar[str] = "place"  # the action that asks where the output goes

    @property
    def host(self) -> Host:
        """The application, as steps know it."""
        return cast("Host", self.app)

    @property
    def session(self) -> Session:
        return self.host.session

    def not_ready(self) -> str | None:
        """Why this step has nothing to show yet and which key mends it; None if it is ready."""
        return None

    def shown(self) -> None:
        """The step came into view: focus what the user most likely wants, draw."""

    def fit_to(self, width: int, height: int) -> None:
        """The terminal is about to be drawn in this size: set the classes that depend on it.

        What waits for its own resize is drawn once in the old arrangement, and on a machine that
        is busy that is in sight for seconds.
        """

    @property
    def is_in_view(self) -> bool:
        """Whether this is the step in sight."""
        return self.host.view is self

    def changed(self, change: SessionChanged) -> None:
        """Draw what has changed, while the step is in view."""

    def row_text(self) -> str | None:
        """What ``y`` copies: the row under the cursor as text."""
        return None

    def command_text(self) -> str | None:
        """What ``Y`` copies: the shell command that does the same."""
        return self.session.command() if self.session.marked else None

    def is_of_use(self, action: str) -> bool:
        """Whether an action has something to act on; keys of others need no place on the screen."""
        return True

    def open_filter(self) -> None:
        """``/``: show this step's filter, if it has one."""
