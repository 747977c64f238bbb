"""Step 5: marks, settings, the preview, what is refused, the job and its result, merging."""

from __future__ import annotations

import inspect
import json
import shlex
import shutil
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from textual.pilot import Pilot
from textual.widgets import Static
from textual.worker import WorkerCancelled

from tests.app.conftest import Cli
from tests.app.tui.drive import Steps, cells, run
from tests.witnesses import make
from vlora_engine.catalog.read import read_manifest
from vlora_engine.catalog.scanner import scan
from vlora_engine.errors import ParameterError
from vlora_engine.merging import MERGE_METHODS
from vlora_engine.utils.files import directory_bytes
from vlora_tui.cli import main
from vlora_tui.jobs.store import Job, JobInfo
from vlora_tui.jobs.watch import JobView, State, TimedEvent
from vlora_tui.pipeline import events
from vlora_tui.recipe.model import Export, Recipe
from vlora_tui.recipe.reader import load_recipe
from vlora_tui.tui.app.app import VLoRAApp
from vlora_tui.tui.core.messages import JobsChanged
from vlora_tui.tui.core.session import Session
from vlora_tui.tui.export import plan as export_plan
from vlora_tui.tui.export import recipes as export_recipes
from vlora_tui.tui.export.settings import MERGES, Settings, tasks_of
from vlora_tui.tui.export.view import ExportView
from vlora_tui.tui.widgets.buttons import Buttons
from vlora_tui.tui.widgets.dialogs import Prompt
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


@pytest.fixture
def opened(subspace: Path) -> Session:
    session = Session()
    session.manifest = read_manifest(subspace)
    return session


@pytest.fixture
def marked(runs: Path) -> Session:
    session = Session()
    session.add_found(scan([runs]).adapters)
    for path in session.infos:
        session.mark(path, True)
    return session


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


# what is planned


def test_sizes_are_those_that_are_written(subspace: Path, cli: Cli, tmp_path: Path) -> None:
    manifest = read_manifest(subspace)
    for dtype in (None, "fp16"):
        out = tmp_path / f"out-{dtype}"
        cli("export", subspace, "--all", "-o", out, *(["--dtype", dtype] if dtype else []))
        for task in manifest.tasks.values():
            expected = export_plan.adapter_bytes(manifest, task, dtype)
            assert expected == pytest.approx(directory_bytes(out / task.file[:-12]), rel=0.1)


def test_every_method_of_the_engine_is_offered_with_its_parameters() -> None:
    assert [MERGE_METHODS.find(name).name for name in MERGES] == list(MERGE_METHODS)
    for name, method in MERGES.items():
        assert method is MERGE_METHODS.find(name)
        for marked in (2, 3):
            settings = Settings("merge", method=name)
            lines = [field.key for field in form_fields(settings, marked)]
            assert [p.name for p in method.parameters] == lines[2 : 2 + len(method.parameters)]


def form_fields(settings: Settings, marked: int) -> list[Any]:
    from vlora_tui.tui.export.form_rows import form_lines

    return form_lines(settings, [f"t{i}" for i in range(marked)])


def test_what_is_typed_is_judged_by_the_method() -> None:
    density, epsilon, seed = MERGES["della"].parameters
    assert density.parse("") == 0.5
    assert density.parse("0.5, 0.3") == (0.5, 0.3)
    assert seed.parse(" 7 ") == 7
    for parameter, text in ((density, "0"), (density, "x"), (epsilon, "0.5"), (seed, "1.5")):
        with pytest.raises(ParameterError, match="out of range"):
            parameter.parse(text)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (Settings("merge", merged="/m", method="slerp"), "takes 2 adapters"),
        (Settings("merge", merged="/m", method="ties", parameters={"density": "1,1"}), "for each"),
        (
            Settings("merge", merged="/m", method="della", parameters={"epsilon": "0.49999"}),
            None,
        ),
        (
            Settings("merge", merged="/m", method="della", parameters={"density": "0.1"}),
            "do not fit together",
        ),
    ],
)
def test_a_merge_that_cannot_be_says_so_before_it_starts(
    subspace: Path, settings: Settings, words: str | None
) -> None:
    source = tasks_of(read_manifest(subspace))
    plan = export_plan.plan(source, [item.name for item in source.items], settings)
    assert (plan.problem is None) if words is None else (words in str(plan.problem))


