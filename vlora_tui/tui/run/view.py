"""Step 3: review what is going to be done, start it, watch it, and find every job again."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Vertical, VerticalScroll
from textual.widgets import Input, Static

from vlora_tui.pipeline import events
from vlora_tui.tui.core.bad_adapters import can_go_on
from vlora_tui.tui.core.messages import ChoiceChanged, SessionChanged
from vlora_tui.tui.core.pane_view import PaneView
from vlora_tui.tui.run import job_text
from vlora_tui.tui.widgets.bindings import hidden, shown
from vlora_tui.tui.widgets.folding import hanging
from vlora_tui.tui.widgets.table import Column, Table
from vlora_tui.tui.widgets.tabs import PaneTabs, Tab

if TYPE_CHECKING:
    from vlora_tui.jobs import JobView

COLUMNS = (
    Column("state", "state", least=9, keep=3),
    Column("what", "job", least=16, keep=2),
    Column("far", "", least=8, keep=1),
    Column("when", "started", keep=0),
)

SCROLL_BAR = 2  # columns


class RunView(PaneView):
    """The recipe on top, the jobs below it, and what the chosen job has to say."""

    step = 3
    title = "Run"
    output_action = "output"
    least = (60, 20)
    help_text = (
        "Enter starts what the upper pane says. Jobs are processes of their own: closing the "
        "terminal leaves them running, and the next session finds them.\n"
        "o changes where the subspace goes, f allows an existing output to be replaced.\n"
        "On a job: c cancels it (and asks what to do with the layers that are built), R goes on "
        "with one that stopped, v opens what it made, x forgets it; L starts one that bad "
        "adapters stopped again without them."
    )
    BINDINGS: ClassVar[list[BindingType]] = [
        shown("enter", "start", "Start", "run.start", "Start what is on top"),
        shown("o", "output", "Output", "run.output", "Where the subspace goes"),
        shown("c", "cancel", "Cancel", "run.cancel", "Stop the job under the cursor"),
        shown("R", "resume", "Resume", "run.resume", "Go on with a stopped job"),
        hidden("L", "leave_out", "run.leave_out",
               "Start a job that bad adapters stopped again without them"),
        shown("v", "open", "View result", "run.open", "Open what the job made"),
        hidden("tab", "next_pane(1)", "run.pane", "The next pane"),
        hidden("shift+tab", "next_pane(-1)", "run.pane_back", "The pane before"),
        hidden("x", "remove", "run.remove", "Forget the job"),
        hidden("f", "force", "run.force", "Replace the output"),
    ]  # fmt: skip
    DEFAULT_CSS = Path(__file__).with_suffix(".tcss").read_text("utf-8")

    def __init__(self, id: str | None = None) -> None:
        super().__init__(id=id)
        self._force = False
        self._asking: str | None = None
        self._was_shown = False
        self._awaited = 0  # how many jobs there were when one was started
        self._of_use: tuple[bool, ...] = ()

    def compose(self) -> ComposeResult:
        yield PaneTabs(id="run-tabs")
        with Vertical(id="run-review", classes="pane") as pane:
            pane.border_title = "What Enter starts"
            with VerticalScroll(id="review-text", can_focus=True):
                yield Static(id="review", markup=False)
        with Vertical(id="run-jobs", classes="pane") as pane:
            pane.border_title = "Jobs"
            yield Table(COLUMNS, job_text.row, key=lambda view: view.job.id, id="jobs")
        with Vertical(id="run-details", classes="pane") as pane:
            pane.border_title = "The job under the cursor"
            with VerticalScroll(id="details", can_focus=True):
                yield Static(id="said", markup=False)
        yield Static(id="line", markup=False)
        line = Input(id="place", placeholder="where the subspace goes", compact=True)
        line.cursor_blink = False
        yield line

    def panes(self) -> list[Tab]:
        return [
            Tab("run-review", "Start"),
            Tab("run-jobs", "Jobs", len(self.host.job_views())),
            Tab("run-details", "Job"),
        ]

    def arranged(self) -> None:
        self.draw_tabs()
        self.call_after_refresh(self._draw)  # once the panes have their widths

    def shown(self) -> None:
        self._draw()
        self.fit()
        one = self.has_class("one")  # then what Enter starts is read before it is started
        first = "run-review" if one else "run-jobs"
        self.go_to_pane(self.pane if self._was_shown else first)
        self._was_shown = True

    def changed(self, change: SessionChanged) -> None:
        self._draw()

    def row_text(self) -> str | None:
        view = self.job
        return None if view is None else "  ".join(cell for cell, _ in job_text.row(view))

    @property
    def job(self) -> JobView | None:
        """The job under the cursor."""
        table: Table[JobView] = self.query_one("#jobs", Table)
        return table.row

    def on_table_moved(self) -> None:
        self._draw_details()

    def is_of_use(self, action: str) -> bool:
        view = self.job
        if action == "cancel":
            return view is not None and not view.state.is_over
        if action == "resume":
            return view is not None and view.can_resume
        if action == "open":
            return view is not None and bool(view.outputs)
        return True

    def _draw_keys(self) -> None:
        """What can be done with one job cannot be done with every other."""
        of_use = tuple(self.is_of_use(action) for action in ("cancel", "resume", "open"))
        if of_use != self._of_use:
            self._of_use = of_use
            self.screen.refresh_bindings()

    def _draw(self) -> None:
        review = job_text.review(self.session)
        if self._force:
            review.append("replace   an output that is there (f takes it back)\n", "bold")
        self._say("#review", "review-text", review)
        table: Table[JobView] = self.query_one("#jobs", Table)
        views = self.host.job_views()
        came = 0 < self._awaited <= len(views) - 1
        table.show(views, cursor=0 if came else None)
        if came:
            self._awaited = 0
        self._draw_details()
        self.query_one(PaneTabs).show(self.panes(), self.pane)

    def _draw_details(self) -> None:
        view, problem = self.job, self.host.jobs.problem
        panel = self.query_one("#said", Static)
        if problem:
            panel.update(problem)
        elif view is None:
            panel.update("No job yet. What is started here goes on when the terminal is closed.")
        else:
            details = job_text.details(view, ascii_only=self.host.ascii_only)
            self._say("#said", "details", details)
        self._draw_keys()

    def _say(self, selector: str, around: str, text: Text) -> None:
        """Show ``text``, folded to the width that there is, be it scrolled or not."""
        text.rstrip()
        static = self.query_one(selector, Static)
        width = self.query_one(f"#{around}").region.width or self.app.size.width - 4
        static.update(hanging(text, width - SCROLL_BAR))

    # what is going to be done

    def action_start(self) -> None:
        session = self.session
        if not session.marked:
            self.notify("Nothing is marked: 1, then space on an adapter.", severity="warning")
            return
        if self.host.bad_adapters.ask():
            return
        if len(session.groups) > 1:
            self.notify(
                "The marked adapters belong to several groups that do not fit together. "
                "Mark one group: 1, then *.",
                severity="warning",
            )
            return
        output = session.output or str(session.default_output())
        if os.path.lexists(output) and not self._force:
            self.notify(f"{output} exists: o names another place, f replaces it.", markup=False)
            return
        self._awaited = len(self.host.job_views())
        self.host.start_job(session.recipe(), force=self._force)
        self._force = False
        self.go_to_pane("run-jobs")

    def action_output(self) -> None:
        field = self.query_one("#place", Input)
        field.value = self.session.output or str(self.session.default_output())
        field.add_class("asked")
        field.focus()
        self._show_line("Where the subspace goes: a new folder. enter takes it, esc goes back")

    def on_input_submitted(self, event: Input.Submitted) -> None:
        event.stop()
        value = os.path.expanduser(event.value.strip())
        self.session.output = os.path.abspath(value) if value else None
        self._close_field()
        self.post_message(ChoiceChanged())

    def action_force(self) -> None:
        self._force = not self._force
        self._draw()

    def _close_field(self) -> None:
        self.query_one("#place").remove_class("asked")
        self.query_one("#line").remove_class("asked")
        self.go_to_pane(self.pane)

    # jobs

    def action_cancel(self) -> None:
        view = self.job
        if view is None or view.state.is_over:
            self.notify("This job is over; x forgets it.", severity="warning")
            return
        self._ask(
            "cancel",
            "Stop at the next layer.  k keeps what is built  d discards it  any other key: go on",
        )

    def action_remove(self) -> None:
        view = self.job
        if view is None or not view.state.is_over:
            self.notify("A job that runs cannot be forgotten: c stops it.", severity="warning")
            return
        self._ask("remove", "Forget this job and layers it left?  y forgets it  any other key: no")

    def action_resume(self) -> None:
        view = self.job
        if view is None or not view.can_resume:
            self.notify("Only a job that stopped before its end can go on.", severity="warning")
            return
        self.host.jobs.resume(view.job.id)

    def action_leave_out(self) -> None:
        view = self.job
        if view is None or not can_go_on(view):
            self.notify("This job was not stopped by bad adapters.", severity="warning")
            return
        self.host.bad_adapters.go_on_without(view)

    async def action_open(self) -> None:
        view = self.job
        if view is None or not view.outputs:
            self.notify("This job has made nothing that could be opened.", severity="warning")
            return
        if view.last(events.SubspaceWritten) is not None:
            await self.host.open_subspace(view.outputs[0])
        else:
            await self.host.show_adapters(view.outputs)

    def _ask(self, what: str, text: str) -> None:
        self._asking = what
        self._show_line(text)

    def _show_line(self, text: str) -> None:
        """A line below the panes, until there is an answer."""
        line = self.query_one("#line", Static)
        line.update(text)
        line.add_class("asked")

    def on_key(self, event) -> None:  # type: ignore[no-untyped-def]
        if self.query_one("#place").has_class("asked"):
            if event.key == "escape":
                event.stop()
                self._close_field()
            return
        if self._asking is None:
            return
        event.stop()
        event.prevent_default()
        what, self._asking = self._asking, None
        self.query_one("#line").remove_class("asked")
        view = self.job
        if view is None:
            return
        if what == "cancel" and event.key in ("k", "d"):
            self.host.jobs.cancel(view.job.id, discard=event.key == "d")
        elif what == "remove" and event.key == "y":
            self.host.jobs.remove(view.job.id)
