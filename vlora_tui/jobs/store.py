"""Stores jobs: one directory each, ``jobs/<id>`` in the state directory.

| file | what |
|---|---|
| job.json | what kind of work, when, by which program, started by whom; a resume renews the last |
| recipe.toml | absolute, patterns resolved |
| action.json | of a job that runs no recipe: what it does |
| events.jsonl | what happens, append only |
| log.txt | what the process prints |
| lock | who runs it (`joblock`) |
| cancel | what a cancel asked for: keep or discard |

Beside ``jobs`` lie ``devices`` (a lock and a queue each) and ``drafts``.
"""

from __future__ import annotations

import os
import re
import secrets
import shlex
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from vlora_engine import __version__
from vlora_engine.adapters.address import AdapterRef, is_address
from vlora_engine.errors import (
    CorruptFileError,
    InputError,
    NotFoundError,
    ParameterError,
    StorageError,
)
from vlora_engine.utils.files import directory_bytes, dump_json, write_file
from vlora_engine.utils.json_reader import JsonFile, JsonValue
from vlora_engine.utils.reading import open_file, read_file, read_text
from vlora_engine.utils.unfinished import kept_layers, spectra_partial
from vlora_tui.jobs.identity import Identity, Starter, host_name, this_process
from vlora_tui.jobs.joblock import PATIENCE_SECONDS, JobLock, LockState, probe
from vlora_tui.pipeline.actions import Action, read_action
from vlora_tui.pipeline.events import SpectraBegun, is_time, read_events
from vlora_tui.pipeline.unfinished import unfinished_build
from vlora_tui.recipe.model import Recipe
from vlora_tui.recipe.reader import load_recipe
from vlora_tui.recipe.resolve import resolve
from vlora_tui.utils import paths
from vlora_tui.utils.formatting import plural
from vlora_tui.utils.locking import open_lock, try_lock, waiting_lock

SCHEMA = "vlora-tui/job"
VERSION = 1
BUILD, SPECTRA = "build", "spectra"
ACTION = "action.json"
LAST = "last"
WEIGHTS = (".safetensors", ".bin", ".gguf", ".npz")
SMALL_BYTES = 500_000_000  # of inputs: to measure so much takes a minute or two


@dataclass(frozen=True)
class JobInfo:
    """What is known of a job when it is made; `started_by` alone changes, with a resume.

    Args:
        kind: ``build`` (all that a recipe says), ``spectra``, or the kind of an action.
        title: A few words for lists.
        created: Seconds since 1970.
        outputs: The paths it is going to write, as far as they are known before it runs.
        spectra: Where a spectra job writes; None is the cache.
        torch: The version that its layers are built with; they are of no use to another.
        started_by: Who started it; None where an earlier version did, which did not say.
    """

    id: str
    kind: str
    title: str
    created: float
    device: str = "auto"
    force: bool = False
    outputs: tuple[str, ...] = ()
    spectra: str | None = None
    host: str = ""
    program: str = ""
    torch: str = ""
    started_by: Starter | None = None


def _starter(value: JsonValue) -> Starter | None:
    """Who started a job. What cannot be read is nobody known: no reason to hide the job."""
    with suppress(CorruptFileError):
        row = value.object()
        identity = row["identity"].object()
        host, boot, started = (identity[name].text() for name in ("host", "boot", "started"))
        return Starter(Identity(host, boot, identity["pid"].natural(), started), row["tty"].text())
    return None


def _job_info(value: JsonValue) -> JobInfo:
    """What job.json says; what this version does not know of is passed over."""
    row = value.object()
    words = ("device", "host", "program", "torch")
    texts: dict[str, Any] = {name: row.read(name, JsonValue.text, "") for name in words}
    named = {name: text for name, text in texts.items() if row.get(name) is not None}
    spectra = row.get("spectra")
    if not is_time(row["created"].value):
        raise row["created"].error("a time in seconds since 1970")
    return JobInfo(
        id=row["id"].text(),
        kind=row["kind"].text(),
        title=row["title"].text(),
        created=row["created"].number(),
        force=row.read("force", JsonValue.flag, False),
        outputs=tuple(row.read("outputs", lambda outputs: outputs.texts(), [])),
        spectra=None if spectra is None or spectra.is_null else spectra.text(),
        started_by=row.read("started_by", _starter, None),
        **named,
    )


