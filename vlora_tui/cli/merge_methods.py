"""``merge --list-methods``: every method, what it acts on and claims, and other packages' names."""

from __future__ import annotations

from typing import Any

from vlora_engine.merging.methods import DEFAULT_METHOD, MERGE_METHODS, PEFT_METHODS
from vlora_engine.merging.registry import IDENTITIES, MergeRegistry
from vlora_tui.cli.output import Output
from vlora_tui.recipe.mergekit_methods import ALIASES


def show_methods(out: Output) -> None:
    """The methods, their parameters, and mergekit's names for them."""
    out.json(
        "merge-methods",
        {
            "methods": _method_rows(MERGE_METHODS),
            "peft": _method_rows(PEFT_METHODS),
            "mergekit": {name: alias.text for name, alias in ALIASES.items()},
            "identities": IDENTITIES,
        },
    )
    for method in MERGE_METHODS.values():
        name = DEFAULT_METHOD if DEFAULT_METHOD in method.aliases else method.name
        out.text(f"{name}: {method.summary}")
        aliases = [a for a in (method.name, *method.aliases) if a != name]
        if aliases:
            out.text(f"    also called  {', '.join(aliases)}")
        out.text(f"    acts on      {method.acts_on}")
        out.text(f"    weights      {method.weighting}; by default {method.default_weights} each")
        for parameter in method.parameters:
            default = "" if parameter.default is None else f", {parameter.default:g} by default"
            flag = f"--{parameter.name.replace('_', '-')}"
            out.text(f"    {flag:<12} {parameter.summary}; {parameter.range}{default}")
        out.text(f"    identities   {', '.join(sorted(method.identities))}")
        out.text(f"    from         {method.reference}")
        if method.caution:
            out.text(f"    caution      {method.caution}")
        out.essence(name)
    out.text()
    out.text("Identities:")
    for name, words in IDENTITIES.items():
        out.text(f"    {name:<12} {words}")
    out.text()
    out.text(f"--dialect peft: {', '.join(PEFT_METHODS)}")
    out.text("merge_method of a mergekit file:")
    for name, alias in ALIASES.items():
        out.text(f"    {name:<17} {alias.text}")


def _method_rows(registry: MergeRegistry) -> list[dict[str, Any]]:
    return [
        {
            "name": method.name,
            "aliases": list(method.aliases),
            "summary": method.summary,
            "acts_on": method.acts_on,
            "weights": method.weighting,
            "normalises_weights": method.normalises_weights,
            "default_weights": method.default_weights,
            "adapters": method.adapters,
            "order_independent": method.order_independent,
            "identities": sorted(method.identities),
            "reference": method.reference,
            "caution": method.caution,
            "parameters": [
                {"name": p.name, "default": p.default, "range": p.range, "summary": p.summary}
                for p in method.parameters
            ],
        }
        for method in registry.values()
    ]
