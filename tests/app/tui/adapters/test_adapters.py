"""Step 1: finding, filtering, sorting, marking, opening; what goes wrong is said."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from textual import events
from textual.pilot import Pilot
from textual.widgets import Input, Static

from tests.app.tui.drive import resized, run, screen_lines
from tests.witnesses import make
from vlora_engine.catalog.scanner import scan
from vlora_engine.spectra.tables import TaskEntry
from vlora_tui.tui.adapters.places import places_of
from vlora_tui.tui.adapters.rows import NOT_CHECKED
from vlora_tui.tui.adapters.scanner import pasted_paths
from vlora_tui.tui.adapters.start_page import StartPage
from vlora_tui.tui.adapters.view import AdaptersView
from vlora_tui.tui.app.app import VLoRAApp
from vlora_tui.tui.app.keys import Keys
from vlora_tui.tui.core.session import Session
from vlora_tui.tui.widgets.buttons import Buttons
from vlora_tui.tui.widgets.path_input import begun_anew
from vlora_tui.utils.config import load_config


@pytest.fixture
def folder(runs: Path, tmp_path: Path) -> Path:
    """Four adapters that fit together, one of another base model, one that is cut short."""
    folder = Path(shutil.copytree(runs, tmp_path / "runs"))
    make.write(
        folder / "other",
        make.factors({"model.layers.0.q_proj": (8, 8)}, rank=2),
        make.config(base_model_name_or_path="llama", r=2),
    )
    cut = make.write(folder / "cut-short") / "adapter_model.safetensors"
    cut.write_bytes(cut.read_bytes()[:200])
    return folder


def app(*paths: object, **flags: Any) -> VLoRAApp:
    return VLoRAApp([str(path) for path in paths], config=load_config(flags))


async def settle(pilot: Pilot[Any]) -> None:
    """Until every thread has told what it found and the screen shows it."""
    for _ in range(3):
        await pilot.app.workers.wait_for_complete()
        await pilot.pause()


def view(pilot: Pilot[Any]) -> AdaptersView:
    return pilot.app.query_one(AdaptersView)


def problem(pilot: Pilot[Any]) -> str:
    return str(pilot.app.query_one("#adapters-problem", Static).render())


def names(pilot: Pilot[Any]) -> list[str]:
    return [row.name for row in view(pilot).table.rows]


def marked(pilot: Pilot[Any]) -> set[str]:
    return {Path(path).name for path in pilot.app.session.marked}


def test_keys_of_marks_are_shown_where_a_row_can_be_marked(folder: Path) -> None:
    async def steps(pilot: Pilot[Any]) -> None:
        await settle(pilot)
        for row in view(pilot).table.rows:
            view(pilot).find(row.path)
            await pilot.pause()
            shown = {key.name for key in pilot.app.query_one(Keys).shown}
            assert ({"Mark", "Group"} <= shown) == (row.error is None), row.name
            facts = str(pilot.app.query_one("#adapters-facts", Static).render())
            assert facts.splitlines()[0] == row.name

    run(app(folder), steps)


@pytest.mark.parametrize("size", [(120, 36), (80, 24), (60, 20), (40, 12)])
def test_the_hint_fits_its_line(folder: Path, size: tuple[int, int]) -> None:
    async def steps(pilot: Pilot[Any]) -> None:
        await settle(pilot)
        hint = pilot.app.query_one("#adapters-hint")
        assert "Enter marks all that fit" in hint.render_line(0).text
        await pilot.press("plus")
        await settle(pilot)
        assert "2 groups" in hint.render_line(0).text
        assert not any("…" in hint.render_line(y).text for y in range(hint.size.height))

    run(app(folder), steps, size)


def test_a_subspace_alone_is_there_to_be_opened(subspace: Path) -> None:
    async def steps(pilot: Pilot[Any]) -> None:
        await settle(pilot)
        hint = pilot.app.query_one("#adapters-hint").render_line(0).text
        assert hint.strip() == "Enter opens the subspace"

    run(app(subspace), steps)


def test_a_folder_is_listed_with_what_its_headers_tell(folder: Path) -> None:
    async def steps(pilot: Pilot[Any]) -> None:
        await settle(pilot)
        assert names(pilot) == ["cut-short", "other", "task00", "task01", "task02", "task03"]
        task = next(row for row in view(pilot).table.rows if row.name == "task00")
        cells = [text for text, _ in task.cells()]
        assert cells[:4] == ["task00", "gpt2", "4", "8"]
        assert cells[-1] == NOT_CHECKED
        # What is the same in every row takes no column: the details say it.
        assert "tensors" not in [column.key for column in view(pilot).table.columns]
        view(pilot).table.move_to(2)
        await pilot.pause()
        assert "Values not checked yet" in str(
            pilot.app.query_one("#adapters-findings", Static).render()
        )
        assert {row.group for row in view(pilot).table.rows} == {None, 1, 2}

    run(app(folder), steps)


def test_marks_by_key(folder: Path) -> None:
    tasks = {"task00", "task01", "task02", "task03"}

    async def steps(pilot: Pilot[Any]) -> None:
        await settle(pilot)
        await pilot.press("down", "space")
        assert marked(pilot) == {"other"}
        await pilot.press("minus")
        assert marked(pilot) == tasks
        await pilot.press("plus")
        assert marked(pilot) == tasks | {"other"}
        await pilot.press("plus")
        assert not marked(pilot)
        await pilot.press("G", "asterisk")
        assert marked(pilot) == tasks
        await pilot.press("asterisk")
        assert not marked(pilot)
        await pilot.press("V", "up", "up", "V")
        assert marked(pilot) == {"task01", "task02", "task03"}
        await pilot.press("u")
        assert not marked(pilot)

    run(app(folder), steps)


def test_what_cannot_be_used_cannot_be_marked(folder: Path) -> None:
    async def steps(pilot: Pilot[Any]) -> None:
        await settle(pilot)
        await pilot.press("g", "space")
        assert view(pilot).table.row.name == "cut-short"
        assert not marked(pilot)
        await pilot.press("asterisk")
        assert not marked(pilot)

    run(app(folder), steps)


def test_the_filter(folder: Path) -> None:
    rows = {
        "task": ["task00", "task01", "task02", "task03"],
        "!task": ["cut-short", "other"],
        "group:2": ["task00", "task01", "task02", "task03"],
        "rank<4": ["other"],
        "base:lla": ["other"],
        "is:broken": ["cut-short"],
        "size>1GB": [],
        "task is:marked": [],
    }

    async def steps(pilot: Pilot[Any]) -> None:
        await settle(pilot)
        for typed, left in rows.items():
            await pilot.press("slash")
            pilot.app.query_one("#adapters-filter", Input).value = typed
            await pilot.pause()
            assert names(pilot) == left, typed
            await pilot.press("enter", "plus")
            assert marked(pilot) <= set(left), typed
            await pilot.press("escape")
            assert len(names(pilot)) == 6, typed
            for path in list(pilot.app.session.marked):
                pilot.app.session.mark(path, False)

    run(app(folder), steps)


def test_sorting_keeps_what_is_not_known_last(folder: Path) -> None:
    async def steps(pilot: Pilot[Any]) -> None:
        await settle(pilot)
        columns = [column.key for column in view(pilot).table.shown_columns]
        for _ in range(columns.index("rank")):
            await pilot.press("s")
        assert names(pilot)[0] == "other"
        assert names(pilot)[-1] == "cut-short"
        await pilot.press("S")
        assert names(pilot)[-2:] == ["other", "cut-short"]

    run(app(folder), steps)


def test_enter_marks_what_fits_then_opens_the_details_and_starts_nothing(folder: Path) -> None:
    async def steps(pilot: Pilot[Any]) -> None:
        await settle(pilot)
        gone: list[str] = []

        async def show_step(step: str) -> None:
            gone.append(step)

        pilot.app.show_step = show_step  # type: ignore[attr-defined]
        await pilot.press("G", "enter")
        assert len(marked(pilot)) == 4
        assert not gone
        await pilot.press("enter")
        assert view(pilot).query_one("#adapters-details").has_focus
        await pilot.press("escape")
        assert view(pilot).table.has_focus
        assert not gone
        buttons = view(pilot).query_one(Buttons)
        assert buttons.text == "[ 2 Choose k ]"
        await pilot.click(Buttons, offset=(3, 0))
        assert gone == ["choose"]

    run(app(folder), steps)


def test_enter_opens_a_subspace(subspace: Path) -> None:
    async def steps(pilot: Pilot[Any]) -> None:
        await settle(pilot)
        opened: list[str] = []

        async def open_subspace(path: str) -> None:
            opened.append(path)

        pilot.app.open_subspace = open_subspace  # type: ignore[attr-defined]
        assert view(pilot).table.row.is_subspace
        await pilot.press("space", "enter")
        assert opened == [str(subspace)]
        assert not marked(pilot)

    run(app(subspace), steps)


def test_names_grow_when_another_folder_has_the_same(folder: Path, tmp_path: Path) -> None:
    again = Path(shutil.copytree(folder, tmp_path / "again"))

    async def steps(pilot: Pilot[Any]) -> None:
        await settle(pilot)
        await pilot.press("G", "space")
        view(pilot).look_into([str(again)])
        await settle(pilot)
        assert "again/task03" in names(pilot)
        assert "runs/task03" in names(pilot)
        assert len(marked(pilot)) == 1

    run(app(folder), steps)


def test_the_first_run_offers_ways_to_begin_and_a_pasted_path_is_looked_into(folder: Path) -> None:
    async def steps(pilot: Pilot[Any]) -> None:
        await settle(pilot)
        page = pilot.app.query_one(StartPage)
        assert page.display
        assert {b.action for b in page.table.rows} >= {"open", "look", "demo"}
        pilot.app.post_message(events.Paste(f"'{folder}'"))
        await settle(pilot)
        assert not page.display
        assert len(names(pilot)) == 6
        await pilot.press("C")
        assert page.display
        assert str(folder) in [b.folder for b in page.table.rows]  # a recent folder now

    run(app(), steps)


def test_pasted_texts_name_places() -> None:
    assert pasted_paths("'/a b/c'\n") == ["/a b/c"]
    assert pasted_paths("/a\\ b /c\n/d") == ["/a b", "/c", "/d"]
    assert pasted_paths("file:///a%20b") == ["/a b"]
    assert pasted_paths("it's") == ["it's"]


@pytest.mark.parametrize("place", ["hf://org/name", "s3://bucket/x", "me@host:/x", "/no/such"])
def test_what_cannot_be_looked_into_is_said_and_stays_on_the_page(
    place: str, messages: list[str]
) -> None:
    async def steps(pilot: Pilot[Any]) -> None:
        await settle(pilot)  # there is a view to ask
        view(pilot).look_into([place])
        await settle(pilot)
        assert "--" not in problem(pilot)
        assert pilot.app.query_one(StartPage).display
        assert pilot.app.query_one("#adapters-problem").region.height > 1
        assert not messages  # which would vanish
        await pilot.press("escape")
        assert not pilot.app.query_one("#adapters-problem").display

    run(app(), steps)


def test_a_folder_that_goes_away_while_it_is_scanned(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vlora_engine.catalog.scanner import Finder

    whole = Finder.look

    def look(self: Finder, path: str) -> Any:
        for found in whole(self, path):
            shutil.rmtree(folder, ignore_errors=True)
            yield found

    monkeypatch.setattr(Finder, "look", look)

    async def steps(pilot: Pilot[Any]) -> None:
        await settle(pilot)
        assert len(names(pilot)) >= 1
        await pilot.press("G", "space", "r")
        await settle(pilot)
        assert pilot.app.is_running

    run(app(folder), steps)


def test_a_scan_stops_at_a_key(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    from vlora_engine.catalog.scanner import Finder

    whole, go_on = Finder.look, threading.Event()

    def look(self: Finder, path: str) -> Any:
        for i, found in enumerate(whole(self, path)):
            if i == 2:
                go_on.wait(10)
            yield found

    monkeypatch.setattr(Finder, "look", look)

    async def steps(pilot: Pilot[Any]) -> None:
        await pilot.pause()
        await pilot.press("x")
        go_on.set()
        await settle(pilot)
        assert len(names(pilot)) == 3
        assert "found" in str(pilot.app.query_one("#adapters-list").border_subtitle)

    run(app(folder), steps)


def test_a_limit_is_told(folder: Path) -> None:
    async def steps(pilot: Pilot[Any]) -> None:
        await settle(pilot)
        assert len(names(pilot)) == 2
        assert "first 2" in problem(pilot)

    run(app(folder, scan_limit=2), steps)


@pytest.mark.parametrize("size", [(120, 36), (40, 12)])
def test_the_demo_says_what_it_is_going_to_show_and_is_listed(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    async def steps(pilot: Pilot[Any]) -> None:
        await settle(pilot)
        view(pilot).make_demo(str(tmp_path / "demo"))
        view(pilot)._show()
        words = pilot.app.query_one("#adapters-instead", Static)
        assert words.display
        assert not view(pilot).table.display
        assert "You are about to see" in str(words.render())
        details = str(pilot.app.query_one("#adapters-facts", Static).render())
        assert "matches the filter" not in details
        assert [key.name for key in pilot.app.query_one(Keys).shown] == ["Help", "Quit"]
        await settle(pilot)
        assert view(pilot).table.display
        await settle(pilot)
        assert len(names(pilot)) == 19

    run(app(), steps, size)


def test_the_cursor_is_on_the_first_row_after_a_scan_unless_it_was_moved(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows come in any order, and are sorted: the first that came is not the first that stands."""
    from vlora_engine.catalog.scanner import Finder
    from vlora_tui.tui.adapters import scanner

    whole = Finder.look
    monkeypatch.setattr(scanner, "BATCH_SECONDS", -1.0)  # each by itself

    def backwards(self: Finder, path: str) -> Any:
        return iter(list(whole(self, path))[::-1])

    monkeypatch.setattr(Finder, "look", backwards)

    async def steps(pilot: Pilot[Any]) -> None:
        await settle(pilot)
        assert view(pilot).table.cursor == 0
        assert view(pilot).table.row.name == "cut-short"
        await pilot.press("down")
        view(pilot)._show()
        assert view(pilot).table.row.name == "other"

    run(app(folder), steps)


