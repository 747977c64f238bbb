"""Names of tasks and names of files: the first are data of any kind, the second never are."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path, PurePath
from typing import Any

from vlora_engine.errors import ParameterError

MAX_SLUG = 80
_RESERVED = frozenset(
    {"con", "prn", "aux", "nul"} | {f"{word}{i}" for word in ("com", "lpt") for i in range(10)}
)


def unique_names(paths: Sequence[str | Path]) -> list[str]:
    """For each path the shortest suffix of it, in whole components, that no other path ends in.

    ``["x/final", "y/final", "y/b"]`` gives ``["x/final", "y/final", "b"]``. A path that is itself
    the end of another one keeps its whole self as name.

    Raises:
        ParameterError: A path is listed twice.
    """
    parts = [_components(path) for path in paths]
    if len(set(parts)) < len(parts):
        twice = next(p for i, p in enumerate(parts) if p in parts[:i])
        raise ParameterError(
            "A path is listed twice.",
            where=printable("/".join(twice)),
            remedy="leave one of them out",
        )
    names: list[str | None] = [None] * len(parts)
    waiting = list(range(len(parts)))
    length = 1
    while waiting:
        suffixes: dict[tuple[str, ...], list[int]] = {}
        for i in waiting:
            suffixes.setdefault(parts[i][-length:], []).append(i)
        waiting = []
        for suffix, owners in suffixes.items():
            for i in owners:
                if len(owners) == 1 or len(parts[i]) <= length:
                    names[i] = "/".join(suffix)
                else:
                    waiting.append(i)
        length += 1
    return _distinct([printable(name or "/") for name in names])


def slugs(names: Iterable[str], taken: Collection[str] = ()) -> dict[str, str]:
    """For each name a file name that is safe everywhere, distinct by letters.

    It is of ``[a-zA-Z0-9._-]`` and begins with a letter or a digit.

    The result depends on the set of names alone, not on their order. Names that are slugs already
    keep themselves; the others give way.

    Args:
        names: Any unicode.
        taken: Slugs that are in use already.
    """
    used = {slug.casefold() for slug in taken}
    ordered = sorted(set(names), key=lambda name: (slug(name) != name, name))
    table = {}
    for name in ordered:
        stem = slug(name)
        candidate, number = stem, 1
        while candidate.casefold() in used:
            number += 1
            candidate = f"{stem[: MAX_SLUG - len(str(number)) - 1]}-{number}"
        used.add(candidate.casefold())
        table[name] = candidate
    return table


def slug(name: str) -> str:
    """One name as a file name, not yet distinct from others."""
    ascii_only = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    safe = re.sub(r"[^A-Za-z0-9._-]+", "-", ascii_only).lstrip("-._")[:MAX_SLUG].strip("-.")
    if not safe:
        return "task"
    return f"task-{safe}" if safe.split(".")[0].casefold() in _RESERVED else safe


def _components(path: str | Path) -> tuple[str, ...]:
    parts = PurePath(path).parts
    return tuple(part for part in parts if part != "/") or (str(path),)


def printable(text: str) -> str:
    """``text`` without the lone surrogates that stand for undecodable bytes of a file name."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _distinct(names: list[str]) -> list[str]:
    """Number names that are still alike, which only undecodable bytes can make them."""
    seen: set[str] = set(names)
    result: list[str] = []
    given: set[str] = set()
    for name in names:
        candidate, number = name, 1
        while candidate in given or (number > 1 and candidate in seen):
            number += 1
            candidate = f"{name} ({number})"
        given.add(candidate)
        result.append(candidate)
    return result


def natural_key(name: str) -> tuple[Any, ...]:
    """A sort key that puts layer 2 before layer 10."""
    return tuple((0, int(p), "") if p.isdecimal() else (1, 0, p) for p in name.split("."))
