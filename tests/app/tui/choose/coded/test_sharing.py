"""Step 2: who shares, who loses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.app.tui.choose.coded.collection import ALONE, FAMILY, MODULES
from tests.app.tui.choose.coded.shown import losses, sharing
from tests.app.tui.choose.opened import Opened
from vlora_engine.compression_target import CompressionTarget
from vlora_engine.spectra.tables import Spectra
from vlora_tui.pipeline.forecast import Coded
from vlora_tui.tui.choose.sizes import BAR, FEW, KINDS, sharing_text
from vlora_tui.tui.widgets.heatmap import Heatmap
from vlora_tui.tui.widgets.table import Table
from vlora_tui.utils.formatting import size


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
        outlook = Spectra.load(measured).outlook()
        short = {name: name.removeprefix("transformer.h.") for name in MODULES}
        outlook.groups = {0: outlook.groups[0]}
        told = sharing_text(
            Coded.of(outlook, CompressionTarget("auto", max_error=0.05)), short
        ).plain
        assert f"in {short[outlook.layers[0].name]}\n" in told
        outlook.groups = {}
        told = sharing_text(
            Coded.of(outlook, CompressionTarget("auto", max_error=0.05)), short
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


def test_names_from_files_draw_nothing_but_themselves(measured: Path) -> None:
    spectra = Spectra.load(measured)
    outlook = spectra.outlook()
    outlook.tasks = [f"[b]{name}\x1b[2J" for name in outlook.tasks]
    opened = Opened(spectra, method="auto")

    async def steps(pilot: Any) -> None:
        await pilot.press("tab", "tab", "tab")
        await opened.settled(pilot)
        assert "[b]run-1" in sharing(opened)
        for text in (sharing(opened), opened.text(Table), *opened.view._brief_lines(120)):
            assert "\x1b" not in text

    opened.use(steps)