def test_what_stands_in_the_way_is_told_apart(subspace: Path, tmp_path: Path) -> None:
    source = tasks_of(read_manifest(subspace))
    out = tmp_path / "out"
    (out / "task00").mkdir(parents=True)  # empty: does not count
    (out / "task01").mkdir()
    (out / "task01" / "adapter_config.json").write_text("{}")
    (out / "task02").mkdir()
    (out / "task02" / "thesis.tex").write_text("years of work")
    names = [item.name for item in source.items]
    plan = export_plan.plan(source, names, Settings(out=f"{out}/{{task}}"))
    assert [row.state for row in plan.rows] == ["new", "there", "no", "new"]
    assert "thesis.tex" in plan.rows[2].why
    inside = export_plan.plan(source, names, Settings(out=f"{subspace}/tasks/{{task}}"))
    assert {row.state for row in inside.rows} == {"no"}
    over = export_plan.plan(source, names[:1], Settings(out=str(subspace)))
    assert [row.why for row in over.rows] == ["this is an input"]
    assert export_plan.plan(source, names, Settings(out=str(out))).problem
    assert export_plan.plan(source, [], Settings(out=str(out))).problem


@pytest.mark.parametrize(
    ("settings", "tasks"),
    [
        (Settings(out="x/{task}"), 4),
        (Settings(out="x/{task}", dtype="fp16", verify=False), 2),
        (Settings(out="x/only"), 1),
        (Settings(out="x/{task}-lora"), 2),
        (Settings(out="x/{task}", target="vllm", drop_rest=True), 4),
        (Settings(out="x/{task}", target="ollama", base="/models/base", dtype="bf16"), 2),
        (Settings(out="x/{task}", base="/models/base", drop_rest=True), 2),
        (Settings("merge", merged="m"), 3),
        (
            Settings(
                "merge",
                merged="m",
                method="ties",
                weights={"task00": 0.7, "task01": -0.3},
                rank="3",
            ),
            2,
        ),
        (
            Settings(
                "merge", merged="m", method="dare", parameters={"drop_rate": "0.25", "seed": "3"}
            ),
            2,
        ),
    ],
)
def test_the_copied_command_does_the_same(
    settings: Settings, tasks: int, subspace: Path, cli: Cli, tmp_path: Path
) -> None:
    settings = replace(
        settings, out=f"{tmp_path}/{settings.out}", merged=f"{tmp_path}/{settings.merged}"
    )
    source = tasks_of(read_manifest(subspace))
    names = [item.name for item in source.items]
    recipe = export_recipes.recipe_of(source, names[:tasks], settings)
    commands = export_recipes.command_of(recipe, names).split(" && ")
    said = [cli(*shlex.split(c)[1:], "--print-recipe").out for c in commands]
    for i, text in enumerate(said):
        (tmp_path / f"{i}.toml").write_text(text)
    read = [load_recipe(tmp_path / f"{i}.toml") for i in range(len(said))]
    if recipe.merges:
        ours, theirs = recipe.merges[0], read[0].merges[0]
        assert [str(place).split(":")[-1] for place in theirs.adapters] == list(ours.adapters)
        same = replace(theirs, adapters=ours.adapters, source=ours.source)
        assert same == ours
    else:
        assert _outputs(read, names) == _outputs([recipe], names)


def _outputs(recipes: list[Recipe], names: list[str]) -> dict[str, tuple[Any, ...]]:
    from vlora_tui.pipeline.output_plan import export_paths

    return {
        task: (str(path), e.dtype, e.verify, e.target, e.base, e.drop_rest, r.input.subspace)
        for r in recipes
        for e in r.exports
        for task, path in export_paths(e, names).items()
    }


