"""Step 2: curves of size against error, auto and own against bytes, who shares, who loses."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.app.tui.choose.test_choose import Opened
from tests.witnesses import make
from vlora_engine.catalog.open import open_adapter
from vlora_engine.codec.forecast import save_own_table
from vlora_engine.compress.build import build_subspace
from vlora_engine.compress.measure import compute_spectra
from vlora_engine.compression_target import CompressionTarget
from vlora_engine.spectra.choose import Choice, Prediction, choose
from vlora_engine.spectra.tables import (
    Spectra,
    layer_file,
    own_file,
    rate_tables_file,
    write_layer,
)
from vlora_tui.pipeline.forecast import Coded
from vlora_tui.pipeline.inputs import gather
from vlora_tui.pipeline.run import SpectraRun
from vlora_tui.recipe.model import MEASURED, AdapterInput, Input, Recipe, as_tables
from vlora_tui.recipe.reader import parse_recipe
from vlora_tui.tui.app.app import VLoRAApp
from vlora_tui.tui.charts.size_plot import MARKS
from vlora_tui.tui.choose import worker as choose_worker
from vlora_tui.tui.choose.advice import AdvicePane
from vlora_tui.tui.choose.curve_pane import CurvePane, SizesPane
from vlora_tui.tui.choose.figures_pane import FiguresPane
from vlora_tui.tui.choose.sizes import BAR, FEW, KINDS, Sizes, sharing_text
from vlora_tui.tui.choose.target_steps import moved
from vlora_tui.tui.choose.text import Verdict, percent, summary
from vlora_tui.tui.core import job_client as core_job_client
from vlora_tui.tui.core.messages import SpectraChanged
from vlora_tui.tui.core.session import Figures
from vlora_tui.tui.widgets.heatmap import Heatmap
from vlora_tui.tui.widgets.table import Table
from vlora_tui.utils.formatting import size

MODULES = {
    f"transformer.h.{i}.attn.{kind}": shape
    for i in range(2)
    for kind, shape in (("c_attn", (96, 160)), ("c_proj", (96, 96)))
}
FAMILY = ["run-1", "run-2", "run-3"]
ALONE = ["lone-a", "lone-b", "lone-c"]


def related(folder: Path) -> list[Path]:
    """Three checkpoints of one run, and three adapters that have nothing to do with anything."""
    first = make.factors(MODULES, rank=8, seed=1)
    paths = []
    for i, name in enumerate(FAMILY):
        drift = make.factors(MODULES, rank=8, seed=50 + i)
        tensors = {key: own + 0.05 * drift[key] for key, own in first.items()}
        paths.append(make.write(folder / name, fading(tensors), make.config(r=8)))
    for i, name in enumerate(ALONE):
        tensors = make.factors(MODULES, rank=8, seed=100 + i)
        paths.append(make.write(folder / name, fading(tensors), make.config(r=8)))
    return paths


def fading(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same with rows of A that matter less and less, as those of trained adapters do."""
    weights = 0.7 ** torch.arange(8.0)
    return {k: t * weights[:, None] if "lora_A" in k else t for k, t in tensors.items()}


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return related(tmp_path_factory.mktemp("related"))


@pytest.fixture(scope="module")
def measured(adapters: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("spectra") / "spectra"
    compute_spectra({path.name: open_adapter(path) for path in adapters}, folder, codec=True)
    return folder


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(choose_worker, "QUIET_SECONDS", 0.001)
    for name in ("STATE", "CONFIG", "CACHE", "DATA"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / name.lower()))


@pytest.fixture
def screen(measured: Path) -> Opened:
    return Opened(Spectra.load(measured))


@pytest.fixture
def auto(measured: Path) -> Opened:
    return Opened(Spectra.load(measured), method="auto")


def said(opened: Opened) -> list[str]:
    """What the view tells from now on."""
    words: list[str] = []
    opened.view.notify = lambda text, **_: words.append(text)  # type: ignore
    return words


def sharing(opened: Opened) -> str:
    return opened.view._sharing.plain


def losses(opened: Opened) -> list[Any]:
    return list(opened.view.query_one("#losses", Table).rows)


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
            now = auto.session.choosing
            assert (now.method, now.goal[0], now.dtype) == ("delta", "k", "fp16")
            assert auto.session.figures().prediction.max_error <= error
            fewer = replace(now, k=now.k - 1)
            assert auto.session.figures(fewer).prediction.max_error > error
            await pilot.press("left_square_bracket")
            assert auto.session.choosing == fewer
            await pilot.press("u", "u")
            assert auto.session.choosing.method == "auto"

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
                        CompressionTarget(m, budget=int(sizes.rate_tables.factor_bytes / ratio))
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
        exact = Coded.of(spectra.rate_tables(), choosing).prediction
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


