"""Group modules by type: all ``q_proj`` of all layers are one family. No torch."""

from __future__ import annotations

from collections.abc import Iterable

from vlora_engine.utils.naming import unique_names


def module_families(modules: Iterable[str]) -> dict[str, str]:
    """For each module the family it belongs to, in the modules' order.

    A family is what is left of a module's name without its numbers, named by the shortest end of
    it that no other family has: ``h.0.attn.c_proj`` and ``h.0.mlp.c_proj`` of GPT-2 belong to
    ``attn.c_proj`` and ``mlp.c_proj``, ``layers.3.self_attn.q_proj`` of a Llama to ``q_proj``.
    """
    kinds = {module: _without_numbers(module) for module in modules}
    distinct = sorted(set(kinds.values()))
    names = dict(zip(distinct, unique_names(distinct), strict=True))
    return {module: names[kind].replace("/", ".") for module, kind in kinds.items()}


def _without_numbers(module: str) -> str:
    """The name's parts that are no numbers, as a path; a name of numbers alone stays."""
    parts = [part for part in module.split(".") if part and not part.isdecimal()]
    return "/".join(part.replace("/", "_") for part in parts) or module.replace("/", "_")
