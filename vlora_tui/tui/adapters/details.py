"""The text of the details pane: an adapter, a subspace, its findings and their fixes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.style import Style
from rich.text import Text

from vlora_engine.manifest.readme import stored_in
from vlora_tui.tui.adapters.rows import Row
from vlora_tui.tui.key_names import key
from vlora_tui.tui.text import advice, clean, in_words, number, plural, tilde
from vlora_tui.utils.formatting import percent, size

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vlora_engine.errors import VLoRAError
    from vlora_engine.manifest.manifest import Manifest
    from vlora_tui.tui.adapters.reach import Applies

LABEL = 8


class Tones(dict[str, str | Style]):
    """Style by tone; a tone without a style is plain."""

    def __missing__(self, tone: str) -> str | Style:
        return ""


def facts(row: Row, members: int, tones: Mapping[str, str | Style]) -> Text:
    """What the headers of a row's adapter or subspace say.

    Args:
        members: How many adapters are in its group.
        tones: A style for each of muted, good, warning, error, title.
    """
    text = Text()
    text.append(clean(row.name) + "\n", style=tones["title"])
    text.append(tilde(row.path) + "\n", style=tones["muted"])
    if row.manifest is not None:
        _subspace(text, row.manifest, tones)
    elif row.error is None:
        _adapter(text, row, members, tones)
    if row.info is not None and row.info.format != "peft":
        _line(text, "format", clean(row.info.format), tones)
    return text


def findings(row: Row, tones: Mapping[str, str | Style]) -> Text:
    """What is remarkable about a row, and what mends it."""
    text = Text()
    if row.error is not None:
        _broken(text, row.error, tones)
        return text
    if row.is_subspace:
        text.append(f"A subspace. {key('adapters.go')} opens it to inspect and export its tasks.\n")
        return text
    for finding in row.findings:
        text.append(f"{finding.severity}  ", style=tones[finding.severity])
        text.append(clean(finding.what) + "\n")
        fix = advice(finding.remedy or "")
        if fix:
            text.append("  fix: ", style=tones["good"])
            text.append(clean(fix) + "\n")
    if row.checked is None:
        step = key("step.choose")
        text.append("Values not checked yet (NaN, zero B). ", style=tones["muted"])
        text.append(f"Step {step} reads them.\n", style=tones["muted"])
    elif not row.checked:
        text.append("All values checked: ok.\n", style=tones["good"])
    return text


def _adapter(text: Text, row: Row, members: int, tones: Mapping[str, str | Style]) -> None:
    info = row.info
    if info is None:
        return
    fits = "no other"
    if members > 1 and row.group:
        fits = f"{plural(members - 1, 'other')} (group {row.group})"
    _line(text, "base", clean(info.base_model or "not named"), tones)
    _line(text, "fits", fits, tones)
    scale = f"   scale {number(info.scale)}" if info.scale is not None else ""
    _line(text, "rank", f"{row.rank}   alpha {number(info.alpha)}{scale}", tones)
    if info.modules is not None:
        types = ", ".join(clean(kind) for kind in info.module_types)
        _line(text, "modules", f"{info.modules}: {types}", tones)
    if row.applies is not None:
        _line(text, "applies", _applies(row.applies), tones)
    rest = f"   {plural(info.rest, 'other tensor')}" if info.rest else ""
    _line(text, "size", f"{size(info.nbytes)}   {info.dtype or 'dtype not known'}{rest}", tones)


def _applies(applies: Applies) -> str:
    if applies.applied is None:
        return f"unknown: {clean(in_words(applies.unknown))}"
    told = f"to {applies.applied} of {plural(applies.total, 'module')} of {clean(applies.base)}"
    return (
        told
        if applies.applied == applies.total
        else f"{told}; {key('adapters.repair')} writes a repaired copy"
    )


def _subspace(text: Text, manifest: Manifest, tones: Mapping[str, str | Style]) -> None:
    _line(text, "base", clean(manifest.base_model or "not named"), tones)
    layers = plural(len(manifest.layers), "module")
    _line(text, "method", f"{manifest.method}   {layers}   {stored_in(manifest)}", tones)
    if not manifest.tasks:
        return
    if manifest.peer:
        _line(text, "size", f"{size(manifest.nbytes)}   a subspace of {manifest.peer}", tones)
        _line(text, "error", f"unknown: {manifest.peer} does not store it", tones)
        _line(text, "tasks", ", ".join(clean(task) for task in manifest.tasks), tones)
        return
    worst = manifest.worst
    _line(
        text,
        "size",
        f"{size(manifest.nbytes)}, {manifest.ratio:.3g}x smaller than the originals",
        tones,
    )
    error = f"{percent(manifest.mean_error)} mean"
    if worst is not None:
        error += f", {percent(worst.error)} worst ({clean(worst.id)})"
    _line(text, "error", error, tones)
    _line(text, "tasks", ", ".join(clean(task) for task in manifest.tasks), tones)


def _broken(text: Text, error: VLoRAError, tones: Mapping[str, str | Style]) -> None:
    text.append("cannot be used  ", style=tones["error"])
    text.append(clean(in_words(error.what)) + "\n")
    for label, found in (("expected", error.expected), ("found", error.found)):
        if found:
            text.append(f"  {label} ", style=tones["muted"])
            text.append(clean(in_words(found)) + "\n")
    fix = advice(error.remedy or "")
    if fix:
        text.append("  fix: ", style=tones["good"])
        text.append(clean(fix) + "\n")


def _line(text: Text, label: str, value: str, tones: Mapping[str, str | Style]) -> None:
    text.append(label.ljust(LABEL), style=tones["muted"])
    text.append(value + "\n")
