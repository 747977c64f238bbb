"""A model's checkpoint as safetensors files: every tensor by name, read a part at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlora_engine.catalog.locate import existing_path
from vlora_engine.doctor.base_facts import endings, layer_number, read_base, weight_files
from vlora_engine.errors import MissingPathError
from vlora_engine.utils.safetensors_file import Header, read_elements, read_header, read_tensor

if TYPE_CHECKING:
    from torch import Tensor

AT_ONCE = 1 << 22  # elements of a tensor that are in memory at a time
LEAVES = ("weight", "in_proj_weight")  # what a module calls the matrix that an adapter changes
_EMBEDDINGS = ("embed_tokens", "wte", "word_embeddings", "embed_in", "tok_embeddings")
_HEADS = ("lm_head", "embed_out", "output")


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of one model, over all its files.

    Args:
        path: Its folder, or its one file.
        headers: The header of the file that holds each tensor, by the tensor's name.
        config: Its config.json; empty where there is none.
    """

    path: Path
    headers: Mapping[str, Header]
    config: Mapping[str, Any] = field(default_factory=dict)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor."""
        return self.headers[name].entry(name).shape

    def dtype(self, name: str) -> str:
        """The dtype of a tensor, as safetensors calls it."""
        return self.headers[name].entry(name).dtype

    def read(self, name: str) -> Tensor:
        """Read a whole tensor."""
        return read_tensor(self.headers[name], name)

    def rows(self, name: str, first: int, count: int) -> Tensor:
        """Rows ``first`` to ``first + count`` of a tensor seen as a matrix, (count, columns)."""
        width = row_width(self.shape(name))
        return read_elements(self.headers[name], name, first * width, count * width).reshape(
            count, width
        )

    def weight_of(self, module: str) -> str | None:
        """The name of a module's matrix, whatever wrapper stands before either name.

        The one place where names of modules become names of tensors.
        """
        for leaf in LEAVES:
            stems = self._stems[leaf]
            parts = module.split(".")
            for start in range(len(parts)):
                name = ".".join(parts[start:])
                if name in stems and (start == 0 or layer_number(name) is not None):
                    return f"{name}.{leaf}"
            if module in self._ends[leaf]:
                return f"{self._ends[leaf][module]}.{leaf}"
        return module if module in self.headers else None

    def tied_to(self, module: str) -> str | None:
        """The embedding's matrix, where ``module`` is the head and the files hold none for it."""
        if module.rpartition(".")[2] not in _HEADS or self.weight_of(module) is not None:
            return None
        return self.embedding

    @cached_property
    def embedding(self) -> str | None:
        """The name of the matrix over tokens, where there is one by a common name."""
        stems = sorted(self._stems["weight"], key=lambda name: (name.count("."), name))
        return next((f"{n}.weight" for n in stems if n.rpartition(".")[2] in _EMBEDDINGS), None)

    @property
    def has_head(self) -> bool:
        """Whether the files hold a head of their own."""
        return any(name.rpartition(".")[2] in _HEADS for name in self._stems["weight"])

    @cached_property
    def _stems(self) -> dict[str, set[str]]:
        return {
            leaf: {n.removesuffix(f".{leaf}") for n in self.headers if n.endswith(f".{leaf}")}
            for leaf in LEAVES
        }

    @cached_property
    def _ends(self) -> dict[str, dict[str, str]]:
        """Every end of a module's name that still tells the layer, and that one module has."""
        ends: dict[str, dict[str, str]] = {leaf: {} for leaf in LEAVES}
        for leaf, stems in self._stems.items():
            twice = set()
            for name in stems:
                for end in endings(name):
                    if end in ends[leaf]:
                        twice.add(end)
                    ends[leaf][end] = name
            for end in twice:
                del ends[leaf][end]
        return ends


def read_checkpoint(place: str | Path) -> Checkpoint:
    """The headers of a model's safetensors files: of a folder, sharded or not, or of one file.

    Raises:
        NotFoundError: There is nothing there, or no safetensors file.
        CorruptFileError: A header or the index is not what it should be.
    """
    path = existing_path(place)
    files = weight_files(path) if path.is_dir() else [path]
    files = [file for file in files if file.suffix == ".safetensors"]
    if not files:
        raise MissingPathError(
            "There are no weights of a model here.",
            where=path,
            expected="model.safetensors, or its shards",
            remedy="save it with save_pretrained, which writes safetensors",
        )
    headers = {name: header for file in files for header in [read_header(file)]
               for name in header.entries}  # fmt: skip
    config: Mapping[str, Any] = {}
    if path.is_dir() and os.path.lexists(path / "config.json"):
        config = read_base(path).config
    return Checkpoint(path, headers, config)


def row_width(shape: Sequence[int]) -> int:
    """The columns of a tensor seen as a matrix of its first dimension and all others."""
    width = 1
    for size in shape[1:]:
        width *= size
    return width


def row_blocks(shape: Sequence[int]) -> Iterator[tuple[int, int]]:
    """First row and number of rows of every part of a tensor that is read at a time."""
    rows = shape[0] if shape else 1
    step = max(1, AT_ONCE // max(1, row_width(shape)))
    for first in range(0, rows, step):
        yield first, min(step, rows - first)