# the screen


@pytest.mark.parametrize("size", [(120, 36), (80, 24), (60, 20), (40, 12)])
def test_everything_can_be_reached(opened: Session, size: tuple[int, int]) -> None:
    async def steps(pilot: Pilot[Any]) -> None:
        assert len(rows(pilot)) == 4
        assert rows(pilot)[0][-1] == "new"
        seen = []
        for _ in range(4):
            seen.append(view(pilot).pane)
            await pilot.press("tab")
        assert seen == ["export-items", "export-how", "export-preview", "export-details"]

    use(opened, steps, size)


def test_marks_move_the_preview(opened: Session) -> None:
    async def steps(pilot: Pilot[Any]) -> None:
        await pilot.press("space")
        await settle(pilot)
        assert [row[0] for row in rows(pilot)] == ["task01", "task02", "task03"]
        await pilot.press("minus")
        await settle(pilot)
        assert [row[0] for row in rows(pilot)] == ["task00"]
        await pilot.press("plus")
        await settle(pilot)
        assert len(rows(pilot)) == 4
        await pilot.press("plus")
        await settle(pilot)
        assert rows(pilot) == []
        assert "Nothing is marked" in words(pilot, "#preview-said")
        assert buttons(pilot) == "[ Nothing selected ]"
        await pilot.press("w")
        assert not pilot.app.started

    use(opened, steps)


def test_a_start_that_overtakes_the_plan_says_that_nothing_is_marked(
    marked: Session, messages: list[str]
) -> None:
    async def steps(pilot: Pilot[Any]) -> None:
        screen = view(pilot)
        screen.editor.settings = replace(screen.editor.settings, doing="export")
        screen.planner.replan = lambda *_: None  # type: ignore[method-assign]  # it comes later
        await pilot.press("plus", "w")
        await settle(pilot)
        assert any("Nothing" in message for message in messages), messages
        assert not pilot.app.started

    use(marked, steps)


def test_settings_by_keys_and_in_the_form(opened: Session) -> None:
    async def steps(pilot: Pilot[Any]) -> None:
        await pilot.press("b", "d")
        await settle(pilot)
        assert "fp32" in form_lines(pilot)
        assert "verify  no" in form_lines(pilot)
        await pilot.press("tab", "down", "down", "down", "right", "left", "left")
        await settle(pilot)
        assert "unchanged" in form_lines(pilot)
        await pilot.press("up", "up")
        assert "for PEFT" in words(pilot, "#form-said")

    use(opened, steps)


def test_a_target_changes_sizes_and_files(opened: Session) -> None:
    async def steps(pilot: Pilot[Any]) -> None:
        sizes = {}
        for name in ("peft", "portable", "vllm"):
            assert view(pilot).editor.settings.target == name
            sizes[name] = view(pilot).planner.plan.nbytes
            await pilot.press("s")
            await settle(pilot)
        assert sizes["portable"] < 0.8 * sizes["peft"]
        assert "sglang" in form_lines(pilot).lower()
        await pilot.press("tab", "down", "left", "left")
        await settle(pilot)
        assert "portable" in form_lines(pilot)
        await pilot.press("d", "d", "d")
        await settle(pilot)
        assert "fp32" not in form_lines(pilot)
        assert "--target portable" in (view(pilot).command_text() or "")
        await pilot.press("enter")
        assert pilot.app.started == []  # a choice is no action

    use(opened, steps)


