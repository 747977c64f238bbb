"""Matching within bounds: Python's own matcher is the witness, and PEFT's rule."""

from __future__ import annotations

import re
import time
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlora_engine.errors import ParameterError
from vlora_engine.utils import regex
from vlora_engine.utils.regex import BoundedPattern, Budget, bounded

ATOMS = [
    "a", "b", ".", r"\.", "[ab]", "[^a]", r"\d", r"\w", r"\W", "[0-9.]", "[^b.]", r"[\d_]",
    "^", "$", r"\b", r"\B", r"\A", r"\Z", "(?!a)", "(?=.b)", "(?<=a)", "(?<!b.)", "(?!.*1)",
]  # fmt: skip
REPEATS = ["", "*", "+", "?", "*?", "+?", "??", "{2}", "{0,2}", "{1,}", "{2,3}?"]
REPEATED = [a for a in ATOMS if a not in ("^", "$", r"\b", r"\B", r"\A", r"\Z") and "(?" not in a]


def _joined(inner):
    atoms = st.sampled_from(REPEATED) | inner.map("(?:{})".format) | inner.map("({})".format)
    items = st.tuples(atoms, st.sampled_from(REPEATS)).map("".join) | st.sampled_from(ATOMS)
    return st.lists(items, min_size=1, max_size=3).map("".join) | st.tuples(inner, inner).map(
        "|".join
    )


PATTERNS = st.recursive(st.sampled_from(ATOMS), _joined, max_leaves=8)
TEXTS = st.text("ab1._\n", max_size=9)


