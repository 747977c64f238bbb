"""What Export plans: which tasks go where, how large, what is in the way; and the recipe for it.

Nothing here writes. Sizes follow from the index; places are looked at as the job will look at them.
"""

from __future__ import annotations

import math
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from vlora_engine.errors import ParameterError, VLoRAError
from vlora_engine.files import foreign_entries, is_empty_directory
from vlora_engine.hub.address import is_address
from vlora_tui.recipe import AdapterInput, Export, Input, Merge, Recipe, is_path
from vlora_tui.room import adapter_bytes, free_bytes, merged_bytes
from vlora_tui.writing import export_paths

if TYPE_CHECKING:
    from vlora_engine.catalog import AdapterInfo
    from vlora_engine.manifest import Manifest

Doing = Literal["export", "merge"]
Kind = Literal["subspace", "adapters"]
DTYPES = {None: "as they were", "fp32": "fp32", "fp16": "fp16", "bf16": "bf16"}


class Parameter(NamedTuple):
    """A parameter of a merge method; `vlora_engine.merging` holds the same, but loads torch."""

    name: str
    kind: type
    default: float | None
    range: str
    summary: str
    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False

    def parse(self, text: str) -> float | int | None:
        """The value that is meant; empty is the default.

        Raises:
            ParameterError: It is no number, or out of range.
        """
        if not text.strip():
            return self.default
        try:
            value = self.kind(text)
        except ValueError:
            value = math.nan
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high else value <= self.high
        if not (above and below):
            raise ParameterError(
                f"{self.name} is out of range.", expected=self.range, found=repr(text)
            )
        return value


MERGES: dict[str, str] = {
    "average": "weighted sum of the weight changes, exact",
    "ties": "keep the largest entries, elect signs, average what agrees",
    "dare": "drop entries at random, rescale the rest, sum",
}
PARAMETERS: dict[str, tuple[Parameter, ...]] = {
    "average": (),
    "ties": (
        Parameter("density", float, 0.5, "(0, 1]", "share of entries kept", 0, 1, True, False),
    ),
    "dare": (
        Parameter("drop_rate", float, 0.5, "[0, 1)", "share of entries dropped", 0, 1, False, True),
        Parameter("seed", int, None, "any integer", "seed of the draws; a fresh one by default"),
    ),
}
RANK = Parameter("rank", int, None, "1 or more", "rank of the result; by default what it needs", 1)


@dataclass(frozen=True)
class Item:
    """A task, or an adapter, that can be written or merged.

    Args:
        path: Where an adapter lies; None for a task of a subspace.
        nbytes: What it takes as an adapter with the dtypes it has.
        group: Adapters of different groups do not fit together.
    """

    name: str
    rank: int | None
    error: float | None = None
    nbytes: int = 0
    path: str | None = None
    group: int | None = None


@dataclass(frozen=True)
class Settings:
    """What is asked for; texts as they were typed."""

    doing: Doing = "export"
    dtype: str | None = None
    verify: bool = True
    out: str = ""
    method: str = "average"
    weights: str = ""
    rank: str = ""
    parameters: Mapping[str, str] = field(default_factory=dict)
    merged: str = ""

    def with_parameter(self, name: str, text: str) -> Settings:
        """The same with a parameter of the merge method set."""
        return replace(self, parameters={**self.parameters, name: text})


@dataclass(frozen=True)
class Source:
    """Where the items come from."""

    kind: Kind
    place: Path | None
    items: tuple[Item, ...]


@dataclass(frozen=True)
class Row:
    """One output.

    Args:
        name: The task, or the merge method.
        state: ``new``, ``there`` (one of ours, may be replaced) or ``no`` (may not be written).
        why: What is in the way.
    """

    name: str
    path: Path
    nbytes: int
    state: Literal["new", "there", "no"] = "new"
    why: str = ""


@dataclass(frozen=True)
class Plan:
    """What would be written, or why nothing can be."""

    rows: tuple[Row, ...] = ()
    problem: str | None = None
    free: int | None = None

    @property
    def nbytes(self) -> int:
        return sum(row.nbytes for row in self.rows)

    @property
    def there(self) -> list[Row]:
        return [row for row in self.rows if row.state == "there"]

    @property
    def refused(self) -> list[Row]:
        return [row for row in self.rows if row.state == "no"]


# what there is