def test_what_a_target_refuses_is_shown_for_each_task(runs: Path, tmp_path: Path) -> None:
    """A task with a head, one without: the head is left out only when the form says so."""
    tensors = {**make.factors(seed=1), f"{make.PREFIX}score.weight": torch.ones(2, 12)}
    make.write(tmp_path / "with-head", tensors)
    place = tmp_path / "s"
    words_ = ["compress", str(tmp_path / "with-head"), str(runs / "task01"), "-o", str(place)]
    assert main([*words_, "-k", "8", "-q"]) == 0
    session = Session()
    session.manifest = read_manifest(place)

    async def steps(pilot: Pilot[Any]) -> None:
        await pilot.press("s", "s")
        await settle(pilot)
        assert [row[-1] for row in rows(pilot)] == [
            "new",
            "vLLM takes no other tensors; 1 here",
        ]
        assert "1 of 2 cannot be written. with-head" in words(pilot, "#preview-said")
        assert buttons(pilot) == "[ 1 of 2 cannot be written ]"  # what is not, is not offered
        await pilot.press("w")
        assert not pilot.app.started
        await pilot.press("tab", "down", "down", "right")
        await settle(pilot)
        assert [row[-1] for row in rows(pilot)] == ["new", "new"]
        assert "--drop-rest" in (view(pilot).command_text() or "")

    use(session, steps)


def test_gguf_asks_for_the_base_and_says_how_to_start(opened: Session, tmp_path: Path) -> None:
    config = {"model_type": "gpt2", "n_layer": 2, "n_head": 2, "n_embd": 12}
    (tmp_path / "config.json").write_text(json.dumps(config))

    async def steps(pilot: Pilot[Any]) -> None:
        for _ in range(6):
            await pilot.press("s")
        await settle(pilot)
        assert "Name the base model's folder" in words(pilot, "#preview-said")
        await pilot.press("tab", "down", "down", "enter")
        await pilot.pause()
        pilot.app.screen.query_one("Input").value = str(tmp_path)
        await pilot.press("enter")
        await settle(pilot)
        assert {row[-1] for row in rows(pilot)} == {"new"}
        assert "adapter.gguf" in words(pilot, "#preview-said")
        await pilot.press("w")
        await settle(pilot)
        export = pilot.app.started[0][0].exports[0]
        assert (export.target, export.base) == ("llamacpp", str(tmp_path))
        first = str(view(pilot).planner.plan.rows[0].path)
        pilot.app.hear(
            events.Exported("task00", first, "llamacpp", 1234, 4, "gpt2"),
            events.Finished(1.0),
            state=State.FINISHED,
        )
        await settle(pilot)
        assert f"llama-server -m BASE.gguf --lora {first}/adapter.gguf" in words(
            pilot, "#preview-said"
        )

    use(opened, steps)


def test_the_place_is_asked_for_and_taken(opened: Session, tmp_path: Path) -> None:
    async def steps(pilot: Pilot[Any]) -> None:
        await pilot.press("o")
        await pilot.pause()
        prompt = pilot.app.screen
        assert isinstance(prompt, Prompt)
        prompt.query_one("Input").value = f"{tmp_path}/elsewhere/{{task}}-x"
        await pilot.press("enter")
        await settle(pilot)
        assert rows(pilot)[0][1].endswith("elsewhere/task00-x")

    use(opened, steps)


def test_the_build_key_starts_a_job_and_shows_what_it_says(opened: Session) -> None:
    async def steps(pilot: Pilot[Any]) -> None:
        app = pilot.app
        await pilot.press("w")
        await settle(pilot)
        (recipe, force), *_ = app.started
        assert not force
        assert recipe.input.subspace == str(opened.manifest.path.absolute())
        export = recipe.exports[0]
        assert export == Export(path=view(pilot).editor.settings.out)
        assert [row[-1] for row in rows(pilot)] == ["waiting"] * 4
        first = str(view(pilot).planner.plan.rows[0].path)
        app.hear(events.Exported("task00", first, "peft", 1234))
        assert rows(pilot)[0][2:] == ["1.23 kB", "ok", "written"]
        app.hear(events.Verified("task00", first, 2e-4))
        assert rows(pilot)[0][-1] == "dW off by 0.02 %"
        await pilot.press("w")  # it is still writing
        assert len(app.started) == 1
        app.hear(events.Finished(1.0), state=State.FINISHED)
        await settle(pilot)
        assert "Done: 1 written, 1.23 kB, 1 read back" in words(pilot, "#preview-said")

    use(opened, steps)


