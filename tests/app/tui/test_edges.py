"""The interface where the system refuses: closed folders and files, no state, hardly a terminal."""

from __future__ import annotations

import fcntl
import shutil
import struct
import termios
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot

from tests.app.tui.adapters.test_adapters import app, names, problem, settle, view
from tests.app.tui.app.test_start import COMMAND, Terminal
from tests.app.tui.drive import resized, run
from vlora_tui.tui.app.app import STEPS

Close = Callable[[Path], None]


@pytest.fixture
def folder(runs: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(runs, tmp_path / "runs"))


def test_a_closed_directory_is_a_row_that_says_so(folder: Path, closed: Close) -> None:
    closed(folder / "task01")

    async def steps(pilot: Pilot[Any]) -> None:
        await settle(pilot)
        assert names(pilot) == ["task00", "task01", "task02", "task03"]
        row = view(pilot).table.rows[1]
        assert row.error is not None
        assert "may not be read" in row.error.what
        said: list[str] = []
        view(pilot).notify = lambda text, **_: said.append(text)  # type: ignore[method-assign]
        await pilot.press("down", "space")
        assert "cannot be used" in said[0]
        await pilot.press("plus")
        assert {Path(path).name for path in pilot.app.session.marked} == {
            "task00",
            "task02",
            "task03",
        }
        await pilot.press("r")
        await settle(pilot)
        assert len(names(pilot)) == 4

    run(app(folder), steps)


def test_a_folder_that_is_closed_itself_is_told(folder: Path, closed: Close) -> None:
    closed(folder)

    async def steps(pilot: Pilot[Any]) -> None:
        view(pilot).look_into([str(folder)])
        await settle(pilot)
        said = problem(pilot)
        assert "Permission denied" in said
        assert str(folder) in said

    run(app(), steps)


def test_a_file_that_may_not_be_read_is_a_row_that_says_so(folder: Path, closed: Close) -> None:
    closed(folder / "task02" / "adapter_model.safetensors")

    async def steps(pilot: Pilot[Any]) -> None:
        await settle(pilot)
        broken = [row for row in view(pilot).table.rows if row.error is not None]
        assert [row.name for row in broken] == ["task02"]
        assert "Permission denied" in str(broken[0].error)

    run(app(folder), steps)


def test_starting_a_job_without_a_state_directory_says_why(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "taken").write_text("a file where a folder should be")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "taken"))
    application, said = app(runs), []
    application.complain = said.append  # type: ignore[method-assign]

    async def steps(pilot: Pilot[Any]) -> None:
        await settle(pilot)
        await pilot.press("plus", "3")
        await settle(pilot)
        pilot.app.session.output = str(tmp_path / "out")
        pilot.app.start_job(pilot.app.session.recipe())
        await settle(pilot)
        assert "The state directory cannot be used" in said[-1]
        assert "set XDG_STATE_HOME to another folder" in said[-1]
        assert "--" not in said[-1]
        assert pilot.app.is_running

    run(application, steps)


@pytest.mark.parametrize("step", [step.id for step in STEPS])
def test_a_terminal_without_room_is_survived(runs: Path, step: str) -> None:
    without_room = [(1, 1), (2, 1), (1, 40), (200, 1), (0, 0), (80, 0), (0, 24)]

    async def steps(pilot: Pilot[Any]) -> None:
        await settle(pilot)
        await pilot.press("plus")
        await pilot.app.show_step(step)
        async for size in resized(pilot, without_room):
            await settle(pilot)
            await pilot.press("down", "question_mark", "escape")
            await pilot.resize_terminal(120, 36)
            await settle(pilot)
            assert pilot.app.is_running, size
            assert pilot.app.view.id == step, size
            assert pilot.app.view.size.width > 100, size

    run(app(runs), steps)


@pytest.mark.parametrize("size", [(1, 1), (0, 0), (0, 120)])
def test_a_real_terminal_that_shrinks_to_nothing_and_comes_back(
    runs: Path, size: tuple[int, int]
) -> None:
    terminal = Terminal(str(runs))
    try:
        terminal.read(b"task03")
        resize(terminal, *size)
        terminal.quiet()
        terminal.press("2")
        terminal.quiet()
        resize(terminal, 36, 120)
        terminal.read(b"Choose k")
        terminal.press("1")
        terminal.read(b"task03")
        terminal.press("q")
        assert terminal.ends() == 0
    finally:
        terminal.close()


def test_the_size_is_that_of_the_terminal_that_is_drawn_on(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("LINES", "12")
    terminal = Terminal(str(runs), code=INTO_A_FILE.format(file=tmp_path / "out"))
    try:
        assert b"2 Choose k" in terminal.read(b"task03")  # at 40 columns there is only a 2
    finally:
        terminal.close()


INTO_A_FILE = "import os; os.dup2(os.open('{file}', os.O_CREAT | os.O_WRONLY), 1)\n" + COMMAND


def resize(terminal: Terminal, rows: int, columns: int) -> None:
    fcntl.ioctl(terminal.fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
