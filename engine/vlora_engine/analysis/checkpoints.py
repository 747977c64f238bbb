"""Find adapters of one training run, and their order; no torch.

Training changes A slowly, so that adapters of one run share much of A: the cosine of their A as
stored is high, and that of adapters with different initializations is near 0. A common
initialization alone is no common run (default seeds are the same everywhere), so a **run** is
reported only where there is an order as well, together with how it is known:

- by the steps in ``trainer_state.json`` beside the adapter, or in its name (``checkpoint-500``);
- otherwise, for three or more, by growth: dW begins at 0, and in a run every adapter is farther
  from an earlier one the later it is.

Where only the initialization is common, it is a common **start** (docs/mathematics.md#checkpoints).
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vlora_engine.analysis.duplicates import rounding_of
from vlora_engine.analysis.relations import Array, Relations, components_of, cosines_of
from vlora_engine.utils.naming import cosine_text
from vlora_engine.utils.reading import read_text

COMMON = 0.5  # cosine of A above which a start is common; .15 to .6 give the same ones
_STEP = re.compile(r"(?i)(?<![a-z])(?:checkpoint|ckpt|step|iter|epoch)[-_ .]?(\d{1,12})(?!\d)")


@dataclass(frozen=True)
class Step:
    """The training step at which an adapter was saved, as its path tells it.

    Args:
        run: Identifies the run, such as the folder of its checkpoints.
        number: The step; None for an adapter in the run's folder itself, its end.
        source: ``trainer_state`` or ``names``.
    """

    run: str
    number: int | None
    source: str


@dataclass(frozen=True)
class Run:
    """Adapters of one training run, or with a common start.

    Args:
        members: Indices, in the order of the run; of a start ascending.
        kind: ``run``, or ``start`` where only the initialization is known to be common.
        ordered_by: ``trainer_state``, ``names`` or ``growth``; None for a start.
        steps: The step of each, None where it is not known.
        cosine: The smallest cosine of A of any two.
        monotone: Whether every member is farther from an earlier one the later it is. None for two.
        how: The evidence, in one line.
    """

    members: tuple[int, ...]
    kind: Literal["run", "start"]
    ordered_by: str | None
    steps: tuple[int | None, ...] | None
    cosine: float
    monotone: bool | None
    how: str

    def as_dict(self) -> dict[str, Any]:
        """The fields, for JSON."""
        steps = None if self.steps is None else list(self.steps)
        return {**asdict(self), "members": list(self.members), "steps": steps}


def step_of(path: str | Path | None) -> Step | None:
    """Read an adapter's training step from its path or trainer state; None if neither has one."""
    if path is None:
        return None
    location = Path(path)
    folder = location if location.is_dir() else location.parent
    number = _trainer_step(folder)
    for named in (location, location.parent):  # PEFT puts a named adapter below its checkpoint
        last = max(_STEP.finditer(named.name), key=lambda match: match.start(), default=None)
        if last is None or (named != location and last[0] != named.name):
            continue  # a folder further up that has a number somewhere says nothing
        pattern = named.with_name(named.name[: last.start()] + "*" + named.name[last.end() :])
        run = str(pattern if named == location else pattern / location.name)
        if number is not None:
            return Step(run, number, "trainer_state")
        return Step(run, int(last[1]), "names")
    if number is not None:
        return Step(str(folder.parent / "*"), number, "trainer_state")
    return Step(str(folder), None, "names") if folder == location else None


def _trainer_step(folder: Path) -> int | None:
    """``global_step`` of the state that transformers' Trainer leaves beside a checkpoint."""
    try:
        state = json.loads(read_text(folder / "trainer_state.json"))
    except (OSError, ValueError, RecursionError):
        return None
    step = state.get("global_step") if isinstance(state, dict) else None
    return step if type(step) is int and step >= 0 else None


