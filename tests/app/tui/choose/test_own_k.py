"""Step 2: a layer with a k of its own."""

from __future__ import annotations

from typing import Any

import pytest

from tests.app.tui.choose.opened import BELOW, LAYER, Opened
from vlora_engine.compression_target import CompressionTarget
from vlora_tui.tui.choose.figures_pane import FiguresPane
from vlora_tui.tui.widgets.heatmap import Heatmap


class TestOwnK:
    @pytest.mark.parametrize("key", ["space", "enter"])
    def test_a_key_starts_it_and_the_same_keys_edit_it(self, at_k: Opened, key: str) -> None:
        async def steps(pilot: Any) -> None:
            await pilot.press("down", key, "right_square_bracket", "right_square_bracket")
            assert at_k.session.choosing.layers == {BELOW: 5}
            assert at_k.goal == ("k", 3)
            assert "5*" not in at_k.text(Heatmap)
            assert "*" in at_k.text(Heatmap)
            assert "k 5 for 1.c_attn alone" in at_k.text(FiguresPane)
            await pilot.press("equals_sign", "8", "enter")
            assert at_k.session.choosing.layers == {BELOW: 8}
            await pilot.press("escape", "right_square_bracket")
            assert at_k.session.choosing.layers == {BELOW: 9}
            assert at_k.goal == ("k", 4)
            choice = at_k.session.figures().choice
            assert choice is not None
            assert choice.k[BELOW] == (9, 9)
            assert choice.k[LAYER] == (4, 4)

        at_k.use(steps)

    def test_moving_on_ends_it(self, at_k: Opened) -> None:
        async def steps(pilot: Any) -> None:
            await pilot.press("space", "right_square_bracket", "down", "right_square_bracket")
            assert at_k.session.choosing == CompressionTarget(k=4, layers={LAYER: 5})

        at_k.use(steps)

    def test_backspace_clears_it(self, at_k: Opened) -> None:
        async def steps(pilot: Any) -> None:
            await pilot.press("space", "right_square_bracket", "backspace")
            assert at_k.session.choosing == CompressionTarget(k=3)
            await pilot.press("backspace")  # nothing to clear: it says so
            assert at_k.session.choosing == CompressionTarget(k=3)

        at_k.use(steps)
