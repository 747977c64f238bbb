"""Step 2: the recipe is what is on screen, and a build what was forecast."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.app.tui.choose.opened import Opened
from vlora_engine.catalog.open import open_adapter
from vlora_engine.compress.build import build_subspace
from vlora_engine.compression_target import CompressionTarget
from vlora_engine.spectra.tables import Spectra
from vlora_tui.recipe.model import as_tables
from vlora_tui.recipe.reader import parse_recipe


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
