"""Write subspaces in the peers' formats, for their own programs to load.

Both writers take a subspace that the format can hold as it is (`convert` sees to that) and
an empty directory. Each leaves a mark in its index that this engine wrote it: only then ``--force``
may replace such a directory.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlora_engine.adapters.model import padded
from vlora_engine.errors import VLoRAError
from vlora_engine.formats.config import read_settings
from vlora_engine.formats.peft_save import peft_config
from vlora_engine.interop import lorashare
from vlora_engine.interop.vlora_dev import FLOAT_FILE
from vlora_engine.manifest.manifest import TaskRecord
from vlora_engine.subspace.space import Space
from vlora_engine.subspace.tasks import TaskProjection
from vlora_engine.utils.file_names import SHARE_INDEX, VLORA_INDEX
from vlora_engine.utils.files import write_json
from vlora_engine.utils.naming import slugs
from vlora_engine.utils.output_checks import WRITTEN_BY
from vlora_engine.utils.tensor_writer import write_tensors


def write_vlora_dev(subspace: Space, directory: Path) -> None:
    """Write ``subspace`` as vlora-dev's ``SharedSubspace.save`` would.

    Its own export gives every task ``lora_alpha = r``: the common scale goes into B's mean and
    loadings.
    """
    records = subspace.tasks.records()
    scales = records[0].scales if records else (1.0,) * len(subspace.layers)
    tensors: dict[str, Tensor] = {}
    for spec in subspace.layers:
        basis = subspace.bases[spec.name]
        scale = scales[subspace.layer_names.index(spec.name)]
        for side, factor in (("a", 1.0), ("b", scale)):
            mean = basis.mean(side)
            # vlora-dev knows no k of 0: a direction of zeros is none.
            rows = padded(basis.side(side).float(), 1, 0).contiguous()
            values = padded(getattr(basis, f"singular_values_{side}").float(), len(rows), 0)
            tensors[f"{spec.name}.components_{side}"] = rows
            tensors[f"{spec.name}.sv_{side}"] = values
            tensors[f"{spec.name}.mean_{side}"] = (
                torch.zeros(rows.shape[1]) if mean is None else (factor * mean.double()).float()
            )
    _write(directory / FLOAT_FILE, tensors)
    files = slugs(subspace.tasks)
    for name, task in subspace.tasks.items():
        _write(directory / f"task_{files[name]}.safetensors", _flat_loadings(task, tensors, scales))
    ks = {
        len(tensors[f"{spec.name}.components_{side}"]) for spec in subspace.layers for side in "ab"
    }
    write_json(
        directory / VLORA_INDEX,
        {
            "layer_names": subspace.layer_names,
            "task_ids": list(subspace.tasks),
            "task_filenames": files,
            "rank": subspace.rank,
            "num_components": max(ks),
            "shapes_a": {s.name: [s.rank, s.d_in] for s in subspace.layers},
            "shapes_b": {s.name: [s.d_out, s.rank] for s in subspace.layers},
            "adaptive_k": len(ks) > 1,
            "variance_threshold": 0.6,
            **WRITTEN_BY,
        },
        indent=2,
    )


def _flat_loadings(
    task: TaskProjection, shared: Mapping[str, Tensor], scales: tuple[float, ...]
) -> dict[str, Tensor]:
    tensors = {}
    for (name, a), scale in zip(task.loadings_a.items(), scales, strict=True):
        for side, side_loadings, factor in (("a", a, 1.0), ("b", task.loadings_b[name], scale)):
            k = len(shared[f"{name}.components_{side}"])
            values = (factor * side_loadings.double()).float()
            tensors[f"{name}.loadings_{side}"] = padded(values, k, 0)
    return tensors


def write_lorashare(
    subspace: Space,
    directory: Path,
    *,
    names: Mapping[str, str] | None = None,
    settings: Mapping[str, Any] | None = None,
    sources: Mapping[str, str] | None = None,
) -> None:
    """Write ``subspace`` as lorashare's ``save_pretrained`` would.

    Args:
        names: The directory of every task below ``adapters/``; by default `share_names`.
        settings: Fields of its config that are known better than from the subspace.
        sources: Where adapters came from, where that is not what the tasks' records say.
    """
    folders = share_names(subspace.tasks) if names is None else names
    components = {}
    for name in subspace.layer_names:
        basis = subspace.bases[name]
        components[f"{name}:A"] = basis.a.float().T.contiguous()
        components[f"{name}:B"] = basis.b.float().T.contiguous()
    _write(directory / lorashare.COMPONENTS_FILE, components)
    for task_id, task in subspace.tasks.items():
        record = subspace.tasks.record(task_id)
        directory_of_task = directory / lorashare.ADAPTERS / folders[task_id]
        directory_of_task.mkdir(parents=True)
        loadings = {}
        for name, a in task.loadings_a.items():
            loadings[f"{name}:A"] = a.float().T.contiguous()
            loadings[f"{name}:B"] = task.loadings_b[name].float().T.contiguous()
        _write(directory_of_task / lorashare.LOADINGS_FILE, loadings)
        if task.rest:
            _write(directory_of_task / lorashare.HEADS_FILE, task.rest)
        meta = {
            "adapter_name": folders[task_id],
            "original_config": share_config_of(subspace, record),
        }
        source = (sources or {}).get(task_id, record.source)
        if source:
            meta["original_adapter_path"] = source
        write_json(directory_of_task / lorashare.META_FILE, meta, indent=2)
    config = {**share_settings(subspace), **(settings or {})}
    config["adapter_names"] = [folders[name] for name in subspace.tasks]
    config["compression_stats"] = {**config["compression_stats"], **WRITTEN_BY}
    write_json(directory / SHARE_INDEX, config, indent=2)


def share_names(tasks: Iterable[str]) -> dict[str, str]:
    """A directory name for every task: itself where it is one, else a slug."""
    names = list(tasks)
    plain = [n for n in names if re.fullmatch(r"[^/\\:\0.][^/\\:\0]{0,99}", n) and n.isprintable()]
    as_is = {name: name for name in plain}
    if len({name.casefold() for name in plain}) < len(plain):
        as_is = {}
    return as_is | slugs([name for name in names if name not in as_is], list(as_is.values()))


def share_config_of(subspace: Space, record: TaskRecord) -> dict[str, Any]:
    """The config of a task: as it was, corrected only where its scales would come out wrong."""
    config = dict(record.config)
    names = [subspace.layers[i].name for i in record.layers]
    try:
        settings = read_settings(config, Path(SHARE_INDEX))
        same = all(
            settings.scale_of(name, rank) == scale
            for name, rank, scale in zip(names, record.ranks, record.scales, strict=True)
        )
        if same and config.get("peft_type") and config.get("r") and "lora_alpha" in config:
            return config
    except VLoRAError:
        pass
    return peft_config(subspace.reconstruct(record.id))


def share_settings(subspace: Space) -> dict[str, Any]:
    """The fields of lorashare's ``SHAREConfig``, with true figures in its statistics."""
    records = subspace.tasks.records()
    first: Mapping[str, Any] = records[0].config if records else {}
    targets, alpha = first.get("target_modules"), first.get("lora_alpha", 0)
    stats = subspace.compression_stats()
    variances = [1 - record.error**2 for record in records]
    loadings = sum(
        rank * (subspace.layers[i].k_a + subspace.layers[i].k_b)
        for record in records
        for i, rank in zip(record.layers, record.ranks, strict=True)
    )
    shared = sum(sum(spec.basis_elements("columns")) for spec in subspace.layers)
    total = sum(record.factor_elements for record in records) or stats["total_params_original"]
    return {
        "share_version": "0.1.0",
        "num_components": subspace.num_components,
        "component_selection": "fixed",
        "variance_threshold": 0.95,
        "base_model_name_or_path": subspace.base_model or "",
        "target_modules": targets if isinstance(targets, list) else [targets] if targets else [],
        "lora_rank": max((record.rank for record in records), default=0),
        "lora_alpha": alpha if isinstance(alpha, int | float) else 0,
        "adapter_names": list(subspace.tasks),
        "num_adapters": len(records),
        "layer_keys": subspace.layer_names,
        "compression_stats": {
            "original_total_params": total,
            "compressed_total_params": shared + loadings,
            "compression_ratio": total / max(1, shared + loadings),
            "shared_component_params": shared,
            "per_adapter_loading_params": loadings,
            "mean_explained_variance": sum(variances) / max(1, len(variances)),
            "min_explained_variance": min(variances, default=0.0),
        },
    }


def _write(path: Path, tensors: Mapping[str, Tensor]) -> None:
    write_tensors(path, dict(sorted(tensors.items())), {"format": "pt"})