def test_typing_into_the_open_dialog_begins_anew(folder: Path) -> None:
    async def steps(pilot: Pilot[Any]) -> None:
        await settle(pilot)
        for typed in ("/abs", "~", "~/x", "hf://org/name"):
            await pilot.press("o")
            await pilot.pause()
            line = pilot.app.screen.query_one(Input)
            assert line.value.endswith("/")
            await pilot.press(*typed)
            assert line.value == typed
            await pilot.press("escape")
        await pilot.press("o")
        await pilot.pause()
        before = pilot.app.screen.query_one(Input).value
        await pilot.press(*"ru")  # a name walks on
        assert pilot.app.screen.query_one(Input).value == f"{before}ru"

    run(app(folder), steps)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("~/runs//tmp", "/tmp"),
        ("~/runs/~/x", "~/x"),
        ("~/runs/hf://a/b", "hf://a/b"),
        ("hf://a/b", "hf://a/b"),
        ("~/a~b", "~/a~b"),
        ("/", "/"),
    ],
)
def test_where_a_path_begins_anew(typed: str, meant: str) -> None:
    assert begun_anew(typed) == meant


def test_every_size_shows_the_rows_and_takes_keys(folder: Path) -> None:
    sizes = [(120, 36), (80, 24), (60, 20), (40, 12), (20, 5), (1, 1)]

    async def steps(pilot: Pilot[Any]) -> None:
        await settle(pilot)
        table = view(pilot).table
        async for size in resized(pilot, sizes):
            assert table.shown_columns[0].key == "name", size
            await pilot.press("g")
            if size >= (40, 12):
                shown = "\n".join(table.render_line(y).text for y in range(table.size.height))
                assert "cut-short" in shown, size
            await pilot.press("G", "space", "z", "z", "slash", "x", "escape")
            assert marked(pilot) == {"task03"}, size
            await pilot.press("G", "space")
            assert marked(pilot) == set(), size

    run(app(folder), steps)


