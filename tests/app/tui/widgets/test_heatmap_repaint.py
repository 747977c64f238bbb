"""A heat map paints the cells that changed, and no others."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from textual.app import App, ComposeResult
from textual.geometry import Region

from vlora_tui.tui.widgets.cell_grid import Legend
from vlora_tui.tui.widgets.heatmap import Cell, Heatmap, arrange

NAMES = [f"h.{i}.{kind}" for i in range(6) for kind in ("q", "k")]


class Shown(App[None]):
    def compose(self) -> ComposeResult:
        yield Heatmap()


def test_only_cells_that_changed_are_painted(monkeypatch: pytest.MonkeyPatch) -> None:
    async def steps() -> None:
        grid = arrange(NAMES)
        app = Shown()
        async with app.run_test(size=(40, 12)) as pilot:
            heatmap = app.query_one(Heatmap)
            cells = {name: Cell("10", 0.5) for name in NAMES}
            heatmap.show(grid, cells, NAMES[0])
            await pilot.pause()
            painted: list[Region] = []
            whole: list[bool] = []

            def refresh(*regions: Region, **_: Any) -> Heatmap:
                painted.extend(regions)
                whole.append(not regions)
                return heatmap

            monkeypatch.setattr(heatmap, "refresh", refresh)
            heatmap.show(arrange(NAMES), {**cells, "h.3.q": Cell("11", 0.6)}, NAMES[0])
            assert not any(whole)
            (region,) = painted
            assert region.y == 4  # below the head
            assert region.width <= heatmap.cell_width
            assert "11" in heatmap.render_line(4).text
            heatmap.show(grid, cells, NAMES[0], Legend("error %", (("1", 0.0), ("9", 1.0))))
            assert whole[-1]  # the legend takes a line

    asyncio.run(steps())
