"""What holds the steps together: help, palette, leaving, keys, themes, drafts, recipes."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any

import pytest
from textual.events import Key
from textual.pilot import Pilot
from textual.widgets import Input

from tests.app.tui.adapters.test_adapters import app, marked, settle
from tests.app.tui.drive import run
from vlora_tui.jobs.drafts import Drafts
from vlora_tui.recipe.reader import load_recipe
from vlora_tui.tui.adapters.start_page import StartPage
from vlora_tui.tui.app.app import VLoRAApp
from vlora_tui.tui.app.keys import Keys
from vlora_tui.tui.app.palette import Palette
from vlora_tui.tui.terminal import typeahead
from vlora_tui.tui.widgets.dialogs import Ask, Help, ListProblems, Option, Prompt
from vlora_tui.tui.widgets.table import Table
from vlora_tui.tui.widgets.terms import TERMS, terms_in
from vlora_tui.tui.widgets.terms_page import TermsPage
from vlora_tui.utils import paths
from vlora_tui.utils.config import config_file, load_config


def test_help_tells_the_keys_of_what_has_the_focus(runs: Path) -> None:
    async def steps(pilot: Pilot[Any]) -> None:
        await settle(pilot)
        await pilot.press("question_mark")
        assert isinstance(pilot.app.screen, Help)
        words = pilot.app.screen.text().plain
        assert words.index("In the table") < words.index("In this step") < words.index("Everywhere")
        for told in ("adapters.group", "Mark the adapter's group", "app.help"):
            assert told in words
        await pilot.press("q")
        assert not isinstance(pilot.app.screen, Help)
        assert pilot.app.is_running

    run(app(runs), steps)


def test_the_palette_has_every_action(runs: Path) -> None:
    async def steps(pilot: Pilot[Any]) -> None:
        await settle(pilot)
        entries = list(pilot.app.get_system_commands(pilot.app.screen))
        shown = {c.title: c for c in entries[::-1]}  # what is here comes before other steps'
        told = {b.binding.tooltip or b.binding.description for b in _active(pilot)}
        assert told <= set(shown), told - set(shown)
        assert "Theme: textual-light" in shown
        shown["Theme: textual-light"].callback()
        await pilot.pause()
        assert pilot.app.theme == "textual-light"
        shown["Mark all rows shown"].callback()
        await pilot.pause()
        assert len(marked(pilot)) == 4
        for key in ("colon", "ctrl+p"):
            await pilot.press(key)
            assert isinstance(pilot.app.screen, Palette), key
            await pilot.press("escape")

    def _active(pilot: Pilot[Any]) -> list[Any]:
        return [
            active
            for active in pilot.app.screen.active_bindings.values()
            if active.binding.id
            and active.enabled
            and not active.binding.id.startswith("table.")
            and active.binding.action != "command_palette"
            and (active.binding.tooltip or active.binding.description)
        ]

    run(app(runs), steps)


def test_every_binding_has_an_id_words_and_no_key_of_the_terminals() -> None:
    from vlora_tui.tui.app.keymap import MODULES, TERMINAL_KEYS, _normals, all_bindings

    assert len(all_bindings()) > 30
    for module in MODULES:
        try:
            loaded = __import__(module, fromlist=["x"])
        except ModuleNotFoundError:
            continue
        for thing in vars(loaded).values():
            if isinstance(thing, type) and thing.__module__ == module:
                for binding in vars(thing).get("BINDINGS", ()):
                    assert binding.id, binding
                    assert binding.tooltip or binding.description or not binding.show, binding
                    assert not _normals(binding) & set(TERMINAL_KEYS), binding


def test_q_leaves_what_is_for_a_moment_first(runs: Path) -> None:
    async def steps(pilot: Pilot[Any]) -> None:
        await settle(pilot)
        await pilot.press("z")
        assert pilot.app.screen.maximized is not None
        await pilot.press("q")
        assert pilot.app.screen.maximized is None
        await pilot.press("V", "q")
        assert pilot.app.query_one("#adapters-table", Table).range_from is None
        await pilot.press("slash", "t", "enter", "q")
        assert not pilot.app.query_one("#adapters-filter").display
        assert pilot.app.is_running

    run(app(runs), steps)


def test_a_key_whose_widget_goes_away_holds_up_no_other(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(typeahead, "PATIENCE", 0.2)

    async def steps(pilot: Pilot[Any]) -> None:
        await settle(pilot)
        doomed = Input()
        await pilot.app.view.mount(doomed)
        doomed.focus()
        await pilot.pause()
        pilot.app.post_message(Key("x", "x"))
        doomed.remove()
        pilot.app.post_message(Key("plus", "+"))
        await pilot.pause(0.4)
        assert marked(pilot) == {"task00", "task01", "task02", "task03"}

    run(app(runs), steps)


def test_keys_and_theme_of_the_config_file(runs: Path) -> None:
    config_file().parent.mkdir(parents=True, exist_ok=True)
    config_file().write_text(
        'theme = "textual-light"\nasci = true\n[keys]\n"adapters.all" = "f9"\n"app.hlp" = "f8"\n'
    )
    application = VLoRAApp([str(runs)], config=load_config())
    said: list[str] = []
    application.complain = said.append  # type: ignore[method-assign]

    async def steps(pilot: Pilot[Any]) -> None:
        await settle(pilot)
        assert pilot.app.theme == "textual-light"
        await pilot.press("f9")
        assert len(marked(pilot)) == 4
        assert "line 2" in said[0]
        assert "line 5" in said[0]

    run(application, steps)


def test_an_unknown_theme_is_told_and_another_taken() -> None:
    application = app(theme="no-such")
    said: list[str] = []
    application.complain = said.append  # type: ignore[method-assign]

    async def steps(pilot: Pilot[Any]) -> None:
        await settle(pilot)
        assert "no-such" in said[0]

    run(application, steps)


def test_marks_are_found_again_by_the_next_start(runs: Path) -> None:
    async def first(pilot: Pilot[Any]) -> None:
        await settle(pilot)
        await pilot.press("space", "space")
        await settle(pilot)
        pilot.app.end()

    run(app(runs), first)
    assert len(Drafts(paths.state_dir()).offered()) == 1

    async def second(pilot: Pilot[Any]) -> None:
        await settle(pilot)
        table = pilot.app.query_one(StartPage).table
        assert table.rows[0].action == "draft"
        assert "2 marked" in table.rows[0].why
        await pilot.press("g", "enter")
        await settle(pilot)
        assert marked(pilot) == {"task00", "task01"}

    run(app(), second)


def test_a_recipe_is_opened_with_its_marks_and_choices(runs: Path, tmp_path: Path) -> None:
    file = tmp_path / "recipe.toml"
    file.write_text(
        f'[input]\nadapters = ["{runs}/task0[12]", {{ path = "{runs}/task03", name = "mine" }}]\n'
        '[compress]\nmethod = "columns"\nk = 5\n[output]\nsubspace = "out"\n'
    )
    application = app()
    application.recipe = load_recipe(file)

    async def steps(pilot: Pilot[Any]) -> None:
        await settle(pilot)
        await settle(pilot)
        assert marked(pilot) == {"task01", "task02", "task03"}
        assert {info.name for info in pilot.app.session.chosen} == {"task01", "task02", "mine"}
        session = pilot.app.session
        assert session.choosing.method == "columns"
        assert session.choosing.goal == ("k", 5)
        assert session.output == str(tmp_path / "out")
        assert pilot.app.view.id == "run"

    run(application, steps)


def test_a_state_directory_that_cannot_be_written_is_no_failure(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = tmp_path / "taken"
    taken.write_text("a file where a folder should be")
    monkeypatch.setenv("XDG_STATE_HOME", str(taken))

    async def steps(pilot: Pilot[Any]) -> None:
        await settle(pilot)
        await pilot.press("plus")
        await settle(pilot)
        pilot.app.end()

    run(app(runs), steps)


def test_dialogs_answer_by_key_by_list_and_not_at_all() -> None:
    async def steps(pilot: Pilot[Any]) -> None:
        await settle(pilot)
        given: list[str | None] = []
        options = [Option("a", "one", "1"), Option("b", "two", "2")]
        for keys in (["b"], ["down", "enter"], ["enter"], ["escape"]):
            pilot.app.push_screen(Ask("Title", "words [b]x[/b]", options), given.append)
            await pilot.pause()
            await pilot.press(*keys)
        assert given == ["2", "2", "1", None]
        problems = [("x\x1b[1m", ["cannot be read", "fix: y"])]
        pilot.app.push_screen(ListProblems("Bad", "", problems, options), given.append)
        await pilot.pause()
        await pilot.press("a")
        assert given[-1] == "1"

    run(app(), steps)


def test_a_typed_confirmation_takes_only_the_word() -> None:
    async def steps(pilot: Pilot[Any]) -> None:
        await settle(pilot)
        given: list[str | None] = []
        pilot.app.push_screen(Prompt("Replace", "what is there?", expect="yes"), given.append)
        await pilot.pause()
        await pilot.press("y", "enter")
        assert not given
        await pilot.press("e", "s", "enter")
        assert given == ["yes"]

    run(app(), steps)


def test_the_draft_of_a_folder_that_went_away(runs: Path, tmp_path: Path) -> None:
    there = Path(shutil.copytree(runs, tmp_path / "gone"))

    async def first(pilot: Pilot[Any]) -> None:
        await settle(pilot)
        await pilot.press("plus")
        pilot.app.end()

    run(app(there), first)
    shutil.rmtree(there)
    application = app()

    async def second(pilot: Pilot[Any]) -> None:
        await settle(pilot)
        await pilot.press("g", "enter")
        await settle(pilot)
        assert pilot.app.query_one("#adapters-problem").display
        assert pilot.app.query_one(StartPage).display

    run(application, second)


@pytest.mark.parametrize("width", [40, 60, 120])
def test_help_and_quit_are_never_cut_off(runs: Path, width: int) -> None:
    async def steps(pilot: Pilot[Any]) -> None:
        await settle(pilot)
        for key in "123451":
            await pilot.press(key)
            await settle(pilot)
            line = pilot.app.query_one(Keys).render_line(0).text
            assert {"Help", "Quit"} <= {key.name for key in pilot.app.query_one(Keys).shown}
            assert "? Help" in line
            assert "q Quit" in line

    run(app(runs), steps, size=(width, 12))


def test_why_nothing_could_be_measured_stays_in_sight(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = tmp_path / "taken"
    taken.write_text("a file where a folder should be")
    monkeypatch.setenv("XDG_STATE_HOME", str(taken))

    async def steps(pilot: Pilot[Any]) -> None:
        await settle(pilot)
        await pilot.press("plus", "2")
        await settle(pilot)
        told = pilot.app.view.not_ready()
        assert "4 adapters could not be measured" in told
        assert "state directory" in told
        assert not pilot.app.jobs.spectra_of  # the next look tries again

    run(app(runs), steps)


def test_escape_gives_a_pane_its_place_back_in_every_step(runs: Path) -> None:
    async def steps(pilot: Pilot[Any]) -> None:
        await settle(pilot)
        await pilot.press("plus")
        for step in "1345":
            await pilot.press(step)
            await settle(pilot)
            await pilot.press("z")
            assert pilot.app.screen.maximized is not None, step
            await pilot.press("escape")
            assert pilot.app.screen.maximized is None, step

    run(app(runs), steps)


def test_ctrl_c_says_how_to_quit_and_ctrl_z_suspends(
    runs: Path, monkeypatch: pytest.MonkeyPatch, messages: list[str]
) -> None:
    suspended: list[bool] = []
    monkeypatch.setattr(VLoRAApp, "action_suspend_process", lambda self: suspended.append(True))
    config_file().parent.mkdir(parents=True, exist_ok=True)
    config_file().write_text('[keys]\n"app.leave" = "f10"\n')

    async def steps(pilot: Pilot[Any]) -> None:
        await settle(pilot)
        await pilot.press("ctrl+c")
        assert messages == ["Press f10 to quit."]
        await pilot.press("ctrl+z")
        assert suspended == [True]
        await pilot.press("colon", "ctrl+z")  # in a dialog, too
        assert suspended == [True, True]

    run(VLoRAApp([str(runs)], config=load_config()), steps)


def test_a_step_and_its_keys_come_into_sight_together(runs: Path) -> None:
    """No picture has the keys of the step before under another step."""

    async def steps(pilot: Pilot[Any]) -> None:
        await settle(pilot)
        application = pilot.app
        pictures: list[tuple[str, tuple[str, ...]]] = []
        display = application._display

        def noted(screen: Any, renderable: Any) -> None:
            line = application.query_one(Keys)
            if renderable is not None and not application._batch_count and application.view:
                line.render()
                pictures.append((application.view.id, tuple(k.action for k in line._drawn)))
            display(screen, renderable)

        application._display = noted
        for step in "31345431":
            await pilot.press(step)
            await settle(pilot)
        own = {"run": "output", "adapters": "mark"}
        for step, actions in pictures:
            others = {action for name, action in own.items() if name != step}
            assert not others & set(actions), (step, actions)

    run(app(runs), steps)


def test_what_a_step_says_and_its_keys_leave_with_it(runs: Path, messages: list[str]) -> None:
    async def steps(pilot: Pilot[Any]) -> None:
        await settle(pilot)
        await pilot.press("enter")
        assert any("to continue" in text for text in messages)
        pilot.app.notify("It failed.", severity="error")
        await pilot.press("4")
        await pilot.pause()
        shown = [toast.message for toast in pilot.app._notifications]
        assert shown == ["It failed."]  # advice has been followed; what went wrong is still true
        pilot.app.session.marked.clear()
        await pilot.press("2")
        await pilot.pause()
        keys = [key.name for key in pilot.app.query_one(Keys).shown]
        assert keys == ["Help", "Quit"]
        assert pilot.app.focused is None

    run(app(runs), steps)


def test_a_message_does_not_lie_over_what_has_the_focus(runs: Path) -> None:
    async def steps(pilot: Pilot[Any]) -> None:
        await settle(pilot)
        line = Input()
        line.styles.dock = "top"
        await pilot.app.view.mount(line)
        for dock, below in (("top", True), ("bottom", False)):
            line.styles.dock = dock
            line.focus()
            await pilot.pause()
            pilot.app.notify("About this field.")
            await pilot.pause(0.1)
            rack = pilot.app.screen.query("ToastRack").first()
            assert rack.has_class("-below") == below
            toast = pilot.app.screen.query("Toast").last()
            assert not toast.region.intersection(line.region)
            pilot.app.clear_notifications()

    async def go() -> None:  # messages are drawn only where a test asks for it
        async with app(runs).run_test(size=(120, 36), notifications=True) as pilot:
            await steps(pilot)

    asyncio.run(go())


def test_the_help_leads_to_what_its_words_mean(runs: Path) -> None:
    async def steps(pilot: Pilot[Any]) -> None:
        await settle(pilot)
        await pilot.press("plus", "5")
        await settle(pilot)
        await pilot.press("question_mark")
        words = pilot.app.screen.text().plain
        assert "Terms (t explains them): " in words
        assert "dW" in words.split("Terms (t explains them): ")[1].splitlines()[0]
        await pilot.press("t")
        assert isinstance(pilot.app.screen, TermsPage)
        await pilot.press("escape")
        assert len(pilot.app.screen_stack) == 1

    run(app(runs), steps)


def test_every_term_that_is_promised_is_explained() -> None:
    names = {term.name for term in TERMS}
    promised = "dW, k, codec ratio, own, delta, columns, flat, klt, stable rank, interference"
    assert set(promised.split(", ")) <= names
    assert [term.name for term in terms_in("k of delta, a basis and its dW")] == [
        "dW", "basis", "k", "delta"
    ]  # fmt: skip
    assert terms_in("kept in mind") == []
