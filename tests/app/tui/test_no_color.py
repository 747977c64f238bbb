"""NO_COLOR: not one colour reaches the terminal, and what colour told is told by other means."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from textual.widgets import Static

from tests.app.tui.app.test_start import Terminal
from tests.app.tui.drive import run
from tests.app.tui.test_bytes import PROGRAM, places
from vlora_tui.tui.app.app import VLoRAApp
from vlora_tui.tui.widgets.dialogs import Ask, Option
from vlora_tui.tui.widgets.heatmap import Heatmap
from vlora_tui.tui.widgets.table import Table

_ = places  # the fixture

COLOUR = re.compile(r"(?:^|;)(?:3[0-7]|4[0-7]|9[0-7]|10[0-7]|[34]8)(?:;|:|$)")


def colours(written: bytes) -> list[str]:
    """The styles among what was written that name a colour."""
    return [codes for codes in styles(written) if COLOUR.search(codes)]


def styles(written: bytes) -> list[str]:
    return re.findall(r"\x1b\[([\d;:]*)m", written.decode("utf-8", "replace"))


@pytest.fixture
def terminal(places: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLORTERM", "truecolor")
    there = Terminal(*map(str, places), code=PROGRAM)
    yield there
    there.close()


def test_no_colour_reaches_the_terminal(terminal: Terminal) -> None:
    written = terminal.read(b"measuring ")
    for keys, until in (
        ("j", b"task01"),
        ("2", b"Explained variance"),
        ("\t\tt", b"each module"),
        ("3", b"Ready to run"),
        ("4", b"Inspect"),
        ("5", b"Export"),
        ("?", b"guides"),
    ):
        terminal.press(keys)
        written += terminal.read(until)
    written += terminal.read(seconds=1)
    assert colours(written) == []
    attributes = {word for codes in styles(written) for word in codes.split(";")}
    assert {"1", "2", "7"} <= attributes  # bold, dim, reverse


def test_with_colours_there_are_some(
    places: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    there = Terminal(*map(str, places), code=PROGRAM)
    try:
        assert colours(there.read(b"measuring "))
    finally:
        there.close()


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch, places: tuple[Path, Path]) -> VLoRAApp:
    from vlora_engine.catalog.scanner import scan
    from vlora_engine.spectra.tables import Spectra

    monkeypatch.setenv("NO_COLOR", "1")
    app = VLoRAApp()
    app.session.add_found(scan([str(places[0])]).adapters)
    for path in app.session.infos:
        app.session.mark(path)
    app.jobs.spectra_of = tuple(sorted(app.session.marked))
    app.session.set_spectra(Spectra.load(places[1]))
    return app


def test_focus_and_cursors_are_told_by_reverse(plain: VLoRAApp) -> None:
    async def steps(pilot) -> None:  # type: ignore[no-untyped-def]
        table = plain.query_one("#adapters-table", Table)
        assert table.get_component_rich_style("table--cursor").reverse
        assert plain.query_one("#adapters-list").styles.border_title_style.reverse
        assert not plain.query_one("#adapters-details").styles.border_title_style.reverse
        await pilot.press("2")
        await pilot.pause()
        layers = plain.query_one("#layers", Heatmap)
        layers.focus()
        await pilot.pause()
        assert layers.get_component_rich_style("heatmap--cursor").reverse
        assert layers.styles.border_title_style.reverse
        line = layers.render_line(1).text
        assert re.search(r"\[\d+\].*\d", line), line  # cells are digits, the cursor has brackets
        plain.push_screen(Ask("Quit", "?", [Option("a", "b", "c")]))
        await pilot.pause()
        assert plain.screen.query_one(Table).get_component_rich_style("table--cursor").reverse
        assert plain.screen.query(Static)

    run(plain, steps)


def test_themes_of_colours_are_not_offered(plain: VLoRAApp) -> None:
    async def steps(pilot) -> None:  # type: ignore[no-untyped-def]
        assert plain.theme == "ansi-dark"
        offered = [c.title for c in plain.get_system_commands(plain.screen) if "Theme" in c.title]
        assert offered == ["Theme: ansi-light"]

    run(plain, steps)
