"""Inspect's tasks pane: the tasks of a subspace, and the one that others are compared with."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from textual.app import ComposeResult
from textual.containers import Vertical
from textual.widgets import Static

from vlora_engine.utils.ranking import ranked
from vlora_tui.tui.inspect.rows import TASK_COLUMNS, AllTasks, facts, task_cells
from vlora_tui.tui.text import clean
from vlora_tui.tui.widgets.table import Cell, Table

if TYPE_CHECKING:
    from vlora_engine.manifest.manifest import Manifest, TaskRecord

TASK_SORTS = ("error", "size", "name")


class TasksPane(Vertical):
    """The tasks in a table, the subspace in a sentence below."""

    def __init__(self, *, ascii_only: bool = False) -> None:
        super().__init__(id="inspect-tasks", classes="pane")
        self._ascii_only = ascii_only
        self._kept_mark = "=" if ascii_only else "◆"
        self._most = 0.0  # the largest error
        self.compared_with: str | None = None  # the id of the task that another is compared with

    def compose(self) -> ComposeResult:
        yield Table(TASK_COLUMNS, self._cells, key=lambda t: t.id, mark=self._mark, id="task-table")
        yield Static(id="task-facts", classes="said", markup=False)

    @property
    def record(self) -> TaskRecord | None:
        """The task under the cursor; None on the row of all together."""
        row = self._table.row
        return None if isinstance(row, AllTasks) else row

    @property
    def on_all(self) -> bool:
        """Whether the cursor is on the row of all tasks together."""
        return isinstance(self._table.row, AllTasks)

    @property
    def ids(self) -> list[str]:
        """The tasks in their order; an empty text stands for all together."""
        return [row.id for row in self._table.rows]

    def row_text(self) -> str | None:
        """The row under the cursor as text."""
        row = self._table.row
        if row is None:
            return None
        return "  ".join(
            text
            for (text, _), column in zip(self._cells(row), TASK_COLUMNS, strict=True)
            if column.key != "bar"
        )

    def show(self, manifest: Manifest, found: Callable[[str], bool], sort: int) -> None:
        """Show the tasks whose names are found, sorted by the column of that number."""
        rows = [task for task in manifest.tasks.values() if found(clean(task.id))]
        figures: tuple[Callable[[TaskRecord], float], ...] = (
            lambda task: task.error,
            lambda task: task.norm,
            lambda task: 0.0,  # all alike: the names alone decide
        )
        self._most = max((task.error for task in rows), default=0.0)
        tasks: list[TaskRecord | AllTasks] = [*ranked(rows, figures[sort], lambda task: task.id)]
        if len(rows) > 1 and len(rows) == len(manifest.tasks):
            tasks.insert(0, AllTasks(manifest))
        self._table.show(tasks)
        self.border_subtitle = f"by {TASK_SORTS[sort]}"
        self.border_title = f"Tasks of {clean(manifest.path.name)}"
        self.query_one("#task-facts", Static).update(facts(manifest))

    def go_to(self, path: str, file: str) -> None:
        """Put the cursor on the task at ``path`` (``DIR:TASK``), or whose file it is."""
        for row, task in enumerate(self._table.rows):
            if isinstance(task, AllTasks):
                continue
            if path.endswith(f":{task.id}") or file in (task.file, f"tasks/{task.file}"):
                self._table.move_to(row)
                return

    def go_to_task(self, task: str | None) -> None:
        """Put the cursor on a task, or on the row of all."""
        if (task or "") in self.ids:
            self._table.move_to(self.ids.index(task or ""))

    def walk(self, by: int) -> None:
        """The next row, or the one before, round and round."""
        count = len(self._table.rows)
        if count:
            self._table.move_to((self._table.cursor + by) % count)

    def keep(self) -> None:
        """Keep the task under the cursor, or let go of it."""
        if self.record is not None:
            self.compared_with = None if self.compared_with == self.record.id else self.record.id
            self._table.refresh()

    @property
    def _table(self) -> Table[TaskRecord | AllTasks]:
        return self.query_one("#task-table", Table)

    def _cells(self, task: TaskRecord | AllTasks) -> list[Cell]:
        return task_cells(task, self._most, ascii_only=self._ascii_only)

    def _mark(self, task: TaskRecord | AllTasks) -> Cell:
        return (self._kept_mark, "accent") if task.id == self.compared_with else (" ", "")
