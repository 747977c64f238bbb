"""The typed events of a running recipe, and their form as JSON lines.

An event is a frozen dataclass of plain values. On disk it is one line with a rising ``seq``, the
time and its ``type``; readers skip what they do not know and ignore a torn last line.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import MISSING, asdict, dataclass, field, fields
from functools import cache
from pathlib import Path
from types import UnionType
from typing import IO, Any, ClassVar, Union, get_args, get_origin, get_type_hints

from vlora_engine.findings import Finding
from vlora_engine.utils.reading import open_file
from vlora_tui.utils.formatting import escaped_json
from vlora_tui.utils.json_text import finite

SCHEMA = "vlora-tui/events"
VERSION = 1
_FIRST = b'{"seq": 1, "time": '  # how the first line of a file begins
PROGRESS_INTERVAL = 0.5  # seconds: at most two progress events each


@dataclass(frozen=True)
class Event:
    """Base of every event; ``type`` is its word in JSON."""

    type: ClassVar[str]

    def __init_subclass__(cls, *, type: str) -> None:
        cls.type = type


@dataclass(frozen=True)
class Queued(Event, type="queued"):
    """A job was handed to its process; told again while it waits for its device."""

    device: str
    ahead: tuple[str, ...] = ()  # the jobs that come first, the running one in front


@dataclass(frozen=True)
class Started(Event, type="started"):
    """The first event: what is going to be done."""

    recipe: str  # the recipe as TOML, paths absolute
    job: str = "run"
    program: str = ""
    schema: str = SCHEMA
    version: int = VERSION


@dataclass(frozen=True)
class AdaptersFound(Event, type="adapters_found"):
    """The inputs by their task names, the broken ones left out."""

    names: tuple[str, ...]
    nbytes: int
    modules: int
    base_models: tuple[str, ...] = ()


@dataclass(frozen=True)
class AdapterSkipped(Event, type="adapter_skipped"):
    """An adapter that cannot be used and was left out, as ``skip_bad`` allows."""

    name: str
    reason: str
    error: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Remark(Event, type="remark"):
    """Something worth knowing that stops nothing."""

    text: str
    where: str = ""
    code: str = ""
    finding: dict[str, Any] = field(default_factory=dict)  # all of it: `Finding.as_json`

    @classmethod
    def of(cls, finding: Finding) -> Remark:
        """A finding as an event."""
        return cls(finding.what, finding.where, finding.code, finding.as_json())

    @property
    def found(self) -> Finding:
        """The finding; what an earlier version wrote holds less of it."""
        fields_of_text = {"what": self.text, "where": self.where, "code": self.code}
        return Finding.from_json(self.finding or fields_of_text)


@dataclass(frozen=True)
class Checked(Event, type="checked"):
    """The verdict after every tensor was read."""

    good: int
    bad: tuple[str, ...] = ()


@dataclass(frozen=True)
class Progress(Event, type="progress"):
    """How far a stage is; thrown away first when there are too many."""

    stage: str
    done: int
    total: int
    detail: str = ""


@dataclass(frozen=True)
class LayerDone(Event, type="layer_done"):
    """A layer's basis is built and lies on the disk."""

    layer: str
    done: int
    total: int


@dataclass(frozen=True)
class SpectraBegun(Event, type="spectra_begun"):
    """Spectra are being computed: ``partial`` holds the layers that are done, until it is moved."""

    path: str
    partial: str


@dataclass(frozen=True)
class SpectraReady(Event, type="spectra_ready"):
    """Spectra of all layers are there, where every choice can be read."""

    path: str
    tasks: int
    layers: int
    methods: tuple[str, ...]
    reused: bool = False


@dataclass(frozen=True)
class Chosen(Event, type="chosen"):
    """What a target came to: k, and what it is going to cost."""

    method: str
    k: str  # "8", or "4-24" where layers differ; empty where directions get bits instead
    mean_error: float
    max_error: float
    nbytes: int

    @property
    def label(self) -> str:
        """The method, and its k if it has one."""
        return f"{self.method}, k = {self.k}" if self.k else self.method


@dataclass(frozen=True)
class SubspaceMade(Event, type="subspace_made"):
    """The subspace is complete and about to take its place; ``digest`` is its index's sha256.

    Whoever goes on with a job that was killed here knows by it what lies there.
    """

    path: str
    digest: str


@dataclass(frozen=True)
class SubspaceWritten(Event, type="subspace_written"):
    """The subspace is in its place; the figures are measured on what was stored."""

    path: str
    figures: dict[str, Any]


@dataclass(frozen=True)
class OtherMethods(Event, type="other_methods"):
    """What the methods that were not used would have cost at the same bytes, as predicted."""

    nbytes: int
    methods: tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class Exported(Event, type="exported"):
    """One task was written as an adapter; ``base`` is what it calls its base model.

    ``base_folder``: where that lies, if the export says so. ``skipped``: the same was there
    already, and stayed as it was.
    """

    task: str
    path: str
    target: str
    nbytes: int
    rank: int = 0
    base: str | None = None
    skipped: bool = False
    base_folder: str | None = None