class TestWhoSharesWhoLoses:
    def test_clusters_are_named_with_what_they_share(self, auto: Opened) -> None:
        async def steps(pilot: Any) -> None:
            await pilot.press("tab", "tab")
            await auto.settled(pilot)
            coded = auto.session.figures().coded
            told = sharing(auto)
            assert f"cluster 1: {', '.join(FAMILY)}" in told
            assert f"alone: {', '.join(ALONE)}" in told
            (group,) = [group for group in coded.groups if group.layers]
            assert f"saves ~{size(group.saved_bytes)}" in told
            for kind, layers in group.layers.items():
                assert KINDS[kind] in told
                assert len(layers) <= FEW or f"in {len(layers)} of 4" in told or len(layers) == 4

        auto.use(steps)

    def test_for_another_method_it_is_what_auto_would_do_at_its_error(self, screen: Opened) -> None:
        async def steps(pilot: Any) -> None:
            await pilot.press("tab", "tab")
            await screen.settled(pilot)
            assert "at this error: auto ~" in sharing(screen)
            assert "cluster 1: run-1" in sharing(screen)

        screen.use(steps)

    def test_a_few_layers_are_named_and_a_group_without_any_says_so(self, measured: Path) -> None:
        rate_tables = Spectra.load(measured).rate_tables()
        short = {name: name.removeprefix("transformer.h.") for name in MODULES}
        rate_tables.groups = {0: rate_tables.groups[0]}
        told = sharing_text(
            Coded.of(rate_tables, CompressionTarget("auto", max_error=0.05)), short
        ).plain
        assert f"in {short[rate_tables.layers[0].name]}\n" in told
        rate_tables.groups = {}
        told = sharing_text(
            Coded.of(rate_tables, CompressionTarget("auto", max_error=0.05)), short
        ).plain
        assert "share nothing: at this error coding each alone is smaller" in told
        assert "Sharing saves nothing at this error" in told

    @pytest.mark.parametrize("keys", [[], ["m"], ["m", "m"]], ids=["delta", "auto", "own"])
    def test_losses_are_those_of_the_choice_the_worst_first(
        self, screen: Opened, keys: list[str]
    ) -> None:
        async def steps(pilot: Any) -> None:
            await screen.settled(pilot)
            await pilot.press(*keys, "tab", "tab", "tab")
            await screen.settled(pilot)
            rows = losses(screen)
            prediction = screen.session.figures().prediction
            assert {row.task: row.error for row in rows} == prediction.task_errors
            errors = [row.error for row in rows]
            assert errors == pytest.approx(sorted(errors, reverse=True), rel=2e-6)  # ties by name
            assert all(row.worst_layer in MODULES for row in rows)
            assert all(row.worst_error >= row.error for row in rows)
            assert all((row.nbytes is None) == (not keys) for row in rows)
            first = screen.text(Table).split("\n")[1]
            assert "█" * BAR in first
            await pilot.press("enter")  # the module in which it loses most
            assert screen.view.editor.shown.layer == rows[0].worst_layer
            assert screen.view.query_one(Heatmap).has_focus

        screen.use(steps)

    def test_rows_can_be_copied(self, auto: Opened) -> None:
        async def steps(pilot: Any) -> None:
            await pilot.press("S")
            await auto.settled(pilot)
            assert "mean ~" in str(auto.view.row_text())
            await pilot.press("tab", "tab")
            assert "cluster 1" in str(auto.view.row_text())
            await pilot.press("tab")
            assert str(auto.view.row_text()).startswith(losses(auto)[0].task)

        auto.use(steps)


