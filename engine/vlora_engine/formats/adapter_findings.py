"""Findings about one adapter that headers and names alone can show."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from vlora_engine.findings import Finding
from vlora_engine.formats.base import PICKLES, Probe
from vlora_engine.formats.config import PEFT_DEFAULT_ALPHA, PEFT_DEFAULT_RANK, Settings
from vlora_engine.formats.contents import Contents
from vlora_engine.formats.layout import Layout
from vlora_engine.formats.peft_ignores import odd_name_findings, target_findings
from vlora_engine.formats.rest_tensors import rest_findings
from vlora_engine.utils.naming import counted


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
        *target_findings(layout, settings, str(probe.config_path)),
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
            f"{counted(len(beside), 'pickle')} beside the adapter, never opened: "
            f"{', '.join(beside[:4])}."
        )
        yield Finding("pickle-beside", "note", what, file=str(probe.directory / beside[0]))


def _no_modules(where: str) -> Finding:
    what = "No module is read as a product of factors; all tensors are kept as they are."
    return Finding("no-modules", "warning", what, file=where)


def _layout_findings(layout: Layout, where: str) -> Iterable[Finding]:
    if not layout.pairs:
        yield _no_modules(where)
    yield from odd_name_findings(layout, where)
    if layout.adapter_name:
        what = (
            f"Keys with the adapter's name inside ({layout.adapter_name}), as in a raw state dict."
        )
        yield Finding("named-keys", "note", what, file=where)
    ranks = {pair.shape.rank for pair in layout.pairs.values()}
    if len(ranks) > 1:
        what = f"Ranks from {min(ranks)} to {max(ranks)} in one adapter."
        yield Finding("mixed-ranks", "note", what, file=where)


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
                f"Several entries of {name} match {counted(len(unsure), 'module')}, such as "
                f"{unsure[0]}; the first one counts, and PEFT has sorted them when it saved."
            )
            remedy = "write full module names if another one was meant"
            yield Finding(
                "overlapping-patterns", "warning", what, remedy, module=unsure[0], file=where
            )


def file_size(path: Path) -> int:
    """The bytes of a file; 0 where that is not known."""
    try:
        return path.stat().st_size
    except OSError:
        return 0
