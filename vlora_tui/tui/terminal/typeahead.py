"""Keys that come faster than they are answered: each waits until the one before it has had effect.

Textual sends a key to what has the focus when the key arrives. Over a slow line keys come in
bunches: of ``=16`` the ``1`` would then leave the step, because the line that ``=`` opens has no
focus yet.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from textual import events
from textual.app import App
from textual.message import Message

if TYPE_CHECKING:
    from textual.timer import Timer
    from textual.widget import Widget

LAPS = 3  # a key may cause a message (submitted), that one another (answered), that one a focus
PATIENCE = 2.0  # seconds for a key whose widget goes away before it is answered


class KeyAnswered(Message):
    """Goes the way of a key, right behind it: where it arrives, the key has arrived."""

    def __init__(self, target: Widget, laps: int) -> None:
        super().__init__()
        self.target, self.laps = target, laps
        self.set_sender(target)


class KeysInOrder(App[int]):
    """An application that answers one key after the other."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._typed: deque[events.Key] = deque()
        self._answering: Timer | None = None

    async def on_event(self, event: events.Event) -> None:
        if not isinstance(event, events.Key) or event.is_forwarded:
            await super().on_event(event)
        elif self._answering is not None:
            self._typed.append(event)
        else:
            await self._answer(event)

    async def _answer(self, key: events.Key) -> None:
        self._answering = self.set_timer(PATIENCE, self._next_key)
        target = self.focused or self.screen
        try:
            await super().on_event(key)
        finally:  # a key whose action fails holds up no other
            await self._follow(target, LAPS)

    def on_key_answered(self, event: KeyAnswered) -> None:
        event.stop()
        # Behind what the key's action has asked for, such as another focus.
        self.call_later(self._follow, event.target, event.laps - 1)

    async def _follow(self, target: Widget, laps: int) -> None:
        if not (laps and target.post_message(KeyAnswered(target, laps))):
            await self._next_key()

    async def _next_key(self) -> None:
        if self._answering is not None:
            self._answering.stop()
            self._answering = None
        if self._typed:
            await self._answer(self._typed.popleft())
