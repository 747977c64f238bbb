"""What a recipe pushes to the Hub, last of all: checked before anything is read, then sent."""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vlora_engine.catalog.read import is_subspace, read_manifest
from vlora_engine.catalog.scanner import scan
from vlora_engine.errors import HubError, NotFoundError, VLoRAError
from vlora_engine.utils.run_context import RunContext
from vlora_tui.pipeline import events
from vlora_tui.pipeline.inputs import Collection
from vlora_tui.pipeline.task_patterns import recipe_tasks
from vlora_tui.recipe.model import Push, Recipe

STOPPED = "Stopped as asked, before anything was pushed; what was finished before is complete."


def check_pushes(recipe: Recipe, collection: Collection, outputs: Sequence[Path]) -> None:
    """Refuse pushes that have nothing to push, as far as it can be told without the Hub.

    Args:
        outputs: What the recipe is going to write.

    Raises:
        NotFoundError: There is nothing at a path, or no such task in its subspace.
    """
    for push in recipe.pushes:
        place = push_place(push, recipe, collection)
        if push.path is None or str(place) == recipe.output:
            tasks = collection.tasks
        elif _is_written(place, outputs):
            continue  # what it holds is not known yet
        else:
            _require_content(place)
            tasks = list(read_manifest(place).tasks) if push.adapters else []
        if push.adapters:
            recipe_tasks(push.tasks or ["*"], tasks)


def push_place(push: Push, recipe: Recipe, collection: Collection) -> Path:
    """The directory that is pushed."""
    if push.path is not None:
        return Path(push.path)
    if recipe.output is None and collection.manifest is not None:
        return collection.manifest.path  # one on the Hub lies in its cache
    return Path(str(recipe.subspace))


def _is_written(place: Path, outputs: Sequence[Path]) -> bool:
    """Whether it is an output, holds one or lies in one."""
    return any(o == place or place in o.parents or o in place.parents for o in outputs)


def _require_content(place: Path) -> None:
    if not is_subspace(place) and not scan([place]).adapters:
        raise NotFoundError(
            "There is neither a subspace nor an adapter to push here.",
            where=place,
            remedy="name what the recipe writes, or a directory that is there",
        )


@dataclass
class Publisher:
    """Pushes what the recipe says; between two pushes it asks whether to stop.

    A push that is ``done`` is in that by its address. Each commit goes to ``outputs``.
    """

    recipe: Recipe
    collection: Collection
    emit: events.Emit
    context: RunContext
    done: frozenset[str] = frozenset()
    outputs: list[str] = field(default_factory=list)

    def require_open(self) -> None:
        """Refuse, before any work is done, what the Hub is going to refuse.

        Raises:
            HubAccessError: There is no token. HubError: The Hub cannot be reached.
            OutputExistsError: A repository has files, and neither the push nor the run forces it.
        """
        from vlora_engine.publish.push import require_free, require_token

        for push in self.recipe.pushes:
            if str(push.address) not in self.done:
                require_token(push.address)
                require_free(push.address, force=push.force or self.context.force)

    def push_all(self) -> None:
        """Send everything, each in one commit.

        Raises:
            HubError, HubAccessError, OutputExistsError, Cancelled: As `vlora_engine.publish.push`.
        """
        for push in self.recipe.pushes:
            if str(push.address) in self.done:
                self.outputs.append(str(push.address))
                continue
            self.context.stop_if_asked(STOPPED)
            place = push_place(push, self.recipe, self.collection)
            try:
                self._push(push, place)
            except HubError as error:
                self._say_how(error, push, place)
                raise

    def _push(self, push: Push, place: Path) -> None:
        from vlora_engine.publish.push import push as send
        from vlora_engine.publish.push import upload_of

        tasks = None
        if push.adapters:
            tasks = recipe_tasks(push.tasks, list(read_manifest(place).tasks))
        address = push.address
        with tempfile.TemporaryDirectory(prefix="vlora-push-") as staging:
            upload = upload_of(
                place,
                address.repo,
                revision=address.revision,
                tasks=tasks,
                staging=Path(staging),
                progress=self.context.progress,
                cancelled=self.context.cancelled,
            )
            for remark in upload.remarks:
                self.emit(events.Remark.of(remark))
            pushed = send(
                upload,
                private=push.private,
                message=push.message,
                force=push.force or self.context.force,
                progress=self.context.progress,
                cancelled=self.context.cancelled,
            )
        self.outputs.append(str(pushed.address))
        self.emit(
            events.Pushed(
                path=str(place),
                to=str(address),
                commit=str(pushed.address),
                url=pushed.url,
                files=len(pushed.files),
                nbytes=pushed.nbytes,
            )
        )

    def _say_how(self, error: VLoRAError, push: Push, place: Path) -> None:
        """What was written is complete: sending it later takes one command."""
        if not self.outputs:
            return
        words = ["vlora-tui", "push", str(place), push.address.repo]
        if push.address.revision is not None:
            words += ["--revision", push.address.revision]
        words += ["--adapters"] * push.adapters
        for task in push.tasks:
            words += ["--task", task]
        words += ["--private"] * push.private
        first = f"{error.remedy}; then " if error.remedy else ""
        error.remedy = f"{first}{shlex.join(words)}"
