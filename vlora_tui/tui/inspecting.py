"""What Inspect shows: likeness, groups, who stands apart, findings, figures per layer. No widget.

All of it is read from small files: spectra, the index and the task files of a subspace, headers.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vlora_engine.outliers import outliers_of
from vlora_engine.relations import Array, clusters_of, cosines_of, order_by_likeness
from vlora_tui.tui.words import clean

if TYPE_CHECKING:
    from vlora_engine.budget import Choice
    from vlora_engine.errors import VLoRAError
    from vlora_engine.surface import Spectra
    from vlora_tui.tui.session import Session

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
SEVERITIES = ("error", "warning", "note")


@dataclass(frozen=True)
class Likeness:
    """How the adapters of a collection relate.

    Args:
        gram: (N, N) inner products of their weight changes.
        paths: Where each lies, None where that is not known.
    """

    names: tuple[str, ...]
    gram: Array
    paths: tuple[str | None, ...] = ()

    @cached_property
    def cosines(self) -> Array:
        return cosines_of(self.gram)

    @cached_property
    def norms(self) -> Array:
        """(N,) ||dW||."""
        norms: Array = np.sqrt(self.gram.diagonal().clip(0))
        return norms

    @cached_property
    def by_likeness(self) -> list[int]:
        """The adapters in an order in which those that are alike stand together."""
        return order_by_likeness(self.cosines)

    def groups(self, threshold: float) -> list[Alike]:
        """Those of two or more of which any two are at least that alike, the largest first."""
        found = [
            Alike("", tuple(members), self._least(members))
            for members in clusters_of(self.cosines, threshold)
            if len(members) > 1
        ]
        found.sort(key=lambda group: (-len(group.members), -group.least))
        return [
            Alike(LETTERS[i] if i < len(LETTERS) else "+", group.members, group.least)
            for i, group in enumerate(found)
        ]

    def _least(self, members: Sequence[int]) -> float:
        block = self.cosines[np.ix_(members, members)]
        return float(block.min())

    @cached_property
    def apart(self) -> list[Apart]:
        """Those that stand apart by the size or the direction of what they do, furthest first."""
        rows = [
            Apart(
                index=row["index"],
                name=self.names[row["index"]],
                feature=row["feature"],
                value=row["value"],
                typical=row["typical"],
                score=row["z_score"],
                norm=row["norm"],
                likeness=row["mean_similarity"],
            )
            for row in outliers_of(self.gram)
        ]
        return sorted(rows, key=lambda row: -row.score)


@dataclass(frozen=True)
class Alike:
    """A group of adapters that are alike; ``least`` is the cosine of its two most different."""

    letter: str
    members: tuple[int, ...]
    least: float


@dataclass(frozen=True)
class Apart:
    """An adapter that stands apart.

    Args:
        feature: ``norm`` or ``similarity``: what is remarkable.
        score: How many robust standard deviations it is from the others.
    """

    index: int
    name: str
    feature: str
    value: float
    typical: float
    score: float
    norm: float
    likeness: float

    @property
    def why(self) -> str:
        """In a few words."""
        if self.feature == "similarity":
            return f"unlike, {self.likeness:.2f}"
        if self.norm == 0:
            return "no effect"
        return f"{self.value / self.typical:.2g}x the size" if self.typical else "alone acts"


@dataclass(frozen=True)
class Remark:
    """One finding, as a row."""

    severity: str
    about: str
    what: str
    where: str = ""
    remedy: str = ""
    code: str = ""


def likeness_of(spectra: Spectra | None) -> Likeness | None:
    """How the adapters of some spectra relate; None before all layers are there."""
    if spectra is None or spectra.inner is None or not spectra.tasks:
        return None
    return Likeness(
        names=tuple(clean(task.name) for task in spectra.tasks),
        gram=spectra.inner,
        paths=tuple(task.path for task in spectra.tasks),
    )


# per layer


def losses_of(spectra: Spectra, choice: Choice, task: int) -> dict[str, float]:
    """Per layer the relative error of a task's dW at a choice of k."""
    errors = {}
    for name, (k_a, k_b) in choice.k.items():
        at = _place(spectra, name, task)
        if at is None:
            continue
        energy = float(spectra.layers[name].energy[at])
        residual = float(spectra.table(name, choice.method).at(k_a, k_b)[at])
        errors[name] = float(np.sqrt(max(0.0, residual) / energy)) if energy > 0 else 0.0
    return errors


