"""The rows of the Adapters table: what each column shows, sorts and filters by. No widget."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from vlora_engine.errors import ParameterError, VLoRAError
from vlora_engine.findings import SEVERITIES, Finding
from vlora_engine.utils.ranking import by_number
from vlora_engine.utils.sizes import parse_bytes
from vlora_tui.tui.text import clean, number, plural
from vlora_tui.tui.widgets.table import Cell, Column
from vlora_tui.utils.formatting import size

if TYPE_CHECKING:
    from vlora_engine.catalog.scanner import AdapterInfo
    from vlora_engine.manifest.manifest import Manifest
    from vlora_tui.tui.adapters.reach import Applies

NOT_CHECKED = "not checked"

COLUMNS = (
    Column("name", "name", least=20, keep=10, lost="middle"),
    Column("base", "base model", least=13, most=34, keep=6, lost="start"),
    Column("rank", "rank", right=True, keep=8),
    Column("alpha", "alpha", right=True, keep=3),
    Column("modules", "mods", right=True, keep=2),
    Column("applies", "applies", keep=6),
    Column("dtype", "dtype", keep=4),
    Column("size", "size", right=True, keep=9),
    Column("group", "group", right=True, keep=7),
    Column("findings", "findings", most=12, keep=7),
    Column("tensors", "values", keep=1),
)


@dataclass(frozen=True)
class Row:
    """An adapter, or a subspace, as a row.

    Args:
        info: The adapter. manifest: The subspace, or None where its index could not be read.
        checked: What reading its tensors found: None before a job did, empty if nothing.
        applies: How much PEFT applies of it, where its base model is at hand.
    """

    path: str
    name: str
    info: AdapterInfo | None = None
    manifest: Manifest | None = None
    error: VLoRAError | None = None
    nbytes: int = 0
    checked: tuple[Finding, ...] | None = None
    applies: Applies | None = None

    @property
    def is_subspace(self) -> bool:
        return self.info is None

    @property
    def cannot_be_used(self) -> bool:
        """Whether its headers or its tensors rule it out."""
        return self.error is not None or any(f.severity == "error" for f in self.checked or ())

    @property
    def base(self) -> str | None:
        source = self.info or self.manifest
        return None if source is None else source.base_model

    @property
    def group(self) -> int | None:
        """The group's number as it is shown, from 1 on."""
        return None if self.info is None or self.info.group is None else self.info.group + 1

    @cached_property
    def findings(self) -> tuple[Finding, ...]:
        """What headers and, where it ran, the check remark; the gravest first."""
        found = (*(self.info.findings if self.info else ()), *(self.checked or ()))
        return tuple(sorted(found, key=lambda f: SEVERITIES.index(f.severity)))

    def cells(self) -> list[Cell]:
        """One cell for each of `COLUMNS`."""
        return self._cells

    @cached_property
    def _cells(self) -> list[Cell]:
        """Made once: a table measures all of its rows whenever one comes."""
        quiet = "muted" if self.error is not None else ""
        return [
            (clean(self.name), "muted" if self.error is not None else "accent" * self.is_subspace),
            (clean(self.base or "-"), quiet or "muted" * (self.base is None)),
            (self.rank, quiet),
            (number(self.info.alpha) if self.info else "-", quiet),
            (self._modules(), quiet),
            self._applies_cell(),
            ((self.info.dtype if self.info else self._stored()) or "-", quiet),
            (size(self.nbytes) if self.nbytes else "-", quiet),
            (str(self.group or "-"), quiet or "muted" * self.is_subspace),
            self._findings_cell(),
            self._tensors_cell(),
        ]

    def sort_key(self, column: str) -> tuple[Any, ...]:
        """What a column sorts by: what is not known comes last."""
        value = self._numbered if column == "name" else _SORTED_BY[column](self)
        return (value is None, value if value is not None else 0, self._numbered)

    @cached_property
    def _numbered(self) -> tuple[Any, ...]:
        return by_number(self.name)

    def text(self) -> str:
        """The row for copying: the path, then what is known."""
        cells = self.cells()
        facts = [f"{c.key}={t}" for c, (t, _) in zip(COLUMNS[1:], cells[1:], strict=True) if t]
        return "  ".join([clean(self.path), *(text for text in facts if not text.endswith("=-"))])

    @property
    def rank(self) -> str:
        """The rank, or the least and the largest."""
        info = self.info
        if info is None:
            return "-"
        if info.ranks is None or info.ranks[0] == info.ranks[1]:
            return number(info.rank)
        return f"{info.ranks[0]}-{info.ranks[1]}"

    def _modules(self) -> str:
        if self.info is not None:
            return number(self.info.modules)
        return number(len(self.manifest.layers)) if self.manifest is not None else "-"

    def _applies_cell(self) -> Cell:
        if any(finding.code == "no-effect" for finding in self.findings):
            return "no effect", "error"
        return ("", "") if self.applies is None else (self.applies.words, self.applies.tone)

    def _stored(self) -> str | None:
        return None if self.manifest is None else self.manifest.dtype

    def _gravity(self) -> int:
        if self.error is not None:
            return 0
        return 1 + SEVERITIES.index(self.findings[0].severity) if self.findings else 9

    def _findings_cell(self) -> Cell:
        if self.error is not None:
            return "unusable", "error"
        if self.is_subspace:
            tasks = self.manifest.tasks if self.manifest is not None else ()
            return plural(len(tasks), "task"), "accent"
        if not self.findings:
            return "-", "muted"
        worst = self.findings[0].severity
        count = sum(finding.severity == worst for finding in self.findings)
        return plural(count, worst), {"note": ""}.get(worst, worst)

    def _tensors_cell(self) -> Cell:
        if self.error is not None or self.is_subspace:
            return "-", "muted"
        if self.checked is None:
            return NOT_CHECKED, "muted"
        return ("ok", "good") if not self.checked else ("see findings", "warning")