class TestRecipes:
    @pytest.mark.parametrize(
        ("keys", "table"),
        [
            (["m"], {"method": "auto", "max_error": 0.05}),
            (["m", "E", "3", "enter"], {"method": "auto", "mean_error": 0.03}),
            (["m", "v", "9", "9", "enter"], {"method": "auto", "variance": 0.99}),
            (["m", "m", "b", "4", "0", "K", "B", "enter"], {"method": "own", "budget": 40_000}),
        ],
        ids=["max_error", "mean_error", "variance", "budget"],
    )
    def test_the_recipe_is_what_is_on_screen(
        self, screen: Opened, keys: list[str], table: dict[str, Any]
    ) -> None:
        async def steps(pilot: Any) -> None:
            await screen.settled(pilot)
            await pilot.press("S", *keys)
            await screen.settled(pilot)
            tables = as_tables(screen.session.recipe())
            assert tables["compress"] == table
            tables["input"] = {"adapters": ["somewhere"]}
            import tomli_w

            assert (
                parse_recipe(tomli_w.dumps(tables), where="").compress.target.method
                == table["method"]
            )

        screen.use(steps)

    @pytest.mark.parametrize(
        "choosing",
        [
            CompressionTarget("auto", max_error=0.05),
            CompressionTarget("auto", budget=40_000),
            CompressionTarget("own", mean_error=0.1),
        ],
        ids=lambda c: f"{c.method}-{c.goal[0]}",
    )
    def test_what_is_shown_is_nearly_what_a_build_reports(
        self, measured: Path, adapters: list[Path], tmp_path: Path, choosing: CompressionTarget
    ) -> None:
        opened = Opened(Spectra.load(measured))
        shown = opened.session.figures(choosing).prediction
        report = build_subspace(
            {path.name: open_adapter(path) for path in adapters},
            tmp_path / "out",
            targets=choosing,
        )
        # Adapters so small that a few bytes decide on a direction; others are nearer.
        assert shown.nbytes == pytest.approx(report.nbytes, rel=0.05)
        assert shown.mean_error == pytest.approx(report.mean_error, rel=0.1)
        assert shown.max_error == pytest.approx(report.max_error, rel=0.1)


class TestWhatIsMissing:
    @pytest.fixture
    def untold(self, measured: Path, tmp_path: Path) -> Opened:
        """Spectra without the tables of the codec."""
        folder = Path(shutil.copytree(measured, tmp_path / "untold"))
        (folder / "codec.safetensors").unlink()
        return Opened(Spectra.load(folder))

    def test_it_says_which_key_measures_again(self, untold: Opened) -> None:
        async def steps(pilot: Any) -> None:
            await pilot.press("S")
            await untold.settled(pilot)
            assert "R measures" in untold.text(SizesPane)
            await pilot.press("tab", "tab")
            assert "Press R to measure" in sharing(untold)
            wanted: list[int] = []
            untold.app.jobs.want_spectra = lambda: wanted.append(1)  # type: ignore[method-assign]
            await pilot.press("R")
            assert wanted == [1]
            await pilot.press("m", "m", "m")
            assert untold.session.choosing.method == "delta"

        untold.use(steps)

    def test_spectra_in_the_cache_that_lack_it_are_completed(
        self, measured: Path, adapters: list[Path]
    ) -> None:
        recipe = Recipe(Input(tuple(AdapterInput(str(path), path.name) for path in adapters)))
        place = gather(recipe).spectra_dir(MEASURED)
        shutil.copytree(measured, place)
        assert core_job_client.cached_spectra(recipe) is not None
        rate_tables_file(place).unlink()
        assert core_job_client.cached_spectra(recipe) is None
        SpectraRun(recipe, lambda event: None).execute()
        assert core_job_client.cached_spectra(recipe) is not None

    def test_a_file_that_cannot_be_read_is_told(self, measured: Path, tmp_path: Path) -> None:
        folder = Path(shutil.copytree(measured, tmp_path / "broken"))
        (folder / "codec.safetensors").write_bytes(b"no tables")
        opened = Opened(Spectra.load(folder))

        async def steps(pilot: Any) -> None:
            await pilot.press("S", "tab", "tab")
            await opened.settled(pilot)
            assert "cannot be read" in opened.text(SizesPane)
            assert "cannot be read" in sharing(opened)

        opened.use(steps)

    @pytest.mark.parametrize("names", [FAMILY, ALONE], ids=["fewer", "others"])
    def test_figures_of_former_adapters_are_not_drawn_with_those_that_arrive(
        self, adapters: list[Path], tmp_path: Path, names: list[str]
    ) -> None:
        before, after = tmp_path / "before", tmp_path / "after"
        compute_spectra(
            {path.name: open_adapter(path) for path in adapters if path.name in FAMILY + ALONE[:1]},
            before,
        )
        compute_spectra(
            {path.name: open_adapter(path) for path in adapters if path.name in names}, after
        )
        arriving = Spectra.load(after)
        arriving.layers = {name: arriving.layers[name] for name in arriving.layer_names[:1]}
        opened = Opened(Spectra.load(before), method="delta", max_error=0.1)

        async def steps(pilot: Any) -> None:
            await pilot.press("tab", "tab", "tab")
            await opened.settled(pilot)
            assert {row.task for row in losses(opened)} == {*FAMILY, *ALONE[:1]}
            # The marks of step 1 changed: their spectra are begun anew, layer by layer.
            opened.session.set_spectra(arriving)
            opened.view.figures._working = True  # the worker is still at the former choice
            opened.app.post_message(SpectraChanged())
            await pilot.pause()
            opened.view.post_message(choose_worker.FiguresComputed(False))
            await pilot.pause()
            assert losses(opened) == []
            assert opened.view.row_text() is not None
            opened.view.figures._working = False
            arriving.refresh()
            opened.app.post_message(SpectraChanged())
            await opened.settled(pilot)
            assert {row.task for row in losses(opened)} == set(names)

        opened.use(steps)

    def test_all_that_is_measured_is_not_measured_again(self, screen: Opened) -> None:
        async def steps(pilot: Any) -> None:
            await screen.settled(pilot)
            words = said(screen)
            await pilot.press("R")
            assert words == ["Everything is measured."]

        screen.use(steps)

    def test_a_target_that_cannot_be_met_says_why(self, auto: Opened) -> None:
        async def steps(pilot: Any) -> None:
            await pilot.press("tab", "tab", "b", "1", "0", "0", "enter")
            await auto.settled(pilot)
            assert "budget is smaller" in sharing(auto)
            assert "budget is smaller" in "\n".join(auto.view._brief_lines(120))
            assert "budget is smaller" in auto.view.query_one(AdvicePane).plain()

        auto.use(steps)


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
        self, under_way: tuple[Opened, Callable[[int], None]], measured: Path
    ) -> None:
        opened, arrive = under_way
        whole = Spectra.load(measured)

        async def steps(pilot: Any) -> None:
            view, spectra = opened.view, opened.session.spectra
            curve, advice = view.query_one(CurvePane), view.query_one(AdvicePane)
            assert curve.data.in_bytes
            assert (curve.data.layers, curve.data.expected) == (2, 4)
            assert "median of 2 of 4 layers" in opened.text(CurvePane)
            first = advice.plain().split("\n")[0]
            assert "auto, worst 5 %: ~" in first
            assert "smaller than the originals  from 2 of 4 layers" in first
            assert "[ w Build ]" in first
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
            for i in (2, 3):
                arrive(i)
                assert spectra.refresh()
                opened.app.post_message(SpectraChanged())
                await opened.settled(pilot)
                assert [w.region for w in view.walk_children() if w.id is not None] == places
            assert curve.data.layers == 4
            assert "sharing not measured yet" in advice.plain()
            assert "~" in advice.plain().split("\n")[0]
            whole.rate_tables().save(rate_tables_file(spectra.path))
            assert spectra.refresh()
            opened.app.post_message(SpectraChanged())
            await opened.settled(pilot)
            assert [w.region for w in view.walk_children() if w.id is not None] == places
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


