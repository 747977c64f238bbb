"""Task names from paths, and safe file names from task names.

A task name is data and may hold any Unicode; it never becomes a path without `slug`.
"""

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
    """Name paths by their shortest distinct suffixes, in whole components.

    ``["x/final", "y/final", "y/b"]`` gives ``["x/final", "y/final", "b"]``. A path that is itself
    the end of another one is named by all of its components.

    Raises:
        ParameterError: A path is listed twice.
    """
    parts = [_components(path) for path in paths]
    if len(set(parts)) < len(parts):
        repeated = next(p for i, p in enumerate(parts) if p in parts[:i])
        raise ParameterError(
            "A path is listed twice.",
            where=printable("/".join(repeated)),
            remedy="leave one of them out",
        )
    names: list[str | None] = [None] * len(parts)
    ambiguous = list(range(len(parts)))
    length = 1
    while ambiguous:
        suffixes: dict[tuple[str, ...], list[int]] = {}
        for i in ambiguous:
            suffixes.setdefault(parts[i][-length:], []).append(i)
        ambiguous = []
        for suffix, owners in suffixes.items():
            for i in owners:
                if len(owners) == 1 or len(parts[i]) <= length:
                    names[i] = "/".join(suffix)
                else:
                    ambiguous.append(i)
        length += 1
    return _distinct([printable(name or "/") for name in names])


def slugs(names: Iterable[str], taken: Collection[str] = ()) -> dict[str, str]:
    """Map names to file names that are safe on every system and distinct without regard to case.

    A slug consists of ``[a-zA-Z0-9._-]`` and begins with a letter or a digit. The result depends on
    the set of names alone, not on their order. Names that are slugs already stay as they are; the
    others are numbered where they collide.

    Args:
        names: Any unicode.
        taken: Slugs that are in use already.

    Returns:
        The slug of each name.
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
    """Turn one name into a safe file name, not yet distinct from others."""
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
    """Number names that are still equal, as undecodable bytes can make them."""
    originals: set[str] = set(names)
    result: list[str] = []
    taken: set[str] = set()
    for name in names:
        candidate, number = name, 1
        while candidate in taken or (number > 1 and candidate in originals):
            number += 1
            candidate = f"{name} ({number})"
        taken.add(candidate)
        result.append(candidate)
    return result


def natural_key(name: str) -> tuple[Any, ...]:
    """A sort key that puts layer 2 before layer 10."""
    return tuple((0, int(p), "") if p.isdecimal() else (1, 0, p) for p in name.split("."))


def cosine_text(cosine: float) -> str:
    """A cosine as all of the program writes it: ``.93``, ``-.4``, ``0``; ``1.0`` where it is one.

    What is not quite one is never rounded up to it.
    """
    text = f"{min(0.99, abs(cosine)) if abs(cosine) < 0.9995 else 1.0:.2f}"
    if not float(text):
        return "0"
    return ("-" if cosine < 0 else "") + (text[1:] if text.startswith("0") else "1.0")


LEAST_SHARE = 1e-5  # that has a figure


def percent_text(share: float) -> str:
    """A share as all of the program writes it: ``4.98 %``; ``<0.001 %`` where it is rounding."""
    if 0 < share < LEAST_SHARE:
        return "<0.001 %"
    return f"{100 * share:.0f} %" if share >= 0.9995 else f"{100 * share:.3g} %"


def threshold_text(threshold: float) -> str:
    """A cosine that somebody has set, with all of its digits: ``.9``, ``.995``."""
    return re.sub(r"^(-?)0\.", r"\1.", f"{threshold:g}")


def counted(number: int, noun: str, many: str | None = None) -> str:
    """``1 module``, ``3 modules``; ``many`` where the plural is no mere s."""
    return f"{number:,} {noun if number == 1 else many or noun + 's'}"
