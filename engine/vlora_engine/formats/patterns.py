"""PEFT's rank_pattern and alpha_pattern, for many modules at once.

The rule is that of `adapters.model.match_pattern`: the first key that matches the end of a
module's name. A table of full names, one per module, would make that quadratic; here keys that
are plain names are looked up by their last component, and only the others are tried one by one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

_PLAIN = re.compile(r"[\w.\-]*\Z")
_REPEATED_GROUP = re.compile(r"\)\s*[*+{]")
_UNBOUNDED = re.compile(r"(?<!\\)[*+{]")


class PatternTable:
    """A pattern table whose keys have passed `is_safe_pattern`."""

    def __init__(self, pattern: Mapping[str, Any]) -> None:
        self._values = list(pattern.values())
        self._by_leaf: dict[str, list[tuple[int, str]]] = {}
        self._regexes: list[tuple[int, re.Pattern[str]]] = []
        for position, key in enumerate(pattern):
            if _PLAIN.match(key):
                self._by_leaf.setdefault(key.rpartition(".")[2], []).append((position, key))
            else:
                self._regexes.append((position, re.compile(rf"(.*\.)?({key})$")))

    def __bool__(self) -> bool:
        return bool(self._values)

    def get(self, module: str, default: Any) -> Any:
        """The value of the first key that matches ``module``."""
        position = min(self._positions(module), default=None)
        return default if position is None else self._values[position]

    def all(self, module: str) -> list[Any]:
        """The values of all keys that match ``module``, in the order of the table."""
        return [self._values[position] for position in sorted(self._positions(module))]

    def _positions(self, module: str) -> Iterator[int]:
        for leaf, keys in self._by_leaf.items():
            if module.endswith(leaf):
                yield from (position for position, key in keys if _plain_match(key, module))
        for position, regex in self._regexes:
            if regex.match(module):
                yield position


def _plain_match(key: str, module: str) -> bool:
    """Whether a key of letters and dots matches the end of ``module``; a dot matches any letter."""
    start = len(module) - len(key)
    if start < 0 or (start > 0 and module[start - 1] != "."):
        return False
    if module.endswith(key):
        return True
    return all(k in (".", m) for k, m in zip(key, module[start:], strict=True))


@lru_cache(4096)
def is_safe_pattern(pattern: str) -> bool:
    """Whether matching ``pattern``, which comes from an untrusted file, ends soon.

    Repeated groups are what makes backtracking exponential, many repetitions what makes it slow.
    """
    if _PLAIN.match(pattern):
        return True
    if len(pattern) > 500 or _REPEATED_GROUP.search(pattern):
        return False
    if len(_UNBOUNDED.findall(pattern)) > 4:
        return False
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError):
        return False
    return True
