"""The application: five steps on the number keys, one status line, jobs in other processes."""

from __future__ import annotations

import asyncio
import importlib
import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from textual import on
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.screen import Screen
from textual.widgets import ContentSwitcher

from vlora_engine.errors import VLoRAError
from vlora_tui.tui.app.base_app import BaseApp
from vlora_tui.tui.app.drafts import DraftKeeper
from vlora_tui.tui.app.keys import Keys
from vlora_tui.tui.app.step_screen import StepScreen
from vlora_tui.tui.core.job_client import JobClient
from vlora_tui.tui.core.job_news import job_words
from vlora_tui.tui.core.messages import (
    AdaptersWanted,
    ChoiceChanged,
    CollectionChanged,
    Complaint,
    DiskTooSmall,
    JobsChanged,
    MeasuringFailed,
    SessionChanged,
    SpectraChanged,
    SubspaceChanged,
)
from vlora_tui.tui.core.session import Session
from vlora_tui.tui.core.view import View
from vlora_tui.tui.key_names import key
from vlora_tui.tui.text import problem_words, tilde
from vlora_tui.tui.widgets.bindings import hidden, shown
from vlora_tui.tui.widgets.topbar import TopBar
from vlora_tui.utils.config import Config, load_config
from vlora_tui.utils.formatting import size

if TYPE_CHECKING:
    from vlora_tui.jobs import JobView
    from vlora_tui.recipe.model import Recipe
    from vlora_tui.tui.app.announcer import Announcer
    from vlora_tui.tui.core.bad_adapters import BadAdapterPrompt
    from vlora_tui.tui.core.host import Host

    def _as_host(app: VLoRAApp) -> Host:
        """The type checker holds the application against what the steps need of it."""
        return app


IDLE_SECONDS = 0.5  # after the list is there, before the other steps are made out of sight
LATE_SECONDS = 3.0  # after which jobs and drafts are looked for though places are still scanned


class Step(NamedTuple):
    """A step: its key, its name, and where its view lives."""

    key: str
    name: str
    id: str
    module: str
    view: str


STEPS = (
    Step("1", "Adapters", "adapters", "vlora_tui.tui.adapters.view", "AdaptersView"),
    Step("2", "Choose k", "choose", "vlora_tui.tui.choose.view", "ChooseView"),
    Step("3", "Run", "run", "vlora_tui.tui.run.view", "RunView"),
    Step("4", "Inspect", "inspect", "vlora_tui.tui.inspect.view", "InspectView"),
    Step("5", "Export", "export", "vlora_tui.tui.export.view", "ExportView"),
)


def _load_steps() -> None:
    """Load what the other steps need."""
    for step in STEPS:
        importlib.import_module(step.module)
    variance_plot = importlib.import_module("vlora_tui.tui.charts.variance_plot")
    variance_plot.prepare()


