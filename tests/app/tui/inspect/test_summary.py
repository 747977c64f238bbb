"""Step 4 begins with sentences that lead to pictures; what layers lost; walking, legends, sizes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from textual.pilot import Pilot
from textual.widgets import Input, Static

from tests.app.tui.drive import run, screen_lines, until
from tests.app.tui.inspect.test_inspect import folder as plain_folder
from tests.app.tui.inspect.test_inspect import (
    look,
    matrix,
    measured,
    picture,
    settle,
    view,
    words,
)
from tests.app.tui.inspect.test_inspect import spectra as plain_spectra
from vlora_engine.analysis.interference_measures import (
    interference,
    pair_interference,
    pair_verdicts,
)
from vlora_engine.catalog.open import open_adapter
from vlora_engine.catalog.read import read_manifest
from vlora_engine.catalog.scanner import scan
from vlora_engine.compress.measure import compute_spectra
from vlora_engine.compression_target import CompressionTarget
from vlora_engine.findings import Finding
from vlora_engine.manifest.layer_figures import layer_figures
from vlora_engine.shared_subspace import SharedSubspace
from vlora_engine.spectra.tables import Spectra
from vlora_tui.cli import main
from vlora_tui.tui.app.app import VLoRAApp
from vlora_tui.tui.app.keys import Keys
from vlora_tui.tui.core.bad_adapters import BROKEN
from vlora_tui.tui.core.likeness import Group, likeness_of
from vlora_tui.tui.core.session import Session
from vlora_tui.tui.inspect import queries as inspect_queries
from vlora_tui.tui.inspect import similarity as inspect_similarity
from vlora_tui.tui.inspect.data import Kin
from vlora_tui.tui.inspect.module import ModuleBox
from vlora_tui.tui.inspect.sentences import Sentence, about_adapters, shortened
from vlora_tui.tui.widgets.heatmap import Heatmap
from vlora_tui.tui.widgets.table import Table

folder, spectra, measured_plainly = plain_folder, plain_spectra, measured  # the fixtures
OPENS = "inspect-summary"  # where Inspect opens


@pytest.fixture(scope="module")
def coded(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ``auto`` subspace of the folder."""
    place = tmp_path_factory.mktemp("coded") / "subspace"
    assert main(["compress", str(folder), "-o", str(place), "--max-error", "0.1", "-q"]) == 0
    return place


def sentences(pilot: Pilot[Any]) -> list[Sentence]:
    return list(pilot.app.query_one("#summary-table", Table).rows)


def to_sentence(pilot: Pilot[Any], topic: str) -> Sentence:
    rows = sentences(pilot)
    at = next(i for i, row in enumerate(rows) if row.topic == topic)
    view(pilot).go_to_pane("inspect-summary")
    pilot.app.query_one("#summary-table", Table).move_to(at)
    return rows[at]


def layers(pilot: Pilot[Any]) -> Any:
    return pilot.app.query_one("#inspect-layers")


# sentences of adapters


def test_one_adapter_alone_is_said_to_have_nothing_beside_it(folder: Path, tmp_path: Path) -> None:
    place = tmp_path / "spectra"
    compute_spectra({"task00": open_adapter(folder / "task00")}, place)
    session = Session()
    session.add_found(scan([folder / "task00"]).adapters)
    session.set_spectra(Spectra.load(place))

    async def steps(pilot: Pilot[Any]) -> None:
        assert not sentences(pilot)
        assert "One adapter alone. Mark more in step 1" in words(pilot, "#summary-said")

    look(session, steps, pane=OPENS)


