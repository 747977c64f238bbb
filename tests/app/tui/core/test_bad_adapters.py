"""Bad adapters after the check: one question, and every answer does what it says. Real jobs."""

from __future__ import annotations

from pathlib import Path

import pytest
from textual.pilot import Pilot
from textual.widgets import Static

from tests.app.tui.drive import run, until
from tests.app.tui.run.test_run import session_of, text_of
from tests.witnesses import make
from vlora_engine.catalog.read import read_manifest
from vlora_engine.compression_target import CompressionTarget
from vlora_engine.findings import Finding
from vlora_tui.recipe.model import AdapterInput, Compress, Input, Recipe
from vlora_tui.tui.app.app import VLoRAApp
from vlora_tui.tui.core.session import Session, is_about
from vlora_tui.tui.widgets.dialogs import ListProblems
from vlora_tui.tui.widgets.table import Table


def with_nan(folder: Path) -> Path:
    """An adapter of the collection's shapes that holds a NaN, which no header tells."""
    tensors = make.factors(seed=99)
    next(iter(tensors.values()))[0, 0] = float("nan")
    return make.write(folder / "with-nan", tensors)


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    """Three sound adapters and a bad one."""
    return [*make.collection(tmp_path / "in", 3), with_nan(tmp_path / "in")]


@pytest.fixture
def session(paths: list[Path], tmp_path: Path) -> Session:
    session = session_of(paths)
    session.choose(CompressionTarget(k=3))
    session.output = str(tmp_path / "out")
    return session


async def asked(pilot: Pilot) -> str:
    """Wait for the question; what it lists."""
    await until(pilot, lambda: isinstance(pilot.app.screen, ListProblems), "the question")
    await pilot.pause()
    return "\n".join(str(s.content) for s in pilot.app.screen.query(Static))


def answers(app: VLoRAApp) -> list[str]:
    return [option.value for option in app.screen.query_one(Table).rows]


def is_asking(app: VLoRAApp) -> bool:
    return isinstance(app.screen, ListProblems)


async def finished(pilot: Pilot, app: VLoRAApp, jobs: int) -> None:
    """Wait until there are so many jobs and the newest is over."""
    await until(pilot, lambda: len(app.job_views()) == jobs, f"{jobs} jobs")
    await until(pilot, lambda: app.job_views()[0].state.is_over, "its end")


def test_left_out_once_and_the_build_goes_through(session: Session, tmp_path: Path) -> None:
    app = VLoRAApp(session=session)

    async def steps(pilot: Pilot) -> None:
        await pilot.press("2")
        listed = await asked(pilot)
        assert "1 adapter of 4 cannot be used" in listed
        assert "with-nan" in listed
        assert "holds NaN" in listed
        await pilot.press("l")
        assert session.title().endswith("1 left out")
        assert "--skip-bad" in (app.view.command_text() if app.view else "")
        await until(pilot, lambda: session.spectra is not None and session.spectra.complete, "all")
        await pilot.press("3")
        assert "compress  3 adapters" in text_of(app, "#review")
        assert "skipped   with-nan" in text_of(app, "#review")
        await pilot.press("w")
        await finished(pilot, app, jobs=2)
        assert str(app.job_views()[0].state) == "finished"
        assert not is_asking(app)

    run(app, steps)
    assert len(read_manifest(tmp_path / "out").tasks) == 3


def test_show_goes_to_the_bad_ones_and_what_was_found(session: Session) -> None:
    app = VLoRAApp(session=session)

    async def steps(pilot: Pilot) -> None:
        await pilot.press("2")
        await asked(pilot)
        await pilot.press("s")
        await until(pilot, lambda: app.view is not None and app.view.id == "adapters", "step 1")
        await pilot.pause()
        table = app.query_one("#adapters-table", Table)
        assert [row.name for row in table.rows] == ["with-nan"]
        assert "NaN" in text_of(app, "#adapters-findings")
        await pilot.press("3", "w")  # nothing is decided yet: Run asks before it starts
        assert is_asking(app)

    run(app, steps)


def test_who_asked_for_a_build_gets_it_once_the_bad_ones_are_skipped(
    session: Session, tmp_path: Path
) -> None:
    app = VLoRAApp(session=session)

    async def steps(pilot: Pilot) -> None:
        session.bad = {path: finding() for path in session.infos if path.endswith("with-nan")}
        await pilot.press("3", "w")
        await asked(pilot)
        await pilot.press("l")
        await finished(pilot, app, jobs=1)

    run(app, steps)
    assert len(read_manifest(tmp_path / "out").tasks) == 3


