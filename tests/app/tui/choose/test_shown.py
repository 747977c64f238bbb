"""Step 2: exact figures, pins, the filter, names from files."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.app.tui.choose.opened import LAYER, Opened
from vlora_engine.catalog.open import open_adapter
from vlora_engine.compress.build import build_subspace
from vlora_engine.compression_target import CompressionTarget
from vlora_engine.spectra.choose import choose
from vlora_engine.spectra.tables import Spectra
from vlora_tui.tui.choose.curve_pane import CurvePane
from vlora_tui.tui.choose.data import LayerTables, Shown
from vlora_tui.tui.choose.figures_pane import FiguresPane
from vlora_tui.tui.widgets.heatmap import Heatmap
from vlora_tui.utils.formatting import percent


class TestWhatIsShown:
    def test_figures_are_those_of_the_surface(self, at_k: Opened) -> None:
        async def steps(pilot: Any) -> None:
            assert at_k.session.spectra is not None
            for method in ("delta", "columns", "flat"):
                own = choose(at_k.session.spectra, CompressionTarget(method, k=3)).prediction
                text = at_k.text(FiguresPane)
                for figure in (own.mean_error, own.max_error):
                    assert percent(figure) in text
                assert own.worst_task in text
                await pilot.press("m")
                await at_k.settled(pilot)

        at_k.use(steps)

    def test_other_methods_stand_beside_it_at_the_same_error(self, screen: Opened) -> None:
        async def steps(pilot: Any) -> None:
            await screen.settled(pilot)
            sheet = screen.view.query_one(FiguresPane).sheet
            rivals = [row for row in sheet.rows if row.rival]
            assert [row.choosing.method for row in rivals] == ["columns", "flat"]
            now = screen.session.figures().choice
            assert now is not None
            for row in rivals:
                alone = choose(
                    screen.session.spectra,
                    CompressionTarget(
                        row.choosing.method,
                        max_error=float(f"{now.prediction.max_error:.4g}"),
                        dtype="fp16",
                    ),
                )
                assert row.figures.choice.prediction == alone.prediction
                assert alone.prediction.max_error <= 1.001 * now.prediction.max_error

        screen.use(steps)

    def test_marks_are_what_a_variance_target_would_choose(self, at_k: Opened) -> None:
        async def steps(pilot: Any) -> None:
            assert at_k.session.spectra is not None
            for share, k in at_k.view.query_one(FiguresPane).sheet.levels:
                chosen = choose(at_k.session.spectra, CompressionTarget(variance=share))
                assert {max(pair) for pair in chosen.k.values()} == {k}

        at_k.use(steps)

    def test_from_the_break_even_on_it_is_larger_than_the_originals(self, at_k: Opened) -> None:
        async def steps(pilot: Any) -> None:
            spectra, dear = at_k.session.spectra, at_k.view.query_one(FiguresPane).sheet.dear
            assert spectra is not None
            assert dear is not None
            assert choose(spectra, CompressionTarget(k=dear)).prediction.ratio <= 1
            assert choose(spectra, CompressionTarget(k=dear - 1)).prediction.ratio > 1
            assert "larger" in at_k.text(CurvePane)

        at_k.use(steps)

    def test_cells_show_k_for_a_share_then_errors_then_the_choice(self, at_k: Opened) -> None:
        async def steps(pilot: Any) -> None:
            spectra = at_k.session.spectra
            assert spectra is not None
            k, share = spectra.variance(LAYER, "delta")
            needed = int(k[np.flatnonzero(share >= 0.99)[0]])
            assert f"[{needed}]" in at_k.text(Heatmap)
            await pilot.press("t")
            choice = at_k.session.figures().choice
            assert choice is not None
            error = 100 * choice.prediction.layer_errors[LAYER]
            shown = f"[{error:.1f}]" if error < 9.95 else f"[{error:.0f}]"
            assert shown in at_k.text(Heatmap)
            await pilot.press("t")
            assert "[3]" in at_k.text(Heatmap)
            await pilot.press("T")
            assert "90 %" in str(at_k.view.query_one(Heatmap).border_title)

        at_k.use(steps)

    def test_a_side_alone_needs_no_more_than_both(self, at_k: Opened) -> None:
        spectra = at_k.session.spectra
        assert spectra is not None
        tables = LayerTables(spectra, (0, 0))
        for method, layer in itertools.product(("delta", "columns"), spectra.layer_names):
            target = CompressionTarget(method)
            needs = {
                side: float(tables.cells(Shown(side=side), target, None)[1][layer].text)
                for side in ("both", "a", "b")
            }
            assert max(needs["a"], needs["b"]) <= needs["both"]

    def test_sides_by_key(self, at_k: Opened) -> None:
        async def steps(pilot: Any) -> None:
            await pilot.press("s")
            assert "side A" in str(at_k.view.query_one(CurvePane).border_title)
            await pilot.press("s")
            assert "side B" in str(at_k.view.query_one(Heatmap).border_title)
            await pilot.press("s", "m", "m", "s")  # flat has no sides
            assert at_k.session.choosing.method in ("flat", "columns")

        at_k.use(steps)

    def test_the_filter_narrows_curve_and_cells(self, at_k: Opened) -> None:
        async def steps(pilot: Any) -> None:
            at_k.view.open_filter()
            await pilot.press(*"c_proj", "enter")
            assert "c_attn" not in at_k.text(Heatmap)
            assert "median of 2 modules" in at_k.text(CurvePane)
            assert str(at_k.view.editor.shown.layer).endswith("c_proj")
            await pilot.press("escape")
            assert "c_attn" in at_k.text(Heatmap)

        at_k.use(steps)

    def test_pins_stand_beside_the_choice(self, at_k: Opened) -> None:
        async def steps(pilot: Any) -> None:
            for _ in range(4):
                await pilot.press("p", "right_square_bracket")
            await at_k.settled(pilot)
            assert len(at_k.session.pins) == 3
            text = at_k.text(FiguresPane)
            assert "pin 1" in text
            assert "pin 3" in text
            assert "all 4 modules differ" in text
            await pilot.press("tab", "down", "enter")  # the figures, the first pin
            assert at_k.goal == ("k", 3)
            assert "same k everywhere" in at_k.text(FiguresPane)
            await pilot.press("p")
            assert len(at_k.session.pins) == 2

        at_k.use(steps)

    def test_it_says_when_sharing_does_not_pay(self, at_k: Opened) -> None:
        async def steps(pilot: Any) -> None:
            await pilot.press("right_curly_bracket", "right_curly_bracket")
            await at_k.settled(pilot)
            figures = at_k.session.figures().choice
            assert figures is not None
            assert figures.prediction.codec_ratio < 1
            assert "does not pay" in at_k.text(FiguresPane)

        at_k.use(steps)

    def test_what_is_shown_is_what_a_build_reports(
        self, at_k: Opened, adapters: list[Path], tmp_path: Path
    ) -> None:
        async def steps(pilot: Any) -> None:
            await pilot.press("right_square_bracket", "space", "right_square_bracket", "space")

        at_k.use(steps)
        choosing = at_k.session.choosing
        assert choosing.layers
        shown = at_k.session.figures().choice
        assert shown is not None
        report = build_subspace(
            {path.name: open_adapter(path) for path in adapters},
            tmp_path / "out",
            targets=choosing,
        )
        assert report.mean_error == pytest.approx(shown.prediction.mean_error, rel=1e-3)
        assert report.max_error == pytest.approx(shown.prediction.max_error, rel=1e-3)
        assert report.worst_task == shown.prediction.worst_task
        assert report.nbytes == pytest.approx(shown.prediction.nbytes, rel=0.1)


def test_names_from_files_draw_nothing_but_themselves(measured: Path) -> None:
    spectra = Spectra.load(measured)
    evil = "transformer.h.0.\x1b[31m[red]x"
    spectra.layers[evil] = replace(spectra.layers.pop(LAYER), name=evil)
    spectra.layer_names = [evil if name == LAYER else name for name in spectra.layer_names]
    spectra.tasks = [replace(task, name=f"[b]{task.name}\x1b[2J") for task in spectra.tasks]
    opened = Opened(spectra, k=3)

    async def steps(pilot: Any) -> None:
        for key in ("t", "p", "right_square_bracket", "tab", "down"):
            await pilot.press(key)
        await opened.settled(pilot)
        for pane in (CurvePane, Heatmap, FiguresPane):
            widget = opened.view.query_one(pane)
            assert "\x1b" not in opened.text(pane)
            assert "\x1b" not in str(widget.border_title) + str(widget.border_subtitle)
        assert "[b]task" in opened.text(FiguresPane)

    opened.use(steps)


def test_rows_can_be_copied(at_k: Opened) -> None:
    async def steps(pilot: Any) -> None:
        assert "0.c_attn" in str(at_k.view.row_text())
        await pilot.press("tab")
        assert "delta, k 3" in str(at_k.view.row_text())

    at_k.use(steps)


def test_a_method_with_fewer_k_than_a_pin_draws(screen: Opened) -> None:
    async def steps(pilot: Any) -> None:
        await pilot.press("p", "m", "m", "x", "s")
        await screen.settled(pilot)
        assert screen.session.choosing.method == "flat"
        assert "another method" in screen.text(FiguresPane)

    screen.use(steps)
