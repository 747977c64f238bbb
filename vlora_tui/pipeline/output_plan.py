"""Plans the outputs of a recipe besides its subspace: where each goes, and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlora_engine.convert.convert import (
    Conversion,
    check_gguf,
    losses_of,
    refuse_losses,
    require_sense,
)
from vlora_engine.convert.formats import GGUF, SUBSPACE_FORMATS
from vlora_engine.errors import (
    AdapterError,
    CollectionError,
    ParameterError,
    UnsupportedAdapterError,
)
from vlora_engine.merging.settings import check_request
from vlora_engine.targets import Facts, Target, check_fit, facts_of, facts_of_task, find_target
from vlora_engine.utils.naming import slugs
from vlora_engine.utils.output_checks import check_output
from vlora_tui.pipeline.inputs import Collection, require_apart_from
from vlora_tui.pipeline.task_patterns import recipe_tasks
from vlora_tui.recipe.model import CACHE, Convert, Export, Merge, Recipe, Resize, is_path

if TYPE_CHECKING:
    from vlora_engine.adapters.model import AdapterSource
    from vlora_engine.manifest.manifest import Manifest


def plan_outputs(
    recipe: Recipe,
    collection: Collection,
    *,
    force: bool,
    done: frozenset[str] = frozenset(),
    again: bool = False,
) -> list[Path]:
    """Every path that the recipe is going to write, checked: apart, and not there yet.

    Those that are ``done`` may be there: an earlier attempt wrote them. So may those of several
    exports and resizes: the command may simply be run again (`Writer`). So may any adapter where
    this goes on with a job, ``again``.

    Raises:
        NotFoundError: A task or adapter that an export or merge names is not there.
        OutputExistsError: An output exists, and not ``force``.
        ParameterError: Two outputs are one, an output is an input, or a format cannot hold what
            is converted to it.
    """
    outputs = [Path(recipe.output)] if recipe.output is not None else []
    repeatable: set[Path] = set()
    for export in recipe.exports:
        paths = export_paths(export, collection.tasks)
        _require_fit(export, paths, collection)
        outputs += paths.values()
        repeatable |= repeatable_paths(export, paths)
    for merge in recipe.merges:
        check_merge(merge, len(merge_inputs(merge, collection)))
        outputs.append(Path(merge.path))
    for resize in recipe.resizes:
        paths = export_paths(resize, collection.tasks)
        _require_served(resize, paths, collection)
        outputs += paths.values()
        repeatable |= repeatable_paths(resize, paths)
    for convert in recipe.converts:
        paths = convert_paths(convert, recipe, collection)
        _check_convert(convert, recipe, collection)
        outputs += paths.values()
        if len(paths) > 1 or "{task}" in convert.path:
            repeatable |= set(paths.values())
    if again:
        repeatable |= set(outputs) - {Path(recipe.output or "")}
    read = [*collection.places.values(), recipe.input.subspace or ""]
    if recipe.compress is not None and recipe.compress.spectra not in (None, CACHE):
        read.append(str(recipe.compress.spectra))
    read += [name for m in recipe.merges for name in m.adapters if is_path(name)]
    require_apart_from(outputs, filter(None, read))
    for path in outputs:
        check_output(path, force=force or str(path) in done or path in repeatable)
    return outputs


def repeatable_paths(request: Export | Resize, paths: Mapping[str, Path]) -> set[Path]:
    """Those that may be there already: of several, what is there and the same is left as it is."""
    return set(paths.values()) if "{task}" in request.path else set()


def _require_fit(export: Export, paths: Mapping[str, Path], collection: Collection) -> None:
    """Refuse tasks that the target would refuse, all of them, before the first one is written."""
    target = find_target(export.target)

    def check(task: str, path: Path) -> None:
        facts = facts_of_export(export, task, collection.manifest, collection.adapters)
        check_fit(
            target,
            facts,
            drop_rest=export.drop_rest,
            dtype=export.dtype,
            base=export.base_folder,
            out=path,
        )

    _check_all(target, paths, check)


def _require_served(resize: Resize, paths: Mapping[str, Path], collection: Collection) -> None:
    """Refuse adapters that their server would refuse at any rank, before one is written."""
    if resize.target is None:
        return

    def check(task: str, path: Path) -> None:
        manifest = collection.manifest
        if manifest is not None:
            facts = facts_of_task(manifest, manifest.task(task))
        else:
            facts = facts_of(collection.adapters[task], task)
        check_served(resize, facts, path)

    _check_all(find_target(resize.target), paths, check)


def check_served(resize: Resize, facts: Facts, path: Path) -> None:
    """Refuse an adapter that the server it is resized for would refuse at any rank.

    Raises:
        UnsupportedAdapterError, AdapterError: As `check_fit`.
    """
    if resize.target is None or find_target(resize.target).form == "gguf":
        return  # for llama.cpp's own converter, which asks for the base model itself
    target = find_target(resize.target)
    most = max((shape.rank for shape in facts.modules.values()), default=0)
    most = min(most, target.max_rank or most, resize.rank or most)
    cut = {name: replace(s, rank=min(s.rank, most)) for name, s in facts.modules.items()}
    check_fit(target, replace(facts, modules=cut), out=path)


def _check_all(
    target: Target, paths: Mapping[str, Path], check: Callable[[str, Path], None]
) -> None:
    faults = []
    for task, path in paths.items():
        try:
            check(task, path)
        except (AdapterError, UnsupportedAdapterError) as fault:
            faults.append(fault)
    if len(faults) == 1:
        raise faults[0]
    if faults:
        raise CollectionError(
            f"{len(faults)} of {len(paths)} adapters are not for {target.label}; "
            "nothing was written.",
            errors=faults,
            remedy="fix them, or name the others",
        )


def facts_of_export(
    export: Export, task: str, manifest: Manifest | None, adapters: Mapping[str, AdapterSource]
) -> Facts:
    """What headers tell of a task, with the base model that the export names."""
    if manifest is not None:
        facts = facts_of_task(manifest, manifest.task(task))
    else:
        facts = facts_of(adapters[task], task)
    if export.base_name is None:
        return facts
    return replace(facts, config={**facts.config, "base_model_name_or_path": export.base_name})


def export_paths(export: Export | Resize | Convert, tasks: Sequence[str]) -> dict[str, Path]:
    """Where each exported, resized or converted task goes."""
    chosen = recipe_tasks(export.tasks, tasks)
    if "{task}" not in export.path:
        if len(chosen) > 1:
            raise ParameterError(
                f"{len(chosen)} tasks cannot be written to one path.",
                where=export.path,
                remedy="put {task} into the path",
            )
        return {task: Path(export.path) for task in chosen}
    names = slugs(tasks)
    return {task: Path(export.path.replace("{task}", names[task])) for task in chosen}


def merge_inputs(merge: Merge, collection: Collection) -> list[str]:
    """The names of what is merged, in the order of the recipe; paths stay paths."""
    names: list[str] = []
    for word in merge.adapters:
        if is_path(word):
            named = [n for n, ref in collection.places.items() if Path(ref) == Path(word)]
            names.append(named[0] if named else word)
        else:
            names += recipe_tasks([word], collection.tasks)
    if merge.weights is not None and len(merge.weights) != len(names):
        raise ParameterError(
            "There must be one weight for each adapter.",
            expected=f"{len(names)} weights",
            found=f"{len(merge.weights)}",
        )
    return names


def is_of_subspace(step: Export | Convert, recipe: Recipe) -> bool:
    """Whether a step starts from the subspace, not from the adapters of the input."""
    return step.source == "subspace" or (not step.source and recipe.subspace is not None)


def convert_paths(convert: Convert, recipe: Recipe, collection: Collection) -> dict[str, Path]:
    """Where each task goes; a format that holds all tasks in one directory has one, under ""."""
    chosen = recipe_tasks(convert.tasks, collection.tasks)
    if convert.to in SUBSPACE_FORMATS:
        return {"": Path(convert.path)}
    if "{task}" in convert.path:
        return export_paths(convert, collection.tasks)
    is_whole = is_of_subspace(convert, recipe) and not convert.tasks
    if len(chosen) == 1 and not is_whole:
        return {chosen[0]: Path(convert.path)}
    names = slugs(collection.tasks)
    return {task: Path(convert.path) / names[task] for task in chosen}


def _check_convert(convert: Convert, recipe: Recipe, collection: Collection) -> None:
    """Refuse a conversion that makes no sense, or would lose what matters, by headers alone."""
    chosen = recipe_tasks(convert.tasks, collection.tasks)
    is_whole = is_of_subspace(convert, recipe) and not convert.tasks
    manifest = collection.manifest
    if convert.to in SUBSPACE_FORMATS and not (is_whole and manifest is None):
        whole = manifest.path if manifest is not None and is_whole else None
        require_sense(convert.to, chosen, whole, convert.k)
    sources = {name: collection.adapters[name] for name in chosen if name in collection.adapters}
    lost = losses_of(convert.to, sources, None if manifest is None else manifest.path, chosen)
    refuse_losses(Conversion(convert.to, {}, {}, losses=lost), convert.allow_loss)
    if convert.to == GGUF:
        check_gguf(
            sources, None if manifest is None else manifest.path, chosen,
            base=convert.base, dtype=convert.dtype,
        )  # fmt: skip


def check_merge(merge: Merge, count: int) -> None:
    """Everything about a merge that can be judged without its adapters.

    Raises:
        ParameterError: An unknown method or parameter, a value out of range, a contradiction.
    """
    weighted = merge.weights is not None or merge.layers or merge.scale != 1
    if count == 1 and not weighted:
        raise ParameterError(
            "A merge needs two adapters or more; one alone needs a weight.",
            found="1 adapter",
            remedy="name others too, or all of a folder: DIR/*; or give this one a weight, such as "
            "-1, which takes away what it does",
        )
    check_request(count, merge.method, **merge_settings(merge), parameters=merge.parameters)


def merge_settings(merge: Merge) -> dict[str, Any]:
    """What a merge says of its settings, by the keywords of `merge_adapters`."""
    names = ("weights", "layers", "normalize", "scale", "space", "dialect", "rank", "energy")
    return {name: getattr(merge, name) for name in names}
