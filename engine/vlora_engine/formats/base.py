"""The interface of a file format, the registry of formats, and `Probe`, their view of a place."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from vlora_engine.adapters.model import AdapterSource, ModuleShape, content_digest
from vlora_engine.adapters.unchanged import file_states
from vlora_engine.errors import FileKindError, MissingPathError, VLoRAError
from vlora_engine.findings import Finding
from vlora_engine.formats.config import parse_config, read_config_bytes
from vlora_engine.formats.contents import SafetensorsContents
from vlora_engine.formats.layout import Described
from vlora_engine.utils.file_names import ADAPTER_CONFIG, ADAPTER_GGUF, ADAPTER_WEIGHTS, MLX_FILE
from vlora_engine.utils.partials import how_to_put_back
from vlora_engine.utils.reading import kind_error
from vlora_engine.utils.safetensors_file import read_error

if TYPE_CHECKING:
    from torch import Tensor

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


@dataclass(frozen=True)
class Location:
    """The path and name of an adapter, and the format that recognised it."""

    path: Path
    name: str
    format: str


@dataclass(frozen=True)
class Inspection:
    """An adapter as its headers and config show it, without tensor data and without torch.

    ``modules`` is None where the tensors lie in a pickle, which only torch may open. ``opaque``:
    the factors are no product, so all tensors count as rest, and nothing follows from that.
    """

    path: Path
    weights: Path
    config: Mapping[str, Any]
    rank: int
    alpha: float
    base_model: str | None
    modules: Mapping[str, ModuleShape] | None
    scales: Mapping[str, float]
    rest: Mapping[str, Described]
    nbytes: int
    findings: tuple[Finding, ...]
    identity: tuple[int, int, str]
    opaque: bool = False


class FileAdapter:
    """The base of every `AdapterSource` over a file, filled from its inspection."""

    def __init__(self, inspection: Inspection) -> None:
        self.path: Path | None = inspection.path
        self.config = inspection.config
        self.modules: Mapping[str, ModuleShape] = inspection.modules or {}
        self.scales = inspection.scales
        self.rest = inspection.rest
        self.nbytes = inspection.nbytes
        self.findings = inspection.findings
        self.rank = inspection.rank
        self.files = file_states(inspection.weights, *_config_at(inspection.path))

    def read(self, module: str) -> tuple[Tensor, Tensor]:
        """A (rank, d_in) and B (d_out, rank)."""
        raise NotImplementedError

    def read_rest(self) -> dict[str, Tensor]:
        """The rest tensors, bit for bit."""
        raise NotImplementedError

    def digest(self) -> str:
        """sha256 over the tensors and scales, the same as of the adapter in memory."""
        return content_digest(self)


def _config_at(path: Path) -> list[Path]:
    config = path / ADAPTER_CONFIG
    return [config] if config.is_file() else []


def odd_file_error(directory: Path) -> FileKindError | None:
    """The error for something else in the place of an adapter's file; None where all are files."""
    names = (ADAPTER_CONFIG, *ADAPTER_WEIGHTS, ADAPTER_GGUF, MLX_FILE)
    return next(filter(None, (kind_error(directory / name) for name in names)), None)


class Format(Protocol):
    """The interface of a file format of adapters."""

    @property
    def name(self) -> str:
        """A word for it, unique in the registry."""

    def detect(self, probe: Probe) -> bool:
        """Whether what lies at ``probe.path`` is of this format; never raises on bad content."""

    def inspect(self, probe: Probe, *, allow_unsupported: bool = False) -> Inspection:
        """Headers only, no torch; raises what `open` would raise on the same grounds."""

    def open(self, probe: Probe, *, allow_unsupported: bool = False) -> AdapterSource:
        """A source that reads one module at a time."""


class Registry:
    """The formats, in the order in which they are tried."""

    def __init__(self) -> None:
        self._formats: dict[str, Format] = {}

    def add(self, form: Format, *, before: str | None = None) -> None:
        """Register ``form``; two of one name are a fault of the program.

        Args:
            before: The format that is tried only after it; by default it is tried last.
        """
        if form.name in self._formats:
            raise ValueError(f"two formats are called {form.name!r}")
        forms = list(self._formats.values())
        forms.insert(self.names().index(before) if before else len(forms), form)
        self._formats = {each.name: each for each in forms}

    def find(self, probe: Probe) -> Format | None:
        """The first format that recognises ``probe``."""
        return next((form for form in self._formats.values() if form.detect(probe)), None)

    def names(self) -> list[str]:
        """All names, in order."""
        return list(self._formats)

    def __getitem__(self, name: str) -> Format:
        return self._formats[name]


