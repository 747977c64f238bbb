"""Adapters on disk: one module a format, one registry, four verbs.

`open_adapter` reads headers and then one module at a time; `load_adapter` reads everything;
`save_adapter` writes a PEFT directory; `find_adapters` lists what lies below a directory.
"""

from __future__ import annotations

import os
from pathlib import Path

from vlora_engine.adapters.address import AdapterRef
from vlora_engine.adapters.model import AdapterSource, LoRAWeights, to_memory
from vlora_engine.catalog.locate import (
    MAX_ADAPTERS,
    MAX_DEPTH,
    existing_path,
    locate,
    location,
    nothing_error,
    walk,
)
from vlora_engine.catalog.read import is_subspace
from vlora_engine.catalog.subspace_tasks import PeerFormat, SubspaceFormat, open_task
from vlora_engine.errors import MissingPathError, UnsupportedAdapterError
from vlora_engine.formats.base import Format, Inspection, Location, Probe, Registry
from vlora_engine.formats.diffusion import DIFFUSERS, KOHYA, NUMBERED
from vlora_engine.formats.foreign import FOREIGN, UNKNOWN
from vlora_engine.formats.gguf import GgufFormat
from vlora_engine.formats.mlx import MLX
from vlora_engine.formats.peft import PeftFormat
from vlora_engine.interop.names import PEERS

__all__ = [
    "FORMATS",
    "Format",
    "Inspection",
    "Location",
    "Probe",
    "find_adapters",
    "load_adapter",
    "open_adapter",
]

FORMATS = Registry()
_ALL: tuple[Format, ...] = (
    SubspaceFormat(),
    *(PeerFormat(peer) for peer in PEERS),
    MLX,
    *FOREIGN,
    KOHYA,
    DIFFUSERS,
    NUMBERED,
    GgufFormat(),
    PeftFormat(),
    UNKNOWN,
)
for _form in _ALL:
    FORMATS.add(_form)


def open_adapter(
    path: str | Path | AdapterRef, *, allow_unsupported: bool = False
) -> AdapterSource:
    """The adapter at ``path``: a directory, a file, or ``DIR:TASK`` for a task of a subspace.

    Only headers are read (a .bin is mapped by torch); tensors come with `AdapterSource.read`.

    Args:
        path: Where it lies.
        allow_unsupported: Carry along what would be refused (DoRA, another peft_type...): what
            is no product of two factors becomes rest tensors, bit for bit.

    Raises:
        NotFoundError: There is nothing there, or no adapter in it.
        AdapterError: It is damaged, incomplete or of a kind that is refused.
    """
    task = task_of_subspace(path)
    if task is not None:
        return open_task(*task)
    place = existing_path(path)
    probe = Probe(place)
    form = FORMATS.find(probe)
    if form is None:
        raise _unrecognised_error(place)
    return form.open(probe, allow_unsupported=allow_unsupported)


def task_of_subspace(path: str | Path | AdapterRef) -> tuple[Path, str] | None:
    """Directory and task, if ``path`` is ``DIR:TASK`` of a subspace (and no file of that name)."""
    ref = locate(path)
    if ref.task is None:
        return None
    directory = existing_path(ref) if ref.is_hub else ref.expanded
    return (directory, ref.task) if is_subspace(directory) else None


def load_adapter(path: str | Path | AdapterRef, *, allow_unsupported: bool = False) -> LoRAWeights:
    """The adapter at ``path`` in memory: every tensor of it, in its own dtype, bit for bit.

    Unlike the first library's function of this name, it keeps alpha, task type, heads and every
    other tensor, and refuses what it does not understand instead of dropping it.

    Raises:
        NotFoundError, AdapterError: As `open_adapter`.
    """
    return to_memory(open_adapter(path, allow_unsupported=allow_unsupported))


def find_adapters(
    path: str | Path | AdapterRef, *, max_depth: int = MAX_DEPTH, max_adapters: int = MAX_ADAPTERS
) -> list[Location]:
    """Every adapter at or below ``path``, also those that opening will refuse.

    Raises:
        NotFoundError: There is nothing there, or no adapter in it.
    """
    root = existing_path(path)
    if not os.path.isdir(root):
        probe = Probe(root)
        form = FORMATS.find(probe)
        if form is None:
            raise _unrecognised_error(root)
        return [location(probe, form)]
    found = [location(*each) for each in walk(FORMATS, root, max_depth, max_adapters)]
    if not found:
        raise nothing_error(root)
    return found


def _unrecognised_error(path: Path) -> Exception:
    if os.path.isdir(path):
        below = list(walk(FORMATS, path, MAX_DEPTH, 1))
        if below:
            return MissingPathError(
                "This is a folder of adapters, not an adapter.",
                where=path,
                found=f"adapters below, such as {below[0][0].path}",
                remedy="name one of them",
            )
        return nothing_error(path)
    return UnsupportedAdapterError(
        "The file is of no format known here.",
        where=path,
        expected="a PEFT directory or a .safetensors file",
        remedy="point at the directory that PEFT's model.save_pretrained wrote",
    )


def load_adapter_from_hub(
    repo_id: str,
    revision: str | None = None,
    *,
    subfolder: str = "",
    allow_unsupported: bool = False,
) -> LoRAWeights:
    """The adapter in a repository of the Hub, in memory.

    Only the adapter's own files are downloaded, into huggingface_hub's cache. ``source`` of what
    comes back lies in that cache, at the commit that ``revision`` stood for.

    Args:
        repo_id: ``org/name``, or all of it as ``hf://org/name@revision/subfolder``.
        revision: A branch, a tag or a commit; by default the main branch.
        subfolder: Where in the repository, if not in its root.
        allow_unsupported: As for `vlora_engine.load_adapter`.

    Raises:
        ParameterError: This is no repository's name.
        NotFoundError: There is no such repository, revision, or adapter in it.
        HubAccessError: It is gated, or the token does not allow it.
        HubError: The Hub cannot be reached, and the adapter is not in the cache.
        AdapterError: As for `vlora_engine.load_adapter`.
    """
    address = AdapterRef.repository(repo_id)
    wanted = AdapterRef.of_repo(
        address.repo, revision or address.revision, subfolder.strip("/") or address.subfolder
    )
    return load_adapter(wanted, allow_unsupported=allow_unsupported)
