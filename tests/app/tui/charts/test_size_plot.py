"""The chart of size against error: what stands where, whatever the terminal."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from vlora_tui.tui.charts import size_plot
from vlora_tui.tui.charts.size_plot import DRAWN, MARKS, SizeData, SizeLine, SizeMarks, size_chart
from vlora_tui.tui.charts.variance_plot import Look

LOOK = Look("test")
ASCII = Look("test", ascii_only=True)


def methods(version: Any = 1, **changes: Any) -> SizeData:
    """Five curves, one above the other, from 1.5x to 100x."""
    ratio = np.geomspace(1.5, 100, 30)
    lines = tuple(
        SizeLine(method, ratio, np.minimum(1, 0.002 * 2.0**i * ratio))
        for i, method in enumerate(DRAWN[::-1])
    )
    fields: dict[str, Any] = {
        "points": (("int8", 1.96, 0.0085), ("nf4", 3.86, 0.122)),
        "factor_bytes": 14_700_000,
        "rest_bytes": 60_000,
        **changes,
    }
    return SizeData(version, lines, **fields)


def drawn(
    data: SizeData | None, marks: SizeMarks, size: tuple[int, int], look: Look = LOOK
) -> list[str]:
    return size_chart(data, marks, size, look).plain.split("\n")


def test_every_line_is_as_wide_as_asked_for() -> None:
    marks = SizeMarks(ratio=5.4, error=0.05, goal_error=0.05, goal_words="worst 5 %")
    for size in ((70, 20), (40, 8), (16, 5), (118, 30)):
        lines = drawn(methods(), marks, size)
        assert len(lines) == size[1]
        assert {len(line) for line in lines} == {size[0]}


@pytest.mark.parametrize("size", [(0, 0), (1, 1), (3, 9), (15, 4)])
def test_too_small_is_no_fault(size: tuple[int, int]) -> None:
    assert size_chart(methods(), SizeMarks(ratio=3), size, LOOK).plain.count("\n") <= size[1]


def test_each_method_has_a_mark_of_its_own_on_its_curve() -> None:
    lines = drawn(methods(), SizeMarks(), (100, 30))
    for mark in MARKS.values():
        assert any(mark in line for line in lines[1:]), mark
        assert mark in lines[0]
    plain = drawn(methods(), SizeMarks(), (100, 30), ASCII)
    assert all(any(letter in line for line in plain[1:]) for letter in "AODCF84")


def test_less_error_is_lower_and_fewer_bytes_are_to_the_right() -> None:
    def place(ratio: float, error: float) -> tuple[int, int]:
        lines = drawn(methods(), SizeMarks(ratio=ratio, error=error), (90, 30))
        y = next(i for i, line in enumerate(lines) if "◆" in line)
        return lines[y].index("◆"), y

    (x_small, y_small), (x_large, y_large) = place(16.0, 0.3), place(4.0, 0.01)
    assert x_small > x_large
    assert y_small < y_large
    assert place(1000.0, 1.0)[0] == place(64.0, 1.0)[0] == 90 - 2  # what is beyond is at the edge


def test_the_rule_stands_above_its_size() -> None:
    marks = SizeMarks(ratio=5.4, error=0.05)
    lines = drawn(methods(), marks, (100, 30))
    x = lines[-3].index("▲")
    assert abs(lines[-2].index("~5.4x") + 2 - x) <= 1
    assert any(line[x] == "┃" for line in lines)
    assert "2.78 MB" in lines[-1]
    exact = drawn(methods(), SizeMarks(ratio=5.4, error=0.05, about=False), (100, 30))
    assert " 5.4x" in exact[-2]
    assert "~" not in exact[-2]


def test_the_target_lies_across_the_chart() -> None:
    marks = SizeMarks(ratio=5.4, error=0.03, goal_error=0.05, goal_words="worst 5 %")
    (line,) = (own for own in drawn(methods(), marks, (100, 30)) if "worst 5 %" in own)
    assert line.count("╌") > 40


def test_what_is_not_known_yet_is_said() -> None:
    assert "not measured yet" in "\n".join(drawn(None, SizeMarks(), (60, 15)))
    assert "R measures" in "\n".join(drawn(None, SizeMarks(note="R measures"), (60, 15)))
    waiting = SizeData(("waiting",), methods().lines[:1], waiting=("own", "delta"))
    assert "own…" in drawn(waiting, SizeMarks(), (80, 20))[0]


def test_ascii_means_ascii() -> None:
    marks = SizeMarks(3.0, 0.05, goal_error=0.1, goal_words="mean 10 %", pins=((8.0, 0.2, "own"),))
    for size in ((90, 24), (40, 8)):
        text = size_chart(methods(("ascii", size), waiting=("own",)), marks, size, ASCII).plain
        assert text.isascii()


def test_the_axis_goes_down_as_far_as_the_best_method() -> None:
    def floor(factor: float) -> float:
        ratio = np.geomspace(1, 64, 20)
        return size_plot._floor(SizeData(1, (SizeLine("auto", ratio, factor * ratio),)))

    assert [floor(f) for f in (0.01, 0.0005, 0.00001)] == [1e-3, 1e-4, 1e-5]


def test_moving_the_choice_does_not_plot_again(monkeypatch: pytest.MonkeyPatch) -> None:
    plotted: list[int] = []
    plain = size_plot.rasterise

    def counted(*args: Any, **kwargs: Any) -> Any:
        plotted.append(1)
        return plain(*args, **kwargs)

    monkeypatch.setattr(size_plot, "rasterise", counted)
    data = methods(("once",))
    for i in range(20):
        size_chart(data, SizeMarks(ratio=2.0 + i, error=0.01 * (1 + i)), (70, 20), LOOK)
    assert len(plotted) == 1
