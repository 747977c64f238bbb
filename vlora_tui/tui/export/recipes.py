"""The recipe that Export starts, and the headless commands that do the same."""

from __future__ import annotations

import math
import os
import re
import shlex
from collections.abc import Callable, Sequence
from glob import escape
from pathlib import Path
from typing import Any

from vlora_engine.convert.formats import GGUF
from vlora_engine.errors import ParameterError
from vlora_engine.targets import find_target
from vlora_engine.targets.sizing import Sizing
from vlora_engine.utils.naming import slugs
from vlora_tui.pipeline.output_plan import check_merge
from vlora_tui.recipe.model import (
    AdapterInput,
    Convert,
    Export,
    Input,
    Merge,
    Recipe,
    Resize,
    is_path,
)
from vlora_tui.tui.export.settings import (
    ENERGY,
    NEW_RANK,
    RANK,
    SCALE,
    SHARE,
    Item,
    Settings,
    Source,
    weights_of,
)

_ESCAPED = re.compile(r"\[([*?[])\]")  # by `glob.escape`


def recipe_of(source: Source, marked: Sequence[str], settings: Settings) -> Recipe:
    """What is written or merged.

    Raises:
        ParameterError: Something that was typed cannot be.
    """
    if settings.doing == "merge":
        return _merge_recipe(source, marked, settings)
    if settings.doing == "resize":
        return _resize_recipe(source, marked, settings)
    if settings.doing == "convert":
        return _convert_recipe(source, marked, settings)
    inputs, tasks = _chosen(source, marked)
    export = Export(
        path=_absolute(settings.out),
        tasks=tasks,
        target=settings.target,
        dtype=settings.dtype,
        verify=settings.verify,
        drop_rest=settings.drop_rest and bool(find_target(settings.target).no_rest),
        base=base_of(settings) if find_target(settings.target).form == "gguf" else None,
    )
    return Recipe(input=inputs, exports=(export,))


def base_of(settings: Settings) -> str | None:
    """The base model's folder in full, where one was typed."""
    text = settings.base.strip()
    return os.path.abspath(os.path.expanduser(text)) if text else None


def _chosen(source: Source, marked: Sequence[str]) -> tuple[Input, tuple[str, ...]]:
    """The input of a recipe and the tasks of it that are meant; none for all.

    Adapters that are not marked are no business of the job.

    Raises:
        ParameterError: Nothing is marked.
    """
    if not marked:
        raise ParameterError("Nothing is marked; <export.mark> marks a line, <export.all> all")
    if source.subspace is None:
        return Input(_inputs([item for item in source.items if item.name in set(marked)])), ()
    tasks = () if len(marked) == len(source.items) else tuple(map(escape, marked))
    return Input(subspace=str(source.subspace)), tasks


def _plain(word: str) -> str:
    """The name that was escaped, so that a recipe does not take it for a pattern."""
    return _ESCAPED.sub(r"\1", word)


def _resize_recipe(source: Source, marked: Sequence[str], settings: Settings) -> Recipe:
    sizing: dict[str, Any] = {"target": settings.server}
    if settings.rule == "rank":
        sizing = {"rank": NEW_RANK.parse(settings.new_rank)}
    elif settings.rule == "energy":
        sizing = {"energy": SHARE.parse(settings.share)}
    Sizing(**sizing)
    inputs, tasks = _chosen(source, marked)
    resize = Resize(path=_absolute(settings.resized), tasks=tasks, verify=settings.verify, **sizing)
    return Recipe(input=inputs, resizes=(resize,))


def _convert_recipe(source: Source, marked: Sequence[str], settings: Settings) -> Recipe:
    inputs, tasks = _chosen(source, marked)
    convert = Convert(
        settings.to,
        _absolute(settings.converted),
        tasks=tasks,
        allow_loss=settings.allow_loss,
        base=base_of(settings) if settings.to == GGUF else None,
    )
    return Recipe(input=inputs, converts=(convert,))


