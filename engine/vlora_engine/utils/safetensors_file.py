"""Read safetensors files: headers without torch, data without memory mapping.

A header is eight bytes of length and a JSON object; every number in it is checked against the
file before it is used. Data are read with ``pread`` into fresh buffers: a mapped file would count
as resident memory, and a collection of a thousand adapters would then sit in memory as a whole.
"""

from __future__ import annotations

import errno
import hashlib
import math
import os
import random
import resource
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, BinaryIO, TypeGuard

from vlora_engine.errors import (
    CorruptFileError,
    InputError,
    MissingPathError,
    StorageError,
    VLoRAError,
)
from vlora_engine.utils.json_reader import parse_json
from vlora_engine.utils.reading import open_descriptor, open_file

if TYPE_CHECKING:
    import torch
    from torch import Tensor

MAX_HEADER_BYTES = 100_000_000
KEPT_HEADER_BYTES = 1_000_000  # a header up to this size is kept, parsed, for the next file
MAX_SIZE = 1 << 58  # of the product of a tensor's dimensions, so that its bytes can be counted
LFS_POINTER = b"version https://git-lfs"

ITEM_BYTES = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U64": 8,
    "U32": 4,
    "U16": 2,
    "U8": 1,
    "BOOL": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
}
FLOAT_DTYPES = frozenset({"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"})
_TORCH_NAMES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
}


Identity = tuple[int, int, int]  # device, inode, time of change: tells a replaced file


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of a file: dtype (safetensors' name), shape, and byte range in the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def nbytes(self) -> int:
        """Bytes of its data."""
        return self.end - self.start


@dataclass(frozen=True)
class Header:
    """The header of a safetensors file, checked against the file's length.

    Args:
        held: The file's bytes, where they are in memory: it is then not read any more.
    """

    path: Path
    entries: Mapping[str, TensorEntry]
    metadata: Mapping[str, str]
    file_bytes: int
    digest: str = field(repr=False)
    identity: Identity | None = field(default=None, repr=False)
    held: bytes | None = field(default=None, repr=False, compare=False)

    def entry(self, name: str) -> TensorEntry:
        """Where a tensor lies in the file.

        Raises:
            CorruptFileError: The file has no such tensor.
        """
        if name not in self.entries:
            raise CorruptFileError(
                "A tensor is missing that the file should hold.",
                where=self.path,
                expected=f"a tensor {name!r}",
                found=f"{len(self.entries)} others",
            )
        return self.entries[name]


def read_header(path: Path) -> Header:
    """Read and check the header of the safetensors file at ``path``.

    Raises:
        NotFoundError: There is no such file.
        StorageError: The file cannot be read.
        CorruptFileError: It is a Git LFS pointer, is truncated, or its header is not sound.
    """
    close_file(path)  # it may have been replaced since it was last read
    with _opened(path) as file:
        status = os.fstat(file.fileno())
        size = status.st_size
        prefix = file.read(8)
        if LFS_POINTER.startswith(prefix) and len(prefix) == 8:
            raise lfs_pointer_error(path)
        if len(prefix) < 8:
            raise _corrupt(path, "at least 8 bytes of header length", f"{size} bytes")
        length = int.from_bytes(prefix, "little")
        if length > MAX_HEADER_BYTES or 8 + length > size:
            raise _corrupt(
                path,
                f"a header that ends within the file's {size} bytes",
                f"a header length of {length} bytes",
            )
        raw = file.read(length)
    return replace(_parse_header(path, raw, size), identity=file_identity(status))


def file_identity(status: os.stat_result) -> Identity:
    """Identify a file, to notice when another one has taken its place."""
    return status.st_dev, status.st_ino, status.st_mtime_ns


def _parse_header(path: Path, raw: bytes, size: int) -> Header:
    parse = _parsed_again if len(raw) <= KEPT_HEADER_BYTES else _parsed
    try:
        parsed = parse(raw)
    except _Unsound as error:
        raise _corrupt(path, error.expected, error.found) from None
    if parsed.end != size:
        what = "truncated" if parsed.end > size else "longer than its header says"
        raise CorruptFileError(
            f"The file is {what}.",
            where=path,
            expected=f"{parsed.end} bytes",
            found=f"{size} bytes",
            remedy="download or copy it again",
        )
    return Header(
        path=path,
        entries=parsed.entries,  # shared by all files of this header, and changed by nobody
        metadata=dict(parsed.metadata),
        file_bytes=size,
        digest=parsed.digest,
    )


class _Unsound(Exception):
    """What is wrong with a header, of whatever file."""

    def __init__(self, expected: str, found: str) -> None:
        super().__init__(expected, found)
        self.expected, self.found = expected, found


@dataclass(frozen=True)
class _Parsed:
    """What a header says, whatever file it is of; ``end`` is where the file has to end."""

    entries: Mapping[str, TensorEntry]
    metadata: Mapping[str, str]
    end: int
    digest: str


def _parsed(raw: bytes) -> _Parsed:
    try:
        table = parse_json(raw)
    except (ValueError, RecursionError) as error:
        raise _Unsound("a JSON header", f"bytes that are not JSON ({error})") from None
    if not isinstance(table, dict):
        raise _Unsound("a JSON object as header", type(table).__name__)
    metadata = table.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict):
        raise _Unsound("__metadata__ that is a JSON object", type(metadata).__name__)
    end = 8 + len(raw)
    entries = {name: _parse_entry(name, row, end) for name, row in table.items()}
    for entry in sorted(entries.values(), key=lambda e: (e.start, e.end)):
        if entry.start != end:
            raise _Unsound(
                f"tensors that follow each other without gap or overlap (offset {end})",
                f"tensor {entry.name!r} at offset {entry.start}",
            )
        end = entry.end
    return _Parsed(
        entries=entries,
        metadata={str(k): str(v) for k, v in metadata.items()},
        end=end,
        digest=hashlib.sha256(raw).hexdigest(),
    )


