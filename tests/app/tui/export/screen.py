"""Step 5 with jobs that only a test moves on, and what a test asks of it."""

from __future__ import annotations

import inspect
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

from textual.pilot import Pilot
from textual.widgets import Static
from textual.worker import WorkerCancelled

from tests.app.tui.drive import Steps, cells, run
from vlora_tui.jobs.store import Job, JobInfo
from vlora_tui.jobs.watch import JobView, State, TimedEvent
from vlora_tui.pipeline import events
from vlora_tui.recipe.model import Recipe
from vlora_tui.tui.app.app import VLoRAApp
from vlora_tui.tui.core.messages import JobsChanged
from vlora_tui.tui.core.session import Session
from vlora_tui.tui.export.view import ExportView
from vlora_tui.tui.widgets.buttons import Buttons
from vlora_tui.tui.widgets.form import Form
from vlora_tui.tui.widgets.table import Table


def _styles(app: type[VLoRAApp]) -> list[Any]:
    """Its style sheets, whose paths are relative to where it is defined."""
    return app.CSS_PATH if isinstance(app.CSS_PATH, list) else [app.CSS_PATH]


class ExportApp(VLoRAApp):
    """The application with jobs that only a test moves on."""

    CSS_PATH: ClassVar[Any] = [
        Path(inspect.getfile(VLoRAApp)).parent / path for path in _styles(VLoRAApp)
    ]

    def __init__(self, session: Session, **flags: Any) -> None:
        super().__init__(session=session, **flags)
        self.views: list[JobView] = []
        self.started: list[tuple[Recipe, bool]] = []

    def job_views(self) -> list[JobView]:
        return self.views

    def start_job(self, recipe: Recipe, *, force: bool = False) -> None:
        self.started.append((recipe, force))
        outputs = [step.path for step in recipe.written]
        info = JobInfo(f"job-{len(self.views)}", "build", "t", time.time(), outputs=tuple(outputs))
        self.views.insert(0, JobView(Job(Path("/nowhere"), info), state=State.RUNNING))
        self.post_message(JobsChanged())

    def hear(self, *told: events.Event, state: State = State.RUNNING) -> None:
        """What the job says."""
        for event in told:
            self.views[0].take(TimedEvent(0, 0.0, event))
        self.views[0].state = state
        self.show_change(JobsChanged())


def use(
    session: Session, steps: Steps, size: tuple[int, int] = (120, 36), **flags: Any
) -> ExportApp:
    app = ExportApp(session, **flags)

    async def first(pilot: Pilot[Any]) -> None:
        await pilot.app.show_step("export")
        await settle(pilot)
        await steps(pilot)

    run(app, first, size)
    return app


async def settle(pilot: Pilot[Any]) -> None:
    for _ in range(3):
        with suppress(WorkerCancelled):
            await pilot.app.workers.wait_for_complete()
        await pilot.pause()


def view(pilot: Pilot[Any]) -> ExportView:
    return pilot.app.query_one(ExportView)


def words(pilot: Pilot[Any], which: str) -> str:
    return str(pilot.app.query_one(which, Static).render())


def rows(pilot: Pilot[Any]) -> list[list[str]]:
    table: Table[Any] = pilot.app.query_one("#row-table", Table)
    return cells(table)


def buttons(pilot: Pilot[Any]) -> str:
    return pilot.app.query_one("#export-buttons", Buttons).text


def form_lines(pilot: Pilot[Any]) -> str:
    form = pilot.app.query_one(Form)
    return "\n".join(form.render_line(y).text for y in range(form.size.height))
