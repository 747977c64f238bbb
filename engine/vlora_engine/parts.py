"""The finished layers of a build that is under way, each in a file that vouches for itself."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from vlora_engine.encode import TaskLayer
from vlora_engine.errors import VLoRAError
from vlora_engine.files import sha256_file, write_file
from vlora_engine.layer import BuiltLayer, LayerBasis
from vlora_engine.manifest import LayerSpec
from vlora_engine.tensorfile import (
    Header,
    close_file,
    read_elements,
    read_header,
    read_tensor,
    write_tensors,
)

TASKS_AT_ONCE = 64


class LayerParts:
    """A directory of finished layers; those of another ``fingerprint`` are thrown away."""

    def __init__(self, directory: Path, fingerprint: str) -> None:
        self.directory = directory / "layers"
        mark = self.directory / "fingerprint"
        if self.directory.exists() and (not mark.exists() or mark.read_text() != fingerprint):
            shutil.rmtree(self.directory)
        self.directory.mkdir(exist_ok=True)
        write_file(mark, fingerprint)
        self._headers: dict[int, Header] = {}
        self._contents: dict[int, dict[str, Any]] = {}

    def has(self, index: int) -> bool:
        """Whether the layer is there and its bytes are those that were written."""
        path, seal = self._file(index), self._seal(index)
        with suppress(OSError, VLoRAError):
            return seal.read_text() == sha256_file(path)
        return False

    def write(self, index: int, layer: BuiltLayer) -> None:
        """Keep one layer."""
        path, basis = self._file(index), layer.basis
        tensors = {"a": basis.a, "b": basis.b}
        tensors |= {"sv_a": basis.singular_values_a, "sv_b": basis.singular_values_b}
        if basis.mean_a is not None and basis.mean_b is not None:
            tensors |= {"mean_a": basis.mean_a, "mean_b": basis.mean_b}
        tensors |= {"values": torch.cat(layer.values), "exponents": layer.exponents}
        tensors |= {"energy": layer.energy, "residual": layer.residual}
        content = {
            "name": basis.name,
            "rank": basis.rank,
            "tasks": layer.tasks,
            "lengths": [len(v) for v in layer.values],
        }
        close_file(path)
        path.unlink(missing_ok=True)
        sha256 = write_tensors(path, tensors, {"layer": json.dumps(content)})
        write_file(self._seal(index), sha256)

    def spec(self, index: int, spec: LayerSpec) -> LayerSpec:
        """``spec`` with the k that the layer was built with."""
        entries = self._open(index).entries
        return replace(spec, k_a=entries["a"].shape[0], k_b=entries["b"].shape[0])

    def basis(self, index: int) -> LayerBasis:
        """The shared part of one layer."""
        header = self._open(index)
        content = self._contents[index]
        means = {
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

    def layer_error(self, index: int) -> float:
        """Mean over tasks of the layer's relative error."""
        header = self._open(index)
        energy, residual = read_tensor(header, "energy"), read_tensor(header, "residual")
        share = torch.where(energy > 0, residual / energy, torch.zeros_like(energy))
        return float(share.sqrt().mean())

    def tasks(self, names: Sequence[str]) -> Iterator[tuple[str, list[TaskLayer]]]:
        """Every task with its share of each layer that has it, some tasks in memory at a time."""
        for start in range(0, len(names), TASKS_AT_ONCE):
            block = names[start : start + TASKS_AT_ONCE]
            shares: dict[str, list[TaskLayer]] = {name: [] for name in block}
            for index in sorted(self._indices()):
                self._collect(index, shares)
            yield from shares.items()

    def _collect(self, index: int, shares: dict[str, list[TaskLayer]]) -> None:
        header = self._open(index)
        content = self._contents[index]
        exponents = read_tensor(header, "exponents")
        energy = read_tensor(header, "energy").tolist()
        residual = read_tensor(header, "residual").tolist()
        offset = 0
        for i, (name, length) in enumerate(zip(content["tasks"], content["lengths"], strict=True)):
            if name in shares:
                values = read_elements(header, "values", offset, length)
                shares[name].append(TaskLayer(values, exponents[i], energy[i], residual[i]))
            offset += length

    def _indices(self) -> list[int]:
        return [int(path.stem) for path in self.directory.glob("*.safetensors")]

    def _open(self, index: int) -> Header:
        if index not in self._headers:
            header = read_header(self._file(index))
            self._headers[index] = header
            self._contents[index] = json.loads(header.metadata["layer"])
        return self._headers[index]

    def _file(self, index: int) -> Path:
        return self.directory / f"{index:05d}.safetensors"

    def _seal(self, index: int) -> Path:
        return self.directory / f"{index:05d}.sha256"
