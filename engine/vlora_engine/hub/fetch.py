"""Download the files of an adapter from the Hub into huggingface_hub's cache, at one commit."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vlora_engine.adapters.address import AdapterRef, hub_cache, repo_folder
from vlora_engine.errors import CorruptFileError, StorageError, VLoRAError
from vlora_engine.findings import Finding
from vlora_engine.hub.client import hub_errors, silence
from vlora_engine.hub.download import Tally, download
from vlora_engine.hub.listing import (
    CARD,
    Listing,
    adapter_files,
    cached_listing,
    list_repository,
    revisions_of,
)
from vlora_engine.manifest.parse import parse_manifest
from vlora_engine.utils.file_names import ADAPTER_CONFIG, SUBSPACE_INDEX
from vlora_engine.utils.files import write_file
from vlora_engine.utils.progress import CancelCheck, ProgressCallback
from vlora_engine.utils.reading import read_file
from vlora_engine.utils.run_context import RunContext
from vlora_engine.utils.safetensors_file import read_header

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fetched:
    """The result of a fetch: where the files lie, and what was downloaded.

    Args:
        path: Where the place lies in the cache.
        address: The place, pinned to its commit, under the repository's present name.
        files: The adapter's files, below the repository's root.
        downloaded: The bytes that came over the network.
        remarks: A repository that moved, a file that had to be mended, a Hub out of reach.
    """

    path: Path
    address: AdapterRef
    files: tuple[str, ...]
    downloaded: int = 0
    remarks: tuple[Finding, ...] = ()


def pin(address: AdapterRef) -> AdapterRef:
    """Pin an address to the commit that its revision stands for now.

    Raises:
        NotFoundError, HubAccessError, HubError: As `list_repository`.
    """
    return address if address.is_pinned else list_repository(address).address


def fetch(
    address: AdapterRef,
    *,
    progress: ProgressCallback | None = None,
    cancelled: CancelCheck | None = None,
) -> Fetched:
    """Download the adapter's files that are not whole in the cache.

    A place that is pinned and whole in the cache is not asked about on the Hub.

    Raises:
        NotFoundError: There is no such repository, revision or adapter.
        HubAccessError, HubError: The Hub does not give them.
        CorruptFileError: A file in the cache is half there, and the Hub is out of reach.
        StorageError: The cache's disk has no room.
        Cancelled: ``cancelled()`` became true; the files that are whole stay in the cache.
    """
    listing = _whole_in_cache(address) or list_repository(address)
    files = adapter_files(listing)
    folder = listing.folder
    missing = [name for name in files if not _is_whole(folder / name, listing.sizes[name])]
    if listing.cached:  # whose sizes are those of the files themselves
        missing = [name for name in files if not _is_sound(folder / name)]
    remarks = list(_remarks(listing, folder, missing, asked=address))
    if missing and listing.cached:
        raise _half_error(folder / missing[0], listing)
    total = sum(listing.sizes[name] or 0 for name in missing)
    _require_room(total)
    tally = Tally(total, str(listing.address), RunContext(progress, cancelled))
    for name in missing:
        _download(listing, name, tally)
    if not listing.cached:
        _remember_revisions(listing)
    path = folder / listing.address.subfolder if listing.address.subfolder else folder
    return Fetched(path, listing.address, tuple(files), total, tuple(remarks))


def local_path(place: str | os.PathLike[str]) -> Path:
    """The local path of a place on the Hub, fetched if it has to be; its task left out.

    Raises:
        ParameterError: This is no address.
        NotFoundError, HubAccessError, HubError, CorruptFileError, StorageError: As `fetch`.
    """
    fetched = fetch(AdapterRef.on_hub(place).base)
    for remark in fetched.remarks:
        logger.warning("%s %s", remark.what, remark.where)
    return fetched.path


def cached_path(address: AdapterRef) -> Path | None:
    """The path of a pinned place in the cache, if it is there whole; asks no network."""
    listing = _whole_in_cache(address)
    if listing is None:
        return None
    subfolder = listing.address.subfolder
    return listing.folder / subfolder if subfolder else listing.folder


def _whole_in_cache(address: AdapterRef) -> Listing | None:
    """The cache's own listing, where that tells all: one adapter or subspace, every file of it.

    Of a folder of adapters nobody knows without the Hub whether all of them are there.
    """
    listing = cached_listing(address) if address.is_pinned else None
    if listing is None:
        return None
    try:
        files = [name for name in adapter_files(listing) if not name.endswith(CARD)]
    except VLoRAError:
        return None
    prefix = f"{address.subfolder}/" if address.subfolder else ""
    names = {name.removeprefix(prefix) for name in files}
    folder = listing.folder
    if not all(_is_sound(folder / name) for name in files):
        return None
    if SUBSPACE_INDEX in names:
        return listing if _has_all_parts(folder / prefix) else None
    is_one_adapter = ADAPTER_CONFIG in names and len(names) > 1
    return listing if is_one_adapter else None


def _has_all_parts(directory: Path) -> bool:
    try:
        manifest = parse_manifest(directory, read_file(directory / SUBSPACE_INDEX))
        wanted = {directory / b.name: b.nbytes for b in manifest.files}
        wanted |= {directory / "tasks" / t.file: t.nbytes for t in manifest.tasks.values()}
        return all(path.stat().st_size == nbytes for path, nbytes in wanted.items())
    except (OSError, VLoRAError):
        return False


def _is_sound(path: Path) -> bool:
    """Whether a file is there, and as long as its own header says."""
    if path.suffix != ".safetensors":
        return path.is_file()
    try:
        read_header(path)
    except VLoRAError:
        return False
    return True


def _is_whole(path: Path, nbytes: int | None) -> bool:
    try:
        found = path.stat().st_size
    except OSError:
        return False
    return nbytes is None or found == nbytes


def _remarks(listing: Listing, folder: Path, missing: Sequence[str], *, asked: AdapterRef) -> Any:
    if listing.moved_from is not None:
        what = f"The repository {listing.moved_from} is called {listing.address.repo} now."
        yield Finding("hub-moved", "note", what, adapter=str(listing.address))
    if listing.cached and not asked.is_pinned:
        what = "The Hub cannot be reached: this is what the cache has of it."
        yield Finding("hub-cached", "warning", what, adapter=str(listing.address))
    for name in missing:
        if not listing.cached and (folder / name).exists():
            what = "The file was only half there, and is downloaded again."
            yield Finding("hub-mended", "note", what, file=str(folder / name))


def _download(listing: Listing, name: str, tally: Tally) -> None:
    target = listing.folder / name
    tally.begin(name)
    with hub_errors(replace(listing.address, subfolder=name)), silence():
        # Only what is not whole comes here: what is there of it has to be replaced.
        download(listing.address.repo, name, listing.commit, tally, anew=target.exists())
    if not _is_whole(target, listing.sizes[name]):
        raise _half_error(target, listing)
    tally.end(target.stat().st_size)


def _remember_revisions(listing: Listing) -> None:
    """Note in the cache, its own way, what a branch stands for: then it is known offline too."""
    for revision in revisions_of(listing):
        file = repo_folder(listing.address.repo) / "refs" / revision
        with suppress(OSError, VLoRAError):
            file.parent.mkdir(parents=True, exist_ok=True)
            write_file(file, listing.commit)


def _require_room(nbytes: int) -> None:
    cache = hub_cache()
    directory = next((p for p in (cache, *cache.parents) if p.is_dir()), None)
    if directory is None or not nbytes:
        return
    try:
        free = shutil.disk_usage(directory).free
    except OSError:
        return
    if free < nbytes:
        raise StorageError(
            "The disk of the Hub's cache has no room for the download.",
            where=cache,
            expected=f"{nbytes:,} bytes free",
            found=f"{free:,} bytes",
            remedy="free some, or name another place with HF_HUB_CACHE",
        )


def _half_error(path: Path, listing: Listing) -> VLoRAError:
    found = f"{path.stat().st_size} bytes" if path.exists() else "a link to nothing"
    expected = listing.sizes.get(path.relative_to(listing.folder).as_posix())
    return CorruptFileError(
        "A file in the Hub's cache is only half there.",
        where=path,
        expected="the whole file" if expected is None else f"{expected} bytes",
        found=found,
        remedy="run it again where the Hub can be reached: it is downloaded again",
    )
