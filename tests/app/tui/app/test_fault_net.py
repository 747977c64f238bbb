"""Faults of every kind: logged with their traceback, shown in words, and the interface goes on."""

from __future__ import annotations

import asyncio
import errno
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.text import Text
from textual import work
from textual.events import MouseDown
from textual.message import Message
from textual.pilot import Pilot
from textual.screen import ModalScreen
from textual.widget import Widget
from textual.widgets import Static

from tests.app.tui.adapters.test_adapters import app, marked, settle
from tests.app.tui.drive import run
from vlora_engine.errors import InputError
from vlora_tui.tui.app import fault_net
from vlora_tui.tui.app.app import VLoRAApp
from vlora_tui.tui.app.fault_net import FLOOD, FaultLog, fault_words
from vlora_tui.tui.widgets.dialogs import Ask, Dialog, Option
from vlora_tui.tui.widgets.table import Table
from vlora_tui.utils import paths

Faults = list[BaseException]


class Odd(Exception):
    """No exception that anything of ours knows."""


class Wanted(Message):
    """Handled by nobody but `Failing`."""


class Failing(Static):
    """A widget that fails where it is told to, and counts what reaches it."""

    def __init__(self, where: str) -> None:
        super().__init__("words")
        self.where, self.reached = where, 0

    def fail(self, where: str) -> None:
        if where == self.where:
            self.where = ""
            raise Odd(f"in {where}")

    def on_mount(self) -> None:
        self.fail("on_mount")

    def on_wanted(self) -> None:
        self.reached += 1
        self.fail("on_wanted")

    def on_resize(self) -> None:
        self.fail("on_resize")

    def on_idle(self) -> None:
        self.fail("on_idle")

    def render(self) -> Text:
        self.fail("render")
        return Text("drawn")

    def timed(self) -> None:
        self.fail("timer")

    @work(thread=True)
    def thread(self) -> None:
        self.fail("thread")

    @work
    async def task(self) -> None:
        self.fail("task")


async def in_a_task(widget: Failing) -> None:
    async def fails() -> None:
        widget.fail("forgotten task")

    task = asyncio.ensure_future(fails())
    await asyncio.wait([task])


PLACES: dict[str, Callable[[Failing], Any]] = {
    "on_mount": lambda widget: None,
    "on_wanted": lambda widget: widget.post_message(Wanted()),
    "on_resize": lambda widget: setattr(widget.styles, "height", 3),
    "on_idle": lambda widget: widget.post_message(Wanted()),
    "render": lambda widget: widget.refresh(),
    "timer": lambda widget: widget.set_timer(0.001, widget.timed),
    "thread": lambda widget: widget.thread(),
    "task": lambda widget: widget.task(),
    "call_later": lambda widget: widget.call_later(widget.fail, "call_later"),
    "call_next": lambda widget: widget.call_next(widget.fail, "call_next"),
    "call_after_refresh": lambda widget: widget.call_after_refresh(
        widget.fail, "call_after_refresh"
    ),
    "forgotten task": lambda widget: widget.call_later(in_a_task, widget),
}


async def caught(pilot: Pilot[Any], faults: Faults) -> None:
    for _ in range(100):
        await pilot.pause()
        if faults:
            return
    pytest.fail("nothing was caught")


@pytest.mark.parametrize("where", PLACES)
def test_whatever_fails_the_interface_goes_on(
    where: str, runs: Path, faults: Faults, messages: list[str]
) -> None:
    application = app(runs)

    async def steps(pilot: Pilot[Any]) -> None:
        await settle(pilot)
        widget = Failing(where)
        await application.view.mount(widget)
        PLACES[where](widget)
        await caught(pilot, faults)
        await pilot.pause()
        assert [str(fault) for fault in faults] == [f"in {where}"]
        faults.clear()

        (shown,) = messages
        assert "bug in vlora-tui" in shown
        assert f"Odd: in {where}" in shown
        log = paths.state_dir() / "interface.log"
        assert "interface.log" in shown
        assert "Traceback" in log.read_text()
        assert f"Odd: in {where}" in log.read_text()

        reached = widget.reached  # the widget itself still hears, and so does all else
        widget.post_message(Wanted())
        await pilot.pause()
        assert widget.reached == reached + 1
        await pilot.press("plus")
        assert len(marked(pilot)) == 4
        assert application.is_running

    run(application, steps)
    assert application.return_code == 0 or application.return_code is None


