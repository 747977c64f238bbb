"""Jobs that compute spectra: read as they come, stopped, resumed, shared by two."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.app.jobs.conftest import PATIENCE, SPECTRUM, Gate, kill, state, until
from tests.witnesses.files import tree
from vlora_tui.jobs import JobStore, State, cancel, look, remove, resume, start, wait
from vlora_tui.pipeline import events
from vlora_tui.pipeline.run import SpectraRun
from vlora_tui.recipe.model import AdapterInput, Input, Recipe
from vlora_tui.utils import paths


def spectra_recipe(adapters: Path) -> Recipe:
    return Recipe(Input((AdapterInput(str(adapters)),)))


def test_spectra_are_a_job_whose_layers_can_be_read_as_they_come(
    store: JobStore, adapters: Path, tmp_path: Path, gate: Gate
) -> None:
    from vlora_engine.spectra.tables import Spectra

    gate.close_after(SPECTRUM, 2)
    job = start(store, spectra_recipe(adapters), spectra=tmp_path / "spectra", device="cpu")
    assert job.info.kind == "spectra"
    gate.reached()
    place = look(job).spectra
    assert place is not None
    assert len(Spectra.load(place).layers) == 2
    assert not (tmp_path / "spectra").exists()
    gate.release()
    view = wait(job, PATIENCE)
    assert view.state is State.FINISHED, job.log_tail()
    assert view.spectra == str(tmp_path / "spectra")
    assert Spectra.load(tmp_path / "spectra").complete


def test_a_killed_spectra_job_is_resumed_or_removed_without_leftovers(
    store: JobStore, adapters: Path, tmp_path: Path, gate: Gate
) -> None:
    gate.close_after(SPECTRUM, 2)
    jobs = []
    for name in ("a", "b"):
        jobs.append(start(store, spectra_recipe(adapters), spectra=tmp_path / name, device="cpu"))
        gate.reached()
        kill(jobs[-1])
        gate.release()
    gate.no_more()
    assert [state(job) for job in jobs] == ["vanished", "vanished"]
    resume(store, jobs[0])
    assert wait(jobs[0], PATIENCE).state is State.FINISHED
    remove(store, jobs[1])
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.fixture
def undisturbed_spectra(
    adapters: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, bytes]:
    """The files of the spectra that nobody disturbed."""
    place = tmp_path_factory.mktemp("undisturbed") / "spectra"
    SpectraRun(spectra_recipe(adapters), lambda _: None, target=place, device="cpu").execute()
    return tree(place)


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("end", ["cancelled", "killed"])
def test_stopped_spectra_go_on_and_are_the_same(
    end: str,
    cached: bool,
    store: JobStore,
    adapters: Path,
    tmp_path: Path,
    gate: Gate,
    undisturbed_spectra: dict[str, bytes],
) -> None:
    gate.close_after(SPECTRUM, 3)
    place = None if cached else tmp_path / "s"
    job = start(store, spectra_recipe(adapters), spectra=place, device="cpu")
    gate.reached()
    if end == "cancelled":
        cancel(job)
        gate.release()
        view = wait(job, PATIENCE)
        assert isinstance(view.end, events.Cancelled)
        assert view.end.resumable
        assert "3 modules were kept for a resume" in view.end.text
    else:
        kill(job)
        gate.release()
    assert job.kept_layers() == 3
    gate.no_more()
    resume(store, job)
    view = wait(job, PATIENCE)
    assert view.state is State.FINISHED, job.log_tail()
    remarks = {remark.code: remark.text for remark in view.all(events.Remark)}
    assert remarks["resumed"].startswith("3 of 6 modules were done already")
    assert tree(Path(str(view.spectra))) == undisturbed_spectra
    assert job.kept_layers() == 0


def test_discarded_spectra_leave_nothing_in_the_cache(
    store: JobStore, adapters: Path, gate: Gate
) -> None:
    gate.close_after(SPECTRUM, 2)
    job = start(store, spectra_recipe(adapters), device="cpu")
    gate.reached()
    cancel(job, discard=True)
    gate.release()
    view = wait(job, PATIENCE)
    assert isinstance(view.end, events.Cancelled)
    assert "2 modules were discarded" in view.end.text
    assert list(paths.spectra_root().iterdir()) == []


def test_removing_a_job_leaves_the_spectra_that_another_goes_on_with(
    store: JobStore, adapters: Path, gate: Gate
) -> None:
    gate.close_after(SPECTRUM, 2)
    first = start(store, spectra_recipe(adapters), device="cpu")
    gate.reached()
    kill(first)
    gate.release()
    gate.close_after(SPECTRUM, 2)
    second = start(store, spectra_recipe(adapters), device="cpu")
    gate.reached()
    remove(store, first)
    gate.release()
    view = wait(second, PATIENCE)
    assert view.state is State.FINISHED, second.log_tail()
    assert any(remark.code == "resumed" for remark in view.all(events.Remark))


def test_of_two_processes_one_computes_the_spectra_and_the_other_takes_them(
    store: JobStore, adapters: Path, gate: Gate
) -> None:
    gate.close_after(SPECTRUM, 2)
    first = start(store, spectra_recipe(adapters), device="cpu")
    gate.reached()
    gate.no_more()
    # No job, so no device holds it back: only the lock of these spectra can.
    words = [sys.executable, "-m", "vlora_tui", "spectra", str(adapters), "--json"]
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as second:
        locks = paths.cache_dir() / "locks"
        lock = str(next(locks.iterdir()))
        until(lambda: has_open(second.pid, lock), "the second stood before the lock")
        partial = look(first).spectra
        assert partial is not None
        written = sorted(os.listdir(Path(partial) / "layers"))
        gate.release()
        out, err = second.communicate(timeout=PATIENCE)
    assert second.returncode == 0, err
    assert '"reused": true' in out
    assert len(written) == 2
    view = wait(first, PATIENCE)
    assert view.state is State.FINISHED, first.log_tail()
    assert view.last(events.SpectraReady).reused is False
    again = start(store, spectra_recipe(adapters), device="cpu")
    assert wait(again, PATIENCE).last(events.SpectraReady).reused is True


def has_open(pid: int, path: str) -> bool:
    folder = Path(f"/proc/{pid}/fd")
    try:
        return any(os.readlink(entry) == path for entry in folder.iterdir())
    except OSError:
        return False