def keep(text: str, marked: Iterable[str], roots: Sequence[str] = ()) -> Callable[[Row], bool]:
    """The rows that a filter keeps: all its words must fit; ``!word`` must not.

    Words are looked for in name, base model and path below ``roots``; ``rank>=16``,
    ``size>10MB``, ``group:1``, ``base:gpt2``, ``dtype:F16`` and ``is:marked`` ask for more.
    """
    tests = [_test(word, set(marked), roots) for word in text.split()]
    return lambda row: all(test(row) for test in tests)


def _test(word: str, marked: set[str], roots: Sequence[str]) -> Callable[[Row], bool]:
    if word.startswith("!") and len(word) > 1:
        inner = _test(word[1:], marked, roots)
        return lambda row: not inner(row)
    condition = re.fullmatch(r"(\w+)(>=|<=|>|<|=|:)(.+)", word)
    if condition and condition[1] in _FACTS:
        return _comparison(condition[1], condition[2], condition[3], marked)
    needle = word.casefold()
    return lambda row: needle in f"{row.name} {_below(row.path, roots)} {row.base or ''}".casefold()


def _below(path: str, roots: Sequence[str]) -> str:
    """The part of a path below the place that was looked into; what lies above is no matter."""
    matching = [folder for folder in roots if path.startswith(folder)]
    return path[max((len(root) for root in matching), default=0) :]


def _comparison(name: str, sign: str, value: str, marked: set[str]) -> Callable[[Row], bool]:
    fact = _FACTS[name]
    if name == "is":
        kinds = [kind for kind in _KINDS if kind.startswith(value)]
        return lambda row: any(_KINDS[kind](row, marked) for kind in kinds)
    limit: float | None
    try:
        limit = parse_bytes(value) if name == "size" else float(value)
    except (ValueError, ParameterError):
        limit = None
    if name in ("base", "dtype"):
        return lambda row: value.casefold() in str(fact(row) or "").casefold()
    if limit is None:
        return lambda row: False
    compare = _SIGNS[sign]
    return lambda row: fact(row) is not None and compare(fact(row), limit)


def ordered(rows: Sequence[Row], column: str, descending: bool) -> list[Row]:
    """The rows sorted by a column; what is not known stays last either way."""
    keyed = [(row.sort_key(column), row) for row in rows]
    keyed.sort(key=lambda entry: entry[0], reverse=descending)
    with_value = [row for key, row in keyed if not key[0]]
    without_value = [row for key, row in keyed if key[0]]
    return [*with_value, *(reversed(without_value) if descending else without_value)]


_SORTED_BY: dict[str, Callable[[Row], Any]] = {
    "base": lambda row: row.base and row.base.casefold(),
    "rank": lambda row: row.info and row.info.rank,
    "alpha": lambda row: row.info and row.info.alpha,
    "modules": lambda row: row.info.modules if row.info else None,
    "applies": lambda row: None if row.applies is None else row.applies.applied,
    "dtype": lambda row: row.info and row.info.dtype,
    "size": lambda row: row.nbytes or None,
    "group": lambda row: row.group,
    "findings": lambda row: row._gravity(),
    "tensors": lambda row: row._tensors_cell()[0],
}
_SIGNS: dict[str, Callable[[Any, Any], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
    "=": operator.eq,
    ":": operator.eq,
}
_FACTS: dict[str, Callable[[Row], Any]] = {
    "base": lambda row: row.base,
    "rank": lambda row: row.info and row.info.rank,
    "alpha": lambda row: row.info and row.info.alpha,
    "modules": lambda row: row.info and row.info.modules,
    "dtype": lambda row: row.info and row.info.dtype,
    "size": lambda row: row.nbytes or None,
    "group": lambda row: row.group,
    "is": lambda row: None,
}
_KINDS: dict[str, Callable[[Row, set[str]], bool]] = {
    "marked": lambda row, marked: row.path in marked,
    "broken": lambda row, marked: row.cannot_be_used,
    "sound": lambda row, marked: not row.cannot_be_used,
    "subspace": lambda row, marked: row.is_subspace,
    "adapter": lambda row, marked: not row.is_subspace,
    "remarkable": lambda row, marked: bool(row.findings),
}
