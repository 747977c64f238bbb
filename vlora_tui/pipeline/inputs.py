"""The inputs of a recipe: which adapters there are, under which task names. Headers only."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from vlora_engine import __version__
from vlora_engine.adapters.address import AdapterRef, address_of
from vlora_engine.adapters.module_names import common_names
from vlora_engine.catalog.locate import locate
from vlora_engine.catalog.open import open_adapter
from vlora_engine.catalog.originals import original_places
from vlora_engine.catalog.read import read_manifest
from vlora_engine.catalog.scanner import scan
from vlora_engine.errors import (
    CollectionError,
    InputError,
    MissingPathError,
    ParameterError,
    VLoRAError,
)
from vlora_engine.findings import Finding
from vlora_engine.hub.fetch import fetch
from vlora_engine.utils.output_checks import require_apart
from vlora_engine.utils.run_context import RunContext
from vlora_tui.recipe.model import MEASURED, AdapterInput, Recipe
from vlora_tui.utils import paths

if TYPE_CHECKING:
    from vlora_engine.adapters.model import AdapterSource
    from vlora_engine.manifest.manifest import Manifest
    from vlora_engine.spectra.tables import Spectra


@dataclass(frozen=True)
class Unusable:
    """An adapter that its headers alone rule out."""

    name: str
    path: str
    error: VLoRAError


@dataclass
class Collection:
    """What a recipe works on.

    Args:
        adapters: By task name, open, in the order of the recipe.
        places: The resolved path of every adapter, by task name.
        identities: What tells each adapter's file from an earlier one (size, mtime, header
            digest), by task name.
        manifest: The subspace, where the input is one.
    """

    adapters: dict[str, AdapterSource] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)
    identities: dict[str, Sequence[object]] = field(default_factory=dict)
    unusable: list[Unusable] = field(default_factory=list)
    base_models: tuple[str, ...] = ()
    manifest: Manifest | None = None
    closed: list[Finding] = field(default_factory=list)  # directories that may not be read
    remarks: list[Finding] = field(default_factory=list)  # on what came from the Hub

    @property
    def tasks(self) -> list[str]:
        """The names of what can be exported."""
        return list(self.manifest.tasks) if self.manifest is not None else list(self.adapters)

    def spectra_dir(self, methods: Sequence[str]) -> Path:
        """Where the spectra of these adapters are cached: the same inputs, the same folder.

        Args:
            methods: The methods that the spectra cover.
        """
        lines = sorted(
            f"{name}\0{[str(part) for part in identity]}"
            for name, identity in self.identities.items()
        )
        text = "\n".join([__version__, *sorted(methods), *lines])
        key = hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:24]
        return paths.spectra_root() / key

    def cached_spectra(self, methods: Sequence[str] = MEASURED) -> Spectra | None:
        """The spectra of these adapters in the cache; None where they are not, or not readable."""
        from vlora_engine.spectra.tables import Spectra

        try:
            return Spectra.load(self.spectra_dir(methods))
        except VLoRAError:
            return None  # a cache: what cannot be read is made again


def gather(recipe: Recipe, run: RunContext = RunContext()) -> Collection:
    """Find and open the inputs of a resolved recipe; nothing of their data is read.

    What lies on the Hub is downloaded first, into the Hub's own cache.

    Raises:
        NotFoundError: A path is not there or holds no adapter.
        CollectionError: Adapters that cannot be used, and not ``skip_bad``.
        ParameterError: Two adapters with one name.
        HubError, HubAccessError: The Hub does not give what is asked for.
        Cancelled: That was asked for while downloading.
    """
    if recipe.input.subspace is not None:
        (place,), remarks = fetch_all([recipe.input.subspace], run)
        return Collection(manifest=read_manifest(Path(place)), remarks=remarks)
    return gather_adapters(recipe.input.adapters, run, skip_bad=recipe.input.skip_bad)


def gather_adapters(
    entries: Sequence[AdapterInput], run: RunContext = RunContext(), *, skip_bad: bool = False
) -> Collection:
    """The adapters of these entries, a folder standing for all adapters in it."""
    collection = Collection()
    here, collection.remarks = fetch_all([e.ref for e in entries], run)
    found, collection.closed = _find(
        [_Entry(locate(ref), e.name) for e, ref in zip(entries, here, strict=True)]
    )
    _require_names_apart(found)
    bases: dict[str, None] = {}
    for one in found:
        try:
            if one.error is not None:
                raise one.error
            source = open_adapter(one.ref)
        except VLoRAError as error:
            collection.unusable.append(Unusable(one.name, str(one.ref), error))
            continue
        collection.adapters[one.name] = source
        collection.places[one.name] = str(address_of(one.ref) or one.ref)
        collection.identities[one.name] = one.identity or (source.nbytes,)
        base = one.base_model or source.config.get("base_model_name_or_path")
        if base:
            bases[str(base)] = None
    named = common_names(list(collection.adapters.values()))
    collection.adapters = dict(zip(collection.adapters, named, strict=True))
    collection.base_models = tuple(bases)
    if collection.unusable and not (skip_bad and collection.adapters):
        raise _unusable_error(collection, len(found), skip_bad)
    return collection


def fetch_all(
    places: Sequence[str | Path | AdapterRef], run: RunContext = RunContext()
) -> tuple[list[AdapterRef], list[Finding]]:
    """The places with those on the Hub downloaded, as paths in the Hub's cache; and remarks.

    Raises:
        NotFoundError, HubError, HubAccessError, Cancelled: As `vlora_engine.hub.fetch.fetch`.
    """
    here: list[AdapterRef] = []
    remarks: list[Finding] = []
    for ref in map(AdapterRef.parse, places):
        if not ref.is_hub:
            here.append(ref)
            continue
        fetched = fetch(ref.base, progress=run.progress, cancelled=run.cancelled)
        here.append(AdapterRef.at(fetched.path, ref.task))
        remarks += fetched.remarks
    return here, remarks


def require_apart_from(outputs: Sequence[Path], places: Iterable[str]) -> None:
    """Refuse outputs that are, contain or lie in what these places stand for (`require_apart`).

    The adapters that a subspace's tasks were made from are not to be written over either.

    Raises:
        ParameterError: One is.
    """
    refs = [ref for ref in map(locate, places) if ref.is_local]
    require_apart(outputs, {Path(ref.path) for ref in refs})
    originals = {path for ref in refs for path in original_places(ref)}
    require_apart(outputs, originals, called="the adapter that a task was made from")


@dataclass(frozen=True)
class _Entry:
    """A place where adapters are, its task told apart, and the name that is given to it."""

    ref: AdapterRef
    name: str | None

    @property
    def key(self) -> str:
        return _key(self.ref)


@dataclass(frozen=True)
class _FoundAdapter:
    name: str
    ref: AdapterRef
    identity: tuple[object, ...] = ()
    base_model: str | None = None
    error: VLoRAError | None = None


def _find(entries: Sequence[_Entry]) -> tuple[list[_FoundAdapter], list[Finding]]:
    places = [entry.ref for entry in entries if entry.ref.task is None]
    catalog = scan(places) if places else None
    infos = list(catalog.adapters) if catalog is not None else []
    names = _given_names(entries, [_key(info.path) for info in infos])
    found = [
        _FoundAdapter(
            name=names.get(_key(info.path), info.name),
            ref=AdapterRef.parse(info.path),
            identity=tuple(info.identity or ()),
            base_model=info.base_model,
            error=info.error,
        )
        for info in infos
    ]
    for entry in entries:
        task = entry.ref.task
        if task is not None:
            taken = {one.name for one in found}
            name = entry.name or (task if task not in taken else f"{entry.ref.name}:{task}")
            found.append(_FoundAdapter(name, entry.ref))
    if not found:
        raise MissingPathError(
            "There is no adapter here.",
            where=", ".join(str(entry.ref) for entry in entries),
            expected="folders with adapter_config.json and adapter_model.safetensors",
            remedy="check the path; `vlora-tui inspect DIR` lists what a folder holds",
        )
    remarks = catalog.findings if catalog is not None else ()
    closed = [finding for finding in remarks if finding.code == "closed-directory"]
    return found, closed + _empty_places(entries, [_key(info.path) for info in infos])


def _empty_places(entries: Sequence[_Entry], found: Sequence[str]) -> list[Finding]:
    """What was named beside adapters and is none; a shell's pattern may well name such a file."""
    return [
        Finding(
            "no-adapter-here",
            "warning",
            "There is no adapter here; it is left out.",
            file=str(entry.ref),
            remedy="check the path; `vlora-tui inspect DIR` lists what a folder holds",
        )
        for entry in entries
        if entry.ref.task is None
        and not any(key == entry.key or Path(entry.key) in Path(key).parents for key in found)
    ]


