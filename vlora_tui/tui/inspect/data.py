"""Data for Inspect: copies, runs, outliers, figures per layer. No widget.

All of it is read from small files: spectra, the index and the task files of a subspace; what needs
weights is told by a command of our own, whose JSON is taken apart here. What was found wrong is
`vlora_tui.tui.inspect.finding_rows`.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vlora_engine.adapters.module_types import module_families
from vlora_engine.analysis.checkpoints import Run, runs_in, step_of
from vlora_engine.analysis.duplicates import Duplicates, duplicates_in
from vlora_engine.analysis.outliers import Reason, outliers_in
from vlora_engine.analysis.relations import Array
from vlora_engine.utils.json_reader import JsonValue
from vlora_engine.utils.naming import cosine_text
from vlora_engine.utils.ranking import ranked, worst
from vlora_tui.report.comparison import sameness, why
from vlora_tui.tui.core.likeness import Group, Likeness
from vlora_tui.tui.core.subcommand import read_answer
from vlora_tui.tui.text import clean, plural

if TYPE_CHECKING:
    from vlora_engine.spectra.choose import Choice
    from vlora_engine.spectra.tables import Spectra


@dataclass(frozen=True)
class Outlier:
    """An adapter that stands apart: in which modules, by size or by direction.

    Args:
        reasons: At least one, the strongest first.
        norm: Its ``||dW||``. likeness: Its mean cosine with the others.
    """

    index: int
    name: str
    reasons: tuple[Reason, ...]
    norm: float
    likeness: float

    @property
    def score(self) -> float:
        """What the strongest reason scores (see `vlora_engine.analysis.outliers`)."""
        return self.reasons[0].score

    @property
    def foremost_reason(self) -> Reason:
        """The strongest reason that names a family of modules, else the strongest."""
        return next((reason for reason in self.reasons if reason.family), self.reasons[0])

    @property
    def short(self) -> str:
        """The strongest reason in a few words."""
        reason = self.reasons[0]
        if reason.feature == "similarity":
            words = f"unlike, {cosine_text(reason.value)}"
        elif reason.value == 0:
            words = "no effect"
        elif reason.typical:
            words = f"norm {reason.value / reason.typical:.2g}x typical"
        else:
            words = "only one to act"
        return f"{clean(reason.family)}: {words}" if reason.family else words

    @property
    def why(self) -> list[str]:
        """Every reason in words: what, where, against what is usual."""
        return [clean(why(reason.as_dict())) for reason in self.reasons]


@dataclass(frozen=True)
class Kin:
    """What takes a moment to tell: who stands apart (furthest first), copies, runs."""

    outliers: tuple[Outlier, ...]
    groups: tuple[Group, ...]


def kin_of(likeness: Likeness, spectra: Spectra) -> Kin:
    """Outliers, copies and runs; looks at the places of the adapters for the steps of runs."""
    dtypes = [task.dtype for task in spectra.tasks]
    digests = [task.digest for task in spectra.tasks]
    copies = duplicates_in(likeness.relations, dtypes, digests)
    runs = runs_in(likeness.relations, [step_of(path) for path in likeness.paths], dtypes)
    outliers = [
        Outlier(
            index=found.index,
            name=likeness.names[found.index],
            reasons=found.reasons,
            norm=found.norm,
            likeness=found.mean_similarity,
        )
        for found in outliers_in(likeness.relations)
    ]
    groups = [_copies(likeness, copy) for copy in copies] + [_run(likeness, run) for run in runs]
    return Kin(tuple(ranked(outliers, lambda row: row.score, lambda row: row.name)), tuple(groups))


def _copies(likeness: Likeness, found: Duplicates) -> Group:
    least = likeness.least(found.members)
    return Group(found.kind, found.members, least, sameness(found.as_dict()))


def _run(likeness: Likeness, run: Run) -> Group:
    steps = [str(step) for step in run.steps or () if step is not None]
    how = run.how + (f": {', '.join(steps)}" if steps else "")
    return Group(run.kind, run.members, likeness.least(run.members), clean(how))


# per layer


def losses_of(spectra: Spectra, choice: Choice, task: int) -> dict[str, float]:
    """Per layer the relative error of a task's dW at a choice of k."""
    errors = {}
    for name, (k_a, k_b) in choice.k.items():
        at = _row_of(spectra, name, task)
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
        at = _row_of(spectra, name, task)
        if at is not None:
            sizes[name] = float(np.sqrt(max(0.0, float(spectra.layers[name].energy[at]))))
    return sizes


def module_of_family(spectra: Spectra, task: int, reason: Reason) -> str | None:
    """Of a family of modules the one in which a task acts most; least, where it is too small."""
    sizes = sizes_of(spectra, task)
    families = module_families(spectra.layer_names)
    of_family = [name for name in sizes if families.get(name) == reason.family]
    small = reason.feature == "norm" and reason.value < reason.typical
    return worst({name: sizes[name] for name in of_family}, largest=not small)


def natural(names: Iterable[str]) -> list[str]:
    """Names in the order in which people count: layer 2 before layer 10."""
    return sorted(
        names,
        key=lambda name: [
            (part.isdigit(), int(part) if part.isdigit() else 0, part) for part in name.split(".")
        ],
    )