@settings(max_examples=400)
@given(pattern=PATTERNS, text=TEXTS, quick=st.sampled_from([-1, regex.QUICK]))
def test_matches_as_python_does(pattern, text, quick):
    for wrapped in (pattern, rf"(.*\.)?({pattern})$"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(regex, "QUICK", quick)  # -1: always the automaton
            found = BoundedPattern(wrapped).matches(text)
        assert found is (re.match(wrapped, text) is not None)


DOCUMENTED = [  # PEFT's documentation, its tests, and configs on the Hub
    "q_proj",
    "^model.decoder.layers.0.encoder_attn.k_proj",
    "model.layers.0.self_attn.q_proj",
    r".*decoder.*(SelfAttention|EncDecAttention).*(q|v)$",
    r"model\.layers\.(0|1|2|10)\.self_attn\.(q|k|v)_proj",
    r"^(?!.*(lm_head|visual)).*\.(q_proj|v_proj)",
    r"(?!.*vision)\S+(q_proj|up_proj)",
    r"layers\.([0-9]|1[0-9])\..*proj",
    r"^.*(?<!embed)\.k_proj$",
    r".*\.layers\.\d+\.(self_attn|mlp)\.[a-z]+_proj",
]
NAMES = [
    "q_proj",
    "model.layers.0.self_attn.q_proj",
    "model.layers.10.self_attn.v_proj",
    "model.layers.31.mlp.up_proj",
    "model.decoder.layers.0.encoder_attn.k_proj",
    "decoder.block.3.layer.0.SelfAttention.q",
    "decoder.block.3.layer.1.EncDecAttention.v",
    "model.vision_tower.layers.1.self_attn.q_proj",
    "visual.blocks.0.attn.q_proj",
    "lm_head",
    "embed.k_proj",
    "xq_proj",
]


@pytest.mark.parametrize("quick", [-1, regex.QUICK])
def test_what_peft_documents_matches_as_in_peft(quick, monkeypatch):
    other = pytest.importorskip("peft.utils.other")
    monkeypatch.setattr(regex, "QUICK", quick)
    matched = 0
    for key in DOCUMENTED:
        pattern = BoundedPattern(rf"(.*\.)?({key})$")
        for name in NAMES:
            theirs = other.get_pattern_key([key], name) == key and re.match(pattern.pattern, name)
            assert pattern.matches(name) is bool(theirs), (key, name)
            matched += bool(theirs)
    assert matched > 20


SLOW = {
    "stars": (".*.*.*.*x", "a" * 1200),
    "optionals": ("a?" * 26 + "a" * 26, "a" * 26 + "b"),
    "alternation": ("(a|a)" * 26, "a" * 26 + "c"),
    "nested": ("(a+)+", "a" * 60 + "!"),
    "nested groups": ("((a|b)*c*)*d", "abc" * 60),
    "counted": ("(a{1,9}){1,9}(a{1,9}){1,9}b", "a" * 300),
    "look-ahead": ("(?=(a+)+b)a", "a" * 60),
    "look-aheads": ("(?:(?=a)a?)*(?:(?=a)a?)*x", "a" * 400),
    "remembers the last": ("(a|b)*a(a|b){12}x", "ab" * 300),
}


@pytest.mark.parametrize("name", SLOW)
def test_what_takes_python_for_ever_ends_soon(name):
    key, text = SLOW[name]
    pattern = BoundedPattern(rf"(.*\.)?({key})$")
    before = time.process_time()

    assert pattern.matches(text) is False

    assert time.process_time() - before < 5  # years, by backtracking


@pytest.mark.parametrize(
    "key",
    [
        r"(a+)+\1b",  # a reference to a group: no automaton has a memory
        "(?:(?=(?:.*(?=(?:.*(?=(?:.*(?=.*x))))))))+a",
        "(?>(a|aa)+)+b",
    ],
)
def test_what_cannot_be_bounded_is_refused_in_words(key):
    pattern = BoundedPattern(rf"(.*\.)?({key})$")

    with pytest.raises(ParameterError, match="takes too long"):
        pattern.matches("a" * 300, Budget(100_000))


def test_short_references_work_as_in_python():
    pattern = BoundedPattern(r"(ab?)x\1$")

    assert pattern.matches("abxab")
    assert not pattern.matches("abxa")


SETS = "".join(f"{chr(200 + 3 * i)}-{chr(201 + 3 * i)}" for i in range(1200))
LARGE = {
    "rounds that may be nothing": "(?:){0,300000000}",
    "rounds of rounds": "((a?){199}){199}",
    "looks ahead": "(?:(?=a{19000})){1000}x",
    "sets": f"(?:[{SETS}]?){{19000}}",
}


@pytest.mark.parametrize("name", LARGE)
def test_what_would_be_large_is_not_built(name):
    before = time.process_time()

    with pytest.raises(ParameterError, match="too large"):
        BoundedPattern(LARGE[name]).matches("a" * 1200)

    assert time.process_time() - before < 5


def test_rounds_of_nothing_take_no_time():
    assert BoundedPattern("(?:(?:){60000}){300000000}a").matches("ab")
    assert BoundedPattern(f"(?:[{SETS}]?){{9000}}a").matches("a" * 1200)


def test_what_many_patterns_take_together_is_bounded():
    for _ in "12":  # those that were kept count alike
        budget, built = Budget(), 0
        while budget.left >= 0 and built < 100:
            pattern = bounded(f"(x?{built}*)*a{{15000}}", budget)
            with suppress(ParameterError):
                pattern.matches("a" * 300, budget)
            built += 1
        assert 2 < built < 20


def test_what_python_compiles_slowly_counts(monkeypatch):
    clock = iter(range(0, 100, 2))
    monkeypatch.setattr(regex.time, "thread_time", lambda: next(clock))

    with pytest.raises(ParameterError, match="takes too long"):
        bounded("(?i)slow to compile", Budget())


@pytest.mark.parametrize("pattern", ["(", "a{2,1}", "(?<=a*)b", "*", "(" * 3000, "a" * 5000])
def test_what_is_no_pattern_is_refused_in_words(pattern):
    with pytest.raises(ParameterError, match="pattern"):
        BoundedPattern(pattern)
