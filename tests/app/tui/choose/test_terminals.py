"""Step 2 on small terminals, in ASCII, with one pane maximised."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.app.tui.choose.opened import Opened
from vlora_engine.spectra.tables import Spectra
from vlora_tui.tui.app.app import VLoRAApp
from vlora_tui.tui.choose.curve_pane import CurvePane
from vlora_tui.tui.choose.figures_pane import FiguresPane
from vlora_tui.tui.widgets.heatmap import Heatmap
from vlora_tui.tui.widgets.table import Table
from vlora_tui.utils.formatting import percent


class TestSizes:
    @pytest.mark.parametrize("size", [(80, 24), (60, 20), (40, 12)])
    def test_one_pane_and_two_lines_of_figures(self, at_k: Opened, size: tuple[int, int]) -> None:
        async def steps(pilot: Any) -> None:
            brief = at_k.view.query_one("#choose-brief")
            assert at_k.view.query_one(CurvePane).region.area
            assert not at_k.view.query_one(Heatmap).region.area
            first = str(brief.render()).split("\n")[0]
            prediction = at_k.session.figures().prediction
            assert prediction is not None
            worst = f"worst {percent(prediction.max_error)} ({prediction.worst_task})"
            assert worst[: max(0, size[0] - 20)] in first  # it says which task that is
            assert first.count("k ") <= 1
            await pilot.press("right_square_bracket")
            assert at_k.goal == ("k", 4)
            await pilot.press("tab")
            assert at_k.view.query_one(Heatmap).region.area
            assert not at_k.view.query_one(CurvePane).region.area
            for name in ("sizes", "figures", "sharing", "losses", "curve"):
                await pilot.press("tab")
                assert at_k.view.query_one(f"#{name}").region.area, name
            columns = {column.key for column in at_k.view.query_one("#losses", Table).columns}
            assert "nbytes" not in columns  # a basis has no bytes of one task

        at_k.use(steps, size)

    def test_growing_and_shrinking(self, at_k: Opened) -> None:
        async def steps(pilot: Any) -> None:
            for shape in ((1, 1), (10, 3), (120, 36), (80, 24), (160, 50)):
                await pilot.resize_terminal(*shape)
                await pilot.press("right_square_bracket", "down")
            assert at_k.view.query_one(Heatmap).region.area
            assert at_k.view.query_one(CurvePane).region.area

        at_k.use(steps)

    def test_ascii_draws_ascii(self, measured: Path) -> None:
        opened = Opened(Spectra.load(measured))
        opened.app = VLoRAApp(session=opened.session, ascii_only=True)

        async def steps(pilot: Any) -> None:
            await pilot.press("p", "right_square_bracket")
            await opened.settled(pilot)
            for pane in (CurvePane, Heatmap, FiguresPane):
                assert opened.text(pane).isascii(), pane
                assert str(opened.view.query_one(pane).border_title).isascii()

        opened.use(steps)


def test_a_pane_can_be_maximised_and_keeps_its_keys(at_k: Opened) -> None:
    async def steps(pilot: Any) -> None:
        at_k.view.query_one(CurvePane).focus()
        await pilot.press("z")
        assert at_k.view.query_one(CurvePane).region.width >= 118
        await pilot.press("right_square_bracket")
        assert at_k.goal == ("k", 4)
        await pilot.press("z")
        assert at_k.view.query_one(Heatmap).region.area

    at_k.use(steps)


class TestSmall:
    def test_the_figures_fit_the_width_and_scroll_to_their_last_word(self, at_k: Opened) -> None:
        async def steps(pilot: Any) -> None:
            await at_k.settled(pilot)
            await pilot.press("tab", "tab", "tab")
            await pilot.pause()
            pane = at_k.view.query_one(FiguresPane)
            assert pane.has_focus
            head = at_k.text(FiguresPane).splitlines()[0]
            assert "mean" in head
            assert "worst" in head
            last = pane._text(pane.size.width).split("\n")[-1].plain
            assert last not in at_k.text(FiguresPane)
            await pilot.press(*["down"] * 20)
            await pilot.pause()
            assert last in at_k.text(FiguresPane)
            await pilot.press(*["up"] * 20)
            await pilot.pause()
            assert at_k.text(FiguresPane).splitlines()[0] == head

        at_k.use(steps, (40, 12))