@dataclass(frozen=True)
class Job:
    """One job's directory."""

    folder: Path
    info: JobInfo

    @classmethod
    def load(cls, folder: Path) -> Job:
        """Read a job's directory.

        Raises:
            NotFoundError: There is no job in it, or one that this version cannot read.
        """
        path = folder / "job.json"
        try:
            info = _job_info(JsonFile(path, "The job cannot be read.").parse(read_file(path)))
        except (OSError, CorruptFileError) as error:
            found = str(error) if isinstance(error, OSError) else " ".join(error.lines())
            raise NotFoundError(
                "There is no job here that can be read.", where=folder, found=found
            ) from None
        return cls(folder, info)

    @property
    def id(self) -> str:
        return self.info.id

    @property
    def recipe_path(self) -> Path:
        return self.folder / "recipe.toml"

    @property
    def events_path(self) -> Path:
        return self.folder / "events.jsonl"

    @property
    def log_path(self) -> Path:
        return self.folder / "log.txt"

    @property
    def lock_path(self) -> Path:
        return self.folder / "lock"

    @property
    def state_dir(self) -> Path:
        return self.folder.parent.parent

    def command(self, verb: str) -> str:
        """The command line that does something with this job, wherever it is kept."""
        usual = self.state_dir.absolute() == paths.state_dir().absolute()
        kept = [] if usual else ["--state-dir", str(self.state_dir)]
        return shlex.join(["vlora-tui", "jobs", verb, self.id, *kept])

    def recipe(self) -> Recipe:
        """What the job does."""
        return load_recipe(self.recipe_path)

    def action(self) -> Action | None:
        """What the job does if that is no recipe.

        Raises:
            CorruptFileError: It cannot be read.
        """
        path = self.folder / ACTION
        if self.info.kind in (BUILD, SPECTRA):
            return None
        try:
            return read_action(path, read_file(path))
        except OSError as error:
            raise CorruptFileError(
                "The job's action cannot be read.", where=path, found=error.strerror or str(error)
            ) from None

    def standing(self) -> LockState:
        """Who holds the job's lock, if anybody does."""
        return probe(self.lock_path)

    def log_tail(self, lines: int = 20) -> list[str]:
        """The last lines that the process printed."""
        try:
            with open_file(self.log_path) as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - 200 * lines))
                return file.read().decode("utf-8", "replace").splitlines()[-lines:]
        except OSError:
            return []

    def cancel_request(self) -> str:
        """What a cancel asked for: ``keep``, ``discard``, or nothing."""
        with suppress(OSError, UnicodeDecodeError):
            return read_text(self.folder / "cancel").strip()
        return ""

    def partial(self) -> Path | None:
        """Where the finished layers of an unfinished build or of spectra lie, if there are any."""
        folder = (
            self._unfinished_spectra() if self.info.kind == SPECTRA else self._unfinished_build()
        )
        return folder if folder is not None and os.path.isdir(folder) else None

    def kept_layers(self) -> int:
        """How many layers lie there for a resume."""
        folder = self.partial()
        return 0 if folder is None else kept_layers(folder)

    def _unfinished_build(self) -> Path | None:
        with suppress(InputError):
            return unfinished_build(self.recipe(), self.id)
        return None

    def _unfinished_spectra(self) -> Path | None:
        """Those in the cache lie where the job said that it computes them."""
        if self.info.spectra is not None:
            return spectra_partial(Path(self.info.spectra))
        begun: SpectraBegun | None = None
        with suppress(OSError):
            for _, event in read_events(self.events_path):
                begun = event if isinstance(event, SpectraBegun) else begun
        return None if begun is None else Path(begun.partial)


def goes_first(job: Job) -> bool:
    """Whether a job is one that measures, of inputs so small that it holds up no build for long."""
    if job.info.kind != SPECTRA:
        return False
    total = 0
    try:
        paths = [entry.path for entry in job.recipe().input.adapters if not is_address(entry.path)]
        for path in paths:
            total += _weight_bytes(Path(path))
            if total > SMALL_BYTES:
                return False
    except (InputError, OSError):
        return False
    return True


def _weight_bytes(path: Path) -> int:
    """The bytes of the weights at a path, without the checkpoints' state of the optimizer."""
    files = path.iterdir() if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.suffix in WEIGHTS and file.is_file())


