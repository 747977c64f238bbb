"""The five steps as they look, at three sizes in two themes, against stored pictures in text.

A picture holds the text of the screen, then the styles of each line as runs: a letter and a number
of cells. ``VLORA_TEST_UPDATE_SNAPSHOTS=1`` writes what is seen as the new pictures; look at the
difference before it is committed.
"""

from __future__ import annotations

import difflib
import os
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from rich.style import Style
from textual.app import App
from textual.pilot import Pilot
from textual.scrollbar import ScrollBar, ScrollBarRender
from textual.worker import WorkerCancelled

from tests.app.tui.drive import run, screen_strips
from tests.app.tui.idle import wait_for_idle
from tests.witnesses import make
from vlora_engine.catalog.open import open_adapter
from vlora_engine.catalog.scanner import scan
from vlora_engine.compress.measure import compute_spectra
from vlora_engine.compression_target import CompressionTarget
from vlora_engine.spectra.tables import Spectra
from vlora_tui.jobs.store import Job, JobInfo
from vlora_tui.jobs.watch import JobView, State, TimedEvent
from vlora_tui.pipeline import events
from vlora_tui.tui.app.app import STEPS, VLoRAApp
from vlora_tui.tui.choose import worker as choose_worker
from vlora_tui.tui.core.messages import JobsChanged
from vlora_tui.tui.core.session import Session
from vlora_tui.tui.export import plan as export_plan
from vlora_tui.tui.run import job_text
from vlora_tui.utils.config import load_config

PICTURES = Path(__file__).parent / "snapshots"
# Where things stand is up to the size, colours are up to the theme: not all pairs are needed.
LOOKS = [
    *(("textual-dark", size) for size in ((120, 36), (80, 24), (40, 12))),
    ("textual-light", (120, 36)),
]
UPDATE = "VLORA_TEST_UPDATE_SNAPSHOTS"
LATER = 0.2  # a timer that is due so soon may still change the screen
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"


class Collection(NamedTuple):
    """What is on the disk: a home directory with a folder of adapters, and their spectra."""

    home: Path
    runs: Path
    spectra: Path


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Collection:
    home = tmp_path_factory.mktemp("me")
    runs = home / "runs"
    make.collection(runs, 5)
    place = tmp_path_factory.mktemp("measured") / "spectra"
    sources = {path.name: open_adapter(path) for path in sorted(runs.iterdir())}
    compute_spectra(sources, place, codec=True)
    return Collection(home, runs, place)


