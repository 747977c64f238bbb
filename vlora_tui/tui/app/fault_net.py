"""The net under the application: a fault is logged and shown, and the interface goes on.

Textual ends an application at the first exception that nothing handles. It has no public hook for
this. `App._handle_exception` is where it brings all of them together (timers, workers, callbacks,
layout, drawing), so that is overridden. One kind comes there too late: after an exception in a
message handler or an action, the loop that serves the widget has ended, and with it the widget.
Those are caught one call below, around `MessagePump._dispatch_message`, which every widget, screen
and application shares; overriding a handler of ours would leave out Textual's own widgets.
"""

from __future__ import annotations

import asyncio
import os
import time
import traceback
from collections import deque
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.text import Text
from textual import events
from textual.app import ScreenError
from textual.await_complete import AwaitComplete
from textual.css.query import QueryError
from textual.dom import DOMNode
from textual.errors import NoWidget
from textual.message import Message
from textual.message_pump import MessagePump
from textual.worker import NoActiveWorker, WorkerFailed, get_current_worker

from vlora_engine.errors import VLoRAError
from vlora_tui.tui.terminal.typeahead import KeysInOrder
from vlora_tui.tui.text import clean, tilde
from vlora_tui.utils import paths

FLOOD = 12  # so many faults, none of them after a key or a click ...
FLOOD_SECONDS = 1.0  # ... within so long: then going on is no use
REPEAT_SECONDS = 5.0  # the same fault is shown again after so long at the earliest
KINDS = 200  # faults that are told apart
LOG_BYTES = 1_000_000  # of a log file; the one before it is kept as well
FAILED = 1  # the exit code of work that could not be done, as in vlora_tui.cli.errors
WORDS = 300  # characters of an error's own words on the screen


