"""The plan of an export: outputs, sizes, what is in the way, which servers refuse what.

Nothing here writes. Sizes follow from headers; places are looked at as the job will look at them.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from vlora_engine.adapters.model import ModuleShape
from vlora_engine.convert.formats import SUBSPACE_FORMATS
from vlora_engine.errors import VLoRAError
from vlora_engine.findings import SEVERITIES, Finding
from vlora_engine.targets import TARGETS, Facts, check_fit, find_target, target_bytes
from vlora_engine.targets.fit import misfits
from vlora_engine.targets.registry import RANK_LIMITS
from vlora_engine.utils.file_names import SUBSPACE_INDEX
from vlora_engine.utils.naming import slugs
from vlora_engine.utils.output_checks import foreign_entries, is_empty_directory
from vlora_engine.utils.safetensors_file import ITEM_BYTES
from vlora_tui.pipeline.disk_space import adapter_bytes, free_bytes, merged_bytes
from vlora_tui.pipeline.output_plan import check_served, export_paths
from vlora_tui.recipe.model import Convert, Merge, Resize
from vlora_tui.tui.export.recipes import base_of, recipe_of
from vlora_tui.tui.export.settings import Item, Settings, Source, paths_of
from vlora_tui.tui.export.verdicts import Headers, Opinion, written_opinion
from vlora_tui.tui.text import advice, plural
from vlora_tui.utils.formatting import listed, size

FILES = {
    "peft": "adapter_config.json and adapter_model.safetensors",
    "llamacpp": "adapter.gguf",
    "ollama": "adapter.gguf and Modelfile",
    "mlx": "adapter_config.json and adapters.safetensors",
    "gguf": "adapter.gguf",
}


@dataclass(frozen=True)
class Row:
    """One output.

    Args:
        name: The task, or the merge method.
        state: ``new``, ``there`` (one of ours, may be replaced) or ``no`` (may not be written).
        why: What is in the way.
        mend: What to do about it.
        opinion: What the doctor says, for the target; None where there is no target.
        at_most: Whether it may take fewer bytes.
        about: What it becomes, in words.
    """

    name: str
    path: Path
    nbytes: int
    state: Literal["new", "there", "no"] = "new"
    why: str = ""
    mend: str = "<export.place> changes the output."
    opinion: Opinion | None = None
    at_most: bool = False
    about: str = ""

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What the doctor says of what is going to be written."""
        return () if self.opinion is None else self.opinion.stays


@dataclass(frozen=True)
class Plan:
    """What would be written, or why nothing can be."""

    rows: tuple[Row, ...] = ()
    problem: str | None = None
    free: int | None = None
    files: str = FILES["peft"]
    served: str = ""  # of a merge: which servers would refuse the result

    @property
    def nbytes(self) -> int:
        return sum(row.nbytes for row in self.rows)

    @property
    def there(self) -> list[Row]:
        return [row for row in self.rows if row.state == "there"]

    @property
    def refused(self) -> list[Row]:
        return [row for row in self.rows if row.state == "no"]


def plan(
    source: Source,
    marked: Sequence[str],
    settings: Settings,
    headers: Headers | None = None,
    written: Collection[str] = (),
) -> Plan:
    """What would be written where; looks at the places, writes nothing.

    Args:
        headers: Those of the items, where they are of use.
        written: Paths that the job has written for the target: the doctor looks at these.
    """
    headers = headers or Headers()
    items = [item for item in source.items if item.name in set(marked)]
    try:
        names = [item.name for item in items]
        if settings.doing == "merge":
            merge = recipe_of(source, names, settings).merges[0]
            found = _with_free_space([_merged_row(merge, items)], source)
            return replace(found, served=_served(merge, items, headers))
        tasks = sorted(names if source.subspace is None else [item.name for item in source.items])
        if settings.doing == "resize":
            resize = recipe_of(source, names, settings).resizes[0]
            paths = export_paths(resize, tasks)
            rows = [_resized_row(item, paths[item.name], resize, headers) for item in items]
            return _with_free_space(rows, source)
        if settings.doing == "convert":
            rows = _converted_rows(items, recipe_of(source, names, settings).converts[0], tasks)
            return _with_free_space(
                rows, source, FILES.get(settings.to, f"a {settings.to} subspace")
            )
        paths = export_paths(recipe_of(source, names, settings).exports[0], tasks)
    except VLoRAError as error:
        return Plan(problem=error_text(error))
    rows = [_exported_row(item, paths[item.name], settings, headers) for item in items]
    rows = [_proved(row, settings.target) if str(row.path) in written else row for row in rows]
    return _with_free_space(rows, source, FILES.get(settings.target, FILES["peft"]))


