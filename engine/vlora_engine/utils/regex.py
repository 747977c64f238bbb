"""Match regular expressions that come from untrusted files, within bounds.

Python's own matcher backtracks: a pattern of forty characters can keep it busy for years, and it
cannot be interrupted. Here a pattern that cannot backtrack far is given to it; any other becomes a
nondeterministic automaton that is walked one character at a time (Thompson 1968; Cox, "Regular
Expression Matching Can Be Simple And Fast", 2007), so that time grows with the length of pattern
and text. Look-ahead and look-behind are conditions on a position, tried by automata of their own.
An automaton is built when the first text needs it, and counts against the budget like its steps.
What no automaton can do (references to groups, atomic groups) is given to Python's matcher where
the ways through the pattern are few, and refused elsewhere.

All answers are those of `re.match`: does the pattern match at the beginning of the text.
"""

from __future__ import annotations

import importlib
import re
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import cache, cached_property, lru_cache
from typing import Any

from vlora_engine.errors import ParameterError

PLAIN = re.compile(r"[\w.\-]*\Z")  # for which `matches_end` will do
MAX_PATTERN = 4000  # characters
MAX_STATES = 20_000  # of one pattern, those of what it looks for around a place included
COMPILED = 0.01  # seconds in which Python compiles what has no large sets regardless of case
STATE = 30  # steps that building one state stands for: what it takes in time and in memory
MAX_STEPS = 3_000_000  # of one budget: about a second
QUICK = 200_000  # steps at most that Python's matcher is given: it is quicker where it is quick
SLOW = 20_000_000  # the same where there is no automaton
MOST = 2_000_000_000  # and where others match; what takes for ever takes more by far
_CACHED = 1000  # sets of states whose transitions are kept

Condition = Callable[[str, int, "Budget"], bool]
Chars = Callable[[str], bool]


class Budget:
    """The steps that may still be taken, for instance for all patterns of one adapter."""

    def __init__(self, steps: int = MAX_STEPS) -> None:
        self.left = steps
        self._built: set[tuple[str, str]] = set()

    def spend(self, steps: int) -> None:
        """Count steps of a match, and end it where there were too many.

        Raises:
            ParameterError: There are not so many left.
        """
        self.left -= steps
        if self.left < 0:
            raise ParameterError(
                "Matching a pattern takes too long.",
                expected="a regular expression that is quickly matched",
                remedy="write names instead, or a simpler pattern",
            )

    def build(self, what: str, pattern: str, steps: int) -> None:
        """Count what is built of a pattern once, whether or not it was kept from before.

        Raises:
            ParameterError: As `spend`.
        """
        if (what, pattern) not in self._built:
            self._built.add((what, pattern))
            self.spend(steps)


class Unsupported(Exception):
    """The pattern has something that no automaton can do."""


class BoundedPattern:
    """A regular expression whose matching ends soon, whatever it is.

    Raises:
        ParameterError: It is no regular expression, or too large.
    """

    def __init__(self, pattern: str) -> None:
        if len(pattern) > MAX_PATTERN:
            raise ParameterError(
                "A pattern is too long.",
                expected=f"at most {MAX_PATTERN} characters",
                found=f"{len(pattern)} characters",
            )
        self.pattern = pattern
        self._known: dict[int, int] = {}
        before = time.thread_time()
        try:
            self._compiled = re.compile(pattern)
            self._tree = _parser().parse(pattern)
        except (re.error, RecursionError, OverflowError, ValueError) as error:
            raise ParameterError(
                "A pattern is no regular expression that can be used.",
                found=f"{pattern[:80]!r}: {str(error) or type(error).__name__}",
            ) from None
        self.cost = int(max(0.0, time.thread_time() - before - COMPILED) * MAX_STEPS)

    def matches(self, text: str, budget: Budget | None = None) -> bool:
        """Whether ``re.match(pattern, text)`` finds something.

        Raises:
            ParameterError: The budget is spent, or the pattern could take for ever.
        """
        budget = budget or Budget()
        steps = self._steps(len(text))
        if steps > QUICK and self._automaton is not None:
            budget.build("automaton", self.pattern, STATE * self._automaton.states)
            return self._automaton.matches(text, budget)
        if steps > SLOW:
            budget.spend(MAX_STEPS + 1)
        before = time.thread_time()
        found = self._compiled.match(text) is not None
        budget.spend(1 + int((time.thread_time() - before) * MAX_STEPS))
        return found

    def require_quick(self, length: int) -> None:
        """Check that Python's matcher comes to an end on texts of a length; in general seconds.

        Raises:
            ParameterError: It could take years.
        """
        ways = _ways(self._tree, length, MOST)
        if ways * (length + len(self.pattern) + 1) > MOST:
            Budget(0).spend(1)

    @cached_property
    def _automaton(self) -> _Automaton | None:
        """The automaton for this pattern; None where there can be none.

        Raises:
            ParameterError: It would be too large.
        """
        with suppress(Unsupported):
            return _Automaton(self._tree)
        return None

    def _steps(self, length: int) -> int:
        """How many steps Python's matcher could take on a text of this length; more than `SLOW`."""
        if length not in self._known:
            ways = _ways(self._tree, length, SLOW)
            self._known[length] = ways * (length + len(self.pattern) + 1)
        return self._known[length]


