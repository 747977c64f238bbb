"""Step 2: curves of size against error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.app.tui.choose.opened import Opened
from vlora_engine.compression_target import CompressionTarget
from vlora_engine.spectra.tables import Spectra
from vlora_tui.pipeline.forecast import Coded
from vlora_tui.tui.charts.size_plot import MARKS
from vlora_tui.tui.choose.curve_pane import SizesPane
from vlora_tui.tui.choose.sizes import Sizes


class TestCurves:
    def test_every_method_has_its_curve_and_its_mark(self, screen: Opened) -> None:
        async def steps(pilot: Any) -> None:
            await pilot.press("S")
            await screen.settled(pilot)
            pane = screen.view.query_one(SizesPane)
            lines = {line.method: line for line in pane.data.lines}
            assert lines.keys() == MARKS.keys()
            assert [name for name, _, _ in pane.data.points] == ["int8", "nf4"]
            text = screen.text(SizesPane)
            assert all(f"{mark} {method}" in text for method, mark in MARKS.items())
            sizes = screen.view.figures.sizes
            for ratio in (3.0, 4.0, 6.0):
                one, own = (
                    sizes.estimate(
                        CompressionTarget(m, budget=int(sizes.outlook.factor_bytes / ratio))
                    )
                    for m in ("auto", "own")
                )
                assert one.prediction.mean_error < 0.9 * own.prediction.mean_error

        screen.use(steps)

    def test_the_choice_is_marked_where_it_lies(self, screen: Opened) -> None:
        async def steps(pilot: Any) -> None:
            await pilot.press("S")
            for _ in range(3):
                await screen.settled(pilot)
                own = screen.session.figures().prediction
                marks = screen.view.query_one(SizesPane).marks
                assert (marks.ratio, marks.error) == (own.codec_ratio, own.mean_error)
                assert f"{own.codec_ratio:.3g}x" in screen.text(SizesPane)
                assert screen.session.choosing.method in screen.text(SizesPane)
                await pilot.press("m")
            await pilot.press("t")
            await screen.settled(pilot)
            worst = screen.session.figures().prediction.max_error
            assert screen.view.query_one(SizesPane).marks.error == worst
            assert "worst adapter" in str(screen.view.query_one(SizesPane).border_title)

        screen.use(steps)

    def test_arrows_move_the_target_along_the_curve(self, auto: Opened) -> None:
        async def steps(pilot: Any) -> None:
            await pilot.press("S")
            await auto.settled(pilot)
            places = []
            for _ in range(4):
                await pilot.press("right")
                places.append(auto.view.query_one(SizesPane).marks.ratio)  # at once, unsolved
            assert places == sorted(set(places))
            assert auto.goal == ("max_error", 0.08)
            await pilot.press("left", "down", "up")
            assert auto.goal == ("max_error", 0.07)
            await auto.settled(pilot)
            assert auto.session.cached_figures().coded is not None

        auto.use(steps)

    def test_arrows_move_k_where_there_is_one(self, measured: Path) -> None:
        opened = Opened(Spectra.load(measured), k=5)

        async def steps(pilot: Any) -> None:
            await pilot.press("S", "right", "right", "left")
            assert opened.goal == ("k", 4)

        opened.use(steps)

    @pytest.mark.parametrize("method", ["auto", "own"])
    @pytest.mark.parametrize(
        "goal",
        [("max_error", 0.04), ("mean_error", 0.1), ("variance", 0.98), ("budget", 30_000.0)],
        ids=lambda goal: goal[0],
    )
    def test_what_is_told_at_once_is_near_what_is_solved(
        self, measured: Path, method: str, goal: tuple[str, float]
    ) -> None:
        spectra = Spectra.load(measured)
        sizes = Sizes(spectra, (0, 0))
        choosing = CompressionTarget(method).with_goal(*goal)
        assert sizes.estimate(choosing) is None
        sizes.read()
        calls = iter(range(1000))
        while sizes.work(lambda: next(calls) % 3 == 0):  # put off again and again
            pass
        about = sizes.estimate(choosing).prediction
        exact = Coded.of(spectra.outlook(), choosing).prediction
        assert about.nbytes == pytest.approx(exact.nbytes, rel=0.05)
        assert about.mean_error == pytest.approx(exact.mean_error, rel=0.05)
        assert about.max_error == pytest.approx(exact.max_error, rel=0.15)

    def test_no_key_waits_for_a_solution(
        self, auto: Opened, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import threading

        async def steps(pilot: Any) -> None:
            await pilot.press("S")
            await auto.settled(pilot)
            solved_in = []
            plain = Coded.of.__func__  # type: ignore[attr-defined]

            def watched(cls: Any, *arguments: Any) -> Coded:
                solved_in.append(threading.current_thread())
                return plain(cls, *arguments)

            monkeypatch.setattr(Coded, "of", classmethod(watched))
            await pilot.press("right", "right", "m", "p", "u", "S", "S")
            await auto.settled(pilot)
            assert solved_in
            assert threading.main_thread() not in solved_in

        auto.use(steps)