def verdict(
    now: tuple[float, float, int], *rivals: tuple[str, float, float, int] | None
) -> Verdict:
    """What is said of (error, codec ratio, bytes), beside others with a method each."""

    def figures(method: str, error: float, ratio: float, nbytes: int) -> Figures:
        prediction = Prediction(error, error, "", 1 - error**2, nbytes, 1.0, ratio, {}, {})
        choice = Choice(method, {}, "F16", prediction)
        return Figures(CompressionTarget(method, max_error=error), choice)

    others = [None if rival is None else figures(*rival) for rival in rivals]
    return summary(figures("delta", *now), others, 4_850_000)


class TestVerdicts:
    def test_nothing_pays_where_nothing_works(self) -> None:
        for ratio in (0.5, 1.1, 40.0):
            said = verdict((0.93, ratio, 100))
            assert "pays" not in said.words
            assert "little is left" in said.words
            assert said.bad

    def test_what_hardly_pays_is_not_said_while_another_method_pays(self) -> None:
        said = verdict((0.05, 1.1, 10_400_000), ("auto", 0.05, 5.0, 2_730_000))
        assert said.words == "auto reaches 5 % in 2.73 MB instead of 10.4 MB (m)."
        assert not said.bad

    def test_nor_before_the_others_are_known(self) -> None:
        assert verdict((0.05, 1.1, 10_400_000), None).words == ""

    def test_it_is_said_where_none_does(self) -> None:
        said = verdict((0.05, 1.1, 4_400_000), ("auto", 0.05, 1.15, 4_300_000))
        assert "hardly pays at this error: storing each adapter in fp16 takes 4.85 MB" in said.words
        assert said.bad
        assert said.brief == "hardly pays"

    def test_a_smaller_size_at_another_error_is_no_comparison(self) -> None:
        said = verdict((0.05, 3.0, 10_400_000), ("auto", 0.2, 5.0, 2_730_000))
        assert said.words == "Sharing pays: 3x smaller than A and B at 16 bit."


