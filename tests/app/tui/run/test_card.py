"""What a job came to, as its card, its row and beside another one; jobs told by their events."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot
from textual.widgets import Static

from tests.app.tui.drive import run, until
from tests.witnesses import make
from vlora_tui.jobs.store import Job, JobInfo
from vlora_tui.jobs.watch import JobView, State, TimedEvent
from vlora_tui.pipeline import events
from vlora_tui.recipe.model import Compress, Input, Recipe
from vlora_tui.tui.app.app import VLoRAApp
from vlora_tui.tui.core.messages import JobsChanged
from vlora_tui.tui.run import card as cards
from vlora_tui.tui.run.compare import CompareBox, rows_of
from vlora_tui.tui.run.log import LogPager
from vlora_tui.tui.run.view import RunView
from vlora_tui.tui.widgets.buttons import Buttons
from vlora_tui.tui.widgets.table import Table

FIGURES: dict[str, Any] = {
    "method": "auto",
    "nbytes": 2_730_000,
    "ratio": 10.72,
    "input_bytes": 29_270_000,
    "mean_error": 0.0421,
    "max_error": 0.0498,
    "worst_task": "causal",
    "tasks": ["causal", "legal"],
    "bounded": [],
    "task_errors": {"causal": 0.0498, "legal": 0.0344},
}


def job(folder: Path, *told: events.Event, kind: str = "build", name: str = "j1") -> JobView:
    """A finished job whose process told these events, on disk and as a view."""
    home = folder / name
    home.mkdir()
    whole = [*told, events.Finished(3.0, ())]
    writer = events.EventWriter(home / "events.jsonl")
    for event in whole:
        writer(event)
    writer.close()
    (home / "recipe.toml").write_text(
        Recipe(Input(subspace="/somewhere"), output=None).to_toml(), "utf-8"
    )
    view = JobView(Job(home, JobInfo(name, kind, f"title of {name}", 1000.0)))
    for n, event in enumerate(whole):
        view.take(TimedEvent(n, 10.0 + n, event))
    view.state = State.FINISHED
    return view


def lines_of(view: JobView) -> list[str]:
    card = cards.card_of(view)
    assert card is not None
    return cards.card_text(card, 118).plain.splitlines()


def written(folder: Path, **changed: Any) -> events.SubspaceWritten:
    place = folder / "out"
    place.mkdir(exist_ok=True)
    return events.SubspaceWritten(str(place), {**FIGURES, **changed})


def test_a_build_says_what_it_measured_and_never_what_was_forecast(tmp_path: Path) -> None:
    forecast = events.Chosen("auto", "", mean_error=0.9, max_error=0.91, nbytes=1)
    view = job(tmp_path, forecast, written(tmp_path))
    lines = lines_of(view)
    assert lines[0] == "✓ 2 adapters, 2.73 MB, verified, worst 4.98 % (causal)"
    text = "\n".join(lines)
    assert "10.7x smaller than the originals (29.3 MB)" in text
    assert "4.21 % mean, 4.98 % worst (causal)" in text
    assert "91" not in text
    assert cards.cells(view) == ("auto", "2.73 MB", "4.98 %")


def test_errors_that_are_bounds_are_not_called_verified(tmp_path: Path) -> None:
    lines = lines_of(job(tmp_path, written(tmp_path, bounded=["legal"])))
    assert "verified" not in lines[0]
    assert "1 of 2 bounded" in lines[0]


def test_quantizing_shows_before_and_after(tmp_path: Path) -> None:
    packed = {"method": "nf4", "bits": 4, "block_size": 128, "double_quant": True}
    before = {"nbytes": 5_460_000, "mean_error": 0.01, "max_error": 0.02, "worst_task": "legal",
              "quantization": None}  # fmt: skip
    lines = lines_of(job(tmp_path, written(tmp_path, quantization=packed, before=before)))
    text = "\n".join(lines)
    assert "not packed → nf4, blocks of 128, double quantization" in text
    assert "5.46 MB → 2.73 MB, 2x smaller than before" in text
    assert "1 % → 4.21 %" in text
    assert "2 % → 4.98 % (causal)" in text


def test_a_merge_says_what_it_keeps_of_each(tmp_path: Path) -> None:
    row = {"cosine": 0.7, "energy": 1.0, "strength": 0.25, "worst_cosine": 0.1}
    report = {"kept": {"a": row, "b": {**row, "strength": 0.5}}, "cut_error": 0.03}
    merged = events.Merged("/m", "ties", ("/x/a", "/x/b"), 8, 2, report, nbytes=1000)
    view = job(tmp_path, merged, events.Verified("m", "/m", 0.0))
    text = "\n".join(lines_of(view))
    assert "2 adapters merged into one, ties, rank 8, 1 kB, read back: dW the same" in text
    assert "25 % of a, cosine .70" in text
    assert "50 % of b, cosine .70" in text
    bars = [line.count("━") for line in text.splitlines() if "cosine" in line]
    assert bars == [5, 10]
    assert cards.cells(view)[0] == "ties"


def test_an_export_says_for_whom_and_that_it_was_read_back(tmp_path: Path) -> None:
    told = [events.Exported(n, f"/o/{n}", "vllm", 500, rank=8, base="gpt2") for n in "ab"]
    view = job(tmp_path, *told, *[events.Verified(n, f"/o/{n}", 1e-7) for n in "ab"])
    text = "\n".join(lines_of(view))
    assert "2 adapters written for vLLM, 1 kB, read back: dW off by <0.001 %" in text
    assert "2 of 2" in text
    assert "/o/…" in text
    unread = "\n".join(lines_of(job(tmp_path, told[0], name="j2")))
    assert "not read back" in unread


@pytest.mark.parametrize(
    ("event", "words"),
    [
        (
            events.TaskAdded("/o", "c", "absorb", 3, 0.04, 10, 12, {"task": "a", "before": 0.01,
                                                                    "error": 0.02}),
            ["c added, error 4 %; 3 tasks, 12 B", "most lost by a: 1 % → 2 %"],
        ),
        (events.TasksRemoved("/o", ("c",), 2, 12, 10), ["1 task removed; 2 tasks left, 10 B"]),
        (
            events.Evaluated("/o", "org/base", "sampled", {
                "mean": {"kl": 0.01, "agreement": 0.99, "loss_change": 0.001},
                "worst": {"kl": 0.02, "agreement": 0.9, "loss_change": 0.002, "task": "c"},
                "control": {"mean_kl": 0.5, "fails": True}, "tasks": []}),
            ["Same next token 99 % of the time; worst KL 0.0200 (c)", "worse, as it must be"],
        ),
        (events.Pulled("hf://a/b@c", "/o", 3, 12, 5), ["3 files, 12 B, pulled", "7 B were in"]),
        (events.Pushed("/o", "hf://a/b", "hf://a/b@c", "https://h", 3, 12),
         ["3 files, 12 B, pushed to hf://a/b", "https://h"]),
        (events.Converted("a", "/o/a", "mlx", 12, 0.0), ["1 adapter written as mlx", "the same"]),
        (events.Resized("a", "/o/a", 12, {"error": 0.1}), ["1 adapter resized", "worst 10 % (a)"]),
    ],
)  # fmt: skip
def test_every_other_job_has_a_card(tmp_path: Path, event: events.Event, words: list[str]) -> None:
    text = "\n".join(lines_of(job(tmp_path, event)))
    for part in words:
        assert part in text


def test_in_ascii_the_card_has_no_other_letters(tmp_path: Path) -> None:
    view = job(tmp_path, written(tmp_path, before={"nbytes": 5, "mean_error": 0.1}))
    card = cards.card_of(view)
    assert card is not None
    assert cards.card_text(card, 118, ascii_only=True).plain.isascii()


def test_two_subspaces_side_by_side() -> None:
    first = cards.Figures("/a", "auto", "max error 5 % per task", 100, 10.0, 0.02, 0.05, "x",
                          {"x": 0.05, "y": 0.01, "gone": 0.1})  # fmt: skip
    second = cards.Figures("/b", "delta", "k = 8 for every module", 200, 5.0, 0.02, 0.04, "x",
                           {"x": 0.04, "y": 0.01})  # fmt: skip
    rows = {row.what: row for row in rows_of(first, second)}
    assert rows["size"].change == "2x larger"
    assert (rows["smaller"].first, rows["smaller"].second) == ("10x", "5x")
    assert rows["mean error"].change == "the same"
    assert rows["worst error"].change == "-1 points"
    assert (rows["x"].first, rows["x"].second, rows["x"].change) == ("5 %", "4 %", "-1 points")
    assert rows["y"].change == "the same"
    assert rows["gone"].change == "only in one"
    tasks = [row.what for row in rows_of(first, second)][-3:]
    assert tasks == ["gone", "x", "y"]  # what changed most comes first


def shown(app: VLoRAApp, *views: JobView) -> None:
    app.jobs.views = list(views)
    app.post_message(JobsChanged())


def test_two_jobs_are_marked_and_compared_by_keys(tmp_path: Path, messages: list[str]) -> None:
    one = job(tmp_path, written(tmp_path), name="j1")
    other = job(
        tmp_path, written(tmp_path, nbytes=1_365_000, task_errors={"causal": 0.0398}), name="j2"
    )
    app = VLoRAApp()

    async def steps(pilot: Pilot) -> None:
        await pilot.press("3")
        shown(app, one, other)
        await pilot.pause()
        await pilot.press("d")  # nothing is marked
        assert any("Mark a job first" in text for text in messages)
        await pilot.press("space", "down", "d")
        await until(pilot, lambda: isinstance(app.screen, CompareBox), "the comparison")
        table = app.screen.query_one("#compare-rows", Table)
        rows = {row.what: row for row in table.rows}
        assert rows["size"].change == "2x smaller"
        assert rows["causal"].change == "-1 points"  # read from the files: the view has no tasks
        await pilot.press("escape")

    run(app, steps)


@pytest.mark.parametrize("size", [(120, 36), (80, 24), (60, 20), (40, 12)])
def test_the_result_of_this_window_s_job_comes_to_the_front(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    mine = job(tmp_path, written(tmp_path), name="j1")
    theirs = job(tmp_path, written(tmp_path), name="j2")
    app = VLoRAApp()

    async def steps(pilot: Pilot) -> None:
        await pilot.press("3")
        shown(app, theirs)
        await pilot.pause()
        view = app.query_one(RunView)
        assert not view.has_class("result")
        app.jobs.started.add("j1")
        shown(app, theirs, mine)
        await pilot.pause()
        assert view.has_class("result")
        assert view.job is mine
        assert view.pane == "run-details"
        assert not app.query_one("#run-review").display
        assert "2 adapters" in str(app.query_one("#card", Static).content)
        assert app.query_one("#run-details").region.bottom <= size[1] - 1
        await pilot.press("w")  # nothing is started unseen: the review comes first
        assert not view.has_class("result")
        assert app.query_one("#run-review").display

    run(app, steps, size=size)


def test_a_click_on_a_button_does_what_its_key_does(tmp_path: Path, messages: list[str]) -> None:
    app = VLoRAApp()

    async def steps(pilot: Pilot) -> None:
        await pilot.press("3")
        app.jobs.started.add("j1")
        shown(app, job(tmp_path, written(tmp_path)))
        await pilot.pause()
        buttons = app.query_one("#next-more", Buttons)
        at = buttons.text.index("Compare")
        await pilot.click("#next-more", offset=(at, 0))
        await pilot.pause()
        assert any("Mark a job first" in text for text in messages)

    run(app, steps)


def test_the_log_scrolls_searches_and_follows(tmp_path: Path) -> None:
    view = job(tmp_path, written(tmp_path))
    view.state, view.end = State.RUNNING, None
    log = view.job.log_path
    log.write_text("".join(f"line {n}\n" for n in range(200)))
    app = VLoRAApp()

    async def steps(pilot: Pilot) -> None:
        await pilot.press("3")
        shown(app, view)
        await pilot.pause()
        await pilot.press("L")

        async def count(wanted: int) -> Table[Any]:
            await until(pilot, lambda: isinstance(app.screen, LogPager), "the log")
            lines = app.screen.query_one("#log-lines", Table)
            await until(pilot, lambda: len(lines.rows) == wanted, f"{wanted} lines")
            return lines

        lines = await count(200)
        assert lines.cursor == 199  # it runs: the end is followed
        with log.open("a") as file:
            file.write("a needle\n")
        lines = await count(201)
        assert lines.cursor == 200
        await pilot.press("slash", *"line 17", "enter")
        assert lines.rows[lines.cursor].text == "line 17"
        await pilot.press("n")
        assert lines.rows[lines.cursor].text == "line 170"
        await pilot.press("N")
        assert lines.rows[lines.cursor].text == "line 17"
        assert "of 11" in str(app.screen.query_one("#log-state", Static).content)
        with log.open("a") as file:
            file.write("more\n")
        lines = await count(202)
        assert lines.rows[lines.cursor].text == "line 17"  # who looks elsewhere is left there
        await pilot.press("f")
        assert lines.cursor == 201
        await pilot.press("escape")
        await pilot.pause()
        assert not isinstance(app.screen, LogPager)

    run(app, steps)


def test_enter_opens_the_result_and_else_the_log(tmp_path: Path) -> None:
    done, failed = job(tmp_path, written(tmp_path), name="j1"), job(tmp_path, name="j2")
    failed.state = State.FAILED
    failed.job.log_path.write_text("it failed\n")
    app = VLoRAApp()

    async def steps(pilot: Pilot) -> None:
        await pilot.press("3")
        shown(app, done, failed)
        await pilot.pause()
        await pilot.press("enter")
        assert app.query_one(RunView).has_class("result")
        await pilot.press("escape", "down", "enter")
        await pilot.pause()
        assert isinstance(app.screen, LogPager)
        await pilot.press("escape")

    run(app, steps)


def test_a_recipe_s_target_is_read_for_comparing(tmp_path: Path) -> None:
    from vlora_engine.compression_target import CompressionTarget
    from vlora_tui.recipe.model import AdapterInput
    from vlora_tui.tui.run.compare import figures_of_job

    view = job(tmp_path, written(tmp_path))
    recipe = Recipe(
        Input(adapters=(AdapterInput("/a"),)),
        compress=Compress(CompressionTarget("auto", max_error=0.05)),
        output="/o",
    )
    view.job.recipe_path.write_text(recipe.to_toml(), "utf-8")
    found = figures_of_job(view)
    assert found.target == "max error 5 % per task"
    assert found.tasks == FIGURES["task_errors"]


def test_a_job_on_a_subspace_offers_further_work_on_it_while_it_runs(tmp_path: Path) -> None:
    subspace = tmp_path / "subspace"
    subspace.mkdir()
    view = job(tmp_path, kind="evaluate")
    view.state = State.RUNNING
    recipe = Recipe(Input(subspace=str(subspace)), output=None).to_toml()
    view.job.recipe_path.write_text(recipe, "utf-8")
    assert cards.subspace_of(view) is None  # it has not written or said anything yet
    assert cards.works_on(view) == str(subspace)
    subspace.rmdir()
    assert cards.works_on(view) is None
    view.job.recipe_path.unlink()
    assert cards.works_on(view) is None


def test_a_merge_goes_on_to_export(tmp_path: Path) -> None:
    made = [make.write(tmp_path / "in" / name, make.factors(seed=n)) for n, name in enumerate("ab")]
    merged = make.write(tmp_path / "in" / "merged", make.factors(seed=5))
    kept = ("a", "b")
    done = job(tmp_path, events.Merged(str(merged), "average", kept, 8, 2, {}, nbytes=1000))
    app = VLoRAApp([str(path) for path in made])

    async def steps(pilot: Pilot[Any]) -> None:
        await until(pilot, lambda: len(app.session.infos) == 2, "the scan")
        await pilot.press("enter", "3")
        assert len(app.session.marked) == 2
        shown(app, done)
        await pilot.pause()
        await pilot.press("enter")
        assert "[ E Export ]" in app.query_one("#next", Buttons).text
        await pilot.press("E")
        await until(pilot, lambda: app.view is not None and app.view.id == "export", "Export")
        assert list(app.session.marked) == [str(merged)]
        assert app.view.command_text() is not None
        await pilot.press("1", "u")
        assert len(app.session.marked) == 2  # the marks of before are an undo away
        await app.show_adapters([str(merged)])
        await pilot.pause()
        row = app.query_one("#adapters-table", Table).row
        assert row.path == str(merged)

    run(app, steps)
