"""Inspect's first pane: what is worth knowing, in sentences; Enter shows the picture of one."""

from __future__ import annotations

from collections.abc import Sequence

from textual.app import ComposeResult
from textual.containers import Vertical
from textual.widgets import Static

from vlora_tui.tui.inspect.sentences import Sentence
from vlora_tui.tui.key_names import key
from vlora_tui.tui.widgets.table import Cell, Column, Table

COLUMNS = (Column("text", "", least=20, most=400, keep=1),)


class SummaryPane(Vertical):
    """The sentences in a table of one column; below it all of the one under the cursor."""

    def __init__(self, *, ascii_only: bool = False) -> None:
        super().__init__(id="inspect-summary", classes="pane")
        self.border_title = "Summary"
        self._marks = ("!", "-") if ascii_only else ("!", "·")
        self._instead = ""

    def compose(self) -> ComposeResult:
        yield Table(
            COLUMNS, _cells, key=lambda s: f"{s.topic} {s.pair} {s.task} {s.text[:24]}",
            mark=self._mark, header=False, id="summary-table",
        )  # fmt: skip
        yield Static(id="summary-said", classes="said", markup=False)

    @property
    def sentence(self) -> Sentence | None:
        """The sentence under the cursor."""
        return self._table.row

    def show(self, rows: Sequence[Sentence], *, state: str = "", instead: str = "") -> None:
        """Show these sentences.

        Args:
            state: What is being measured. instead: Why there are none.
        """
        self.border_subtitle, self._instead = state, instead
        if list(rows) != list(self._table.rows):
            self._table.show(list(rows))
        self._say()

    def on_table_moved(self, event: Table.Moved) -> None:
        event.stop()
        self._say()

    @property
    def _table(self) -> Table[Sentence]:
        return self.query_one("#summary-table", Table)

    def _mark(self, row: Sentence) -> Cell:
        return (self._marks[0], "warning") if row.warns else (self._marks[1], "muted")

    def _say(self) -> None:
        row = self.sentence
        if row is None:
            text = self._instead
        elif self.size.width and len(row.text) > self._table.size.width - 4:
            text = f"{row.text}\n{key('inspect.enter')}: {row.picture}"
        else:
            text = f"{key('inspect.enter')}: {row.picture}"
        panel = self.query_one("#summary-said", Static)
        panel.update(text)

    def on_resize(self) -> None:
        self._say()


def _cells(row: Sentence) -> list[Cell]:
    return [(row.text, "")]