def _row_of(spectra: Spectra, layer: str, task: int) -> int | None:
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
        row = read_answer(answer)
        modules = row.get("modules")
        return cls(
            first=row.read("a", JsonValue.text, ""),
            second=row.read("b", JsonValue.text, ""),
            total=row.read("total", _figures, {}),
            modules={k: _figures(v) for k, v in modules.object().items()} if modules else {},
        )

    def measure(self, name: str) -> dict[str, float]:
        """One figure of every module."""
        return {module: row[name] for module, row in self.modules.items() if name in row}


def _figures(row: JsonValue) -> dict[str, float]:
    return {
        key: float(value)
        for key, value in row.raw_object().items()
        if isinstance(value, int | float)
    }


def diff_arguments(first: str, second: str) -> list[str]:
    """The command that compares two places."""
    return ["diff", first, second]


def task_ref(subspace: Path, task: str) -> str:
    """A task of a subspace as the commands take it."""
    return f"{subspace}:{task}"


def analyze_command(paths: Sequence[str], threshold: float) -> str:
    """The command that prints the same likeness and groups."""
    return shlex.join(["vlora-tui", "analyze", *paths, "--threshold", f"{threshold:g}"])


@dataclass(frozen=True)
class Coverage:
    """What ``vlora-tui coverage`` says of one adapter: shares of ``||dW||^2``, in all and per side.

    Args:
        modules: Per module the share that both bases hold.
    """

    total: float
    side_a: float
    side_b: float
    modules: Mapping[str, float]

    @classmethod
    def of(cls, answer: Mapping[str, Any]) -> Coverage:
        """From the command's JSON."""
        (first,) = read_answer(answer)["adapters"].items(1)
        row = first.object()
        shares = {
            name: figures.object()["coverage"].number()
            for name, figures in row["modules"].object().items()
        }
        total, a, b = (row[key].number() for key in ("coverage", "coverage_a", "coverage_b"))
        return cls(total, a, b, shares)

    @property
    def words(self) -> str:
        """The whole in words."""
        total, a, b = (f"{100 * share:.3g} %" for share in (self.total, self.side_a, self.side_b))
        lacking = sum(share == 0 for share in self.modules.values())
        more = f"; nothing of {plural(lacking, 'module')}" if lacking else ""
        return f"in all {total} of its energy (inputs alone {a}, outputs alone {b}){more}"


# all pairs


def _row(value: JsonValue, names: Sequence[str]) -> list[float]:
    """One row of a matrix; what was not measured is null."""
    row = value.object()
    return [math.nan if row[name].is_null else row[name].number() for name in names]


@dataclass(frozen=True)
class Conflict:
    """How two interfere, as the engine judges it.

    Args:
        pair: Their places among those that were measured. kind: ``opposed``, ``tangled``,
            ``alike`` or ``apart``.
        contested: The share of one's energy where the other acts with other signs, at most.
    """

    pair: tuple[int, int]
    kind: str
    contested: float
    cosine: float

    @property
    def interferes(self) -> bool:
        """Whether they interfere."""
        return self.kind in ("opposed", "tangled")


@dataclass(frozen=True)
class Interference:
    """What ``vlora-tui interference`` says: per measure a matrix (n, n), in the paths' order.

    Row i, column j of ``writes``, ``reads`` and ``overlap`` are shares of adapter i.

    Args:
        worst: The pair that interferes most.
    """

    matrices: Mapping[str, Array]
    worst: Conflict | None = None

    @classmethod
    def of(cls, answer: Mapping[str, Any]) -> Interference:
        """From the command's JSON."""
        row = read_answer(answer)
        names = row["adapters"].texts()
        matrices = {
            measure: np.array([_row(matrix.object()[name], names) for name in names])
            for measure, matrix in row["matrices"].object().items()
        }
        overlap = matrices["overlap"]
        matrices["contested"] = np.maximum(overlap, overlap.T) * matrices["sign_conflict"]
        pairs = row.get("pairs")
        worst = None
        if pairs is not None and pairs.items():
            first = pairs.items()[0].object()
            i, j = (names.index(first[key].text()) for key in ("adapter", "and"))
            cosine = float(matrices["cosine"][i, j])
            worst = Conflict((i, j), first["kind"].text(), first["contested"].number(), cosine)
        return cls(matrices, worst)

    def spread(self, measure: str, at: Sequence[int], count: int) -> Array:
        """(count, count) a measure among all adapters; NaN where it was not taken."""
        values = np.full((count, count), np.nan)
        values[np.ix_(at, at)] = self.matrices[measure]
        return values


@dataclass(frozen=True)
class PairLayers:
    """What ``vlora-tui interference A B`` says of every module: the share that is contested."""

    contested: Mapping[str, float]
    total: float

    @classmethod
    def of(cls, answer: Mapping[str, Any]) -> PairLayers:
        """From the command's JSON."""
        row = read_answer(answer)
        layers = {
            name: figures.object()["contested"].number()
            for name, figures in row["layers"].object().items()
        }
        (pair,) = row["pairs"].items(1)
        return cls(layers, pair.object()["contested"].number())


def interference_arguments(paths: Iterable[str]) -> tuple[str, ...]:
    """The command that measures how some adapters interfere."""
    return ("interference", *paths)
