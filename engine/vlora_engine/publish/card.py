"""Write the model card of a push: content, errors, how to load it, licences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlora_engine._version import __version__
from vlora_engine.adapters.address import AdapterRef, snapshot_folder
from vlora_engine.errors import VLoRAError
from vlora_engine.formats.adapter_findings import looks_local
from vlora_engine.hub.listing import CARD, list_repository
from vlora_engine.manifest.manifest import Manifest
from vlora_engine.manifest.readme import made_from, stored_how
from vlora_engine.utils.naming import percent_text
from vlora_engine.utils.reading import open_file

_FENCE = "---"
_MAX_CARD = 2_000_000


@dataclass(frozen=True)
class Entry:
    """One adapter as the card lists it.

    Args:
        name: The task, or the adapter.
        folder: Where it lies in the repository; empty for a task of a subspace, and for the root.
        error: What compression cost it; None where nothing was compressed.
        source: Where it came from, where that is a place on the Hub.
        licence: Of the source, where that is known.
    """

    name: str
    folder: str = ""
    base_model: str | None = None
    rank: int | None = None
    alpha: float | None = None
    error: float | None = None
    source: str | None = None
    licence: str | None = None


def subspace_card(manifest: Manifest, entries: Sequence[Entry], repo: str) -> str:
    """The card of a whole subspace."""
    name = repo.rpartition("/")[2]
    worst = manifest.worst
    lines = [
        *front_matter(entries, "vlora-tui", ["lora", "peft", "vlora-subspace"]),
        f"# {name}",
        "",
        f"{len(manifest.tasks)} LoRA adapters over {len(manifest.layers)} modules of "
        f"{_code(manifest.base_model or 'a base model that is not named')}, compressed by "
        f"vlora-tui into one shared subspace: method "
        f"`{manifest.method}`, {stored_how(manifest)}, "
        f"{manifest.ratio:.3g} times smaller than the adapters were.",
        "",
        *_errors(manifest.mean_error, worst.error if worst else None),
        f"Written by vlora-tui {__version__}; the adapters that it was made from, all together: "
        f"sha256 `{made_from(manifest)}`.",
        "",
        *_table(entries),
        "## Use",
        "",
        *_block(
            f"vlora-tui info hf://{repo}",
            f"vlora-tui export hf://{repo} TASK -o OUT   # one task as a PEFT adapter",
            f"vlora-tui pull hf://{repo} -o DIR          # all of it",
        ),
        *_block(
            "from vlora_engine import SharedSubspace",
            f'subspace = SharedSubspace.load("hf://{repo}")',
            "adapter = subspace.reconstruct(TASK)",
            kind="python",
        ),
        *_licences(entries),
    ]
    return "\n".join(lines)


def adapters_card(entries: Sequence[Entry], repo: str, *, compressed: bool) -> str:
    """The card of adapters, each in a folder of its own, or one in the root."""
    is_single = len(entries) == 1 and not entries[0].folder
    what = (
        "A LoRA adapter"
        if is_single
        else f"{len(entries)} LoRA adapters, each in a folder of its own"
    )
    bases = _bases(entries)
    errors = [entry.error for entry in entries if entry.error is not None]
    base = repr(bases[0]) if len(bases) == 1 else "BASE"
    folder = "" if is_single else ', subfolder="FOLDER"'
    below = "" if is_single else "/FOLDER"
    lines = [
        *front_matter(entries, "peft", ["lora", "peft"]),
        f"# {repo.rpartition('/')[2]}",
        "",
        f"{what}, for {', '.join(map(_code, bases)) or 'a base model that is not named'}."
        + (" Written out of a compressed subspace by vlora-tui." if compressed else ""),
        "",
        *(_errors(sum(errors) / len(errors), max(errors)) if errors else []),
        *([] if is_single else _table(entries)),
        "## Use",
        "",
        *_block(
            "from peft import PeftModel",
            "from transformers import AutoModelForCausalLM",
            f"base = AutoModelForCausalLM.from_pretrained({base})",
            f'model = PeftModel.from_pretrained(base, "{repo}"{folder})',
            kind="python",
        ),
        *_block(
            f"vlora-tui inspect hf://{repo}{below}",
            f"vlora-tui pull hf://{repo}{below} -o DIR",
        ),
        *_licences(entries),
    ]
    return "\n".join(lines)


def front_matter(entries: Sequence[Entry], library: str, tags: Sequence[str]) -> list[str]:
    """The table at the head of a card that the Hub reads, the licence in it if there is but one."""
    import yaml

    table: dict[str, Any] = {"library_name": library, "tags": list(tags)}
    bases = _bases(entries)
    if bases:
        table["base_model"] = bases[0] if len(bases) == 1 else bases
        table["base_model_relation"] = "adapter"
    licences = {entry.licence for entry in entries}
    if len(licences) == 1 and None not in licences:
        table["license"] = licences.pop()
    text = yaml.safe_dump(table, sort_keys=False, allow_unicode=True)
    return [_FENCE, *text.splitlines(), _FENCE, ""]


def source_licence(source: str | None) -> str | None:
    """The licence that the card of a source names, here or on the Hub; None where none is known.

    Args:
        source: The address of a place on the Hub, or a folder here.
    """
    if source is None:
        return None
    address = AdapterRef.parse(source)
    if not address.is_hub:
        return _named_licence(read_front_matter(Path(source) / CARD))
    here = snapshot_folder(address.repo, address.revision or "") / CARD
    found = _named_licence(read_front_matter(here))
    if found is not None:
        return found
    try:
        root = AdapterRef.of_repo(address.repo, address.revision)
        return _named_licence(list_repository(root).card)
    except VLoRAError:
        return None  # gone, renamed or out of reach: then it is not known


def read_front_matter(path: Path) -> Mapping[str, Any]:
    """The table at the head of a card; empty where there is none."""
    import yaml

    try:
        with open_file(path) as file:
            text = file.read(_MAX_CARD).decode("utf-8", "replace")
    except OSError:
        return {}
    parts = text.split(f"{_FENCE}\n", 2) if text.startswith(f"{_FENCE}\n") else []
    if len(parts) < 3:
        return {}
    try:
        table = yaml.safe_load(parts[1])
    except yaml.YAMLError:
        return {}
    return table if isinstance(table, dict) else {}


def _named_licence(card: Mapping[str, Any]) -> str | None:
    name = card.get("license_name") if card.get("license") == "other" else card.get("license")
    if isinstance(name, list):
        name = ", ".join(str(part) for part in name)
    return str(name).strip() or None if name else None


def _bases(entries: Sequence[Entry]) -> list[str]:
    """The base models that are names on the Hub; local paths are private and left out."""
    named = dict.fromkeys(entry.base_model for entry in entries if entry.base_model)
    return [name for name in named if name and is_public(name)]


def is_public(base_model: str) -> bool:
    """Whether a base model's name is one on the Hub, and no path."""
    return not looks_local(base_model) and base_model.isprintable()


