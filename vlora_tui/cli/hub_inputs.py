"""Paths and Hub addresses given to commands: fetched first, or read by their headers alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vlora_engine.adapters.address import AdapterRef, address_of
from vlora_engine.errors import ParameterError, VLoRAError
from vlora_tui.cli.output import Output


def fetch_first(out: Output, *addresses: str) -> list[str]:
    """Download what lies on the Hub, pinned to its commit; paths on disk stay as they are.

    Raises:
        NotFoundError, HubError, HubAccessError: The Hub does not give them.
        Cancelled: SIGTERM or Ctrl-C came while downloading.
    """
    refs = [AdapterRef.parse(address) for address in addresses]
    if not any(ref.is_hub for ref in refs):
        return list(addresses)
    from vlora_engine.hub.fetch import fetch
    from vlora_tui.cli.execute import stop_on_signals
    from vlora_tui.cli.progress import Watcher

    found = []
    with Watcher(out) as watcher, stop_on_signals(out) as stop:
        for ref in refs:
            if not ref.is_hub:
                found.append(str(ref))
                continue
            fetched = fetch(ref.base, progress=watcher.on_progress, cancelled=stop.is_set)
            for remark in fetched.remarks:
                out.note(f"note: {remark.where}: {remark.what}")
            found.append(str(fetched.address.with_task(ref.task)))
    return found


def on_disk(out: Output, *addresses: str) -> list[str]:
    """Paths on disk for all: what lies on the Hub is downloaded into its cache.

    Raises:
        As `fetch_first`.
    """
    from vlora_tui.pipeline.inputs import fetch_all

    return [str(ref) for ref in fetch_all(fetch_first(out, *addresses))[0]]


def require_own(subspace: str) -> None:
    """Refuse to change a subspace that is the Hub's, or the copy of it in the cache.

    Raises:
        ParameterError: It is.
    """
    address = address_of(AdapterRef.parse(subspace))
    if address is not None:
        raise ParameterError(
            "A subspace on the Hub is not changed in place.",
            where=subspace,
            remedy=f"vlora-tui pull {address} -o DIR, change that, and push it",
        )


@contextmanager
def headers_of(path: str) -> Iterator[str | Path]:
    """Open a directory for its headers: of one on the Hub only these are fetched, into a copy."""
    from vlora_engine.hub.remote import as_remote, remote_headers

    ref = AdapterRef.parse(path)
    if not ref.is_hub:
        yield path
        return
    with remote_headers(ref) as headers:
        try:
            yield headers.root
        except VLoRAError as error:
            raise as_remote(error, headers) from None
