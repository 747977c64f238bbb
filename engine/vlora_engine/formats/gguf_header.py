"""Read and check the header of a GGUF file, without torch.

Versions 2 and 3, little-endian: magic, version, two counts, the key-value pairs, one row for each
tensor, then the data from the next multiple of ``general.alignment``. Every length is checked
against the bytes that are left before it is used.
"""

from __future__ import annotations

import hashlib
import math
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from vlora_engine.errors import CorruptFileError, FileKindError, UnsupportedAdapterError
from vlora_engine.quantization.dtypes import Q8_0, Q8_0_BLOCK, Q8_0_BYTES
from vlora_engine.utils.reading import open_file
from vlora_engine.utils.safetensors_file import (
    ITEM_BYTES,
    Header,
    TensorEntry,
    file_identity,
    missing_error,
    read_error,
)

MAGIC = b"GGUF"
_ALIGNMENT = 32
_DTYPES = {0: "F32", 1: "F16", 8: Q8_0, 28: "F64", 30: "BF16"}
_QUANTISED = {
    2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K",
    12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS",
    19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 29: "IQ1_M", 34: "TQ1_0",
    35: "TQ2_0", 39: "MXFP4",
}  # fmt: skip
_NUMBERS = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q",
    12: "<d",
}  # fmt: skip
_TEXT, _ARRAY = 8, 9
_SHORT = 4096  # numbers of an array that are kept


@dataclass(frozen=True)
class GgufHeader:
    """The parsed header: values by key (texts in arrays are passed over), and the tensors."""

    values: Mapping[str, Any]
    tensors: Header


def is_gguf(path: Path) -> bool:
    """Whether the file starts as a GGUF file does."""
    try:
        with open_file(path) as file:
            return file.read(4) == MAGIC
    except FileKindError:  # whoever reads it says what it is
        return path.suffix == ".gguf"
    except OSError:
        return False


def read_gguf_header(path: Path) -> GgufHeader:
    """Read and check the header of the GGUF file at ``path``.

    Raises:
        NotFoundError, StorageError: It is not there, or cannot be read.
        CorruptFileError: It is truncated, or its header is not sound.
        UnsupportedAdapterError: A version or a type of numbers that is not read here.
    """
    try:
        with open_file(path) as file:
            status = os.fstat(file.fileno())
            return _Parser(path, file, status).parse()
    except FileNotFoundError:
        raise missing_error(path) from None
    except OSError as error:
        raise read_error(path, error) from None


