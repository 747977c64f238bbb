"""Step 2: auto and own against bytes, from key to key."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.app.tui.choose.coded.collection import FAMILY, related
from tests.app.tui.choose.coded.shown import said, sharing
from tests.app.tui.choose.opened import Opened
from vlora_engine.catalog.open import open_adapter
from vlora_engine.compress.measure import compute_spectra
from vlora_engine.compression_target import CompressionTarget
from vlora_engine.spectra.choose import choose
from vlora_engine.spectra.tables import Spectra
from vlora_tui.recipe.model import AdapterInput, Input
from vlora_tui.recipe.reader import parse_recipe
from vlora_tui.tui.choose.advice import AdvicePane
from vlora_tui.tui.choose.curve_pane import CurvePane
from vlora_tui.tui.choose.figures_pane import FiguresPane
from vlora_tui.tui.widgets.heatmap import Heatmap
from vlora_tui.utils.formatting import percent, size


class TestMethods:
    def test_auto_is_one_key_away_at_the_error_of_the_k_that_was_chosen(
        self, measured: Path
    ) -> None:
        opened = Opened(Spectra.load(measured), k=12, quantize="nf4")

        async def steps(pilot: Any) -> None:
            worst = opened.session.figures().prediction.max_error
            await pilot.press("m")
            assert opened.session.choosing.method == "auto"
            assert opened.goal[0] == "max_error"
            assert opened.goal[1] == pytest.approx(worst, rel=0.05)
            assert opened.session.choosing.quantize == "none"
            assert not opened.session.choosing.layers
            await opened.settled(pilot)
            methods = ["auto"]
            for _ in range(4):
                await pilot.press("m")
                await opened.settled(pilot)
                assert opened.session.figures().problem is None
                methods.append(opened.session.choosing.method)
                if methods[-1] == "columns":  # what was chosen before coding is there again
                    assert opened.session.choosing == CompressionTarget(
                        "columns", k=12, quantize="nf4"
                    )
            assert methods == ["auto", "own", "columns", "flat", "delta"]

        opened.use(steps)

    def test_a_target_that_was_moved_meanwhile_is_kept(self, screen: Opened) -> None:
        async def steps(pilot: Any) -> None:
            await pilot.press("equals_sign", "4", "enter", "m", "e", "2", "0", "enter", "m", "m")
            assert screen.session.choosing == CompressionTarget("columns", max_error=0.2)

        screen.use(steps)

    def test_figures_are_those_of_the_tables(self, auto: Opened) -> None:
        async def steps(pilot: Any) -> None:
            rate_tables = auto.session.spectra.rate_tables()
            for method in ("auto", "own"):
                forecast = rate_tables.solve(CompressionTarget(method, max_error=0.05))
                text = auto.text(FiguresPane)
                assert f"~{percent(float(forecast.errors.mean()))}" in text
                assert f"~{size(rate_tables.nbytes(forecast))}" in text
                await pilot.press("m")
                await auto.settled(pilot)

        auto.use(steps)

    def test_beside_a_k_stands_what_auto_and_own_come_to_at_its_error(self, screen: Opened) -> None:
        async def steps(pilot: Any) -> None:
            await screen.settled(pilot)
            rate_tables = screen.session.spectra.rate_tables()
            now = screen.session.figures().prediction
            error, text = float(f"{now.max_error:.4g}"), screen.text(FiguresPane)
            for method in ("auto", "own"):
                forecast = rate_tables.solve(CompressionTarget(method, max_error=error))
                assert f"~{size(rate_tables.nbytes(forecast))}" in text
            auto = rate_tables.nbytes(rate_tables.solve(CompressionTarget("auto", max_error=error)))
            assert (
                f"auto reaches {percent(now.max_error)} in {size(auto)} instead of "
                f"{size(now.nbytes)} (m)."
            ) in " ".join(text.split())

        screen.use(steps)

    def test_it_says_so_where_sharing_saves_nothing(self, tmp_path: Path) -> None:
        paths = related(tmp_path / "in")[len(FAMILY) :]
        compute_spectra({p.name: open_adapter(p) for p in paths}, tmp_path / "out", codec=True)
        opened = Opened(Spectra.load(tmp_path / "out"), method="delta", max_error=0.2)

        async def steps(pilot: Any) -> None:
            await opened.settled(pilot)
            text = " ".join(opened.text(FiguresPane).replace("│", " ").split())
            assert "Sharing saves nothing on this collection." in text
            await pilot.press("m", "tab", "tab")
            await opened.settled(pilot)
            assert "Sharing saves nothing at this error" in sharing(opened)

        opened.use(steps)

    @pytest.mark.parametrize("key", ["d", "space", "s", "T"])
    def test_keys_about_k_say_that_there_is_none(self, auto: Opened, key: str) -> None:
        async def steps(pilot: Any) -> None:
            words, before = said(auto), auto.session.choosing
            await pilot.press(key)
            assert len(words) == 1
            assert "auto" in words[0]
            assert auto.session.choosing == before

        auto.use(steps)

    def test_brackets_move_the_target_and_undo_takes_it_back(self, auto: Opened) -> None:
        async def steps(pilot: Any) -> None:
            await pilot.press("left_square_bracket")
            assert auto.goal == ("max_error", 0.055)
            await pilot.press("right_square_bracket", "right_square_bracket")
            assert auto.goal == ("max_error", 0.045)
            await pilot.press("left_curly_bracket")
            assert auto.goal == ("max_error", 0.07)
            await pilot.press("u", "u", "u", "u")
            assert auto.goal == ("max_error", 0.05)

        auto.use(steps)

    def test_the_plot_is_explained_variance_against_bytes(self, auto: Opened) -> None:
        async def steps(pilot: Any) -> None:
            await auto.settled(pilot)
            curve = auto.view.query_one(CurvePane)
            assert "auto, against bytes" in str(curve.border_title)
            data, rate_tables = curve.data, auto.session.spectra.rate_tables()
            assert data.in_bytes
            assert data.layers == 4
            # The band at one size is that of the forecast with this size, layer by layer.
            forecast = rate_tables.at("auto", 2.0**-8)
            shares = np.sort(forecast.layer_shares)
            at = np.interp(rate_tables.nbytes(forecast), data.k, data.low)
            assert at == pytest.approx(shares[0], abs=0.002)
            at = np.interp(rate_tables.nbytes(forecast), data.k, data.median)
            assert at == pytest.approx(np.median(shares), abs=0.002)
            now = auto.session.figures().prediction
            assert curve.marks.k == now.nbytes
            assert size(now.nbytes) in auto.text(CurvePane)
            kinds = auto.session.figures().coded.kinds
            await pilot.press("t")
            text = auto.text(Heatmap)
            for kind in {"+".join(own) or "alone" for own in kinds.values()}:
                assert kind in text

        auto.use(steps)

    def test_nothing_but_a_key_brings_another_picture(self, auto: Opened) -> None:
        async def steps(pilot: Any) -> None:
            curve = auto.view.query_one(CurvePane)
            for key in ("m", "S", "right_square_bracket", "m", "m", "m", "S", "e"):
                region = curve.region
                await pilot.press(key)
                await auto.settled(pilot)
                assert curve.region == region
                assert "Explained variance" in str(curve.border_title)
            await pilot.press("escape")

        auto.use(steps)

    def test_a_key_leads_from_auto_to_the_k_that_reaches_its_error(self, auto: Opened) -> None:
        async def steps(pilot: Any) -> None:
            await auto.settled(pilot)
            error = auto.session.figures().prediction.max_error
            await pilot.press("equals_sign")
            await auto.settled(pilot)
            now, figures = auto.session.choosing, auto.session.figures()
            assert (now.method, now.goal[0], now.dtype) == ("delta", "k", "fp16")
            aim = CompressionTarget("delta", max_error=float(f"{error:.4g}"))
            exact = choose(auto.session.spectra, aim)
            assert figures.choice.k == exact.k
            assert figures.prediction == exact.prediction
            assert len(set(exact.k.values())) > 1  # one k for all would take more bytes
            flat = [
                auto.session.figures(CompressionTarget("delta", k=k, dtype="fp16")).prediction
                for k in range(1, auto.view.figures.tables.top("delta") + 1)
            ]
            least = min(f.nbytes for f in flat if f.max_error <= error)
            assert figures.prediction.nbytes < least
            assert f"k {now.k_range[0]}-{now.k_range[1]} " in auto.text(AdvicePane)
            await pilot.press("left_square_bracket")
            fewer = auto.session.figures()
            assert fewer.prediction.nbytes < figures.prediction.nbytes
            assert fewer.choice.k == {
                name: tuple(max(1, k - 1) for k in pair) for name, pair in exact.k.items()
            }
            await pilot.press("right_square_bracket")
            assert auto.session.choosing == now
            await pilot.press("n")  # a target: the k of every layer is chosen anew
            assert auto.session.choosing == CompressionTarget("delta", max_error=0.05, dtype="fp16")
            await pilot.press("u", "m")
            assert auto.session.choosing.method == "auto"

        auto.use(steps)

    def test_k_by_layer_stops_at_its_limits_and_comes_back_in_step(self, auto: Opened) -> None:
        async def steps(pilot: Any) -> None:
            await auto.settled(pilot)
            await pilot.press("equals_sign")
            await auto.settled(pilot)
            tables, start = auto.view.figures.tables, auto.session.choosing
            limits = {name: tables.layer_limits(name, "delta") for name in start.layers}
            one = dict.fromkeys(limits, (1, 1))
            for step, end in ((-1, one), (1, limits)):
                seen = [start]
                while True:
                    auto.view.action_k(step)
                    if auto.session.choosing == seen[-1]:
                        break
                    seen.append(auto.session.choosing)
                assert auto.session.figures().choice.k == end
                for before in seen[-2::-1]:
                    auto.view.action_k(-step)
                    assert auto.session.choosing == before

        auto.use(steps)

    def test_dtype_and_packing_stay_while_k_moves(self, auto: Opened) -> None:
        async def steps(pilot: Any) -> None:
            await auto.settled(pilot)
            await pilot.press("equals_sign")
            await auto.settled(pilot)
            by_layer = auto.session.choosing
            await pilot.press("c")
            await auto.asked(pilot)
            await auto.known(pilot)
            await pilot.press("4")
            await pilot.pause()
            assert auto.session.choosing == replace(by_layer, quantize="int4")
            worst = percent(auto.session.figures().prediction.max_error)
            assert f"worst ~{worst}" in auto.view.query_one(AdvicePane).plain()
            for key in ("right_square_bracket", "left_square_bracket", "left_curly_bracket"):
                await pilot.press(key)
                now = auto.session.choosing
                assert (now.quantize, now.dtype, now.goal[0]) == ("int4", "fp16", "k")
            recipe = replace(auto.session.recipe(), input=Input((AdapterInput("a"),)))
            assert parse_recipe(recipe.to_toml()).compress == recipe.compress

        auto.use(steps)

    def test_a_target_of_a_basis_is_kept_as_k_by_layer(self, measured: Path) -> None:
        opened = Opened(
            Spectra.load(measured), method="delta", max_error=0.2, dtype="fp16", quantize="int8"
        )

        async def steps(pilot: Any) -> None:
            await opened.settled(pilot)
            figures = opened.session.figures()
            await pilot.press("right_square_bracket")  # the target moves, as it was set
            assert opened.session.choosing == replace(figures.choosing, max_error=0.18)
            await pilot.press("u", "equals_sign", "enter")
            now = opened.session.choosing
            assert opened.session.figures().choice.k == figures.choice.k
            assert (now.goal[0], now.dtype, now.quantize) == ("k", "fp16", "int8")
            assert opened.session.figures().prediction == figures.prediction
            await pilot.press("equals_sign", "enter")  # nothing typed: it stays
            assert opened.session.choosing == now
            await pilot.press("equals_sign", "7", "enter")  # one k for all
            assert opened.session.choosing == CompressionTarget(
                "delta", k=7, dtype="fp16", quantize="int8"
            )

        opened.use(steps)

    def test_another_method_aims_at_the_error_of_a_k_by_layer(self, auto: Opened) -> None:
        async def steps(pilot: Any) -> None:
            await auto.settled(pilot)
            await pilot.press("equals_sign")
            await auto.settled(pilot)
            for _ in range(3):  # auto, own, columns
                await pilot.press("m")
            now = auto.session.choosing
            assert (now.method, now.goal, now.layers) == ("columns", ("max_error", 0.05), {})

        auto.use(steps)

    def test_presets_after_k_by_layer_tell_what_they_take(self, auto: Opened) -> None:
        async def steps(pilot: Any) -> None:
            await auto.settled(pilot)
            await pilot.press("equals_sign")
            await auto.settled(pilot)
            presets = auto.view.query_one(AdvicePane).advice.presets
            for preset in presets:
                target = CompressionTarget("delta", max_error=preset.error, dtype="fp16")
                assert preset.nbytes == choose(auto.session.spectra, target).prediction.nbytes

        auto.use(steps)

    def test_enter_opens_the_figures_of_a_layer_and_escape_closes_them(self, auto: Opened) -> None:
        async def steps(pilot: Any) -> None:
            await auto.settled(pilot)
            await pilot.press("enter")
            assert "96 x 160" in auto.text(FiguresPane)
            assert "of dW" in auto.text(FiguresPane)
            await pilot.press("escape")
            assert "96 x 160" not in auto.text(FiguresPane)

        auto.use(steps)

    def test_packing_a_coded_choice_goes_over_to_what_can_be_packed(self, auto: Opened) -> None:
        async def steps(pilot: Any) -> None:
            await auto.settled(pilot)
            await pilot.press("c")
            await auto.asked(pilot)
            await auto.known(pilot)
            assert "they go over to delta at the same target" in auto.asked_words()
            told = " ".join(" ".join(auto.screen_lines()).split())
            packed = auto.session.figures(
                CompressionTarget("delta", max_error=0.05, quantize="int8")
            ).prediction
            assert f"delta, int8 {size(packed.nbytes)}" in told
            await pilot.press("8")
            await pilot.pause()
            assert auto.session.choosing == CompressionTarget(
                "delta", max_error=0.05, quantize="int8"
            )

        auto.use(steps)
