"""Which tasks the names and patterns of a command or a recipe mean."""

from __future__ import annotations

import difflib
import fnmatch
import glob
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vlora_engine.errors import ParameterError, UnknownTaskError
from vlora_tui.utils.formatting import listed

if TYPE_CHECKING:
    pass


def match_tasks(patterns: Sequence[str], tasks: Sequence[str]) -> list[str]:
    """The tasks that the patterns name, in the order of ``tasks``; all where there is no pattern.

    Raises:
        UnknownTaskError: A pattern matches none.
    """
    if not patterns:
        return list(tasks)
    chosen: set[str] = set()
    for pattern in patterns:
        exact = [task for task in tasks if task == pattern]  # it goes before what it matches
        matches = exact or [task for task in tasks if fnmatch.fnmatchcase(task, pattern)]
        if not matches:
            raise unknown_task(pattern, tasks)
        chosen.update(matches)
    return [task for task in tasks if task in chosen]


def recipe_tasks(patterns: Sequence[str], tasks: Sequence[str]) -> list[str]:
    """The same of a recipe: ``*`` is all tasks there, even where one has that name.

    Raises:
        UnknownTaskError: A pattern matches none.
        ParameterError: One is a task's name, and matches others that are not named.
    """
    if "*" in patterns and tasks:
        return list(tasks)
    for word in set(patterns) & set(tasks):
        more = [task for task in tasks if fnmatch.fnmatchcase(task, word) and task not in patterns]
        if more:
            raise ParameterError(
                f"{word!r} is the name of a task, and as a pattern it matches others.",
                found=listed(more),
                remedy=f"write {glob.escape(word)} for this one alone, or name the others too",
            )
    return match_tasks(patterns, tasks)


def unknown_task(name: str, tasks: Sequence[str]) -> UnknownTaskError:
    """The error for a task that is not there; it names those that are."""
    close = difflib.get_close_matches(name, tasks, n=1)
    return UnknownTaskError(
        f"There is no task {name!r}.",
        expected=listed(tasks) or "no task at all: the subspace is empty",
        remedy=f"did you mean {close[0]!r}?" if close else None,
    )
