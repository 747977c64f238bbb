"""Read adapters of other tools whose modules are products of two factors under other names.

A format gives the tensors that belong together and their scale (`Parts`); reading, inspecting and
the config that PEFT would need are the same for all of them.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlora_engine.adapters.model import AdapterSource
from vlora_engine.errors import AdapterError, CorruptFileError
from vlora_engine.findings import Finding
from vlora_engine.formats.adapter_findings import unread_pickle
from vlora_engine.formats.base import PICKLES, FileAdapter, Inspection, Probe
from vlora_engine.formats.contents import Contents, PickleContents, SafetensorsContents
from vlora_engine.formats.layout import Described, Pair, check_name, pair_of
from vlora_engine.formats.peft_save import ORIGIN, config_of_other_tool
from vlora_engine.formats.rest_tensors import rest_findings
from vlora_engine.utils.safetensors_file import read_bytes

if TYPE_CHECKING:
    from torch import Tensor

Marks = Callable[[Iterable[str], Mapping[str, str]], bool]


@dataclass(frozen=True)
class Parts:
    """The tensors of a file, grouped into factors, scales and the rest.

    Args:
        pairs: The factors of every module, sorted by module.
        scales: The scale of every module.
        rest: Every tensor that is neither a factor nor a scale.
        base_model: Where the file says so.
        origin: The tool's metadata that PEFT's config has no place for.
        findings: What is unusual or wrong; tensors that are read as scales are named here.
    """

    pairs: Mapping[str, Pair]
    scales: Mapping[str, float]
    rest: Mapping[str, Described] = field(default_factory=dict)
    base_model: str | None = None
    origin: Mapping[str, Any] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()


class PlainAdapter(FileAdapter):
    """An `AdapterSource` over a file of such pairs.

    Args:
        transposed: A lies there as (d_in, rank), B as (rank, d_out).
    """

    def __init__(
        self,
        inspection: Inspection,
        contents: Contents,
        pairs: Mapping[str, Pair],
        transposed: bool = False,
    ) -> None:
        super().__init__(inspection)
        self._contents, self._pairs, self._transposed = contents, pairs, transposed

    def read(self, module: str) -> tuple[Tensor, Tensor]:
        """A (rank, d_in) and B (d_out, rank); a convolution's kernel is flattened into d_in."""
        pair = self._pairs[module]
        return self._flat(pair, self._contents.read(pair.key_a), self._contents.read(pair.key_b))

    def read_many(self, modules: Sequence[str]) -> list[tuple[Tensor, Tensor]]:
        """A and B of some modules; see `read_modules`."""
        pairs = [self._pairs[module] for module in modules]
        keys = [key for pair in pairs for key in (pair.key_a, pair.key_b)]
        tensors = iter(self._contents.read_many(keys))
        return [self._flat(pair, next(tensors), next(tensors)) for pair in pairs]

    def read_into(self, module: str, a: Tensor, b: Tensor) -> bool:
        """Read a module into A and B of its shape; False where that takes a copy."""
        pair = self._pairs[module]
        if self._transposed:
            return False
        return self._contents.read_into((pair.key_a, pair.key_b), (a, b))

    def _flat(self, pair: Pair, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        shape = pair.shape
        if self._transposed:
            return a.T.contiguous(), b.T.contiguous()
        if shape.kind == "linear":
            return a, b
        return a.reshape(shape.rank, shape.d_in), b.reshape(shape.d_out, shape.rank)

    def read_rest(self) -> dict[str, Tensor]:
        """The rest tensors, bit for bit."""
        return {name: self._contents.read(name) for name in self.rest}


@dataclass(frozen=True)
class PlainFormat:
    """One such format.

    Args:
        name: Its word in the registry. label: Its name in messages.
        parts: From the tensors and the place to what belongs together.
        marks: Whether a file with these keys and metadata is of it.
        files: Names whose presence in a directory settles it, the preferred one first.
        transposed: As `PlainAdapter` has it.
    """

    name: str
    label: str
    parts: Callable[[Probe, Contents], Parts]
    marks: Marks
    files: tuple[str, ...] = ()
    transposed: bool = False

    def detect(self, probe: Probe) -> bool:
        """Whether this format recognises what lies there; see `Format`."""
        if "peft_type" in probe.loose_config:
            return False  # PEFT's own reader names what it finds under PEFT's names
        if any(name in probe.names for name in self.files):
            return True
        if probe.file is not None and probe.file.name in self.files:
            return True
        if probe.file is None and probe.has_config and not self.transposed:
            return False
        return bool(probe.keys) and self.marks(probe.keys, probe.contents.metadata)

    def inspect(self, probe: Probe, *, allow_unsupported: bool = False) -> Inspection:
        """Read the headers of an adapter, not the tensors of a pickle; see `Format`."""
        path = self.file(probe)
        if path.suffix in PICKLES:
            return self._unread(probe, path)
        contents = contents_of(probe, path)
        return self._inspection(probe, contents, self.parts(probe, contents))

    def open(self, probe: Probe, *, allow_unsupported: bool = False) -> AdapterSource:
        """Open an adapter to read it, also a pickle, by torch; see `Format`."""
        return self.read(probe, contents_of(probe, self.file(probe)))

    def read(self, probe: Probe, contents: Contents) -> AdapterSource:
        """The adapter whose tensors are in ``contents``."""
        parts = self.parts(probe, contents)
        inspection = self._inspection(probe, contents, parts)
        return PlainAdapter(inspection, contents, parts.pairs, self.transposed)

    def file(self, probe: Probe) -> Path:
        """The file that holds the tensors."""
        named = next((name for name in self.files if name in probe.names), None)
        if named is not None:
            return probe.directory / named
        return probe.tensor_file or probe.path

    def _inspection(self, probe: Probe, contents: Contents, parts: Parts) -> Inspection:
        if not parts.pairs:
            raise no_factors_error(self.label, contents)
        ranks = {module: pair.shape.rank for module, pair in parts.pairs.items()}
        config = config_of_other_tool(
            ranks, parts.scales, parts.base_model, {"format": self.name, **parts.origin}
        )
        files = [contents.path, *([probe.config_path] if probe.has_config else [])]
        identity = probe.identity(*files)
        if isinstance(contents, SafetensorsContents):
            identity = (*identity[:2], f"{identity[2]}{contents.header.digest}")
        return Inspection(
            path=probe.path,
            weights=contents.path,
            config=config,
            rank=config["r"],
            alpha=config["lora_alpha"],
            base_model=parts.base_model,
            modules={module: pair.shape for module, pair in parts.pairs.items()},
            scales=dict(parts.scales),
            rest=dict(sorted(parts.rest.items())),
            nbytes=identity[0],
            findings=(
                *parts.findings,
                *rest_findings(parts.rest, str(contents.path), identity[0]),
                *_beside(self, probe),
            ),
            identity=identity,
        )

    def _unread(self, probe: Probe, path: Path) -> Inspection:
        identity = probe.identity(path)
        return Inspection(
            path=probe.path,
            weights=path,
            config={ORIGIN: {"format": self.name}},
            rank=0,
            alpha=0.0,
            base_model=None,
            modules=None,
            scales={},
            rest={},
            nbytes=identity[0],
            findings=(unread_pickle(path),),
            identity=identity,
        )


def contents_of(probe: Probe, path: Path) -> Contents:
    """The tensors in ``path``, of which only a pickle needs torch."""
    if path.suffix in PICKLES:
        return PickleContents(path)
    return probe.contents if path == probe.tensor_file else SafetensorsContents(path)


def paired(
    factors: Mapping[str, Mapping[str, str]],
    tensors: Mapping[str, Described],
    where: Path,
    *,
    transposed: bool = False,
) -> dict[str, Pair]:
    """Modules from the keys of their factors: ``{module: {"A": key, "B": key}}``.

    Raises:
        AdapterError: Half a pair, or as `pair_of`.
    """
    pairs = {}
    for module in sorted(factors):
        sides = factors[module]
        for key in sides.values():
            check_name(key, where)
        if len(sides) < 2:
            (key,) = sides.values()
            raise AdapterError(
                f"Module {module!r} has only one of its two factors.",
                module=module,
                file=where,
                tensor=key,
                expected="the other factor beside it",
                found="no such tensor",
                remedy="save or download the adapter again: it is not complete",
            )
        described = {key: tensors[key] for key in sides.values()}
        if transposed:
            described = {key: (dtype, shape[::-1]) for key, (dtype, shape) in described.items()}
        pairs[module] = pair_of(module, sides, described, where)
    return pairs


def scalar(contents: Contents, name: str) -> float:
    """The one finite number in a tensor, read without torch where the file allows it.

    Raises:
        AdapterError: It holds another count of numbers, or no finite one.
    """
    dtype, shape = contents.tensors[name]
    value = math.nan
    if math.prod(shape) == 1:
        if isinstance(contents, SafetensorsContents):
            value = _number(dtype, bytes(read_bytes(contents.header, name)))
        else:
            value = float(contents.read(name).item())
    if not math.isfinite(value):
        raise AdapterError(
            "An alpha is not one finite number.",
            file=contents.path,
            tensor=name,
            expected="a scalar",
            found=f"{dtype} {list(shape)}, {value:g}"
            if math.prod(shape) == 1
            else str(list(shape)),
            remedy="save the adapter again where it was trained",
        )
    return value


_LETTERS = {"F64": "d", "F32": "f", "F16": "e", "I64": "q", "I32": "i", "I16": "h", "I8": "b"}


def _number(dtype: str, raw: bytes) -> float:
    if dtype == "BF16":
        dtype, raw = "F32", b"\0\0" + raw
    letter = _LETTERS.get(dtype)
    return float(struct.unpack(f"<{letter}", raw)[0]) if letter else math.nan


def no_factors_error(label: str, contents: Contents) -> AdapterError:
    """The error for a file of a known format without any module."""
    return AdapterError(
        f"The file looks like {label}, but has no pair of factors.",
        where=contents.path,
        found=f"{len(contents.tensors)} tensors"
        + (f", such as {min(contents.tensors)}" if contents.tensors else ""),
        remedy="save or download the adapter again",
    )


def _beside(form: PlainFormat, probe: Probe) -> Sequence[Finding]:
    """Other tensor files in the directory, such as the checkpoints of MLX-LM, are not read."""
    if not form.files or probe.file is not None:
        return ()
    read_file = form.file(probe).name
    others = sorted(
        name
        for name in probe.names
        if name.endswith((".safetensors", ".npz", *PICKLES)) and name != read_file
    )
    if not others:
        return ()
    what = f"{len(others)} more tensor files beside {read_file}, not read: {', '.join(others[:4])}."
    return (
        Finding("files-beside", "note", what, "name one to read it", file=str(probe.directory)),
    )


def unreadable_number(where: Path, name: str, value: Any) -> CorruptFileError:
    """The error for a setting of a config that is no finite number."""
    return CorruptFileError(
        f"The field {name!r} of the adapter's config is not what it should be.",
        where=where,
        expected="a finite number",
        found=repr(value)[:80],
        remedy=f"mend {name!r} in that file",
    )
