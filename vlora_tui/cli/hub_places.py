"""What commands do with a place on the Hub: fetch it, read its headers, never change it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from vlora_engine.adapters.address import address_of, is_address, parse_address
from vlora_engine.errors import ParameterError, VLoRAError
from vlora_tui.cli.output import Output


def fetch_first(out: Output, *places: str) -> list[str]:
    """The places with those on the Hub downloaded and pinned to their commits.

    Raises:
        NotFoundError, HubError, HubAccessError: The Hub does not give them.
        Cancelled: SIGTERM or Ctrl-C came while downloading.
    """
    if not any(map(is_address, places)):
        return list(places)
    from vlora_engine.hub.fetch import fetch
    from vlora_tui.cli.execute import stop_on_signals
    from vlora_tui.cli.progress import Watcher

    found = []
    with Watcher(out) as watcher, stop_on_signals(out) as stop:
        for place in places:
            if not is_address(place):
                found.append(place)
                continue
            address = parse_address(place)
            fetched = fetch(address.place, progress=watcher.on_progress, cancelled=stop.is_set)
            for remark in fetched.remarks:
                out.note(f"note: {remark.where}: {remark.what}")
            found.append(str(replace(fetched.address, task=address.task)))
    return found


def on_disk(out: Output, *places: str) -> list[str]:
    """The places with those on the Hub downloaded, as paths in the Hub's cache.

    Raises:
        As `fetch_first`.
    """
    from vlora_tui.pipeline.inputs import fetch_all

    return fetch_all(fetch_first(out, *places))[0]


def require_own(place: str) -> None:
    """Refuse to change a subspace that is the Hub's, or the copy of it in the cache.

    Raises:
        ParameterError: It is.
    """
    address = address_of(place) if not is_address(place) else place
    if address is not None:
        raise ParameterError(
            "A subspace on the Hub is not changed in place.",
            where=place,
            remedy=f"vlora-tui pull {address} -o DIR, change that, and push it",
        )


@contextmanager
def headers_of(place: str) -> Iterator[str | Path]:
    """A directory; of one on the Hub as much as its headers take, for as long as the block."""
    if not is_address(place):
        yield place
        return
    from vlora_engine.hub.remote import as_remote, shadow

    with shadow(parse_address(place)) as shade:
        try:
            yield shade.root
        except VLoRAError as error:
            raise as_remote(error, shade) from None
