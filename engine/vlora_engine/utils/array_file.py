"""Arrays out of a safetensors file, each asked for by name and checked. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vlora_engine.errors import CorruptFileError
from vlora_engine.utils.json_reader import JsonFile
from vlora_engine.utils.safetensors_file import read_header

Array = npt.NDArray[Any]

_NUMPY = frozenset(
    {"F64", "F32", "F16", "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL"}
)


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
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        header = read_header(Path(file.path))
    except CorruptFileError as error:
        found = error.found or error.what
        raise file.error("", error.expected or "a safetensors file", found) from None
    for name, entry in header.entries.items():
        if entry.dtype not in _NUMPY:
            raise file.error(name, f"one of {', '.join(sorted(_NUMPY))}", entry.dtype)
    try:
        arrays = load_file(file.path)
    except (SafetensorError, OSError) as error:
        raise file.error("", "a safetensors file", str(error)) from None
    return Arrays(file, arrays, header.metadata)