def test_ascii_only_draws_ascii_only(folder: Path) -> None:
    async def steps(pilot: Pilot[Any]) -> None:
        await settle(pilot)
        await pilot.press("G", "asterisk")
        text = "\n".join(screen_lines(pilot.app))
        odd = {c for c in text if not c.isascii()}
        assert not odd, odd

    run(app(folder, ascii=True), steps)


def test_a_name_cannot_draw_on_the_screen(folder: Path) -> None:
    evil = folder / "evil\x1b[31m\u202ename"
    shutil.copytree(folder / "task00", evil)

    async def steps(pilot: Pilot[Any]) -> None:
        await settle(pilot)
        row = next(row for row in view(pilot).table.rows if "evil" in row.name)
        view(pilot).table.move_to(list(view(pilot).table.rows).index(row))
        await pilot.pause()
        text = "\n".join(screen_lines(pilot.app))
        assert "\x1b" not in text
        assert "\u202e" not in text
        assert "\x1b" not in row.text()

    run(app(folder), steps)


def test_the_open_dialog_walks_completes_and_looks(folder: Path) -> None:
    async def steps(pilot: Pilot[Any]) -> None:
        await settle(pilot)
        await pilot.press("o")
        await settle(pilot)
        line = pilot.app.screen.query_one(Input)
        line.value = str(folder.parent) + "/ru"
        await settle(pilot)
        await pilot.press("tab")
        assert line.value == f"{folder}/"
        await settle(pilot)
        await pilot.press("enter")
        await settle(pilot)
        assert len(names(pilot)) == 6

    run(app(), steps)