@dataclass(frozen=True)
class Verified(Event, type="verified"):
    """A written adapter was read back; ``error`` is that of its dW against what was meant."""

    task: str
    path: str
    error: float


@dataclass(frozen=True)
class MergeComputed:
    """The fields that the two events of a merge have in common."""

    path: str
    method: str
    adapters: tuple[str, ...]
    rank: int
    modules: int
    report: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Merged(MergeComputed, Event, type="merged"):
    """A merged adapter was written."""

    nbytes: int = 0


@dataclass(frozen=True)
class MergePreviewed(MergeComputed, Event, type="merge_previewed"):
    """A merge was computed and not written: what it would keep of its adapters."""


@dataclass(frozen=True)
class Resized(Event, type="resized"):
    """One adapter was written at another rank; the report holds its errors, of dW.

    ``skipped``: the same was there already, and stayed as it was.
    """

    task: str
    path: str
    nbytes: int
    report: dict[str, Any] = field(default_factory=dict)
    skipped: bool = False


@dataclass(frozen=True)
class Converted(Event, type="converted"):
    """One adapter, or a subspace as a whole, was written in another format.

    Args:
        task: Empty for a subspace.
        error: The largest relative error of dW of what was read back.
        skipped: The same was there already, and stayed as it was.
    """

    task: str
    path: str
    to: str
    nbytes: int
    error: float = 0.0
    skipped: bool = False


@dataclass(frozen=True)
class Pushed(Event, type="pushed"):
    """A directory was published on the Hub, in one commit.

    Args:
        path: The directory. to: The repository and its branch. commit: The same at the commit.
        files: How many.
    """

    path: str
    to: str
    commit: str
    url: str
    files: int
    nbytes: int


@dataclass(frozen=True)
class TaskAdded(Event, type="task_added"):
    """A subspace in its place has one task more; ``tasks`` is how many it has now.

    Args:
        how: ``absorb``, ``incremental`` or ``project``.
        error: Of the new task. before, nbytes: Bytes of the subspace before and now.
        lost: The other task whose error grew most, and its error before and now; empty if none.
    """

    path: str
    task: str
    how: str
    tasks: int
    error: float
    before: int
    nbytes: int
    lost: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TasksRemoved(Event, type="tasks_removed"):
    """A subspace in its place has lost tasks; ``tasks`` is how many are left."""

    path: str
    removed: tuple[str, ...]
    tasks: int
    before: int
    nbytes: int


@dataclass(frozen=True)
class Evaluated(Event, type="evaluated"):
    """What a base model notices of a subspace's compression; ``report`` as ``eval --json``."""

    path: str
    base: str
    prompts: str
    report: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Pulled(Event, type="pulled"):
    """Adapters or a subspace of the Hub were copied here; ``downloaded`` bytes were not cached."""

    address: str
    path: str
    files: int
    nbytes: int
    downloaded: int = 0


@dataclass(frozen=True)
class Finished(Event, type="finished"):
    """The last event of a run that did all it should."""

    seconds: float
    outputs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Failed(Event, type="failed"):
    """The last event of a run that could not go on."""

    error: dict[str, Any]
    exit_code: int = 1


@dataclass(frozen=True)
class Cancelled(Event, type="cancelled"):
    """The last event of a run that was asked to stop."""

    text: str
    resumable: bool = False


Emit = Callable[[Event], None]

EVENT_TYPES: dict[str, type[Event]] = {cls.type: cls for cls in Event.__subclasses__()}


def is_events_file(path: Path) -> bool:
    """Whether a file is empty or begins as events do, so that more may be appended."""
    first = _first_line(path)
    if _is_first_torn(first):
        return True
    try:
        row = json.loads(first)
    except (ValueError, RecursionError):
        return False
    return isinstance(row, dict) and {"seq", "type"} <= row.keys()


