"""Read the index of a lorashare checkpoint: ``share_config.json`` and the headers below it.

``A = (C @ L).T``, ``B = C @ L`` with C (d, k) shared and L (k, r) of an adapter, which is the
method `columns` here; there is no mean. k may differ per group. Adapters are the directories below
``adapters/``, whatever the config says.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vlora_engine.findings import Finding
from vlora_engine.formats.config import Settings, find_variant, read_settings
from vlora_engine.interop.common import Shape, natural, peer_record, read_index, shape_of, unsound
from vlora_engine.interop.names import LORASHARE
from vlora_engine.manifest.manifest import LayerSpec, Manifest, TaskRecord
from vlora_engine.utils.file_names import SHARE_INDEX
from vlora_engine.utils.naming import natural_key
from vlora_engine.utils.reading import folder_error
from vlora_engine.utils.safetensors_file import Header, read_header

COMPONENTS_FILE = "shared_components.safetensors"
ADAPTERS = "adapters"
LOADINGS_FILE = "loadings.safetensors"
HEADS_FILE = "classifier_head.safetensors"
META_FILE = "adapter_meta.json"
DEEPEST = 4  # directories below adapters/ that a name with slashes has become


@dataclass(frozen=True)
class ShareTask:
    """One adapter of a checkpoint: its directory, headers, config and where it came from."""

    name: str
    directory: Path
    loadings: Header
    heads: Header | None
    config: dict[str, Any]
    settings: Settings
    source: str | None
    findings: tuple[Finding, ...]


def read_lorashare(directory: Path) -> Manifest:
    """Read the index of a lorashare checkpoint as a manifest; see `read_peer`."""
    path = directory / SHARE_INDEX
    index = read_index(path)
    components = read_header(directory / COMPONENTS_FILE)
    layers = tuple(_layers(components))
    tasks: dict[str, TaskRecord] = {}
    findings: list[Finding] = []
    for task in open_tasks(directory, index):
        tasks[task.name] = _record(directory, task, layers)
        findings += task.findings
    layers = _with_ranks(layers, tasks.values())
    base = index.get("base_model_name_or_path")
    missing = [n for n in _names(index) if n not in tasks]
    if missing:
        what = f"The config names adapters that are not there: {', '.join(missing[:6])}."
        findings.append(Finding("adapters-missing", "warning", what, file=str(path)))
    return Manifest(
        path=directory,
        method="columns",
        dtype="F32",
        base_model=base if isinstance(base, str) and base else None,
        layers=layers,
        basis=(),
        tasks=tasks,
        engine=LORASHARE,
        peer=LORASHARE,
        findings=tuple(findings),
    )


def open_tasks(directory: Path, index: Mapping[str, Any]) -> Iterator[ShareTask]:
    """Every adapter of a checkpoint, sorted by name."""
    root = directory / ADAPTERS
    if odd := folder_error(root):
        raise odd
    for task_directory in sorted(_adapter_directories(root, DEEPEST)):
        yield _open_task(task_directory, task_directory.relative_to(root).as_posix(), index)


def _adapter_directories(root: Path, depth: int) -> Iterator[Path]:
    try:
        below = [entry for entry in root.iterdir() if entry.is_dir()]
    except (FileNotFoundError, NotADirectoryError):
        return
    for entry in below:
        if os.path.lexists(entry / LOADINGS_FILE):
            yield entry
        elif depth > 1 and not entry.is_symlink():
            yield from _adapter_directories(entry, depth - 1)


def _open_task(task_directory: Path, name: str, index: Mapping[str, Any]) -> ShareTask:
    findings = []
    meta_file = task_directory / META_FILE
    meta = read_index(meta_file) if os.path.lexists(meta_file) else {}
    config = meta.get("original_config")
    if not isinstance(config, dict) or not config:
        config = _config_of_all(index)
        what = f"{name!r} has no config of its own; the checkpoint's rank and alpha are taken."
        findings.append(Finding("no-config", "warning", what, file=str(task_directory)))
    if not name.isprintable():
        raise unsound(task_directory, "a printable name", ascii(name))
    variant = find_variant(config)
    if variant is not None:
        what = f"{name!r} was {variant.name}: {variant.why}. lorashare kept only its A and B."
        findings.append(Finding("variant", "warning", what, file=str(task_directory)))
    heads = task_directory / HEADS_FILE
    source = meta.get("original_adapter_path")
    return ShareTask(
        name=name,
        directory=task_directory,
        loadings=read_header(task_directory / LOADINGS_FILE),
        heads=read_header(heads) if os.path.lexists(heads) else None,
        config=config,
        settings=read_settings(config, task_directory / META_FILE),
        source=source if isinstance(source, str) else None,
        findings=tuple(findings),
    )


def _config_of_all(index: Mapping[str, Any]) -> dict[str, Any]:
    """What the checkpoint says of all its adapters, as a config."""
    stated = {
        "r": index.get("lora_rank") or None,
        "lora_alpha": index.get("lora_alpha") or None,
        "base_model_name_or_path": index.get("base_model_name_or_path") or None,
        "target_modules": index.get("target_modules") or None,
    }
    return {"peft_type": "LORA", **{name: value for name, value in stated.items() if value}}


def _layers(components: Header) -> list[LayerSpec]:
    sides: dict[str, dict[str, Shape]] = {}
    for key in components.entries:
        name, _, side = key.rpartition(":")
        if side not in ("A", "B") or not name or not key.isprintable():
            raise unsound(components.path, "tensors named <layer>:A and <layer>:B", ascii(key))
        sides.setdefault(name, {})[side] = shape_of(components, key, 2)
    layers = []
    for name in sorted(sides, key=natural_key):
        if len(sides[name]) < 2:
            raise unsound(components.path, f"{name}:A and {name}:B", "only one of them")
        (d_in, k_a), (d_out, k_b) = sides[name]["A"], sides[name]["B"]
        for size in (d_in, d_out):
            natural(components.path, name, size)
        if k_a > d_in or k_b > d_out:
            raise unsound(
                components.path, f"no more components than rows in {name!r}", f"{k_a}, {k_b}"
            )
        layers.append(LayerSpec(name, d_in, d_out, 1, k_a, k_b))
    if not layers:
        raise unsound(components.path, "at least one module", "none")
    return layers


def _with_ranks(
    layers: tuple[LayerSpec, ...], tasks: Iterable[TaskRecord]
) -> tuple[LayerSpec, ...]:
    largest = [1] * len(layers)
    for task in tasks:
        for i, rank in zip(task.layers, task.ranks, strict=True):
            largest[i] = max(largest[i], rank)
    return tuple(replace(spec, rank=largest[i]) for i, spec in enumerate(layers))


def _record(directory: Path, task: ShareTask, layers: tuple[LayerSpec, ...]) -> TaskRecord:
    positions = {spec.name: i for i, spec in enumerate(layers)}
    modules: dict[int, tuple[int, float]] = {}
    for key in task.loadings.entries:
        name, _, side = key.rpartition(":")
        if side not in ("A", "B") or name not in positions:
            raise unsound(task.loadings.path, "loadings of shared modules", ascii(key))
        spec = layers[positions[name]]
        k, rank = shape_of(task.loadings, key, 2)
        other = shape_of(task.loadings, f"{name}:{'B' if side == 'A' else 'A'}", 2)
        if k != (spec.k_a if side == "A" else spec.k_b) or other[1] != rank or not rank:
            expected = f"{key}: ({spec.k_a if side == 'A' else spec.k_b}, r), one r for A and B"
            raise unsound(task.loadings.path, expected, f"{(k, rank)} beside {other}")
        modules[positions[name]] = (rank, task.settings.scale_of(name, rank))
    ranks = [rank for rank, _ in modules.values()]
    nominal = task.config.get("r")
    heads = task.heads.entries if task.heads is not None else {}
    files = [task.loadings, *([task.heads] if task.heads is not None else [])]
    return peer_record(
        task.name,
        task.directory.relative_to(directory).as_posix(),
        sum(header.file_bytes for header in files),
        LORASHARE,
        modules,
        layers,
        task.config,
        nominal if type(nominal) is int and nominal > 0 else max(ranks, default=1),
        {name: (entry.dtype, entry.shape) for name, entry in heads.items()},
        task.source if task.source and Path(task.source).is_absolute() else None,
    )


def _names(index: Mapping[str, Any]) -> list[str]:
    names = index.get("adapter_names")
    return [n for n in names if isinstance(n, str)] if isinstance(names, list) else []
