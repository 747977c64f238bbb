"""Write where an adapter comes from beside its tensors, and read it back. No torch.

One JSON object under `KEY`, in the metadata of safetensors and as a key of GGUF; its fields are in
docs/formats.md. It holds no path, no time and no machine, so that the same inputs give the same
bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlora_engine._version import __version__
from vlora_engine.adapters.model import LoRAWeights, provenance_of
from vlora_engine.adapters.provenance import Origin
from vlora_engine.errors import VLoRAError
from vlora_engine.formats.adapter_findings import looks_local
from vlora_engine.formats.gguf_header import is_gguf, read_gguf_header
from vlora_engine.utils.file_names import ADAPTER_CONFIG, ADAPTER_GGUF, ADAPTER_WEIGHTS, MLX_FILE
from vlora_engine.utils.files import sha256_file
from vlora_engine.utils.reading import open_file
from vlora_engine.utils.safetensors_file import (
    MAX_HEADER_BYTES,
    Header,
    read_bytes,
    read_header,
)
from vlora_engine.utils.tensor_writer import element_bytes

if TYPE_CHECKING:
    from torch import Tensor

KEY = "vlora_tui.provenance"
CARD = "README.md"
TOOL = f"vlora-tui {__version__}"
_TENSORS = (".safetensors", ".gguf", ".bin", ".pt", ".ckpt")
_LONGEST = 4_000_000  # characters of a record that are parsed
_FEW = 12  # sources that a card names one by one


@dataclass(frozen=True)
class Record:
    """What a file says of where it comes from.

    Args:
        tool: Program and version that wrote it.
        content: sha256 of the tensors as they were written.
        base: The base model's name, where it is no path.
        revision: Of the base.
        sources: Name and sha256 of the files of each.
        steps: What was done, in order.
    """

    tool: str
    content: str
    base: str = ""
    revision: str = ""
    sources: tuple[Mapping[str, Any], ...] = ()
    steps: tuple[Mapping[str, Any], ...] = field(default_factory=tuple)

    def as_dict(self) -> dict[str, Any]:
        """All of it as values for JSON."""
        row: dict[str, Any] = {"tool": self.tool, "content": self.content}
        if self.base:
            row["base"] = self.base
        if self.revision:
            row["revision"] = self.revision
        return {
            **row,
            "sources": [dict(source) for source in self.sources],
            "steps": [dict(step) for step in self.steps],
        }

    @property
    def text(self) -> str:
        """The one line that is written."""
        return json.dumps(self.as_dict(), sort_keys=True, separators=(",", ":"))

    @property
    def words(self) -> str:
        """What was done of what, in one line."""
        done = ", then ".join(_settings_words(step) for step in self.steps) or "written"
        names = [str(source.get("name") or "an adapter") for source in self.sources]
        many = f" and {len(names) - _FEW} more" if len(names) > _FEW else ""
        of = f" of {', '.join(names[:_FEW])}{many}" if names else ""
        on = f", for {self.base}{f' at {self.revision}' if self.revision else ''}"
        cost = "".join(map(_error_words, self.steps))
        return f"{done}{of}{on if self.base else ''}{cost}; by {self.tool}"

    @property
    def card(self) -> str:
        """The README.md beside the adapter."""
        front = ["---", "library_name: peft", "tags: [lora]"]
        if self.base:
            front.append(f"base_model: {json.dumps(self.base)}")
        lines = [*front, "---", "", "# A LoRA adapter", "", f"Written by {self.tool}.", ""]
        if self.base:
            at = f", revision `{_code(self.revision)}`" if self.revision else ""
            lines += [f"Base model: `{_code(self.base)}`{at}.", ""]
        if self.steps:
            lines += [*(f"{i}. {_step_words(s)}" for i, s in enumerate(self.steps, start=1)), ""]
        if self.sources:
            lines += ["| source | of | sha256 |", "|---|---|---|"]
            for source in self.sources[:_FEW]:
                for name, digest in sorted(hashes_of(source).items()):
                    label = _code(str(source.get("name") or "-"))
                    lines.append(f"| {label} | {_code(name)} | `{digest}` |")
            if len(self.sources) > _FEW:
                rest = len(self.sources) - _FEW
                lines.append(f"| {rest} more, in the file's metadata | | |")
            lines.append("")
        lines += [f"sha256 of the tensors as they were written: `{self.content}`", ""]
        return "\n".join(lines)


def record_of(weights: LoRAWeights, content: str) -> Record:
    """What to write beside ``weights``: its sources are hashed here, once each."""
    known = provenance_of(weights)
    base = weights.metadata.get("base_model_name_or_path")
    named = isinstance(base, str) and bool(base) and not looks_local(base)
    revision = weights.metadata.get("revision") if named else None
    return Record(
        TOOL,
        content,
        str(base) if named else "",
        revision if isinstance(revision, str) else "",
        tuple(source for origin in known.origins if (source := _source(origin))),
        tuple(_plain(step) for step in known.steps),
    )


def content_of(tensors: Iterable[tuple[str, Iterable[Any]]]) -> str:
    """sha256 of tensors by name, each in pieces of bytes: what `Record.content` is."""
    whole = hashlib.sha256()
    for name, pieces in sorted(tensors, key=lambda item: item[0]):
        own = hashlib.sha256()
        for piece in pieces:
            own.update(piece)
        whole.update(f"{name}\0{own.hexdigest()}\n".encode())
    return whole.hexdigest()


def recorded(weights: LoRAWeights, tensors: Mapping[str, Tensor]) -> Record:
    """The record of ``weights`` that are about to be written as these tensors."""
    return record_of(weights, content_of((n, element_bytes(t)) for n, t in tensors.items()))


# ---- reading ------------------------------------------------------------------------------------


def tensor_file(path: Path) -> Path | None:
    """The file of an adapter that may hold a record."""
    if not path.is_dir():
        return path if path.is_file() else None
    names = (ADAPTER_WEIGHTS[0], ADAPTER_GGUF, MLX_FILE)
    return next((path / name for name in names if (path / name).is_file()), None)


def read_record(path: str | Path) -> Record | None:
    """The record of the adapter at ``path``; None where there is none, or no sound one."""
    found = _opened(Path(path))
    return None if found is None else found[0]


def is_as_written(path: str | Path) -> bool | None:
    """Whether the tensors are those that the record was written for; None without a record.

    Raises:
        VLoRAError: The file cannot be read.
    """
    found = _opened(Path(path))
    if found is None:
        return None
    record, header = found
    return content_of((n, [read_bytes(header, n)]) for n in header.entries) == record.content


def changed_files(source: Mapping[str, Any], place: Path) -> list[str]:
    """The files of a source that lie at ``place`` with other bytes than were recorded."""
    hashes = hashes_of(source)
    now = files_of(place)
    return sorted(n for n, digest in hashes.items() if n in now and sha256_file(now[n]) != digest)


def files_of(place: Path) -> dict[str, Path]:
    """The files of an adapter that say what it is, by the name they are recorded under."""
    if not place.is_dir():
        return {"weights": place} if place.is_file() else {}
    names = (ADAPTER_CONFIG, *ADAPTER_WEIGHTS, ADAPTER_GGUF, MLX_FILE)
    found = {name: place / name for name in names if (place / name).is_file()}
    if ADAPTER_WEIGHTS[0] in found:  # a pickle beside it is never read
        found.pop(ADAPTER_WEIGHTS[1], None)
    if found.keys() <= {ADAPTER_CONFIG}:  # another tool's file, under a name of its own
        others = [p for p in sorted(place.iterdir()) if p.suffix in _TENSORS and p.is_file()]
        found |= {"weights": others[0]} if len(others) == 1 else {}
    return found


def parse_record(text: str) -> Record | None:
    """A record out of a file's metadata; None where it is none."""
    if len(text) > _LONGEST:
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict):
        return None
    words = {n: found.get(n, "") for n in ("tool", "content", "base", "revision")}
    rows = {n: found.get(n, []) for n in ("sources", "steps")}
    sound = all(isinstance(word, str) for word in words.values()) and words["content"]
    for row in rows.values():
        sound = sound and isinstance(row, list) and all(isinstance(one, dict) for one in row)
    if not sound:
        return None
    return Record(**words, sources=tuple(rows["sources"]), steps=tuple(rows["steps"]))


