"""Store the finished layers of a build in progress, each in a file with its checksum."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from vlora_engine.errors import VLoRAError
from vlora_engine.manifest.manifest import LayerSpec
from vlora_engine.quantization.packed import PackedBasis, PackedRows
from vlora_engine.quantization.packing import Packing
from vlora_engine.subspace.basis import BuiltLayer, LayerBasis
from vlora_engine.subspace.loadings import Loadings, TaskLayer
from vlora_engine.utils.files import sha256_file, write_file
from vlora_engine.utils.memory import room
from vlora_engine.utils.reading import read_file
from vlora_engine.utils.safetensors_file import (
    Header,
    close_file,
    read_elements,
    read_header,
    read_tensor,
)
from vlora_engine.utils.tensor_writer import write_tensors
from vlora_engine.utils.workers import at_a_time

TASKS_AT_ONCE = 64  # at most; fewer where they are large
COPIES = 4  # of a task's loadings while its file is made of them
Share = TypeVar("Share")  # one task's part of one layer
_PACKED = ("codes", "scales", "steps")


class SealedLayers:
    """A directory of finished layers; those of another ``fingerprint`` are thrown away.

    Args:
        max_memory: As of `RunContext`.
    """

    def __init__(self, directory: Path, fingerprint: str, max_memory: int | None = None) -> None:
        self._max_memory = max_memory
        self.directory = directory / "layers"
        mark = self.directory / "fingerprint"
        same = mark.exists() and read_file(mark) == fingerprint.encode()
        if self.directory.exists() and not same:
            shutil.rmtree(self.directory)
        self.directory.mkdir(exist_ok=True)
        write_file(mark, fingerprint)
        self._headers: dict[int, Header] = {}
        self._contents: dict[int, dict[str, Any]] = {}

    def has(self, index: int) -> bool:
        """Whether the layer is there and its bytes are those that were written."""
        path, seal = self._file(index), self._seal(index)
        with suppress(OSError, VLoRAError):
            return read_file(seal) == sha256_file(path).encode()
        return False

    def put(self, index: int, tensors: dict[str, Tensor], content: dict[str, Any]) -> None:
        """Write one layer, then its checksum."""
        path = self._file(index)
        close_file(path)
        path.unlink(missing_ok=True)
        self._headers.pop(index, None)
        sha256 = write_tensors(path, tensors, {"layer": json.dumps(content)})
        write_file(self._seal(index), sha256)

    def indices(self) -> list[int]:
        """The layers that are there, in order."""
        return sorted(int(path.stem) for path in self.directory.glob("*.safetensors"))

    def by_task(
        self, names: Sequence[str], collect: Callable[[int, dict[str, list[Share]]], None]
    ) -> Iterator[tuple[str, list[Share]]]:
        """Every task with what ``collect`` finds of it in each layer, some tasks at a time."""
        nbytes = sum(self._file(index).stat().st_size for index in self.indices())
        need = COPIES * nbytes // max(1, len(names))
        space = room(self._max_memory)
        space.require(need, "one task of all layers")
        count = at_a_time([need], TASKS_AT_ONCE, space.nbytes)
        for start in range(0, len(names), count):
            shares: dict[str, list[Share]] = {n: [] for n in names[start : start + count]}
            for index in self.indices():
                collect(index, shares)
            yield from shares.items()

    def open(self, index: int) -> tuple[Header, dict[str, Any]]:
        """A layer's header, and its content that is no tensor."""
        if index not in self._headers:
            header = read_header(self._file(index))
            self._headers[index] = header
            self._contents[index] = json.loads(header.metadata["layer"])
        return self._headers[index], self._contents[index]

    def _file(self, index: int) -> Path:
        return self.directory / f"{index:05d}.safetensors"

    def _seal(self, index: int) -> Path:
        return self.directory / f"{index:05d}.sha256"