def _first_line(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.readline(1 << 20)


def _is_first_torn(line: bytes) -> bool:
    """Whether this is all that a run wrote which was killed in its very first line, or nothing."""
    begun = _FIRST.startswith(line) or line.startswith(_FIRST)
    return begun and not line.endswith(b"\n") and decode_timed(line) is None


def _open_to_append(path: Path) -> IO[bytes]:
    """The file, unbuffered; a pipe that nobody reads is an error, where opening it would wait."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NONBLOCK", 0)
    descriptor = os.open(path, flags | getattr(os, "O_CLOEXEC", 0), 0o666)
    if hasattr(os, "O_NONBLOCK"):
        os.set_blocking(descriptor, True)
    return open(descriptor, "ab", buffering=0)


class EventWriter:
    """Appends events to a file as JSON lines, progress at most twice a second.

    The last progress before another event is written too: a stage that was done is told as done.
    A disk that is full drops lines and never fails the work; `dropped` counts them.
    """

    def __init__(
        self,
        path: Path,
        *,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.dropped = 0
        self._clock, self._now = clock, now
        self._last_progress = -math.inf
        self._held: Progress | None = None  # progress that came too soon
        path.parent.mkdir(parents=True, exist_ok=True)
        there = path.is_file()  # a pipe or a device has nothing to go on from, and no end
        self._seq = _last_seq(path) if there else 0
        # A killed run's last line must not swallow our first.
        self._torn = there and _ends_torn(path)
        self._file = _open_to_append(path)
        if self._torn and not self._seq and _is_first_torn(_first_line(path)):
            self._file.truncate(0)  # it would be no file of events with this as its first line
            self._torn = False

    def __call__(self, event: Event) -> None:
        """Write ``event``, or leave it out when it is progress that comes too soon."""
        if isinstance(event, Progress):
            if self._clock() - self._last_progress < PROGRESS_INTERVAL:
                self._held = event
                return
            self._last_progress = self._clock()
            if self._held is not None and self._held.stage == event.stage:
                self._held = None
        if self._held is not None:
            held, self._held = self._held, None
            self._write(held)
        self._write(event)

    def _write(self, event: Event) -> None:
        text = encode(event, seq=self._seq + 1, time=self._now())
        line = text.encode("utf-8", "backslashreplace")  # paths may hold bytes that are no text
        try:
            written = self._file.write(b"\n" + line if self._torn else line)
        except OSError:
            self.dropped += 1
            return
        self._seq += 1
        self._torn = written != len(line) + self._torn

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()


def encode(event: Event, *, seq: int, time: float) -> str:
    """``event`` as one line of JSON; figures that are not finite become null."""
    row = {"seq": seq, "time": round(time, 3), "type": event.type, **asdict(event)}
    if not row.get("finding", True):  # a remark that is no finding
        del row["finding"]
    return escaped_json(json.dumps(finite(row), ensure_ascii=False, allow_nan=False)) + "\n"


def decode(line: str) -> tuple[int, Event] | None:
    """The sequence number and event of one line; None for a torn line or an unknown type."""
    found = decode_timed(line)
    return None if found is None else (found[0], found[2])


def decode_timed(line: str | bytes) -> tuple[int, float, Event] | None:
    """The same with the time at which it was told, in seconds since 1970."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    cls = EVENT_TYPES.get(str(row.get("type"))) if isinstance(row, dict) else None
    if cls is None:
        return None
    seq, seconds = row.get("seq"), row.get("time", 0)
    if type(seq) is not int or not is_time(seconds):
        return None
    values = {}
    for name, (hint, required) in _fields_of(cls.type).items():
        if name in row:
            values[name] = _as(hint, row[name])
            if values[name] is _UNFIT:
                return None
        elif required:
            return None
    return seq, float(seconds), cls(**values)


def is_time(seconds: Any) -> bool:
    """Whether a value is a time in seconds since 1970 that a calendar has."""
    return type(seconds) in (int, float) and 0 <= seconds < LATEST


LATEST = 253_402_214_400  # the last day of the year 9999
_UNFIT = object()  # what is not of its field's type


@cache
def _fields_of(kind: str) -> dict[str, tuple[Any, bool]]:
    """The fields of an event: their types, and whether a line has to have them."""
    cls = EVENT_TYPES[kind]
    hints = get_type_hints(cls)
    return {
        f.name: (hints[f.name], f.default is MISSING and f.default_factory is MISSING)
        for f in fields(cls)
    }


def _as(hint: Any, value: Any) -> Any:
    """A value of JSON as a field of this type has it; `_UNFIT` where it is of another."""
    if get_origin(hint) is tuple:
        inside = get_args(hint)[0]
        items = [_as(inside, item) for item in value] if isinstance(value, list) else [_UNFIT]
        return _UNFIT if any(item is _UNFIT for item in items) else tuple(items)
    if get_origin(hint) in (Union, UnionType):
        return value if value is None else _as(get_args(hint)[0], value)
    if hint is float:  # what was not finite is null on disk
        number = math.nan if value is None else value
        return float(number) if type(number) in (int, float) else _UNFIT
    if get_origin(hint) is dict:
        return value if isinstance(value, dict) else _UNFIT
    if hint is int and type(value) is float:  # figures that are whole by and large
        return value
    return value if type(value) is hint else _UNFIT


def read_events(path: Path) -> Iterator[tuple[int, Event]]:
    """The events of a file in order, with their sequence numbers."""
    with open_file(path) as file:
        for line in file:
            found = decode(line.decode("utf-8", "replace"))
            if found is not None:
                yield found


def _last_seq(path: Path) -> int:
    try:
        return max((seq for seq, _ in read_events(path)), default=0)
    except FileNotFoundError:
        return 0


def _ends_torn(path: Path) -> bool:
    try:
        with open_file(path) as file:
            if file.seek(0, 2) == 0:
                return False
            file.seek(-1, 2)
            return file.read(1) != b"\n"
    except FileNotFoundError:
        return False
