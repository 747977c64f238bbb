"""Find the adapters that a subspace's tasks were made from, and check them by content hash."""

from __future__ import annotations

import os
from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath

from vlora_engine.adapters.address import AdapterRef, absolute_source, is_address
from vlora_engine.adapters.model import AdapterSource
from vlora_engine.adapters.module_names import RenamedAdapter, names_like
from vlora_engine.catalog.open import find_adapters, open_adapter
from vlora_engine.catalog.read import read_manifest
from vlora_engine.errors import CollectionError, MissingPathError, VLoRAError
from vlora_engine.hub.fetch import cached_path
from vlora_engine.manifest.manifest import TaskRecord, is_own_subspace
from vlora_engine.utils.progress import ProgressCallback
from vlora_engine.utils.run_context import RunContext

STAGE = "originals"


def recorded_original(record: TaskRecord) -> AdapterSource:
    """Open the adapter that a task was made from, at the path that the subspace records.

    One that came from the Hub is looked for in the Hub's cache; it is not downloaded again.

    Args:
        record: Its ``source`` as a path that holds here, which is what a loaded subspace has.

    Raises:
        NotFoundError: It is not there, or the subspace does not say where.
        CollectionError: What lies there has another content.
        AdapterError: It cannot be read.
    """
    path = _path_of(record)
    if path is None or not os.path.exists(path):
        raise _not_found(record, record.source, "nothing there" if record.source else None)
    source = _with_digest(open_adapter(path), record.digest)
    if source is None:
        raise _changed(record, record.source or path)
    return source


def _with_digest(source: AdapterSource, digest: str) -> AdapterSource | None:
    """The adapter under the names by which its content hash is this one; None if there are none.

    Subspaces that were made before what wrappers leave in names was taken out have it in them.
    """
    if source.digest() == digest:
        return source
    stored: Mapping[str, str] = getattr(source, "stored_names", {})
    under_stored = RenamedAdapter(source, stored, as_new=True) if stored else source
    return under_stored if stored and under_stored.digest() == digest else None


def _path_of(record: TaskRecord) -> Path | None:
    if record.source is None:
        return None
    source = AdapterRef.parse(record.source)
    return cached_path(source) if source.is_hub else Path(record.source)


def original_places(place: str | Path | AdapterRef) -> list[Path]:
    """Where on this disk the adapters lay that a subspace, or its task ``DIR:TASK``, was made of.

    What is no subspace of ours, or cannot be read, has none.
    """
    ref = AdapterRef.parse(place)
    if not ref.is_local or not is_own_subspace(Path(ref.path)):
        return []
    try:
        manifest = read_manifest(ref.path)
    except VLoRAError:
        return []
    home = manifest.path.absolute()
    records = [r for r in manifest.tasks.values() if ref.task is None or r.id == ref.task]
    sources = [r.source for r in records if r.source and not is_address(r.source)]
    return [Path(path) for source in sources if (path := absolute_source(source, home))]


def original_if_there(
    record: TaskRecord, named: Mapping[str, Hashable] | None = None
) -> AdapterSource | None:
    """`recorded_original`, or None where it were not found.

    Args:
        named: The modules of the subspace, whose names it gets (`names_like`).
    """
    try:
        return names_like(recorded_original(record), named or {})
    except VLoRAError:
        return None


def find_originals(
    records: Sequence[TaskRecord],
    places: Sequence[str | Path] = (),
    *,
    progress: ProgressCallback | None = None,
) -> tuple[dict[str, AdapterSource], dict[str, VLoRAError]]:
    """The originals that were found, by task, and an error for each of the others.

    Args:
        records: The tasks.
        places: Folders of adapters and adapters to look in, instead of where the subspace says.
            What counts is the content; of the adapters those named like the task are read first.

    Raises:
        NotFoundError: There is nothing, or no adapter, at one of the places.
    """
    run = RunContext(progress)
    pool = _Pool(places) if places else None
    found: dict[str, AdapterSource] = {}
    missing: dict[str, VLoRAError] = {}
    for done, record in enumerate(records, start=1):
        try:
            found[record.id] = pool.find(record) if pool else recorded_original(record)
        except VLoRAError as error:
            missing[record.id] = error
        run.report(STAGE, done, len(records), record.id)
    return found, missing


class _Pool:
    """Adapters below some places, each read at most once for its content hash."""

    def __init__(self, places: Iterable[str | Path]) -> None:
        self.places = [str(place) for place in places]
        located = [location.path for place in self.places for location in find_adapters(place)]
        self._paths = list(dict.fromkeys(located))
        self._digests: dict[Path, str | None] = {}

    def find(self, record: TaskRecord) -> AdapterSource:
        name = PurePosixPath(record.id).name
        namesakes = [path for path in self._paths if path.name == name]
        for path in sorted(self._paths, key=lambda path: path.name != name):
            if not record.digest:
                continue
            if self._digest(path) == record.digest:
                return open_adapter(path)
            former = self._former(path, record.digest)
            if former is not None:
                return former
        if namesakes:
            raise _changed(record, namesakes[0])
        raise _not_found(record, ", ".join(self.places), "no adapter of this content")

    def _former(self, path: Path, digest: str) -> AdapterSource | None:
        try:
            source = open_adapter(path)
            return _with_digest(source, digest) if getattr(source, "stored_names", {}) else None
        except VLoRAError:
            return None

    def _digest(self, path: Path) -> str | None:
        if path not in self._digests:
            try:
                self._digests[path] = open_adapter(path).digest()
            except VLoRAError:  # a broken one is nobody's original
                self._digests[path] = None
        return self._digests[path]


def _not_found(record: TaskRecord, where: str | None, found: str | None) -> MissingPathError:
    return MissingPathError(
        f"The adapter that task {record.id!r} was made from is not there.",
        where=where or "the subspace does not say where it lay",
        found=found,
        remedy=f"vlora-tui pull {where} -o DIR" if where and is_address(where) else None,
    )


def _changed(record: TaskRecord, where: str | Path) -> CollectionError:
    return CollectionError(
        f"The adapter that task {record.id!r} was made from has changed.",
        where=where,
        expected=f"the content sha256 {record.digest[:12] or '(none kept)'}...",
        found="another one",
    )