def sizes_of(spectra: Spectra, task: int) -> dict[str, float]:
    """Per layer ||dW|| of a task."""
    sizes = {}
    for name in spectra.layers:
        at = _place(spectra, name, task)
        if at is not None:
            sizes[name] = float(np.sqrt(max(0.0, float(spectra.layers[name].energy[at]))))
    return sizes


def natural(names: Iterable[str]) -> list[str]:
    """Names in the order in which people count: layer 2 before layer 10."""
    return sorted(
        names,
        key=lambda name: [
            (part.isdigit(), int(part) if part.isdigit() else 0, part) for part in name.split(".")
        ],
    )


def _place(spectra: Spectra, layer: str, task: int) -> int | None:
    """Where a task stands in the tables of a layer; None where it lacks the module."""
    if layer not in spectra.layers:
        return None
    found = np.flatnonzero(spectra.layers[layer].tasks == task)
    return int(found[0]) if len(found) else None


# two adapters


@dataclass(frozen=True)
class Diff:
    """What ``vlora-tui diff`` says of two adapters, per module and in all."""

    first: str
    second: str
    total: Mapping[str, float]
    modules: Mapping[str, Mapping[str, float]]

    @classmethod
    def of(cls, answer: Mapping[str, Any]) -> Diff:
        """From the command's JSON."""
        return cls(
            first=str(answer.get("a", "")),
            second=str(answer.get("b", "")),
            total=_figures(answer.get("total")),
            modules={str(k): _figures(v) for k, v in dict(answer.get("modules") or {}).items()},
        )

    def measure(self, name: str) -> dict[str, float]:
        """One figure of every module."""
        return {module: row[name] for module, row in self.modules.items() if name in row}


def _figures(row: Any) -> dict[str, float]:
    return {
        str(key): float(value)
        for key, value in (row or {}).items()
        if isinstance(value, int | float)
    }


def diff_arguments(first: str, second: str) -> list[str]:
    """The command that compares two places."""
    return ["diff", first, second]


def task_place(subspace: Path, task: str) -> str:
    """A task of a subspace as the commands take it."""
    return f"{subspace}:{task}"


def analyze_command(paths: Sequence[str], threshold: float) -> str:
    """The command that prints the same likeness and groups."""
    return shlex.join(["vlora-tui", "analyze", *paths, "--threshold", f"{threshold:g}"])


# findings


def remarks_of(session: Session) -> list[Remark]:
    """What headers and spectra jobs have found, the gravest first; each once."""
    found: dict[tuple[str, str], Remark] = {}
    about = {str(path): info.name for path, info in session.infos.items()}
    for info in session.infos.values():
        if info.error is not None:
            _add(found, _from_error(info.error, info.name))
        for finding in info.findings:
            _add(found, _from_row(finding.as_dict(), {}, info.name))
    spectra = session.spectra
    if spectra is not None:
        about |= {task.path: task.name for task in spectra.tasks if task.path is not None}
        for row in spectra.skipped:
            _add(found, _from_row({**row, "severity": "error"}, about))
        for row in spectra.findings:
            _add(found, _from_row(row, about))
    rows = list(found.values())
    return sorted(rows, key=lambda r: (SEVERITIES.index(r.severity), r.about))


def _add(found: dict[tuple[str, str], Remark], remark: Remark) -> None:
    found.setdefault((remark.about, remark.what), remark)


def _from_error(error: VLoRAError, name: str) -> Remark:
    return _from_row({**error.as_dict(), "severity": "error"}, {}, name)


def _from_row(row: Mapping[str, Any], about: Mapping[str, str], name: str = "") -> Remark:
    """A finding or an error in its JSON form."""
    where = str(row.get("where") or "")
    found = f" Found: {row['found']}." if row.get("found") else ""
    severity = str(row.get("severity"))
    return Remark(
        severity=severity if severity in SEVERITIES else "note",
        about=clean(name or _named(where, about)),
        what=clean(str(row.get("what") or "") + found),
        where=clean(where),
        remedy=clean(row.get("remedy") or ""),
        code=clean(row.get("code") or row.get("error") or ""),
    )


def _named(where: str, about: Mapping[str, str]) -> str:
    """The adapter that a place belongs to."""
    for path, name in about.items():
        if where == path or where.startswith((path + ":", path + "/")):
            return name
    head = where.partition(": ")[0]
    return Path(head).name if "/" in head else head