def tasks_of(manifest: Manifest) -> Source:
    """The tasks of a subspace."""
    items = (
        Item(task.id, task.rank, task.error, adapter_bytes(manifest, task))
        for _, task in sorted(manifest.tasks.items())
    )
    return Source("subspace", manifest.path.absolute(), tuple(items))


def adapters_of(infos: Sequence[AdapterInfo]) -> Source:
    """Adapters as they lie."""
    items = (
        Item(info.name, info.rank, None, info.nbytes, str(info.path), info.group) for info in infos
    )
    return Source("adapters", None, tuple(items))


def first_settings(source: Source) -> Settings:
    """Places beside the source, which nobody has to type."""
    if source.place is not None:
        beside = source.place.parent / f"{source.place.name}-adapters"
        return Settings(out=f"{beside}/{{task}}", merged=f"{source.place.parent}/merged")
    roots = [str(Path(path).parent) for path in _paths_of(source)]
    root = os.path.commonpath(roots) if roots else os.getcwd()
    return Settings(doing="merge", out=f"{root}-again/{{task}}", merged=f"{root}/merged")


def _paths_of(source: Source) -> list[str]:
    """The adapters that lie on this disk, and not on the Hub."""
    return [str(item.path) for item in source.items if item.path and not is_address(item.path)]


# the plan


def plan(
    source: Source, marked: Sequence[str], settings: Settings, manifest: Manifest | None = None
) -> Plan:
    """What would be written where; looks at the places, writes nothing."""
    items = [item for item in source.items if item.name in set(marked)]
    try:
        names = [item.name for item in items]
        if settings.doing == "merge":
            merge = recipe_of(source, names, settings).merges[0]
            return _with_room([_merged_row(merge, items)], source)
        tasks = sorted(item.name for item in source.items)
        places = export_paths(export_of(source, names, settings), tasks)
    except VLoRAError as error:
        found = f" ({error.found})" if error.found else ""
        wanted = f"; expected: {error.expected}" if error.expected else ""
        return Plan(problem=f"{error.what.rstrip('.')}{found}{wanted}.")
    sizes = {item.name: item.nbytes for item in items}
    if manifest is not None and settings.dtype is not None:
        sizes = {n: adapter_bytes(manifest, manifest.task(n), settings.dtype) for n in sizes}
    return _with_room([Row(n, place, sizes[n]) for n, place in places.items()], source)


def _with_room(rows: list[Row], source: Source) -> Plan:
    inputs = {Path(path) for path in _paths_of(source)}
    if source.place is not None:
        inputs.add(source.place)
    seen: set[Path] = set()
    judged = []
    for row in rows:
        judged.append(_judged(row, inputs, seen))
        seen.add(row.path)
    return Plan(tuple(judged), free=free_bytes(rows[0].path) if rows else None)


def _judged(row: Row, inputs: set[Path], seen: set[Path]) -> Row:
    path = row.path
    if path in seen:
        return replace(row, state="no", why="a second output at this place")
    for place in inputs:
        if path == place:
            return replace(row, state="no", why="this is an input")
        if path in place.parents:
            return replace(row, state="no", why=f"an input lies in it: {place.name}")
        if place in path.parents and (place / "subspace.json").exists():
            return replace(row, state="no", why="inside the subspace")
    try:
        if not os.path.lexists(path) or is_empty_directory(path):
            return row
        foreign = foreign_entries(path)
    except OSError as error:
        return replace(row, state="no", why=error.strerror or str(error))
    if foreign:
        return replace(row, state="no", why=f"holds what is not ours: {foreign[0]}")
    return replace(row, state="there", why="is there already")


def _merged_row(merge: Merge, items: Sequence[Item]) -> Row:
    ranks = [item.rank or 0 for item in items]
    nbytes = merged_bytes([item.nbytes for item in items], ranks, merge.rank)
    return Row(f"{merge.method} of {len(items)}", Path(merge.path), nbytes)


# recipe and command


def recipe_of(source: Source, marked: Sequence[str], settings: Settings) -> Recipe:
    """What Enter starts.

    Raises:
        ParameterError: Something that was typed cannot be.
    """
    if settings.doing == "merge":
        return _merge_recipe(source, marked, settings)
    if source.place is None:
        raise ParameterError("There is no subspace yet to export from")
    export = export_of(source, marked, settings)
    return Recipe(input=Input(subspace=str(source.place)), exports=(export,))