def error_text(error: VLoRAError) -> str:
    """An error in one sentence."""
    found = f" ({error.found})" if error.found else ""
    expected = f"; expected: {error.expected}" if error.expected else ""
    return f"{error.what.rstrip('.')}{found}{expected}."


def _exported_row(item: Item, path: Path, settings: Settings, headers: Headers) -> Row:
    """An item as the target gets it, with the doctor's verdict, or why it would be refused."""
    target = find_target(settings.target)
    row = Row(item.name, path, item.nbytes)
    try:
        facts = headers.facts(item)
        if target.name == "peft":
            if headers.manifest is not None:
                task = headers.manifest.task(item.name)
                row = replace(row, nbytes=adapter_bytes(headers.manifest, task, settings.dtype))
        elif facts is not None:
            row = replace(row, nbytes=target_bytes(target, facts, settings.dtype))
            if facts.rest and target.no_rest and not settings.drop_rest:
                why = f"{target.label} does not accept {plural(facts.rest, 'extra tensor')}"
                mend = 'Set "other tensors" to "drop".'
                refused = replace(row, state="no", why=why, mend=mend)
                return replace(refused, opinion=headers.of_refused(item, target))
            base = base_of(settings)
            check_fit(target, facts, drop_rest=True, dtype=settings.dtype, base=base)
        return replace(row, opinion=headers.opinion(item, target))
    except VLoRAError as error:
        refused = replace(row, state="no", why=_why(error), mend=_mend(error, "another target"))
        return replace(refused, opinion=headers.of_refused(item, target))


def _why(error: VLoRAError) -> str:
    return error.what.rstrip(".") + (f" ({error.found})" if error.found else "")


def _mend(error: VLoRAError, otherwise: str) -> str:
    words = advice(error.remedy or "") or f"{otherwise} may do"
    return f"{words[0].upper()}{words[1:]}."


def _proved(row: Row, target: str) -> Row:
    """A row that was written: what the doctor finds in the files joins what was known before."""
    codes = {finding.code for finding in row.findings}
    new = [f for f in written_opinion(row.path, target).stays if f.code not in codes]
    found = sorted((*row.findings, *new), key=lambda f: SEVERITIES.index(f.severity))
    return replace(row, opinion=Opinion(tuple(found)))


def _merged_row(merge: Merge, items: Sequence[Item]) -> Row:
    ranks = [item.rank or 0 for item in items]
    nbytes = merged_bytes([item.nbytes for item in items], ranks, merge.rank)
    at_most = merge.energy is not None
    return Row(f"{merge.method} of {len(items)}", Path(merge.path), nbytes, at_most=at_most)


def _served(merge: Merge, items: Sequence[Item], headers: Headers) -> str:
    """Which servers would refuse what a merge makes; empty where that is not known."""
    try:
        facts = [known for item in items if (known := headers.facts(item)) is not None]
    except VLoRAError:
        return ""  # the job says why it cannot be read
    if len(facts) < len(items):
        return ""
    merged = _merged_facts(merge, facts)
    refused: dict[str, str] = {}
    for target in (TARGETS[name] for name in RANK_LIMITS if name != "portable"):
        # Whether the base is at hand is asked when it is exported for a server.
        misfit = next((m for m in misfits(target, merged) if m.code not in OF_BASE), None)
        if misfit is not None:
            refused[target.label] = misfit.what
    if not refused:
        return "Every server takes the result."
    names = listed(list(refused), len(refused))
    return f"{names} would refuse the result: {next(iter(refused.values()))}"


