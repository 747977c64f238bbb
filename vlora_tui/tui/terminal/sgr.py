"""Codes of colours and marks: what they come to, and the fewest that lead from one to another.

Rich begins every run with its whole style and ends it with a reset, which over a slow line is more
than half of what a chart costs. Where NO_COLOR is set no colour is written at all.
"""

from __future__ import annotations

import re
from functools import lru_cache

PLAIN = ("39", "49", frozenset[str]())

_STYLED = re.compile(r"\x1b\[([\d;:]*)m")
_COLOUR = re.compile(r"[34][0-79]|9[0-7]|10[0-7]|[34]8:[\d:]*")  # one parameter that is a colour
_COLOUR_LENGTH = {"5": 2, "2": 4}  # parameters behind 38 or 48, by the kind of colour

Look = tuple[str, str, frozenset[str]]
SEEN_ON_BLANKS = frozenset({"4", "7", "9"})  # underline, reverse, struck through


def without_colour(text: str) -> str:
    """``text`` with its attributes (bold, dim, underline, reverse) and none of its colours."""
    return _STYLED.sub(_attributes, text)


def _attributes(found: re.Match[str]) -> str:
    words = found[1].split(";")
    left, at = [], 0
    while at < len(words):
        if words[at] in ("38", "48"):
            kind = words[at + 1] if at + 1 < len(words) else ""
            at += 1 + _COLOUR_LENGTH.get(kind, 0)
            continue
        if not _COLOUR.fullmatch(words[at]):
            left.append(words[at])
        at += 1
    return f"\x1b[{';'.join(left)}m" if left else ""


@lru_cache(maxsize=4096)
def after(codes: str, before: Look) -> Look | None:
    """The style after these codes; None if one of them is not known."""
    fore, back, marks = before
    words = iter(codes.split(";"))
    for word in words:
        if word in ("", "0"):
            fore, back, marks = PLAIN
        elif word in ("38", "48"):
            kind = next(words, "")
            rest = [next(words, "") for _ in range({"5": 1, "2": 3}.get(kind, 0))]
            if not rest or "" in rest:
                return None
            colour = ";".join([word, kind, *rest])
            fore, back = (colour, back) if word == "38" else (fore, colour)
        elif not word.isdigit():
            return None
        elif 1 <= int(word) <= 9:
            marks = marks | {word}
        elif int(word) in (*range(30, 38), 39, *range(90, 98)):
            fore = word
        elif int(word) in (*range(40, 48), 49, *range(100, 108)):
            back = word
        else:
            return None
    return fore, back, marks


@lru_cache(maxsize=4096)
def blank_look(look: Look) -> Look:
    """What is seen of a style on a blank: its ground alone, with no foreground, as a rule."""
    return look if look[2] & SEEN_ON_BLANKS else ("", look[1], frozenset())


def with_ground(current: Look | None, ground: str) -> Look:
    """The style nearest to the present one in which a blank has this ground and nothing on it."""
    if current is None or current[2] & SEEN_ON_BLANKS:
        return PLAIN[0], ground, PLAIN[2]
    return current[0], ground, current[2]


@lru_cache(maxsize=4096)
def change(current: Look | None, look: Look) -> str:
    """The codes that lead from one style to another; ``current`` None: it is not known."""
    if current == look:
        return ""
    if look == PLAIN:
        return "\x1b[0m"
    words: list[str] = []
    if current is None or current[2] - look[2]:
        words, current = ["0"], PLAIN
    words += sorted(look[2] - current[2])
    words += [w for w, t in zip(look[:2], current[:2], strict=True) if w != t]
    return f"\x1b[{';'.join(words)}m"
