"""The cells: how names become a grid, how moving and colours work."""

from __future__ import annotations

from typing import Any

import pytest
from textual.app import App, ComposeResult

from tests.app.tui.drive import run
from vlora_tui.tui.widgets.heatmap import ANSI, DARK, LIGHT, Cell, Heatmap, arrange, heat_style

NAMES = [
    f"model.layers.{block}.{module}"
    for block in range(32)
    for module in ("self_attn.q_proj", "self_attn.o_proj", "mlp.down_proj")
]


class One(App[None]):
    """A heatmap and nothing else."""

    def __init__(self, *, ascii_only: bool = False) -> None:
        super().__init__()
        self.focused_layers: list[str] = []
        self.heatmap = Heatmap(ascii_only=ascii_only)

    def compose(self) -> ComposeResult:
        yield self.heatmap

    def on_heatmap_focused(self, event: Heatmap.Focused) -> None:
        self.focused_layers.append(event.layer)

    def show(self, names: list[str], cells: dict[str, Cell] | None = None) -> None:
        known = {name: Cell(str(i), i / len(names)) for i, name in enumerate(names)}
        self.heatmap.show(arrange(names), known if cells is None else cells, names[0])

    def lines(self) -> list[str]:
        return [self.heatmap.render_line(y).text for y in range(self.heatmap.size.height)]


class TestArrange:
    def test_blocks_down_and_modules_across(self) -> None:
        grid = arrange(NAMES)
        assert grid.rows == tuple(str(i) for i in range(32))
        assert grid.columns == ("q_proj", "o_proj", "down_proj")
        assert grid.names[3][1] == "model.layers.3.self_attn.o_proj"
        assert grid.find(NAMES[7]) == (2, 1)

    def test_modules_alike_in_their_last_part_keep_more_of_it(self) -> None:
        grid = arrange(["h.0.attn.c_attn", "h.0.attn.c_proj", "h.0.mlp.c_proj"])
        assert grid.columns == ("c_attn", "attn.c_proj", "mlp.c_proj")

    def test_a_block_may_lack_a_module(self) -> None:
        grid = arrange(["h.0.a", "h.0.b", "h.1.b"])
        assert grid.names == (("h.0.a", "h.0.b"), (None, "h.1.b"))

    def test_two_towers_that_count_alike_stay_apart(self) -> None:
        grid = arrange(["encoder.block.0.q", "decoder.block.0.q"])
        assert len(grid.rows) == 2
        assert len(set(grid.rows)) == 2

    def test_names_without_a_number_have_a_row_too(self) -> None:
        grid = arrange(["lm_head", "h.0.q"])
        assert {name for row in grid.names for name in row if name} == {"lm_head", "h.0.q"}

    def test_no_layers(self) -> None:
        assert arrange([]).rows == ()


@pytest.mark.parametrize("ramp", [DARK, LIGHT])
def test_heat_is_lighter_or_darker_step_by_step(ramp: tuple[str, ...]) -> None:
    def light(colour: str) -> float:
        red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    steps = [light(colour) for colour in ramp]
    assert steps in (sorted(steps), sorted(steps, reverse=True))
    levels = {0x00, 0x5F, 0x87, 0xAF, 0xD7, 0xFF}
    for colour in ramp:
        parts = {int(colour[i : i + 2], 16) for i in (1, 3, 5)}
        assert parts <= levels or len(parts) == 1, f"{colour} is none of the 256"


def test_sixteen_colours_need_no_others() -> None:
    names = {heat_style(i / 20, dark=True, ansi=True).bgcolor for i in range(21)}
    assert len(names) == len(ANSI)
    for colour in names - {None}:
        assert colour is not None
        assert colour.number is not None
        assert colour.number < 16


def test_numbers_stand_in_the_cells_and_the_cursor_shows_without_colour() -> None:
    app = One(ascii_only=True)

    async def steps(pilot: Any) -> None:
        app.show(NAMES[:6], {NAMES[0]: Cell("31", 1.0, own=True), NAMES[1]: Cell("7", 0.0)})
        await pilot.pause()
        lines = app.lines()
        assert "q_proj" in lines[0]
        assert "[31*]" in lines[1]
        assert " 7 " in lines[1]
        assert lines[1].rstrip().endswith(".")  # not measured yet
        assert all(line.isascii() for line in lines)

    run(app, steps, (60, 10))


def test_moving_focuses_layers_and_scrolls() -> None:
    app = One()

    async def steps(pilot: Any) -> None:
        app.show(NAMES)
        app.heatmap.focus()
        await pilot.press("down", "right", "j", "l")
        assert app.heatmap.focused_layer == "model.layers.2.mlp.down_proj"
        assert app.focused_layers[-1] == "model.layers.2.mlp.down_proj"
        await pilot.press("G")
        assert app.heatmap.focused_layer == "model.layers.31.mlp.down_proj"
        assert app.lines()[-1].startswith(" 31") or "31 " in app.lines()[-1]
        await pilot.press("g", "left", "left", "left")
        assert app.heatmap.focused_layer == NAMES[0]

    run(app, steps, (60, 12))


def test_moving_steps_over_what_is_not_there() -> None:
    app = One()

    async def steps(pilot: Any) -> None:
        app.show(["h.0.a", "h.0.b", "h.1.b", "h.2.a"])
        app.heatmap.focus()
        await pilot.press("down")
        assert app.heatmap.focused_layer == "h.2.a"

    run(app, steps, (40, 8))


def test_a_click_focuses_the_layer_under_it() -> None:
    app = One()

    async def steps(pilot: Any) -> None:
        app.show(NAMES)
        await pilot.pause()
        name = "model.layers.4.self_attn.o_proj"
        y, x = app.heatmap.grid.find(name) or (-1, -1)
        place = (app.heatmap.label_width + x * app.heatmap.cell_width + 1, y + 1)
        await pilot.click(app.heatmap, offset=place)
        assert app.heatmap.focused_layer == "model.layers.4.self_attn.o_proj"

    run(app, steps, (60, 12))


@pytest.mark.parametrize("size", [(1, 1), (4, 2), (20, 3)])
def test_no_size_is_too_small(size: tuple[int, int]) -> None:
    app = One()

    async def steps(pilot: Any) -> None:
        app.show(NAMES)
        app.heatmap.focus()
        await pilot.press("down", "right", "pagedown", "G")
        app.lines()

    run(app, steps, size)