def _given_names(entries: Sequence[_Entry], found: Sequence[str]) -> dict[str, str]:
    """The names that the recipe gives, by key, to what was ``found``, also by key."""
    names = {}
    for entry in entries:
        if entry.name is None or entry.ref.task is not None:
            continue
        own, folder = entry.key, Path(entry.key)
        below = [key for key in found if key == own or folder in Path(key).parents]
        if len(below) > 1:
            raise ParameterError(
                f"The name {entry.name!r} is given to {len(below)} adapters.",
                where=str(entry.ref),
                remedy="name the adapters in it one by one",
            )
        names[below[0] if below else own] = entry.name
    return names


def _require_names_apart(found: Sequence[_FoundAdapter]) -> None:
    seen: dict[str, _FoundAdapter] = {}
    for one in found:
        if one.name in seen:
            raise ParameterError(
                f"Two adapters are both named {one.name!r}.",
                where=f"{seen[one.name].ref} and {one.ref}",
                remedy="give one of them another name (--names)",
            )
        seen[one.name] = one


def _unusable_error(collection: Collection, total: int, skip_bad: bool) -> InputError:
    bad = [one.error for one in collection.unusable]
    if total == 1 and isinstance(bad[0], InputError):
        return bad[0]
    if skip_bad:
        return CollectionError("No usable adapter is left.", errors=bad)
    return CollectionError(
        f"{len(bad)} of {total} adapters cannot be used; nothing was written.",
        errors=bad,
        remedy="leave them out with --skip-bad, or fix them",
    )


def _key(place: Path | AdapterRef) -> str:
    return str(Path(place).resolve())
