"""Read the index of a vlora-dev subspace: ``subspace_meta.json`` and the headers beside it.

``W = (mean + loadings @ components).reshape(shape)`` for A (r, d_in) and B (d_out, r), which is
the method `flat` here. Components are numbers, or NF4 codes with scales; older files lack shapes,
file names, even means. It keeps no alpha, config or rest tensors: a scale of 1 is what its own
export stands for (``lora_alpha = r``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlora_engine.findings import Finding
from vlora_engine.interop.common import (
    MAX_SIZE,
    natural,
    peer_record,
    plain_name,
    read_index,
    shape_of,
    texts,
    unsound,
)
from vlora_engine.interop.names import VLORA_DEV
from vlora_engine.manifest.manifest import LayerSpec, Manifest
from vlora_engine.utils.file_names import VLORA_INDEX
from vlora_engine.utils.safetensors_file import Header, read_header

FLOAT_FILE = "subspace.safetensors"
NF4_FILE, NF4_REST_FILE = "subspace_nf4.safetensors", "subspace_float.safetensors"
NF4_BLOCK = 64


@dataclass(frozen=True)
class VloraFiles:
    """The shared tensors of a vlora-dev directory.

    Args:
        numbers: The header with components, or only with means and singular values.
        codes: The header with packed components, if they are packed.
        block: Numbers that share a scale there.
    """

    numbers: Header
    codes: Header | None
    block: int


def open_files(directory: Path, index: Mapping[str, Any]) -> VloraFiles:
    """The headers of the shared tensors."""
    form = index.get("format", "float32")
    if form == "nf4_packed":
        block = natural(
            directory / VLORA_INDEX, "nf4_block_size", index.get("nf4_block_size", NF4_BLOCK)
        )
        return VloraFiles(
            read_header(directory / NF4_REST_FILE), read_header(directory / NF4_FILE), block
        )
    if form != "float32":
        raise unsound(directory / VLORA_INDEX, "format float32 or nf4_packed", repr(form))
    return VloraFiles(read_header(directory / FLOAT_FILE), None, 0)


def read_vlora_dev(directory: Path) -> Manifest:
    """Read the index of a vlora-dev subspace as a manifest; see `read_peer`."""
    path = directory / VLORA_INDEX
    index = read_index(path)
    files = open_files(directory, index)
    rank = index.get("rank")
    rank = natural(path, "rank", rank) if rank else None
    layers = tuple(
        _layer(path, name, index, files, rank) for name in texts(path, index, "layer_names")
    )
    if not layers:
        raise unsound(path, "at least one module", "none")
    nominal = rank or max(spec.rank for spec in layers)
    modules = {i: (spec.rank, 1.0) for i, spec in enumerate(layers)}
    named = index.get("task_filenames", {})
    if not isinstance(named, dict):
        raise unsound(path, "task_filenames: an object", repr(named))
    tasks = {}
    for task in texts(path, index, "task_ids"):
        file = plain_name(path, f"task_{named.get(task, task)}.safetensors")
        config = {"peft_type": "LORA", "r": nominal}
        nbytes = read_header(directory / file).file_bytes
        tasks[task] = peer_record(task, file, nbytes, VLORA_DEV, modules, layers, config, nominal)
    return Manifest(
        path=directory,
        method="flat",
        dtype="F32",
        base_model=None,
        layers=layers,
        basis=(),
        tasks=tasks,
        engine=VLORA_DEV,
        peer=VLORA_DEV,
        findings=tuple(_findings(path, {t.id: t.file for t in tasks.values()}, files)),
    )


def _layer(
    path: Path, name: str, index: Mapping[str, Any], files: VloraFiles, rank: int | None
) -> LayerSpec:
    rank_a, d_in, k_a = _side(path, name, "a", index, files, rank)
    d_out, rank_b, k_b = _side(path, name, "b", index, files, rank)
    if rank_a != rank_b:
        raise unsound(path, f"one rank for {name!r}", f"{rank_a} for A, {rank_b} for B")
    return LayerSpec(name, d_in, d_out, rank_a, k_a, k_b)


def _side(
    path: Path, name: str, side: str, index: Mapping[str, Any], files: VloraFiles, rank: int | None
) -> tuple[int, int, int]:
    """The two dimensions of a factor as vlora-dev has it, and its k."""
    k, width = _components(path, name, side, index, files)
    shapes = index.get(f"shapes_{side}")
    if shapes is not None:
        shape = shapes.get(name) if isinstance(shapes, dict) else None
        if not isinstance(shape, list) or len(shape) != 2:
            raise unsound(path, f"shapes_{side}: two numbers for {name!r}", repr(shape))
        first, second = (natural(path, f"shapes_{side}", size) for size in shape)
    elif rank is None or width % rank:
        raise unsound(path, "shapes, or a rank that divides the factors", f"rank {rank}, {width}")
    else:
        first, second = (rank, width // rank) if side == "a" else (width // rank, rank)
    if first * second != width:
        raise unsound(path, f"components of {name!r} with {first * second} columns", f"{width}")
    if k > width:
        raise unsound(path, f"at most {width} components of {name!r}", f"{k}")
    return first, second, k


def _components(
    path: Path, name: str, side: str, index: Mapping[str, Any], files: VloraFiles
) -> tuple[int, int]:
    """How many components there are, and how long they are."""
    if files.codes is None:
        k, width = shape_of(files.numbers, f"{name}.components_{side}", 2)
        return k, width
    (k,) = shape_of(files.numbers, f"{name}.sv_{side}", 1)
    top = index.get("num_components")
    k = min(k, natural(path, "num_components", top)) if top else k
    (width,) = shape_of(files.numbers, f"{name}.mean_{side}", 1)
    (blocks,) = shape_of(files.codes, f"{name}.scales_{side}", 1)
    packed = files.codes.entries.get(f"{name}.packed_{side}")
    codes = packed.nbytes * 2 if packed is not None and packed.dtype == "U8" else 0
    if k * width > min(blocks * files.block, codes) or k * width > MAX_SIZE:
        raise unsound(
            files.codes.path, f"{k * width} codes of {name!r}", f"{codes}, {blocks} scales"
        )
    return k, width


def _findings(path: Path, names: Mapping[str, str], files: VloraFiles) -> list[Finding]:
    what = "vlora-dev keeps no alpha, config or heads: a scale of 1 is taken, as its export does."
    remedy = "name the alpha of the training when you export: --alpha"
    found = [Finding("no-alpha", "note", what, remedy, file=str(path))]
    if files.codes is not None:
        what = "The components are packed as NF4; what that cost is not known any more."
        found.append(Finding("packed", "note", what, file=str(path)))
    owners: dict[str, str] = {}
    for task, file in names.items():
        if file in owners:
            what = (
                f"Tasks {owners[file]!r} and {task!r} share a file: one has overwritten the other."
            )
            found.append(Finding("shared-file", "warning", what, file=str(path.parent / file)))
        owners.setdefault(file, task)
    return found
