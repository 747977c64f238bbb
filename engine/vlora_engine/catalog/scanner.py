"""List the adapters in folders and on the Hub from headers alone: no torch, no tensor data.

NaN, a B of zeros and the like need the data: `vlora_engine.adapters.check` looks for them.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlora_engine.adapters.address import (
    AdapterRef,
    address_of,
    hub_cache,
    shelf_name,
    snapshot_folder,
)
from vlora_engine.adapters.base_models import normalise_base_model
from vlora_engine.adapters.model import ModuleShape
from vlora_engine.adapters.module_names import same_modules
from vlora_engine.catalog.locate import MAX_ADAPTERS, MAX_DEPTH, existing_path, nothing_error, walk
from vlora_engine.catalog.open import FORMATS, task_of_subspace
from vlora_engine.catalog.read import read_manifest
from vlora_engine.catalog.subspace_tasks import inspect_task, inspection_of
from vlora_engine.errors import MissingPathError, VLoRAError
from vlora_engine.findings import Finding
from vlora_engine.formats.base import Format, Inspection, Probe
from vlora_engine.hub.cache import cached_adapters
from vlora_engine.hub.remote import all_remote_headers, as_remote
from vlora_engine.hub.search import LIMIT, search_adapters
from vlora_engine.interop.names import PEERS, peer_at
from vlora_engine.manifest.manifest import FORMAT, Manifest
from vlora_engine.utils.naming import printable, unique_names
from vlora_engine.utils.partials import former_path, how_to_put_back

if TYPE_CHECKING:
    from vlora_engine.hub.remote import RemoteHeaders

SUBSPACE = FORMAT
SUBSPACES = frozenset({SUBSPACE, *PEERS})
Place = Path | AdapterRef


@dataclass(frozen=True)
class AdapterInfo:
    """One adapter as its headers show it.

    What is not known is None: of an adapter with an ``error`` nearly everything, of one whose
    tensors lie in a pickle what only opening it would tell.

    Args:
        name: The shortest suffix of its path that is unique in the catalog.
        path: Where it lies, on a disk or on the Hub.
        format: The name of the format that recognised it.
        base_model: As its config has it.
        rank: ``r`` of its config.
        ranks: The smallest and the largest rank of its modules.
        alpha: ``lora_alpha`` of its config.
        scale: The scale that most modules have.
        modules: How many modules.
        module_types: Their leaf names, sorted.
        dtype: The dtype that most factors have, in safetensors' words.
        nbytes: Bytes of tensors and config.
        rest: How many tensors belong to no module.
        group: Number of the group that it fits into.
        findings: What is unusual or wrong about it.
        identity: Bytes, newest modification (ns), digest of header and config.
        error: Why it cannot be used.
    """

    name: str
    path: Place
    format: str
    base_model: str | None = None
    rank: int | None = None
    ranks: tuple[int, int] | None = None
    alpha: float | None = None
    scale: float | None = None
    modules: int | None = None
    module_types: tuple[str, ...] = ()
    dtype: str | None = None
    nbytes: int = 0
    rest: int = 0
    group: int | None = None
    findings: tuple[Finding, ...] = ()
    identity: tuple[int, int, str] | None = None
    error: VLoRAError | None = None

    @property
    def here(self) -> Path:
        """Its path on this disk; what is on the Hub is fetched into its cache."""
        return self.path if isinstance(self.path, Path) else existing_path(self.path)

    def as_dict(self) -> dict[str, Any]:
        """All of it as values for JSON."""
        return {
            "name": self.name,
            "path": printable(str(self.path)),
            "format": self.format,
            "base_model": self.base_model,
            "rank": self.rank,
            "ranks": None if self.ranks is None else list(self.ranks),
            "alpha": self.alpha,
            "scale": self.scale,
            "modules": self.modules,
            "module_types": list(self.module_types),
            "dtype": self.dtype,
            "bytes": self.nbytes,
            "rest": self.rest,
            "group": self.group,
            "findings": [finding.as_dict() for finding in self.findings],
            "identity": None if self.identity is None else list(self.identity),
            "error": None if self.error is None else self.error.as_dict(),
        }


@dataclass(frozen=True)
class Group:
    """Adapters that fit together: one base model, the same dimensions wherever they meet."""

    number: int
    base_model: str | None
    names: tuple[str, ...]
    modules: int

    def as_dict(self) -> dict[str, Any]:
        """All of it as values for JSON."""
        return {
            "number": self.number,
            "base_model": self.base_model,
            "names": list(self.names),
            "modules": self.modules,
        }


@dataclass(frozen=True)
class Catalog:
    """The result of a scan: adapters in the order of their paths, groups, findings on places."""

    adapters: tuple[AdapterInfo, ...]
    groups: tuple[Group, ...]
    findings: tuple[Finding, ...] = ()
    subspaces: tuple[Place, ...] = ()

    @property
    def usable(self) -> list[AdapterInfo]:
        """The adapters without an error."""
        return [info for info in self.adapters if info.error is None]

    def as_dict(self) -> dict[str, Any]:
        """All of it as values for JSON."""
        return {
            "adapters": [info.as_dict() for info in self.adapters],
            "groups": [group.as_dict() for group in self.groups],
            "findings": [finding.as_dict() for finding in self.findings],
            "subspaces": [printable(str(path)) for path in self.subspaces],
        }


def scan(
    paths: str | Path | AdapterRef | Iterable[str | Path | AdapterRef],
    *,
    max_depth: int = MAX_DEPTH,
    max_adapters: int = MAX_ADAPTERS,
    search_limit: int | None = None,
) -> Catalog:
    """List every adapter at or below ``paths``, reading headers only.

    An adapter that cannot be used is listed with its ``error``; the same directory reached twice
    is listed once. A path may also be a place on the Hub: see `Finder.look`.

    Args:
        search_limit: How many adapters of a base model are looked at.

    Raises:
        NotFoundError: A path does not exist, or there is no adapter at any of them.
        ParameterError: A path is on another machine.
        HubError, HubAccessError: The Hub does not tell.
    """
    finder = Finder(max_depth=max_depth, max_adapters=max_adapters, search_limit=search_limit)
    infos, subspaces = [], []
    for path in [paths] if isinstance(paths, str | Path | AdapterRef) else paths:
        for found in finder.look(path):
            if isinstance(found, AdapterInfo):
                infos.append(found)
            else:
                subspaces.append(found)
    if not finder.count:
        raise nothing_found(finder.places)
    named = with_names(infos)
    remarks = (
        *_place_findings(finder.count, subspaces, max_adapters),
        *closed_findings(finder.closed),
        *finder.remarks,
    )
    return Catalog(tuple(named), finder.groups(named), remarks, tuple(subspaces))


class Finder:
    """A scan that yields each adapter as soon as its headers were read.

    Places are scanned one after another; an adapter that was found before is not yielded again.
    """

    def __init__(
        self,
        *,
        max_depth: int = MAX_DEPTH,
        max_adapters: int = MAX_ADAPTERS,
        search_limit: int | None = None,
    ) -> None:
        self.places: list[Place] = []
        self.closed: list[Path] = []  # directories that may not be read
        self.remarks: list[Finding] = []  # on places of the Hub
        self._max_depth, self._max_adapters = max_depth, max_adapters
        self._search_limit = search_limit
        self._seen: set[str] = set()
        self._tables: list[dict[str, tuple[str, int, int]]] = []  # per group, what it looks like
        self._bases: list[str | None] = []
        self._by_base: dict[str | None, list[int]] = {}

    @property
    def count(self) -> int:
        """How many adapters and subspaces were found."""
        return len(self._seen)

    def look(self, path: str | Path | AdapterRef) -> Iterator[AdapterInfo | Place]:
        """The adapters at or below ``path``, each in its group, and the paths of subspaces.

        An adapter's name is the whole path that it is named by, until `with_names` shortens it.
        On the Hub (``hf://org/name``) headers alone are read. ``hf-cache:`` stands for what was
        downloaded from it before, ``hf-search:org/name`` for the adapters of a base model there.

        Raises:
            NotFoundError: The path does not exist.
            ParameterError: It is on another machine.
            HubError, HubAccessError: The Hub does not tell.
        """
        ref = AdapterRef.parse(path)
        if ref.is_hub:
            yield from self._look_at_hub([ref])
            return
        if ref.kind == "search":
            yield from self._search_hub(ref.path)
            return
        if ref.kind == "cache":
            yield from self._look_into_cache()
            return
        task = task_of_subspace(ref)
        if task is not None:
            if self._first_time(":".join((os.path.realpath(task[0]), task[1]))):
                yield self._inspected(_task_entry(*task))
            return
        directory = existing_path(ref)
        self.places.append(directory)
        yield from self._look_below(directory, self._max_depth)

    def _look_below(self, directory: Path, max_depth: int) -> Iterator[AdapterInfo | Place]:
        limit = self._max_adapters - self.count
        lost: list[Path] = []
        for probe, form in _below(directory, max_depth, limit, self.closed, lost):
            if self._first_time(str(address_of(probe.path) or os.path.realpath(probe.path))):
                subspace = form.name in SUBSPACES
                yield probe.path if subspace else self._inspected(_entry(probe, form))
        for path in lost:
            known = FORMATS.find(Probe(former_path(path)))
            if known is not None and self._first_time(os.path.realpath(path)):
                yield AdapterInfo(os.path.abspath(path), path, known.name, error=_lost_error(path))

    def _look_at_hub(self, addresses: Sequence[AdapterRef]) -> Iterator[AdapterInfo | Place]:
        self.places += addresses
        for address, remote in all_remote_headers(addresses):
            if not isinstance(remote, VLoRAError):
                yield from self._look_at_headers(address, remote)
            elif len(addresses) == 1:
                raise remote
            elif self._first_time(str(address)):
                yield AdapterInfo(shelf_name(address), address, "unknown", error=remote)

    def _look_at_headers(
        self, address: AdapterRef, headers: RemoteHeaders
    ) -> Iterator[AdapterInfo | Place]:
        self.remarks += headers.remarks()
        if address.task is None:
            found: Iterable[AdapterInfo | Place] = self._look_below(headers.root, self._max_depth)
        else:
            found = [self._inspected(_task_entry(headers.root, address.task))]
        for item in found:
            if not isinstance(item, AdapterInfo):
                if isinstance(item, Path):
                    self.remarks.append(as_remote(_subspace_finding(item), headers))
                yield address_of(item) or item
                continue
            yield replace(
                item,
                path=address_of(item.path) or item.path,
                findings=tuple(as_remote(finding, headers) for finding in item.findings),
                error=as_remote(item.error, headers),
            )

    def _search_hub(self, base_model: str) -> Iterator[AdapterInfo | Place]:
        limit = LIMIT if self._search_limit is None else self._search_limit
        yield from self._look_at_hub(search_adapters(base_model, limit=limit))

    def _look_into_cache(self) -> Iterator[AdapterInfo | Place]:
        self.places.append(hub_cache())
        for address in cached_adapters():
            folder = snapshot_folder(address.repo, str(address.revision)) / address.subfolder
            for item in self._look_below(folder, 0):
                if isinstance(item, AdapterInfo):
                    item = replace(item, path=address_of(item.path) or item.path)
                yield item

    def groups(self, infos: Sequence[AdapterInfo]) -> tuple[Group, ...]:
        """The groups of what was found, under the names that ``infos`` have."""
        members: list[list[str]] = [[] for _ in self._tables]
        for info in infos:
            if info.group is not None:
                members[info.group].append(info.name)
        return tuple(
            Group(number, base, tuple(members[number]), len(self._tables[number]))
            for number, base in enumerate(self._bases)
        )

    def _first_time(self, key: str) -> bool:
        seen_before = key in self._seen
        self._seen.add(key)
        return not seen_before

    def _inspected(self, entry: _Entry) -> AdapterInfo:
        info, modules = _look(entry)
        return info if not modules else replace(info, group=self._group_of(info, modules))

    def _group_of(self, info: AdapterInfo, modules: Mapping[str, ModuleShape]) -> int:
        """The first group that it fits, or a new one.

        It fits where the base model is the same (unknown is its own) and no module that both have
        differs in kind or dimensions; ranks may differ.
        """
        base = normalise_base_model(info.base_model)
        fits = {name: shape.fits for name, shape in modules.items()}
        candidates = self._by_base.setdefault(base, [])
        for g in candidates:  # the same modules under the names of another version
            fits = _under(same_modules(fits, self._tables[g]), fits)
        number = next((g for g in candidates if _agree(self._tables[g], fits, base)), None)
        if number is None:
            number = len(self._tables)
            self._tables.append({})
            self._bases.append(info.base_model)
            candidates.append(number)
        self._tables[number].update(fits)
        return number


def with_names(infos: Sequence[AdapterInfo]) -> list[AdapterInfo]:
    """The same, each named by the shortest suffix of its name that is unique among them."""
    names = unique_names([info.name for info in infos])
    return [replace(info, name=name) for info, name in zip(infos, names, strict=True)]


def closed_findings(closed: Iterable[Path]) -> Iterator[Finding]:
    """One finding for each directory that could not be looked into."""
    for path in closed:
        what = "The directory may not be read: what is in it is not listed."
        remedy = "check its permissions"
        yield Finding("closed-directory", "warning", what, remedy, file=printable(str(path)))


def _below(
    path: Path, max_depth: int, limit: int, closed: list[Path], lost: list[Path]
) -> Iterable[tuple[Probe, Format]]:
    if os.path.isdir(path):
        yield from walk(FORMATS, path, max_depth, limit, closed, lost)
        return
    probe = Probe(path)
    form = FORMATS.find(probe)
    if form is not None and limit > 0:
        yield probe, form


def _lost_error(path: Path) -> VLoRAError:
    """What to say of an output whose former state alone is there, hidden."""
    return MissingPathError(
        "The adapter is missing: replacing it was interrupted.",
        where=path,
        found=f"the former one, hidden, at {former_path(path)}",
        remedy=how_to_put_back(path),
        adapter=path,
    )


@dataclass(frozen=True)
class _Entry:
    """Something to list: where it lies, the path that it is named by, how to look into it."""

    path: Path
    named: str
    format: str
    inspect: Callable[[], Inspection]


def _entry(probe: Probe, form: Format) -> _Entry:
    path = probe.path if probe.file is None else probe.path.with_suffix("")
    look = partial(form.inspect, probe)
    address = address_of(path)
    named = os.path.abspath(path) if address is None else shelf_name(address)
    return _Entry(probe.path, named, form.name, look)


def _task_entry(directory: Path, task: str) -> _Entry:
    path = Path(f"{directory}:{task}")
    address = address_of(directory)
    folder = os.path.abspath(directory) if address is None else shelf_name(address)
    named = f"{folder}/{task}"
    form = SUBSPACE if (peer := peer_at(directory)) is None else peer
    return _Entry(path, named, form, partial(inspect_task, directory, task))


def tasks_of(subspace: Path) -> list[AdapterInfo]:
    """The tasks of a subspace, ours or a peer's, as adapters named ``DIR:TASK``.

    Raises:
        VLoRAError: The subspace cannot be read.
    """
    manifest = read_manifest(subspace)
    infos = []
    for task in manifest.tasks:
        look = partial(inspection_of, manifest, task)
        name = printable(f"{subspace}:{task}")
        entry = _Entry(Path(f"{subspace}:{task}"), name, manifest.peer or SUBSPACE, look)
        infos.append(_look(entry)[0])
    return infos


def _look(entry: _Entry) -> tuple[AdapterInfo, Mapping[str, ModuleShape] | None]:
    try:
        seen = entry.inspect()
    except VLoRAError as error:
        error.adapter = error.adapter or str(entry.path)
        return AdapterInfo(entry.named, entry.path, entry.format, error=error), None
    return _info(entry.named, entry.format, seen), seen.modules


def _info(name: str, form: str, seen: Inspection) -> AdapterInfo:
    modules = seen.modules
    info = AdapterInfo(
        name=name,
        path=seen.path,
        format=form,
        base_model=seen.base_model,
        rank=seen.rank or None,  # 0: only opening it would tell
        alpha=seen.alpha if seen.rank else None,
        nbytes=seen.nbytes,
        rest=len(seen.rest),
        findings=tuple(replace(f, adapter=str(seen.path)) for f in seen.findings),
        identity=_identity(seen),
    )
    if modules is None:
        return info
    ranks = [shape.rank for shape in modules.values()]
    dtypes = Counter(shape.dtype for shape in modules.values())
    scales = Counter(seen.scales.values())
    return replace(
        info,
        ranks=(min(ranks), max(ranks)) if ranks else None,
        scale=_most(scales),
        modules=len(modules),
        module_types=tuple(sorted({module.rpartition(".")[2] for module in modules})),
        dtype=_most(dtypes),
    )


def _identity(seen: Inspection) -> tuple[int, int, str]:
    """The key of caches: for a copy of a commit its address, which determines its content."""
    address = address_of(seen.path)
    if address is None:
        return seen.identity
    return seen.nbytes, 0, hashlib.sha256(str(address).encode()).hexdigest()


def _most(counts: Counter[Any]) -> Any:
    return max(counts, key=lambda value: (counts[value], value), default=None)


def _under(names: Mapping[str, str] | None, fits: Mapping[str, Any]) -> dict[str, Any]:
    return {(names or {}).get(name, name): value for name, value in fits.items()}


def _agree(table: Mapping[str, Any], fits: Mapping[str, Any], base: str | None) -> bool:
    shared = table.keys() & fits.keys()
    if base is None and not shared:
        return False  # nothing at all says that they belong together
    return all(table[name] == fits[name] for name in shared)


def _place_findings(found: int, subspaces: Sequence[Place], max_adapters: int) -> Iterable[Finding]:
    for path in subspaces:
        if isinstance(path, Path):  # of one on the Hub it was said when it was looked at
            yield _subspace_finding(path)
    if found >= max_adapters:
        what = f"Only the first {max_adapters:,} adapters are listed."
        remedy = "name folders further down"
        yield Finding("too-many", "warning", what, remedy)


def _subspace_finding(path: Path) -> Finding:
    where = printable(str(path))
    try:
        manifest = read_manifest(path)
    except VLoRAError as error:
        return Finding(
            "subspace-unreadable", "error", str(error), error.remedy or "", adapter=where
        )
    return Finding("subspace", "note", _subspace_words(manifest), adapter=where)


def _subspace_words(manifest: Manifest) -> str:
    names = list(manifest.tasks)
    listed = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
    whose = f"A subspace of {manifest.peer}" if manifest.peer else "A compressed subspace"
    return f"{whose}; its tasks are used as DIR:TASK: {listed or 'none yet'}."


def nothing_found(places: Sequence[Place]) -> VLoRAError:
    """The error for places that hold no adapter at all."""
    if not places:
        return MissingPathError(
            "No path was given.", remedy="name a directory with adapters, such as runs/"
        )
    if len(places) == 1:
        return nothing_error(Path(places[0]))
    return MissingPathError(
        f"There is no adapter at any of the {len(places)} places.",
        where=str(places[0]),
        expected="directories with adapter_config.json and adapter_model.safetensors",
        remedy="point at directories that PEFT's model.save_pretrained wrote, or above them",
    )
