"""Store coded layers while a collection is being coded: in memory, or in checksummed files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from vlora_engine.codec.layer import CodedLayer
from vlora_engine.codec.tables import Array
from vlora_engine.subspace.layer_parts import SealedLayers
from vlora_engine.utils.safetensors_file import read_elements, read_tensor


@dataclass(frozen=True)
class TaskShare:
    """One task's share of one layer: its bytes, ||dW||^2 and what they miss of it."""

    blob: bytes
    energy: float
    residual: float


class Parts(Protocol):
    """The interface of a store of coded layers, by index."""

    def has(self, index: int) -> bool:
        """Whether the layer is there and sound."""

    def write(self, index: int, layer: CodedLayer) -> None:
        """Keep a layer."""

    def figures(self, index: int) -> tuple[list[str], Array, Array, int]:
        """Tasks, energies, residuals and bytes of a layer."""

    def shared(self, index: int) -> dict[int, bytes]:
        """What groups share on a layer."""

    def tasks(self, names: Sequence[str]) -> Iterator[tuple[str, list[TaskShare]]]:
        """Every task with its share of each layer that has it."""


@dataclass
class MemoryParts:
    """`Parts` in memory."""

    layers: dict[int, CodedLayer] = field(default_factory=dict)

    def has(self, index: int) -> bool:
        return index in self.layers

    def write(self, index: int, layer: CodedLayer) -> None:
        self.layers[index] = layer

    def figures(self, index: int) -> tuple[list[str], Array, Array, int]:
        layer = self.layers[index]
        return layer.tasks, layer.energy, layer.residual, layer.nbytes

    def shared(self, index: int) -> dict[int, bytes]:
        return self.layers[index].shared

    def tasks(self, names: Sequence[str]) -> Iterator[tuple[str, list[TaskShare]]]:
        for name in names:
            shares = []
            for index in sorted(self.layers):
                layer = self.layers[index]
                if name in layer.tasks:
                    i = layer.tasks.index(name)
                    energy, residual = float(layer.energy[i]), float(layer.residual[i])
                    shares.append(TaskShare(layer.blobs[i], energy, residual))
            yield name, shares


class FileParts(SealedLayers):
    """`Parts` in a directory; those of another fingerprint are thrown away."""

    def write(self, index: int, layer: CodedLayer) -> None:
        content = {"tasks": layer.tasks, "groups": sorted(layer.shared)}
        shared = [layer.shared[number] for number in sorted(layer.shared)]
        tensors = {
            "energy": torch.from_numpy(layer.energy),
            "residual": torch.from_numpy(layer.residual),
            "sizes": _counts(map(len, layer.blobs)),
            "shared_sizes": _counts(map(len, shared)),
            "blobs": _bytes(layer.blobs),
            "shared": _bytes(shared),
        }
        self.put(index, tensors, content)

    def figures(self, index: int) -> tuple[list[str], Array, Array, int]:
        header, content = self.open(index)
        energy, residual = (read_tensor(header, n).numpy() for n in ("energy", "residual"))
        nbytes = sum(header.entries[name].nbytes for name in ("blobs", "shared"))
        return content["tasks"], energy, residual, nbytes

    def shared(self, index: int) -> dict[int, bytes]:
        header, content = self.open(index)
        raw = read_tensor(header, "shared").numpy().tobytes()
        ends = np.cumsum(read_tensor(header, "shared_sizes").numpy()).tolist()
        starts = [0, *ends[:-1]]
        return {g: raw[a:b] for g, a, b in zip(content["groups"], starts, ends, strict=True)}

    def tasks(self, names: Sequence[str]) -> Iterator[tuple[str, list[TaskShare]]]:
        return self.by_task(names, self._take)

    def _take(self, index: int, shares: Mapping[str, list[TaskShare]]) -> None:
        header, content = self.open(index)
        sizes = read_tensor(header, "sizes").tolist()
        _, energy, residual, _ = self.figures(index)
        offset = 0
        for i, (name, size) in enumerate(zip(content["tasks"], sizes, strict=True)):
            if name in shares:
                blob = read_elements(header, "blobs", offset, size).numpy().tobytes()
                shares[name].append(TaskShare(blob, float(energy[i]), float(residual[i])))
            offset += size


def _counts(sizes: Iterable[int]) -> torch.Tensor:
    return torch.tensor(list(sizes), dtype=torch.int64)


def _bytes(parts: Sequence[bytes]) -> torch.Tensor:
    return torch.frombuffer(bytearray(b"".join(parts)) or bytearray(1), dtype=torch.uint8)[
        : sum(map(len, parts))
    ]


def partial_rate_tables(directory: Path) -> Path:
    """Where a build keeps the rate tables that its target needed."""
    return directory / "outlook.safetensors"