def _opened(path: Path) -> tuple[Record, Header] | None:
    file = tensor_file(path)
    if file is None:
        return None
    try:
        if is_gguf(file):
            gguf = read_gguf_header(file)
            text, header = gguf.values.get(KEY), gguf.tensors
        elif file.suffix == ".safetensors" and _is_named_in(file):
            header = read_header(file)
            text = header.metadata.get(KEY)
        else:
            return None
    except (VLoRAError, OSError):
        return None
    record = parse_record(text) if isinstance(text, str) else None
    return None if record is None else (record, header)


def _is_named_in(file: Path) -> bool:
    """Whether the header of a safetensors file has the key: most files need no closer look."""
    with open_file(file) as stream:
        length = int.from_bytes(stream.read(8), "little")
        return KEY.encode() in stream.read(min(length, MAX_HEADER_BYTES))


# ---- writing ------------------------------------------------------------------------------------


def _source(origin: Origin) -> dict[str, Any]:
    """What is written of one source; nothing where nothing is known."""
    told: dict[str, Any] = {}
    hashes = dict(origin.hashes)
    if origin.place is not None:
        files = files_of(origin.place)
        hashes |= {name: sha256_file(file) for name, file in files.items()}
        told["name"] = _hub_name(origin.place) or origin.name
    elif origin.name:
        told["name"] = origin.name
    if hashes:
        told["files"] = hashes
    return told if hashes else {}