def test_a_job_that_fails_says_why(opened: Session) -> None:
    async def steps(pilot: Pilot[Any]) -> None:
        await pilot.press("w")
        fault = {"what": "The disk is full.", "where": "/out", "remedy": "free some space"}
        pilot.app.hear(events.Failed(fault), state=State.FAILED)
        await settle(pilot)
        said = words(pilot, "#preview-said")
        assert "The disk is full." in said
        assert "free some space" in said
        assert {row[-1] for row in rows(pilot)} == {"not written"}
        await pilot.press("w")  # once more
        assert len(pilot.app.started) == 2

    use(opened, steps)


def test_what_exists_is_replaced_only_after_a_typed_word(opened: Session, runs: Path) -> None:
    out = Path(str(opened.manifest.path) + "-adapters")
    shutil.copytree(runs / "task01", out / "task01")

    async def steps(pilot: Pilot[Any]) -> None:
        assert rows(pilot)[1][-1] == "is there already"
        assert buttons(pilot) == "[ w Write 4 adapters, replacing 1 ]"
        assert "--force" in (view(pilot).command_text() or "")
        await pilot.press("w")
        await pilot.press(*"yes", "enter")
        assert not pilot.app.started
        await pilot.press("escape")
        assert not pilot.app.started
        await pilot.press("w")
        await pilot.press(*"replace", "enter")
        await settle(pilot)
        assert pilot.app.started[0][1] is True

    use(opened, steps)


def test_what_is_not_ours_is_never_replaced(opened: Session) -> None:
    out = Path(str(opened.manifest.path) + "-adapters")
    (out / "task01").mkdir(parents=True)
    (out / "task01" / "notes.txt").write_text("mine")

    async def steps(pilot: Pilot[Any]) -> None:
        await pilot.press("w")
        await settle(pilot)
        assert not pilot.app.started
        assert "notes.txt" in words(pilot, "#preview-said")

    use(opened, steps)


def test_a_filter_narrows_the_list_not_the_marks(opened: Session) -> None:
    async def steps(pilot: Pilot[Any]) -> None:
        await pilot.press("/", *"02", "enter")
        table: Table[Any] = pilot.app.query_one("#item-table", Table)
        assert [item.name for item in table.rows] == ["task02"]
        assert len(rows(pilot)) == 4
        await pilot.press("escape")
        assert len(table.rows) == 4

    use(opened, steps)


# merging


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


# where the tasks come from


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


@pytest.mark.parametrize("size", [(120, 36), (40, 12), (10, 4)])
def test_nothing_to_export_says_what_to_do(size: tuple[int, int]) -> None:
    async def steps(pilot: Pilot[Any]) -> None:
        assert "step 1" in words(pilot, "#export-nothing")
        await pilot.press("enter", "w", "space", "m", "v", "d", "t", "tab", "plus", "minus")
        assert not pilot.app.started

    use(Session(), steps, size)


def test_ascii_draws_ascii(opened: Session) -> None:
    async def steps(pilot: Pilot[Any]) -> None:
        table: Table[Any] = pilot.app.query_one("#item-table", Table)
        for y in range(table.size.height):
            assert table.render_line(y).text.isascii()
        assert form_lines(pilot).isascii()

    use(opened, steps, ascii_only=True)


def test_hostile_names_are_harmless(opened: Session) -> None:
    record = opened.manifest.tasks["task00"]
    hostile = "evil\x1b[2J\n[bold]x"
    tasks = {hostile: replace(record, id=hostile)}
    opened.manifest = replace(opened.manifest, tasks=tasks)

    async def steps(pilot: Pilot[Any]) -> None:
        table: Table[Any] = pilot.app.query_one("#item-table", Table)
        assert "\x1b" not in table.render_line(1).text
        assert "[bold]" in table.render_line(1).text
        assert Path(view(pilot).planner.plan.rows[0].path).name.isprintable()

    use(opened, steps)
