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
from typing import TYPE_CHECKING, Any, Literal

from vlora_engine.errors import ParameterError, VLoRAError
from vlora_engine.files import foreign_entries, is_empty_directory
from vlora_engine.hub.address import is_address
from vlora_engine.merging.registry import MergeParameter
from vlora_engine.merging.specs import DEFAULT_METHOD
from vlora_engine.merging.specs import MERGE_METHODS as METHODS
from vlora_engine.targets import TARGETS, check_fit, facts_of_task, find_target, target_bytes
from vlora_engine.targets.fit import DTYPES as STORED
from vlora_tui.recipe import AdapterInput, Export, Input, Merge, Recipe, is_path
from vlora_tui.room import adapter_bytes, free_bytes, merged_bytes
from vlora_tui.writing import check_merge, export_paths

if TYPE_CHECKING:
    from vlora_engine.catalog import AdapterInfo
    from vlora_engine.manifest import Manifest

Doing = Literal["export", "merge"]
Kind = Literal["subspace", "adapters"]
DTYPES = {None: "as they were", "fp32": "fp32", "fp16": "fp16", "bf16": "bf16"}
FILES = {
    "peft": "adapter_config.json and adapter_model.safetensors",
    "llamacpp": "adapter.gguf",
    "ollama": "adapter.gguf and Modelfile",
}


# What can be merged, and how: the engine's own table, which needs no torch.
_SHOWN = {DEFAULT_METHOD if DEFAULT_METHOD in m.aliases else m.name: m for m in METHODS.values()}
MERGES: dict[str, str] = {name: method.summary for name, method in _SHOWN.items()}
CAUTIONS = {name: method.caution for name, method in _SHOWN.items()}
PARAMETERS: dict[str, tuple[MergeParameter, ...]] = {
    name: method.parameters for name, method in _SHOWN.items()
}
RANK = MergeParameter("rank", "int", None, "rank of the result; by default what it needs", low=1)


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
    """What is asked for; texts as they were typed.

    Args:
        drop_rest: Leave out tensors besides A and B where the target takes none.
        base: The base model's folder, for GGUF.
    """

    doing: Doing = "export"
    target: str = "peft"
    drop_rest: bool = False
    base: str = ""
    dtype: str | None = None
    verify: bool = True
    out: str = ""
    method: str = DEFAULT_METHOD
    weights: str = ""
    rank: str = ""
    parameters: Mapping[str, str] = field(default_factory=dict)
    merged: str = ""

    def with_target(self, name: str) -> Settings:
        """The same for another target; a dtype that it does not take gives way."""
        changed = replace(self, target=name)
        return changed if self.dtype in dtypes_of(name) else replace(changed, dtype=None)

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
        mend: What to do about it.
    """

    name: str
    path: Path
    nbytes: int
    state: Literal["new", "there", "no"] = "new"
    why: str = ""
    mend: str = "o names another place."


@dataclass(frozen=True)
class Plan:
    """What would be written, or why nothing can be."""

    rows: tuple[Row, ...] = ()
    problem: str | None = None
    free: int | None = None
    files: str = FILES["peft"]

    @property
    def nbytes(self) -> int:
        return sum(row.nbytes for row in self.rows)

    @property
    def there(self) -> list[Row]:
        return [row for row in self.rows if row.state == "there"]

    @property
    def refused(self) -> list[Row]:
        return [row for row in self.rows if row.state == "no"]


def dtypes_of(target: str) -> list[str | None]:
    """What a target's A and B may be stored in, in the order in which they are offered."""
    taken = TARGETS[target].dtypes
    return [word for word in DTYPES if word is None or STORED[word] in taken]


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
    rows = [
        Row(name, place, sizes[name])
        if manifest is None
        else _fitted_row(manifest, name, place, settings)
        for name, place in places.items()
    ]
    return _with_room(rows, source, FILES.get(settings.target, FILES["peft"]))


def _fitted_row(manifest: Manifest, name: str, place: Path, settings: Settings) -> Row:
    """A task as the target gets it, or why it would refuse it."""
    target, task = find_target(settings.target), manifest.task(name)
    if target.name == "peft":
        return Row(name, place, adapter_bytes(manifest, task, settings.dtype))
    facts = facts_of_task(manifest, task)
    row = Row(name, place, target_bytes(target, facts, settings.dtype))
    if facts.rest and not settings.drop_rest:
        why = f"{target.label} takes no other tensors; {facts.rest} here"
        return replace(row, state="no", why=why, mend="The form can leave them out.")
    try:
        check_fit(target, facts, drop_rest=True, dtype=settings.dtype, base=_base(settings))
    except VLoRAError as error:
        found = f" ({error.found})" if error.found else ""
        mend = error.remedy or "another target may take it"
        mend = f"{mend[0].upper()}{mend[1:]}."
        return replace(row, state="no", why=error.what.rstrip(".") + found, mend=mend)
    return row


def _base(settings: Settings) -> str | None:
    text = settings.base.strip()
    return os.path.abspath(os.path.expanduser(text)) if text else None


def _with_room(rows: list[Row], source: Source, files: str = FILES["peft"]) -> Plan:
    inputs = {Path(path) for path in _paths_of(source)}
    if source.place is not None:
        inputs.add(source.place)
    seen: set[Path] = set()
    judged = []
    for row in rows:
        judged.append(_judged(row, inputs, seen))
        seen.add(row.path)
    return Plan(tuple(judged), free=free_bytes(rows[0].path) if rows else None, files=files)


def _judged(row: Row, inputs: set[Path], seen: set[Path]) -> Row:
    path = row.path
    if row.state == "no":
        return row
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
        target=settings.target,
        dtype=settings.dtype,
        verify=settings.verify,
        drop_rest=settings.drop_rest and bool(find_target(settings.target).no_rest),
        base=_base(settings) if find_target(settings.target).form == "gguf" else None,
    )


def _merge_recipe(source: Source, marked: Sequence[str], settings: Settings) -> Recipe:
    chosen = [item for item in source.items if item.name in set(marked)]
    if len(chosen) < 2:
        raise ParameterError("A merge needs two or more; mark them with space")
    groups = {item.group for item in chosen}
    if len(groups) > 1:
        raise ParameterError("These adapters do not fit together", found="different groups")
    parameters = {
        p.name: list(value) if isinstance(value, tuple) else value
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
    check_merge(merge, len(chosen))
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
    options = [] if export.target == "peft" else ["--target", export.target]
    options += [] if export.dtype is None else ["--dtype", export.dtype]
    options += ["--drop-rest"] if export.drop_rest else []
    options += [] if export.base is None else ["--base", export.base]
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
        each = value if isinstance(value, list | tuple) else [value]
        words += [f"--{name.replace('_', '-')}", ",".join(map(str, each))]
    return words
