"""The Run screen: real jobs in real processes, watched, cancelled, found again."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
from textual.pilot import Pilot
from textual.widgets import Input, Static

from tests.app.tui.drive import cells, resized, run, until
from tests.witnesses import make
from vlora_engine.catalog.read import read_manifest
from vlora_engine.catalog.scanner import scan
from vlora_engine.compression_target import CompressionTarget
from vlora_tui.jobs.store import Job, JobInfo
from vlora_tui.jobs.watch import JobView, State, TimedEvent
from vlora_tui.pipeline import events
from vlora_tui.tui.app.app import VLoRAApp
from vlora_tui.tui.app.keys import Keys
from vlora_tui.tui.core.messages import JobsChanged
from vlora_tui.tui.core.session import Session
from vlora_tui.tui.run import job_text
from vlora_tui.tui.run.view import RunView
from vlora_tui.tui.widgets.buttons import Buttons
from vlora_tui.tui.widgets.dialogs import Ask, Prompt
from vlora_tui.tui.widgets.table import Table
from vlora_tui.utils.formatting import percent, size, times


def session_of(paths: list[Path]) -> Session:
    """A session in which these adapters were found and marked."""
    session = Session()
    session.add_found(scan([str(path) for path in paths]).adapters)
    for path in session.infos:
        session.mark(path)
    return session


def text_of(app: VLoRAApp, selector: str) -> str:
    return str(app.query_one(selector, Static).content)


def keys_of(app: VLoRAApp) -> set[str]:
    """The words of the keys in the last line."""
    return {key.name for key in app.query_one(Keys).shown}


def test_several_groups_lead_back_to_the_list(tmp_path: Path) -> None:
    paths = make.collection(tmp_path / "in", 2)
    other = make.factors({"model.layers.0.q_proj": (8, 8)}, rank=2)
    config = make.config(base_model_name_or_path="llama", r=2)
    paths.append(make.write(tmp_path / "in" / "other", other, config))
    app = VLoRAApp(session=session_of(paths))

    async def steps(pilot: Pilot) -> None:
        await pilot.press("3")
        buttons = app.query_one("#review-buttons", Buttons)
        assert buttons.text.strip() == "[ 1 Mark one group ]"
        assert "Start" not in keys_of(app)
        await pilot.click(buttons, offset=(3, 0))
        assert app.view is not None
        assert app.view.id == "adapters"

    run(app, steps)


def test_start_watch_and_open_the_result(tmp_path: Path) -> None:
    paths = make.collection(tmp_path / "in", 4)
    app = VLoRAApp(session=session_of(paths))
    app.session.choose(CompressionTarget(k=3))

    async def steps(pilot: Pilot) -> None:
        await pilot.press("3")
        assert "4 adapters" in text_of(app, "#review")
        assert "k = 3 for every module" in text_of(app, "#review")
        await pilot.press("o")
        assert "Output folder" in text_of(app, "#line")
        app.query_one("#place", Input).value = str(tmp_path / "out")
        await pilot.press("enter")
        assert app.session.output == str(tmp_path / "out")
        await pilot.press("w")
        await until(pilot, lambda: bool(app.job_views()), "a job")
        await until(pilot, lambda: app.job_views()[0].state.is_over, "its end")
        assert str(app.job_views()[0].state) == "finished"
        view = app.query_one(RunView)
        await until(pilot, lambda: view.has_class("result"), "its result in front")
        assert view.pane == "run-details"
        card = text_of(app, "#card")
        manifest = read_manifest(tmp_path / "out")  # the card's figures are those of the result
        assert manifest.worst is not None
        worst = f"worst {percent(manifest.worst.error)} ({manifest.worst.id})"
        assert f"4 adapters, {size(manifest.nbytes)}, verified, {worst}" in card
        assert f"{times(manifest.ratio)} smaller than the originals" in card
        said = text_of(app, "#said")
        assert "found     4 adapters" in said
        assert "written" in said
        buttons = app.query_one("#next", Buttons).text + app.query_one("#next-more", Buttons).text
        for words in ("v View", "E Export", "e Evaluate", "Q Quantize", "p Push", "d Compare"):
            assert words in buttons
        await until(pilot, lambda: "Open" in keys_of(app), "the key for the result")
        assert keys_of(app).isdisjoint({"Cancel", "Resume", "Start"})  # over, and complete
        table = app.query_one("#jobs", Table)
        assert cells(table)[table.cursor][2:5] == [
            "delta",
            size(manifest.nbytes),
            percent(manifest.worst.error),
        ]
        assert app.jobs._timer is None  # nothing is polled once nothing runs
        await pilot.press("v")
        assert app.session.manifest is not None
        assert len(app.session.manifest.tasks) == 4

    run(app, steps)
    assert read_manifest(tmp_path / "out").layers[0].k_a == 3
    again = VLoRAApp()

    async def later(pilot: Pilot) -> None:
        await pilot.press("3")
        await until(pilot, lambda: bool(again.job_views()), "the job of the first session")
        assert str(again.job_views()[0].state) == "finished"

    run(again, later)


def test_an_output_that_exists_is_not_replaced_unasked(tmp_path: Path) -> None:
    paths = make.collection(tmp_path / "in", 3)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("x")
    app = VLoRAApp(session=session_of(paths))
    app.session.output = str(tmp_path / "out")

    async def steps(pilot: Pilot) -> None:
        await pilot.press("3", "w")
        await until(pilot, lambda: isinstance(app.screen, Prompt), "the question")
        await pilot.press("y", "enter")  # not the word
        assert isinstance(app.screen, Prompt)
        await pilot.press("escape")
        await pilot.pause()
        assert app.job_views() == []

    run(app, steps)
    assert (tmp_path / "out" / "precious").exists()


def test_nothing_marked_says_what_to_do(messages: list[str]) -> None:
    app = VLoRAApp()

    async def steps(pilot: Pilot) -> None:
        await pilot.press("3", "w")
        assert "Nothing is marked" in text_of(app, "#review")
        assert app.job_views() == []
        assert keys_of(app).isdisjoint({"Start", "Open", "Cancel", "Resume"})
        await pilot.press("c")  # still answered
        assert any("This job is over" in text for text in messages)

    run(app, steps)


def test_a_failed_job_says_what_failed(tmp_path: Path) -> None:
    paths = make.collection(tmp_path / "in", 3)
    session = session_of(paths)
    session.choose(CompressionTarget(k=4, layers={"nothing*": 2}))
    session.output = str(tmp_path / "out")
    app = VLoRAApp(session=session)

    async def steps(pilot: Pilot) -> None:
        await pilot.press("3", "w")
        await until(pilot, lambda: bool(app.job_views()), "a job")
        await until(pilot, lambda: app.job_views()[0].state.is_over, "its end")
        await pilot.pause()
        said = text_of(app, "#said")
        assert "The pattern 'nothing*' matches no module" in said

    run(app, steps)
    assert not (tmp_path / "out").exists()


def test_a_job_with_a_k_beyond_what_there_is_builds_with_all_there_is(tmp_path: Path) -> None:
    session = session_of(make.collection(tmp_path / "in", 3))
    session.choose(CompressionTarget(k=900))
    session.output = str(tmp_path / "out")
    app = VLoRAApp(session=session)

    async def steps(pilot: Pilot) -> None:
        await pilot.press("3", "w")
        await until(pilot, lambda: bool(app.job_views()), "a job")
        await until(pilot, lambda: app.job_views()[0].state.is_over, "its end")
        await pilot.pause()
        assert app.job_views()[0].state.name == "FINISHED", app.job_views()[0].state

    run(app, steps)
    assert (tmp_path / "out").exists()


def test_it_fits(tmp_path: Path) -> None:
    app = VLoRAApp(session=session_of(make.collection(tmp_path / "in", 3)))

    async def steps(pilot: Pilot) -> None:
        await pilot.press("3")
        await pilot.pause()
        async for shape in resized(pilot, [(120, 36), (80, 24), (60, 20), (40, 12)]):
            seen = set()
            for _ in range(3):  # every pane can be had, and scrolls as far as its text goes
                for pane in app.query("RunView .pane"):
                    if pane.region.height >= 1:
                        assert pane.region.bottom <= shape[1] - 1, shape
                        seen.add(pane.id)
                await pilot.press("tab")
                await pilot.pause()
            assert seen == {"run-review", "run-jobs", "run-details"}, shape
            assert app.query_one("#jobs", Table).row is None
            review = app.query_one("#review-text")
            text = app.query_one("#review", Static)
            assert review.virtual_size.height >= text.size.height, shape
        await pilot.press("q")
        await pilot.pause()
        assert app.return_code == 0

    run(app, steps)


def test_on_a_small_terminal_the_review_scrolls_to_its_end(tmp_path: Path) -> None:
    app = VLoRAApp(session=session_of(make.collection(tmp_path / "in", 3)))
    app.session.output = str(tmp_path / "a-folder-with-a-very-long-name" / "output-at-the-end")

    async def steps(pilot: Pilot) -> None:
        await pilot.press("3")
        await pilot.pause()
        review = app.query_one("#review-text")
        assert app.query_one("#review-form").has_focus
        assert review.max_scroll_y > 0
        await pilot.press(*["pagedown"] * 3)
        await pilot.pause()
        assert review.scroll_y == review.max_scroll_y

    run(app, steps, size=(40, 12))


def test_every_event_has_words_or_is_left_out_on_purpose() -> None:
    silent = {"started", "progress", "layer_done", "other_methods", "spectra_begun", "queued"}
    silent |= {"subspace_made"}  # a step on the way, for a resume
    silent |= {"failed"}  # shown as an error, with all that is known
    for name, kind in vars(events).items():
        is_event = isinstance(kind, type) and issubclass(kind, events.Event)
        if not is_event or kind is events.Event or kind.type in silent or not kind.type:
            continue
        values = {"int": 1, "float": 0.5, "str": "x", "bool": True, "dict[str, Any]": {}}
        fields = {field.name: values.get(str(field.type), ()) for field in dataclasses.fields(kind)}
        assert job_text.event_line(kind(**fields)), name


def test_durations_read_well() -> None:
    assert job_text.duration(0.34) == "0.3 s"
    assert job_text.duration(59) == "59 s"
    assert job_text.duration(600) == "10 min"
    assert job_text.duration(3 * 3600) == "3.0 h"


def test_what_does_not_fit_on_the_disk_is_not_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = session_of(make.collection(tmp_path / "in", 3))
    session.choose(CompressionTarget(k=3))
    session.output = str(tmp_path / "out")
    app = VLoRAApp(session=session)
    usage = shutil.disk_usage(tmp_path)._replace(free=2000)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage)

    async def steps(pilot: Pilot) -> None:
        await pilot.press("3", "w")
        await until(pilot, lambda: isinstance(app.screen, Ask), "the refusal")
        await pilot.pause()
        told = "\n".join(str(static.content) for static in app.screen.query(Static))
        assert "2 kB free on" in told
        assert str(tmp_path / "out") in told
        assert app.job_views() == []
        await pilot.press("o")
        await pilot.pause()
        assert app.query_one("#place", Input).has_focus

    run(app, steps)
    assert not (tmp_path / "out").exists()


def test_what_an_export_wrote_is_listed_among_the_adapters(tmp_path: Path) -> None:
    written = make.collection(tmp_path / "out", 2)
    job = Job(tmp_path / "job", JobInfo("e1", "build", "export 2 tasks", 1000.0))
    view = JobView(job, state=State.FINISHED)
    for n, path in enumerate(written):
        view.take(TimedEvent(n, 1.0, events.Exported(path.name, str(path), "peft", 4)))
    view.take(TimedEvent(9, 2.0, events.Finished(1.0, outputs=tuple(map(str, written)))))
    view.state = State.FINISHED
    app = VLoRAApp()

    async def steps(pilot: Pilot) -> None:
        await pilot.press("3")
        app.jobs.views = [view]
        app.post_message(JobsChanged())
        await pilot.press("v")
        await until(pilot, lambda: len(app.session.infos) == 2, "both are listed")
        assert app.view is not None
        assert app.view.id == "adapters"

    run(app, steps)
