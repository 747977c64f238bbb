"""Findings about one adapter that headers and names alone can show."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from vlora_engine.adapters.model import ModuleShape
from vlora_engine.findings import Finding
from vlora_engine.formats.base import PICKLES, Probe
from vlora_engine.formats.config import PEFT_DEFAULT_ALPHA, PEFT_DEFAULT_RANK, Settings
from vlora_engine.formats.contents import Contents
from vlora_engine.formats.layout import Layout
from vlora_engine.formats.rest_tensors import rest_findings


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
        *rest_findings(layout.rest, where, file_size(contents.path)),
    )


def opaque_findings(probe: Probe, contents: Contents, settings: Settings) -> tuple[Finding, ...]:
    """The findings about an adapter whose tensors are not understood: nothing about these."""
    return (
        _no_modules(str(contents.path)),
        *_config_findings(probe, settings),
        *_pickles_beside(probe, contents.path),
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


def _no_modules(where: str) -> Finding:
    what = "No module is read as a product of factors; all tensors are kept as they are."
    return Finding("no-modules", "warning", what, file=where)


def _layout_findings(layout: Layout, where: str) -> Iterable[Finding]:
    if not layout.pairs:
        yield _no_modules(where)
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
            f"{_count(len(unlisted), 'module')} not in target_modules, such as {unlisted[0]}: "
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


def matching_targets(module: str, targets: frozenset[str]) -> list[str]:
    """The entries of a target_modules list that PEFT matches with ``module``: it or its ends."""
    module = module.removesuffix(_INNER)
    found = [module] if module in targets else []
    at = len(module)
    while (at := module.rfind(".", 0, at)) >= 0:
        if module[at + 1 :] in targets:
            found.append(module[at + 1 :])
    return found


def file_size(path: Path) -> int:
    """The bytes of a file; 0 where that is not known."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _count(number: int, singular: str, plural: str | None = None) -> str:
    return f"{number:,} {singular if number == 1 else plural or singular + 's'}"