def runs_in(
    relations: Relations, steps: Sequence[Step | None], dtypes: Sequence[str] | None = None
) -> list[Run]:
    """The runs and common starts of a collection, in the order of their first members.

    Args:
        relations: Of the N adapters.
        steps: (N,) from each one's path; see `step_of`.
        dtypes: (N,) of the adapters' factors; used to exclude groups of exact copies.
    """
    if relations.starts is None:
        return []
    cosines = cosines_of(relations.starts)
    runs = []
    for members in components_of(cosines > COMMON):
        ungrouped = set(members)
        for group in _by_hints(members, steps):
            if len(group) > 1:
                runs.append(_named_run(relations, cosines, group, steps))
                ungrouped -= set(group)
        rest = sorted(ungrouped)
        if len(rest) == len(members) and len(rest) > 2 and (order := _growing(relations, rest)):
            runs.append(_grown_run(cosines, order))
        elif len(rest) > 1 and not _all_copies(relations, rest, dtypes):
            runs.append(_start(cosines, rest))
    return sorted(runs, key=lambda run: min(run.members))


def _by_hints(members: Sequence[int], steps: Sequence[Step | None]) -> list[list[int]]:
    """Group members into runs by their paths, in the order of their steps, the end last."""
    runs: Mapping[str, list[tuple[int, int]]] = defaultdict(list)
    for i in members:
        step = steps[i]
        if step is not None and step.number is not None:
            runs[step.run].append((step.number, i))
    ends = {step.run: i for i in members if (step := steps[i]) and step.number is None}
    groups = []
    for run, numbered in sorted(runs.items()):
        if len({number for number, _ in numbered}) < len(numbered):
            continue  # two of one step: the paths do not tell the order
        end = ends.get(str(Path(run).parent))
        order = [i for _, i in sorted(numbered)]
        groups.append(order if end is None else [*order, end])
    return groups


def _named_run(
    relations: Relations, cosines: Array, order: Sequence[int], steps: Sequence[Step | None]
) -> Run:
    hints = [steps[i] for i in order]
    source = next(hint.source for hint in hints if hint is not None)
    least = _least(cosines, order)
    monotone = _is_monotone(_distances(relations), order) if len(order) > 2 else None
    where = "trainer_state.json" if source == "trainer_state" else "their names"
    remarks = {
        True: "; dW moves on from step to step",
        False: "; dW does not move on from step to step",
        None: "",
    }
    return Run(
        members=tuple(order),
        kind="run",
        ordered_by=source,
        steps=tuple(None if hint is None else hint.number for hint in hints),
        cosine=least,
        monotone=monotone,
        how=f"one A (cosine from {cosine_text(least)}), steps from {where}{remarks[monotone]}",
    )


def _grown_run(cosines: Array, order: Sequence[int]) -> Run:
    least = _least(cosines, order)
    one = f"one A (cosine from {cosine_text(least)})"
    how = f"{one}, and dW grows away from the first in this order"
    return Run(tuple(order), "run", "growth", None, least, True, how)


def _start(cosines: Array, members: Sequence[int]) -> Run:
    least = _least(cosines, members)
    alike = f"A is alike (cosine {cosine_text(least)} or more)"
    how = f"{alike}: one run, or one seed; the order is not known"
    return Run(tuple(members), "start", None, None, least, None, how)


def _least(cosines: Array, members: Sequence[int]) -> float:
    return float(cosines[np.ix_(members, members)].min())


def _distances(relations: Relations) -> Array:
    """The distances ``||dW_i - dW_j||``, (N, N)."""
    norms2 = relations.total.diagonal()
    distances: Array = np.sqrt((norms2[:, None] + norms2 - 2 * relations.total).clip(0))
    return distances


def _growing(relations: Relations, members: Sequence[int]) -> list[int] | None:
    """The members in ascending order of ``||dW||``, if distances grow along it; else None."""
    order = sorted(members, key=lambda i: (float(relations.norms[i]), i))
    return order if _is_monotone(_distances(relations), order) else None


def _is_monotone(distances: Array, order: Sequence[int]) -> bool:
    """Whether, from every member, distances grow along this order in both directions."""
    along = distances[np.ix_(order, order)]
    return all(
        bool((np.diff(along[i, i:]) > 0).all()) and bool((np.diff(along[i, : i + 1]) < 0).all())
        for i in range(len(order))
    )


def _all_copies(relations: Relations, members: Sequence[int], dtypes: Sequence[str] | None) -> bool:
    """Whether all of them are copies of one adapter, up to rounding."""
    if relations.difference is None:
        return False
    allowed = rounding_of(dtypes or ["F32"] * len(relations))[list(members)].max()
    return bool(relations.difference[np.ix_(members, members)].max() <= allowed)