def test_a_failed_action_holds_up_no_other_key(
    runs: Path, faults: Faults, messages: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    application = app(runs)

    async def steps(pilot: Pilot[Any]) -> None:
        await settle(pilot)

        def fails() -> None:
            raise InputError("It cannot be done so.", remedy="do it otherwise")

        monkeypatch.setattr(application.view, "action_group", fails, raising=False)
        monkeypatch.setattr(application, "action_copy_row", fails)
        for _ in range(3 * FLOOD):  # a key that is held down is no flood
            await pilot.press("y")
        await pilot.press("plus")
        assert len(marked(pilot)) == 4
        assert len(faults) == 3 * FLOOD
        faults.clear()
        (shown,) = messages  # and no flood of words either
        assert "It cannot be done so." in shown
        assert "bug in vlora-tui" not in shown
        text = (paths.state_dir() / "interface.log").read_text()
        assert text.count("Traceback") == 1
        assert "32 times by now" in text

    run(application, steps)


class Never(Static):
    def render(self) -> Text:
        raise Odd("at every refresh")


def test_a_fault_at_every_refresh_ends_it_in_good_order(
    runs: Path,
    faults: Faults,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fault_net, "FLOOD_SECONDS", 3600.0)  # however slow the machine is
    application = app(runs)

    async def steps(pilot: Pilot[Any]) -> None:
        await settle(pilot)
        await pilot.press("plus")
        widget = Never()
        await application.view.mount(widget)
        application.set_interval(0.001, widget.refresh)
        while application.return_code is None:
            await pilot.pause()

    run(application, steps)
    assert application.return_code == 1
    assert len(faults) == FLOOD
    faults.clear()
    told = capfd.readouterr().err
    assert "came back again and again" in told
    assert "Odd: at every refresh" in " ".join(told.split())
    assert "interface.log" in told
    assert "Traceback" not in told
    assert list((paths.state_dir() / "drafts").glob("*")), "the marks were lost"


def test_what_cannot_even_start_says_so(
    faults: Faults, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fails(self: VLoRAApp) -> Any:
        raise Odd("no beginning")

    monkeypatch.setattr(VLoRAApp, "compose", fails)
    application = VLoRAApp()
    application.run(headless=True)
    assert application.return_code == 1
    assert str(faults[0]) == "no beginning"
    faults.clear()
    told = capfd.readouterr().err
    assert "could not start" in told
    assert "Traceback" not in told


def test_a_screen_is_closed_once(runs: Path) -> None:
    application = app(runs)
    answers: list[str | None] = []

    async def steps(pilot: Pilot[Any]) -> None:
        await settle(pilot)
        below, above = (Ask(name, "", [Option("a", "a", "a")]) for name in ("below", "above"))
        application.push_screen(below, answers.append)
        await pilot.pause()
        application.push_screen(above, answers.append)
        await pilot.pause()
        below.dismiss("late")  # it is not on top
        assert application.screen is above
        above.dismiss("once")
        above.dismiss("twice")
        await pilot.pause()
        assert application.screen is below
        await pilot.press("escape", "escape")
        assert answers == ["once", None]
        for _ in range(3):
            application.pop_screen()
        await pilot.pause()
        assert application.is_running
        assert len(application.screen_stack) == 1

    run(application, steps)


@pytest.mark.parametrize("keys", ["escape escape", "escape ctrl+q", "ctrl+q ctrl+q", "q q escape"])
@pytest.mark.parametrize("opens", ["colon", "question_mark"])
def test_closing_twice_in_one_go_closes_one_screen(
    keys: str, opens: str, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    application = app(runs)

    async def steps(pilot: Pilot[Any]) -> None:
        await settle(pilot)
        monkeypatch.setattr(application, "end", lambda *_: None)  # the second key may mean it
        await pilot.press(opens)
        assert isinstance(application.screen, ModalScreen)
        screen: Any = application.screen
        for _ in range(2):
            if isinstance(screen, Dialog):
                screen.action_cancel()
            else:
                screen._action_escape()
        await pilot.pause()
        assert len(application.screen_stack) == 1
        await pilot.press(opens, *keys.split())
        await pilot.pause()
        assert not isinstance(application.screen, ModalScreen)

    run(application, steps)


def test_the_palette_that_finds_nothing(runs: Path) -> None:
    application = app(runs)

    async def steps(pilot: Pilot[Any]) -> None:
        await settle(pilot)
        await pilot.press("colon", *"zzqx")
        await pilot.press("enter", "down", "enter", "up", "pagedown", "enter", "y")
        await pilot.press("enter", *["backspace"] * 5, "escape", "escape")
        await pilot.pause()
        assert len(application.screen_stack) == 1
        await pilot.press("ctrl+p", *"zzqx", "pageup", "pagedown", "up", "down", "ctrl+q")
        assert application.is_running
        assert len(application.screen_stack) == 1

    run(application, steps)


def test_ctrl_q_closes_the_palette_and_no_more(runs: Path) -> None:
    application = app(runs)

    async def steps(pilot: Pilot[Any]) -> None:
        await settle(pilot)
        await pilot.press("colon")
        await pilot.press("ctrl+q")
        await pilot.pause()
        assert application.is_running
        assert len(application.screen_stack) == 1

    run(application, steps)


def test_a_pane_without_a_name_is_none(runs: Path) -> None:
    application = app(runs)

    async def steps(pilot: Pilot[Any]) -> None:
        await settle(pilot)
        await pilot.press("plus", "3")
        await pilot.pause()
        view: Any = application.view
        for name in ("", "no-such", "#", "a b", "9"):
            before = view.pane
            view.go_to_pane(name)
            assert view.pane == before
        view.query(".pane").remove_class("current")
        view.go_to_pane(view.pane)
        view.action_next_pane(1)
        assert view.pane

    run(application, steps)


def test_the_log_stays_small_and_says_when_it_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, faults: Faults
) -> None:
    monkeypatch.setattr(fault_net, "LOG_BYTES", 20_000)
    log = FaultLog(tmp_path / "deep" / "interface.log")
    for number in range(1000):
        try:
            exec(compile(f"{chr(10) * number}raise KeyError({number})", "made", "exec"))
        except KeyError as error:
            log.write(error)
    files = sorted(path.name for path in log.path.parent.iterdir())
    assert files == ["interface.log", "interface.log.1"]
    assert sum(path.stat().st_size for path in log.path.parent.iterdir()) < 50_000
    assert stat.S_IMODE(log.path.parent.stat().st_mode) == 0o700

    blocked = tmp_path / "file"
    blocked.write_text("")
    _, words = FaultLog(blocked / "interface.log").write(Odd("x"))
    assert "could not be logged" in words
    faults.clear()


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (InputError("The name is taken."), "The name is taken."),
        (OSError(errno.ENOSPC, "No space left on device", "/x/\x1b[2J"), "No space left on device"),
        (KeyError("a"), "because of a bug in vlora-tui: KeyError"),
        (Odd(), "because of a bug in vlora-tui: Odd"),
        (Odd("x" * 10_000), "xxx"),
        (Odd("\x1b]0;title\x07"), "\\x1b]0;title\\x07"),
    ],
)
def test_a_fault_in_words(error: Exception, words: str) -> None:
    told = fault_words(error)
    assert words in told
    assert "\x1b" not in told
    assert len(told) < 400


