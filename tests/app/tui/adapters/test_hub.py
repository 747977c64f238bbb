"""Step 1 and the Hub: addresses, the cache and a search are places like any other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from textual import events
from textual.pilot import Pilot
from textual.widgets import Input, Static

from tests.app.tui.adapters.test_adapters import app, marked, names, settle, view
from tests.app.tui.drive import run
from tests.conftest import FreshPython
from tests.witnesses.hub import Hub
from vlora_engine.hub import AdapterRef
from vlora_engine.hub.fetch import fetch
from vlora_tui.tui.adapters.open_folder import OpenFolder, hub_entries
from vlora_tui.tui.adapters.scanner import pasted_paths
from vlora_tui.tui.adapters.start_page import StartPage


@pytest.fixture
def tasks(hub: Hub, runs: Path) -> list[str]:
    """Four adapters of org/gpt2 on the Hub, pinned; the last one is gated."""
    for i in range(4):
        tags = ["peft", "base_model:adapter:org/gpt2"]
        hub.add(f"org/task{i:02d}", runs / f"task{i:02d}", tags=tags, downloads=4 - i)
    hub.repos["org/task03"].gated = True
    return [f"hf://{name}@{repo.refs['main']}" for name, repo in hub.repos.items()]


def test_a_pasted_address_is_a_row_that_a_recipe_pins(
    hub: Hub, tasks: list[str], runs: Path
) -> None:
    async def steps(pilot: Pilot[Any]) -> None:
        await settle(pilot)
        pilot.app.post_message(events.Paste("hf://org/task00 https://huggingface.co/org/task01"))
        await settle(pilot)
        assert names(pilot) == ["task00", "task01"]
        cells = [text for text, _ in view(pilot).table.rows[0].cells()]
        assert cells[:4] == ["task00", "gpt2", "4", "8"]
        view(pilot).look_into([str(runs / "task02")])
        await settle(pilot)
        await pilot.press("asterisk")
        recipe = pilot.app.session.recipe()
        assert [a.path for a in recipe.input.adapters][:2] == tasks[:2]
        assert len(recipe.input.adapters) == 3, "they fit what lies here"
        assert not str(recipe.output).startswith("hf:")
        assert "hf://org/task00" in view(pilot).command_text()

    run(app(), steps)
    assert not [r for r in hub.asked("^GET /lfs/") if r.span is None], "headers alone were read"


def test_the_cache_is_a_way_to_begin(hub: Hub, tasks: list[str]) -> None:
    fetch(AdapterRef.on_hub(tasks[1]))
    hub.close()

    async def steps(pilot: Pilot[Any]) -> None:
        await settle(pilot)
        page = pilot.app.query_one(StartPage)
        row = next(b for b in page.table.rows if b.folder == "hf-cache:")
        page.table.move_to(page.table.rows.index(row))
        await pilot.press("enter")
        await settle(pilot)
        assert names(pilot) == ["task01"]
        await pilot.press("space")
        assert list(pilot.app.session.marked) == [tasks[1]]

    run(app(), steps)


def test_the_dialog_looks_at_an_address_and_searches_by_base_model(
    hub: Hub, tasks: list[str]
) -> None:
    async def steps(pilot: Pilot[Any]) -> None:
        await settle(pilot)
        view(pilot).action_open()
        await settle(pilot)
        dialog = pilot.app.screen
        assert isinstance(dialog, OpenFolder)
        dialog.query_one(Input).value = "hf://org/gpt2"
        await settle(pilot)
        assert not str(dialog.query_one("#said", Static).render())
        await pilot.press("down", "enter")
        await settle(pilot)
        assert names(pilot) == ["task00", "task01", "task02", "task03"]
        gated = view(pilot).table.rows[3]
        assert "gated" in gated.error.what
        await pilot.press("plus")
        assert len(marked(pilot)) == 3, "what is gated cannot be marked"

    run(app(), steps)


def test_what_a_word_can_mean_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert [e.path for e in hub_entries("hf://org/name")] == ["hf://org/name", "hf-search:org/name"]
    assert [e.path for e in hub_entries("org/name")] == ["hf://org/name", "hf-search:org/name"]
    (tmp_path / "org").mkdir()
    assert hub_entries("org/name") == [], "there is such a folder here"
    assert hub_entries("/org/name") == hub_entries("name") == hub_entries("hf://org") == []
    assert pasted_paths("https://hf.co/org/name/tree/main/sub") == ["hf://org/name@main/sub"]


def test_a_subspace_on_the_hub_says_how_to_open_it(hub: Hub, built: Path) -> None:
    hub.add("org/subspace", built)

    async def steps(pilot: Pilot[Any]) -> None:
        await settle(pilot)
        view(pilot).look_into(["hf://org/subspace"])
        await settle(pilot)
        (row,) = view(pilot).table.rows
        assert row.is_subspace
        assert "vlora-tui pull hf://org/subspace@" in row.error.remedy

    run(app(), steps)


def test_the_hub_client_is_imported_when_it_is_asked_for(fresh_python: FreshPython) -> None:
    code = (
        "import sys, vlora_tui.tui.adapters.view, vlora_tui.tui.adapters.open_folder\n"
        "import vlora_engine.catalog.scanner, vlora_engine.hub\n"
        "import vlora_tui.recipe.model, vlora_tui.pipeline.run\n"
        "import vlora_engine.hub.cache, vlora_engine.hub.fetch, vlora_engine.hub.remote\n"
        "print([m for m in sys.modules if m.startswith(('huggingface_hub', 'httpx', 'torch'))])"
    )
    assert fresh_python(code).stdout.strip() == "[]"