def _merge_recipe(source: Source, marked: Sequence[str], settings: Settings) -> Recipe:
    chosen = [item for item in source.items if item.name in set(marked)]
    if not chosen:
        raise ParameterError("Nothing is marked; <export.mark> marks adapters")
    groups = {item.group for item in chosen}
    if len(groups) > 1:
        raise ParameterError("These adapters do not fit together", found="different groups")
    names = [item.name for item in chosen]
    weighted = any(name in settings.weights for name in names)
    parameters = {
        p.name: list(value) if isinstance(value, tuple) else value
        for p in settings.spec.parameters
        if (value := p.parse(settings.parameters.get(p.name, ""))) is not None
        and (value != p.default)
    }
    merge = Merge(
        adapters=tuple(_word(source, item) for item in chosen),
        path=_absolute(settings.merged),
        source="input" if source.subspace is None else "subspace",
        method=settings.method,
        weights=tuple(weights_of(settings, names)) if weighted else None,
        layers=parse_layers(settings.layers, len(chosen)),
        normalize=settings.normalize,
        scale=SCALE.parse(settings.scale),
        space=settings.space,
        rank=RANK.parse(settings.rank),
        energy=ENERGY.parse(settings.energy),
        dtype=settings.dtype,
        parameters=parameters,
    )
    check_merge(merge, len(chosen))
    if source.subspace is not None:
        return Recipe(input=Input(subspace=str(source.subspace)), merges=(merge,))
    return Recipe(input=Input(adapters=_inputs(chosen)), merges=(merge,))


def _inputs(chosen: Sequence[Item]) -> tuple[AdapterInput, ...]:
    return tuple(AdapterInput(str(item.path), item.name) for item in chosen)


def _word(source: Source, item: Item) -> str:
    """How a recipe names an item: by its name, or by its place where the name looks like one."""
    if not is_path(item.name):
        return escape(item.name)
    return str(item.path) if source.subspace is None else f"{source.subspace}:{item.name}"


def _absolute(text: str) -> str:
    if not text.strip():
        raise ParameterError("There is no output yet; <export.place> sets it")
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


def parse_weight(text: str) -> float | None:
    """One weight; None, the method's own, where nothing is typed.

    Raises:
        ParameterError: It is no number.
    """
    found = parse_weights(text, 1)
    return None if found is None else found[0]


def parse_layers(text: str, count: int) -> dict[str, list[float]]:
    """``*.attn.*=0.7,0.3; *.mlp.*=1,0`` as weights by pattern.

    Raises:
        ParameterError: No pattern, or not one weight for each adapter.
    """
    layers: dict[str, list[float]] = {}
    for part in filter(None, map(str.strip, text.split(";"))):
        pattern, equals, words = part.rpartition("=")
        weights = parse_weights(words, count)
        if not equals or not pattern.strip() or weights is None:
            raise ParameterError(
                "Enter a pattern of modules and its weights",
                expected="*.attn.*=0.7,0.3",
                found=part,
            )
        layers[pattern.strip()] = list(weights)
    return layers


# commands


def command_of(recipe: Recipe, tasks: Sequence[str] = (), *, force: bool = False) -> str:
    """The headless command that does the same, or several with ``&&`` between.

    Args:
        tasks: All tasks of the subspace; file names depend on which there are.
    """
    more = ["--force"] if force else []
    if recipe.merges:
        merge = recipe.merges[0]
        return shlex.join([*_merge_words(recipe), "-o", merge.path, *_merge_flags(merge), *more])
    if recipe.resizes:
        return _resize_commands(recipe, tasks, more)
    if recipe.converts:
        return _convert_command(recipe, more)
    return _export_commands(recipe, tasks, more)


def preview_arguments(recipe: Recipe) -> list[str]:
    """The arguments that measure what a merge keeps of its inputs, and write nothing."""
    return [*_merge_words(recipe)[1:], *_merge_flags(recipe.merges[0]), "--preview"]


