"""Words that have to fit: the status line, lines that are folded."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from rich.text import Text
from textual.app import App, ComposeResult
from textual.pilot import Pilot
from textual.widget import Widget

from tests.app.tui.drive import run
from vlora_tui.tui.text import cut
from vlora_tui.tui.widgets.folding import hanging
from vlora_tui.tui.widgets.topbar import TopBar, fitting

TITLE = "org/model · 19 adapters · 10.1 MB"
JOB = "job: layers 3/28, 4 s left"


@pytest.mark.parametrize(
    ("job", "width", "shown"),
    [
        (JOB, 80, f"{TITLE}  {JOB}"),
        (JOB, 60, f"model · 19 adapters · 10.1 MB  {JOB}"),
        (JOB, 40, f"19 adapters  {JOB}"),
        (JOB, 28, JOB),
        (JOB, 23, "layers 3/28, 4 s left"),
        (JOB, 12, "layers 3/28"),
        ("", 30, "model · 19 adapters · 10.1 MB"),
        ("", 20, "19 adapters"),
        ("", 3, "19 adapters"),  # the bar cuts it off
    ],
)
def test_the_status_line_gives_up_what_matters_least(job: str, width: int, shown: str) -> None:
    assert fitting(TITLE, job, width) == shown


def test_what_is_open_may_be_nothing() -> None:
    assert fitting("nothing open", "", 20) == "nothing open"
    assert fitting("", "", 20) == ""


def test_folded_lines_go_on_below_their_first_word() -> None:
    text = Text("left out  broken: it holds NaN in one tensor\n  where: a/rather/long/path here")
    assert [line.rstrip() for line in hanging(text, 30).plain.split("\n")] == [
        "left out  broken: it holds NaN",
        "          in one tensor",
        "  where: a/rather/long/path",
        "    here",
    ]


def test_a_word_without_a_gap_is_broken_and_nothing_lost() -> None:
    text = Text(f"written   {'x' * 70}")
    folded = hanging(text, 30)
    assert folded.plain.startswith("written   x")
    assert folded.plain.count("x") == 70
    assert max(map(len, folded.plain.split("\n"))) == 30


@pytest.mark.parametrize(
    ("lost", "plain", "ascii_only"),
    [
        ("start", "…-adapter", "..adapter"),
        ("middle", "a-lo…pter", "a-lo..ter"),
        ("end", "a-long-a…", "a-long-.."),
    ],
)
def test_a_cut_text_says_where_it_was_cut(lost: str, plain: str, ascii_only: str) -> None:
    assert cut("a-long-adapter", 9, ascii_only=False, lost=lost) == plain  # type: ignore[arg-type]
    assert cut("a-long-adapter", 9, ascii_only=True, lost=lost) == ascii_only  # type: ignore[arg-type]
    assert cut("adapter", 9, ascii_only=False, lost=lost) == "adapter"  # type: ignore[arg-type]
    assert cut("a-long-adapter", 1, ascii_only=True, lost=lost) == "."  # type: ignore[arg-type]


def test_wide_characters_are_cut_whole() -> None:
    assert cut("数据适配器", 6, ascii_only=False) == "数据…"
    assert cut("数据适配器", 6, ascii_only=False, lost="start") == "…配器"


def test_what_is_open_never_touches_the_step_in_view() -> None:
    steps = [SimpleNamespace(id=name, key=n, name=name) for n, name in enumerate("ab", start=1)]
    bar = TopBar(steps)

    async def look(pilot: Pilot[Any]) -> None:
        for length in range(54, 64):
            bar.show(2, "x" * length, "")
            assert bar.render().plain.startswith(" 1 a  2 b  "), length

    run(Showing(bar), look, (70, 3))


class Showing(App[None]):
    """An application of one widget."""

    def __init__(self, widget: Widget) -> None:
        super().__init__()
        self._widget = widget

    def compose(self) -> ComposeResult:
        yield self._widget
