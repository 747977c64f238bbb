"""List the files of a repository at one commit, from the Hub or, offline, from the cache."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from vlora_engine.adapters.address import AdapterRef, repo_folder, snapshot_folder
from vlora_engine.errors import HubOfflineError, NotFoundError
from vlora_engine.hub.client import SECONDS, api, endpoint, hub_errors
from vlora_engine.utils import file_names
from vlora_engine.utils.reading import read_text

MAX_DEPTH = 4
CARD = "README.md"
_WEIGHTS = (*file_names.ADAPTER_WEIGHTS, file_names.MLX_FILE)
_BASE_SHARD = re.compile(r"-\d+-of-\d+\.safetensors$|^model\.safetensors$|^consolidated")
_MODEL_CONFIGS = (file_names.MODEL_CONFIG, "model_index.json")


@dataclass(frozen=True)
class Listing:
    """The files of a repository at one commit.

    Args:
        address: The place that was asked for, pinned, under the repository's present name.
        sizes: The bytes of every file, None where they are not known.
        card: What its card says of it, as far as that is known: license, base_model.
        moved_from: The name under which it was asked for, where it has another one now.
        cached: The Hub was not asked, or could not be: the cache tells.
    """

    address: AdapterRef
    sizes: Mapping[str, int | None]
    card: Mapping[str, Any] = field(default_factory=dict)
    moved_from: str | None = None
    cached: bool = False

    @property
    def commit(self) -> str:
        return self.address.revision or ""

    @property
    def folder(self) -> Path:
        """Where its files are, or go to, in the cache."""
        return snapshot_folder(self.address.repo, self.commit)


_by_commit: dict[tuple[str, str, str], Listing] = {}  # a commit never changes
_revisions: dict[tuple[str, str], set[str]] = {}  # by repository and commit: who led to it


def revisions_of(listing: Listing) -> set[str]:
    """The branches and tags that were found, by this process, to stand for this commit."""
    return _revisions.get((listing.address.repo, listing.commit), set())


def list_repository(address: AdapterRef) -> Listing:
    """List the repository at the commit that the address stands for now.

    Without the Hub it is what the cache holds of it.

    Raises:
        NotFoundError, HubAccessError, HubError: As `hub_errors`.
        HubOfflineError: The Hub cannot be reached and the cache has nothing of this revision.
    """
    if address.is_pinned:
        cached_commit = _by_commit.get((endpoint(), address.repo, str(address.revision)))
        if cached_commit is not None:
            return _at(cached_commit, address)
    try:
        with hub_errors(address.base):
            found = api().model_info(
                address.repo, revision=address.revision, files_metadata=True, timeout=SECONDS
            )
    except HubOfflineError as error:
        cached = cached_listing(address)
        if cached is None:
            error.what = f"{error.what} Nothing of this revision is in the cache either."
            raise error from None
        return cached
    listing = _listing(found, address)
    _by_commit[endpoint(), listing.address.repo, listing.commit] = listing
    if not address.is_pinned:
        _revisions.setdefault((listing.address.repo, listing.commit), set()).add(
            address.revision or "main"
        )
    return listing


def cached_listing(address: AdapterRef) -> Listing | None:
    """List what the cache holds of the commit that the address stands for; None if nothing."""
    commit = address.revision if address.is_pinned else _cached_commit(address)
    if commit is None:
        return None
    folder = snapshot_folder(address.repo, commit)
    sizes = _sizes_below(folder)
    if not sizes:
        return None
    return Listing(replace(address, revision=commit), sizes, cached=True)


def adapter_files(listing: Listing) -> list[str]:
    """The files of the adapters, or of the subspace, at the place that the listing is about.

    An adapter that lies at the place itself is the one that is meant; otherwise every one below.

    Raises:
        NotFoundError: There is none, or no such folder.
    """
    subfolder = listing.address.subfolder
    names = below(listing.sizes, subfolder)
    if subfolder and not names:
        raise NotFoundError(
            "The repository has no such folder.",
            where=str(listing.address.base),
            expected=", ".join(_folders(listing.sizes)[:8]) or "no folder at all",
            remedy="without a folder it is the adapter in its root",
        )
    chosen = _in_folder(names)
    if not chosen:
        for folder in _folders(names):
            if folder.count("/") < MAX_DEPTH and not _is_inside(folder, chosen):
                chosen += [f"{folder}/{name}" for name in _in_folder(below(names, folder))]
    if not chosen:
        raise _nothing_error(listing, names)
    return sorted(f"{subfolder}/{name}" if subfolder else name for name in chosen)


def adapter_folders(sizes: Iterable[str]) -> list[str]:
    """The folders of a listing that hold an adapter or a subspace; "" is the root."""
    names = dict.fromkeys(sizes)
    return [f for f in ["", *_folders(names)] if _in_folder(below(names, f))]


def below(sizes: Iterable[str], folder: str) -> dict[str, None]:
    """The names of a listing that lie in ``folder`` or further down, seen from there."""
    start = f"{folder}/" if folder else ""
    return {name[len(start) :]: None for name in sizes if name.startswith(start)}


def _in_folder(names: Iterable[str]) -> list[str]:
    """The files of the adapter or subspace that lies in a folder of these names."""
    names = list(names)
    here = {name for name in names if "/" not in name}
    card = [CARD] if CARD in here else []
    tensors = [name for name in sorted(here) if name.endswith(".safetensors")]
    if file_names.SUBSPACE_INDEX in here:
        of_subspace = r"(basis|components)[^/]*\.safetensors|tasks/[^/]+"
        parts = [name for name in names if re.fullmatch(of_subspace, name)]
        return [*card, file_names.SUBSPACE_INDEX, *parts]
    if "subspace_meta.json" in here:
        return [*card, "subspace_meta.json", *tensors]
    if file_names.SHARE_INDEX in here:
        rest = [n for n in names if n.endswith((".json", ".safetensors"))]
        return [*card, *rest]
    weights = next((name for name in _WEIGHTS if name in here), None)
    if file_names.ADAPTER_CONFIG in here or weights is not None:
        config = [file_names.ADAPTER_CONFIG] if file_names.ADAPTER_CONFIG in here else []
        return [*card, *config, *([weights] if weights else [])]
    if here.intersection(_MODEL_CONFIGS):
        return []  # a whole model
    single = [name for name in tensors if not _BASE_SHARD.search(name)]
    single += [name for name in here if re.search(r"(lora|adapter).*\.gguf$", name.casefold())]
    return [*card, *sorted(single)] if single else []


def _folders(names: Iterable[str]) -> list[str]:
    """The folders in which these names lie, hidden ones left out."""
    found: dict[str, None] = {}
    for name in names:
        for folder in reversed(PurePosixPath(name).parents[:-1]):
            found[str(folder)] = None
    return sorted(folder for folder in found if not re.search(r"(^|/)\.", folder))


def _is_inside(folder: str, chosen: Iterable[str]) -> bool:
    """Whether the folder belongs to a subspace that was chosen above it (its tasks/)."""
    return any(
        name.endswith((file_names.SUBSPACE_INDEX, file_names.SHARE_INDEX))
        and folder.startswith(f"{name.rpartition('/')[0]}/")
        for name in chosen
    )


def _listing(found: Any, address: AdapterRef) -> Listing:
    if not found.sha:
        raise NotFoundError("The repository is empty.", where=str(address.base))
    sizes = {file.rfilename: file.size for file in found.siblings or () if _is_name(file.rfilename)}
    card = found.card_data.to_dict() if found.card_data is not None else {}
    moved = address.repo if found.id != address.repo else None
    pinned = replace(address, repo=found.id, revision=found.sha)
    return Listing(pinned, sizes, card, moved)


def _is_name(name: str) -> bool:
    """Whether a file name from the Hub stays where it belongs."""
    parts = name.split("/")
    return bool(name) and not any(part in ("", ".", "..") for part in parts) and "\0" not in name


def _at(listing: Listing, address: AdapterRef) -> Listing:
    pinned = replace(address, repo=listing.address.repo, revision=listing.commit)
    return replace(listing, address=pinned)


def _cached_commit(address: AdapterRef) -> str | None:
    """The commit that a branch or tag stood for when it was last looked up."""
    file = repo_folder(address.repo) / "refs" / (address.revision or "main")
    try:
        commit = read_text(file).strip()
    except (OSError, UnicodeDecodeError):
        return None
    return commit if re.fullmatch(r"[0-9a-f]{40}", commit) else None


def _sizes_below(folder: Path) -> dict[str, int | None]:
    """The files of a snapshot; those whose content is gone have no size."""
    sizes: dict[str, int | None] = {}
    for root, _, files in os.walk(folder):
        for name in files:
            path = Path(root) / name
            nbytes = path.stat().st_size if path.exists() else None
            sizes[path.relative_to(folder).as_posix()] = nbytes
    return dict(sorted(sizes.items()))


def _nothing_error(listing: Listing, names: Mapping[str, None]) -> NotFoundError:
    shown = ", ".join(list(names)[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    model = "; it is a whole model" if set(_MODEL_CONFIGS) & names.keys() else ""
    return NotFoundError(
        "There is no adapter in this repository." if not model else "This is no adapter.",
        where=str(listing.address.base),
        expected="adapter_config.json beside adapter_model.safetensors, or subspace.json",
        found=(shown or "nothing at all") + model,
        remedy=f"adapters of a base model: vlora-tui inspect --search-base {listing.address.repo}"
        if model
        else "look at its files on the Hub; a folder is named as hf://org/name/folder",
    )