def test_a_late_message_to_a_closed_dialog_is_no_fault(runs: Path) -> None:
    application = app(runs)

    async def steps(pilot: Pilot[Any]) -> None:
        await settle(pilot)

        class Late(Dialog):
            def compose(self) -> Any:
                yield Static("", id="late")

            def on_wanted(self) -> None:
                self.query_one("#late", Static).update("late")
                self.query_one("#gone", Widget)

        dialog = Late()
        await application.push_screen(dialog)
        dialog.dismiss(None)
        dialog.post_message(Wanted())
        await pilot.pause()
        assert len(application.screen_stack) == 1
        assert application.query_one("#adapters-table", Table)

    run(application, steps)


@pytest.mark.parametrize("step", ["choose", "run", "inspect", "export"])
def test_a_step_that_is_asked_for_while_it_is_being_made(step: str, runs: Path) -> None:
    """Keys are faster than views: two of them ask for one, or a key is meant for what is coming."""
    application = app(runs)

    async def steps(pilot: Pilot[Any]) -> None:
        await settle(pilot)
        making = asyncio.ensure_future(application.show_step(step))
        again = asyncio.ensure_future(application.show_step(step))
        while not application.query(f"#{step}"):
            await asyncio.sleep(0)
        application.action_copy_row()  # of a view that cannot answer yet
        application.action_copy_command()
        application.action_filter()
        application.refresh_bar()
        await asyncio.gather(making, again, application.show_step("run"))
        await application.show_step(step)
        assert application.view is not None
        assert application.view.id == step
        assert len(application.query(f"#{step}")) == 1

    run(application, steps)


def test_a_click_on_what_is_no_longer_there(runs: Path) -> None:
    application = app(runs)

    async def steps(pilot: Pilot[Any]) -> None:
        await settle(pilot)
        gone = Static("words")
        await application.view.mount(gone, before=0)
        await pilot.pause()
        x, y = gone.region.offset
        gone._detach()  # as it stands between its removal and the next picture
        assert application.screen.get_widget_at(x, y)[0] is gone
        application.post_message(MouseDown(gone, x, y, 0, 0, 1, False, False, False, x, y))
        await pilot.pause()
        gone._attach(application.view)
        assert application.is_running

    run(application, steps)
