"""Arrays out of a safetensors file, each asked for by name and checked. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vlora_engine.errors import CorruptFileError
from vlora_engine.utils.json_reader import JsonFile
from vlora_engine.utils.safetensors_file import read_bytes, read_header

Array = npt.NDArray[Any]

_NUMPY = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "<i1",
    "U64": "<u8",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "<u1",
    "BOOL": "?",
}


class Arrays(dict[str, Array]):
    """The arrays of a file; asking for one that is not there is an error of the file.

    Args:
        file: How its errors begin and end.
        metadata: Texts that lie in the file's header.
    """

    def __init__(
        self, file: JsonFile, arrays: Mapping[str, Array], metadata: Mapping[str, str]
    ) -> None:
        super().__init__(arrays)
        self.file, self.metadata = file, metadata

    def __missing__(self, name: str) -> Array:
        raise self.file.error(name, "an array", "nothing")

    def numbers(self, name: str, *shape: int | None) -> Array:
        """An array of numbers of this shape, None standing for any size."""
        array = self[name]
        fits = len(shape) == array.ndim and all(
            wanted in (None, size) for wanted, size in zip(shape, array.shape, strict=True)
        )
        if not fits or array.dtype == np.bool_:
            sizes = ", ".join("any" if size is None else str(size) for size in shape)
            raise self.file.error(
                name, f"numbers of shape ({sizes})", f"{array.dtype} {list(array.shape)}"
            )
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise self.file.error(name, "finite numbers", "NaN or infinity")
        return array

    def shares(self, name: str, *shape: int | None) -> Array:
        """An array of numbers of this shape, none below 0."""
        array = self.numbers(name, *shape)
        if array.size and array.min() < 0:
            raise self.file.error(name, "numbers from 0 on", str(array.min()))
        return array

    def rising(self, name: str) -> Array:
        """A row of whole numbers from 0 on, each larger than the one before."""
        array = self.numbers(name, None)
        whole = np.issubdtype(array.dtype, np.integer)
        if not whole or (array.size and array[0] < 0) or not (array[1:] > array[:-1]).all():
            raise self.file.error(
                name, "whole numbers from 0 on that rise", f"{array.dtype} {array[:6]}"
            )
        return array

    def indices(self, name: str, count: int) -> Array:
        """A row of whole numbers below ``count``."""
        array = self.numbers(name, None)
        whole = np.issubdtype(array.dtype, np.integer)
        if not whole or (array.size and not 0 <= int(array.min()) <= int(array.max()) < count):
            raise self.file.error(
                name, f"whole numbers below {count}", f"{array.dtype} {array[:6]}"
            )
        return array


def read_arrays(file: JsonFile) -> Arrays:
    """All arrays of a safetensors file.

    Raises:
        NotFoundError, StorageError: It is not there, or may not be read.
        CorruptFileError: It is not sound, or holds what numpy has no numbers for.
    """
    try:
        header = read_header(Path(file.path))
    except CorruptFileError as error:
        found = error.found or error.what
        raise file.error("", error.expected or "a safetensors file", found) from None
    for name, entry in header.entries.items():
        if entry.dtype not in _NUMPY:
            raise file.error(name, f"one of {', '.join(sorted(_NUMPY))}", entry.dtype)
    arrays = {
        name: np.frombuffer(read_bytes(header, name), _NUMPY[entry.dtype]).reshape(entry.shape)
        for name, entry in header.entries.items()
    }
    return Arrays(file, arrays, header.metadata)