class JobStore:
    """All jobs of one state directory."""

    def __init__(self, state_dir: Path) -> None:
        self.state_dir = state_dir
        self.folder = state_dir / "jobs"
        self._loaded: dict[str, Job] = {}

    @classmethod
    def open(cls, state_dir: Path | None = None, *, write: bool = True) -> JobStore:
        """The jobs of this user, or of the state directory that is named.

        Args:
            write: Make the directories, and try whether they can be used.

        Raises:
            StorageError: They cannot be used.
        """
        store = cls(Path(state_dir).expanduser().absolute() if state_dir else paths.state_dir())
        if write:
            store._try_out()
            with store._alone():  # what killed ones left is deleted
                pass
        return store

    def jobs(self) -> list[Job]:
        """All jobs, the oldest first."""
        try:
            names = sorted(e.name for e in os.scandir(self.folder) if not e.name.startswith("."))
        except OSError:
            return []
        self._loaded = {name: self._loaded[name] for name in names if name in self._loaded}
        for name in names:
            if name not in self._loaded:
                with suppress(NotFoundError):  # what was read stays true until a resume
                    self._loaded[name] = Job.load(self.folder / name)
        return [self._loaded[name] for name in names if name in self._loaded]

    def find(self, word: str) -> Job:
        """The job that a person means: its id, the beginning or the end of it, or ``last``.

        Raises:
            NotFoundError: There is none.
            ParameterError: There are several.
        """
        jobs = self.jobs()
        if word == LAST and jobs:
            return jobs[-1]
        found = [job for job in jobs if job.id == word] or [
            job for job in jobs if word and (job.id.startswith(word) or job.id.endswith(word))
        ]
        if not found:
            raise NotFoundError(
                f"There is no job {word!r}." if jobs else "There are no jobs.",
                where=self.folder,
                remedy="`vlora-tui jobs` lists them" if jobs else None,
            )
        if len(found) > 1:
            raise ParameterError(
                f"{len(found)} jobs are called so.",
                found=", ".join(job.id for job in found[-8:]),
                remedy="write more of the id",
            )
        return found[0]

    def create(
        self,
        recipe: Recipe,
        *,
        spectra: Path | None = None,
        device: str | None = None,
        force: bool = False,
        action: Action | None = None,
    ) -> tuple[Job, JobLock]:
        """Make the directory of a new job; its lock is held by this process.

        Args:
            action: What it does instead of the recipe, which then has its inputs alone.

        Raises:
            NotFoundError, ParameterError: Inputs of the recipe are not there.
            StorageError: The state directory refuses.
        """
        recipe = recipe if action is not None else resolve(recipe)
        if action is None and is_spectra(recipe) and recipe.input.subspace is not None:
            raise ParameterError(
                "The recipe asks for nothing: a subspace has its figures already.",
                where=recipe.input.subspace,
                expected="[[export]], [[merge]] or [[resize]]",
            )
        kind = SPECTRA if is_spectra(recipe) else BUILD
        title, outputs = title_of(recipe), tuple(outputs_of(recipe, spectra))
        if action is not None:
            kind, title, outputs = action.kind, action.title, action.outputs
            device = getattr(action, "device", device)
        if device is None:
            device = recipe.compress.device if recipe.compress is not None else "auto"
        with self._alone():
            job_id, new = self._new_folder()
            lock = self._lock_of_new(new)
        info = JobInfo(
            id=job_id,
            kind=kind,
            title=title,
            created=round(time.time(), 3),
            device=device,
            force=force,
            outputs=outputs,
            spectra=None if spectra is None else str(Path(spectra).expanduser().absolute()),
            host=host_name(),
            program=__version__,
            torch=torch_version(),
            started_by=this_process(),
        )
        try:
            write_file(new / "recipe.toml", _utf8(recipe.to_toml()))
            if action is not None:
                write_file(new / ACTION, dump_json(action.as_dict(), indent=1))
            _write_info(new, info)
            try:
                new.rename(self.folder / job_id)
            except OSError as error:
                raise self._unusable(error) from None
        except BaseException:
            lock.release()
            shutil.rmtree(new, ignore_errors=True)
            raise
        return Job(self.folder / job_id, info), lock

    def take_over(self, job: Job) -> Job:
        """Note that this process has started the job again. The caller holds its lock."""
        _write_info(job.folder, replace(job.info, started_by=this_process()))
        return self.renewed(job)

    def renewed(self, job: Job) -> Job:
        """The job with what its directory says now; as it was where that cannot be read."""
        with suppress(NotFoundError):
            job = Job.load(job.folder)
            self._loaded[job.id] = job
        return job

    def delete(self, job: Job) -> None:
        """Take a job's directory away. The caller holds its lock."""
        gone = job.folder.with_name(f".gone-{job.id}")
        try:
            job.folder.rename(gone)
        except OSError as error:
            raise StorageError(
                f"The job cannot be removed: {error.strerror or error}.", where=job.folder
            ) from None
        shutil.rmtree(gone, ignore_errors=True)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Nobody else makes a job meanwhile; what those left that were killed is deleted first."""
        end = time.monotonic() + PATIENCE_SECONDS
        with waiting_lock(
            self.folder / ".lock",
            cancelled=lambda: time.monotonic() > end,
            waiting=lambda: None,
        ) as held:
            if held:
                for left in (*self.folder.glob(".gone-*"), *self.folder.glob(".new-*")):
                    if not probe(left / "lock").held:
                        shutil.rmtree(left, ignore_errors=True)
            yield

    def sizes(self) -> Iterator[tuple[Job, int]]:
        """The jobs, the oldest first, and the bytes of their directories."""
        for job in self.jobs():
            with suppress(OSError):
                yield job, directory_bytes(job.folder)

    def _new_folder(self) -> tuple[str, Path]:
        """A hidden directory under a new id, so that nobody meets a job that is half made."""
        while True:
            now = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
            job_id = f"{now}-{secrets.token_hex(2)}"
            if (self.folder / job_id).exists():
                continue
            new = self.folder / f".new-{job_id}"
            try:
                new.mkdir(mode=0o700)
            except FileExistsError:
                continue
            except OSError as error:
                raise self._unusable(error) from None
            return job_id, new

    def _lock_of_new(self, new: Path) -> JobLock:
        try:
            return JobLock.take(new / "lock")
        except BaseException:
            shutil.rmtree(new, ignore_errors=True)
            raise

    def _try_out(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            descriptor = open_lock(self.folder / ".lock")
            try:
                try_lock(descriptor, shared=True)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise self._unusable(error) from None

    def _unusable(self, error: OSError) -> StorageError:
        return StorageError(
            f"The state directory cannot be used: {error.strerror or error}.",
            where=self.state_dir,
            expected="a directory that can be written, on a file system that locks files",
            remedy="name another with --state-dir DIR (or XDG_STATE_HOME)",
        )


def _write_info(folder: Path, info: JobInfo) -> None:
    row = {"schema": SCHEMA, "version": VERSION, **asdict(info)}
    write_file(folder / "job.json", dump_json(row, indent=1))


def is_spectra(recipe: Recipe) -> bool:
    """Whether the recipe has nothing but inputs: then spectra are all there is to compute."""
    return not recipe.steps


def title_of(recipe: Recipe) -> str:
    """What a recipe does, in a few words."""
    inputs = recipe.input.adapters
    if recipe.input.subspace is not None:
        source = _called(recipe.input.subspace)
    else:
        # A named one is an adapter; others may be folders of them.
        noun = "adapters" if all(entry.name for entry in inputs) else "inputs"
        source = _called(inputs[0].path) if len(inputs) == 1 else f"{len(inputs)} {noun}"
    if is_spectra(recipe):
        return f"spectra of {source}"
    ends = [recipe.output, *(step.path for step in recipe.written)]
    named = [Path(end) for end in ends if end is not None]
    named += [Path(push.address.repo) for push in recipe.pushes]
    first = named[0].parent if "{task}" in named[0].name else named[0]
    more = f" and {len(named) - 1} more" if len(named) > 1 else ""
    return f"{source} -> {first.name}{more}"


def counted_title(title: str, adapters: int) -> str:
    """A title of `title_of` once it is known how many adapters its inputs hold that are of use."""
    return _INPUTS.sub(rf"\g<1>{plural(adapters, 'adapter')}", title)


_INPUTS = re.compile(r"^(spectra of |)\d+ (?:adapters|inputs)(?= -> |$)")


def _called(path: str) -> str:
    return AdapterRef.parse(path).name


def outputs_of(recipe: Recipe, spectra: Path | None) -> list[str]:
    """The paths that a recipe writes; those of exports as they stand, ``{task}`` in them."""
    ends = [recipe.output, *(step.path for step in recipe.written)]
    return [*(end for end in ends if end is not None), *([str(spectra)] if spectra else [])]


def torch_version() -> str:
    """The version of torch that a job will find, without importing it."""
    with suppress(metadata.PackageNotFoundError):
        return metadata.version("torch")
    return ""


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            "A path has bytes that are no text; a recipe cannot hold it.",
            found=repr(text[max(0, error.start - 40) : error.end + 40]),
            remedy="rename the folder, or reach it through a link with a plain name",
        ) from None
