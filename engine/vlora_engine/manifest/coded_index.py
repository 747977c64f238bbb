"""Pack the rows of a coded collection's subspace.json without repetition. No torch.

Of small adapters the index is no small share. Names of layers are numbers in a template; what all
tasks have in common is said once, what each has lies in columns; checksums are base64.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from vlora_engine.utils.json_reader import JsonObject, JsonValue

EACH = ("id", "sha256", "bytes", "digest", "norm", "error", "path")  # in a column, always
_HEX = re.compile(r"[0-9a-f]{64}")
_NUMBER = re.compile(r"(?<!\d)(?:0|[1-9]\d{0,8})(?!\d)")
_HOLE = "#"


def pack_layers(rows: Sequence[Sequence[Any]]) -> dict[str, Any]:
    """Pack layers' rows: names become templates (families) and the numbers in them."""
    families: list[list[Any]] = []
    layers = []
    for name, *rest in rows:
        numbers = [] if _HOLE in name else list(map(int, _NUMBER.findall(name)))
        family = [_NUMBER.sub(_HOLE, name) if numbers else name, *rest]
        if family not in families:
            families.append(family)
        layers.append([families.index(family), *numbers])
    return {"families": families, "layers": layers}


def open_layers(index: JsonObject) -> list[tuple[str, list[JsonValue]]]:
    """The inverse of `pack_layers`: each name with the values behind it.

    Raises:
        CorruptFileError: It makes no sense.
    """
    families = []
    for family in index["families"].items():
        head, *rest = family.items() or [family]
        families.append((head.text(), rest))
    rows = []
    for row in index["layers"].items():
        which, *numbers = row.naturals() or [len(families)]
        if which >= len(families):
            raise row.error(f"the number of one of {len(families)} families, then numbers")
        template, rest = families[which]
        parts = [template] if not numbers else template.split(_HOLE)
        if len(parts) != len(numbers) + 1:
            raise row.error(f"{len(parts) - 1} numbers for the name {template[:80]!a}")
        filled = zip(parts, [*numbers, ""], strict=True)
        rows.append(("".join(f"{part}{number}" for part, number in filled), rest))
    return rows


def pack_tasks(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Pack tasks' rows by column: ``same`` for all, or a list of ``each``, None where missing."""
    flat = [_flat(row) for row in rows]
    folder = _folder([row["path"] for row in flat])
    for row in flat:
        row["path"] = row["path"] and row["path"][len(folder) :]
    keys = dict.fromkeys(key for row in flat for key in row)
    columns = {key: [row.get(key) for row in flat] for key in keys}
    each = {k: v for k, v in columns.items() if k in EACH or any(value != v[0] for value in v)}
    same = {k: v[0] for k, v in columns.items() if k not in each and v[0] is not None}
    return {"count": len(rows), "folder": folder, "same": same, "each": each}


def open_tasks(packed: JsonObject) -> list[tuple[JsonObject, JsonObject]]:
    """The inverse of `pack_tasks`: of every task its row and the row of its source.

    Raises:
        CorruptFileError: It makes no sense.
    """
    count, folder = packed["count"].natural(), packed["folder"].text()
    each = packed["each"].object()
    columns = {key: column.items(count) for key, column in each.items()}
    for key in EACH if count else ():
        each[key]  # it has to be there
    same = dict(packed["same"].object().items())
    rows = []
    for i in range(count):
        found = {**same, **{key: column[i] for key, column in columns.items()}}
        row = {key: value for key, value in found.items() if not value.is_null}
        rows.append(_full(JsonObject(row, packed.file, f"{packed.place}[{i}]"), folder))
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


def _full(row: JsonObject, folder: str) -> tuple[JsonObject, JsonObject]:
    """A task's row and that of its source; every value keeps the place where it stands."""
    path = row.get("path")
    source = {"bytes": row["from"], "elements": row["elements"], "rest": row["rest"]}
    source["path"] = (
        JsonValue(None, row.file, row.place)
        if path is None
        else replace(path, value=f"{folder}{path.text()}")
    )
    out = {k: v for k, v in row.items() if k not in ("path", "from", "elements", "rest")}
    out |= {"sha256": _long(row["sha256"]), "digest": _long(row["digest"])}
    out.setdefault("file", replace(row["id"], value=_file(row["id"].text())))
    return JsonObject(out, row.file, row.place), JsonObject(source, row.file, row.place)


def _file(name: Any) -> str:
    return f"{name}.safetensors"


def _folder(paths: Sequence[str | None]) -> str:
    """What all paths begin with, up to a slash; nothing where one is not known."""
    present = [path for path in paths if path is not None]
    if len(present) < max(1, len(paths)):
        return ""
    first, last = min(present), max(present)
    same = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), None)
    return first[: first.rfind("/", 0, len(first) if same is None else same) + 1]


def _short(digest: str) -> str:
    """64 hexadecimal digits as 43 of base64; anything else as it is."""
    if not _HEX.fullmatch(digest):
        return digest
    return base64.urlsafe_b64encode(bytes.fromhex(digest)).decode().rstrip("=")


def _long(digest: JsonValue) -> JsonValue:
    text = digest.text()
    if len(text) != 43:
        return digest
    try:
        raw = base64.b64decode(text + "=", altchars=b"-_", validate=True)
    except ValueError:
        raise digest.error("64 hexadecimal digits, or 43 of base64") from None
    return replace(digest, value=raw.hex())
