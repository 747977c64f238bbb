"""The chart: what stands where, whatever the size; drawn once for what it shows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from vlora_tui.tui.charts import variance_plot as charts_variance_plot
from vlora_tui.tui.charts.variance_plot import Look, Marks, VarianceData, variance_chart

LOOK = Look("test")
ASCII = Look("test", ascii_only=True)


def curves(version: Any = 1, *, top: int = 72, layers: int = 36) -> VarianceData:
    k = np.arange(top + 1)
    share = np.clip(1 - np.exp(-k / 12), 0, 1)
    share[-1] = 1
    return VarianceData(
        version=version,
        k=k,
        median=share,
        low=share**2,
        high=np.sqrt(share),
        layers=layers,
        expected=36,
        focus=(k, share**1.5),
        focus_name="3.c_attn",
    )


def lines(data: VarianceData | None, marks: Marks, size: tuple[int, int], look: Look) -> list[str]:
    return variance_chart(data, marks, size, look).plain.split("\n")


def test_every_line_is_as_wide_as_asked_for() -> None:
    for size in ((70, 20), (40, 8), (16, 5), (118, 30)):
        drawn = lines(curves(), Marks(k=16, low=4, high=31), size, LOOK)
        assert len(drawn) == size[1]
        assert {len(line) for line in drawn} == {size[0]}


@pytest.mark.parametrize("size", [(0, 0), (1, 1), (3, 9), (15, 4)])
def test_too_small_is_no_fault(size: tuple[int, int]) -> None:
    assert variance_chart(curves(), Marks(k=3), size, LOOK).plain.count("\n") <= size[1]


def test_the_rule_stands_above_its_label() -> None:
    drawn = lines(curves(), Marks(k=16, low=16, high=16), (70, 20), LOOK)
    label = drawn[-1].index("k 16") + 1
    assert abs(drawn[-2].index("▲") - label) <= 1
    assert drawn[5][drawn[-2].index("▲")] == "┃"


def test_the_rule_moves_right_with_k() -> None:
    places = [
        lines(curves(), Marks(k=k, low=k, high=k), (70, 20), LOOK)[-2].index("▲")
        for k in (1, 8, 36, 72)
    ]
    assert places == sorted(places)
    assert places[0] == 6
    assert places[-1] == 70 - 6 - 1


def test_marks_pins_and_the_break_even_are_there() -> None:
    marks = Marks(
        k=16,
        low=4,
        high=31,
        layer_k=56,
        pins=(32, 44),
        levels=((0.9, 28), (0.95, 36), (0.99, 56)),
        dear=66,
    )
    drawn = lines(curves(), marks, (90, 24), LOOK)
    whole = "\n".join(drawn)
    assert whole.count("◆") >= 3
    assert "1" in drawn[1]
    assert "2" in drawn[1]
    assert "larger" in whole
    assert "median k 16" in drawn[-1]
    assert " 56 " in drawn[-1]
    assert "━" in drawn[-2]  # from the least to the largest k of any layer


def test_what_is_not_known_is_said() -> None:
    assert "not measured yet" in "\n".join(lines(None, Marks(), (60, 15), LOOK))
    assert "9 of 36 modules" in lines(curves(layers=9), Marks(), (70, 15), LOOK)[0]


def test_what_has_no_effect_has_no_curves() -> None:
    nothing = np.array([0]), np.array([1.0])
    data = VarianceData(("none",), nothing[0], *[nothing[1]] * 3, 2, 2, focus=nothing)
    assert len(lines(data, Marks(), (60, 14), LOOK)) == 14


def test_ascii_means_ascii() -> None:
    marks = Marks(k=16, low=4, high=31, layer_k=9, pins=(40,), levels=((0.9, 28),), dear=60)
    for size in ((90, 24), (40, 8)):
        assert variance_chart(curves(("ascii", size)), marks, size, ASCII).plain.isascii()


def test_the_axis_gives_each_nine_the_same_room() -> None:
    def line_of(label: str, *, stretched: bool) -> int:
        drawn = lines(curves(), Marks(stretched=stretched), (70, 44), LOOK)
        return next(y for y, line in enumerate(drawn) if line[:6].strip(" ┤") == label)

    ninety, hundredth, thousandth = (line_of(t, stretched=True) for t in ("90", "99", "99.9"))
    assert ninety - hundredth == hundredth - thousandth
    assert line_of("0", stretched=False) - line_of("50", stretched=False) == pytest.approx(
        line_of("50", stretched=False) - line_of("100", stretched=False), abs=1
    )


def test_many_k_are_drawn_in_their_logarithm() -> None:
    ticks = lines(curves(("log",), top=1024), Marks(), (90, 20), LOOK)[-1].split()
    assert ticks[:5] == ["1", "2", "4", "8", "16"]
    assert ticks[-1] == "1024"


def test_moving_k_does_not_plot_again(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []
    plain = charts_variance_plot.rasterise

    def counted(*args: Any, **kwargs: Any) -> Any:
        drawn.append(1)
        return plain(*args, **kwargs)

    monkeypatch.setattr(charts_variance_plot, "rasterise", counted)
    data = curves(("once",))
    for k in range(1, 40):
        variance_chart(data, Marks(k=k, low=k, high=k), (70, 20), LOOK)
    assert len(drawn) == 1
    variance_chart(curves(("twice",)), Marks(k=3), (70, 20), LOOK)
    assert len(drawn) == 2


def test_curves_keep_their_roles_and_the_focus_is_on_top() -> None:
    flat = np.full(20, 0.5)
    k = np.arange(20)
    data = VarianceData(("roles",), k, flat, flat, flat, 2, 2, focus=(k, flat), focus_name="x")
    text = variance_chart(data, Marks(stretched=False), (50, 13), LOOK)
    canvas = charts_variance_plot._curves(
        data, charts_variance_plot._Frame(6, 1, 44, 10, 19, False), LOOK
    )
    roles = {role for row in canvas.roles for role in row if role}
    assert roles == {"focus"} | ({"guide"} if LOOK.band is None else set())
    assert text.plain


def test_a_long_curve_is_drawn_by_the_points_that_can_be_seen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It runs where all its points would have it run, to a cell."""
    x = np.linspace(0, 1, 5_000)
    curve = x, (1 - np.exp(-6 * x)) * (0.9 + 0.1 * np.sin(40 * x))
    drawn = []
    kept, seen = [], charts_variance_plot._seen
    for thin in (seen, lambda x, y, *_: (x, y)):
        monkeypatch.setattr(charts_variance_plot, "_seen", thin)
        canvas = charts_variance_plot.rasterise([curve], 60, 20, ["accent"])
        cells = np.array([[char != " " for char in row] for row in canvas.chars])
        drawn.append(np.argwhere(cells))
        kept.append(len(thin(*curve, 60, 20)[0]))
    assert kept[0] < kept[1] / 5
    for one, other in (drawn, drawn[::-1]):
        apart = np.abs(one[:, None] - other[None]).max(axis=2).min(axis=1)
        assert apart.max() <= 1
