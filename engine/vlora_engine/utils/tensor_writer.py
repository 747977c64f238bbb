"""Write safetensors files, byte by byte the same everywhere, and know their checksum."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlora_engine.errors import StorageError
from vlora_engine.utils.safetensors_file import ITEM_BYTES, dtype_name, write_error

if TYPE_CHECKING:
    from torch import Tensor

_AT_ONCE = 1 << 20  # elements of a tensor that repeats one


class TensorWriter:
    """Write a safetensors file tensor by tensor; all names and shapes are known in advance.

    Tensors may be written in pieces, in the order of ``layout``. The file is complete only when
    ``close`` has checked that every byte was written.
    """

    def __init__(
        self,
        path: Path,
        layout: Sequence[tuple[str, str, tuple[int, ...]]],
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        self.path = path
        self.sha256 = ""
        self._digest = hashlib.sha256()
        raw, self._expected = encode_header(layout, metadata)
        try:
            self._file = path.open("xb")
        except OSError as error:
            raise write_error(path, error) from None
        self._written = 0
        self._put(raw)

    def write(self, tensor: Tensor) -> None:
        """Append the elements of ``tensor``, in row-major order."""
        for piece in element_bytes(tensor):
            self._put(piece)

    def write_bytes(self, data: bytes | bytearray | memoryview) -> None:
        """Append raw bytes, already in the dtype of the layout."""
        self._put(data)

    def close(self) -> None:
        """Flush to the disk and set ``sha256``, that of the whole file.

        Raises:
            StorageError: The disk is full or gone, or not every byte was written.
        """
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
        except OSError as error:
            raise write_error(self.path, error) from None
        if self._written != self._expected:
            raise StorageError(
                "A tensor file was not written completely.",
                where=self.path,
                expected=f"{self._expected} bytes",
                found=f"{self._written} bytes",
            )
        self.sha256 = self._digest.hexdigest()

    def __enter__(self) -> TensorWriter:
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        if kind is None:
            self.close()
        else:
            self._file.close()

    def _put(self, data: bytes | bytearray | memoryview) -> None:
        try:
            self._file.write(data)
        except OSError as error:
            raise write_error(self.path, error) from None
        self._digest.update(data)
        self._written += len(data)


def element_bytes(tensor: Tensor) -> Iterator[memoryview]:
    """The elements of ``tensor`` as bytes, in row-major order; one told for all is told again."""
    import torch

    count, whole = tensor.numel(), tensor.detach()
    if count and whole.is_cpu and whole.is_contiguous():
        yield whole.reshape(-1).view(torch.uint8).numpy().data
        return
    if count > _AT_ONCE and not any(tensor.stride()):
        whole = whole.reshape(-1)[:_AT_ONCE]
    raw = whole.to("cpu").contiguous().reshape(-1)
    while count > 0:
        yield raw[:count].view(torch.uint8).numpy().data
        count -= len(raw)


def encode_header(
    layout: Sequence[tuple[str, str, tuple[int, ...]]], metadata: Mapping[str, str] | None = None
) -> tuple[bytes, int]:
    """Encode the header of a layout: its bytes, and the length of the whole file."""
    table: dict[str, Any] = {}
    if metadata:
        table["__metadata__"] = dict(sorted(metadata.items()))
    offset = 0
    for name, dtype, shape in layout:
        nbytes = math.prod(shape) * ITEM_BYTES[dtype]
        table[name] = {
            "dtype": dtype,
            "shape": list(shape),
            "data_offsets": [offset, offset + nbytes],
        }
        offset += nbytes
    raw = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode()
    raw += b" " * (-len(raw) % 8)
    return len(raw).to_bytes(8, "little") + raw, 8 + len(raw) + offset


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> str:
    """Write ``tensors`` to a new file at ``path``; return the sha256 of the file."""
    layout = [(name, dtype_name(t.dtype), tuple(t.shape)) for name, t in tensors.items()]
    writer = TensorWriter(path, layout, metadata)
    with writer:
        for tensor in tensors.values():
            writer.write(tensor)
    return writer.sha256
