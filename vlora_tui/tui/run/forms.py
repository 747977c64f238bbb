"""What further jobs need to know of a subspace: quantize, evaluate, add, remove, push, pull."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from glob import escape
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from vlora_engine.adapters.address import AdapterRef
from vlora_engine.errors import VLoRAError
from vlora_engine.evaluation.prompts import MAX_TOKENS
from vlora_engine.quantization.packing import BLOCK_SIZE, BLOCK_SIZES, QUANTIZATIONS
from vlora_tui.pipeline.actions import AddTask, Evaluate, Pull, RemoveTasks
from vlora_tui.pipeline.evaluating import Request, on_what
from vlora_tui.recipe.model import AdapterInput, Input, Push, Quantize, Recipe
from vlora_tui.tui.key_names import keyed
from vlora_tui.tui.run.job_form import Question
from vlora_tui.tui.text import clean, plural, tilde
from vlora_tui.tui.widgets.form import Field
from vlora_tui.utils.formatting import percent, size

if TYPE_CHECKING:
    from vlora_engine.manifest.manifest import Manifest

T = TypeVar("T")
PACKING_WORDS = {name: "NF4" if name == "nf4" else name for name in QUANTIZATIONS}
TOKENS = (256, 512, 1024, MAX_TOKENS)
WAYS = {
    "absorb": ("recompute the basis", "Reads the other adapters again: the least error."),
    "incremental": ("turn the basis", "The others are not read; what they lose is bounded."),
    "project": ("keep the basis", "Writes one small file; what is outside the basis is lost."),
}
YES_NO = {True: "yes", False: "no"}
TEXTS_HINT = "A text file for all tasks, or a folder with TASK.txt; empty: sampled."


def now_rows(manifest: Manifest) -> list[Field]:
    """What a subspace is now."""
    count = plural(len(manifest.tasks), "task")
    packed = PACKING_WORDS.get(manifest.quantization.name, "") if manifest.quantization else ""
    method = f"{manifest.method} {packed}".strip()
    rows = [
        Field("path", "subspace", tilde(manifest.path), "fixed"),
        Field("now", "now", f"{count}, {size(manifest.nbytes)}, {method}", "fixed"),
    ]
    worst = manifest.worst
    if worst is not None:
        errors = f"{percent(manifest.mean_error)} mean, {percent(worst.error)} worst"
        rows.append(Field("error", "error", f"{errors} ({clean(worst.id)})", "fixed"))
    return rows


@dataclass
class QuantizeFields:
    """How a subspace is packed, and where the packed one goes."""

    manifest: Manifest
    packing: str = "int8"
    block: int = BLOCK_SIZE
    double: bool = False
    loadings: bool = False
    output: str = ""
    title = "Quantize"
    about = "Writes a packed copy of the subspace; errors are measured again."

    @property
    def label(self) -> str:
        return f"Quantize to {PACKING_WORDS[self.packing]}"

    @property
    def place(self) -> str:
        """Where it goes: what was typed, else beside the subspace."""
        return _full(self.output) or f"{_real(self.manifest.path)}-{self.packing}"

    @property
    def recipe(self) -> Recipe:
        """The job."""
        method, bits = ("nf4", 4) if self.packing == "nf4" else ("symmetric", int(self.packing[3:]))
        packed = Quantize(
            method, bits, self.block, self.loadings and self.manifest.coding is None, self.double
        )
        source = Input(subspace=str(_real(self.manifest.path)))
        return Recipe(source, quantize=packed, output=self.place)

    def rows(self) -> list[Field]:
        coded = self.manifest.coding is not None
        about = "8 or 4 bits a number, in blocks that share a scale."
        if coded:
            about = "Coded tasks shrink to at most the bytes that A and B would take so."
        rows = now_rows(self.manifest)
        rows.append(Field("packing", "packing", PACKING_WORDS[self.packing], "choice", about))
        hint = "Numbers that share a scale: smaller blocks cost more bytes and less error."
        rows.append(Field("block", "block size", str(self.block), "choice", hint))
        hint = "Scales in 8 bits instead of 16."
        rows.append(Field("double", "double quant.", YES_NO[self.double], "choice", hint))
        if not coded:
            hint = "Pack the loadings too, as int8."
            rows.append(Field("loadings", "loadings", YES_NO[self.loadings], "choice", hint))
        rows.append(Field("output", "output", tilde(self.place), "text", "A new folder."))
        return rows

    def turn(self, key: str, by: int) -> None:
        if key == "packing":
            self.packing = _next(QUANTIZATIONS, self.packing, by)
        elif key == "block":
            self.block = _next(BLOCK_SIZES, self.block, by)
        elif key == "double":
            self.double = not self.double
        elif key == "loadings":
            self.loadings = not self.loadings

    def question(self, key: str) -> Question | None:
        return Question("Output folder", "A new folder.", self.place) if key == "output" else None

    def take(self, key: str, text: str) -> None:
        self.output = text.strip()

    def problem(self) -> str:
        if Path(self.place) == _real(self.manifest.path):
            return "The output is the subspace itself: name another folder."
        return ""


@dataclass
class EvaluateFields:
    """What a subspace is evaluated on."""

    manifest: Manifest
    base: str = ""
    texts: str = ""
    tasks: str = ""
    tokens: int = 512
    device: str = "auto"
    devices: Sequence[str] = ("auto", "cpu")
    made: bool = False  # base and texts are the demo's own
    title = "Evaluate"
    about = "Runs the base model with the original and the compressed adapters; writes nothing."

    @classmethod
    def of(cls, manifest: Manifest, devices: Sequence[str]) -> EvaluateFields:
        """With the base that the subspace names; for the demo's tasks with what it made."""
        try:
            base, texts = on_what(manifest, Request(str(manifest.path)))
        except VLoRAError:
            base, texts = "", ()
        made = base not in ("", manifest.base_model)
        return cls(manifest, base, " ".join(texts), devices=devices, made=made)

    @property
    def label(self) -> str:
        count = len(self.manifest.tasks)
        return "Evaluate" if self.tasks else f"Evaluate {plural(count, 'task')}"

    @property
    def action(self) -> Evaluate:
        """The job."""
        return Evaluate(
            str(_real(self.manifest.path)),
            _model(self.base) or None,
            (_full(self.texts),) if self.texts else (),
            tuple(self.tasks.split()),
            max_tokens=self.tokens,
            device=self.device,
        )

    def rows(self) -> list[Field]:
        rows = now_rows(self.manifest)
        if self.missing:
            rows.append(Field("needs", "needs", self.missing, "fixed", wrong=self.missing))
        made = "  (made by the demo)" if self.made else ""
        hint = "A folder or a Hub id. The Hub is asked only if it is not here."
        rows.append(Field("base", "base model", (tilde(self.base) or "-") + made, "text", hint))
        texts = tilde(self.texts) + ("  (ten, made)" if self.made else "")
        rows.append(Field("texts", "texts", texts if self.texts else "sampled", "text", TEXTS_HINT))
        hint = "Names or patterns, with blanks between; empty: all."
        rows.append(Field("tasks", "tasks", clean(self.tasks) or "all", "text", hint))
        hint = "Maximum tokens per task."
        rows.append(Field("tokens", "tokens", str(self.tokens), "choice", hint))
        rows.append(Field("device", "device", self.device, "choice"))
        return rows

    @property
    def missing(self) -> str:
        """The libraries that evaluation needs and that are not installed."""
        lacking = [name for name in ("transformers", "peft") if find_spec(name) is None]
        return f"{' and '.join(lacking)}: pip install 'vlora-tui[peft]'" if lacking else ""

    def turn(self, key: str, by: int) -> None:
        if key == "tokens":
            self.tokens = _next(TOKENS, self.tokens, by)
        elif key == "device":
            self.device = _next(self.devices, self.device, by)

    def question(self, key: str) -> Question | None:
        match key:
            case "base":
                return Question("Base model", "A folder, or a Hub id such as org/name.", self.base)
            case "texts":
                return Question("Texts", TEXTS_HINT, self.texts, _must_be_there)
            case "tasks":
                words = "Names or patterns, with blanks between; empty: all."
                return Question("Tasks", words, self.tasks)
        return None

    def take(self, key: str, text: str) -> None:
        if key in ("base", "texts"):
            self.made = False
        setattr(self, key, text.strip())

    def problem(self) -> str:
        return self.missing or ("" if self.base else "Name a base model.")


