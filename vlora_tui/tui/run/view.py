"""Step 3: review what is going to be done, start it, watch it, and find every job again."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Vertical, VerticalScroll
from textual.widgets import Static

from vlora_engine.catalog.read import read_manifest
from vlora_engine.errors import VLoRAError
from vlora_tui.jobs.devices import devices
from vlora_tui.jobs.store import SPECTRA
from vlora_tui.pipeline import events
from vlora_tui.tui.core.bad_adapters import can_go_on
from vlora_tui.tui.core.messages import (
    ChoiceChanged,
    CollectionChanged,
    SessionChanged,
    SubspaceChanged,
)
from vlora_tui.tui.key_names import keyed
from vlora_tui.tui.run import card as cards
from vlora_tui.tui.run import job_text
from vlora_tui.tui.run.compare import compare
from vlora_tui.tui.run.desk import Desk
from vlora_tui.tui.run.follow_up import FollowUp
from vlora_tui.tui.run.keys import BUTTONS, HELP, KEYS
from vlora_tui.tui.run.log import LogPager
from vlora_tui.tui.run.recipe_editor import RecipeEditor
from vlora_tui.tui.text import clean, problem_words, tilde
from vlora_tui.tui.widgets.buttons import Button, Buttons
from vlora_tui.tui.widgets.dialogs import Prompt
from vlora_tui.tui.widgets.folding import hanging
from vlora_tui.tui.widgets.form import Field, Form
from vlora_tui.tui.widgets.path_input import PathInput
from vlora_tui.tui.widgets.table import Cell, Column, Table
from vlora_tui.tui.widgets.tabs import PaneTabs, Tab
from vlora_tui.utils.formatting import percent, size

if TYPE_CHECKING:
    from vlora_tui.jobs import JobView
    from vlora_tui.recipe.model import Recipe

COLUMNS = (
    Column("state", "state", least=9, keep=6),
    Column("what", "job", least=16, keep=5),
    Column("method", "method", least=6, most=24, keep=2),
    Column("bytes", "size", right=True, keep=3),
    Column("error", "worst error", right=True, keep=4),
    Column("far", "", least=14, keep=4),
    Column("when", "started", keep=0),
)

SCROLL_BAR = 2  # columns
ROW = 4  # buttons in a line


class RunView(Desk):
    """What is going to be started on top, the jobs below it, and the selected job's result."""

    step = 3
    title = "Run"
    output_action = "output"
    least = (60, 20)
    help_text = HELP
    BINDINGS: ClassVar[list[BindingType]] = KEYS
    DEFAULT_CSS = Path(__file__).with_suffix(".tcss").read_text("utf-8")

    def __init__(self, id: str | None = None) -> None:
        super().__init__(id=id)
        self._asking: str | None = None
        self._was_shown = False
        self._of_use: tuple[bool, ...] = ()
        self._marked: str | None = None  # the job that another is compared with
        self._seen: set[str] = set()  # this window's jobs that the cursor has gone to
        self._ended: set[str] = set()  # and those whose result has been in front
        self.follow_up = FollowUp(self)
        self.editor = RecipeEditor(self)

    def compose(self) -> ComposeResult:
        ascii_only = self.host.ascii_only
        yield PaneTabs(id="run-tabs")
        with Vertical(id="run-review", classes="pane") as pane:
            pane.border_title = "Ready to run"
            with VerticalScroll(id="review-text", can_focus=False):
                yield Static(id="review", markup=False)
                yield Form(ascii_only=ascii_only, id="review-form")
            yield Buttons(id="review-buttons")
        with Vertical(id="run-jobs", classes="pane") as pane:
            pane.border_title = "Jobs"
            yield Table(
                COLUMNS, self._cells, key=lambda view: view.job.id, mark=self._mark_of, id="jobs"
            )
        with Vertical(id="run-details", classes="pane") as pane:
            pane.border_title = "Selected job"
            with VerticalScroll(id="details", can_focus=True):
                yield Static(id="card", markup=False)
                yield Buttons(id="next")
                yield Buttons(id="next-more")
                yield Static(id="said", markup=False)
        yield Static(id="line", markup=False)
        yield PathInput(id="place", placeholder="folder for the subspace", compact=True)

    def panes(self) -> list[Tab]:
        return [
            Tab("run-review", "Start"),
            Tab("run-jobs", "Jobs", len(self.host.job_views())),
            Tab("run-details", "Result" if cards.card_of(self.job) else "Job"),
        ]

    def arranged(self) -> None:
        self.draw_tabs()
        self.call_after_refresh(self._draw)  # once the panes have their widths

    def shown(self) -> None:
        self._draw()
        self.fit()
        if self.has_class("result"):
            self.go_to_pane("run-details")
        else:
            one = self.has_class("one")  # then what would be started is read before it is
            first = "run-review" if one else "run-jobs"
            self.go_to_pane(self.pane if self._was_shown else first)
        self._was_shown = True

    def changed(self, change: SessionChanged) -> None:
        if isinstance(change, ChoiceChanged | CollectionChanged | SubspaceChanged):
            self.editor.forget()
        self._draw()

    def row_text(self) -> str | None:
        view = self.job
        return None if view is None else "  ".join(cell for cell, _ in self._cells(view) if cell)

    def command_text(self) -> str | None:
        recipe = self.editor.recipe
        if recipe is None:
            return super().command_text()
        return self.session.command(recipe)

    @property
    def job(self) -> JobView | None:
        """The selected job."""
        table: Table[JobView] = self.query_one("#jobs", Table)
        return table.row

    @property
    def marked_job(self) -> JobView | None:
        """The job that another is compared with."""
        return self.host.jobs.view(self._marked or "")

    @property
    def subspace(self) -> str | None:
        """The subspace that further work is about: the selected job's, else the one that is open.

        With the review in focus it is the one that is open.
        """
        manifest = self.session.manifest
        opened = None if manifest is None else str(manifest.path)
        if self.pane == "run-review" and opened is not None:
            return opened
        return cards.subspace_of(self.job) or cards.works_on(self.job) or opened

    def on_table_moved(self) -> None:
        self._draw_details()

    def on_table_pressed(self) -> None:
        self.call_later(self.action_enter)

    def on_table_mark_pressed(self) -> None:
        self.action_mark()

    def is_of_use(self, action: str) -> bool:
        view = self.job
        match action:
            case "cancel":
                return view is not None and not view.state.is_over
            case "resume":
                return view is not None and view.can_resume
            case "enter" | "log" | "mark":
                return view is not None
            case "start":
                if self.has_class("result"):
                    return False
                return len(self.session.groups) == 1 or self.editor.recipe is not None
        return True

    def _draw_keys(self) -> None:
        """What can be done with one job cannot be done with every other."""
        actions = ("cancel", "resume", "enter", "start")
        of_use = tuple(self.is_of_use(action) for action in actions)
        if of_use != self._of_use:
            self._of_use = of_use
            self.screen.refresh_bindings()

    # drawing

    def _cells(self, view: JobView) -> list[Cell]:
        return job_text.row(view, *cards.cells(view))

    def _mark_of(self, view: JobView) -> Cell:
        on = "x" if self.host.ascii_only else "●"
        return (on, "accent") if view.job.id == self._marked else (" ", "")

    def _draw(self) -> None:
        self._draw_review()
        table: Table[JobView] = self.query_one("#jobs", Table)
        views = self.host.job_views()
        came, ended = self._news(views)
        at = ended if ended is not None else came
        table.show(views, cursor=None if at is None else views.index(at))
        if ended is not None:
            self._bring_forward()
        self._draw_details()
        self.query_one(PaneTabs).show(self.panes(), self.pane)

    def redraw(self) -> None:
        """Draw everything anew."""
        self._draw()

    def _news(self, views: list[JobView]) -> tuple[JobView | None, JobView | None]:
        """A job of this window that was not seen yet, and one that has ended since; newest first.

        Measuring goes on behind step 2, which shows it.
        """
        own = [
            view
            for view in views
            if view.job.id in self.host.jobs.started and view.job.info.kind != SPECTRA
        ]
        came = [view for view in own if view.job.id not in self._seen]
        self._ended -= {view.job.id for view in own if not view.state.is_over}  # resumed
        ended = [view for view in own if view.state.is_over and view.job.id not in self._ended]
        self._seen |= {view.job.id for view in came}
        self._ended |= {view.job.id for view in ended}
        return (came[0] if came else None), (ended[0] if ended else None)

    def _bring_forward(self) -> None:
        """Show the result large; what is being typed or answered keeps the focus."""
        self.add_class("result")
        if self._asking is None and not self.query_one("#place").has_class("asked"):
            self.go_to_pane("run-details")

    def _draw_review(self) -> None:
        recipe, manifest = self.editor.recipe, self.session.manifest
        form, buttons = self.query_one("#review-form", Form), self.query_one("#review-buttons")
        assert isinstance(buttons, Buttons)  # noqa: S101  (it is made as one)
        if recipe is not None:
            text = self.editor.review(recipe)
        elif not self.session.marked and manifest is not None:
            worst = manifest.worst
            text = Text(f"subspace  {tilde(manifest.path)}\n")
            text.append(f"tasks     {len(manifest.tasks)}\nsize      {size(manifest.nbytes)}\n")
            if worst is not None:
                errors = f"{percent(manifest.mean_error)} mean, {percent(worst.error)} worst"
                text.append(f"error     {errors} ({clean(worst.id)})\n")
        else:
            text = job_text.review(self.session)
        self._say("#review", "review-text", text)
        fields = [] if recipe is not None or not self.session.marked else self._fields()
        form.show(fields)
        form.styles.height = len(fields)
        form.display = bool(fields)
        around = self.query_one("#review-text", VerticalScroll)
        around.can_focus = not fields  # something in the pane hears its keys
        if not fields and form.has_focus:
            around.focus()
        buttons.show(self._review_buttons(recipe))

    def _fields(self) -> list[Field]:
        output = tilde(self.session.output or self.session.default_output())
        there = os.path.lexists(self.session.output or "")
        hint = "exists: replacing it asks first" if there else ""
        return [
            Field("output", "output", output + (f"  ({hint})" if hint else ""), "text"),
            Field("device", "device", self.session.device, "choice"),
        ]

    def _review_buttons(self, recipe: Recipe | None) -> list[Button]:
        if recipe is not None:
            return [
                Button("run.start", "Start this recipe", "start"),
                Button("run.recipe", "Edit again", "recipe"),
                Button("run.back", "Discard", "back"),
            ]
        if len(self.session.groups) > 1:
            return [Button("step.adapters", "Mark one group", "to_adapters")]
        if self.session.marked:
            count = len(self.session.included)
            label = f"Build {count} adapter{'s' if count != 1 else ''}"
            return [
                Button("run.start", label, "start"),
                Button("run.recipe", "Edit recipe", "recipe"),
            ]
        if self.session.manifest is not None:
            names = ("quantize", "evaluate", "add_task", "remove_tasks", "push")
            return [BUTTONS[name] for name in names]
        return [BUTTONS["pull"]]

    def _draw_details(self) -> None:
        view, problem = self.job, self.host.jobs.problem
        found = cards.card_of(view)
        pane = self.query_one("#run-details")
        pane.border_title = "Result" if found is not None else "Selected job"
        card = self.query_one("#card", Static)
        card.display = found is not None
        steps: list[Button] = []
        if found is not None:
            width = self.query_one("#details").region.width or self.app.size.width - 4
            text = cards.card_text(found, width, ascii_only=self.host.ascii_only)
            self._say("#card", "details", text)
            steps = [BUTTONS[name] for name in found.next]
        for selector, part in (("#next", steps[:ROW]), ("#next-more", steps[ROW:])):
            line = self.query_one(selector, Buttons)
            line.show(part)
            line.display = bool(part)
        panel = self.query_one("#said", Static)
        if problem:
            panel.update(problem)
        elif view is None:
            panel.update("No job yet. Jobs continue when the terminal is closed.")
        else:
            details = job_text.details(view, ascii_only=self.host.ascii_only)
            self._say("#said", "details", Text("\n") + details if found else details)
        self._draw_keys()

    def _say(self, selector: str, around: str, text: Text) -> None:
        """Show ``text``, folded to the width that there is, be it scrolled or not."""
        text.rstrip()
        static = self.query_one(selector, Static)
        width = self.query_one(f"#{around}").region.width or self.app.size.width - 4
        static.update(hanging(text, width - SCROLL_BAR))

    # what is going to be done

    def action_start(self) -> None:
        """Start what the review says; a typed word first where something would be replaced."""
        recipe = self.editor.recipe
        if self.has_class("result"):  # it hides the review: nothing is started unseen
            self._draw()
            self.go_to_pane("run-review")
            return
        if recipe is None and not self.session.marked:
            words = "Nothing is marked: <step.adapters>, then <adapters.mark> on an adapter."
            self.notify(keyed(words), severity="warning", markup=False)
            return
        if recipe is None and self.host.bad_adapters.ask(self.action_start):
            return
        if recipe is None and len(self.session.groups) > 1:
            words = (
                "The marked adapters belong to several groups that are not compatible. "
                "Mark one group: <step.adapters>, then <adapters.group>."
            )
            self.notify(keyed(words), severity="warning", markup=False)
            return
        recipe = recipe or self.session.recipe()
        output = recipe.output
        start = partial(self._start, recipe)
        if output is not None and os.path.lexists(output):
            self.confirm_replacing(output, start)
        else:
            start(force=False)

    def _start(self, recipe: Recipe, *, force: bool) -> None:
        self.host.start_job(recipe, force=force)
        self.editor.forget()
        self.remove_class("result")
        self._draw_review()
        self.go_to_pane("run-jobs")

    def confirm_replacing(self, output: str, start: Callable[..., None]) -> None:
        """Start with ``force`` once the word was typed that says so."""

        def answered(word: str | None) -> None:
            if word is not None:
                start(force=True)

        words = f"{tilde(output)}\nexists and would be replaced."
        self.app.push_screen(Prompt("Replace the output", words, expect="replace"), answered)

    async def action_to_adapters(self) -> None:
        """Go to the list, to mark other adapters."""
        await self.host.show_step("adapters")

    def action_output(self) -> None:
        field = self.query_one("#place", PathInput)
        field.value = self.session.output or str(self.session.default_output())
        field.add_class("asked")
        field.focus()
        self._show_line("Output folder of the subspace. Enter accept, Esc cancel")

    def on_input_submitted(self, event: PathInput.Submitted) -> None:
        event.stop()
        value = os.path.expanduser(event.value.strip())
        self.session.output = os.path.abspath(value) if value else None
        self._close_field()
        self.post_message(ChoiceChanged())

    def action_device(self, by: int = 1) -> None:
        """The next device."""
        known = devices()
        now = self.session.device
        at = known.index(now) if now in known else 0
        self.session.device = known[(at + by) % len(known)]
        self.post_message(ChoiceChanged())

    def action_recipe(self) -> None:
        """Edit the recipe in the user's editor."""
        self.editor.edit()

    def on_form_turned(self, event: Form.Turned) -> None:
        if event.key == "device":
            self.action_device(event.by)

    def on_form_pressed(self, event: Form.Pressed) -> None:
        if event.key == "output":
            self.action_output()

    def _close_field(self) -> None:
        self.query_one("#place").remove_class("asked")
        self.query_one("#line").remove_class("asked")
        self.go_to_pane(self.pane)

    # jobs

    def action_cancel(self) -> None:
        view = self.job
        if view is None or view.state.is_over:
            words = "This job is over; <run.remove> forgets it."
            self.notify(keyed(words), severity="warning", markup=False)
            return
        self._ask(
            "cancel",
            "Stop after this module: k keep what is built, d discard it, any other key cancel",
        )

    def action_remove(self) -> None:
        view = self.job
        if view is None or not view.state.is_over:
            words = "A running job cannot be forgotten: <run.cancel> stops it."
            self.notify(keyed(words), severity="warning", markup=False)
            return
        self._ask("remove", "Forget this job and its unfinished modules: y yes, any other key no")

    def action_resume(self) -> None:
        view = self.job
        if view is None or not view.can_resume:
            self.notify("Only a stopped job can be resumed.", severity="warning")
            return
        self.host.jobs.resume(view.job.id)

    def action_leave_out(self) -> None:
        view = self.job
        if view is None or not can_go_on(view):
            self.notify("This job was not stopped by bad adapters.", severity="warning")
            return
        self.host.bad_adapters.go_on_without(view)

    async def action_enter(self) -> None:
        """Open the result of the selected job; its log, where it has none."""
        view = self.job
        if view is None:
            self.notify("No job yet.", severity="warning")
        elif cards.card_of(view) is not None and not self._is_in_front:
            self.add_class("result")
            self.go_to_pane("run-details")
        elif view.outputs:
            await self.action_open()
        else:
            self.action_log()

    @property
    def _is_in_front(self) -> bool:
        return self.has_class("result") and self.pane == "run-details"

    async def action_open(self) -> None:
        view = self.job
        path = cards.subspace_of(view)
        if path is not None:
            await self.host.open_subspace(path)
        elif view is not None and view.outputs and not view.last(events.Pushed):
            await self.host.show_adapters(view.outputs)
        else:
            self.notify("This job made nothing to open.", severity="warning")

    async def action_export(self) -> None:
        """Go to Export with the job's subspace, or with the adapters that it made."""
        made = cards.adapters_of(self.job)
        if made and self.pane != "run-review":
            await self.host.export_adapters(made)
        elif await self._opened():
            await self.host.show_step("export")

    async def action_choose(self) -> None:
        await self.host.show_step("choose")

    async def _opened(self) -> bool:
        """Make the subspace at hand the one that is open; False where there is none."""
        path = self.subspace
        if path is None:
            self.notify("Select a job that made a subspace, or open one.", severity="warning")
            return False
        manifest = self.session.manifest
        if manifest is None or str(manifest.path) != path:
            try:
                self.session.manifest = read_manifest(path)
            except VLoRAError as error:
                self.host.complain(problem_words(error))
                return False
            self.post_message(SubspaceChanged())
        return True

    def action_log(self) -> None:
        view = self.job
        if view is None:
            self.notify("No job yet.", severity="warning")
            return
        job_id = view.job.id
        self.app.push_screen(LogPager(view, lambda: self.host.jobs.view(job_id)))

    def action_mark(self) -> None:
        """Mark the selected job for comparing, or take the mark away."""
        view = self.job
        if view is None:
            return
        self._marked = None if self._marked == view.job.id else view.job.id
        self.query_one("#jobs", Table).refresh()

    def action_compare(self) -> None:
        """Compare the selected job's subspace with that of the marked job, or the open one."""
        compare(self)

    def action_back(self) -> None:
        """Leave a maximised pane, the result, the edited recipe, or what is asked."""
        if self.app.screen.maximized is not None or not self.leave():
            self.host.action_escape()

    def leave(self) -> bool:
        """``q``: first out of what is only for a moment."""
        if self.has_class("result"):
            self.remove_class("result")
            self._draw()
            self.go_to_pane("run-jobs")
            return True
        if self.editor.recipe is not None:
            self.editor.forget()
            self._draw()
            return True
        return False

    def go_to_pane(self, pane: str) -> None:
        if pane != "run-details":
            self.remove_class("result")
        super().go_to_pane(pane)

    # further work, each a form and a job

    def action_quantize(self) -> None:
        self.follow_up.quantize()

    def action_evaluate(self) -> None:
        self.follow_up.evaluate()

    def action_add_task(self) -> None:
        self.follow_up.add_task()

    def action_remove_tasks(self) -> None:
        self.follow_up.remove_tasks()

    def action_push(self) -> None:
        self.follow_up.push()

    def action_pull(self) -> None:
        self.follow_up.pull()

    # questions in a line

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
