"""Step 2: layers that arrive."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.app.tui.choose.opened import LAYER, Opened
from vlora_engine.compression_target import CompressionTarget
from vlora_engine.spectra.choose import choose
from vlora_engine.spectra.tables import Spectra
from vlora_tui.tui.choose.advice import AdvicePane
from vlora_tui.tui.choose.curve_pane import CurvePane
from vlora_tui.tui.choose.figures_pane import FiguresPane
from vlora_tui.tui.choose.view import ChooseView
from vlora_tui.tui.core.messages import SpectraChanged
from vlora_tui.tui.widgets.heatmap import Heatmap


class TestArriving:
    def test_nothing_yet_says_what_to_do(self) -> None:
        opened = Opened(None)

        async def steps(pilot: Any) -> None:
            assert "mark the adapters" in str(opened.view.query_one("#choose-wait").render())
            await pilot.press("e", "right_square_bracket", "p", "space", "m", "enter")
            assert isinstance(opened.app.view, ChooseView)

        opened.use(steps)

    def test_layers_fill_in_one_by_one(self, measured: Path) -> None:
        whole = Spectra.load(measured)
        partial = replace(whole, layers={LAYER: whole.layers[LAYER]})
        opened = Opened(partial)

        async def steps(pilot: Any) -> None:
            assert "1 of 4 modules" in opened.text(CurvePane)
            assert "·" in opened.text(Heatmap)
            assert "from 1 of 4 modules" in opened.text(FiguresPane)
            first = opened.view.query_one(AdvicePane).plain().split("\n")[0]
            assert "~" in first
            assert "from 1 of 4 modules" in first
            assert "pays" not in opened.text(FiguresPane)
            for name in whole.layer_names[1:]:
                partial.layers[name] = whole.layers[name]
                opened.app.post_message(SpectraChanged())
                await opened.settled(pilot)
            assert "median of 4 modules" in opened.text(CurvePane)
            assert "·" not in opened.text(Heatmap)
            assert "of 4 modules" not in opened.text(FiguresPane)
            assert "~" not in opened.view.query_one(AdvicePane).plain()
            exact = choose(whole, CompressionTarget("delta", max_error=0.05))
            now = opened.session.figures().choice
            assert now is not None
            assert now.prediction == exact.prediction

        opened.use(steps)

    def test_the_first_layer_brings_the_panes_and_their_keys(self, measured: Path) -> None:
        opened = Opened(None)

        async def steps(pilot: Any) -> None:
            opened.session.set_spectra(Spectra.load(measured))
            opened.app.post_message(SpectraChanged())
            await opened.settled(pilot)
            await pilot.press("right_square_bracket")
            assert opened.goal == ("max_error", 0.045)

        opened.use(steps)

    def test_other_spectra_forget_the_old(self, screen: Opened, measured: Path) -> None:
        async def steps(pilot: Any) -> None:
            other = Spectra.load(measured)
            other.layer_names = other.layer_names[:2]
            other.layers = {name: other.layers[name] for name in other.layer_names}
            screen.session.set_spectra(other)
            screen.app.post_message(SpectraChanged())
            await screen.settled(pilot)
            assert "median of 2 modules" in screen.text(CurvePane)

        screen.use(steps)