def _errors(mean: float, worst: float | None) -> list[str]:
    if worst is None:
        return []
    return [
        "Relative error of the weight change dW, measured against the originals: "
        f"mean {percent_text(mean)}, worst {percent_text(worst)}.",
        "",
    ]


def _table(entries: Sequence[Entry]) -> list[str]:
    columns = {
        "task": [_cell(entry.name) for entry in entries],
        "folder": [_cell(entry.folder) for entry in entries],
        "error of dW": ["" if e.error is None else percent_text(e.error) for e in entries],
        "rank": ["" if e.rank is None else str(e.rank) for e in entries],
        "alpha": ["" if e.alpha is None else f"{e.alpha:g}" for e in entries],
        "source": [_cell(entry.source or "") for entry in entries],
        "licence": [_cell(entry.licence or "") for entry in entries],
    }
    shown = {name: cells for name, cells in columns.items() if any(cells)}
    rows = [list(shown), ["---"] * len(shown), *map(list, zip(*shown.values(), strict=True))]
    return [*(f"| {' | '.join(row)} |" for row in rows), ""]


def _licences(entries: Sequence[Entry]) -> list[str]:
    named = sorted({entry.licence for entry in entries if entry.licence})
    unnamed = sum(entry.licence is None for entry in entries)
    lines = ["## Licence", ""]
    if named and not unnamed and len(named) == 1:
        lines.append(f"Every source is under `{named[0]}`.")
    else:
        if named:
            lines.append(f"The sources name these licences: {', '.join(map(_code, named))}.")
        if unnamed:
            lines.append(f"Of {unnamed} of {len(entries)} sources no licence is known.")
        lines.append("What may be done with this depends on each source, and on the base model.")
    return [*lines, ""]


def _block(*lines: str, kind: str = "bash") -> list[str]:
    return [f"```{kind}", *lines, "```", ""]


def _cell(text: str) -> str:
    """A name, which may be anything, as one harmless cell of a table."""
    if not text:
        return ""
    plain = "".join(c if c.isprintable() else " " for c in text)
    return _code(plain.replace("|", "\\|"))


def _code(text: str) -> str:
    return f"`{text.replace('`', chr(39))}`"
