"""Inspect's groups pane: similar adapters, copies, and checkpoints of one run."""

from __future__ import annotations

from collections.abc import Sequence

from textual.app import ComposeResult
from textual.containers import Vertical
from textual.widgets import Static

from vlora_engine.utils.naming import cosine_text
from vlora_tui.tui.core.likeness import Group, Likeness
from vlora_tui.tui.inspect.data import Kin
from vlora_tui.tui.inspect.rows import GROUP_COLUMNS, GROUP_WORDS, group_cells, group_names
from vlora_tui.tui.key_names import key
from vlora_tui.tui.widgets.table import Cell, Table


class GroupsPane(Vertical):
    """The groups in a table, below how the one under the cursor is known."""

    def __init__(self, *, ascii_only: bool = False) -> None:
        super().__init__(id="inspect-groups", classes="pane")
        self._ascii_only = ascii_only
        self._likeness: Likeness | None = None
        self._is_known = False

    def compose(self) -> ComposeResult:
        yield Table(
            GROUP_COLUMNS, self._cells, key=lambda g: f"{g.kind} {g.members}", id="group-table"
        )
        yield Static(id="groups-said", classes="said", markup=False)

    @property
    def group(self) -> Group | None:
        """The group under the cursor."""
        return self._table.row

    def show(
        self, likeness: Likeness | None, rows: Sequence[Group], kin: Kin | None, threshold: float
    ) -> None:
        """Show these groups; copies and runs are among them once ``kin`` is known."""
        self._likeness, self._is_known = likeness, kin is not None
        self.border_title = f"Groups: cosine {cosine_text(threshold)} or more, copies, runs"
        self._table.show(list(rows))
        self._say()

    def row_text(self) -> str | None:
        """The group under the cursor as text."""
        if self.group is None or self._likeness is None:
            return None
        names = group_names(self.group, self._likeness, self._ascii_only)
        return f"{GROUP_WORDS[self.group.kind]}: {names} ({self.group.how})"

    def on_table_moved(self, event: Table.Moved) -> None:
        event.stop()
        self._say()

    @property
    def _table(self) -> Table[Group]:
        return self.query_one("#group-table", Table)

    def _cells(self, group: Group) -> list[Cell]:
        assert self._likeness is not None  # noqa: S101  (there are no rows without it)
        return group_cells(group, self._likeness, self._ascii_only)

    def _say(self) -> None:
        text = self.row_text()
        if text is None and self._likeness is not None:
            text = f"No two are that similar; {key('inspect.lower')} lowers the threshold."
            text += "" if self._is_known else " Looking for copies and runs."
        self.query_one("#groups-said", Static).update(text or "")
