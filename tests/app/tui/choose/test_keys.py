"""Step 2: every key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from textual.events import Key

from tests.app.tui.choose.opened import BELOW, LAYER, TOP, Opened
from vlora_engine.catalog.scanner import scan
from vlora_engine.compression_target import CompressionTarget
from vlora_engine.spectra.choose import choose
from vlora_engine.spectra.tables import Spectra
from vlora_tui.tui.choose.advice import AdvicePane
from vlora_tui.tui.choose.curve_pane import CurvePane
from vlora_tui.tui.choose.figures_pane import FiguresPane
from vlora_tui.tui.core.messages import SpectraChanged
from vlora_tui.tui.run.job_text import packing_of
from vlora_tui.tui.widgets.ask import AskLine
from vlora_tui.tui.widgets.dialogs import Ask, Option
from vlora_tui.tui.widgets.heatmap import Heatmap
from vlora_tui.utils.formatting import percent, size


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
            ks = sorted(k for pair in chosen.k.values() for k in pair)
            k = f"k {ks[0]}" if ks[0] == ks[-1] else f"k {ks[0]}-{ks[-1]}"
            said = f"delta, worst {percent(error)}, {k}: {size(chosen.prediction.nbytes)}, "
            assert said in first
            assert f"{chosen.prediction.ratio:.3g}x smaller than the originals" in first
            assert f"{shown}]" in second

        at_k.use(steps)

    @pytest.mark.parametrize("width", [120, 80, 60, 40])
    @pytest.mark.parametrize("asked", [{"k": 3}, {"max_error": 0.3}, {"budget": 60_000}])
    def test_k_and_the_bytes_are_told_in_any_width(
        self, measured: Path, width: int, asked: dict[str, Any]
    ) -> None:
        packed = {"quantize": "int4", "block_size": 128}
        opened = Opened(Spectra.load(measured), method="columns", **asked, **packed)

        async def steps(pilot: Any) -> None:
            await opened.settled(pilot)
            first = opened.view.query_one(AdvicePane).plain().split("\n")[0]
            figures = opened.session.figures()
            assert figures is not None
            ks = sorted(k for pair in figures.choice.k.values() for k in pair)
            k = f"k {ks[0]}" if ks[0] == ks[-1] else f"k {ks[0]}-{ks[-1]}"
            assert k in first
            assert size(figures.prediction.nbytes) in first

        opened.use(steps, (width, 12))

    @pytest.mark.parametrize("width", [40, 80])
    def test_what_is_wrong_with_an_answer_is_told_in_full(self, at_k: Opened, width: int) -> None:
        async def steps(pilot: Any) -> None:
            await pilot.press("equals_sign", "x", "enter")
            await pilot.pause()
            hint = at_k.view.query_one("#ask-hint")
            said = " ".join(hint.render_line(y).text for y in range(hint.size.height))
            assert " ".join(said.split()) == f"! Enter a whole number, 1 to {TOP}"

        at_k.use(steps, (width, 12))

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
                await at_k.known(pilot)
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
            await at_k.known(pilot)
            await pilot.press("0")
            await pilot.pause()
            assert at_k.session.choosing == CompressionTarget(k=3)

        at_k.use(steps)

    def test_block_size_and_scales_are_in_the_same_form(self, at_k: Opened) -> None:
        async def steps(pilot: Any) -> None:
            await pilot.press("c")
            await at_k.asked(pilot)
            await at_k.known(pilot)
            await pilot.press("b", "b", "s")  # 64, 128, 256
            await at_k.known(pilot)
            target = CompressionTarget(k=3, quantize="int4", block_size=256, double_quant=False)
            packed = choose(at_k.session.spectra, target).prediction
            told = "\n".join(at_k.screen_lines())
            assert f"{size(packed.nbytes)}, mean ~{percent(packed.mean_error)}" in told
            assert "256 numbers share a scale" in told
            assert "16 bits" in told
            await pilot.press("4")
            await pilot.pause()
            assert at_k.session.choosing == target
            assert "--block-size 256 --no-double-quant" in at_k.session.command()
            assert packing_of(at_k.session) == "int4, blocks of 256, loadings int8"

        at_k.use(steps)

    def test_a_packing_that_cannot_reach_the_target_is_offered_with_what_it_reaches(
        self, screen: Opened
    ) -> None:
        async def steps(pilot: Any) -> None:
            await pilot.press("c")
            await screen.asked(pilot)
            await screen.known(pilot)
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