# Adapters that were trained alike have the same header, byte for byte, and come one after another.
_parsed_again = lru_cache(4)(_parsed)


def _parse_entry(name: str, row: Any, data_start: int) -> TensorEntry:
    if not isinstance(row, dict):
        raise _Unsound(f"an object for tensor {name!r}", type(row).__name__)
    dtype, shape, offsets = row.get("dtype"), row.get("shape"), row.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise _Unsound(f"a known dtype for tensor {name!r}", repr(dtype))
    if not _naturals(shape) or not _naturals(offsets) or len(offsets) != 2:
        raise _Unsound(f"shape and two offsets for tensor {name!r}", f"{shape!r} and {offsets!r}")
    start, end = offsets
    if end - start != math.prod(shape) * ITEM_BYTES[dtype]:
        raise _Unsound(
            f"{math.prod(shape) * ITEM_BYTES[dtype]} bytes for tensor {name!r} {dtype} {shape}",
            f"{end - start} bytes",
        )
    if math.prod(max(1, n) for n in shape) >= MAX_SIZE:  # no array has such a shape, empty or not
        raise _Unsound(f"a shape that an array can have for tensor {name!r}", f"{shape}")
    return TensorEntry(name, dtype, tuple(shape), data_start + start, data_start + end)


def _naturals(value: Any) -> TypeGuard[list[int]]:
    if not isinstance(value, list) or not {int}.issuperset(map(type, value)):
        return False
    return not value or (min(value) >= 0 and max(value) < 2**62)


def lfs_pointer_error(path: Path) -> CorruptFileError:
    """The error for a file that Git LFS left as a pointer."""
    return CorruptFileError(
        "The file is a Git LFS pointer, not the file itself.",
        where=path,
        expected="a JSON file" if path.suffix == ".json" else "tensors",
        found="a short text that starts with 'version https://git-lfs'",
        remedy="run `git lfs install && git lfs pull` in that repository, or download it again",
        code="lfs-pointer",
    )


def _corrupt(path: Path, expected: str, found: str) -> CorruptFileError:
    return CorruptFileError(
        "The file is not a sound safetensors file.",
        where=path,
        expected=expected,
        found=found,
        remedy="download or copy it again",
        code="corrupt-file",
    )


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        with open_file(path) as file:
            yield file
    except FileNotFoundError:
        raise missing_error(path) from None
    except OSError as error:
        raise read_error(path, error) from None


def missing_error(path: Path) -> MissingPathError:
    """The error for a file that does not exist."""
    return MissingPathError(
        "There is no such file.", where=path, remedy="check the path, or download it again"
    )


def read_error(path: Path, error: OSError) -> VLoRAError:
    """The error for a file that cannot be read, from what the operating system reports."""
    if isinstance(error, VLoRAError):  # it says so already
        return error
    found = StorageError(
        f"The file cannot be read: {error.strerror or error}.",
        where=path,
        remedy="check its permissions and that its disk is still mounted"
        if error.errno != errno.ENAMETOOLONG
        else "name a shorter path",
    )
    return _judged(found, error)


class _OpenFile:
    """A descriptor, and how many threads are reading from it."""

    def __init__(self, descriptor: int, identity: Identity) -> None:
        self.descriptor, self.identity = descriptor, identity
        self.readers, self.is_forgotten = 0, False