def bounded(pattern: str, budget: Budget) -> BoundedPattern:
    """`BoundedPattern`, kept for the next time; ``budget`` is for making it, too.

    Raises:
        ParameterError: As `BoundedPattern`; making it takes too long.
    """
    made = _kept(pattern)
    budget.build("pattern", pattern, made.cost)
    return made


_kept = lru_cache(4096)(BoundedPattern)


def _parser() -> Any:
    """Python's own parser of regular expressions: its trees are what `re` is compiled from."""
    return importlib.import_module("re._parser")


def _ways(tree: Iterable[Any], length: int, most: int) -> int:
    """At most in how many ways Python's matcher could go through a pattern, up to ``most``."""
    total = 1
    for op, argument in tree:
        total *= _ways_of(str(op), argument, length, most)
        if total >= most:
            return most
    return total


def _ways_of(op: str, argument: Any, length: int, most: int) -> int:
    if op in ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT"):
        least, largest, body = argument
        inside = _ways(body, length, most)
        if inside == 1 and not _is_fixed(body):
            inside = 2  # empty or not: counted as a choice in every round
        rounds = min(int(largest), length + 1)
        if body.getwidth()[0] == 0:  # rounds of nothing are gone through, too
            rounds = max(rounds, int(least))
        if inside == 1:
            return max(1, rounds - min(int(least), rounds) + 1)
        return most if rounds > 16 else min(most, sum(inside**n for n in range(rounds + 1)))
    if op == "BRANCH":
        return min(most, sum(_ways(branch, length, most) for branch in argument[1]))
    if op == "SUBPATTERN":
        return _ways(argument[3], length, most)
    if op in ("ASSERT", "ASSERT_NOT"):
        return _ways(argument[1], length, most)
    if op == "ATOMIC_GROUP":
        return _ways(argument, length, most)
    if op == "GROUPREF_EXISTS":
        _, yes, no = argument
        return _ways(yes, length, most) + (_ways(no, length, most) if no else 1)
    return 1


def _is_fixed(body: Any) -> bool:
    """Whether what is repeated always takes the same number of characters, one at least."""
    least, largest = body.getwidth()
    return bool(0 < least == largest)


def matches_end(key: str, name: str) -> bool:
    """Whether a key of letters and dots matches the end of ``name``, as a pattern behind ``.``.

    A dot of the key matches any letter, as in every pattern.
    """
    start = len(name) - len(key)
    if start < 0 or (start > 0 and name[start - 1] != "."):
        return False
    if name.endswith(key):
        return True
    return all(k in (".", m) for k, m in zip(key, name[start:], strict=True))


# ---- characters

_WORD = re.compile(r"\w")
_CATEGORIES = {
    "CATEGORY_DIGIT": re.compile(r"\d"),
    "CATEGORY_NOT_DIGIT": re.compile(r"\D"),
    "CATEGORY_SPACE": re.compile(r"\s"),
    "CATEGORY_NOT_SPACE": re.compile(r"\S"),
    "CATEGORY_WORD": _WORD,
    "CATEGORY_NOT_WORD": re.compile(r"\W"),
}


