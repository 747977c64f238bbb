"""What PEFT would ignore of an adapter: keys it does not look for, modules it does not target."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache

from vlora_engine.adapters.model import ModuleShape
from vlora_engine.findings import Finding
from vlora_engine.formats.config import Settings
from vlora_engine.formats.layout import Layout
from vlora_engine.utils.naming import counted


def odd_name_findings(layout: Layout, where: str) -> Iterable[Finding]:
    """Keys that PEFT does not look for."""
    every = len(layout.odd) == 2 * len(layout.pairs)
    effect = "apply none of it" if every else f"ignore {counted(len(layout.odd), 'factor')}"
    bare = next((key for key, name in layout.odd.items() if not name.prefixed), None)
    if bare is not None:
        what = f"Keys without base_model.model.: PEFT would load the adapter and {effect}."
        remedy = "write it again; this engine writes the prefix"
        yield Finding("no-prefix", "warning", what, remedy, file=where, tensor=bare)
    wrapped = {k: n for k, n in layout.odd.items() if n.wrapper or n.lead or n.doubled}
    if wrapped:
        key, name = next(iter(wrapped.items()))
        part = name.wrapper or name.lead or "base_model.model a second time"
        what = (
            f"Keys with {part} in them, which no module is called: "
            f"PEFT would load the adapter and {effect}."
        )
        remedy = "write it again; this engine writes the modules' own names"
        yield Finding("wrapped-names", "warning", what, remedy, file=where, tensor=key)


def target_findings(layout: Layout, settings: Settings, where: str) -> Iterable[Finding]:
    """Modules that target_modules does not lead to, and what it lists in vain."""
    if not isinstance(settings.targets, tuple):
        return
    targets = frozenset(settings.targets)
    shapes = {module: pair.shape for module, pair in layout.pairs.items()}
    matched = {module: matching_targets(module, targets) for module in shapes}
    unlisted = _unlisted(shapes, {m for m, found in matched.items() if found}, ties=settings.ties)
    stale = sorted(targets.difference(*matched.values()))
    if stale:
        what = f"target_modules lists what no tensor belongs to: {', '.join(stale[:6])}."
        remedy = "remove them from target_modules; some servers refuse or pad them"
        yield Finding("stale-targets", "note", what, remedy, file=where)
    if unlisted:
        what = (
            f"{counted(len(unlisted), 'module')} not in target_modules, such as {unlisted[0]}: "
            "PEFT would ignore them."
        )
        remedy = "export it again; this engine lists what is there"
        yield Finding("unlisted-modules", "warning", what, remedy, module=unlisted[0], file=where)


def unlisted_modules(
    shapes: Mapping[str, ModuleShape], targets: frozenset[str], *, ties: bool
) -> list[str]:
    """The modules that PEFT would leave alone, as target_modules does not lead to them.

    It leads beyond the names that it lists: with ``ties`` (ensure_weight_tying) to what is tied to
    an embedding that is listed.
    """
    listed = {module for module in shapes if matching_targets(module, targets)}
    return _unlisted(shapes, listed, ties=ties)


def _unlisted(shapes: Mapping[str, ModuleShape], listed: set[str], *, ties: bool) -> list[str]:
    embeddings = [m for m in listed if ties and m.rpartition(".")[2] in _EMBEDDINGS]
    sizes = {frozenset((shapes[m].d_in, shapes[m].d_out)) for m in embeddings}
    return [
        module
        for module, shape in shapes.items()
        if module not in listed and frozenset((shape.d_in, shape.d_out)) not in sizes
    ]


_EMBEDDINGS = ("embed_tokens", "lm_head")  # peft/utils/constants.py: EMBEDDING_LAYER_NAMES


_INNER = ".base_layer.out_proj"  # which PEFT adapts with the MultiheadAttention around it


@lru_cache(4096)  # a folder has the same modules again and again
def matching_targets(module: str, targets: frozenset[str]) -> tuple[str, ...]:
    """The entries of a target_modules list that PEFT matches with ``module``: it or its ends."""
    module = module.removesuffix(_INNER)
    found = [module] if module in targets else []
    at = len(module)
    while (at := module.rfind(".", 0, at)) >= 0:
        if module[at + 1 :] in targets:
            found.append(module[at + 1 :])
    return tuple(found)