class FilePool:
    """A pool of open files for reading, at most ``limit`` but for those that are being read.

    A collection is read layer by layer, so that its files come round and round: the one used least
    recently would always be closed just before it is wanted again. So it is any of them, by chance.

    Safe between threads, which read at the same time; a file that is forgotten meanwhile is closed
    by its last reader.
    """

    def __init__(self, limit: int | None = None) -> None:
        self._limit = limit or _files_to_keep()
        self._files: dict[Path, _OpenFile] = {}
        self._lock = Lock()
        self._chooser = random.Random(0)

    def pread_into(
        self,
        path: Path,
        buffer: memoryview,
        offset: int,
        identity: Identity | None = None,
        more: Sequence[memoryview] = (),
    ) -> None:
        """Fill ``buffer`` and ``more`` from ``offset`` on; the file may not be shorter.

        Raises:
            CorruptFileError: It is shorter, or was replaced since ``identity`` was taken.
            StorageError: It cannot be read.
        """
        file, buffers = None, [buffer, *more]
        try:
            with self._lock:
                file = self._opened(path, identity)
                file.readers += 1  # it stays open until then
            end = offset + sum(map(len, buffers))
            while offset < end:
                count = os.preadv(file.descriptor, buffers, offset)
                if count == 0:
                    raise CorruptFileError(
                        "The file became shorter while it was read.",
                        where=path,
                        expected=f"{end} bytes",
                        found=f"{offset} bytes",
                    )
                offset += count
                if offset < end:
                    buffers = _behind(buffers, count)
        except OSError as error:
            if isinstance(error, VLoRAError):
                raise
            raise read_error(path, error) from None
        finally:
            if file is not None:
                with self._lock:
                    file.readers -= 1
                    self._close_unused(file)

    def forget(self, path: Path) -> None:
        """Close ``path`` if it is open."""
        with self._lock:
            self._forget(path)

    def forget_below(self, directory: Path) -> None:
        """Close ``directory``, if it is a file, and every open file under it."""
        with self._lock:
            for path in [p for p in self._files if p == directory or directory in p.parents]:
                self._forget(path)

    def _opened(self, path: Path, wanted: Identity | None) -> _OpenFile:
        known = self._files.get(path)
        if known is not None and wanted in (None, known.identity):
            return known
        self._forget(path)
        while len(self._files) >= self._limit:
            self._forget(self._chooser.choice(tuple(self._files)))
        descriptor = open_descriptor(path)
        identity = file_identity(os.fstat(descriptor))
        if wanted not in (None, identity):
            os.close(descriptor)
            raise CorruptFileError(
                "The file was changed or replaced while it was in use.",
                where=path,
                remedy="open it again",
            )
        self._files[path] = file = _OpenFile(descriptor, identity)
        return file

    def _forget(self, path: Path) -> None:
        file = self._files.pop(path, None)
        if file is not None:
            file.is_forgotten = True
            self._close_unused(file)

    @staticmethod
    def _close_unused(file: _OpenFile) -> None:
        if file.is_forgotten and not file.readers:
            os.close(file.descriptor)


def _behind(buffers: Sequence[memoryview], count: int) -> list[memoryview]:
    """What is left of ``buffers`` behind the first ``count`` bytes."""
    left = []
    for buffer in buffers:
        if count < len(buffer):
            left.append(buffer[count:])
        count = max(0, count - len(buffer))
    return left


def _files_to_keep() -> int:
    """Half of what the system lets a process have open, at most 512.

    Libraries that wait with select() can do nothing with a descriptor above 1,023.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return min(512, max(1, soft // 2)) if soft > 0 else 512


_POOL = FilePool()


def read_bytes(header: Header, name: str, most: int | None = None) -> bytearray:
    """Read the raw bytes of one tensor, or the first ``most`` of them."""
    entry = header.entry(name)
    data = bytearray(entry.nbytes if most is None else min(most, entry.nbytes))
    if data:
        _fill(header, memoryview(data), entry.start)
    return data


def read_tensor(header: Header, name: str) -> Tensor:
    """Read one tensor into fresh memory, in the file's dtype and shape."""
    import torch

    entry = header.entry(name)
    if not entry.nbytes:
        return torch.empty(entry.shape, dtype=torch_dtype(entry.dtype))
    flat = torch.frombuffer(read_bytes(header, name), dtype=torch_dtype(entry.dtype))
    return flat.reshape(entry.shape)


def read_tensors(header: Header, names: Sequence[str]) -> list[Tensor]:
    """Read some tensors; those of one dtype that follow each other in the file, at once.

    What was read at once shares its memory.
    """
    found: list[Tensor] = []
    run: list[TensorEntry] = []
    for name in names:
        entry = header.entry(name)
        if run and (entry.start != run[-1].end or entry.dtype != run[0].dtype):
            found += _read_run(header, run)
            run = []
        run.append(entry)
    return found + _read_run(header, run) if run else found


