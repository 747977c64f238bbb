"""Step 2 with the sizes on small terminals, in ASCII, with one pane maximised."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.app.tui.choose.coded.shown import sharing
from tests.app.tui.choose.opened import Opened
from vlora_engine.spectra.tables import Spectra
from vlora_tui.tui.app.app import VLoRAApp
from vlora_tui.tui.choose.advice import AdvicePane
from vlora_tui.tui.choose.curve_pane import CurvePane, SizesPane
from vlora_tui.tui.widgets.heatmap import Heatmap
from vlora_tui.tui.widgets.table import Table


class TestSizesOfTerminals:
    @pytest.mark.parametrize("shape", [(80, 24), (60, 20), (40, 12)])
    def test_one_pane_at_a_time_above_two_lines_of_figures(
        self, auto: Opened, shape: tuple[int, int]
    ) -> None:
        async def steps(pilot: Any) -> None:
            await pilot.press("S")
            await auto.settled(pilot)
            panes = ["sizes", "figures", "sharing", "losses", "curve", "layers"]
            for front in [*panes, "sizes"]:
                seen = [name for name in panes if auto.view.query_one(f"#{name}").region.area]
                assert seen == [front]
                if front != "figures":
                    assert "mean ~" in str(auto.view.query_one("#choose-brief").render())
                await pilot.press("tab")
            await pilot.press("S")
            assert auto.view.query_one("#layers").region.area

        auto.use(steps, shape)

    def test_size_takes_the_place_of_the_layers_and_any_pane_can_be_maximised(
        self, auto: Opened
    ) -> None:
        async def steps(pilot: Any) -> None:
            place = auto.view.query_one(Heatmap).region
            await pilot.press("S")
            await auto.settled(pilot)
            assert auto.view.query_one(SizesPane).region == place
            for name in ("sizes", "sharing", "losses"):
                pane = auto.view.query_one(f"#{name}")
                pane.focus()
                await pilot.pause()
                assert pane.region.area
                await pilot.press("z")
                assert pane.region.width >= 118, name
                await pilot.press("right_square_bracket", "z")
            for shape in ((1, 1), (10, 3), (120, 36)):
                await pilot.resize_terminal(*shape)
                await pilot.press("right_square_bracket")
            assert auto.view.query_one(SizesPane).region.area
            await pilot.press("S")
            assert auto.view.query_one(Heatmap).region == place

        auto.use(steps)

    def test_ascii_draws_ascii(self, measured: Path) -> None:
        opened = Opened(Spectra.load(measured), method="auto")
        opened.app = VLoRAApp(session=opened.session, ascii_only=True)

        async def steps(pilot: Any) -> None:
            await pilot.press("S", "p", "right")
            await opened.settled(pilot)
            assert opened.text(SizesPane).isascii()
            assert opened.text(CurvePane).isascii()
            assert opened.text(AdvicePane).isascii()
            await pilot.press("tab", "tab", "tab")
            await opened.settled(pilot)
            assert opened.text(Table).isascii()
            assert sharing(opened).isascii()
            for name in ("sizes", "sharing", "losses"):
                assert str(opened.view.query_one(f"#{name}").border_title).isascii()

        opened.use(steps)
