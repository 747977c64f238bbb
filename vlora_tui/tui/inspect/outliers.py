"""Inspect's outliers pane: which adapters stand out, in which modules, against what is usual."""

from __future__ import annotations

from collections.abc import Callable

from textual.app import ComposeResult
from textual.containers import Vertical
from textual.widgets import Static

from vlora_engine.utils.ranking import ranked
from vlora_tui.tui.inspect.data import Kin, Outlier
from vlora_tui.tui.inspect.rows import OUTLIER_COLUMNS, SORTS, outlier_cells
from vlora_tui.tui.widgets.table import Cell, Table

REASONS = 3  # that are said below the table


class OutliersPane(Vertical):
    """The outliers in a table, below why the one under the cursor is one."""

    def __init__(self, *, ascii_only: bool = False) -> None:
        super().__init__(id="inspect-apart", classes="pane")
        self.border_title = "Outliers"
        self._ascii_only = ascii_only
        self._most = 0.0  # the largest score
        self._otherwise = ""

    def compose(self) -> ComposeResult:
        yield Table(OUTLIER_COLUMNS, self._cells, key=lambda a: a.name, id="apart-table")
        yield Static(id="apart-said", classes="said", markup=False)

    @property
    def row(self) -> Outlier | None:
        """The outlier under the cursor."""
        return self._table.row

    def show(
        self, kin: Kin | None, found: Callable[[str], bool], sort: int, *, measured: bool
    ) -> None:
        """Show the outliers whose names are found, sorted by the column of that number."""
        rows = [row for row in kin.outliers if found(row.name)] if kin else []
        figures: tuple[Callable[[Outlier], float], ...] = (
            lambda row: row.score,
            lambda row: row.norm,
            lambda row: 0.0,  # all alike: the names alone decide
        )
        self._otherwise = (
            "No outliers." if kin
            else "Calculating…" if measured and not self._ascii_only
            else "Calculating." if measured
            else "Known when all modules are measured."
        )  # fmt: skip
        self._most = max((row.score for row in rows), default=0.0)
        self._table.show(ranked(rows, figures[sort], lambda row: row.name))
        self.border_subtitle = f"by {SORTS[sort]}" if rows else ""
        self._say()

    def row_text(self) -> str | None:
        """The outlier under the cursor as text."""
        return None if self.row is None else f"{self.row.name}: {'; '.join(self.row.why)}"

    def on_table_moved(self, event: Table.Moved) -> None:
        event.stop()
        self._say()

    def _cells(self, row: Outlier) -> list[Cell]:
        return outlier_cells(row, self._most, ascii_only=self._ascii_only)

    @property
    def _table(self) -> Table[Outlier]:
        return self.query_one("#apart-table", Table)

    def _say(self) -> None:
        text = self._otherwise
        if self.row is not None:
            reasons = self.row.why
            more = f"\nand {len(reasons) - REASONS} more reasons" if len(reasons) > REASONS else ""
            text = "\n".join(reasons[:REASONS]) + more
        self.query_one("#apart-said", Static).update(text)
