"""Findings about one adapter that headers and names alone can show."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from pathlib import Path

from vlora_engine.findings import Finding
from vlora_engine.formats.base import PICKLES, Probe
from vlora_engine.formats.config import PEFT_DEFAULT_ALPHA, PEFT_DEFAULT_RANK, Settings
from vlora_engine.formats.contents import Contents
from vlora_engine.formats.layout import Layout
from vlora_engine.utils.safetensors_file import ITEM_BYTES

WHOLE_MATRIX = 64  # rows and columns; what is narrower is a head


def adapter_findings(
    probe: Probe, contents: Contents, layout: Layout, settings: Settings
) -> tuple[Finding, ...]:
    """The findings about an adapter whose header has been read."""
    where = str(contents.path)
    return (
        *_config_findings(probe, settings),
        *_pickles_beside(probe, contents.path),
        *_layout_findings(layout, where),
        *_pattern_findings(layout, settings, str(probe.config_path)),
        *_target_findings(layout, settings, str(probe.config_path)),
        *_rest_findings(layout, where),
    )


def pickle_findings(probe: Probe, weights: Path, settings: Settings) -> tuple[Finding, ...]:
    """The findings about an adapter whose tensors are in a pickle, not opened yet."""
    return (
        unread_pickle(weights),
        *_config_findings(probe, settings),
        *_pickles_beside(probe, weights),
    )


def unread_pickle(weights: Path) -> Finding:
    """The finding about tensors in a pickle, which was not opened."""
    what = "The tensors are in a pickle; modules and shapes are read only when it is used."
    remedy = "save the adapter again as safetensors"
    return Finding("pickle-weights", "warning", what, remedy, file=str(weights))


def _config_findings(probe: Probe, settings: Settings) -> Iterable[Finding]:
    config, where = probe.config, str(probe.config_path)
    if config.get("peft_type") is None:
        what = "The config names no peft_type: PEFT itself cannot load it."
        remedy = 'add "peft_type": "LORA"'
        yield Finding("no-peft-type", "warning", what, remedy, file=where)
    for name, value in (("r", PEFT_DEFAULT_RANK), ("lora_alpha", PEFT_DEFAULT_ALPHA)):
        if config.get(name) is None:
            what = f"The config names no {name}; PEFT takes {value}, and so does this engine."
            remedy = f"write the {name} that it was trained with"
            yield Finding(f"no-{name.replace('_', '-')}", "warning", what, remedy, file=where)
    if settings.alpha == 0:
        yield Finding(
            "zero-alpha", "warning", "An alpha of 0: the adapter does nothing.", file=where
        )
    base = settings.base_model
    if base is None:
        what = "The config names no base model."
        remedy = "write base_model_name_or_path"
        yield Finding("no-base-model", "note", what, remedy, file=where)
    elif looks_local(base):
        what = f"The base model is a path on the machine of the training: {base}."
        remedy = "write its public name into base_model_name_or_path"
        yield Finding("local-base-model", "note", what, remedy, file=where)


def looks_local(base_model: str) -> bool:
    """Whether a base model's name is a path rather than a name on the Hub."""
    return (
        base_model.startswith(("/", ".", "~"))
        or "\\" in base_model
        or base_model.strip("/").count("/") > 1
    )


def _pickles_beside(probe: Probe, weights: Path) -> Iterable[Finding]:
    beside = sorted(name for name in probe.names if name.endswith(PICKLES) and name != weights.name)
    if beside:
        what = (
            f"{_count(len(beside), 'pickle')} beside the adapter, never opened: "
            f"{', '.join(beside[:4])}."
        )
        yield Finding("pickle-beside", "note", what, file=str(probe.directory / beside[0]))


def _layout_findings(layout: Layout, where: str) -> Iterable[Finding]:
    if not layout.pairs:
        what = "No module is read as a product of factors; all tensors are kept as they are."
        yield Finding("no-modules", "warning", what, file=where)
    yield from _name_findings(layout, where)
    if layout.adapter_name:
        what = (
            f"Keys with the adapter's name inside ({layout.adapter_name}), as in a raw state dict."
        )
        yield Finding("named-keys", "note", what, file=where)
    ranks = {pair.shape.rank for pair in layout.pairs.values()}
    if len(ranks) > 1:
        what = f"Ranks from {min(ranks)} to {max(ranks)} in one adapter."
        yield Finding("mixed-ranks", "note", what, file=where)


