"""What jobs do besides recipes: add and remove tasks, evaluate, pull. As data, without numpy.

A recipe writes new outputs. An action changes a subspace in its place, only looks, or fetches what
is not here yet: none of that can be said in a recipe. `vlora_tui.pipeline.action_run` does it, by
the functions that the commands of the same names call.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from vlora_engine.adapters.address import AdapterRef
from vlora_engine.evaluation.prompts import LENGTH, MAX_TOKENS
from vlora_engine.utils.json_reader import JsonFile, JsonObject, JsonValue
from vlora_tui.recipe.model import AdapterInput, Input, Recipe
from vlora_tui.utils.formatting import plural


@dataclass(frozen=True)
class Action:
    """Base of every action; ``kind`` is its word in ``job.json``."""

    kind: ClassVar[str]

    def __init_subclass__(cls, *, kind: str) -> None:
        cls.kind = kind

    @property
    def title(self) -> str:
        """What it does, in a few words."""
        raise NotImplementedError

    @property
    def recipe(self) -> Recipe:
        """A recipe of its inputs alone."""
        raise NotImplementedError

    @property
    def outputs(self) -> tuple[str, ...]:
        """The directories that it writes: no other job may write there meanwhile."""
        return ()

    def as_dict(self) -> dict[str, Any]:
        """What ``action.json`` holds."""
        return {"kind": self.kind, **asdict(self)}


@dataclass(frozen=True)
class OnSubspace(Action, kind=""):
    """Base of the actions that work on a subspace."""

    subspace: str

    @property
    def recipe(self) -> Recipe:
        return Recipe(Input(subspace=self.subspace))


@dataclass(frozen=True)
class AddTask(OnSubspace, kind="add"):
    """An adapter becomes a task of a subspace, which is changed in its place.

    Args:
        name: Of the task.
        how: One of `vlora_tui.pipeline.tasks.WAYS`.
    """

    adapter: str
    name: str
    how: str = "absorb"
    device: str = "auto"

    @property
    def title(self) -> str:
        return f"add {self.name} to {_called(self.subspace)}"

    @property
    def outputs(self) -> tuple[str, ...]:
        return (self.subspace,)


@dataclass(frozen=True)
class RemoveTasks(OnSubspace, kind="remove"):
    """Tasks of a subspace go; it is changed in its place."""

    tasks: tuple[str, ...]

    @property
    def title(self) -> str:
        return f"remove {plural(len(self.tasks), 'task')} from {_called(self.subspace)}"

    @property
    def outputs(self) -> tuple[str, ...]:
        return (self.subspace,)


@dataclass(frozen=True)
class Evaluate(OnSubspace, kind="eval"):
    """A base model says what it notices of a subspace's compression; nothing is written.

    The fields are those of `vlora_tui.pipeline.evaluating.Request`.
    """

    base: str | None = None
    prompts: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    originals: tuple[str, ...] = ()
    max_tokens: int = MAX_TOKENS
    length: int = LENGTH
    device: str = "auto"
    skip_bad: bool = False

    @property
    def title(self) -> str:
        return f"evaluate {_called(self.subspace)}"


@dataclass(frozen=True)
class Pull(Action, kind="pull"):
    """An adapter, adapters or a subspace of the Hub is copied to a folder."""

    address: str
    output: str

    @property
    def title(self) -> str:
        return f"pull {AdapterRef.parse(self.address).name}"

    @property
    def recipe(self) -> Recipe:
        return Recipe(Input(adapters=(AdapterInput(self.address),)))

    @property
    def outputs(self) -> tuple[str, ...]:
        return (self.output,)


def read_action(path: Path, raw: bytes) -> Action:
    """An action from its file.

    Raises:
        CorruptFileError: It is none that this version knows.
    """
    row = JsonFile(path, "The job's action cannot be read.").parse(raw).object()
    kind = row["kind"].one_of(list(_READERS))
    return _READERS[kind](row)


def _add(row: JsonObject) -> Action:
    words = {name: row[name].text() for name in ("subspace", "adapter", "name")}
    more = {name: row.read(name, JsonValue.text, "") for name in ("how", "device")}
    return AddTask(**words, **{name: text for name, text in more.items() if text})


def _remove(row: JsonObject) -> Action:
    return RemoveTasks(row["subspace"].text(), tuple(row["tasks"].texts()))


def _evaluate(row: JsonObject) -> Action:
    base = row.get("base")
    lists: Mapping[str, tuple[str, ...]] = {
        name: tuple(row.read(name, lambda found: found.texts(), []))
        for name in ("prompts", "tasks", "originals")
    }
    return Evaluate(
        row["subspace"].text(),
        None if base is None or base.is_null else base.text(),
        **lists,
        max_tokens=row.read("max_tokens", JsonValue.natural, MAX_TOKENS),
        length=row.read("length", JsonValue.natural, LENGTH),
        device=row.read("device", JsonValue.text, "auto"),
        skip_bad=row.read("skip_bad", JsonValue.flag, False),
    )


def _pull(row: JsonObject) -> Action:
    return Pull(row["address"].text(), row["output"].text())


_READERS = {
    AddTask.kind: _add,
    RemoveTasks.kind: _remove,
    Evaluate.kind: _evaluate,
    Pull.kind: _pull,
}


def _called(path: str) -> str:
    return AdapterRef.parse(path).name
