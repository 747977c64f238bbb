"""Inspect's findings pane: what is wrong, where, the fix, and the doctor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from textual import work
from textual.app import ComposeResult
from textual.message import Message
from textual.widgets import Static
from textual.worker import get_current_worker

from vlora_engine.doctor import TARGETS
from vlora_engine.findings import SEVERITIES
from vlora_tui.tui.inspect import finding_rows as inspect_finding_rows
from vlora_tui.tui.inspect.finding_rows import Remark
from vlora_tui.tui.inspect.queries import Arguments, AskingPane, shell_command
from vlora_tui.tui.inspect.rows import FINDING_COLUMNS, MARKS, finding_cells, remedy_words
from vlora_tui.tui.key_names import keyed
from vlora_tui.tui.text import TONES, clean, plural
from vlora_tui.tui.widgets.table import Cell, Table

if TYPE_CHECKING:
    from vlora_tui.tui.core.session import Session

Judged = tuple[str, tuple[str, ...]]  # a target, and the places that it was asked about


class FindingsPane(AskingPane):
    """The findings in a table, all of the one under the cursor below.

    Headers and spectra have told some; the doctor, who reads every tensor, is asked on demand, and
    what a target would refuse is read from headers.
    """

    class Found(Message):
        """There are other findings than before."""

    class TargetRead(Message):
        """The headers were read for a target."""

        def __init__(self, key: Judged, rows: list[Remark]) -> None:
            super().__init__()
            self.key, self.rows = key, rows

    def __init__(self, session: Session, *, ascii_only: bool = False) -> None:
        super().__init__(id="inspect-findings")
        self.session = session
        self.target = ""
        self._marks = {**MARKS, "error": "x", "note": "."} if ascii_only else MARKS
        self._on_tasks = self._headers_only = False
        self._judged: dict[Judged, list[Remark]] = {}
        self._judging: Judged | None = None
        self._new_target = False

    def compose(self) -> ComposeResult:
        yield Table(
            FINDING_COLUMNS, finding_cells, key=lambda r: r.key,
            mark=self._mark, id="finding-table",
        )  # fmt: skip
        yield Static(id="findings-remedy", markup=False)

    # what the step asks

    def remarks(self, *, tasks: bool) -> list[Remark]:
        """All that is known of the open subspace (``tasks``), or of the adapters."""
        self._on_tasks = tasks
        answers = self.answer_to(self._doctor) or []
        return inspect_finding_rows.remarks_in(
            self.session, [*answers, *self._judged.get(self._key, [])]
        )

    def show(self, rows: Sequence[Remark], found: Callable[[Remark], bool]) -> None:
        """Show those of these findings that are found."""
        rows = [row for row in rows if found(row)]
        self._headers_only = self.session.spectra is None and bool(self.session.infos)
        by = " of the doctor" if self.answer_to(self._doctor) is not None else ""
        self.border_title = f"Findings{by}" + (f", with {self.target}" if self.target else "")
        table = self.query_one("#finding-table", Table)
        table.show(rows, cursor=0 if self._new_target else None)  # the gravest of it stand on top
        self._new_target = False
        counts = {severity: sum(r.severity == severity for r in rows) for severity in SEVERITIES}
        self.border_subtitle = ", ".join(plural(n, severity) for severity, n in counts.items() if n)
        self._say()

    @property
    def remark(self) -> Remark | None:
        """The finding under the cursor."""
        table: Table[Remark] = self.query_one("#finding-table", Table)
        return table.row

    def row_text(self) -> str | None:
        """The command that mends what is under the cursor; without one, the finding as text."""
        return None if self.remark is None else self.remark.shown.fix or self.remark.text

    @property
    def command(self) -> str | None:
        """The command that prints the same findings, and more."""
        paths = inspect_finding_rows.paths_for_doctor(self.session, tasks=self._on_tasks)
        target = ["--target", self.target] if self.target else []
        return shell_command(["doctor", *paths, *target]) if paths else None

    def call_doctor(self) -> str | None:
        """Have every tensor looked at; why that cannot be, or None."""
        if not inspect_finding_rows.paths_for_doctor(self.session, tasks=self._on_tasks):
            return "Nothing here for the doctor to check."
        self.ask(self._doctor, inspect_finding_rows.doctor_findings, again=True)
        self._judged.clear()  # something may have been mended since
        self.judge()
        self._say()
        return None

    def turn_target(self) -> None:
        """Hold the headers against the next target, after the last against none."""
        ring = ("", *TARGETS)
        self.target = ring[(ring.index(self.target) + 1) % len(ring)]
        self.judge()
        self.post_message(self.Found())

    def judge(self) -> None:
        """Read the headers for the chosen target, unless that was done."""
        if self.target and self._key not in self._judged and self._judging != self._key:
            self._judging = self._key
            self._judge(self._key)

    # drawing

    @property
    def _doctor(self) -> Arguments:
        places = inspect_finding_rows.paths_for_doctor(self.session, tasks=self._on_tasks)
        return ("doctor", *places, "--fail-on", "never")

    @property
    def _key(self) -> Judged:
        return self.target, tuple(
            inspect_finding_rows.refs_for_target(self.session, tasks=self._on_tasks)
        )

    def on_table_moved(self, event: Table.Moved) -> None:
        event.stop()
        self._say()

    def _say(self) -> None:
        words = remedy_words(self.remark, self._otherwise)
        state = self._state
        if state:
            words.append(f"\n{state}" if self.remark is not None else f" {state}", "not bold")
        self.query_one("#findings-remedy", Static).update(words)

    @property
    def _otherwise(self) -> str:
        """What is known where nothing was found."""
        if self.answer_to(self._doctor) is not None:
            return "The doctor finds no problems."
        if self._headers_only:
            return keyed("No problems in the headers; <inspect.doctor> reads the tensors.")
        return keyed("No problems known; <inspect.doctor> asks the doctor, who reads every tensor.")

    @property
    def _state(self) -> str:
        """What is going on."""
        problem = self.problem_of(self._doctor)
        if self.asking is not None:
            return keyed("Reading every tensor… (<inspect.stop> to stop)")
        if problem is not None:
            return f"The doctor failed: {clean(problem)}"
        if self._judging is not None:
            return f"Reading headers for {self._judging[0]}…"
        return ""

    def _mark(self, row: Remark) -> Cell:
        return self._marks[row.severity], TONES[row.severity]

    # work off the screen

    def answered(self) -> None:
        self.post_message(self.Found())

    def stopped(self) -> None:
        self._say()

    @work(thread=True, exclusive=True, group="target")
    def _judge(self, key: Judged) -> None:
        worker = get_current_worker()
        target, places = key
        rows = inspect_finding_rows.target_findings(places, target, lambda: worker.is_cancelled)
        if not worker.is_cancelled:
            self.post_message(self.TargetRead(key, rows))

    def on_findings_pane_target_read(self, event: TargetRead) -> None:
        event.stop()
        self._judged[event.key] = event.rows
        self._new_target = event.key == self._key
        if self._judging == event.key:
            self._judging = None
        self.post_message(self.Found())