def test_on_a_small_terminal_the_details_take_the_lists_place(folder: Path) -> None:
    async def steps(pilot: Pilot[Any]) -> None:
        await settle(pilot)
        listed = view(pilot).query_one("#adapters-list")
        details = view(pilot).query_one("#adapters-details")
        assert (bool(listed.region), bool(details.region)) == (True, False)
        await pilot.press("tab")
        await pilot.pause()
        assert (bool(listed.region), bool(details.region)) == (False, True)
        assert details.has_focus
        await pilot.press("tab")
        await pilot.pause()
        assert (bool(listed.region), bool(details.region)) == (True, False)

    run(app(folder), steps, (40, 12))


def test_several_of_one_folder_are_looked_for_in_that_folder() -> None:
    assert places_of(["/a/x", "/a/y", "/b/z"]) == ["/a", "/b/z"]
    assert places_of(["/a/x"]) == ["/a/x"]
    assert places_of([]) == []


def test_what_was_checked_stays_checked_under_another_name(folder: Path) -> None:
    session = Session()
    session.add_found(scan([folder]).adapters)
    for path in session.infos:
        session.mark(path, True)
    tasks = [TaskEntry(i.name, "", 1.0, 1, 1, 0, "F32", str(i.path)) for i in session.chosen]
    session.spectra = SimpleNamespace(tasks=tasks, findings=())  # type: ignore[assignment]
    known = set(session.checked)
    assert known == set(session.marked)
    session.rename({path: f"other/{info.name}" for path, info in session.infos.items()})
    assert set(session.checked) == known
