"""Read the headers of adapters on the Hub without downloading their data.

A temporary folder stands for the repository: configs are copied whole, of tensor files the header
is copied and the rest up to their length left as a hole. So the readers of local files serve for
the Hub, too.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vlora_engine.adapters.address import AdapterRef, address_text
from vlora_engine.errors import CorruptFileError, MissingPathError, VLoRAError
from vlora_engine.findings import PLACES, Finding
from vlora_engine.hub.client import SECONDS, endpoint, hub_errors
from vlora_engine.hub.listing import Listing, adapter_files, adapter_folders, list_repository
from vlora_engine.utils.file_names import SUBSPACE_INDEX
from vlora_engine.utils.reading import open_file
from vlora_engine.utils.safetensors_file import MAX_HEADER_BYTES, write_error

FIRST_BYTES = 128 * 1024  # enough for the headers of most adapters in one request
AT_A_TIME = 8  # repositories, or files, that are asked about together
MAX_TEXT_BYTES = 50_000_000
_NAMES_SHOWN = 1000


@dataclass(frozen=True)
class RemoteHeaders:
    """A folder of a repository on the Hub, copied as headers alone.

    Args:
        root: The local copy of that folder; it is there until the block ends that made it.
        listing: What the repository holds.
        elsewhere: Other folders of the repository with an adapter, that were not looked into.
    """

    root: Path
    listing: Listing
    elsewhere: tuple[str, ...]

    def remarks(self) -> list[Finding]:
        """Findings on the repository itself: that it was renamed, or holds more adapters."""
        found = []
        if self.listing.moved_from is not None:
            present = self.listing.address.repo
            what = f"The repository {self.listing.moved_from} is called {present} now."
            found.append(Finding("hub-moved", "note", what, adapter=str(self.listing.address)))
        if self.elsewhere:
            first = str(replace(self.listing.address, subfolder=self.elsewhere[0]))
            others = len(self.elsewhere) - 1
            what = "Here" if not others else f"Here, and in {others} more folders"
            found.append(
                Finding("hub-more", "note", f"{what}, lies another adapter.", adapter=first)
            )
        return found


@contextmanager
def remote_headers(address: AdapterRef) -> Iterator[RemoteHeaders]:
    """Copy the headers of a place into a temporary folder, removed after the block.

    Raises:
        NotFoundError: There is no such repository, revision or adapter.
        HubAccessError, HubError: The Hub does not tell.
    """
    listing = list_repository(address.base)
    files = adapter_files(listing)
    others = [f for f in adapter_folders(listing.sizes) if not _covers(listing, f, files)]
    with tempfile.TemporaryDirectory(prefix="vlora-hub-", ignore_cleanup_errors=True) as home:
        # Laid out as the cache is, so that an adapter's name and place are told in one way.
        top = Path(home) / listing.folder.relative_to(listing.folder.parents[2])
        with ThreadPoolExecutor(AT_A_TIME, thread_name_prefix="hub") as pool:
            list(pool.map(lambda name: _copy_headers(listing, name, top / name), files))
        _name_neighbours(listing, files, top)
        root = top / listing.address.subfolder
        yield RemoteHeaders(root, listing, tuple(others))


def all_remote_headers(
    addresses: Sequence[AdapterRef],
) -> Iterator[tuple[AdapterRef, RemoteHeaders | VLoRAError]]:
    """The headers of each place, in order, several fetched at a time; or the error instead.

    Those of one place are there until the next one is asked for.
    """
    pool = ThreadPoolExecutor(AT_A_TIME, thread_name_prefix="hub")
    try:
        waiting = [pool.submit(_enter, address) for address in addresses]
        for address, future in zip(addresses, waiting, strict=True):
            try:
                stack, headers = future.result()
            except VLoRAError as error:
                yield address, error
                continue
            with stack:
                yield address, headers
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        for future in waiting:  # whoever left early has left them open
            if future.done() and not future.cancelled() and future.exception() is None:
                future.result()[0].close()


def _enter(address: AdapterRef) -> tuple[ExitStack, RemoteHeaders]:
    stack = ExitStack()
    return stack, stack.enter_context(remote_headers(address))


def as_remote(value: Any, headers: RemoteHeaders) -> Any:
    """An error or a finding about copied headers, with paths replaced by the Hub's address."""
    if isinstance(value, Finding):
        places: dict[str, Any] = {name: address_text(getattr(value, name)) for name in PLACES}
        return replace(value, **places, remedy=_with_address(value.remedy, headers))
    if isinstance(value, VLoRAError):
        value.where = None if value.where is None else address_text(value.where)
        value.adapter, value.file = address_text(value.adapter), address_text(value.file)
        for name in ("what", "expected", "found", "remedy"):
            text = getattr(value, name)
            if text is not None:
                setattr(value, name, _with_address(text, headers))
    return value


