"""docs/capabilities.md is what the code has, with no hole in it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.docs.capabilities import (
    COLUMNS,
    HANDLING,
    PAGE,
    Row,
    faults,
    page,
    rows,
    why,
)
from vlora_tui.cli.app import COMMANDS, Entry
from vlora_tui.tui.app.keymap import all_bindings


def test_every_capability_has_a_row_and_no_cell_is_empty_without_a_reason() -> None:
    assert list(faults()) == []


def test_the_page_is_what_is_made_from_the_code() -> None:
    assert PAGE.read_text("utf-8") == page(), "write it again: python -m tests.docs.capabilities"


def test_a_new_command_needs_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(COMMANDS, "fly", Entry("look", "info", "Fly.", "Look"))
    assert list(faults()) == ["fly has no row (command)"]


@pytest.mark.parametrize(
    ("column", "gone"),
    [
        ("command", "push"),
        ("command", "jobs resume"),
        ("recipe", "push"),
        ("recipe", "input"),
        ("python", "TaskRouter"),
        ("python", ".remove_task"),
        ("interface", "inspect.coverage"),
    ],
)
def test_what_no_row_names_is_found(column: str, gone: str) -> None:
    table = [
        replace(row, **{column: tuple(n for n in getattr(row, column) if n != gone)})
        for row in rows()
    ]
    assert f"{gone} has no row ({column})" in list(faults(table))


@pytest.mark.parametrize("column", COLUMNS)
def test_a_cell_that_is_empty_says_why(column: str) -> None:
    filled = Row("All", ("run.start",), ("push",), ("push",), ("merge",))
    assert not [f for f in faults([filled]) if f.startswith("All:")]
    emptied = replace(filled, **{column: ()})
    told = [f for f in faults([emptied]) if f.startswith("All:")]
    assert told == [f"All: the cell of {column} is empty, and nothing says why"]
    reasoned = replace(emptied, why=why(**{column: "it is not needed"}))
    assert not [f for f in faults([reasoned]) if f.startswith("All:")]
    both = replace(filled, why=why(**{column: "it is not needed"}))
    assert [f for f in faults([both]) if f.startswith("All:")]


def test_nothing_is_put_off_to_a_later_version() -> None:
    assert all("planned" not in reason for row in rows() for _, reason in row.why)


@pytest.mark.parametrize(
    "row",
    [
        Row("New", ("nowhere.key",), ("push",), ("push",), ("merge",)),
        Row("New", ("run.start",), ("fly",), ("push",), ("merge",)),
        Row("New", ("run.start",), ("push",), ("fly",), ("merge",)),
        Row("New", ("run.start",), ("push",), ("push",), ("fly",)),
        Row("New", ("run.start",), ("push",), ("push",), (".fly",)),
        Row("New", ("run.start",), ("push",), ("push",), ("merging.fly",)),
    ],
)
def test_what_a_row_names_is_there(row: Row) -> None:
    assert len([f for f in faults([row]) if f.startswith("New:")]) == 1


def test_no_key_is_both_handling_and_a_capability() -> None:
    named = {name for row in rows() for name in row.interface}
    assert not named & HANDLING
    assert all_bindings().keys() >= HANDLING
