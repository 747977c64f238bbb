"""vlora_engine: compress, measure, merge and compare collections of LoRA adapters.

Names load on first use, so that importing the package (or `vlora_engine.catalog.scanner`) does not
import torch. The package logs under ``vlora_engine``: what its caller has to know is a warning
there, which Python prints wherever nobody has set up logging.
"""

from __future__ import annotations

from vlora_engine._version import __version__
from vlora_engine.utils.lazy import lazy_names

_HOMES = {
    "vlora_engine.adapters.model": ["LoRAWeights", "parse_state_dict", "stack_lora_weights"],
    "vlora_engine.catalog.open": ["load_adapter", "load_adapter_from_hub", "open_adapter"],
    "vlora_engine.targets.save": ["save_adapter"],
    "vlora_engine.catalog.scanner": ["AdapterInfo", "Catalog", "scan"],
    "vlora_engine.shared_subspace": ["SharedSubspace"],
    "vlora_engine.subspace.tasks": ["TaskProjection"],
    "vlora_engine.pipeline": ["init_subspace", "absorb_task", "apply", "extract_adapter"],
    "vlora_engine.linalg.ops": [
        "compute_svd",
        "project_onto_subspace",
        "reconstruct_from_subspace",
        "gram_schmidt",
        "explained_variance_ratio",
        "select_num_components",
        "incremental_svd_update",
    ],
    "vlora_engine.quantization.nf4": [
        "NF4_QUANT_TABLE",
        "nf4_pack",
        "nf4_quantize_dequantize",
        "nf4_unpack",
    ],
    "vlora_engine.analysis.compare": [
        "adapter_diff",
        "find_duplicates",
        "find_outliers",
        "find_runs",
    ],
    "vlora_engine.analysis.interference_measures": ["interference"],
    "vlora_engine.analysis.similarity": ["compute_similarity_matrix", "find_clusters"],
    "vlora_engine.subspace.coverage": ["subspace_coverage"],
    "vlora_engine.merging": [
        "MERGE_METHODS",
        "merge",
        "task_arithmetic",
        "ties_merge",
        "dare_merge",
    ],
    "vlora_engine.resizing": ["resize"],
    "vlora_engine.doctor": ["diagnose", "verdict"],
    "vlora_engine.nn.model": ["VLoRAModel"],
    "vlora_engine.nn.blend": ["blend_tasks"],
    "vlora_engine.nn.training": ["SubspaceTrainer", "orthogonal_init"],
    "vlora_engine.nn.router": ["TaskRouter"],
    "vlora_engine.demo": ["make_demo_collection"],
    "vlora_engine.errors": [
        "AdapterError",
        "Cancelled",
        "CollectionError",
        "ConflictError",
        "CorruptFileError",
        "DependencyError",
        "HubAccessError",
        "HubError",
        "HubOfflineError",
        "InputError",
        "MemoryLimitError",
        "MissingPathError",
        "ModelStateError",
        "NotFoundError",
        "OutputExistsError",
        "ParameterError",
        "StorageError",
        "SubspaceError",
        "TargetError",
        "UnknownTaskError",
        "UnsupportedAdapterError",
        "VLoRAError",
    ],
}

__all__ = [*sorted(name for names in _HOMES.values() for name in names), "__version__"]
__getattr__ = lazy_names(__name__, _HOMES)


def __dir__() -> list[str]:
    return sorted(__all__)
