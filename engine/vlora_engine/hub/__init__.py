"""The Hugging Face Hub in and out. Importing this loads neither huggingface_hub nor torch.

An adapter on the Hub is named ``hf://org/name[@revision][/subfolder]``; a task of a subspace
there ``hf://org/name[@revision][/subfolder]:TASK``. Headers are read remotely (`remote`); what is
to be worked on is fetched into huggingface_hub's own cache (`fetch`), at one commit that is known.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vlora_engine.adapters.address import (
    HubAddress,
    address_of,
    is_address,
    parse_address,
)

if TYPE_CHECKING:
    from vlora_engine.adapters.model import LoRAWeights

__all__ = [
    "HubAddress",
    "address_of",
    "is_address",
    "load_adapter_from_hub",
    "parse_address",
]


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
    from vlora_engine.formats import load_adapter

    address = parse_address(repo_id if is_address(repo_id) else f"hf://{repo_id}")
    asked = HubAddress(
        address.repo, revision or address.revision, subfolder.strip("/") or address.subfolder
    )
    return load_adapter(str(asked), allow_unsupported=allow_unsupported)
