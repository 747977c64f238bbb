"""Search the Hub for the adapters of a base model."""

from __future__ import annotations

from vlora_engine.adapters.address import AdapterRef
from vlora_engine.errors import HubError, NotFoundError, ParameterError
from vlora_engine.hub.client import api, hub_errors

LIMIT = 20
MAX_LIMIT = 1000


def search_adapters(base_model: str, *, limit: int = LIMIT) -> list[AdapterRef]:
    """The adapters that name this base model, those most downloaded first.

    Args:
        base_model: ``org/name`` as on the Hub.
        limit: How many at most.

    Raises:
        ParameterError: This is no model's name, or the limit is out of range.
        NotFoundError: No adapter names it.
        HubError: The Hub does not answer.
    """
    base = AdapterRef.on_hub(f"hf://{base_model}").repo if "/" in base_model else base_model.strip()
    if not base:
        raise ParameterError("A search needs a base model.", expected="ORG/NAME")
    if not 1 <= limit <= MAX_LIMIT:
        raise ParameterError(
            "The limit of a search is out of range.",
            expected=f"from 1 to {MAX_LIMIT}",
            found=str(limit),
        )
    with hub_errors(base):
        found = [
            model.id
            for model in api().list_models(
                filter=["peft", f"base_model:adapter:{base}"], sort="downloads", limit=limit
            )
        ]
    if not found:
        raise NotFoundError(
            "No adapter on the Hub names this base model.",
            where=base,
            remedy="write the name as it stands on the Hub, capitals included: org/name",
        )
    addresses = []
    for name in found:
        try:
            addresses.append(AdapterRef.on_hub(f"hf://{name}"))
        except ParameterError:
            continue  # a name of former times without an owner
    if not addresses:
        raise HubError("The Hub gave no name that can be read.", where=base)
    return addresses
