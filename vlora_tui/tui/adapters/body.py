"""The Adapters step with adapters listed: the table, its filter, the details of a row."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.cells import cell_len
from rich.text import Text
from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.widget import Widget
from textual.widgets import Input, Static

from vlora_tui.tui.adapters.details import LABEL, Tones, facts, findings
from vlora_tui.tui.adapters.rows import COLUMNS, Row
from vlora_tui.tui.text import cut
from vlora_tui.tui.widgets.buttons import Buttons
from vlora_tui.tui.widgets.folding import hanging
from vlora_tui.tui.widgets.table import Cell, Column, Table

TONES = ("muted", "good", "warning", "error", "accent")


class Details(VerticalScroll, can_focus=True):
    """The pane with all that is known of the row under the cursor."""

    help_title = "In the details"


class Hint(Widget):
    """One line, in as many words as there is room for."""

    def __init__(self, *, id: str) -> None:
        super().__init__(id=id)
        self._hints: Sequence[str] = ()

    def show(self, hints: Sequence[str]) -> None:
        """Say this: the same in ever fewer words, of which the first that fits is shown."""
        if list(hints) != list(self._hints):
            self._hints = hints
            self.refresh()

    def render(self) -> Text:
        width = self.size.width
        shown = next((words for words in self._hints if cell_len(words) <= width), None)
        least = "".join(self._hints[-1:]) if shown is None else shown
        ascii_only = bool(getattr(self.app, "ascii_only", False))
        return Text(cut(least, width, ascii_only=ascii_only), no_wrap=True)


class Body(Horizontal):
    """The table of what was found, its filter, and the details of a row."""

    def __init__(self, mark: Callable[[Row], Cell]) -> None:
        super().__init__(id="adapters-body")
        self._mark = mark
        self._members, self._otherwise = 0, ""

    def compose(self) -> ComposeResult:
        with Vertical(id="adapters-list", classes="pane"):
            line = Input(placeholder="words, rank>=16, group:1, is:marked", compact=True)
            line.id, line.cursor_blink, line.display = "adapters-filter", False, False
            yield line
            yield Static("", id="adapters-instead", markup=False)
            yield Table(
                self._columns(()), self._cells, key=_path, mark=self._mark, id="adapters-table"
            )
            with Horizontal(id="adapters-low"):
                yield Hint(id="adapters-hint")
                yield Buttons(id="adapters-buttons")
        with Details(id="adapters-details", classes="pane") as pane:
            pane.border_title = "Details"
            yield Static("", id="adapters-facts", markup=False)
            yield Static("", id="adapters-findings", markup=False)

    def show_rows(self, rows: Sequence[Row], *, cursor: int | None = None) -> None:
        """List these rows, with the columns that have something to say."""
        columns = self._columns(rows)
        if columns != self.table.columns:
            self.table.columns = columns
        self.table.show(rows, cursor=cursor)

    def _columns(self, rows: Sequence[Row]) -> list[Column]:
        told = {
            "applies": any(row.applies is not None for row in rows),
            "tensors": any(row.checked is not None for row in rows),
        }
        self._left_out = {key for key in told if not told[key]}
        return [column for column in COLUMNS if column.key not in self._left_out]

    def _cells(self, row: Row) -> list[Cell]:
        pairs = zip(COLUMNS, row.cells(), strict=True)
        return [cell for column, cell in pairs if column.key not in self._left_out]

    @property
    def table(self) -> Table[Row]:
        """The table of what was found."""
        return self.query_one("#adapters-table", Table)

    @property
    def buttons(self) -> Buttons:
        """What can be done with what is marked, and with the row."""
        return self.query_one(Buttons)

    @property
    def filter(self) -> Input:
        """The line of the filter."""
        return self.query_one("#adapters-filter", Input)

    @property
    def details(self) -> Details:
        """The pane of the details."""
        return self.query_one(Details)

    def on_resize(self) -> None:
        self.call_after_refresh(self._say)

    def describe(self, members: int, otherwise: str) -> None:
        """Say all that is known of the row under the cursor.

        Args:
            members: How many adapters its group has.
            otherwise: What is said where there is no row.
        """
        self._members, self._otherwise = members, otherwise
        self._say()
        self.details.scroll_home(animate=False)

    def show_instead(self, text: str) -> None:
        """Say something in the place of the rows while there are none; nothing shows them."""
        words = self.query_one("#adapters-instead", Static)
        words.update(text)
        words.display = bool(text)
        self.table.display = not text

    def _say(self) -> None:
        row, table = self.table.row, self.table
        tones = Tones({tone: table.tone(tone) for tone in TONES})
        tones["title"] = "bold"
        words, finding_lines = Text(self._otherwise), Text()
        if row is not None:
            words, finding_lines = facts(row, self._members, tones), findings(row, tones)
        panel = self.query_one("#adapters-facts", Static)
        panel.update(hanging(words, panel.size.width, LABEL))
        self.query_one("#adapters-findings", Static).update(finding_lines)

    def show_header(self, title: str, count: str, hints: Sequence[str]) -> None:
        """Say where the list is from, how long it is, and what can be done with it.

        Args:
            hints: The same in ever fewer words; the first that fits is shown.
        """
        pane = self.query_one("#adapters-list")
        pane.border_title, pane.border_subtitle = Text(title), Text(count)
        self.query_one("#adapters-hint", Hint).show(hints)


def _path(row: Row) -> str:
    return row.path
