"""List and read the tensors of one file, safetensors or pickle, one at a time."""

from __future__ import annotations

import errno
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from vlora_engine.errors import AdapterError, CorruptFileError, UnsupportedAdapterError
from vlora_engine.formats.layout import Described
from vlora_engine.utils.json_reader import is_whole
from vlora_engine.utils.reading import open_file
from vlora_engine.utils.safetensors_file import (
    LFS_POINTER,
    Header,
    dtype_name,
    lfs_pointer_error,
    missing_error,
    read_error,
    read_header,
    read_tensor,
    read_tensors,
    read_tensors_into,
)

if TYPE_CHECKING:
    from torch import Tensor


class Contents(Protocol):
    """Named tensors of one file; reading may happen from several threads."""

    @property
    def path(self) -> Path:
        """The file that the tensors are in."""

    @property
    def tensors(self) -> Mapping[str, Described]:
        """dtype and shape of every tensor."""

    @property
    def metadata(self) -> Mapping[str, str]:
        """The file's metadata; empty for a pickle."""

    @property
    def nbytes(self) -> int:
        """Bytes of the file."""

    def read(self, name: str) -> Tensor:
        """One tensor, in memory of its own."""

    def read_many(self, names: Sequence[str]) -> list[Tensor]:
        """Some tensors, which may share memory."""

    def read_into(self, names: Sequence[str], places: Sequence[Tensor]) -> bool:
        """Read some tensors into places of their dtypes and shapes; False where it cannot be."""


class SafetensorsContents:
    """The header of a safetensors file, and its tensors when they are asked for."""

    def __init__(self, path: Path) -> None:
        self.header: Header = read_header(path)
        self.path = path
        self.metadata = self.header.metadata
        self.nbytes = self.header.file_bytes
        self.tensors = {
            name: (entry.dtype, entry.shape) for name, entry in self.header.entries.items()
        }

    def read(self, name: str) -> Tensor:
        return read_tensor(self.header, name)

    def read_many(self, names: Sequence[str]) -> list[Tensor]:
        return read_tensors(self.header, names)

    def read_into(self, names: Sequence[str], places: Sequence[Tensor]) -> bool:
        return read_tensors_into(self.header, names, places)


class PickleContents:
    """A file of ``torch.save``, opened by ``torch.load(weights_only=True)`` and nothing else.

    A zip file (torch 1.6 and later) is mapped, not read; an older one is read as a whole. Mapped
    pages count as resident memory once they are touched, though the system may take them back.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metadata: dict[str, str] = {}
        self.nbytes = _check_pickle_file(path)
        self._mapped = _load_pickle(path)
        self.tensors = {
            name: _described(path, name, value, self.nbytes) for name, value in self._mapped.items()
        }

    def read(self, name: str) -> Tensor:
        return self._mapped[name].detach().clone().contiguous()

    def read_many(self, names: Sequence[str]) -> list[Tensor]:
        return [self.read(name) for name in names]

    def read_into(self, names: Sequence[str], places: Sequence[Tensor]) -> bool:
        return False


def _check_pickle_file(path: Path) -> int:
    try:
        size = path.stat().st_size
        with open_file(path) as file:
            start = file.read(len(LFS_POINTER))
    except FileNotFoundError:
        raise missing_error(path) from None
    except OSError as error:
        raise read_error(path, error) from None
    if start == LFS_POINTER:
        raise lfs_pointer_error(path)
    if size == 0:
        raise _damaged_error(path, "an empty file")
    return size


def _load_pickle(path: Path) -> dict[str, Tensor]:
    import torch

    try:
        try:
            value = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap" not in str(error):
                raise
            value = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise _not_tensors_error(path, error) from None
    except OSError as error:
        if error.errno == errno.EINVAL:  # torch seeks before the start of a file that is too short
            raise _damaged_error(path, "bytes that are neither") from None
        raise read_error(path, error) from None
    except MemoryError:
        raise _damaged_error(path, "sizes beyond this machine's memory") from None
    except Exception as error:  # a damaged pickle can fail in any way
        raise _damaged_error(path, str(error).split("\n")[0][:200]) from None
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
        raise _not_a_state_dict_error(path, type(value).__name__)
    halved = next((name for name in value if not is_whole(name)), None)
    if halved is not None:
        raise _damaged_error(path, f"half a letter in a name: {halved[:80]!a}")
    return value


def _described(path: Path, name: str, value: Any, file_bytes: int) -> Described:
    import torch

    if not isinstance(value, torch.Tensor):
        raise _not_a_state_dict_error(path, f"{type(value).__name__} under {name!r}")
    if value.layout is not torch.strided or value.is_quantized or value.device.type != "cpu":
        raise UnsupportedAdapterError(
            f"Tensor {name!r} is not stored as a plain array.",
            where=path,
            expected="a dense tensor",
            found=f"{value.layout}, {value.dtype}, on {value.device}",
            remedy="save the adapter again with dense tensors",
        )
    # A view can claim more elements than the file has bytes.
    if value.numel() * value.element_size() > file_bytes:
        raise CorruptFileError(
            f"Tensor {name!r} is larger than the file that holds it.",
            where=path,
            expected=f"at most {file_bytes} bytes",
            found=f"{value.numel() * value.element_size()} bytes, shape {tuple(value.shape)}",
            remedy="save the adapter again with contiguous tensors",
        )
    try:
        return dtype_name(value.dtype), tuple(value.shape)
    except StopIteration:
        raise UnsupportedAdapterError(
            f"Tensor {name!r} has a dtype that safetensors cannot hold.",
            where=path,
            expected="a real floating-point, integer or boolean dtype",
            found=str(value.dtype),
            remedy="save the adapter again without that tensor",
        ) from None


_SAFER = "save it again as safetensors on a machine where you trust it: safetensors.torch.save_file"


def _not_tensors_error(path: Path, error: Exception) -> AdapterError:
    reason = str(error).split("\n")
    culprit = next((line.strip() for line in reason if "GLOBAL" in line), reason[0])
    return UnsupportedAdapterError(
        "The pickle holds more than tensors, and is not opened: it could run any program.",
        where=path,
        expected="what torch.load(weights_only=True) accepts",
        found=culprit[:200],
        remedy=_SAFER,
        code="unsafe-pickle",
    )


def _not_a_state_dict_error(path: Path, found: str) -> AdapterError:
    return AdapterError(
        "The file is not a flat table of named tensors.",
        where=path,
        expected="a dict of tensors, as model.save_pretrained writes it",
        found=found,
        remedy=_SAFER,
        code="not-tensors",
    )


def _damaged_error(path: Path, found: str) -> CorruptFileError:
    return CorruptFileError(
        "The file is not a sound file of torch.save.",
        where=path,
        expected="a zip archive or pickle of tensors",
        found=found or "bytes that are neither",
        remedy="download or copy it again",
        code="corrupt-file",
    )
