"""The log of a job in a pager: it scrolls, searches, and follows what is written."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from rich.cells import chop_cells
from rich.text import Text
from textual import events
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Vertical
from textual.message import Message
from textual.timer import Timer
from textual.widgets import Input, Static

from vlora_engine.utils.reading import open_file
from vlora_tui.tui.key_names import keyed
from vlora_tui.tui.text import clean, plural, tilde
from vlora_tui.tui.widgets.bindings import hidden, shown
from vlora_tui.tui.widgets.dialogs import Dialog
from vlora_tui.tui.widgets.table import Cell, Column, Table

if TYPE_CHECKING:
    from vlora_tui.jobs import JobView

MOST = 4 << 20  # bytes of a log that are shown, its end
POLL_SECONDS = 0.5


class Line(NamedTuple):
    """A line as it is drawn: which it is in the log, which part of it, and its text."""

    number: int
    part: int
    text: str


class LogPager(Dialog):
    """The log of one job.

    Args:
        view: The job when the pager is opened.
        look: The same job as it stands; None once it is forgotten.
    """

    DEFAULT_CSS = """
    LogPager {
        & > .box { width: 96%; height: 92%; padding: 0 1; }
        & Table { height: 1fr; }
        & #log-search { display: none; height: 1; }
        & #log-search.open { display: block; }
        & #log-state { height: 1; color: $text-muted; }
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        shown("escape,q,L", "cancel", "Close", "log.close", "Close the log"),
        shown("slash", "search", "Search", "log.search", "Search the log"),
        hidden("n", "match(1)", "log.next", "The next match"),
        hidden("N", "match(-1)", "log.before", "The match before"),
        shown("f", "follow", "Follow", "log.follow", "Follow what is written, or stop"),
    ]

    class Read(Message):
        """More of the log was read."""

        def __init__(self, text: str, end: int, anew: bool) -> None:
            super().__init__()
            self.text, self.end, self.anew = text, end, anew

    def __init__(self, view: JobView, look: Callable[[], JobView | None]) -> None:
        super().__init__()
        self._path: Path = view.job.log_path
        self._name = view.title
        self._look = look
        self._end = 0  # so many bytes of the file were read
        self._text = ""
        self._words = ""  # what is searched for
        self._following = not view.state.is_over
        self._timer: Timer | None = None

    def compose(self) -> ComposeResult:
        with Vertical(classes="box") as box:
            box.border_title = Text(f"Log of {clean(self._name)}")
            box.border_subtitle = Text(tilde(self._path))
            yield Table(
                (Column("text", "", most=1 << 16),),
                self._cells,
                key=lambda line: f"{line.number}.{line.part}",
                header=False,
                id="log-lines",
            )
            line = Input(placeholder="text to find", compact=True, id="log-search")
            line.cursor_blink = False
            yield line
            yield Static(id="log-state", markup=False)

    def on_mount(self) -> None:
        super().on_mount()
        self._lines.focus()
        self._read()
        if self._is_written:
            self._timer = self.set_interval(POLL_SECONDS, self._read)

    @property
    def _lines(self) -> Table[Line]:
        return self.query_one("#log-lines", Table)

    @property
    def _is_written(self) -> bool:
        view = self._look()
        return view is not None and not view.state.is_over

    # reading

    def _read(self) -> None:
        """Read what is new, in a thread; nothing is polled once the job is over."""
        if not self._is_written and self._timer is not None:
            self._timer.stop()
            self._timer = None
            self._following = False
            self._say()
        self.run_worker(partial(self._read_from, self._end), thread=True, exclusive=True)

    def _read_from(self, start: int) -> None:
        try:
            with open_file(self._path) as file:
                size = file.seek(0, 2)
                anew = size < start
                start = max(0 if anew else start, size - MOST)
                if size == start and not anew:
                    return
                file.seek(start)
                raw = file.read(size - start)
        except OSError as error:
            self.post_message(self.Read(error.strerror or str(error), 0, anew=True))
            return
        self.post_message(self.Read(raw.decode("utf-8", "replace"), size, anew))

    def on_log_pager_read(self, event: Read) -> None:
        event.stop()
        self._text = event.text if event.anew else self._text + event.text
        self._end = event.end
        self._show(to_end=self._following or not self._lines.rows)

    def on_resize(self, event: events.Resize) -> None:
        self.call_after_refresh(self._show)

    def _show(self, *, to_end: bool = False) -> None:
        width = max(8, self._lines.size.width - 6)
        rows = [
            Line(number, part, text)
            for number, line in enumerate(self._text.splitlines())
            for part, text in enumerate(chop_cells(clean(line), width) or [""])
        ]
        self._lines.show(rows, cursor=len(rows) - 1 if to_end and rows else None)
        self._say()

    def _cells(self, line: Line) -> list[Cell]:
        found = self._words and self._words.lower() in line.text.lower()
        return [(line.text, "accent" if found else "")]

    # searching

    def action_search(self) -> None:
        """Ask for a text to find."""
        line = self.query_one("#log-search", Input)
        line.value = self._words
        line.add_class("open")
        line.focus()

    def on_input_changed(self, event: Input.Changed) -> None:
        self._words = event.value
        self._lines.refresh()
        self._say()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        event.stop()
        self._words = event.value
        self._close_search()
        self.action_match(0)

    def _close_search(self) -> None:
        self.query_one("#log-search").remove_class("open")
        self._lines.focus()

    def _matches(self) -> list[int]:
        words = self._words.lower()
        rows = self._lines.rows
        return [n for n, line in enumerate(rows) if words and words in line.text.lower()]

    def action_match(self, by: int) -> None:
        """The next line with the text, or the one before; 0: this one, or the next."""
        found, at = self._matches(), self._lines.cursor
        if not found:
            self._say()
            return
        if by < 0:
            to = max((n for n in found if n < at), default=found[-1])
        else:
            to = min((n for n in found if n > at or (n == at and not by)), default=found[0])
        self._following = False
        self._lines.move_to(to)
        self._say()

    # following

    def action_follow(self) -> None:
        """Follow what is written, or stop."""
        self._following = not self._following and self._is_written
        if self._following:
            self._lines.action_edge(1)
        self._say()

    def on_table_moved(self, event: Table.Moved) -> None:
        event.stop()
        if self._following and self._lines.cursor < len(self._lines.rows) - 1:
            self._following = False
        self._say()

    def _say(self) -> None:
        count = len(self._text.splitlines())
        parts = [plural(count, "line") if count else "The log is empty."]
        if self._words:
            found = self._matches()
            nth = found.index(self._lines.cursor) + 1 if self._lines.cursor in found else 0
            what = f"{nth} of {len(found)}" if nth else plural(len(found), "match", "matches")
            parts.append(f'"{clean(self._words)}": {what}')
        if self._following:
            parts.append("following")
        keys = "<log.search> search, <log.next> next, <log.close> close"
        if self._is_written:
            keys = f"<log.follow> {'stop following' if self._following else 'follow'}, {keys}"
        text = f"{'; '.join(parts)}   {keyed(keys)}"
        self.query_one("#log-state", Static).update(Text(text, no_wrap=True))

    def action_cancel(self) -> None:
        if self.query_one("#log-search").has_class("open"):
            self._close_search()
        else:
            super().action_cancel()

    def on_key(self, event: events.Key) -> None:
        if event.key == "escape" and self.query_one("#log-search").has_class("open"):
            event.stop()
            self._close_search()