def _chars(op: str, argument: Any) -> Chars | None:
    """What one item of a pattern takes, if it takes one character and is no set."""
    if op == "LITERAL":
        wanted = chr(argument)
        return lambda c: c == wanted
    if op == "NOT_LITERAL":
        unwanted = chr(argument)
        return lambda c: c != unwanted
    if op == "ANY":
        return lambda c: c != "\n"
    return None


def _set(items: Sequence[Any]) -> Chars:
    negated = bool(items) and str(items[0][0]) == "NEGATE"
    singles: set[str] = set()
    ranges: list[tuple[int, int]] = []
    categories: list[re.Pattern[str]] = []
    for op, argument in items[int(negated) :]:
        if str(op) == "LITERAL":
            singles.add(chr(argument))
        elif str(op) == "RANGE":
            ranges.append(argument)
        elif str(op) == "CATEGORY" and str(argument) in _CATEGORIES:
            categories.append(_CATEGORIES[str(argument)])
        else:
            raise Unsupported(str(op))

    @cache
    def takes(c: str) -> bool:
        found = (
            c in singles
            or any(low <= ord(c) <= high for low, high in ranges)
            or any(category.match(c) for category in categories)
        )
        return found is not negated

    return takes


# ---- conditions on a position


def _at_start(text: str, at: int, budget: Budget) -> bool:
    return at == 0


def _at_end(text: str, at: int, budget: Budget) -> bool:
    return at == len(text) or (at == len(text) - 1 and text[at] == "\n")


def _at_very_end(text: str, at: int, budget: Budget) -> bool:
    return at == len(text)


def _at_boundary(text: str, at: int, budget: Budget) -> bool:
    before = at > 0 and _WORD.match(text[at - 1]) is not None
    behind = at < len(text) and _WORD.match(text[at]) is not None
    return before is not behind


def _inside_word(text: str, at: int, budget: Budget) -> bool:
    return bool(text) and not _at_boundary(text, at, budget)


_PLACES: dict[str, Condition] = {
    "AT_BEGINNING": _at_start,
    "AT_BEGINNING_STRING": _at_start,
    "AT_END": _at_end,
    "AT_END_STRING": _at_very_end,
    "AT_BOUNDARY": _at_boundary,
    "AT_NON_BOUNDARY": _inside_word,
}
_OF_THE_ENDS = (_at_start, _at_end, _at_very_end)  # known without looking at what stands around


# ---- the automaton

_ACCEPT = 0


