"""The rows of subspace.json of a coded collection, in a form that says nothing twice. No torch.

Of small adapters the index is no small share. Names of layers are numbers in a template; what all
tasks have in common is said once, what each has lies in columns; checksums are base64.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from typing import Any

EACH = ("id", "sha256", "bytes", "digest", "norm", "error", "path")  # in a column, always
_HEX = re.compile(r"[0-9a-f]{64}")
_NUMBER = re.compile(r"(?<!\d)(?:0|[1-9]\d{0,8})(?!\d)")
_HOLE = "#"


def pack_layers(rows: Sequence[Sequence[Any]]) -> dict[str, Any]:
    """Rows that begin with a name as families, and of each its family and its numbers."""
    families: list[list[Any]] = []
    layers = []
    for name, *rest in rows:
        numbers = [] if _HOLE in name else list(map(int, _NUMBER.findall(name)))
        family = [_NUMBER.sub(_HOLE, name) if numbers else name, *rest]
        if family not in families:
            families.append(family)
        layers.append([families.index(family), *numbers])
    return {"families": families, "layers": layers}


def open_layers(index: Mapping[str, Any]) -> list[list[Any]]:
    """The inverse.

    Raises:
        ValueError, KeyError, TypeError, IndexError: It makes no sense.
    """
    rows = []
    for family, *numbers in index["layers"]:
        template, *rest = index["families"][_place(family)]
        parts = [template] if not numbers else template.split(_HOLE)
        if len(parts) != len(numbers) + 1:
            raise ValueError(f"numbers of a layer {template!r}")
        filled = zip(parts, [*map(_place, numbers), ""], strict=True)
        rows.append(["".join(f"{part}{number}" for part, number in filled), *rest])
    return rows


def pack_tasks(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Tasks' rows, by column: ``same`` for all of them, or of ``each``; None where one has none."""
    flat = [_flat(row) for row in rows]
    folder = _folder([row["path"] for row in flat])
    for row in flat:
        row["path"] = row["path"] and row["path"][len(folder) :]
    keys = dict.fromkeys(key for row in flat for key in row)
    columns = {key: [row.get(key) for row in flat] for key in keys}
    each = {k: v for k, v in columns.items() if k in EACH or any(own != v[0] for own in v)}
    same = {k: v[0] for k, v in columns.items() if k not in each and v[0] is not None}
    return {"count": len(rows), "folder": folder, "same": same, "each": each}


def open_tasks(packed: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The inverse.

    Raises:
        ValueError, KeyError, TypeError: It makes no sense.
    """
    count, same, each = packed["count"], packed["same"], packed["each"]
    if type(count) is not int or any(len(column) != count for column in each.values()):
        raise ValueError("columns of other lengths than there are tasks")
    if not set(EACH) <= each.keys() and count:
        raise ValueError("columns that there have to be")
    rows = []
    for i in range(count):
        row = {**same, **{key: column[i] for key, column in each.items()}}
        rows.append(_full({k: v for k, v in row.items() if v is not None}, packed["folder"]))
    return rows


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """A task's row without rows inside, and without what follows from the rest."""
    out = {key: value for key, value in row.items() if key != "source"}
    source = row["source"]
    out |= {"path": source["path"], "from": source["bytes"], "elements": source["elements"]}
    out["rest"] = source["rest"]
    out |= {"sha256": _short(row["sha256"]), "digest": _short(row["digest"])}
    if row["file"] == _file(row["id"]):
        del out["file"]
    return out


def _full(row: Mapping[str, Any], folder: str) -> dict[str, Any]:
    out = {k: v for k, v in row.items() if k not in ("path", "from", "elements", "rest")}
    path = row.get("path")
    out["source"] = {
        "path": None if path is None else f"{folder}{path}",
        "bytes": row["from"],
        "elements": row["elements"],
        "rest": row["rest"],
    }
    out |= {"sha256": _long(row["sha256"]), "digest": _long(row["digest"])}
    out.setdefault("file", _file(row["id"]))
    return out


def _file(name: Any) -> str:
    return f"{name}.safetensors"


def _folder(paths: Sequence[str | None]) -> str:
    """What all paths begin with, up to a slash; nothing where one is not known."""
    known = [path for path in paths if path is not None]
    if len(known) < max(1, len(paths)):
        return ""
    first, last = min(known), max(known)
    same = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), None)
    return first[: first.rfind("/", 0, len(first) if same is None else same) + 1]


def _short(digest: str) -> str:
    """64 hexadecimal digits as 43 of base64; anything else as it is."""
    if not _HEX.fullmatch(digest):
        return digest
    return base64.urlsafe_b64encode(bytes.fromhex(digest)).decode().rstrip("=")


def _long(digest: str) -> str:
    if len(digest) != 43:
        return digest
    return base64.b64decode(digest + "=", altchars=b"-_", validate=True).hex()


def _place(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is no number of a layer")
    return value
