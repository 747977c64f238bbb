"""Step 2: tables that are missing, broken or of other adapters; targets out of reach."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.app.tui.choose.coded.collection import ALONE, FAMILY
from tests.app.tui.choose.coded.shown import losses, said, sharing
from tests.app.tui.choose.opened import Opened
from vlora_engine.catalog.open import open_adapter
from vlora_engine.compress.measure import compute_spectra
from vlora_engine.spectra.tables import (
    Spectra,
    outlook_file,
)
from vlora_tui.pipeline.inputs import gather
from vlora_tui.pipeline.run import SpectraRun
from vlora_tui.recipe.model import MEASURED, AdapterInput, Input, Recipe
from vlora_tui.tui.choose import worker as choose_worker
from vlora_tui.tui.choose.advice import AdvicePane
from vlora_tui.tui.choose.curve_pane import SizesPane
from vlora_tui.tui.core import job_client as core_job_client
from vlora_tui.tui.core.messages import SpectraChanged


class TestWhatIsMissing:
    @pytest.fixture
    def untold(self, measured: Path, tmp_path: Path) -> Opened:
        """Spectra without the tables of the codec."""
        folder = Path(shutil.copytree(measured, tmp_path / "untold"))
        (folder / "codec.safetensors").unlink()
        return Opened(Spectra.load(folder))

    def test_it_says_which_key_measures_again(self, untold: Opened) -> None:
        async def steps(pilot: Any) -> None:
            await pilot.press("S")
            await untold.settled(pilot)
            assert "R measures" in untold.text(SizesPane)
            await pilot.press("tab", "tab")
            assert "Press R to measure" in sharing(untold)
            wanted: list[int] = []
            untold.app.jobs.want_spectra = lambda: wanted.append(1)  # type: ignore[method-assign]
            await pilot.press("R")
            assert wanted == [1]
            await pilot.press("m", "m", "m")
            assert untold.session.choosing.method == "delta"

        untold.use(steps)

    def test_spectra_in_the_cache_that_lack_it_are_completed(
        self, measured: Path, adapters: list[Path]
    ) -> None:
        recipe = Recipe(Input(tuple(AdapterInput(str(path), path.name) for path in adapters)))
        place = gather(recipe).spectra_dir(MEASURED)
        shutil.copytree(measured, place)
        assert core_job_client.cached_spectra(recipe) is not None
        outlook_file(place).unlink()
        assert core_job_client.cached_spectra(recipe) is None
        SpectraRun(recipe, lambda event: None).execute()
        assert core_job_client.cached_spectra(recipe) is not None

    def test_a_file_that_cannot_be_read_is_told(self, measured: Path, tmp_path: Path) -> None:
        folder = Path(shutil.copytree(measured, tmp_path / "broken"))
        (folder / "codec.safetensors").write_bytes(b"no tables")
        opened = Opened(Spectra.load(folder))

        async def steps(pilot: Any) -> None:
            await pilot.press("S", "tab", "tab")
            await opened.settled(pilot)
            assert "cannot be read" in opened.text(SizesPane)
            assert "cannot be read" in sharing(opened)

        opened.use(steps)

    @pytest.mark.parametrize("names", [FAMILY, ALONE], ids=["fewer", "others"])
    def test_figures_of_former_adapters_are_not_drawn_with_those_that_arrive(
        self, adapters: list[Path], tmp_path: Path, names: list[str]
    ) -> None:
        before, after = tmp_path / "before", tmp_path / "after"
        compute_spectra(
            {path.name: open_adapter(path) for path in adapters if path.name in FAMILY + ALONE[:1]},
            before,
        )
        compute_spectra(
            {path.name: open_adapter(path) for path in adapters if path.name in names}, after
        )
        arriving = Spectra.load(after)
        arriving.layers = {name: arriving.layers[name] for name in arriving.layer_names[:1]}
        opened = Opened(Spectra.load(before), method="delta", max_error=0.1)

        async def steps(pilot: Any) -> None:
            await pilot.press("tab", "tab", "tab")
            await opened.settled(pilot)
            assert {row.task for row in losses(opened)} == {*FAMILY, *ALONE[:1]}
            # The marks of step 1 changed: their spectra are begun anew, layer by layer.
            opened.session.set_spectra(arriving)
            opened.view.figures._working = True  # the worker is still at the former choice
            opened.app.post_message(SpectraChanged())
            await pilot.pause()
            opened.view.post_message(choose_worker.FiguresComputed(False))
            await pilot.pause()
            assert losses(opened) == []
            assert opened.view.row_text() is not None
            opened.view.figures._working = False
            arriving.refresh()
            opened.app.post_message(SpectraChanged())
            await opened.settled(pilot)
            assert {row.task for row in losses(opened)} == set(names)

        opened.use(steps)

    def test_all_that_is_measured_is_not_measured_again(self, screen: Opened) -> None:
        async def steps(pilot: Any) -> None:
            await screen.settled(pilot)
            words = said(screen)
            await pilot.press("R")
            assert words == ["Everything is measured."]

        screen.use(steps)

    def test_a_target_that_cannot_be_met_says_why(self, auto: Opened) -> None:
        async def steps(pilot: Any) -> None:
            await pilot.press("tab", "tab", "b", "1", "0", "0", "enter")
            await auto.settled(pilot)
            assert "budget is smaller" in sharing(auto)
            assert "budget is smaller" in "\n".join(auto.view._brief_lines(120))
            assert "budget is smaller" in auto.view.query_one(AdvicePane).plain()

        auto.use(steps)