@pytest.fixture(autouse=True)
def _frozen(collection: Collection, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing on the screen depends on the machine, the time, or the user."""
    monkeypatch.setenv("HOME", str(collection.home))
    monkeypatch.chdir(collection.home)
    for name in ("NO_COLOR", "COLORTERM", "SSH_CONNECTION", "TEXTUAL_COLOR_SYSTEM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(ScrollBar, "renderer", ScrollBarRender)  # --ascii changes it for good
    monkeypatch.setattr(job_text, "clock", lambda when: "09:41")
    monkeypatch.setattr(export_plan, "free_bytes", lambda path: 64_000_000_000)
    monkeypatch.setattr(choose_worker, "QUIET_SECONDS", 0.001)
    monkeypatch.setattr(choose_worker, "ARRIVING_SECONDS", 0.001)


def jobs() -> list[JobView]:
    """One that runs, one that is finished, one that failed."""
    running = _job("b2", "compress 5 adapters", State.RUNNING, begun=1000.0)
    running.take(TimedEvent(1, 1000.0, events.AdaptersFound(("task00",) * 5, 18_400, 4)))
    running.take(TimedEvent(2, 1001.0, events.Checked(good=5)))
    running.progress = events.Progress("layers", 3, 4, "")
    running.stage_since, running.progress_time = 1001.0, 1004.0
    running.state = State.RUNNING
    finished = _job("b1", "spectra of 5 adapters", State.FINISHED, begun=900.0, ended=912.5)
    failed = _job("b0", "export 2 tasks", State.FAILED, begun=800.0, ended=800.4)
    return [running, finished, failed]


def _job(id: str, title: str, state: State, **times: float) -> JobView:
    info = JobInfo(id, "build", title, 1000.0)
    return JobView(Job(Path("/jobs") / id, info), state=state, **times)


def opened(collection: Collection, theme: str) -> VLoRAApp:
    """The application on the collection: all marked, measured, k chosen."""
    session = Session(choosing=CompressionTarget(k=3))
    session.add_found(scan([str(collection.runs)]).adapters)
    for path in session.infos:
        session.mark(path, True)
    spectra = Spectra.load(collection.spectra)
    spectra.overhead = dict.fromkeys(spectra.overhead, 4096)  # as long as the paths in a manifest
    rate_tables = spectra.rate_tables()
    assert rate_tables is not None
    rate_tables.overhead = 256  # less than there is, so that curves reach into the chart
    session.set_spectra(spectra)
    app = VLoRAApp([str(collection.runs)], session=session, config=load_config({"theme": theme}))
    app.jobs.spectra_of = tuple(sorted(session.marked))  # they are there: no job is wanted
    return app


async def worked_out(app: VLoRAApp, pilot: Pilot[Any]) -> None:
    """Choose k has nothing left to work out."""
    for _ in range(1200):
        await wait_for_idle()
        if not app.view.figures.at_work:
            return await still(pilot)
    pytest.fail("figures are still worked out")


async def still(pilot: Pilot[Any]) -> None:
    """Until nothing works, no timer is due for a while, and the screen has stayed the same."""
    before: list[str] = []
    for _ in range(200):
        with suppress(WorkerCancelled):  # another one has taken its place
            await pilot.app.workers.wait_for_complete()
        await wait_for_idle(soon=LATER)
        pilot.app.screen._on_timer_update()
        now = picture(pilot.app)
        if now == before and not pilot.app.animator._animations:
            return
        before = now
    pytest.fail("the screen never stays the same")


def picture(app: App[Any]) -> list[str]:
    """The screen as lines of text, then each line's styles, then what the letters stand for."""
    lines, runs = [], []
    letters: dict[str, str] = {}
    for strip in screen_strips(app):
        lines.append("|" + "".join(segment.text for segment in strip) + "|")
        cells = [(_look(segment.style), segment.cell_length) for segment in strip]
        found = []
        for look, same in groupby(cells, key=lambda cell: cell[0]):
            letter = letters.setdefault(look, LETTERS[len(letters) % len(LETTERS)])
            found.append(f"{letter}{sum(length for _, length in same)}")
        runs.append(" ".join(found))
    styles = [f"{n:2} {line}" for n, line in enumerate(runs, start=1)]
    return [*lines, "", *styles, "", *(f"{letter}: {look}" for look, letter in letters.items())]


def _look(style: Style | None) -> str:
    """Colours, and what a terminal without colours would show."""
    if style is None:
        return "- on -"
    colours = [
        "-" if colour is None else colour.get_truecolor().hex
        for colour in (style.color, style.bgcolor)
    ]
    marks = [m for m in ("bold", "dim", "italic", "underline", "reverse") if getattr(style, m)]
    return " ".join([" on ".join(colours), *marks])


@pytest.mark.parametrize(("theme", "size"), LOOKS, ids=str)
def test_the_steps_look_as_they_did(
    collection: Collection, theme: str, size: tuple[int, int]
) -> None:
    app = opened(collection, theme)
    seen: dict[str, list[str]] = {}

    async def steps(pilot: Pilot[Any]) -> None:
        await still(pilot)
        for step in STEPS:
            app.jobs.views = jobs()
            await app.show_step(step.id)
            app.show_change(JobsChanged())
            await still(pilot)
            seen[step.id] = picture(app)
            if step.id == "choose":
                await worked_out(app, pilot)
                seen["choose"] = picture(app)
                await pilot.press("S", "m")
                await worked_out(app, pilot)
                seen["choose-sizes"] = picture(app)
                await pilot.press("u", "S")
                await still(pilot)

    run(app, steps, size)
    differences = [
        difference
        for step, lines in seen.items()
        if (difference := _compare(f"{step}-{size[0]}x{size[1]}-{theme}.txt", lines))
    ]
    assert not differences, "\n".join(["", *differences])


def _compare(name: str, lines: list[str]) -> str:
    """What differs from the stored picture; it is replaced if that is asked for."""
    file = PICTURES / name
    if os.environ.get(UPDATE) == "1":
        PICTURES.mkdir(exist_ok=True)
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return ""
    if not file.exists():
        return f"{name} is missing: {UPDATE}=1 writes it"
    wanted = file.read_text(encoding="utf-8").splitlines()
    return "\n".join(difflib.unified_diff(wanted, lines, f"stored {name}", "seen", lineterm=""))
