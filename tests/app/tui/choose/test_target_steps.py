"""A target moves from one round value to the next."""

from __future__ import annotations

import pytest

from vlora_tui.tui.choose.target_steps import moved


class TestTargets:
    @pytest.mark.parametrize(
        ("goal", "step", "wanted"),
        [
            (("max_error", 0.05), 1, 0.055),
            (("max_error", 0.05), -1, 0.045),
            (("max_error", 0.0512), 1, 0.055),
            (("max_error", 0.0512), -1, 0.05),
            (("mean_error", 0.09), 1, 0.1),
            (("mean_error", 0.1), -1, 0.09),
            (("max_error", 0.9), 3, 0.9),
            (("variance", 0.95), 1, 0.945),
            (("variance", 0.95), -1, 0.955),
            (("budget", 1e6), 1, 9e5),
            (("budget", 1e6), -1, 1.1e6),
            (("k", 8.0), 1, 7.0),
        ],
    )
    def test_a_step_goes_to_the_next_round_value(
        self, goal: tuple[str, float], step: int, wanted: float
    ) -> None:
        assert moved(goal, step) == (goal[0], pytest.approx(wanted))

    def test_there_and_back_again(self) -> None:
        for name, value in (("max_error", 0.05), ("budget", 2e6), ("variance", 0.9)):
            goal = (name, value)
            for step in range(1, 30):
                there = moved(goal, step)
                assert moved(there, -step)[1] == pytest.approx(value) or there[1] in (0.9, 0.1)