class LayerParts(SealedLayers):
    """Finished layers of a build: basis, loadings of all tasks, figures."""

    def write(self, index: int, layer: BuiltLayer) -> None:
        """Write one finished layer."""
        basis = layer.basis
        tensors = {"sv_a": basis.singular_values_a, "sv_b": basis.singular_values_b}
        rows: dict[str, Any] = {"a": basis.a, "b": basis.b}
        if basis.mean_a is not None and basis.mean_b is not None:
            rows |= {"mean_a": basis.mean_a, "mean_b": basis.mean_b}
        if basis.packed is None:
            tensors |= rows
        for name in rows if basis.packed is not None else ():
            packed: PackedRows = getattr(basis.packed, name)
            tensors |= {f"{name}.{part}": getattr(packed, part) for part in _PACKED}
            rows[name] = {
                "packing": packed.packing.as_json(),
                "shape": packed.shape,
                "exponent": packed.exponent,
            }
        tensors |= {
            "values": torch.cat([loadings.values for loadings in layer.loadings]),
            "scales": torch.cat([loadings.scales for loadings in layer.loadings]),
            "exponents": torch.stack([loadings.exponents for loadings in layer.loadings]),
        }
        tensors |= {"energy": layer.energy, "residual": layer.residual}
        content = {
            "name": basis.name,
            "rank": basis.rank,
            "tasks": layer.tasks,
            "k": [len(basis.a), len(basis.b)],
            "lengths": [len(loadings.values) for loadings in layer.loadings],
            "scales": [len(loadings.scales) for loadings in layer.loadings],
            "packed": rows if basis.packed is not None else None,
        }
        self.put(index, tensors, content)

    def spec(self, index: int, spec: LayerSpec) -> LayerSpec:
        """``spec`` with the k that the layer was built with."""
        k_a, k_b = self.open(index)[1]["k"]
        return replace(spec, k_a=k_a, k_b=k_b)

    def basis(self, index: int) -> LayerBasis:
        """The shared part of one layer."""
        header, content = self.open(index)
        if content["packed"] is not None:
            return LayerBasis.unpacked(self._packed(header, content))
        means: dict[str, Any] = {
            name: read_tensor(header, name)
            for name in ("mean_a", "mean_b")
            if name in header.entries
        }
        return LayerBasis(
            name=content["name"],
            a=read_tensor(header, "a"),
            b=read_tensor(header, "b"),
            singular_values_a=read_tensor(header, "sv_a"),
            singular_values_b=read_tensor(header, "sv_b"),
            rank=content["rank"],
            **means,
        )

    def _packed(self, header: Header, content: dict[str, Any]) -> PackedBasis:
        rows: dict[str, Any] = {
            name: PackedRows(
                packing=Packing(**row["packing"]),
                shape=tuple(row["shape"]),
                exponent=row["exponent"],
                **{part: read_tensor(header, f"{name}.{part}") for part in _PACKED},
            )
            for name, row in content["packed"].items()
        }
        return PackedBasis(
            name=content["name"],
            singular_values_a=read_tensor(header, "sv_a"),
            singular_values_b=read_tensor(header, "sv_b"),
            rank=content["rank"],
            **rows,
        )

    def figures(self, index: int) -> tuple[list[str], Tensor, Tensor]:
        """The tasks that have a layer, ||dW||^2 of each there, and what is missed of it."""
        header, content = self.open(index)
        return content["tasks"], read_tensor(header, "energy"), read_tensor(header, "residual")

    def layer_error(self, index: int) -> float:
        """Mean over tasks of the layer's relative error."""
        _, energy, residual = self.figures(index)
        share = torch.where(energy > 0, residual / energy, torch.zeros_like(energy))
        return float(share.sqrt().mean())

    def tasks(self, names: Sequence[str]) -> Iterator[tuple[str, list[TaskLayer]]]:
        """Every task with its share of each layer that has it, some tasks in memory at a time."""
        return self.by_task(names, self._collect)

    def _collect(self, index: int, shares: dict[str, list[TaskLayer]]) -> None:
        header, content = self.open(index)
        exponents = read_tensor(header, "exponents")
        energy = read_tensor(header, "energy").tolist()
        residual = read_tensor(header, "residual").tolist()
        offset = first = 0
        found, lengths, counts = list[tuple[int, str]](), list[int](), list[int]()
        sizes = zip(content["tasks"], content["lengths"], content["scales"], strict=True)
        for i, (name, length, count) in enumerate(sizes):
            if name in shares:  # which follow each other
                found.append((i, name))
                lengths.append(length)
                counts.append(count)
            elif not found:
                offset, first = offset + length, first + count
        values = read_elements(header, "values", offset, sum(lengths)).split(lengths)
        scales = read_elements(header, "scales", first, sum(counts)).split(counts)
        for (i, name), *parts in zip(found, values, scales, strict=True):
            loadings = Loadings(parts[0], exponents[i], parts[1])
            shares[name].append(TaskLayer(loadings, energy[i], residual[i]))