OF_BASE = frozenset({"no-base", "wrong-base", "architecture", "modules"})


def _merged_facts(merge: Merge, facts: Sequence[Facts]) -> Facts:
    """The facts of what a merge makes, its ranks as large as they can become."""
    shapes: dict[str, ModuleShape] = {}
    for name, shape in ((n, s) for each in facts for n, s in each.modules.items()):
        before = shapes.get(name)
        rank = shape.rank
        if before is not None:
            on_factors = merge.space == "factors"
            rank = max(before.rank, rank) if on_factors else before.rank + rank
        if merge.rank is not None:
            rank = min(rank, merge.rank)
        room = [side for side in (shape.d_in, shape.d_out) if side]
        shapes[name] = replace(shape, rank=min([rank, *room]))
    # Of other tensors a merge keeps those in which all agree; it leaves out the rest.
    least = min(facts, key=lambda each: each.rest)
    return replace(facts[0], modules=shapes, rest=least.rest, example=least.example, name=None)


def _converted_rows(items: Sequence[Item], convert: Convert, tasks: Sequence[str]) -> list[Row]:
    """A row for each adapter, as the job names their folders; one for a format of subspaces."""
    if convert.to in SUBSPACE_FORMATS:
        nbytes = sum(item.nbytes for item in items)
        return [Row(f"{len(items)} as {convert.to}", Path(convert.path), nbytes)]
    if len(items) == 1 and (convert.tasks or len(tasks) == 1):
        return [Row(items[0].name, Path(convert.path), items[0].nbytes)]
    names = slugs(tasks)
    return [Row(i.name, Path(convert.path) / names[i.name], i.nbytes) for i in items]


def _resized_row(item: Item, path: Path, resize: Resize, headers: Headers) -> Row:
    try:
        facts = headers.facts(item)
        if facts is not None:
            check_served(resize, facts, path)
    except VLoRAError as error:
        why, mend = _why(error), _mend(error, "the others")
        return Row(item.name, path, item.nbytes, "no", why, mend)
    nbytes = item.nbytes if facts is None else item.nbytes + resized_change(facts, resize)
    most = resize.rank is None
    about = f"{size(item.nbytes)} become {'at most' if most else 'about'} {size(nbytes)}"
    if item.rank is not None and resize.rank is not None:
        about = f"rank {item.rank} becomes {resize.rank}, {about}"
    return Row(item.name, path, nbytes, at_most=most, about=about)


def resized_change(facts: Facts, resize: Resize) -> int:
    """How many bytes the factors take more, or less, at another rank; the most that it can be."""
    shapes = [shape for shape in facts.modules.values() if shape.rank]
    return sum(
        (_new_rank(resize, shape.rank, facts.rank) - shape.rank)
        * (shape.d_in + shape.d_out)
        * ITEM_BYTES[shape.dtype]
        for shape in shapes
    )


def _new_rank(resize: Resize, rank: int, largest: int) -> int:
    if resize.rank is not None:
        return resize.rank
    if resize.target is None:
        return rank
    return min(largest, max(RANK_LIMITS[resize.target].choices, default=largest))


def _with_free_space(rows: list[Row], source: Source, files: str = FILES["peft"]) -> Plan:
    inputs = {Path(path) for path in paths_of(source)}
    if source.subspace is not None:
        inputs.add(source.subspace)
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
    for read_path in inputs:
        if path == read_path:
            return replace(row, state="no", why="this is an input")
        if path in read_path.parents:
            return replace(row, state="no", why=f"an input lies in it: {read_path.name}")
        if read_path in path.parents and (read_path / SUBSPACE_INDEX).exists():
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