class Probe:
    """A file or directory that formats examine; its parts are read once, when first needed.

    A path to PEFT's own files means the directory they lie in.
    """

    def __init__(self, path: Path, names: frozenset[str] | None = None) -> None:
        if path.name in (*ADAPTER_WEIGHTS, ADAPTER_CONFIG) and path.is_file():
            self._named_weights = path if path.name in ADAPTER_WEIGHTS else None
            path = path.parent
        else:
            self._named_weights = None
        self.path = path
        if names is None:
            names = _file_names(path)
        self.file: Path | None = None if names is not None else path
        self.directory: Path = path if names is not None else path.parent
        self.names: frozenset[str] = names if names is not None else frozenset()

    @cached_property
    def config_path(self) -> Path:
        """The path of adapter_config.json, there or not."""
        return self.directory / ADAPTER_CONFIG

    @cached_property
    def has_config(self) -> bool:
        if self.file is not None:
            return self.config_path.is_file()
        return ADAPTER_CONFIG in self.names

    @cached_property
    def config_bytes(self) -> bytes:
        """adapter_config.json as it lies there; raises as `read_config_bytes`."""
        return read_config_bytes(self.config_path)

    @cached_property
    def config(self) -> dict[str, Any]:
        """adapter_config.json; raises as `read_config_bytes` and `parse_config`."""
        return parse_config(self.config_bytes, self.config_path)

    @cached_property
    def loose_config(self) -> Mapping[str, Any]:
        """The config for recognising formats: empty when there is none or it is broken."""
        try:
            return self.config if self.has_config else {}
        except VLoRAError:
            return {}

    @cached_property
    def weights(self) -> Path | None:
        """PEFT's tensor file, safetensors before pickle; a file that was named is itself."""
        if self.file is not None:
            return self.file
        if self._named_weights is not None:
            return self._named_weights
        return next((self.directory / name for name in ADAPTER_WEIGHTS if name in self.names), None)

    @cached_property
    def tensor_file(self) -> Path | None:
        """The file by whose keys formats are recognised: ``weights`` or the only safetensors."""
        if self.weights is not None:
            return self.weights
        candidates = sorted(name for name in self.names if name.endswith(".safetensors"))
        return self.directory / candidates[0] if len(candidates) == 1 else None

    @cached_property
    def contents(self) -> SafetensorsContents:
        """The header of ``tensor_file``; raises as `read_header`."""
        path = self.tensor_file
        if path is None:
            raise MissingPathError("There is no tensor file here.", where=self.path)
        return SafetensorsContents(path)

    @cached_property
    def keys(self) -> frozenset[str]:
        """The tensor names in ``tensor_file``, empty where a header does not tell them."""
        path = self.tensor_file
        if path is None or path.suffix in PICKLES:
            return frozenset()
        try:
            return frozenset(self.contents.tensors)
        except VLoRAError:
            return frozenset()

    def identity(self, *files: Path) -> tuple[int, int, str]:
        """Bytes, newest modification and a digest of headers and config: what a cache goes by."""
        size, newest, sha = 0, 0, hashlib.sha256()
        for path in files:
            try:
                status = path.stat()
            except OSError as error:
                raise read_error(path, error) from None
            size += status.st_size
            newest = max(newest, status.st_mtime_ns)
        if self.has_config:
            sha.update(self.config_bytes)
        if files and files[0].suffix not in PICKLES and files[0] == self.tensor_file:
            sha.update(self.contents.header.digest.encode())
        return size, newest, sha.hexdigest()


def _file_names(path: Path) -> frozenset[str] | None:
    """The names in a directory; None for a file."""
    try:
        return frozenset(os.listdir(path))
    except NotADirectoryError:
        return None
    except FileNotFoundError:
        raise MissingPathError(
            "There is no such file or directory.", where=path, remedy=how_to_put_back(path)
        ) from None
    except OSError as error:
        raise read_error(path, error) from None