class FaultNet(KeysInOrder):
    """An application that survives faults of its parts.

    Faults that come back by themselves (at every refresh, say) end it in good order: its state is
    saved, the exit code is 1, and the last words name the log.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._log_file = FaultLog()
        self._recent: deque[float] = deque(maxlen=FLOOD)
        self._shown: dict[str, float] = {}
        self._is_up = False

    def _on_mount(self, event: events.Mount) -> None:
        asyncio.get_running_loop().set_exception_handler(self._task_failed)
        self.call_after_refresh(self._came_up)

    def _came_up(self) -> None:
        self._is_up = True

    async def on_event(self, event: events.Event) -> None:
        if isinstance(event, events.InputEvent):
            self._recent.clear()  # who holds a key down whose action fails is no flood
        if isinstance(event, events.MouseDown) and self._is_on_gone_widget(event):
            return
        await super().on_event(event)

    def _is_on_gone_widget(self, event: events.MouseEvent) -> bool:
        """Whether a click hits what is drawn and not there any more, such as a message's box.

        Textual looks for the container of what was hit.
        """
        try:
            widget, _ = self.screen.get_widget_at(event.x, event.y)
        except (NoWidget, ScreenError):
            return False
        return widget is not self.screen and widget.parent is None

    def pop_screen(self) -> AwaitComplete:
        """Close the screen on top; the first one stays, whoever asks for it."""
        if len(self.screen_stack) <= 1:
            return AwaitComplete()
        return super().pop_screen()

    def end(self, code: int = 0, message: Text | None = None) -> None:
        """End in good order."""
        self.exit(code, return_code=code, message=message)

    def complain(self, text: str) -> None:
        """Say that something failed; the interface goes on."""
        self.notify(text, severity="error", timeout=12, markup=False)

    # faults

    def _handle_exception(self, error: Exception) -> None:
        """Log a fault and show it; end where it cannot be lived with."""
        if isinstance(error, WorkerFailed):
            if _is_of_gone_widget():
                return
            error = error.error if isinstance(error.error, Exception) else error
        if self._exit:
            return  # what is being taken down cannot answer any more
        kind, logged = self._log_file.write(error)
        if not (self._is_up and self._running):
            self._give_up("vlora-tui could not start.", error, logged)
            return
        now = time.monotonic()
        self._recent.append(now)
        if len(self._recent) == FLOOD and now - self._recent[0] < FLOOD_SECONDS:
            self._give_up("vlora-tui was closed: the same fault came back again and again.",
                          error, logged)  # fmt: skip
            return
        if now - self._shown.get(kind, -REPEAT_SECONDS) < REPEAT_SECONDS:
            return
        if len(self._shown) < KINDS:
            self._shown[kind] = now
        with suppress(ScreenError):  # there is no screen to show it on
            self.complain(f"{fault_words(error)}\n{logged}")

    def _give_up(self, what: str, error: Exception, logged: str) -> None:
        words = f"error: {what}\n  found:   {fault_words(error)}\n  {logged}"
        words += "\n  Jobs that run go on; `vlora-tui jobs` lists them."
        try:
            self.end(FAILED, Text(words))
        except Exception as fault:  # no fault may keep it from ending
            self._log_file.write(fault)
            self.exit(FAILED, return_code=FAILED, message=Text(words))

    def _task_failed(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """What asyncio would print across the screen."""
        error = context.get("exception")
        if isinstance(error, Exception):
            self._handle_exception(error)


class FaultLog:
    """The file that faults are written to; each in full once, later ones in a line.

    A fault that comes back is counted, and written at its 2nd, 4th, 8th ... time, so that the file
    stays small.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._count: dict[str, int] = {}

    @property
    def path(self) -> Path:
        """Where it lies."""
        return self._path or paths.state_dir() / "interface.log"

    def write(self, error: BaseException) -> tuple[str, str]:
        """Write an exception down; what tells it from others, and where it can be read."""
        kind = _kind(error)
        if kind not in self._count and len(self._count) >= KINDS:
            kind = "others"
        count = self._count[kind] = self._count.get(kind, 0) + 1
        try:
            if count == 1:
                self._append("".join(traceback.format_exception(error)))
            elif count & (count - 1) == 0:
                self._append(f"{kind}: {count} times by now\n")
        except OSError as refused:
            return kind, f"It could not be logged: {refused.strerror or refused}."
        return kind, f"Details: {tilde(self.path)}"

    def _append(self, text: str) -> None:
        path = self.path
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with suppress(FileNotFoundError):
            if path.stat().st_size > LOG_BYTES:
                os.replace(path, path.with_name(path.name + ".1"))
        when = datetime.now().astimezone().isoformat(timespec="seconds")
        with open(path, "a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(f"{when} pid {os.getpid()}\n{text}\n")


def fault_words(error: BaseException) -> str:
    """A fault in a sentence: our errors and the system's in their own words, others by name."""
    text = clean(str(error))[:WORDS]
    if isinstance(error, VLoRAError):
        return text
    if isinstance(error, OSError) and error.strerror:
        where = f" ({clean(error.filename)})" if error.filename else ""
        return f"The operating system refused: {clean(error.strerror)}{where}."
    name = type(error).__name__
    return f"This did not work because of a bug in vlora-tui: {name}{f': {text}' if text else ''}"


def _kind(error: BaseException) -> str:
    """Its type and the line that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{where}"


def _is_of_gone_widget() -> bool:
    """Whether the worker that failed belongs to something that was closed meanwhile."""
    try:
        return _is_gone(get_current_worker().node)
    except NoActiveWorker:
        return False


_dispatch_unguarded = MessagePump._dispatch_message


async def _dispatch_guarded(self: MessagePump, message: Message) -> None:
    """`MessagePump._dispatch_message`, from which no fault gets out where there is a net."""
    try:
        await _dispatch_unguarded(self, message)
    except Exception as error:
        app = self.app
        if not isinstance(app, FaultNet):
            raise
        if isinstance(error, QueryError | ScreenError) and _is_gone(self):
            return  # a message that was on its way when the dialog was closed
        app._handle_exception(error)


def _is_gone(pump: MessagePump) -> bool:
    """Whether something was closed: it is in no screen, or in one that nobody will see again."""
    app = pump.app
    if pump is app or not isinstance(pump, DOMNode):
        return False
    return not pump.is_attached or pump.screen not in app.screen_stack


MessagePump._dispatch_message = _dispatch_guarded  # type: ignore[method-assign]
