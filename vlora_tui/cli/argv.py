"""What the parser cannot read by itself: several values after one flag, -v after the command."""

from __future__ import annotations

from collections.abc import Sequence

_GREEDY = {"compress": ("--names",), "run": ("--names",)}
_EVERYWHERE = ("-v", "-vv", "--verbose")
_EVERYWHERE_WITH_VALUE = ("--max-memory",)
_UNTIL = "--"


def prepare(argv: Sequence[str]) -> list[str]:
    """``argv`` in the form that the parser reads.

    ``--names a b c`` (as lorashare takes it: up to the next flag) becomes three ``--names``;
    where the flag stands several times each takes one value. ``-v`` and ``--max-memory`` may stand
    anywhere.
    """
    words, rest = _split(list(argv))
    first = [word for word in words if word in _EVERYWHERE]
    words = [word for word in words if word not in _EVERYWHERE]
    for flag in _EVERYWHERE_WITH_VALUE:
        taken, words = _take(words, flag)
        first += taken
    for flag in _GREEDY.get(words[0] if words else "", ()):
        words = _spread(words, flag)
    return [*first, *words, *rest]


def _split(argv: list[str]) -> tuple[list[str], list[str]]:
    if _UNTIL not in argv:
        return argv, []
    at = argv.index(_UNTIL)
    return argv[:at], argv[at:]


def _take(words: list[str], flag: str) -> tuple[list[str], list[str]]:
    """A flag with its value, and the words without them."""
    taken, others, rest = [], [], iter(words)
    for word in rest:
        if word == flag:
            taken += [word, *(value for value in [next(rest, None)] if value is not None)]
        elif word.startswith(f"{flag}="):
            taken.append(word)
        else:
            others.append(word)
    return taken, others


def _spread(words: list[str], flag: str) -> list[str]:
    if words.count(flag) != 1:
        return words
    at = words.index(flag)
    end = at + 1
    while end < len(words) and not words[end].startswith("-"):
        end += 1
    values = words[at + 1 : end]
    if not values:
        return words
    spread = [part for value in values for part in (flag, value)]
    return [*words[:at], *spread, *words[end:]]