def export_of(source: Source, marked: Sequence[str], settings: Settings) -> Export:
    """The table of a recipe; of adapters it is for after the build.

    Raises:
        ParameterError: Nothing is marked, or there is no place.
    """
    if not marked:
        raise ParameterError("Nothing is marked; space marks a line, + all")
    return Export(
        path=_place(settings.out),
        tasks=("*",) if len(marked) == len(source.items) else tuple(marked),
        dtype=settings.dtype,
        verify=settings.verify,
    )


def _merge_recipe(source: Source, marked: Sequence[str], settings: Settings) -> Recipe:
    chosen = [item for item in source.items if item.name in set(marked)]
    if len(chosen) < 2:
        raise ParameterError("A merge needs two or more; mark them with space")
    groups = {item.group for item in chosen}
    if len(groups) > 1:
        raise ParameterError("These adapters do not fit together", found="different groups")
    parameters = {
        p.name: value
        for p in PARAMETERS[settings.method]
        if (value := p.parse(settings.parameters.get(p.name, ""))) is not None
        and (value != p.default)
    }
    rank = RANK.parse(settings.rank)
    merge = Merge(
        adapters=tuple(_word(source, item) for item in chosen),
        path=_place(settings.merged),
        source="input" if source.place is None else "subspace",
        method=settings.method,
        weights=parse_weights(settings.weights, len(chosen)),
        rank=None if rank is None else int(rank),
        parameters=parameters,
    )
    if source.place is not None:
        return Recipe(input=Input(subspace=str(source.place)), merges=(merge,))
    adapters = tuple(AdapterInput(str(item.path), item.name) for item in chosen)
    return Recipe(input=Input(adapters=adapters), merges=(merge,))


def _word(source: Source, item: Item) -> str:
    """How a recipe names an item: by its name, or by its place where the name looks like one."""
    if not is_path(item.name):
        return item.name
    return str(item.path) if source.place is None else f"{source.place}:{item.name}"


def _place(text: str) -> str:
    if not text.strip():
        raise ParameterError("There is no place to write to; o names one")
    return os.path.abspath(os.path.expanduser(text.strip()))


def parse_weights(text: str, count: int) -> tuple[float, ...] | None:
    """Weights with commas or blanks between; none where nothing is typed.

    Raises:
        ParameterError: No numbers, or not as many as there are adapters.
    """
    words = text.replace(",", " ").split()
    if not words:
        return None
    try:
        weights = tuple(float(word) for word in words)
    except ValueError:
        weights = (math.nan,)
    if not all(map(math.isfinite, weights)):
        raise ParameterError("Weights are numbers", expected="such as 0.7, 0.3", found=text)
    if len(weights) != count:
        raise ParameterError(
            "There must be one weight for each", expected=str(count), found=str(len(weights))
        )
    return weights


def command_of(recipe: Recipe, tasks: Sequence[str] = (), *, force: bool = False) -> str:
    """The headless command that does the same.

    Args:
        tasks: All tasks of the subspace; file names depend on which there are.
    """
    more = ["--force"] if force else []
    if recipe.merges:
        return shlex.join([*_merge_words(recipe), *more])
    export = recipe.exports[0]
    head = ["vlora-tui", "export", str(recipe.input.subspace)]
    options = [] if export.dtype is None else ["--dtype", export.dtype]
    options += [] if export.verify else ["--no-verify"]
    options += more
    names = list(export.tasks)
    folder, braces, after = export.path.partition("/{task}")
    if braces and not after:
        if names == ["*"]:
            return shlex.join([*head, "--all", "-o", folder, *options])
        if len(names) > 1:
            return shlex.join([*head, *names, "-o", folder, *options])
    from vlora_engine.naming import slugs

    names = sorted(tasks) if names == ["*"] else names
    slug = slugs({*names, *tasks})
    return " && ".join(
        shlex.join([*head, name, "-o", export.path.replace("{task}", slug[name]), *options])
        for name in names
    )


def _merge_words(recipe: Recipe) -> list[str]:
    merge = recipe.merges[0]
    known = {adapter.name: adapter.path for adapter in recipe.input.adapters}
    places = [
        known.get(word) or (word if is_path(word) else f"{recipe.input.subspace}:{word}")
        for word in merge.adapters
    ]
    words = ["vlora-tui", "merge", *places, "-o", merge.path, "--method", merge.method]
    if merge.weights is not None:
        words.append(f"--weights={','.join(map(str, merge.weights))}")
    if merge.rank is not None:
        words += ["--rank", str(merge.rank)]
    values: Mapping[str, Any] = merge.parameters
    for name, value in values.items():
        words += [f"--{name.replace('_', '-')}", str(value)]
    return words
