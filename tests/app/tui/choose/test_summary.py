"""What step 2 says of a choice beside others."""

from __future__ import annotations

from vlora_engine.compression_target import CompressionTarget
from vlora_engine.spectra.choose import Choice, Prediction
from vlora_tui.tui.choose.text import Verdict, summary
from vlora_tui.tui.core.session import Figures


def verdict(
    now: tuple[float, float, int], *rivals: tuple[str, float, float, int] | None
) -> Verdict:
    """What is said of (error, codec ratio, bytes), beside others with a method each."""

    def figures(method: str, error: float, ratio: float, nbytes: int) -> Figures:
        prediction = Prediction(error, error, "", 1 - error**2, nbytes, 1.0, ratio, {}, {})
        choice = Choice(method, {}, "F16", prediction)
        return Figures(CompressionTarget(method, max_error=error), choice)

    others = [None if rival is None else figures(*rival) for rival in rivals]
    return summary(figures("delta", *now), others, 4_850_000)


class TestVerdicts:
    def test_nothing_pays_where_nothing_works(self) -> None:
        for ratio in (0.5, 1.1, 40.0):
            said = verdict((0.93, ratio, 100))
            assert "pays" not in said.words
            assert "little is left" in said.words
            assert said.bad

    def test_what_hardly_pays_is_not_said_while_another_method_pays(self) -> None:
        said = verdict((0.05, 1.1, 10_400_000), ("auto", 0.05, 5.0, 2_730_000))
        assert said.words == "auto reaches 5 % in 2.73 MB instead of 10.4 MB (m)."
        assert not said.bad

    def test_nor_before_the_others_are_known(self) -> None:
        assert verdict((0.05, 1.1, 10_400_000), None).words == ""

    def test_it_is_said_where_none_does(self) -> None:
        said = verdict((0.05, 1.1, 4_400_000), ("auto", 0.05, 1.15, 4_300_000))
        assert "hardly pays at this error: storing each adapter in fp16 takes 4.85 MB" in said.words
        assert said.bad
        assert said.brief == "hardly pays"

    def test_a_smaller_size_at_another_error_is_no_comparison(self) -> None:
        said = verdict((0.05, 3.0, 10_400_000), ("auto", 0.2, 5.0, 2_730_000))
        assert said.words == "Sharing pays: 3x smaller than A and B at 16 bit."
