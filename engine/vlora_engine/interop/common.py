"""Helpers for reading either peer's index. Nothing in their files is trusted."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlora_engine.errors import CorruptFileError, MissingPathError
from vlora_engine.formats.config import endless
from vlora_engine.manifest.manifest import LayerSpec, TaskRecord
from vlora_engine.utils.json_reader import parse_json
from vlora_engine.utils.partials import how_to_put_back
from vlora_engine.utils.reading import open_file
from vlora_engine.utils.safetensors_file import FLOAT_DTYPES, ITEM_BYTES, Header, read_error

MAX_INDEX_BYTES = 64_000_000
MAX_SIZE = 1 << 40

Shape = tuple[int, ...]


def read_index(path: Path) -> dict[str, Any]:
    """A JSON object of a peer.

    Raises:
        NotFoundError, StorageError: It is not there, or may not be read.
        CorruptFileError: It is none, or too large to be one.
    """
    try:
        with open_file(path) as file:
            raw = file.read(MAX_INDEX_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        raise MissingPathError(
            "There is no such file.", where=path, remedy=how_to_put_back(path.parent)
        ) from None
    except OSError as error:
        raise read_error(path, error) from None
    if len(raw) > MAX_INDEX_BYTES:
        raise unsound(path, f"at most {MAX_INDEX_BYTES:,} bytes of JSON", "more than that")
    try:
        value = parse_json(raw)
    except (ValueError, RecursionError) as error:
        raise unsound(path, "a JSON object", str(error) or type(error).__name__) from None
    if not isinstance(value, dict):
        raise unsound(path, "a JSON object", f"a JSON {type(value).__name__}")
    name = endless(value)
    if name is not None:
        raise unsound(path, f"finite numbers in {name!r}", "a number beyond any float")
    return value


def unsound(path: Path, expected: str, found: str) -> CorruptFileError:
    """The error for a peer's file that is not what it should be."""
    return CorruptFileError(
        "The peer's subspace is not sound.",
        where=path,
        expected=expected,
        found=found[:200],
        remedy="restore it from a copy, or compress the adapters again",
    )


def texts(path: Path, index: Mapping[str, Any], name: str) -> list[str]:
    """A list of distinct texts; whoever prints them escapes what does not print."""
    value = index.get(name)
    good = isinstance(value, list) and all(isinstance(v, str) and is_text(v) for v in value)
    if not good or not isinstance(value, list) or len(set(value)) < len(value):
        raise unsound(path, f"{name}: a list of distinct names", repr(value))
    return value


def is_text(value: str) -> bool:
    """Whether UTF-8 can hold ``value``: half a surrogate pair is no text."""
    return not any("\ud800" <= c <= "\udfff" for c in value)


def natural(path: Path, name: str, value: Any) -> int:
    """A count above 0."""
    if type(value) is not int or not 0 < value < MAX_SIZE:
        raise unsound(path, f"{name}: a whole number above 0", repr(value))
    return value


def plain_name(path: Path, name: Any) -> str:
    """A file's name that stays in its directory."""
    if (
        not isinstance(name, str)
        or not name
        or name != Path(name).name
        or re.search(r"[/\\\0]", name)
        or name in (".", "..")
    ):
        raise unsound(path, "a file name without a directory", repr(name))
    return name


def shape_of(header: Header, name: str, dimensions: int) -> Shape:
    """The shape of a tensor of real numbers that must be there.

    Raises:
        CorruptFileError: It is not there, has other dimensions or holds no real numbers.
    """
    entry = header.entries.get(name)
    if entry is None:
        raise unsound(header.path, f"a tensor {name!r}", "no such tensor")
    if len(entry.shape) != dimensions or entry.dtype not in FLOAT_DTYPES:
        expected = f"{name!r} with {dimensions} dimensions of real numbers"
        raise unsound(header.path, expected, f"{entry.dtype} {list(entry.shape)}")
    return entry.shape


def peer_record(
    name: str,
    file: str,
    nbytes: int,
    peer: str,
    modules: Mapping[int, tuple[int, float]],
    layers: tuple[LayerSpec, ...],
    config: Mapping[str, Any],
    rank: int,
    rest: Mapping[str, tuple[str, Shape]] | None = None,
    source: str | None = None,
) -> TaskRecord:
    """The record of one task of a peer.

    Args:
        modules: By index in ``layers`` its rank and scale.
        rest: dtype and shape of the rest tensors.
    """
    indices = tuple(sorted(modules))
    elements = sum(modules[i][0] * (layers[i].d_in + layers[i].d_out) for i in indices)
    rest = rest or {}
    rest_bytes = sum(math.prod(shape) * ITEM_BYTES[dtype] for dtype, shape in rest.values())
    return TaskRecord(
        id=name,
        file=file,
        sha256="",
        nbytes=nbytes,
        digest="",
        layers=indices,
        ranks=tuple(modules[i][0] for i in indices),
        scales=tuple(modules[i][1] for i in indices),
        dtypes=("F32",) * len(indices),
        norm=0.0,
        error=0.0,
        rank=rank,
        config=config,
        rest=len(rest),
        source=source,
        source_bytes=4 * elements + rest_bytes,
        factor_elements=elements,
        rest_bytes=rest_bytes,
        origin=peer,
    )
