"""Step 2: what coding costs, told from the layers that are there."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.app.tui.choose.opened import Opened
from vlora_engine.codec.forecast import save_own_table
from vlora_engine.compression_target import CompressionTarget
from vlora_engine.spectra.choose import choose
from vlora_engine.spectra.tables import (
    Spectra,
    layer_file,
    own_file,
    rate_tables_file,
    write_layer,
)
from vlora_tui.tui.choose.advice import AdvicePane
from vlora_tui.tui.choose.curve_pane import CurvePane
from vlora_tui.tui.choose.figures_pane import FiguresPane
from vlora_tui.tui.core.messages import SpectraChanged
from vlora_tui.utils.formatting import size


class TestArriving:
    """While adapters are measured, what coding costs is told from the layers that are there."""

    @pytest.fixture
    def under_way(self, measured: Path, tmp_path: Path) -> tuple[Opened, Callable[[int], None]]:
        """Spectra of two of four layers, and what has more of them arrive."""
        folder = Path(shutil.copytree(measured, tmp_path / "partial"))
        whole = Spectra.load(measured)
        rate_tables_file(folder).unlink()
        for i in range(4):
            layer_file(folder, i).unlink()
        opened = Opened(None, method="auto", max_error=0.05)

        def arrive(i: int) -> None:
            rate_tables = whole.rate_tables()
            save_own_table(own_file(folder, i), rate_tables.layers[i])
            table = whole.layers[whole.layer_names[i]]
            write_layer(folder, i, replace(table, methods={"delta": table.methods["delta"]}))

        arrive(0)
        arrive(1)
        opened.session.set_spectra(Spectra.load(folder))
        return opened, arrive

    def test_half_of_the_layers_draw_the_curve_and_the_advice(
        self,
        under_way: tuple[Opened, Callable[[int], None]],
        measured: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        opened, arrive = under_way
        whole = Spectra.load(measured)

        async def steps(pilot: Any) -> None:
            view, spectra = opened.view, opened.session.spectra
            curve, advice = view.query_one(CurvePane), view.query_one(AdvicePane)
            assert curve.data.in_bytes
            assert (curve.data.layers, curve.data.expected) == (2, 4)
            assert "median of 2 of 4 modules" in opened.text(CurvePane)
            first = advice.plain().split("\n")[0]
            assert "auto, worst 5 %: ~" in first
            assert "smaller than the originals  from 2 of 4 modules" in first
            assert "[ w Build ]" in first
            sheet = view.query_one(FiguresPane).sheet  # other methods, from these layers
            assert [row.choosing.method for row in sheet.rows if row.rival] == ["delta", "own"]
            (delta,) = (row.figures for row in sheet.rows if row.choosing.method == "delta")
            told = choose(whole, CompressionTarget("delta", max_error=0.05)).prediction
            assert delta.prediction.nbytes == pytest.approx(told.nbytes, rel=0.25)
            (line,) = (t for t in opened.text(FiguresPane).split("\n") if " delta " in t)
            assert f"~{size(delta.prediction.nbytes)}" in line
            assert "from 2 of 4 modules" in opened.text(FiguresPane)
            before = curve.marks.k
            exact = whole.rate_tables().solve(CompressionTarget("own", max_error=0.05))
            assert before == pytest.approx(whole.rate_tables().nbytes(exact), rel=0.25)
            await pilot.press("right_square_bracket")
            assert opened.goal == ("max_error", 0.045)
            assert curve.marks.k > before
            assert advice.plain().split("\n")[0] != first
            await pilot.press("m", "m")  # a basis: k, and bytes of all layers
            await opened.settled(pilot)
            assert opened.session.choosing.method == "delta"
            assert not curve.data.in_bytes
            told = choose(whole, CompressionTarget("delta", max_error=0.045)).prediction.nbytes
            so_far = opened.session.figures().prediction.nbytes
            assert so_far == pytest.approx(told, rel=0.25)
            await pilot.press("u", "u", "u")
            await opened.settled(pilot)
            places = [w.region for w in view.walk_children() if w.id is not None]
            drawn: list[bool] = []
            show = curve.show

            def shown(data: Any, marks: Any) -> None:
                drawn.append(data.in_bytes)
                show(data, marks)

            monkeypatch.setattr(curve, "show", shown)
            for i in (2, 3):
                arrive(i)
                assert spectra.refresh()
                opened.session.set_spectra(spectra)  # as the client of the jobs does each time
                opened.app.post_message(SpectraChanged())
                await opened.settled(pilot)
                assert [w.region for w in view.walk_children() if w.id is not None] == places
            assert curve.data.layers == 4
            assert "sharing not measured yet" in advice.plain()
            assert "~" in advice.plain().split("\n")[0]
            whole.rate_tables().save(rate_tables_file(spectra.path))
            assert spectra.refresh()
            opened.session.set_spectra(spectra)
            opened.app.post_message(SpectraChanged())
            await opened.settled(pilot)
            assert [w.region for w in view.walk_children() if w.id is not None] == places
            assert drawn  # the old curve stays until there is a new one
            assert all(drawn)
            exact = whole.rate_tables().solve(CompressionTarget("auto", max_error=0.05))
            nbytes = size(whole.rate_tables().nbytes(exact))
            assert f"auto, worst 5 %: {nbytes}, " in advice.plain()

        opened.use(steps)

    def test_methods_that_come_last_change_nothing_but_their_rows(
        self, under_way: tuple[Opened, Callable[[int], None]], measured: Path
    ) -> None:
        opened, arrive = under_way
        whole = Spectra.load(measured)
        arrive(2)
        arrive(3)
        spectra = opened.session.spectra
        whole.rate_tables().save(rate_tables_file(spectra.path))
        spectra.refresh()

        async def steps(pilot: Any) -> None:
            await opened.settled(pilot)
            assert opened.session.methods == ["delta", "auto", "own"]
            sheet = opened.view.query_one(FiguresPane).sheet
            assert [row.choosing.method for row in sheet.rows if row.rival] == ["delta", "own"]
            now = opened.session.cached_figures()
            for i, name in enumerate(whole.layer_names):
                write_layer(spectra.path, i, whole.layers[name])
                spectra.refresh()
                assert opened.session.cached_figures() is now  # nothing is worked out again
            opened.app.post_message(SpectraChanged())
            await opened.settled(pilot)
            sheet = opened.view.query_one(FiguresPane).sheet
            methods = [row.choosing.method for row in sheet.rows if row.rival]
            assert methods == ["delta", "own", "columns", "flat"]
            assert opened.session.cached_figures() is now

        opened.use(steps)
