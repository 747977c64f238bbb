"""The terminal driver: when the terminal goes away, the draft is saved and the process ends."""

from __future__ import annotations

import logging
import os
import selectors
import signal
import sys
import threading
from codecs import getincrementaldecoder
from contextlib import suppress
from typing import Any

from textual import events
from textual._parser import ParseError
from textual._xterm_parser import XTermParser
from textual.drivers.linux_driver import LinuxDriver
from textual.keys import Keys
from textual.message import Message

from vlora_tui.tui.terminal.announce import POP_TITLE, PUSH_TITLE
from vlora_tui.tui.terminal.pasted import PastesAsText
from vlora_tui.tui.terminal.sgr import without_colour
from vlora_tui.tui.terminal.shown_cells import ShownCells

logger = logging.getLogger(__name__)

PATIENCE = 3.0  # seconds for an orderly end before the process is ended anyhow


class Terminal(LinuxDriver):
    """Textual's driver, but for a terminal that is gone.

    Textual's input thread spins on a closed terminal, and its writer thread dies of a write that
    fails, after which the event loop waits for it for ever. Here either ends the process.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Before there is a writer thread: it takes the file's `write` once, when it begins.
        self._output = _Output(self._file, self._gone, plain=self._app.no_color)
        self._file = self._output  # type: ignore[assignment]

    def start_application_mode(self) -> None:
        super().start_application_mode()  # type: ignore[no-untyped-call]
        if self._has_title:
            self.write(PUSH_TITLE)
        for number in (signal.SIGHUP, signal.SIGTERM):
            signal.signal(number, self._signalled)

    def stop_application_mode(self) -> None:
        """Give the terminal back.

        Keys that were typed ahead come as signals from here on. The interface has ended already:
        Those for SIGINT and SIGQUIT cut short what is left: no traceback, the same exit code.
        """
        if self._app._exit and threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGQUIT):
                signal.signal(number, self._cut_short)
            signal.signal(signal.SIGTSTP, signal.SIG_IGN)
        if self._has_title:
            self.write(POP_TITLE)
        super().stop_application_mode()

    @property
    def _has_title(self) -> bool:
        """Whether the terminal's title is ours to set, and to give back."""
        config = getattr(self._app, "config", None)
        return bool(config is not None and config["title"])

    def _cut_short(self, number: int, frame: Any) -> None:
        os._exit(self._app.return_code or 0)

    def _get_terminal_size(self) -> tuple[int, int]:
        """The size of the terminal itself.

        Textual asks COLUMNS and LINES, which do not follow a resize, and then stdout, which may be
        a file; stdin is known to be the terminal. It asks when the size may have changed, and what
        a terminal shows after that is its own affair.
        """
        self.forget_cells()
        try:
            width, height = os.get_terminal_size(self.fileno)
        except OSError:
            return super()._get_terminal_size()
        return width or 80, height or 24

    def process_message(self, message: Message) -> None:
        """Pass on what the terminal sends; a size among it is the word of a resize."""
        if isinstance(message, events.Resize):
            self.forget_cells()
        super().process_message(message)

    def forget_cells(self) -> None:
        """Write the next update whole, whatever the terminal shows."""
        self._output.is_unknown = True

    def run_input_thread(self) -> None:
        watcher = threading.Thread(target=self._watch_for_hang_up, daemon=True, name="hang-up")
        watcher.start()
        try:
            self._read_keys()
        except OSError:  # EIO: nobody is at the other end
            self._gone()

    def _read_keys(self) -> None:
        """Pass on what the terminal sends, until the end.

        As Textual does it, but what is no UTF-8, and what its parser fails at (a key of a number
        that no letter has), ends nothing, and a paste is text (`PastesAsText`).
        """
        parser = _Parser(self._debug)
        decode = getincrementaldecoder("utf-8")("replace").decode
        as_text = PastesAsText()
        with selectors.SelectSelector() as selector:
            selector.register(self.fileno, selectors.EVENT_READ)
            ends = False
            while not ends:
                ends = self.exit_event.is_set()  # then what is there is read once more
                there = bool(selector.select(0.1))
                text = as_text(decode(os.read(self.fileno, 4096))) if there else ""
                try:
                    for event in parser.feed(text) if text else ():
                        self.process_message(event)
                    for event in parser.tick():
                        self.process_message(event)
                except Exception:
                    logger.debug("the terminal sent what is no key: %r", text, exc_info=True)
                    size, pixels = parser.terminal_size, parser.terminal_pixel_size
                    in_pixels, parser = parser.mouse_pixels, _Parser(self._debug)
                    parser.terminal_size, parser.terminal_pixel_size = size, pixels
                    parser.mouse_pixels = in_pixels
        with suppress(EOFError, ParseError):
            for _ in parser.feed(""):
                pass

    def _watch_for_hang_up(self) -> None:
        """Wait, without waking up, until the terminal is closed at its other end."""
        import select

        poll = select.poll()
        poll.register(self.fileno, 0)  # errors and hang-ups are always reported
        while not self.exit_event.is_set():
            try:
                found = poll.poll()
            except OSError:
                return
            if found and not self.exit_event.is_set():
                self._gone()
                return

    def _signalled(self, number: int, frame: Any) -> None:
        self._end(128 + number)

    def _gone(self) -> None:
        self._end(128 + signal.SIGHUP)

    def _end(self, code: int) -> None:
        """An orderly end if it can be had; in any case an end."""
        killer = threading.Timer(PATIENCE, os._exit, (code,))
        killer.daemon = True
        killer.start()
        loop = self._app._loop
        end = getattr(self._app, "end", None)
        if loop is None or end is None or loop.is_closed():
            os._exit(code)
        loop.call_soon_threadsafe(end, code)


class _Parser(XTermParser):
    """Textual's parser, but what it fails at is left out alone, and no key behind it."""

    def _sequence_to_key_events(self, sequence: str, alt: bool = False) -> list[events.Key]:
        try:
            return list(super()._sequence_to_key_events(sequence, alt))
        except (ValueError, OverflowError):  # the number of a letter that there is none of
            return [events.Key(Keys.Ignore, None)]


class _Output:
    """A terminal's file: only cells that change go through; a terminal that is gone is reported.

    What cannot be written any more is swallowed.

    Args:
        plain: No colour goes through. Textual's own filter for NO_COLOR lets greys pass, because
            themes in true colour are dimmed after it.

    Attributes:
        is_unknown: What the terminal shows is not known any more. Set from any thread; taken
            notice of in the one that writes.
    """

    def __init__(self, file: Any, gone: Any, *, plain: bool = False) -> None:
        self._file, self._tell, self._lost, self._plain = file, gone, False, plain
        self._cells, self.is_unknown = ShownCells(), False

    def write(self, text: str) -> int:
        if not self._lost:
            if self.is_unknown:
                self.is_unknown = False
                self._cells.forget()
            try:
                self._file.write(self._cells.changed(without_colour(text) if self._plain else text))
                return len(text)
            except (OSError, ValueError):
                self._lose()
        return len(text)

    def flush(self) -> None:
        if not self._lost:
            try:
                self._file.flush()
            except (OSError, ValueError):
                self._lose()

    def fileno(self) -> int:
        return int(self._file.fileno())

    def _lose(self) -> None:
        self._lost = True
        # What is still buffered would fail once more when Python ends.
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), sys.__stderr__.fileno() if sys.__stderr__ else 2)
        self._tell()