def test_inspect_opens_with_sentences_and_enter_shows_their_pictures(measured: Session) -> None:
    names = [task.name for task in measured.spectra.tasks]
    sources = [open_adapter(task.path) for task in measured.spectra.tasks]
    verdict = pair_verdicts(interference(sources))[0]
    pair = (verdict.first, verdict.second)
    _, by_layer = pair_interference(*(sources[i] for i in pair))
    contested = {name: float(found.contested[0, 1]) for name, found in by_layer.items()}
    worst = max(contested, key=lambda name: contested[name])

    async def steps(pilot: Pilot[Any]) -> None:
        assert view(pilot).pane == "inspect-summary"
        told = {row.topic: row.text for row in sentences(pilot)}
        assert "task01 and twin are copies: the same bits." in told["similar"]
        assert told["outlier"].startswith("strong is an outlier: its dW is ")
        assert all(names[i] in told["interference"] for i in pair)
        assert (
            f"{shortened(contested)[worst]} ({100 * contested[worst]:.3g} %)"
            in (told["interference"])
        )

        to_sentence(pilot, "similar")
        await pilot.press("enter")
        await settle(pilot)
        assert view(pilot).pane == "inspect-alike"
        assert {names[i] for i in matrix(pilot).pair} == {"task01", "twin"}

        row = to_sentence(pilot, "outlier")
        await pilot.press("enter")
        await settle(pilot)
        assert view(pilot).pane == "inspect-layers"
        assert matrix(pilot).pair == row.pair
        assert "strong" in str(layers(pilot).border_title)

        to_sentence(pilot, "interference")
        await pilot.press("enter")
        await settle(pilot)
        assert "contests" in str(pilot.app.query_one("#inspect-alike").border_title)
        assert matrix(pilot).pair == pair
        heatmap = pilot.app.query_one("#layer-map", Heatmap)
        assert heatmap.focused_layer == worst
        assert set(heatmap.cells) == set(contested)
        top = max(0.02, *contested.values())
        for name, cell in heatmap.cells.items():
            assert cell.heat == pytest.approx(contested[name] / top)

    look(measured, steps, pane=OPENS)


def test_interference_of_many_bytes_is_measured_when_it_is_asked_for(
    measured: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inspect_similarity, "UNASKED_BYTES", 1000)

    async def steps(pilot: Pilot[Any]) -> None:
        alike = pilot.app.query_one("#inspect-alike")
        assert alike.interference is None
        assert "is not measured" in to_sentence(pilot, "not measured").text
        await pilot.press("enter")
        await settle(pilot)
        assert alike.interference is not None
        assert [row.topic for row in sentences(pilot)].count("interference") == 1
        assert "not measured" not in [row.topic for row in sentences(pilot)]

    look(measured, steps, pane=OPENS)


