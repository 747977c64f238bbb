"""A paste is text, whatever it holds and however it is cut into reads."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from textual import events
from textual._xterm_parser import XTermParser

from vlora_tui.tui.terminal.driver import _Parser
from vlora_tui.tui.terminal.pasted import BEGIN, END, PastesAsText

PIECES = st.sampled_from([*"aq\r~[201", "\x1b", "\x1b[31m", "\x1b[A", "\x1b[20", BEGIN, "\x1b\x1b"])
PASTES = st.lists(PIECES, max_size=12).map("".join)


def read(sent: str, cuts: list[int]) -> list[events.Event]:
    """What the parser makes of what was sent, cut into reads."""
    parser, as_text = XTermParser(), PastesAsText()
    marks = sorted({0, len(sent), *(cut % (len(sent) + 1) for cut in cuts)})
    texts = [as_text(sent[a:b]) for a, b in pairwise(marks)]
    return [event for text in texts if text for event in parser.feed(text)]


@given(pasted=PASTES, cuts=st.lists(st.integers(0, 200), max_size=6))
def test_nothing_in_a_paste_is_a_key(pasted, cuts):
    one, two, three = read(f"x{BEGIN}{pasted}{END}y", cuts)

    assert isinstance(one, events.Key)
    assert isinstance(three, events.Key)
    assert (one.key, three.key) == ("x", "y")
    assert isinstance(two, events.Paste)
    assert two.text == pasted.replace("\x1b", "")


@pytest.mark.parametrize("keys", ["abc", "\x1b", "\x1b[A\x1b[B", "\x1b[20", "\x1b[200", "é\x1b["])
def test_keys_go_through_at_once(keys):
    as_text = PastesAsText()

    assert [as_text(key) for key in keys] == list(keys)


def test_a_sequence_of_no_letter_takes_no_key_with_it():
    pressed = list(_Parser().feed("\x1b[999999999999999999;5ux\x1b[1114112uy"))

    assert [key.key for key in pressed if isinstance(key, events.Key)] == ["x", "y"]
