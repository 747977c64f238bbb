"""What a key and a start have worked out, styled and loaded: counted, not timed."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.app.tui.drive import run
from tests.benchmarks.key_presses import synthetic
from tests.conftest import ROOT
from vlora_engine.compression_target import CompressionTarget
from vlora_engine.spectra.tables import Spectra
from vlora_tui.tui.adapters.rows import Row
from vlora_tui.tui.app.app import VLoRAApp
from vlora_tui.tui.choose import worker as choose_worker
from vlora_tui.tui.choose.figures_pane import FiguresPane
from vlora_tui.tui.core import session as sessions
from vlora_tui.tui.core.session import Session


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> VLoRAApp:
    """The interface on spectra; what waits until keys rest waits for ever."""
    monkeypatch.setattr(choose_worker, "QUIET_SECONDS", 10_000.0)
    for name in ("STATE", "CONFIG", "CACHE", "DATA"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / name.lower()))
    session = Session(choosing=CompressionTarget("delta", k=4).checked())
    session.set_spectra(synthetic(5, 4))
    return VLoRAApp(session=session)


def test_a_key_works_out_the_choice_alone(app: VLoRAApp, monkeypatch: pytest.MonkeyPatch) -> None:
    counts: Counter[str] = Counter()

    def counted(owner: Any, name: str) -> None:
        real = getattr(owner, name)

        def call(*words: Any, **given: Any) -> Any:
            counts[name] += 1
            return real(*words, **given)

        monkeypatch.setattr(owner, name, call)

    async def steps(pilot: Any) -> None:
        await app.show_step("choose")
        await pilot.pause()
        counted(sessions, "_worked_out")
        counted(FiguresPane, "_rendered")
        counted(Spectra, "table")
        for _ in range(3):
            await pilot.press("right_square_bracket")
        assert app.session.choosing.goal == ("k", 7)
        assert counts["_worked_out"] == 3
        assert counts["_rendered"] == 3  # what is drawn was rendered to see what changes
        # As often as there are layers, some times over; not layers times layers.
        assert counts["table"] <= 3 * 8 * 28

    run(app, steps)


@pytest.mark.parametrize("step", ["choose", "inspect"])
def test_the_panes_of_a_step_are_styled_once_when_it_is_first_shown(
    app: VLoRAApp, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    styled: list[str] = []
    real = VLoRAApp.update_styles

    def update_styles(self: VLoRAApp, node: Any, animate: bool = True) -> None:
        styled.append(node.id or "")
        real(self, node, animate)

    async def steps(pilot: Any) -> None:
        monkeypatch.setattr(VLoRAApp, "update_styles", update_styles)
        await app.show_step(step)
        await pilot.pause()
        assert step not in styled

    run(app, steps)


def test_the_cells_of_a_row_are_made_once() -> None:
    row = Row("/a/task-10", "task-10")
    assert row.cells() is row.cells()
    assert row.sort_key("name")[2] is row.sort_key("size")[2]


SEEN = """
import sys
import vlora_tui.tui.app.start as start
start.start = lambda places: print(tuple(places), end=" ") or 0
from vlora_tui.cli import main
main([{place!r}])
print("typer" in sys.modules)
"""
BASE = """
import sys
from vlora_engine.formats.base_model_config import known_base
print(known_base("nobody/has-this"), "huggingface_hub" in sys.modules)
"""
CHART = """
import sys
from vlora_tui.tui.charts.variance_plot import prepare
prepare()
import plotext
print([name for name in sys.modules if name.startswith("plotext._doc.sections")], plotext.doc)
"""


@pytest.mark.parametrize(
    ("code", "printed"),
    [
        (SEEN.format(place="runs/"), "('runs/',) False"),
        (BASE, "None False"),
        (CHART, "[] None"),
    ],
    ids=["places need no parser", "no base in the cache, no client", "plotext without its pages"],
)
def test_what_is_not_needed_is_not_loaded(code: str, printed: str, tmp_path: Path) -> None:
    found = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={
            "PYTHONPATH": f"{ROOT}:{ROOT / 'engine'}",
            "HF_HOME": str(tmp_path),
            "HOME": str(tmp_path),
        },
        check=True,
    )
    assert found.stdout.strip() == printed