@dataclass
class AddFields:
    """Which adapter is added to a subspace, and how."""

    manifest: Manifest
    adapter: str = ""
    name: str = ""
    how: str = "absorb"
    device: str = "auto"
    title = "Add a task"
    about = "Adds an adapter to the subspace, which is changed in its place."
    label = "Add the task"

    @property
    def task(self) -> str:
        """The name of the new task: what was typed, else the adapter's folder."""
        if self.name or not self.adapter:
            return self.name
        ref = AdapterRef.parse(self.adapter)
        return ref.name if ref.is_hub else Path(_full(self.adapter)).name

    @property
    def action(self) -> AddTask:
        """The job."""
        subspace, adapter = str(_real(self.manifest.path)), self.adapter
        if AdapterRef.parse(adapter).is_local:
            adapter = _full(adapter)
        return AddTask(subspace, adapter, self.task, self.how, self.device)

    def rows(self) -> list[Field]:
        how, about = WAYS[self.how]
        rows = now_rows(self.manifest)
        hint = "A folder, or hf://org/name."
        rows.append(Field("adapter", "adapter", tilde(self.adapter) or "-", "text", hint))
        rows.append(Field("name", "task name", clean(self.task) or "-", "text"))
        if self.manifest.coding is None or self.manifest.shared_basis is not None:
            rows.append(Field("how", "how", how, "choice", about))
        return rows

    def turn(self, key: str, by: int) -> None:
        self.how = _next(tuple(WAYS), self.how, by)

    def question(self, key: str) -> Question | None:
        if key == "adapter":
            return Question("Adapter", "A folder, or hf://org/name.", self.adapter)
        return Question("Task name", "Empty: the adapter's folder.", self.name)

    def take(self, key: str, text: str) -> None:
        setattr(self, key, text.strip())

    def problem(self) -> str:
        if not self.adapter:
            return "Name an adapter."
        if AdapterRef.parse(self.adapter).is_local and not os.path.exists(_full(self.adapter)):
            return f"There is nothing at {tilde(self.adapter)}."
        if self.task in self.manifest.tasks:
            return f"The subspace has a task {clean(self.task)} already: choose another name."
        return ""


