"""What the interface's process leaves to jobs: whatever only torch could read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot

import vlora_tui.jobs
from tests.app.tui.adapters.test_adapters import app, settle
from tests.app.tui.drive import run, until
from tests.app.tui.run.test_run import text_of
from tests.witnesses import make
from vlora_engine.errors import InputError
from vlora_engine.formats import contents
from vlora_engine.spectra.tables import Spectra


@pytest.mark.parametrize("pickled", [False, True])
def test_a_pickle_is_opened_in_jobs_alone(
    pickled: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the way to Choose k (2) and to a build (3): its tensors cannot be listed without torch."""
    folder = tmp_path / "in"
    for seed in range(2):
        make.write(folder / f"task{seed}", make.factors(seed=seed), pickle=pickled)
    opened: list[Path] = []
    started: list[str] = []

    def load(path: Path) -> Any:
        opened.append(path)
        raise AssertionError("opened in the interface")

    def start(store: Any, recipe: Any, **_: Any) -> Any:
        started.append("build" if recipe.compress is not None else "spectra")
        raise InputError("Not in this test.")

    monkeypatch.setattr(contents, "_load_pickle", load)
    monkeypatch.setattr(vlora_tui.jobs, "start", start)
    application = app(folder)

    async def steps(pilot: Pilot[Any]) -> None:
        await settle(pilot)
        await pilot.press("plus")
        assert len(application.session.marked) == 2
        await pilot.press("2")
        await until(pilot, lambda: len(started) >= 1, "the spectra were started")
        application.session.output = str(tmp_path / "out")
        application.start_job(application.session.recipe())
        await until(pilot, lambda: len(started) >= 2, "the build was started")

    run(application, steps)
    assert started == ["spectra", "build"]
    assert opened == []


def test_spectra_that_cannot_be_read_once_measured_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody looks again once the job has ended: the step must not wait for it."""
    folder = tmp_path / "in"
    for seed in range(2):
        make.write(folder / f"task{seed}", make.factors(seed=seed))

    def load(cls: type[Spectra], path: Path) -> Spectra:
        raise InputError("The disk lost them.", where=str(path))

    monkeypatch.setattr(Spectra, "load", classmethod(load))
    application = app(folder)

    async def steps(pilot: Pilot[Any]) -> None:
        await settle(pilot)
        await pilot.press("plus", "2")
        lost = "The disk lost them."
        await until(pilot, lambda: lost in text_of(application, "#choose-wait"), "it is told")
        assert application.jobs.spectra_job is None

    run(application, steps)
