"""Evaluates a subspace on its base model: finds base, texts and originals, then measures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlora_engine.catalog.originals import find_originals, original_places
from vlora_engine.catalog.read import read_manifest
from vlora_engine.demo import BASE_MODEL, demo_model
from vlora_engine.errors import CollectionError, ParameterError
from vlora_engine.evaluation.prompts import LENGTH, MAX_TOKENS, read_prompts
from vlora_tui.pipeline.task_patterns import match_tasks
from vlora_tui.utils.formatting import plural

if TYPE_CHECKING:
    from vlora_engine.adapters.model import AdapterSource
    from vlora_engine.evaluation.evaluate import Evaluation
    from vlora_engine.manifest.manifest import Manifest
    from vlora_engine.shared_subspace import SharedSubspace
    from vlora_engine.utils.progress import CancelCheck, ProgressCallback

SAMPLED = "sampled"  # in the place of texts: drawn from the model with the original adapter


@dataclass(frozen=True)
class Request:
    """What is to be evaluated, and on what.

    Args:
        base: A folder or an id on the Hub; None is what the subspace names.
        prompts: Texts, as `read_prompts` takes them; none are sampled.
        tasks: Names or patterns; none are all.
        originals: Where the adapters lie now; none is where the subspace says.
    """

    subspace: str
    base: str | None = None
    prompts: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    originals: tuple[str, ...] = ()
    max_tokens: int = MAX_TOKENS
    length: int = LENGTH
    seed: int = 0
    device: str = "auto"
    dtype: str = "auto"
    skip_bad: bool = False


@dataclass(frozen=True)
class Evaluated:
    """What came of it: the base and texts that were used, the figures, who was left out."""

    base: str
    prompts: tuple[str, ...]
    result: Evaluation
    errors: dict[str, float]
    left_out: list[str]

    def as_dict(self) -> dict[str, Any]:
        """The figures for JSON, each task with its error of dW."""
        data = self.result.as_dict()
        for row in data["tasks"]:
            row["error"] = self.errors[row["task"]]
        return data


def on_what(manifest: Manifest, request: Request) -> tuple[str, tuple[str, ...]]:
    """The base model and the texts; for tasks of the demo the base and texts that it made.

    Raises:
        ParameterError: The subspace names no base model, and nobody else does.
    """
    if request.base is not None:
        return request.base, request.prompts
    if manifest.base_model is None:
        raise ParameterError(
            "The subspace names no base model.",
            where=manifest.path,
            remedy="name it with --base",
        )
    if manifest.base_model == BASE_MODEL:
        places = [*map(Path, request.originals), *original_places(manifest.path)]
        made = demo_model(places)
        if made is not None:
            return str(made.base), request.prompts or (str(made.texts),)
    return manifest.base_model, request.prompts


def evaluate(
    request: Request,
    *,
    warn: Callable[[str], None],
    progress: ProgressCallback | None = None,
    cancelled: CancelCheck | None = None,
) -> Evaluated:
    """Measure what compression changed of a model's outputs.

    Raises:
        DependencyError: transformers or peft is missing; it says what to install.
        VLoRAError: A task, its original, the base or a text were not found.
    """
    manifest = read_manifest(request.subspace)
    if not manifest.tasks:
        raise ParameterError("The subspace has no task to evaluate.", where=request.subspace)
    tasks = match_tasks(request.tasks, list(manifest.tasks))
    base, prompts = on_what(manifest, request)
    texts = read_prompts(prompts, tasks, max_tokens=request.max_tokens) if prompts else None
    from vlora_engine.evaluation.evaluate import evaluate_subspace
    from vlora_engine.nn.peft_model import load_base, require_extra
    from vlora_engine.shared_subspace import SharedSubspace

    require_extra()
    opened = SharedSubspace.load(request.subspace, lazy=True)
    found, left_out = _find_originals(
        opened, tasks, request.originals, warn, progress, skip_bad=request.skip_bad
    )
    result = evaluate_subspace(
        load_base(base, device=request.device, dtype=request.dtype),
        opened,
        found,
        prompts=texts,
        max_tokens=request.max_tokens,
        length=request.length,
        seed=request.seed,
        progress=progress,
        cancelled=cancelled,
    )
    errors = {name: manifest.tasks[name].error for name in found}
    return Evaluated(base, prompts, result, errors, left_out)


def _find_originals(
    subspace: SharedSubspace,
    tasks: Sequence[str],
    places: Sequence[str],
    warn: Callable[[str], None],
    progress: ProgressCallback | None,
    *,
    skip_bad: bool,
) -> tuple[dict[str, AdapterSource], list[str]]:
    """The originals of the tasks, and the tasks that are left out for want of one."""
    records = [subspace.tasks.record(name) for name in tasks]
    found, missing = find_originals(records, places, progress=progress)
    if missing and (not skip_bad or not found):
        errors: dict[str, Any] = {"errors": list(missing.values())}
        raise CollectionError(
            f"The originals of {len(missing)} of {plural(len(tasks), 'task')} were not found.",
            **errors,
            remedy="give their location with --originals"
            + (", or leave these tasks out with --skip-bad" if found else ""),
        )
    for name, error in missing.items():
        warn(f"{name} is left out: {error.what}")
    return found, list(missing)
