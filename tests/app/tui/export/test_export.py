"""Step 5: marks, settings, the preview, what is refused, the job and its result."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from textual.pilot import Pilot

from tests.app.tui.drive import resized
from tests.app.tui.export.screen import (
    buttons,
    form_lines,
    rows,
    settle,
    use,
    view,
    words,
)
from tests.witnesses import make
from vlora_engine.catalog.read import read_manifest
from vlora_engine.catalog.scanner import scan
from vlora_tui.cli import main
from vlora_tui.jobs.watch import State
from vlora_tui.pipeline import events
from vlora_tui.recipe.model import Export
from vlora_tui.tui.core.session import Session
from vlora_tui.tui.export.settings import adapters_of
from vlora_tui.tui.widgets.dialogs import Prompt
from vlora_tui.tui.widgets.table import Table


def test_everything_can_be_reached(opened: Session) -> None:
    async def steps(pilot: Pilot[Any]) -> None:
        async for size in resized(pilot, [(120, 36), (80, 24), (60, 20), (40, 12)]):
            assert len(rows(pilot)) == 4, size
            assert rows(pilot)[0][-1] == "new", size
            seen = []
            for _ in range(4):
                seen.append(view(pilot).pane)
                await pilot.press("tab")
            panes = ["export-items", "export-how", "export-preview", "export-details"]
            assert seen == panes, size

    use(opened, steps)


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
            "refused",
        ]
        said = " ".join(words(pilot, "#preview-said").split())
        assert said == (
            "1 of 2 cannot be written. with-head: vLLM does not accept 1 extra tensor. "
            'Set "other tensors" to "drop".'
        )
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
        assert 'Set "base" to the base model\'s folder' in words(pilot, "#preview-said")
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
        assert "Writing" not in buttons(pilot)
        assert "[ v Open result ]" in buttons(pilot)

    use(opened, steps)


def test_checkpoints_stand_in_the_order_of_their_steps(tmp_path: Path) -> None:
    names = ["checkpoint-1000", "checkpoint-500", "base"]
    for seed, name in enumerate(names):
        make.write(tmp_path / name, make.factors(seed=seed))
    infos = scan([tmp_path]).adapters
    source = adapters_of(sorted(infos, key=lambda info: names.index(info.name)))
    assert [item.name for item in source.items] == ["base", "checkpoint-500", "checkpoint-1000"]


def test_the_list_says_how_one_alone_is_marked(opened: Session) -> None:
    async def steps(pilot: Pilot[Any]) -> None:
        assert "+ all or none" in words(pilot, "#items-said")
        await pilot.press("plus", "space")
        await settle(pilot)
        assert [row[0] for row in rows(pilot)] == ["task00"]

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
