"""Step 2: every key, exact figures, layers that arrive, small terminals."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from textual.events import Key

from tests.app.tui.drive import Steps, run, screen_lines
from tests.witnesses import make
from vlora_engine.catalog.open import open_adapter
from vlora_engine.catalog.scanner import scan
from vlora_engine.compress.build import build_subspace
from vlora_engine.compress.measure import compute_spectra
from vlora_engine.compression_target import CompressionTarget
from vlora_engine.spectra.choose import choose
from vlora_engine.spectra.tables import Spectra
from vlora_tui.tui.app.app import VLoRAApp
from vlora_tui.tui.choose import worker as choose_worker
from vlora_tui.tui.choose.advice import AdvicePane
from vlora_tui.tui.choose.curve_pane import CurvePane
from vlora_tui.tui.choose.data import LayerTables, Shown
from vlora_tui.tui.choose.figures_pane import FiguresPane
from vlora_tui.tui.choose.text import percent
from vlora_tui.tui.choose.view import ChooseView
from vlora_tui.tui.core.messages import SpectraChanged
from vlora_tui.tui.core.session import Session
from vlora_tui.tui.widgets.ask import AskLine
from vlora_tui.tui.widgets.dialogs import Ask, Option
from vlora_tui.tui.widgets.heatmap import Heatmap
from vlora_tui.utils.formatting import size

LAYER = "transformer.h.0.attn.c_attn"
TOP = 24  # six adapters of rank 4
BELOW = "transformer.h.1.attn.c_attn"


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return make.collection(tmp_path_factory.mktemp("adapters"), 6)


@pytest.fixture(scope="module")
def measured(adapters: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("spectra") / "spectra"
    compute_spectra({path.name: open_adapter(path) for path in adapters}, folder)
    return folder


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The other methods are worked out without waiting for quiet; a state of its own."""
    monkeypatch.setattr(choose_worker, "QUIET_SECONDS", 0.001)
    monkeypatch.setattr(choose_worker, "ARRIVING_SECONDS", 0.001)
    for name in ("STATE", "CONFIG", "CACHE", "DATA"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / name.lower()))


class Opened:
    """The screen with a session, and what a test asks of it."""

    def __init__(self, spectra: Spectra | None, **choosing: Any) -> None:
        target = CompressionTarget(**choosing) if choosing else CompressionTarget("delta")
        self.session = Session(choosing=target.checked())
        self.session.set_spectra(spectra)
        self.app = VLoRAApp(session=self.session)

    @property
    def view(self) -> ChooseView:
        assert isinstance(self.app.view, ChooseView)
        return self.app.view

    @property
    def goal(self) -> tuple[str, float]:
        return self.session.choosing.goal

    def text(self, pane: type[Any]) -> str:
        widget = self.view.query_one(pane)
        return "\n".join(widget.render_line(y).text for y in range(widget.size.height))

    def screen_lines(self) -> list[str]:
        return screen_lines(self.app)

    def asked_words(self) -> str:
        return str(self.app.screen.query_one(".words").render())

    async def asked(self, pilot: Any) -> None:
        """A dialog is there."""
        for _ in range(400):
            await pilot.pause()
            if isinstance(self.app.screen, Ask):
                return
            await asyncio.sleep(0.005)
        raise AssertionError("nothing is asked")

    async def settled(self, pilot: Any) -> None:
        """Nothing is worked out any more."""
        for _ in range(400):
            await pilot.pause()
            if not (
                self.view.figures._working
                or self.view.figures._quiet
                or self.view.figures._arriving
            ):
                return
            await asyncio.sleep(0)
        raise AssertionError("figures are still worked out")

    def use(self, steps: Callable[[Any], Any], size: tuple[int, int] = (120, 36)) -> None:
        async def opened(pilot: Any) -> None:
            await self.app.show_step("choose")
            await self.settled(pilot)
            await steps(pilot)

        wrapped: Steps = opened
        run(self.app, wrapped, size)


@pytest.fixture
def screen(measured: Path) -> Opened:
    return Opened(Spectra.load(measured))


@pytest.fixture
def at_k(measured: Path) -> Opened:
    return Opened(Spectra.load(measured), k=3)