class VLoRAApp(BaseApp):
    """The interface.

    Args:
        paths: Folders to look into at the start.
        recipe: A recipe to open on.
    """

    TITLE = "vlora-tui"
    CSS_PATH = ["app.tcss", "../adapters/view.tcss"]
    ENABLE_COMMAND_PALETTE = False  # ours is not Textual's

    BINDINGS: ClassVar[list[BindingType]] = [
        *(
            hidden(step.key, f"step('{step.id}')", f"step.{step.id}",
                   f"Go to step {step.key}, {step.name}")
            for step in STEPS
        ),
        hidden("colon,ctrl+p", "command_palette", "app.palette", "Search all actions"),
        shown("question_mark", "explain", "Help", "app.help", "Help for this step"),
        shown("q", "leave", "Quit", "app.leave", "Back / Quit"),
        replace(hidden("ctrl+q", "leave", "app.quit", "Back / Quit"), priority=True),
        hidden("y", "copy_row", "app.copy", "Copy the row"),
        hidden("Y", "copy_command", "app.command",
               "Copy the equivalent shell command"),
        hidden("z", "maximise", "app.maximise",
               "Maximize the pane, or restore it"),
        hidden("slash", "filter", "app.filter", "Filter"),
        hidden("ctrl+l", "repaint", "app.repaint",
               "Redraw the screen"),
        hidden("escape", "escape", "app.escape", "Cancel, or close what is open for a moment"),
        replace(hidden("ctrl+z", "suspend_process", "app.suspend", "Suspend; fg resumes"),
                priority=True),
    ]  # fmt: skip

    def __init__(
        self,
        paths: Iterable[str] = (),
        *,
        session: Session | None = None,
        ascii_only: bool | None = None,
        config: Config | None = None,
    ) -> None:
        super().__init__(config or load_config({"ascii": ascii_only}))
        self.session = session or Session()
        self.start_paths = list(paths)
        self.drafts = DraftKeeper(self, self.session, self._step_id, self.offer_draft)
        self.jobs = JobClient(self, self.session)
        self._steps = ContentSwitcher(id="steps")
        self._step_screen = StepScreen(id="_default")
        self._showing = asyncio.Lock()
        self._looked_back = False
        self._early: str | None = ""  # the step asked for before there was any; None afterwards
        if os.environ.get("SSH_CONNECTION"):
            self.animation_level = "none"

    def get_default_screen(self) -> Screen[Any]:
        return self._step_screen

    def compose(self) -> ComposeResult:
        yield TopBar(STEPS)
        yield self._steps
        yield Keys()

    def on_mount(self) -> None:
        self.app_resume_signal.subscribe(self, lambda _: self.come_back())
        self.refresh_bar()
        self.call_after_refresh(self._begin)

    async def _begin(self) -> None:
        """The first step, once there is something to see; then what can wait."""
        await self.show_step("adapters")
        wanted, self._early = self._early, None
        if wanted:
            await self.show_step(wanted)
        self.call_after_refresh(self.after_first_paint)
        if self.start_paths or self.recipe is not None or self.demo is not None:
            self.set_timer(LATE_SECONDS, self.look_back)  # the list comes first
        else:
            self.call_after_refresh(self.look_back)

    def look_back(self) -> None:
        """Look for jobs and drafts of earlier sessions, once."""
        if not self._looked_back:
            self._looked_back = True
            self.drafts.look()
            self.jobs.open()
            if not self.is_headless:  # there is somebody who would wait for them
                self.set_timer(IDLE_SECONDS, self._make_ahead)

    def _make_ahead(self) -> None:
        """Make the other steps out of sight, one at a time: their first visit only draws them."""
        finder = self._adapters().finder
        if finder.scanning or finder.making:  # the list comes first
            self.set_timer(IDLE_SECONDS, self._make_ahead)
            return

        async def make() -> None:
            await asyncio.to_thread(_load_steps)
            for step in STEPS:
                async with self._showing:
                    await self._make(step.id)

        # What fails to load says so where it is wanted.
        self.run_worker(make(), exit_on_error=False)

    async def _make(self, step_id: str) -> None:
        """Make the view of a step, out of sight, unless it is there."""
        if not self._steps.query(f"#{step_id}"):
            step = next(step for step in STEPS if step.id == step_id)
            make: Callable[..., View] = getattr(importlib.import_module(step.module), step.view)
            await self._steps.add_content(make(id=step_id))

    async def scanned(self) -> None:
        await super().scanned()
        self.look_back()

    @cached_property
    def bad_adapters(self) -> BadAdapterPrompt:
        """What asks about bad adapters; nothing does before the first paint."""
        from vlora_tui.tui.core.bad_adapters import BadAdapterPrompt

        return BadAdapterPrompt(self, self.session, self.jobs)

    @cached_property
    def announcer(self) -> Announcer:
        """What tells of jobs outside the screen."""
        from vlora_tui.tui.app.announcer import Announcer

        def say(text: str, failed: bool) -> None:
            self.notify(text, severity="error" if failed else "information", markup=False)

        return Announcer(
            self.write_to_terminal,
            say,
            is_seen=self._is_seen,
            has_focus=lambda: self.app_focus,
            titled=bool(self.config["title"]),
            notifies=bool(self.config["notify"]),
        )

    def come_back(self) -> None:
        """Show everything again after another program had the terminal, its title too."""
        self.action_repaint()
        self.announcer.forget_title()
        self.announcer.looked(self.jobs.views, self.jobs.is_own)

    def _is_seen(self, view: JobView) -> bool:
        """Whether the step in view shows a job: Run any, Choose k the one that measures."""
        step = self._step_id()
        return step in ("run", "export") or (step == "choose" and view.job.info.kind == "spectra")

    def job_views(self) -> list[JobView]:
        """All jobs as of the last look, the newest first."""
        return self.jobs.views

    def start_job(self, recipe: Recipe, *, force: bool = False) -> None:
        """Start a job of this recipe in a process of its own."""
        figures = self.session.cached_figures() if recipe.compress is not None else None
        target = None if recipe.compress is None else recipe.compress.target
        of_it = figures is not None and target == figures.choosing
        prediction = figures.prediction if figures is not None and of_it else None
        nbytes = None if prediction is None else prediction.nbytes
        self.jobs.start(recipe, force=force, subspace_bytes=nbytes)

    def on_disk_too_small(self, event: DiskTooSmall) -> None:
        """Say that what was to be started does not fit, and offer to name another place."""
        from vlora_tui.tui.widgets.dialogs import Ask, Option

        shortage = event.shortage
        words = (
            f"{tilde(shortage.path)}\n"
            f"needs {size(shortage.need)}, including the modules kept until it is done; "
            f"{size(shortage.free)} free on {tilde(shortage.disk)}. Nothing was started."
        )
        options = [
            Option("o", "change the output", "place"),
            Option("b", "back", "back", "free space, then start again"),
        ]

        async def answered(answer: str | None) -> None:
            if answer == "place" and self.view is not None:
                await self.run_action(self.view.output_action, self.view)

        self.push_screen(Ask("Not enough disk space", words, options), answered)

    async def open_subspace(self, path: str) -> None:
        """Open a subspace directory for Inspect and Export; a complaint where it is none."""
        from vlora_engine.catalog.read import read_manifest

        try:
            self.session.manifest = read_manifest(path)
        except VLoRAError as error:
            self.complain(problem_words(error))
            return
        self.post_message(SubspaceChanged())
        await self.show_step("inspect")

    async def on_adapters_wanted(self, event: AdaptersWanted) -> None:
        """Go to the adapters that a filter keeps."""
        await self.show_step("adapters")
        self._adapters().show_only(event.words)

    @property
    def steps(self) -> tuple[Step, ...]:
        """The steps."""
        return STEPS

    async def show_adapters(self, places: list[str]) -> None:
        """Go to the adapters, look into these places too, and point at the first of them."""
        await self.show_step("adapters")
        self._adapters().look_for(places)

    async def export_adapters(self, paths: list[str]) -> None:
        """Mark these adapters alone, and go to Export with them."""
        self.session.manifest = None
        self._adapters().mark_alone(paths)
        if all(path in self.session.marked for path in paths):
            await self.show_step("export")
        else:  # they are scanned first
            self._wanted_step = "export"

    @property
    def view(self) -> View | None:
        """The view of the step in sight; None at the very beginning, and at the end.

        A view that is still being made is none yet: it could not answer.
        """
        current = self._steps.visible_content if self._steps.is_attached else None
        return current if isinstance(current, View) and current.is_mounted else None

    def _step_id(self) -> str:
        return "" if self.view is None else self.view.id or ""

    async def show_step(self, step_id: str) -> None:
        """Bring a step into view; its view is made when it is first wanted."""
        switcher = self._steps
        async with self._showing:  # a key may ask for a view that is just being made
            self._begin_batch()  # step, status line and keys come into sight together
            try:
                if switcher.current not in (None, step_id):
                    self._leave_step()
                await self._make(step_id)
                switcher.current = step_id
                self.refresh_bar()
                if self.view is not None:
                    self.view.shown()
            finally:
                self._step_screen.lay_out()
                self.call_later(self._end_batch)  # behind the focus that the step asked for

    def _leave_step(self) -> None:
        """What was only about the step that goes out of view goes with it: its keys and words."""
        self.set_focus(None)
        self.forget_advice()

    @on(SessionChanged)
    def show_change(self, change: SessionChanged) -> None:
        """Let the status line, the draft and the step in view have their share of a change."""
        spectra = self.session.spectra
        if isinstance(change, SpectraChanged) and spectra is not None:
            self.bad_adapters.spectra_came(spectra)
        self.refresh_bar()
        if isinstance(change, ChoiceChanged | CollectionChanged):
            self.draft_changed()
        if self.view is not None:
            self.view.changed(change)
        if isinstance(change, JobsChanged):
            self.bad_adapters.looked_at(self.jobs.views)
            self.announcer.looked(self.jobs.views, self.jobs.is_own)

    def on_measuring_failed(self, event: MeasuringFailed) -> None:
        """Say why, where step 2 is not there to say it."""
        if self.view is None or self.view.id != "choose":
            self.complain(f"Measuring failed: {event.problem}")

    def on_complaint(self, event: Complaint) -> None:
        self.complain(event.text)

    def refresh_bar(self) -> None:
        """Draw the status line again."""
        view = self.view
        job = job_words(self.jobs.running, self.jobs.is_own)
        for bar in self.query(TopBar):  # there is none while the application ends
            bar.show(view.step if view else 1, self.session.title(), job)

    async def action_step(self, step_id: str) -> None:
        if self._early is None:
            await self.show_step(step_id)
        else:
            self._early = step_id

    def action_copy_row(self) -> None:
        self._copy(self.view.row_text() if self.view else None, "No row to copy.")

    def action_copy_command(self) -> None:
        text = self.view.command_text() if self.view else None
        how = f"No command yet: mark adapters first ({key('adapters.mark')} in step 1)."
        self._copy(text, how)

    def _copy(self, text: str | None, otherwise: str) -> None:
        from vlora_tui.tui.terminal.clipboard import copy

        if not text:
            self.notify(otherwise, severity="warning", markup=False)
            return
        self.notify(f"{text}\n{copy(text, self.copy_to_clipboard)}", markup=False)

    def action_filter(self) -> None:
        if self.view is not None:
            self.view.open_filter()