class _Automaton:
    """States: one that accepts, and those that take a character, ask a condition, or fork."""

    def __init__(self, tree: Iterable[Any], around: _Automaton | None = None) -> None:
        self.states = 0  # with those of automata inside
        self._around = around
        self._chars: list[Chars | None] = [None]
        self._conditions: list[Condition | None] = [None]
        self._next: list[list[int]] = [[]]
        self._looks_around = False
        self._known_sets: dict[int, Chars] = {}  # by the item: repetitions come upon it again
        self._start = self._sequence(tree, _ACCEPT)
        self._sets: dict[frozenset[int], dict[str, frozenset[int]]] = {}

    # building, from the end to the beginning

    def _state(
        self, following: list[int], chars: Chars | None = None, condition: Condition | None = None
    ) -> int:
        self._count()
        self._chars.append(chars)
        self._conditions.append(condition)
        self._next.append(following)
        return len(self._next) - 1

    def _count(self) -> None:
        """Count a state here and in what this is a part of."""
        self.states += 1
        if self._around is not None:
            self._around._count()
        elif self.states >= MAX_STATES:
            raise ParameterError(
                "A pattern is too large.",
                expected=f"at most {MAX_STATES} steps, repetitions written out",
                remedy="write names instead, or a simpler pattern",
            )

    def _sequence(self, tree: Iterable[Any], following: int) -> int:
        for op, argument in reversed(list(tree)):
            following = self._item(str(op), argument, following)
        return following

    def _item(self, op: str, argument: Any, following: int) -> int:
        if op == "IN":
            chars = self._known_sets.get(id(argument))
            if chars is None:
                chars = self._known_sets[id(argument)] = _set(argument)
        else:
            chars = _chars(op, argument)
        if chars is not None:
            return self._state([following], chars)
        if op == "BRANCH":
            return self._state([self._sequence(branch, following) for branch in argument[1]])
        if op == "SUBPATTERN":
            _, added, removed, body = argument
            if added or removed:
                raise Unsupported("flags")
            return self._sequence(body, following)
        if op in ("MAX_REPEAT", "MIN_REPEAT"):
            least, largest, body = argument
            return self._repeat(least, largest, body, following)
        if op == "AT":
            condition = _PLACES[str(argument)]
            self._looks_around |= condition not in _OF_THE_ENDS
            return self._state([following], condition=condition)
        if op in ("ASSERT", "ASSERT_NOT"):
            self._looks_around = True
            return self._state([following], condition=self._look(op, *argument))
        raise Unsupported(op)

    def _repeat(self, least: Any, largest: Any, body: Any, following: int) -> int:
        if str(largest) == "MAXREPEAT":
            fork = self._state([])
            self._next[fork] += [self._sequence(body, fork), following]
            following = fork
        else:
            for _ in range(int(largest) - int(least)):
                following = self._state([self._sequence(body, following), following])
        for _ in range(int(least)):
            before, following = following, self._sequence(body, following)
            if following == before:  # a round of nothing: so are all others
                break
        return following

    def _look(self, op: str, direction: int, body: Any) -> Condition:
        inner, wanted = _Automaton(body, self), op == "ASSERT"
        if direction >= 0:
            return lambda text, at, budget: inner.walk(text, at, budget) is wanted
        width = body.getwidth()[0]

        def behind(text: str, at: int, budget: Budget) -> bool:
            return (at >= width and inner.walk(text, at - width, budget, end=at)) is wanted

        return behind

    # walking

    def matches(self, text: str, budget: Budget) -> bool:
        if self._looks_around or "\n" in text or not text:
            return self.walk(text, 0, budget)
        return self._walk_sets(text, budget)

    def walk(self, text: str, at: int, budget: Budget, end: int | None = None) -> bool:
        """Whether the pattern matches from ``at`` on, up to ``end`` exactly if that is given."""
        states = self._closure([self._start], text, at, budget)
        while True:
            if _ACCEPT in states and at == (at if end is None else end):
                return True
            if not states or at == len(text):
                return False
            taken = self._taken(states, text[at])
            at += 1
            states = self._closure(taken, text, at, budget)

    def _walk_sets(self, text: str, budget: Budget) -> bool:
        """The same with the sets of states remembered, where only the ends count as places."""
        states = frozenset(self._closure([self._start], text, 0, budget, keep=True))
        for c in text:
            if _ACCEPT in states:
                return True
            if not states:
                return False
            budget.spend(1)
            known = self._sets.setdefault(states, {})
            if c not in known:
                if len(self._sets) > _CACHED:
                    self._sets.clear()
                    known = self._sets.setdefault(states, {})
                taken = self._taken(states, c)
                # Anywhere but at an end: what asks for one waits in the set, in vain or until then.
                known[c] = frozenset(self._closure(taken, "..", 1, budget, keep=True))
            states = known[c]
        return _ACCEPT in self._closure(states, text, len(text), budget)

    def _taken(self, states: Iterable[int], c: str) -> list[int]:
        chars, following = self._chars, self._next
        return [following[s][0] for s in states if (takes := chars[s]) is not None and takes(c)]

    def _closure(
        self, states: Iterable[int], text: str, at: int, budget: Budget, *, keep: bool = False
    ) -> set[int]:
        """The states that are reached without a character: those that take one, and the end.

        Args:
            keep: A condition that does not hold stays in the set, to be asked again.
        """
        found: set[int] = set()
        seen: set[int] = set()
        waiting = list(states)
        while waiting:
            state = waiting.pop()
            if state in seen:
                continue
            seen.add(state)
            condition = self._conditions[state]
            if state == _ACCEPT or self._chars[state] is not None:
                found.add(state)
            elif condition is None or condition(text, at, budget):
                waiting += self._next[state]
            elif keep:
                found.add(state)
        budget.spend(len(seen))
        return found