def _export_commands(recipe: Recipe, tasks: Sequence[str], more: list[str]) -> str:
    export = recipe.exports[0]
    options = [] if export.target == "peft" else ["--target", export.target]
    options += [] if export.dtype is None else ["--dtype", export.dtype]
    options += ["--drop-rest"] if export.drop_rest else []
    options += [] if export.base is None else ["--base", export.base]
    options += [] if export.verify else ["--no-verify"]
    options += more
    paths = {str(adapter.name): adapter.path for adapter in recipe.input.adapters}
    names = list(map(_plain, export.tasks)) or (sorted(paths) if paths else [])
    head = ["vlora-tui", "export", *([] if paths else [str(recipe.input.subspace)])]
    folder, braces, after = export.path.partition("/{task}")
    if braces and not after:
        if not names:
            return shlex.join([*head, "--all", "-o", folder, *options])
        # Several adapters by their places have the names of their folders.
        named = all(Path(paths[name]).name == name for name in names) if paths else True
        if len(names) > 1 and named:
            given = [paths.get(name, name) for name in names]
            return shlex.join([*head, *given, "-o", folder, *options])
    return _per_task(
        names or sorted(tasks),
        sorted(paths) or tasks,
        export.path,
        lambda name, path: [*head, paths.get(name, name), "-o", path, *options],
    )


def _resize_commands(recipe: Recipe, tasks: Sequence[str], more: list[str]) -> str:
    """One adapter a command: only so do the places hang on no other name than is given here."""
    resize = recipe.resizes[0]
    options = [] if resize.rank is None else ["--rank", str(resize.rank)]
    options += [] if resize.energy is None else ["--energy", str(resize.energy)]
    options += [] if resize.target is None else ["--target", resize.target]
    options += [] if resize.verify else ["--no-verify"]
    options += more
    paths = {str(adapter.name): adapter.path for adapter in recipe.input.adapters}
    all_names = sorted(paths or tasks)
    names = list(map(_plain, resize.tasks)) or all_names

    def words(name: str, path: str) -> list[str]:
        ref = paths.get(name) or f"{recipe.input.subspace}:{name}"
        return ["vlora-tui", "resize", ref, "-o", path, *options]

    return _per_task(names, all_names, resize.path, words)


def _convert_command(recipe: Recipe, more: list[str]) -> str:
    """All that is meant in one command: a format of subspaces holds it in one directory."""
    convert, subspace = recipe.converts[0], recipe.input.subspace
    options = [*(["--allow-loss"] if convert.allow_loss else []), *more]
    options += [] if convert.base is None else ["--base", convert.base]
    if subspace is not None:
        names = list(map(_plain, convert.tasks))
        places = [f"{subspace}:{name}" for name in names] if names else [subspace]
    else:
        names = [str(adapter.name) for adapter in recipe.input.adapters]
        places = [adapter.path for adapter in recipe.input.adapters]
    given = [word for name in names for word in ("--names", name)]
    words = ["vlora-tui", "convert", *places, *given, "--to", convert.to, "-o", convert.path]
    return shlex.join([*words, *options])


def _per_task(
    names: Sequence[str], tasks: Sequence[str], path: str, words: Callable[[str, str], list[str]]
) -> str:
    slug = slugs({*names, *tasks})
    return " && ".join(
        shlex.join(words(name, path.replace("{task}", slug[name]))) for name in names
    )


def _merge_words(recipe: Recipe) -> list[str]:
    merge = recipe.merges[0]
    paths = {adapter.name: adapter.path for adapter in recipe.input.adapters}
    arguments = [
        word
        if is_path(word)
        else paths.get(_plain(word)) or f"{recipe.input.subspace}:{_plain(word)}"
        for word in merge.adapters
    ]
    return ["vlora-tui", "merge", *arguments]


def _merge_flags(merge: Merge) -> list[str]:
    words = ["--method", merge.method]
    if merge.weights is not None:
        words.append(f"--weights={','.join(map(str, merge.weights))}")
    for pattern, weights in merge.layers.items():
        words.append(f"--layers={pattern}={','.join(map(str, weights))}")
    if merge.normalize is not None:
        words.append("--normalize" if merge.normalize else "--no-normalize")
    words += [] if merge.scale == 1 else [f"--scale={merge.scale}"]
    words += [] if merge.rank is None else ["--rank", str(merge.rank)]
    words += [] if merge.energy is None else ["--energy", str(merge.energy)]
    words += [] if merge.space == "delta" else ["--space", merge.space]
    words += [] if merge.dtype is None else ["--dtype", merge.dtype]
    for name, value in merge.parameters.items():
        each = value if isinstance(value, list | tuple) else [value]
        words.append(f"--{name.replace('_', '-')}={','.join(map(str, each))}")
    return words
