"""Step 5: what is planned, and the command that does the same."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.app.conftest import Cli
from vlora_engine.catalog.read import read_manifest
from vlora_engine.errors import ParameterError
from vlora_engine.merging import MERGE_METHODS
from vlora_engine.utils.files import directory_bytes
from vlora_tui.recipe.model import Recipe
from vlora_tui.recipe.reader import load_recipe
from vlora_tui.tui.export import plan as export_plan
from vlora_tui.tui.export import recipes as export_recipes
from vlora_tui.tui.export.settings import MERGES, Settings, tasks_of


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