class TestSizesOfTerminals:
    @pytest.mark.parametrize("shape", [(80, 24), (60, 20), (40, 12)])
    def test_one_pane_at_a_time_above_two_lines_of_figures(
        self, auto: Opened, shape: tuple[int, int]
    ) -> None:
        async def steps(pilot: Any) -> None:
            await pilot.press("S")
            await auto.settled(pilot)
            panes = ["sizes", "figures", "sharing", "losses", "curve", "layers"]
            for front in [*panes, "sizes"]:
                seen = [name for name in panes if auto.view.query_one(f"#{name}").region.area]
                assert seen == [front]
                if front != "figures":
                    assert "mean ~" in str(auto.view.query_one("#choose-brief").render())
                await pilot.press("tab")
            await pilot.press("S")
            assert auto.view.query_one("#layers").region.area

        auto.use(steps, shape)

    def test_size_takes_the_place_of_the_layers_and_any_pane_can_be_maximised(
        self, auto: Opened
    ) -> None:
        async def steps(pilot: Any) -> None:
            place = auto.view.query_one(Heatmap).region
            await pilot.press("S")
            await auto.settled(pilot)
            assert auto.view.query_one(SizesPane).region == place
            for name in ("sizes", "sharing", "losses"):
                pane = auto.view.query_one(f"#{name}")
                pane.focus()
                await pilot.pause()
                assert pane.region.area
                await pilot.press("z")
                assert pane.region.width >= 118, name
                await pilot.press("right_square_bracket", "z")
            for shape in ((1, 1), (10, 3), (120, 36)):
                await pilot.resize_terminal(*shape)
                await pilot.press("right_square_bracket")
            assert auto.view.query_one(SizesPane).region.area
            await pilot.press("S")
            assert auto.view.query_one(Heatmap).region == place

        auto.use(steps)

    def test_ascii_draws_ascii(self, measured: Path) -> None:
        opened = Opened(Spectra.load(measured), method="auto")
        opened.app = VLoRAApp(session=opened.session, ascii_only=True)

        async def steps(pilot: Any) -> None:
            await pilot.press("S", "p", "right")
            await opened.settled(pilot)
            assert opened.text(SizesPane).isascii()
            assert opened.text(CurvePane).isascii()
            assert opened.text(AdvicePane).isascii()
            await pilot.press("tab", "tab", "tab")
            await opened.settled(pilot)
            assert opened.text(Table).isascii()
            assert sharing(opened).isascii()
            for name in ("sizes", "sharing", "losses"):
                assert str(opened.view.query_one(f"#{name}").border_title).isascii()

        opened.use(steps)


def test_names_from_files_draw_nothing_but_themselves(measured: Path) -> None:
    spectra = Spectra.load(measured)
    rate_tables = spectra.rate_tables()
    rate_tables.tasks = [f"[b]{name}\x1b[2J" for name in rate_tables.tasks]
    opened = Opened(spectra, method="auto")

    async def steps(pilot: Any) -> None:
        await pilot.press("tab", "tab", "tab")
        await opened.settled(pilot)
        assert "[b]run-1" in sharing(opened)
        for text in (sharing(opened), opened.text(Table), *opened.view._brief_lines(120)):
            assert "\x1b" not in text

    opened.use(steps)


class TestTargets:
    @pytest.mark.parametrize(
        ("goal", "step", "wanted"),
        [
            (("max_error", 0.05), 1, 0.055),
            (("max_error", 0.05), -1, 0.045),
            (("max_error", 0.0512), 1, 0.055),
            (("max_error", 0.0512), -1, 0.05),
            (("mean_error", 0.09), 1, 0.1),
            (("mean_error", 0.1), -1, 0.09),
            (("max_error", 0.9), 3, 0.9),
            (("variance", 0.95), 1, 0.945),
            (("variance", 0.95), -1, 0.955),
            (("budget", 1e6), 1, 9e5),
            (("budget", 1e6), -1, 1.1e6),
            (("k", 8.0), 1, 7.0),
        ],
    )
    def test_a_step_goes_to_the_next_round_value(
        self, goal: tuple[str, float], step: int, wanted: float
    ) -> None:
        assert moved(goal, step) == (goal[0], pytest.approx(wanted))

    def test_there_and_back_again(self) -> None:
        for name, value in (("max_error", 0.05), ("budget", 2e6), ("variance", 0.9)):
            goal = (name, value)
            for step in range(1, 30):
                there = moved(goal, step)
                assert moved(there, -step)[1] == pytest.approx(value) or there[1] in (0.9, 0.1)