def _with_address(text: str, headers: RemoteHeaders) -> str:
    top = str(headers.root).removesuffix(f"/{headers.listing.address.subfolder}")
    return text.replace(top, str(replace(headers.listing.address, subfolder="", task=None)))


def _covers(listing: Listing, folder: str, files: list[str]) -> bool:
    """Whether what was chosen holds the adapter of this folder, or it is no part of the place."""
    subfolder = listing.address.subfolder
    if subfolder and folder != subfolder and not folder.startswith(f"{subfolder}/"):
        return True
    start = f"{folder}/" if folder else ""
    return any(name.startswith(start) and "/" not in name[len(start) :] for name in files)


def _copy_headers(listing: Listing, name: str, target: Path) -> None:
    """The file as far as its header goes, then a hole."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if listing.cached:
        _copy_start(listing.folder / name, target)
        return
    nbytes = listing.sizes[name]
    if name.endswith(".json"):
        if nbytes is not None and nbytes > MAX_TEXT_BYTES:
            raise CorruptFileError(
                "A config of this size is none.",
                where=f"{listing.address}/{name}",
                expected=f"at most {MAX_TEXT_BYTES:,} bytes",
                found=f"{nbytes:,} bytes",
            )
        target.write_bytes(_read(listing, name, None))
        return
    _write_start(target, _head(listing, name), nbytes)


def _is_in_subspace(listing: Listing, name: str) -> bool:
    """Whether the file is a part of a subspace, whose index says all that its header would."""
    folder = os.path.dirname(name.replace("tasks/", ""))
    index = f"{folder}/{SUBSPACE_INDEX}" if folder else SUBSPACE_INDEX
    return index in listing.sizes


def _head(listing: Listing, name: str) -> bytes:
    """The beginning of a tensor file, up to the end of its header."""
    if _is_in_subspace(listing, name):
        return b""
    if not name.endswith((".safetensors", ".gguf")):
        return b""  # a pickle: only torch may open it, and not for a look
    raw = _read(listing, name, (0, FIRST_BYTES))
    if name.endswith(".gguf") or len(raw) < 8:
        return raw
    end = 8 + int.from_bytes(raw[:8], "little")
    nbytes = listing.sizes[name]
    if end > len(raw) and end <= MAX_HEADER_BYTES and (nbytes is None or end <= nbytes):
        raw += _read(listing, name, (len(raw), end))
    return raw[:end] if end <= len(raw) else raw


def _read(listing: Listing, name: str, span: tuple[int, int] | None) -> bytes:
    """Some bytes of a file on the Hub, or all of them."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    address = replace(listing.address.base, subfolder=name)
    url = hf_hub_url(listing.address.repo, name, revision=listing.commit, endpoint=endpoint())
    headers = build_hf_headers(library_name="vlora-tui")
    headers["Accept-Encoding"] = "identity"  # a span of a packed file would be of no use
    if span is not None:
        headers["Range"] = f"bytes={span[0]}-{span[1] - 1}"
    with hub_errors(address):
        response = get_session().get(url, headers=headers, timeout=SECONDS)
        if response.status_code == 416:  # an empty file has no span
            return b""
        hf_raise_for_status(response)
    raw = bytes(response.content)
    if span is not None and response.status_code == 200:  # whoever answers knows no spans
        return raw[span[0] : span[1]]
    return raw


def _copy_start(source: Path, target: Path) -> None:
    try:
        with open_file(source) as file:
            raw = file.read() if source.suffix == ".json" else file.read(FIRST_BYTES)
            end = 8 + int.from_bytes(raw[:8], "little")
            if source.suffix == ".safetensors" and FIRST_BYTES < end <= MAX_HEADER_BYTES:
                raw += file.read(end - len(raw))
        _write_start(target, raw, source.stat().st_size)
    except FileNotFoundError:
        raise MissingPathError(
            "A file in the Hub's cache is a link to nothing.",
            where=source,
            remedy="look again where the Hub can be reached",
        ) from None


def _write_start(target: Path, raw: bytes, nbytes: int | None) -> None:
    try:
        with target.open("wb") as file:
            file.write(raw)
            if nbytes is not None:
                file.truncate(nbytes)
    except OSError as error:  # no room, or a size that no file can have
        raise write_error(target, error) from None


def _name_neighbours(listing: Listing, files: list[str], top: Path) -> None:
    """The names of what lies beside the adapters, as empty files: some of them are remarked on."""
    folders = {os.path.dirname(name) for name in files}
    chosen = set(files)
    shown = 0
    for name in listing.sizes:
        pickle = name.endswith((".bin", ".pt", ".pth", ".ckpt", ".pkl"))
        if pickle and os.path.dirname(name) in folders and name not in chosen:
            (top / name).touch()
            shown += 1
        if shown >= _NAMES_SHOWN:
            return