def test_what_is_measured_in_the_background_stops_on_x_and_keeps_nobody_from_leaving(
    measured: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, stopped = threading.Event(), threading.Event()

    def answer(words: list[str], cancelled: Callable[[], bool], background: bool = False) -> None:
        assert background
        asked.set()
        while not cancelled():
            stopped.wait(0.01)

    monkeypatch.setattr(inspect_queries, "ask_command", answer)

    async def steps(pilot: Pilot[Any]) -> None:
        await pilot.app.show_step("inspect")
        await until(pilot, asked.is_set, "interference is measured")
        summary = pilot.app.query_one("#inspect-summary")
        assert "Measuring interference" in str(summary.border_subtitle)
        assert not view(pilot).leave()
        assert pilot.app.query_one("#inspect-alike").asking is not None
        await pilot.press("x")
        await settle(pilot)
        assert summary.border_subtitle == ""
        assert [row.topic for row in sentences(pilot)][-1] == "not measured"

    run(VLoRAApp(session=measured), steps)


def test_near_copies_are_called_so_however_they_began(measured: Session) -> None:
    likeness = likeness_of(measured.spectra)
    assert likeness is not None
    names = likeness.names
    for least, told in ((0.99, "near copies"), (0.5, "started from the same weights")):
        kin = Kin((), (Group("start", (0, 1), least, ""),))
        cosines = np.eye(len(names))
        cosines[0, 1] = cosines[1, 0] = least
        alike = replace(likeness)
        alike.__dict__["cosines"] = cosines
        first = about_adapters(alike, measured.spectra, kin, [])[0]
        assert told in first.text
        assert first.warns is (least > 0.9)


def test_what_cannot_be_used_is_said_first_and_leads_to_its_fix(measured: Session) -> None:
    path, info = next(iter(measured.infos.items()))
    measured.bad[path] = Finding("x", "error", "It holds NaN.")

    async def steps(pilot: Pilot[Any]) -> None:
        first = to_sentence(pilot, "unusable")
        assert first.text == f"{info.name} cannot be used: It holds NaN."
        assert sentences(pilot)[0] is first
        await pilot.press("enter")
        await pilot.pause()
        assert pilot.app.view.id == "adapters"
        assert pilot.app.query_one("#adapters-filter", Input).value == BROKEN

    look(measured, steps, pane=OPENS)


def test_before_anything_is_measured_the_next_key_is_said(measured: Session) -> None:
    measured.spectra = None

    async def steps(pilot: Pilot[Any]) -> None:
        count = len(measured.included)
        said = "\n".join(screen_lines(pilot.app))
        assert f"2 measures the {count} marked" in said
        await pilot.press("enter")
        assert view(pilot).pane == "inspect-alike"  # there are no layers to go to
        shown = [key.name for key in pilot.app.query_one(Keys).shown]
        assert "Threshold" not in shown
        assert "Open" not in shown

    look(measured, steps)


def test_names_of_layers_lose_what_all_begin_with() -> None:
    names = ["transformer.h.0.attn", "transformer.h.1.mlp"]
    assert list(shortened(names).values()) == ["0.attn", "1.mlp"]
    assert shortened(["a.b"]) == {"a.b": "b"}
    assert shortened([]) == {}


# what each layer lost


def test_a_subspace_opens_on_the_error_and_the_bits_of_its_layers(coded: Path) -> None:
    session = Session()
    session.manifest = read_manifest(coded)
    figures = layer_figures(session.manifest)
    assert figures is not None
    errors, bits = figures.by_layer(figures.errors), figures.by_layer(figures.bits)

    async def steps(pilot: Pilot[Any]) -> None:
        heatmap = pilot.app.query_one("#layer-map", Heatmap)
        shown = {name: float(cell.text) for name, cell in heatmap.cells.items()}
        assert shown == pytest.approx({n: 100 * e for n, e in errors.items()}, abs=0.51)
        assert "all tasks" in str(layers(pilot).border_title)
        for topic, expected in (("error", errors), ("bits", bits)):
            to_sentence(pilot, topic)
            await pilot.press("enter")
            await settle(pilot)
            assert view(pilot).pane == "inspect-layers"
            assert heatmap.focused_layer == max(expected, key=lambda name: expected[name])
        shown = {name: float(cell.text) for name, cell in heatmap.cells.items()}
        assert shown == pytest.approx(bits, abs=0.051)
        row = to_sentence(pilot, "task")
        await pilot.press("enter")
        await settle(pilot)
        assert row.task is not None
        assert row.task in str(layers(pilot).border_title)
        assert pilot.app.query_one("#task-table", Table).row.id == row.task

    look(session, steps, pane=OPENS)


def test_an_adapter_shows_what_it_lost_in_the_subspace_that_is_open(
    measured: Session, coded: Path
) -> None:
    measured.choose(replace(CompressionTarget(), method="auto").checked())
    assert measured.choosing.is_coded
    at = next(i for i, t in enumerate(measured.spectra.tasks) if t.name == "task02")

    async def steps(pilot: Pilot[Any]) -> None:
        matrix(pilot).go_to(at, at)
        await pilot.pause()
        assert "norm of dW" in str(layers(pilot).border_title)  # nothing is lost yet
        measured.manifest = read_manifest(coded)
        await pilot.app.show_step("adapters")
        await pilot.app.show_step("inspect")
        await settle(pilot)
        assert view(pilot).pane == "inspect-summary"  # of the tasks of what was opened
        assert {row.topic for row in sentences(pilot)} == {"task", "error", "bits"}
        await pilot.press("t")
        matrix(pilot).go_to(at, at)
        await settle(pilot)
        expected = SharedSubspace.load(coded).tasks["task02"].errors
        shown = {
            n: float(c.text) for n, c in pilot.app.query_one("#layer-map", Heatmap).cells.items()
        }
        assert shown == pytest.approx({n: 100 * e for n, e in expected.items()}, abs=0.51)

    look(measured, steps)


# walking


def test_n_and_p_walk_through_adapters_and_modules(measured: Session) -> None:
    names = [task.name for task in measured.spectra.tasks]
    modules = measured.spectra.layer_names

    async def steps(pilot: Pilot[Any]) -> None:
        order = matrix(pilot).order
        matrix(pilot).go_to(order[0], order[0])
        await pilot.press("enter", "n")
        await pilot.pause()
        assert matrix(pilot).pair == (order[1], order[1])
        assert names[order[1]] in str(layers(pilot).border_title)
        await pilot.press("p", "p")
        await pilot.pause()
        assert matrix(pilot).pair == (order[-1], order[-1])  # round and round
        assert view(pilot).pane == "inspect-layers"
        layer = pilot.app.query_one("#layer-map", Heatmap).focused_layer
        await pilot.press("enter")
        box = pilot.app.screen
        assert isinstance(box, ModuleBox)
        place = measured.spectra.tasks[order[-1]].path
        assert box.arguments == ["module", place, layer]
        await settle(pilot)
        await pilot.press("n")
        following = modules[(modules.index(layer) + 1) % len(modules)]
        assert box.arguments == ["module", place, following]
        assert following in str(box.query_one(".box").border_title)
        await settle(pilot)
        assert names[order[-1]] in str(box.query_one(".many Static", Static).render())
        await pilot.press("p", "p")
        before = modules[(modules.index(layer) - 1) % len(modules)]
        assert box.arguments == ["module", place, before]
        await pilot.press("N")
        assert box.arguments == ["module", measured.spectra.tasks[order[0]].path, before]
        await settle(pilot)
        assert names[order[0]] in str(box.query_one(".many Static", Static).render())

    look(measured, steps)


# legends, sizes


def test_legends_tell_the_figures_in_their_colours(measured: Session) -> None:
    async def steps(pilot: Pilot[Any]) -> None:
        for which in ("#matrix", "#layer-map"):
            grid: Any = pilot.app.query_one(which)
            assert grid.has_legend
            last = grid.render_line(grid.size.height - 1)
            colours = {segment.style.bgcolor for segment in last if segment.text.strip("· .")}
            assert len(colours) > 3
        matrix(pilot).go_to(0, 0)
        await pilot.pause()
        assert picture(matrix(pilot)).splitlines()[-1].startswith("cosine of dW, red below 0")
        assert "norm of dW" in picture(pilot.app.query_one("#layer-map")).splitlines()[-1]

    look(measured, steps)


def test_after_every_resize_the_panes_lie_as_on_a_terminal_of_that_size(
    measured: Session,
) -> None:
    def seen(pilot: Pilot[Any]) -> dict[str, Any]:
        panes = [pane for pane in view(pilot).query(".pane") if pane.display and pane.size]
        return {str(p.id): p.region for p in panes if p.region.area}

    async def steps(pilot: Pilot[Any]) -> None:
        first = {}
        for size in ((120, 36), (40, 12), (120, 36), (80, 24), (120, 36), (60, 20)):
            await pilot.resize_terminal(*size)
            await pilot.pause()
            now = seen(pilot)
            assert now == first.setdefault(size, now)
            assert len(now) == (6 if size == (120, 36) else 1)
            for region in now.values():
                assert region.right <= size[0]
                assert region.bottom <= size[1] - 1
        heights = {name: region.height for name, region in first[120, 36].items()}
        await pilot.resize_terminal(120, 36)
        for at in (1, 2, 3):
            matrix(pilot).go_to(0, at)
            await pilot.pause()
            assert {name: region.height for name, region in seen(pilot).items()} == heights

    look(measured, steps)


def test_bars_are_as_long_as_their_share() -> None:
    from vlora_tui.tui.widgets.bars import bar

    assert [bar(x, 4, ascii_only=True) for x in (0, 0.5, 1, 2)] == ["....", "##..", "####", "####"]
    assert bar(0.5, 4, ascii_only=False) == "██  "
    assert bar(0.001, 4, ascii_only=False) == "▏   "
    assert all(len(bar(x, 6, ascii_only=False)) == 6 for x in np.linspace(0, 1, 50))
