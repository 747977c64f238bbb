"""Step 5: merging, and where the tasks come from."""

from __future__ import annotations

import shlex
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from textual.pilot import Pilot

from tests.app.conftest import Cli
from tests.app.tui.export.screen import (
    buttons,
    form_lines,
    rows,
    settle,
    use,
    view,
    words,
)
from vlora_tui.jobs.store import Job, JobInfo
from vlora_tui.jobs.watch import JobView, State, TimedEvent
from vlora_tui.pipeline import events
from vlora_tui.tui.core.messages import JobsChanged
from vlora_tui.tui.core.session import Session
from vlora_tui.tui.widgets.dialogs import Prompt


def test_merging_tasks(opened: Session) -> None:
    async def steps(pilot: Pilot[Any]) -> None:
        await pilot.press("space", "space", "m")
        await settle(pilot)
        assert buttons(pilot) == "[ w Merge 2 into one ]"
        assert len(rows(pilot)) == 1
        await pilot.press("tab", "down", "right")
        await settle(pilot)
        assert "density" in form_lines(pilot)
        await pilot.press("down", "enter")
        await pilot.press("backspace", "2", "enter")
        assert isinstance(pilot.app.screen, Prompt)  # 2 is no share: it stays open
        await pilot.press("backspace", *"0.25", "enter")
        await settle(pilot)
        await pilot.press("w")
        await settle(pilot)
        merge = pilot.app.started[0][0].merges[0]
        assert merge.method == "ties"
        assert merge.parameters == {"density": 0.25}
        assert merge.adapters == ("task02", "task03")
        assert merge.source == "subspace"
        pilot.app.hear(
            events.Merged(merge.path, "ties", merge.adapters, 8, 6),
            events.Finished(1.0),
            state=State.FINISHED,
        )
        assert "rank 8" in words(pilot, "#preview-said")

    use(opened, steps)


def test_marked_adapters_are_merged_without_a_subspace(marked: Session, runs: Path) -> None:
    async def steps(pilot: Pilot[Any]) -> None:
        await pilot.press("m", "w")
        await settle(pilot)
        recipe = pilot.app.started[0][0]
        assert [a.path for a in recipe.input.adapters] == [
            str(runs / f"task0{i}") for i in range(4)
        ]
        assert recipe.merges[0].source == "input"
        assert recipe.merges[0].adapters == ("task00", "task01", "task02", "task03")

    use(marked, steps)


def test_one_alone_is_not_merged(opened: Session) -> None:
    async def steps(pilot: Pilot[Any]) -> None:
        await pilot.press("m", "plus", "space")
        await settle(pilot)
        assert "one alone needs a weight" in words(pilot, "#preview-said")
        await pilot.press("w")
        assert not pilot.app.started

    use(opened, steps)


def test_marked_adapters_are_exported_as_they_are(
    marked: Session, runs: Path, tmp_path: Path, cli: Cli
) -> None:
    async def steps(pilot: Pilot[Any]) -> None:
        screen = view(pilot)
        screen.editor.settings = replace(
            screen.editor.settings, target="vllm", out=f"{tmp_path}/o/{{task}}"
        )
        await pilot.press("space")  # without the first
        await settle(pilot)
        assert buttons(pilot) == "[ w Write 3 adapters ]"
        command = screen.command_text() or ""
        await pilot.press("w")
        await settle(pilot)
        recipe = pilot.app.started[0][0]
        assert [a.name for a in recipe.input.adapters] == ["task01", "task02", "task03"]
        assert recipe.compress is None
        assert (recipe.exports[0].target, recipe.exports[0].tasks) == ("vllm", ())
        assert marked.exports == ()  # it is of this step alone
        cli(*shlex.split(command)[1:])
        weights = "adapter_model.safetensors"
        written = {place.name: (place / weights) for place in (tmp_path / "o").iterdir()}
        assert sorted(written) == ["task01", "task02", "task03"]

    use(marked, steps)


def test_the_subspace_that_a_job_has_built_of_the_marked_is_found(
    marked: Session, subspace: Path, tmp_path: Path
) -> None:
    async def steps(pilot: Pilot[Any]) -> None:
        folder = tmp_path / "job"
        folder.mkdir()
        recipe = replace(marked.recipe(), exports=())
        (folder / "recipe.toml").write_text(recipe.to_toml())
        info = JobInfo("built", "build", "t", time.time())
        job = JobView(Job(folder, info), state=State.FINISHED)
        job.take(TimedEvent(1, 0.0, events.SubspaceWritten(str(subspace), {})))
        pilot.app.views.append(job)
        pilot.app.post_message(JobsChanged())
        await settle(pilot)
        assert marked.manifest is not None
        assert marked.manifest.path == subspace
        assert "Tasks of subspace" in str(pilot.app.query_one("#export-items").border_title)
        await pilot.press("t")
        assert "Marked adapters" in str(pilot.app.query_one("#export-items").border_title)

    use(marked, steps)
