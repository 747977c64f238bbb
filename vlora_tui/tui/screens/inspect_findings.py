"""Inspect's pane of findings: what was found wrong, where, and what mends it."""

from __future__ import annotations

from collections.abc import Sequence

from textual.app import ComposeResult
from textual.containers import Vertical
from textual.widgets import Static

from vlora_tui.tui.inspecting import SEVERITIES, Remark
from vlora_tui.tui.screens.inspect_lines import (
    FINDING_COLUMNS,
    MARKS,
    TONES,
    finding_cells,
    remedy_words,
)
from vlora_tui.tui.widgets.table import Cell, Table
from vlora_tui.tui.words import plural


class FindingsPane(Vertical):
    """The findings in a table, all of the one under the cursor below."""

    def __init__(self, *, ascii_only: bool = False) -> None:
        super().__init__(id="inspect-findings", classes="pane")
        self._marks = {**MARKS, "error": "x", "note": "."} if ascii_only else MARKS
        self._headers_only = False
        self.border_title = "Findings"

    def compose(self) -> ComposeResult:
        yield Table(
            FINDING_COLUMNS, finding_cells, key=lambda r: f"{r.about} {r.what}",
            mark=self._mark, id="finding-table",
        )  # fmt: skip
        yield Static(id="findings-remedy", markup=False)

    @property
    def remark(self) -> Remark | None:
        """The finding under the cursor."""
        table: Table[Remark] = self.query_one("#finding-table", Table)
        return table.row

    def row_text(self) -> str | None:
        """The finding under the cursor as text."""
        found = self.remark
        if found is None:
            return None
        head = f"{found.severity}: {found.about}: {found.what}"
        return "\n  ".join(part for part in (head, found.where, found.remedy) if part)

    def show(self, rows: Sequence[Remark], *, headers_only: bool) -> None:
        """Show these findings; those of headers only are not all there may be."""
        self._headers_only = headers_only
        self.query_one("#finding-table", Table).show(list(rows))
        counts = {severity: sum(r.severity == severity for r in rows) for severity in SEVERITIES}
        self.border_subtitle = ", ".join(plural(n, severity) for severity, n in counts.items() if n)
        self._say()

    def on_table_moved(self, event: Table.Moved) -> None:
        event.stop()
        self._say()

    def _say(self) -> None:
        words = remedy_words(self.remark, headers_only=self._headers_only)
        self.query_one("#findings-remedy", Static).update(words)

    def _mark(self, row: Remark) -> Cell:
        return self._marks[row.severity], TONES[row.severity]