@dataclass
class RemoveFields:
    """Which tasks a subspace loses."""

    manifest: Manifest
    gone: set[str] = field(default_factory=set)
    title = "Remove tasks"
    about = "Removes tasks from the subspace, which is changed in its place; the others stay."

    @property
    def label(self) -> str:
        return f"Remove {plural(len(self.gone), 'task')}"

    @property
    def action(self) -> RemoveTasks:
        """The job."""
        names = tuple(escape(name) for name in self.manifest.tasks if name in self.gone)
        return RemoveTasks(str(_real(self.manifest.path)), names)

    def rows(self) -> list[Field]:
        return [
            Field(name, clean(name), "remove" if name in self.gone else "keep", "choice",
                  f"error {percent(task.error)}, {size(task.nbytes)}")
            for name, task in sorted(self.manifest.tasks.items())
        ]  # fmt: skip

    def turn(self, key: str, by: int) -> None:
        self.gone ^= {key}

    def question(self, key: str) -> Question | None:
        return None

    def take(self, key: str, text: str) -> None:
        pass

    def problem(self) -> str:
        if not self.gone:
            return keyed("Nothing is chosen: <form.change> on a task.")
        if len(self.gone) == len(self.manifest.tasks):
            return "That would leave no task."
        return ""


@dataclass
class PushFields:
    """What is pushed to which repository of the Hub."""

    path: str
    tasks: int = 0  # of a subspace; 0 where it is none
    repo: str = ""
    adapters: bool = False
    private: bool = True
    branch: str = ""
    message: str = ""
    title = "Push to the Hub"
    about = "Publishes it in one commit, with a model card. The repository's name is asked again."
    label = "Push…"

    @property
    def recipe(self) -> Recipe:
        """The job."""
        push = Push(
            self.repo,
            path=self.path,
            adapters=self.adapters,
            private=self.private,
            revision=self.branch or None,
            message=self.message or None,
        )
        if self.tasks:
            return Recipe(Input(subspace=self.path), pushes=(push,))
        return Recipe(Input(adapters=(AdapterInput(self.path),)), pushes=(push,))

    def rows(self) -> list[Field]:
        what = "the subspace"
        if not self.tasks:
            what = "the adapters"
        elif self.adapters:
            what = f"its {plural(self.tasks, 'task')} as PEFT adapters"
        rows = [Field("path", "from", tilde(self.path), "fixed")]
        rows.append(Field("repo", "repository", clean(self.repo) or "-", "text", "org/name"))
        rows.append(Field("adapters", "what", what, "choice" if self.tasks else "fixed"))
        hint = "Of a repository that is new."
        rows.append(Field("private", "private", YES_NO[self.private], "choice", hint))
        rows.append(Field("branch", "branch", clean(self.branch) or "main", "text"))
        rows.append(Field("message", "message", clean(self.message) or "-", "text"))
        rows.append(
            Field("token", "token", "found" if self.has_token else "none", "fixed",
                  wrong="" if self.has_token else NO_TOKEN)
        )  # fmt: skip
        return rows

    @property
    def has_token(self) -> bool:
        """Whether the Hub's client has a token; nothing is asked of the Hub."""
        from huggingface_hub import get_token

        return bool(get_token())

    def turn(self, key: str, by: int) -> None:
        if key == "adapters":
            self.adapters = not self.adapters
        elif key == "private":
            self.private = not self.private

    def question(self, key: str) -> Question | None:
        match key:
            case "repo":
                return Question("Repository", "org/name on the Hub", self.repo, _must_be_repo)
            case "branch":
                return Question("Branch", "Empty: the main one.", self.branch)
            case "message":
                return Question("Commit message", "Empty: what was added.", self.message)
        return None

    def take(self, key: str, text: str) -> None:
        setattr(self, key, text.strip())

    def problem(self) -> str:
        if not self.repo:
            return "Name a repository: org/name."
        return "" if self.has_token else NO_TOKEN