def _hub_name(place: Path) -> str:
    """A repository's name for its folder in the Hub's cache, which a commit names; else empty.

    The bytes are then those that a copy of it gives, under its own name.
    """
    parts = place.absolute().parts
    for at in range(len(parts) - 2):
        if parts[at].startswith("models--") and parts[at + 1] == "snapshots":
            inside = parts[at + 3 :]
            return inside[-1] if inside else parts[at].rpartition("--")[2]
    return ""


def _plain(value: Any) -> Any:
    """A step as JSON holds it: numbers with 6 digits, so that they are the same everywhere."""
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def hashes_of(source: Mapping[str, Any]) -> dict[str, str]:
    """sha256 by file, of one source of a record."""
    files = source.get("files")
    if not isinstance(files, dict):
        return {}
    return {str(name): digest for name, digest in files.items() if isinstance(digest, str)}


def _step_words(step: Mapping[str, Any]) -> str:
    return f"{_settings_words(step)}{_error_words(step)}"


def _settings_words(step: Mapping[str, Any]) -> str:
    settings = ", ".join(f"{n} {_value(v)}" for n, v in sorted(step.items()) if n not in _APART)
    return f"{step.get('action', 'written')}{f' ({settings})' if settings else ''}"


def _error_words(step: Mapping[str, Any]) -> str:
    error = step.get("error")
    known = isinstance(error, int | float) and not isinstance(error, bool) and error
    return f"; dW off by {error:.3g}" if known else ""


_APART = ("action", "error")


def _value(value: Any) -> str:
    if isinstance(value, list):
        return "/".join(map(_value, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _code(text: str) -> str:
    """A text for a card: no mark of Markdown that would end a cell or a code span."""
    return "".join(c for c in text if c.isprintable()).replace("|", "/").replace("`", "'")
