"""Copy an adapter or a subspace from the Hub into a local directory."""

from __future__ import annotations

import shutil
from pathlib import Path

from vlora_engine.adapters.address import AdapterRef
from vlora_engine.errors import ParameterError
from vlora_engine.hub.fetch import Fetched, fetch
from vlora_engine.utils.output_checks import check_output, require_apart
from vlora_engine.utils.outputs import new_directory
from vlora_engine.utils.progress import CancelCheck, ProgressCallback


def pull(
    address: AdapterRef,
    out: str | Path,
    *,
    force: bool = False,
    progress: ProgressCallback | None = None,
    cancelled: CancelCheck | None = None,
) -> Fetched:
    """Copy the adapter, adapters or subspace at ``address`` to ``out``, through the Hub's cache.

    Raises:
        ParameterError: The address names a task, which is exported and not pulled.
        OutputExistsError: ``out`` is there, and not ``force``.
        ParameterError: ``out`` is, contains or lies in the place in the Hub's cache.
        NotFoundError, HubAccessError, HubError, StorageError, Cancelled: As `fetch`.
    """
    if address.task is not None:
        raise ParameterError(
            "A task of a subspace is exported, not pulled.",
            where=str(address),
            remedy=f"vlora-tui export {address.base} {address.task} -o {out}",
        )
    final = Path(out)
    check_output(final, force=force)
    found = fetch(address, progress=progress, cancelled=cancelled)
    start = f"{found.address.subfolder}/" if found.address.subfolder else ""
    require_apart([final], [found.path])
    with new_directory(final, force=force) as directory:
        for name in found.files:
            target = directory / name.removeprefix(start)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(found.path / name.removeprefix(start), target)
    return found