def test_stop_lets_go_and_asks_again_when_one_comes_back(session: Session) -> None:
    app = VLoRAApp(session=session)

    async def steps(pilot: Pilot) -> None:
        await pilot.press("2")
        await asked(pilot)
        await pilot.press("x")
        await pilot.pause()
        assert session.spectra is None
        assert "Stopped: 1 adapter of 4" in text_of(app, "#choose-wait")
        await until(pilot, lambda: not app.jobs.running, "the end of the spectra job")
        assert not is_asking(app)
        await pilot.press("1", "2")
        assert "with-nan" in await asked(pilot)

    run(app, steps)


def test_stop_cancels_the_job_that_measures(session: Session) -> None:
    app = VLoRAApp(session=session)
    cancelled: list[tuple[str, bool]] = []

    async def steps(pilot: Pilot) -> None:
        app.jobs.spectra_job = "j"
        app.jobs.cancel = lambda job, *, discard: cancelled.append((job, discard))  # type: ignore
        session.bad = {next(reversed(session.infos)): finding()}
        app.bad_adapters.ask()
        await pilot.press("x")
        await pilot.pause()
        assert cancelled == [("j", True)]

    run(app, steps)


def finding() -> Finding:
    return Finding("x", "error", "It is bad.")


def test_a_build_that_was_stopped_offers_the_way_out(session: Session, tmp_path: Path) -> None:
    app = VLoRAApp(session=session)

    async def steps(pilot: Pilot) -> None:
        await pilot.press("3", "w")
        assert "with-nan" in await asked(pilot)
        assert str(app.job_views()[0].state) == "failed"
        await pilot.press("l")
        await finished(pilot, app, jobs=2)
        assert str(app.job_views()[0].state) == "finished"
        assert session.recipe().input.skip_bad

    run(app, steps)
    assert len(read_manifest(tmp_path / "out").tasks) == 3


def test_an_earlier_sessions_job_can_go_on_too(session: Session, tmp_path: Path) -> None:
    first, again = VLoRAApp(session=session), VLoRAApp()

    async def fail(pilot: Pilot) -> None:
        await pilot.press("3", "w")
        await asked(pilot)
        await pilot.press("x")
        assert "b skips" in text_of(first, "#said")

    async def go_on(pilot: Pilot) -> None:
        await pilot.press("3")
        await until(pilot, lambda: bool(again.job_views()), "the job of the first session")
        assert not is_asking(again)
        await pilot.press("b")
        await finished(pilot, again, jobs=2)

    run(first, fail)
    run(again, go_on)
    assert len(read_manifest(tmp_path / "out").tasks) == 3


def test_where_none_is_left_nothing_is_offered_to_go_on_with(tmp_path: Path) -> None:
    app = VLoRAApp(session=session_of([with_nan(tmp_path / "a"), with_nan(tmp_path / "b")]))
    app.session.rename({p: f"{i}" for i, p in enumerate(app.session.infos)})

    async def steps(pilot: Pilot) -> None:
        await pilot.press("2")
        assert "holds NaN" in await asked(pilot)
        assert answers(app) == ["show", "stop"]

    run(app, steps)


def test_a_recipe_that_says_skip_bad_is_not_asked_about(paths: list[Path]) -> None:
    app = VLoRAApp()
    app.recipe = Recipe(
        input=Input(tuple(AdapterInput(str(p)) for p in paths), skip_bad=True),
        compress=Compress(CompressionTarget(k=2)),
        output=str(paths[0].parent.parent / "out"),
    )

    async def steps(pilot: Pilot) -> None:
        await until(pilot, lambda: app.view is not None and app.view.id == "run", "step 3")
        assert app.session.recipe().input.skip_bad
        await pilot.press("2")
        await until(pilot, lambda: bool(app.session.left_out), "the verdict")
        assert not is_asking(app)
        assert app.session.title().endswith("1 left out")

    run(app, steps)


def test_unmarking_one_that_is_left_out_forgets_the_answer(session: Session) -> None:
    bad = next(path for path in session.infos if path.endswith("with-nan"))
    session.bad[bad] = finding()
    session.leave_out([bad])
    assert session.recipe().input.skip_bad
    session.mark(bad)
    assert not session.recipe().input.skip_bad
    session.mark(bad)
    assert bad in session.undecided


def test_a_place_is_in_an_adapter_not_beside_it() -> None:
    def about(**place: str) -> Finding:
        return Finding("x", "error", "It is bad.", **place)

    assert is_about(about(adapter="/a/task1", tensor="x"), "/a/task1")
    assert is_about(about(file="/a/task1/adapter_model.safetensors"), "/a/task1")
    assert not is_about(about(adapter="/a/task10", tensor="x"), "/a/task1")
    assert not is_about(about(place="a task"), "/a/task1")