def _name_findings(layout: Layout, where: str) -> Iterable[Finding]:
    """Keys that PEFT does not look for."""
    every = len(layout.odd) == 2 * len(layout.pairs)
    effect = "apply none of it" if every else f"ignore {_count(len(layout.odd), 'factor')}"
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


def _pattern_findings(layout: Layout, settings: Settings, where: str) -> Iterable[Finding]:
    """Modules that several entries match: PEFT sorts them on saving, though their order decides."""
    for name, table in (
        ("rank_pattern", settings.rank_pattern),
        ("alpha_pattern", settings.alpha_pattern),
    ):
        if not table:
            continue
        unsure = [module for module in layout.pairs if len(set(table.all(module))) > 1]
        if unsure:
            what = (
                f"Several entries of {name} match {_count(len(unsure), 'module')}, such as "
                f"{unsure[0]}; the first one counts, and PEFT has sorted them when it saved."
            )
            remedy = "write full module names if another one was meant"
            yield Finding(
                "overlapping-patterns", "warning", what, remedy, module=unsure[0], file=where
            )


def _target_findings(layout: Layout, settings: Settings, where: str) -> Iterable[Finding]:
    if not isinstance(settings.targets, tuple):
        return
    targets = frozenset(settings.targets)
    hit: set[str] = set()
    unlisted = []
    for module in layout.pairs:
        matches = matching_targets(module, targets)
        hit.update(matches)
        if not matches:
            unlisted.append(module)
    stale = sorted(targets - hit)
    if stale:
        what = f"target_modules lists what no tensor belongs to: {', '.join(stale[:6])}."
        remedy = "remove them from target_modules; some servers refuse or pad them"
        yield Finding("stale-targets", "note", what, remedy, file=where)
    if unlisted:
        what = (
            f"{_count(len(unlisted), 'module')} not in target_modules, such as {unlisted[0]}: "
            "PEFT would ignore them."
        )
        remedy = "export it again; this engine lists what is there"
        yield Finding("unlisted-modules", "warning", what, remedy, module=unlisted[0], file=where)


def matching_targets(module: str, targets: frozenset[str]) -> list[str]:
    """The entries of a target_modules list that PEFT matches with ``module``: it or its ends."""
    found = [module] if module in targets else []
    at = len(module)
    while (at := module.rfind(".", 0, at)) >= 0:
        if module[at + 1 :] in targets:
            found.append(module[at + 1 :])
    return found


def _rest_findings(layout: Layout, where: str) -> Iterable[Finding]:
    if not layout.rest:
        return
    what = (
        f"{_count(len(layout.rest), 'tensor')} outside the modules (heads, biases, and so on), "
        "kept bit for bit."
    )
    yield Finding("rest-tensors", "note", what, file=where)
    whole = [
        (name, math.prod(shape) * ITEM_BYTES[dtype])
        for name, (dtype, shape) in layout.rest.items()
        if len(shape) > 1 and min(shape) >= WHOLE_MATRIX and not _BASE_COPY.search(name)
    ]
    if whole:
        what = (
            f"{_count(len(whole), 'whole matrix', 'whole matrices')} "
            f"({sum(size for _, size in whole) / 1e6:.1f} MB), such as {whole[0][0]}: "
            "no low rank, so no saving there."
        )
        yield Finding("whole-matrices", "note", what, file=where)
    copies = [name for name in layout.rest if _BASE_COPY.search(name)]
    if copies:
        what = f"{_count(len(copies), 'tensor')} of the base model inside, such as {copies[0]}."
        yield Finding("base-copies", "note", what, file=where)


_BASE_COPY = re.compile(r"\.(base_layer\.weight$|original_module\.)")


def _count(number: int, singular: str, plural: str | None = None) -> str:
    return f"{number:,} {singular if number == 1 else plural or singular + 's'}"
