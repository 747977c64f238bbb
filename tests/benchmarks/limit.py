"""The least that a computation has to do, as a process to be measured like the others.

``python -m tests.benchmarks.limit KIND K ADAPTER...`` reads every byte of A and B once for each
pass, layer by layer into reused buffers, and does the products that no way of doing the job can
avoid; nothing is checked, solved or written. Kinds:

``flat``      one pass; per side the N x N Gram of the flattened factors, in fp64
``directions``  one pass; per side the product with k directions (the loadings), in fp64
``gram``      one pass; per side the Gram of the smaller side of (N r) x d, in fp64
``spectra``   two passes (check, then compute); per side the Grams of all three methods and the
              product with a full basis, in fp64
``headers``   only the headers
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def headers(paths: list[Path]) -> list[tuple[int, dict[str, Any]]]:
    """Per adapter the offset of its data and its parsed header."""
    found = []
    for path in paths:
        json.loads((path / "adapter_config.json").read_bytes())
        with (path / "adapter_model.safetensors").open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            found.append((8 + size, json.loads(file.read(size))))
    return found


def main(kind: str, k: int, paths: list[Path]) -> None:
    """Do it."""
    parsed = headers(paths)
    if kind == "headers":
        return
    import torch

    passes = 2 if kind == "spectra" else 1
    tensors = [name for name in parsed[0][1] if name != "__metadata__"]
    files = [os.open(path / "adapter_model.safetensors", os.O_RDONLY) for path in paths]
    buffer = torch.empty(0)
    for number in range(passes):
        for name in tensors:
            entry = parsed[0][1][name]
            shape = entry["shape"]
            count = shape[0] * shape[1]
            if len(buffer) != len(paths) or buffer.shape[1] != count:
                buffer = torch.empty(len(paths), count)
            for row, file, (start, header) in zip(buffer, files, parsed, strict=True):
                first, last = header[name]["data_offsets"]
                os.preadv(file, [memoryview(row.numpy()).cast("B")[: last - first]], start + first)
            if number == passes - 1:
                products(kind, k, buffer, min(shape), max(shape))
    for file in files:
        os.close(file)


def products(kind: str, k: int, buffer: Tensor, rank: int, width: int) -> None:
    """The products of one side of one layer."""
    import torch

    flat = buffer.double()
    if kind in ("flat", "spectra"):
        flat @ flat.T
    if kind == "flat":
        return
    rows = flat.reshape(-1, width)  # the layout within a row does not change the cost
    directions = min(len(rows), width) if kind == "spectra" else k
    if kind in ("directions", "spectra"):
        rows @ torch.ones(width, directions, dtype=torch.float64)
    if kind in ("gram", "spectra"):
        for _ in range(2 if kind == "spectra" else 1):  # columns and delta
            rows.T @ rows if width < len(rows) else rows @ rows.T


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), [Path(place) for place in sys.argv[3:]])