class TestKeys:
    def test_brackets_move_k_whatever_has_focus(self, at_k: Opened) -> None:
        async def steps(pilot: Any) -> None:
            for pane in ("layers", "curve", "figures"):
                at_k.view.query_one(f"#{pane}").focus()
                before = at_k.goal[1]
                await pilot.press("right_square_bracket")
                assert at_k.goal == ("k", before + 1)
            await pilot.press("left_square_bracket")
            assert at_k.goal == ("k", 5)
            await pilot.press("right_curly_bracket")
            assert at_k.goal == ("k", 13)
            await pilot.press("right_curly_bracket", "right_curly_bracket")
            assert at_k.goal == ("k", TOP)
            await pilot.press("left_curly_bracket", "left_curly_bracket", "left_curly_bracket")
            assert at_k.goal == ("k", 1)

        at_k.use(steps)

    def test_keys_that_come_in_a_bunch_go_where_each_was_meant(self, at_k: Opened) -> None:
        async def steps(pilot: Any) -> None:
            for key, character in (("equals_sign", "="), ("1", "1"), ("2", "2"), ("enter", "\r")):
                at_k.app.post_message(Key(key, character))
            at_k.app.post_message(Key("right_square_bracket", "]"))
            await at_k.settled(pilot)
            assert at_k.goal == ("k", 13)  # 12 typed into the line, then one more
            assert at_k.app.view is at_k.view  # the 1 and the 2 did not go to other steps

        at_k.use(steps)

    def test_spectra_that_arrive_under_a_dialog_have_the_keys_once_it_is_closed(
        self, measured: Path, adapters: list[Path]
    ) -> None:
        opened = Opened(None)
        opened.session.add_found(scan([str(adapters[0].parent)]).adapters)

        async def steps(pilot: Any) -> None:
            assert opened.app.focused is None
            opened.app.push_screen(Ask("Bad adapters", "", [Option("x", "stop", "x")]))
            await pilot.pause()
            opened.session.set_spectra(Spectra.load(measured))
            opened.app.post_message(SpectraChanged())
            await opened.settled(pilot)
            await pilot.press("x")
            await opened.settled(pilot)
            assert opened.app.focused is opened.view.query_one(Heatmap)
            await pilot.press("space")
            assert opened.view.editor.shown.editing  # and no adapter of step 1 is marked
            assert not opened.session.marked

        opened.use(steps)

    def test_a_target_moves_by_one_step_and_all_else_stays(self, measured: Path) -> None:
        opened = Opened(Spectra.load(measured), method="delta", max_error=0.05, quantize="int8")

        async def steps(pilot: Any) -> None:
            before = opened.session.figures().choice
            await pilot.press("right_square_bracket")
            assert opened.session.choosing == CompressionTarget(
                "delta", max_error=0.045, quantize="int8"
            )
            await opened.settled(pilot)
            after = opened.session.figures().choice
            assert after.dtype == before.dtype
            assert 1 <= after.prediction.nbytes / before.prediction.nbytes < 1.15
            await pilot.press("left_square_bracket")
            assert opened.goal == ("max_error", 0.05)

        opened.use(steps)

    def test_every_k_moves_by_one_those_of_layers_too(self, measured: Path) -> None:
        opened = Opened(
            Spectra.load(measured),
            method="delta", k_a=6, k_b=9, layers={LAYER: 4}, dtype="fp16", quantize="nf4",
        )  # fmt: skip

        async def steps(pilot: Any) -> None:
            before = opened.session.figures().choice
            await pilot.press("right_square_bracket")
            after = opened.session.figures().choice
            assert after.dtype == before.dtype == "F16"
            assert opened.session.choosing.quantize == "nf4"
            assert after.k == {name: (a + 1, b + 1) for name, (a, b) in before.k.items()}
            await pilot.press("left_square_bracket")
            assert opened.session.figures().choice.k == before.k

        opened.use(steps)

    def test_a_k_that_is_typed_is_stored_as_the_target_was(self, screen: Opened) -> None:
        async def steps(pilot: Any) -> None:
            dtype = screen.session.figures().choice.dtype
            assert dtype == "F16"
            await pilot.press("equals_sign", "9", "enter")
            assert screen.goal == ("k", 9)
            assert screen.session.figures().choice.dtype == dtype

        screen.use(steps)

    @pytest.mark.parametrize(("key", "error"), [("f", 0.01), ("n", 0.05), ("r", 0.2)])
    def test_presets_are_a_key_each_and_told_with_their_bytes(
        self, at_k: Opened, key: str, error: float
    ) -> None:
        async def steps(pilot: Any) -> None:
            await at_k.settled(pilot)
            chosen = choose(at_k.session.spectra, CompressionTarget("delta", max_error=error))
            shown = f"{percent(error)}: {size(chosen.prediction.nbytes)}"
            assert shown in at_k.view.query_one(AdvicePane).plain()
            await pilot.press(key)
            assert at_k.session.choosing == CompressionTarget("delta", max_error=error)
            await at_k.settled(pilot)
            first, second = at_k.view.query_one(AdvicePane).plain().split("\n")
            assert f"delta, worst {percent(error)}: {size(chosen.prediction.nbytes)}, " in first
            assert f"{chosen.prediction.ratio:.3g}x smaller than the originals" in first
            assert f"{shown}]" in second

        at_k.use(steps)

    def test_arrows_in_the_curve_move_k_and_the_layer(self, at_k: Opened) -> None:
        async def steps(pilot: Any) -> None:
            at_k.view.query_one(CurvePane).focus()
            await pilot.press("right", "right", "left")
            assert at_k.goal == ("k", 4)
            await pilot.press("down")
            assert at_k.view.editor.shown.layer == BELOW

        at_k.use(steps)

    @pytest.mark.parametrize(
        ("keys", "goal"),
        [
            (("equals_sign", "7"), ("k", 7)),
            (("v", "9", "5"), ("variance", 0.95)),
            (("e", "1", "0"), ("max_error", 0.1)),
            (("e", "0", "full_stop", "2"), ("max_error", 0.2)),
            (("E", "2", "percent_sign"), ("mean_error", 0.02)),
            (("b", "6", "4", "K", "B"), ("budget", 64_000)),
            (("b", "1", "M", "i", "B"), ("budget", 2**20)),
        ],
    )
    def test_a_typed_target(
        self, screen: Opened, keys: tuple[str, ...], goal: tuple[str, float]
    ) -> None:
        async def steps(pilot: Any) -> None:
            await pilot.press(*keys, "enter")
            await screen.settled(pilot)
            assert screen.goal == pytest.approx(goal) or screen.goal == goal
            assert not screen.view.query_one(AskLine).display
            await pilot.press("right_square_bracket")  # the keys are the screen's again
            assert screen.goal != goal

        screen.use(steps)

    @pytest.mark.parametrize(
        ("key", "typed", "told"),
        [
            ("equals_sign", "99", f"1 to {TOP}"),
            ("equals_sign", "x", f"1 to {TOP}"),
            ("e", "100", "under 100 %"),
            ("e", "x", "Enter a percentage, for example 5"),
            ("v", "0", "above 0"),
            ("b", "lots", "no size"),
        ],
    )
    def test_a_wrong_answer_says_what_is_right(
        self, screen: Opened, key: str, typed: str, told: str
    ) -> None:
        async def steps(pilot: Any) -> None:
            before = screen.session.choosing
            await pilot.press(key, *typed, "enter")
            hint = screen.view.query_one("#ask-hint")
            assert told in str(hint.render())
            await pilot.press("escape")
            assert screen.session.choosing == before
            assert not screen.view.query_one(AskLine).display

        screen.use(steps)

    def test_a_target_that_cannot_be_met_says_why(self, screen: Opened) -> None:
        async def steps(pilot: Any) -> None:
            await pilot.press("b", "1", "0", "0", "enter")
            await screen.settled(pilot)
            assert "budget is smaller" in screen.text(FiguresPane)
            await pilot.press("u")
            await screen.settled(pilot)
            assert screen.goal == ("max_error", 0.05)

        screen.use(steps)

    def test_method_and_dtype_go_round_and_come_back(self, at_k: Opened) -> None:
        async def steps(pilot: Any) -> None:
            methods = []
            for _ in range(3):
                await pilot.press("m")
                methods.append(at_k.session.choosing.method)
                assert at_k.session.figures().problem is None
            assert sorted(methods) == ["columns", "delta", "flat"]
            assert methods[-1] == "delta"
            await pilot.press("d")
            assert "fp16" in at_k.text(FiguresPane)

        at_k.use(steps)

    def test_every_packing_is_offered_with_its_bytes_and_errors(self, at_k: Opened) -> None:
        async def steps(pilot: Any) -> None:
            for name, key in (("int8", "8"), ("int4", "4"), ("nf4", "n")):
                packed = choose(
                    at_k.session.spectra, CompressionTarget(k=3, quantize=name)
                ).prediction
                await pilot.press("c")
                await at_k.asked(pilot)
                told = "\n".join(at_k.screen_lines())
                assert f"{name} " in told
                assert f"{size(packed.nbytes)}, mean ~{percent(packed.mean_error)}" in told
                await pilot.press(key)
                await pilot.pause()
                assert at_k.session.choosing == CompressionTarget(k=3, quantize=name)
                await at_k.settled(pilot)
                assert f"as {name}" in at_k.text(FiguresPane)
                assert f"--quantize {name}" in at_k.session.command()
            await pilot.press("c")
            await at_k.asked(pilot)
            await pilot.press("0")
            await pilot.pause()
            assert at_k.session.choosing == CompressionTarget(k=3)

        at_k.use(steps)

    def test_a_packing_that_cannot_reach_the_target_is_offered_with_what_it_reaches(
        self, screen: Opened
    ) -> None:
        async def steps(pilot: Any) -> None:
            await pilot.press("c")
            await screen.asked(pilot)
            assert "worst 5 % is out of reach" in screen.asked_words()
            await pilot.press("n")
            await pilot.pause()
            await screen.settled(pilot)
            assert screen.session.choosing.quantize == "nf4"
            assert screen.session.figures().choice is not None

        screen.use(steps)

    def test_a_method_with_fewer_directions_takes_no_k_beyond_them(self, at_k: Opened) -> None:
        async def steps(pilot: Any) -> None:
            await pilot.press("right_curly_bracket", "m", "m", "m")
            for _ in range(3):
                await pilot.press("m")
                figures = at_k.session.figures()
                assert figures.problem is None, figures.problem

        at_k.use(steps)

    def test_undo_takes_back_step_by_step(self, at_k: Opened) -> None:
        async def steps(pilot: Any) -> None:
            await pilot.press("right_square_bracket", "m", "u")
            assert at_k.session.choosing == CompressionTarget(k=4)
            await pilot.press("u")
            assert at_k.goal == ("k", 3)
            await pilot.press("u")
            assert at_k.goal == ("k", 3)

        at_k.use(steps)

    @pytest.mark.parametrize("by", ["key", "mouse"])
    def test_one_key_or_the_button_starts_to_build(
        self, at_k: Opened, adapters: list[Path], by: str
    ) -> None:
        at_k.session.add_found(scan([str(adapters[0].parent)]).adapters)

        async def steps(pilot: Any) -> None:
            for path in at_k.session.infos:
                at_k.session.mark(path, True)
            started: list[Any] = []
            at_k.app.start_job = lambda recipe, **_: started.append(recipe)  # type: ignore
            await pilot.press("enter")  # opens the layer, and starts nothing
            assert at_k.app.view is at_k.view
            await pilot.press("escape", "u")
            if by == "key":
                await pilot.press("w")
            else:
                pane = at_k.view.query_one(AdvicePane)
                first = pane.plain().split("\n")[0]
                assert "[ w Build ]" in first
                await pilot.click(AdvicePane, offset=(first.index("[ w") + 3, 0))
            await pilot.pause()
            assert at_k.app.view.id == "run"
            (recipe,) = started
            assert recipe.compress.target == CompressionTarget(k=3)
            assert not Path(recipe.output).exists()

        at_k.use(steps)


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
            assert "median of 2 layers" in at_k.text(CurvePane)
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
            assert "all 4 layers differ" in text
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
            assert "1 of 4 layers" in opened.text(CurvePane)
            assert "·" in opened.text(Heatmap)
            assert "3 layers still to measure" in opened.text(FiguresPane)
            first = opened.view.query_one(AdvicePane).plain().split("\n")[0]
            assert "~" in first
            assert "from 1 of 4 layers" in first
            assert "pays" not in opened.text(FiguresPane)
            for name in whole.layer_names[1:]:
                partial.layers[name] = whole.layers[name]
                opened.app.post_message(SpectraChanged())
                await opened.settled(pilot)
            assert "median of 4 layers" in opened.text(CurvePane)
            assert "·" not in opened.text(Heatmap)
            assert "to measure" not in opened.text(FiguresPane)
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
            assert "median of 2 layers" in screen.text(CurvePane)

        screen.use(steps)


class TestSizes:
    @pytest.mark.parametrize("size", [(80, 24), (60, 20), (40, 12)])
    def test_one_pane_and_two_lines_of_figures(self, at_k: Opened, size: tuple[int, int]) -> None:
        async def steps(pilot: Any) -> None:
            brief = at_k.view.query_one("#choose-brief")
            assert at_k.view.query_one(CurvePane).region.area
            assert not at_k.view.query_one(Heatmap).region.area
            assert "mean" in str(brief.render())
            await pilot.press("right_square_bracket")
            assert at_k.goal == ("k", 4)
            await pilot.press("tab")
            assert at_k.view.query_one(Heatmap).region.area
            assert not at_k.view.query_one(CurvePane).region.area
            for name in ("sizes", "figures", "sharing", "losses", "curve"):
                await pilot.press("tab")
                assert at_k.view.query_one(f"#{name}").region.area, name

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


def test_a_method_with_fewer_k_than_a_pin_draws(screen: Opened) -> None:
    async def steps(pilot: Any) -> None:
        await pilot.press("p", "m", "m", "x", "s")
        await screen.settled(pilot)
        assert screen.session.choosing.method == "flat"
        assert "another method" in screen.text(FiguresPane)

    screen.use(steps)


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