NO_TOKEN = "Pushing needs a token that may write: run `hf auth login` in a shell, or set HF_TOKEN."


@dataclass
class PullFields:
    """What is pulled from the Hub, and where it goes."""

    address: str = ""
    output: str = ""
    title = "Pull from the Hub"
    about = "Downloads an adapter, a folder of adapters or a subspace into a folder."
    label = "Pull"

    @property
    def place(self) -> str:
        """Where it goes: what was typed, else a folder of its name here."""
        name = AdapterRef.parse(self.address).name if self.address else "pulled"
        return _full(self.output) or os.path.join(os.getcwd(), name)

    @property
    def action(self) -> Pull:
        """The job."""
        return Pull(self.address, self.place)

    def rows(self) -> list[Field]:
        hint = "hf://org/name, with @revision or a subfolder if need be."
        return [
            Field("address", "address", clean(self.address) or "-", "text", hint),
            Field("output", "output", tilde(self.place), "text", "A new folder."),
        ]

    def turn(self, key: str, by: int) -> None:
        pass

    def question(self, key: str) -> Question | None:
        if key == "address":
            return Question("Address", "hf://org/name", self.address or "hf://", _must_be_address)
        return Question("Output folder", "A new folder.", self.place)

    def take(self, key: str, text: str) -> None:
        setattr(self, key, text.strip())

    def problem(self) -> str:
        return "" if self.address else "Name an address: hf://org/name."


def _next(choices: Sequence[T], value: T, by: int) -> T:
    at = choices.index(value) if value in choices else 0
    return choices[(at + by) % len(choices)]


def _full(text: str) -> str:
    text = text.strip()
    return os.path.abspath(os.path.expanduser(text)) if text else ""


def _real(path: Path) -> Path:
    return path.absolute()


def _model(text: str) -> str:
    """A base model: its folder in full, or its name as it is."""
    text = text.strip()
    folder = os.path.expanduser(text)
    return os.path.abspath(folder) if text and os.path.isdir(folder) else text


def _must_be_there(text: str) -> str | None:
    return None if not text.strip() or os.path.exists(_full(text)) else "There is nothing there."


def _must_be_repo(text: str) -> str | None:
    try:
        AdapterRef.whole_repository(text.strip())
    except VLoRAError:
        return "Enter a repository, for example org/name."
    return None


def _must_be_address(text: str) -> str | None:
    try:
        AdapterRef.on_hub(text.strip())
    except VLoRAError:
        return "Enter an address, for example hf://org/name."
    return None
