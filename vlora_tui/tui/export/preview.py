"""Export's preview: which outputs will be written where, then which were, and read back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.widgets import Static

from vlora_tui.tui.export.plan import Plan, Row
from vlora_tui.tui.export.result import Outcome, off, result
from vlora_tui.tui.export.settings import Item
from vlora_tui.tui.key_names import key, keyed
from vlora_tui.tui.text import TONES, advice, clean, plural, tilde
from vlora_tui.tui.widgets.table import Cell, Column, Table
from vlora_tui.utils.formatting import size

if TYPE_CHECKING:
    from vlora_tui.jobs import JobView

STATE = 16  # columns: "dW off by 0.0002" is never cut before its figure
COLUMNS = (
    Column("name", "what", least=14, most=34, keep=5, lost="middle"),
    Column("path", "output", least=12, most=200, keep=2, lost="start"),
    Column("bytes", "size", right=True, keep=3),
    Column("doctor", "doctor", least=9, most=40, keep=4),
    Column("state", "", least=STATE, most=40, keep=6),
)
FANCY = {"good": "✓", "error": "✗", "warning": "!"}
PLAIN = {"good": "+", "error": "x", "warning": "!"}


class PreviewPane(Vertical):
    """A line for each adapter of the plan, told by the job once there is one."""

    def __init__(self, *, ascii_only: bool = False) -> None:
        super().__init__(id="export-preview", classes="pane")
        self._marks = PLAIN if ascii_only else FANCY
        self._plan = Plan()
        self._view: JobView | None = None
        self._verify, self._waiting = True, ""
        self._columns: tuple[Column, ...] = COLUMNS
        self.outcome = Outcome()

    def compose(self) -> ComposeResult:
        yield Table(COLUMNS, self._cells, key=lambda r: str(r.path), mark=self._mark,
                    id="row-table")  # fmt: skip
        yield Static(id="preview-said", classes="said", markup=False)

    @property
    def row(self) -> Row | None:
        """The row under the cursor."""
        return self._table.row

    def show(
        self,
        plan: Plan,
        view: JobView | None,
        *,
        verify: bool,
        starting: bool,
        waiting: str = "",
    ) -> None:
        """Show a plan and how far it is.

        Args:
            view: The job that carries it out.
            verify: Whether it reads back what it writes.
            starting: A job was asked for that is not there yet.
            waiting: For which other jobs it waits.
        """
        self._plan, self._view, self._verify, self._waiting = plan, view, verify, waiting
        self.outcome = Outcome.of(view)
        judged = any(row.opinion is not None for row in plan.rows)
        self._columns = tuple(c for c in COLUMNS if judged or c.key != "doctor")
        self._table.columns = list(self._columns)
        self._table.show(plan.rows)
        self.border_title = self._title(starting)
        total = f"{plural(len(plan.rows), 'adapter')}, ~{size(plan.nbytes)}" if plan.rows else ""
        free = f"; {size(plan.free)} free" if plan.rows and plan.free is not None else ""
        self.border_subtitle = total + free
        text, wrong = self.words(starting)
        line = self.query_one("#preview-said", Static)
        line.set_class(wrong, "wrong")
        line.update(Text(text))

    def go_to(self, item: Item | None) -> None:
        """Put the cursor on the output of an item, where it has one."""
        names = [row.name for row in self._plan.rows]
        if item is not None and item.name in names:
            self._table.move_to(names.index(item.name))

    @property
    def is_done(self) -> bool:
        """Whether a job has written all of it."""
        return self._view is not None and str(self._view.state) == "finished"

    def words(self, starting: bool = False) -> tuple[str, bool]:
        """The line below: the job's result, or what stands in the way; whether that is wrong."""
        plan = self._plan
        if self._waiting:
            return self._waiting, False
        if self._view is not None:
            return result(self._view)
        if starting:
            return "Starting the job.", False
        if plan.problem is not None:
            return advice(keyed(plan.problem)), True
        if plan.refused:
            row, mend = plan.refused[0], advice(keyed(plan.refused[0].mend))
            some = f"{len(plan.refused)} of {len(plan.rows)}"
            return f"{some} cannot be written. {clean(row.name)}: {row.why}. {mend}", True
        if plan.there:
            many = len(plan.there)
            there = f"{many} exist" if many > 1 else "One exists"
            return f"{there} already; {key('export.start')} asks before replacing.", False
        if plan.free is not None and plan.nbytes > plan.free:
            return f"Not enough disk space: {size(plan.free)} free.", True
        if plan.served:
            return f"A folder for PEFT. {plan.served}", False
        return (f"Each is a folder with {plan.files}." if plan.rows else ""), False

    @property
    def _table(self) -> Table[Row]:
        return self.query_one("#row-table", Table)

    def _title(self, starting: bool) -> str:
        view = self._view
        if view is not None and view.state.is_over:
            return "Written" if view.error is None else "Written in part"
        if view is not None or starting:
            return "Writing"
        return "Will be written"

    def _cells(self, row: Row) -> list[Cell]:
        written = self.outcome.written.get(str(row.path))
        about = "<" if row.at_most else "~"
        shown = f"{about}{size(row.nbytes)}" if written is None else size(written)
        cells = {
            "name": (clean(row.name), ""),
            "path": (tilde(row.path), "muted"),
            "bytes": (shown, ""),
            "doctor": self._doctor(row),
            "state": self._state(row),
        }
        return [cells[column.key] for column in self._columns]

    def _mark(self, row: Row) -> Cell:
        tone = self._state(row)[1]
        if tone == "muted" and row.findings:
            tone = TONES[row.findings[0].severity]
        return self._marks.get(tone, " "), tone

    def _doctor(self, row: Row) -> Cell:
        """The gravest of what stays, else what the export mends."""
        if row.opinion is None or row.state == "no":
            return "", ""
        if row.findings:
            first, more = row.findings[0], len(row.findings) - 1
            return clean(first.what) + (f" +{more}" if more else ""), TONES[first.severity]
        if row.opinion.fixed:
            return f"fixes {len(row.opinion.fixed)}", "good"
        return "ok", "muted"

    def _state(self, row: Row) -> Cell:
        view, path = self._view, str(row.path)
        if view is not None:
            if path in self.outcome.verified:
                return f"dW {off(self.outcome.verified[path])}", "good"
            if path in self.outcome.written and view.error is not None and self._verify:
                return "not verified", "error"
            if path in self.outcome.written or str(view.state) == "finished":
                return "written", "good"
            return ("not written", "error") if view.state.is_over else ("waiting", "muted")
        if row.state == "no":  # the details and the line below say why at length
            return row.why if len(row.why) <= STATE else "refused", "error"
        return (row.why, "warning") if row.state == "there" else ("new", "muted")