def read_tensors_into(header: Header, names: Sequence[str], places: Sequence[Tensor]) -> bool:
    """Read two tensors or more into places of their shapes, all at once, if that can be done.

    It can where they follow each other in the file, in the dtype of the places, whose memory is
    without gaps; else nothing is read.
    """
    import torch

    entries = [header.entry(name) for name in names]
    follow = all(b.start == a.end for a, b in pairwise(entries))
    if not follow or not all(
        place.dtype == torch_dtype(entry.dtype)
        and place.is_contiguous()
        and place.nbytes == entry.nbytes > 0
        for entry, place in zip(entries, places, strict=True)
    ):
        return False
    raw = [place.view(torch.uint8).numpy().data.cast("B") for place in places]
    _fill(header, raw[0], entries[0].start, *raw[1:])
    return True


def _read_run(header: Header, run: Sequence[TensorEntry]) -> list[Tensor]:
    """Tensors of one dtype without a gap between them."""
    import torch

    start, data = run[0].start, bytearray(run[-1].end - run[0].start)
    if data:
        _fill(header, memoryview(data), start)
    dtype, size = torch_dtype(run[0].dtype), ITEM_BYTES[run[0].dtype]
    return [
        torch.frombuffer(
            data, dtype=dtype, count=entry.nbytes // size, offset=entry.start - start
        ).reshape(entry.shape)
        if entry.nbytes
        else torch.empty(entry.shape, dtype=dtype)
        for entry in run
    ]


def read_elements(header: Header, name: str, first: int, count: int) -> Tensor:
    """Read elements ``first`` to ``first + count`` of a flattened tensor, (count,).

    Raises:
        CorruptFileError: The tensor is shorter.
    """
    import torch

    entry = header.entry(name)
    dtype = torch_dtype(entry.dtype)
    if count == 0:
        return torch.empty(0, dtype=dtype)
    itemsize = ITEM_BYTES[entry.dtype]
    if first < 0 or (first + count) * itemsize > entry.nbytes:
        raise CorruptFileError(
            f"Tensor {name!r} is shorter than the index of its file says.",
            where=header.path,
            expected=f"at least {first + count} elements",
            found=f"{entry.nbytes // itemsize} elements",
        )
    data = bytearray(count * itemsize)
    start = entry.start + first * itemsize
    _fill(header, memoryview(data), start)
    return torch.frombuffer(data, dtype=dtype)


def with_bytes(header: Header) -> Header:
    """The header with all bytes of its file in memory, so that it outlives the file.

    Raises:
        CorruptFileError: The file was changed since its header was read.
        StorageError: It cannot be read.
    """
    data = bytearray(header.file_bytes)
    _fill(header, memoryview(data), 0)
    close_file(header.path)
    return replace(header, held=bytes(data))


def _fill(header: Header, buffer: memoryview, start: int, *more: memoryview) -> None:
    if header.held is None:
        _POOL.pread_into(header.path, buffer, start, header.identity, more)
        return
    for part in (buffer, *more):
        part[:] = header.held[start : start + len(part)]
        start += len(part)


def close_file(path: Path) -> None:
    """Close ``path`` if the pool holds it open, before it is replaced or deleted."""
    _POOL.forget(path)


def close_below(directory: Path) -> None:
    """Close every file under ``directory``, before it is replaced or deleted."""
    _POOL.forget_below(directory)


def torch_dtype(name: str) -> torch.dtype:
    """The torch dtype of a safetensors name, such as ``BF16``."""
    import torch

    dtype: torch.dtype = getattr(torch, _TORCH_NAMES[name])
    return dtype


def dtype_name(dtype: torch.dtype) -> str:
    """The safetensors name of a torch dtype."""
    word = str(dtype).removeprefix("torch.")
    return next(name for name, torch_name in _TORCH_NAMES.items() if torch_name == word)


def write_error(path: Path, error: OSError) -> StorageError:
    """The error for an output that cannot be written, from what the operating system reports."""
    remedies = {
        errno.ENOSPC: "free some space or choose an output on another disk",
        errno.EDQUOT: "free some of your quota or choose an output on another disk",
        errno.EROFS: "choose an output on a disk that can be written to",
        errno.EACCES: "choose an output in a directory that you may write to",
        errno.EPERM: "choose an output in a directory that you may write to",
        errno.ENAMETOOLONG: "choose a shorter name",
        errno.ENOTDIR: "choose an output whose parent is a directory",
    }
    found = StorageError(
        f"The output cannot be written: {error.strerror or error}.",
        where=path,
        remedy=remedies.get(error.errno or 0, "check that the place exists and can be written to"),
    )
    return _judged(found, error)


def _judged(found: StorageError, error: OSError) -> StorageError:
    """A name that no file can have is a fault of the input, not of the disk."""
    if error.errno in (errno.ENAMETOOLONG, errno.EILSEQ):
        found.exit_code = InputError.exit_code
    return found