class _Parser:
    def __init__(self, path: Path, file: BinaryIO, status: os.stat_result) -> None:
        self.path, self.file = path, file
        self.size, self.identity = status.st_size, file_identity(status)
        self.at = 0
        self.sha = hashlib.sha256()

    def parse(self) -> GgufHeader:
        if self.take(4, "the magic GGUF") != MAGIC:
            raise self.corrupt("a file that starts with GGUF", "other bytes")
        version = self.number("<I")
        if version not in (2, 3):
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big") in (2, 3)
            raise UnsupportedAdapterError(
                "This version of GGUF is not read here.",
                where=self.path,
                expected="version 2 or 3, little-endian",
                found="a big-endian file" if swapped else f"version {version}",
                remedy="convert it again with a newer llama.cpp",
            )
        tensors, pairs = self.number("<Q"), self.number("<Q")
        # A pair or a tensor takes 13 bytes or more.
        if (tensors + pairs) * 13 > self.size:
            raise self.corrupt("counts that fit into the file", f"{tensors} and {pairs}")
        values = {}
        for _ in range(pairs):
            key = self.text()
            values[key] = self.value(self.number("<I"), key)
        rows = [self.row() for _ in range(tensors)]
        return GgufHeader(values, self.placed(rows, values.get("general.alignment", _ALIGNMENT)))

    def placed(self, rows: list[tuple[str, str, tuple[int, ...], int]], alignment: Any) -> Header:
        """The tensors with their places in the file."""
        if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
            raise self.corrupt("an alignment that is a power of two", repr(alignment))
        start = -(-self.at // alignment) * alignment
        entries = {}
        for name, dtype, shape, offset in rows:
            first = start + offset
            end = first + _nbytes(dtype, shape)
            if end > self.size:
                raise CorruptFileError(
                    "The file is truncated.",
                    where=self.path,
                    expected=f"{end} bytes for tensor {name!r}",
                    found=f"{self.size} bytes",
                    remedy="download or copy it again",
                )
            if name in entries:
                raise self.corrupt("tensors of different names", f"two of {name!r}")
            entries[name] = TensorEntry(name, dtype, shape, first, end)
        return Header(self.path, entries, {}, self.size, self.sha.hexdigest(), self.identity)

    def row(self) -> tuple[str, str, tuple[int, ...], int]:
        """Name, dtype, shape (rows first) and offset of one tensor."""
        name = self.text()
        count = self.number("<I")
        if count > 4:
            raise self.corrupt("tensors of at most 4 dimensions", f"{count} of {name!r}")
        shape = tuple(reversed([self.number("<Q") for _ in range(count)]))
        kind, offset = self.number("<I"), self.number("<Q")
        if kind not in _DTYPES:
            raise UnsupportedAdapterError(
                "The file's numbers are quantised or of a type that is not read here.",
                where=self.path,
                expected="F32, F16, BF16 or Q8_0",
                found=f"{_QUANTISED.get(kind, f'type {kind}')} of tensor {name!r}",
                remedy="convert the adapter again with --outtype f16 (or f32, bf16)",
            )
        if _nbytes(_DTYPES[kind], shape) > self.size or offset > self.size:
            raise self.corrupt(f"a tensor {name!r} within the file", f"{shape} at {offset}")
        if _DTYPES[kind] == Q8_0 and (not shape or shape[-1] % Q8_0_BLOCK):
            raise self.corrupt(f"rows of {name!r} in blocks of {Q8_0_BLOCK}", str(shape))
        return name, _DTYPES[kind], shape, offset

    def value(self, kind: int, key: str) -> Any:
        """A scalar or text; of an array its numbers where it is short, else None."""
        if kind == _TEXT:
            return self.text()
        if kind == _ARRAY:
            return self.array(key)
        if kind not in _NUMBERS:
            raise self.corrupt(f"a known type of {key!r}", f"type {kind}")
        return self.number(_NUMBERS[kind])

    def array(self, key: str) -> list[Any] | None:
        """Its numbers; None for texts and long arrays (vocabularies), which are passed over."""
        kind, count = self.number("<I"), self.number("<Q")
        if kind == _TEXT:
            if count * 8 > self.size - self.at:
                raise self.corrupt(f"an array {key!r} within the file", f"{count} texts")
            for _ in range(count):
                self.take(self.number("<Q"), f"the array {key!r}")
            return None
        if kind not in _NUMBERS:
            raise self.corrupt(f"a known type in the array {key!r}", f"type {kind}")
        form = _NUMBERS[kind]
        raw = self.take(count * struct.calcsize(form), f"the array {key!r}")
        return None if count > _SHORT else [value for (value,) in struct.iter_unpack(form, raw)]

    def text(self) -> str:
        raw = self.take(self.number("<Q"), "a text")
        try:
            return raw.decode()
        except UnicodeDecodeError:
            raise self.corrupt("texts in UTF-8", repr(raw[:40])) from None

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form), "a number"))[0]

    def take(self, count: int, what: str) -> bytes:
        if count > self.size - self.at:
            raise self.corrupt(f"{what} of {count} bytes", f"{self.size - self.at} bytes left")
        raw = self.file.read(count)
        self.at += count
        self.sha.update(raw)
        return raw

    def corrupt(self, expected: str, found: str) -> CorruptFileError:
        return CorruptFileError(
            "The file is not a sound GGUF file.",
            where=self.path,
            expected=expected,
            found=found,
            remedy="download or copy it again, or convert the adapter again",
        )


def _nbytes(dtype: str, shape: tuple[int, ...]) -> int:
    numbers = math.prod(shape)
    return numbers // Q8_0_BLOCK * Q8_0_BYTES if dtype == Q8_0 else numbers * ITEM_BYTES[dtype]
