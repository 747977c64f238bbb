"""The names of files by which several packages know what a directory holds."""

from __future__ import annotations

SUBSPACE_INDEX = "subspace.json"
SPECTRA_INDEX = "spectra.json"
VLORA_INDEX = "subspace_meta.json"  # of vlora-dev
SHARE_INDEX = "share_config.json"  # of lorashare
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")  # the preferred one first
ADAPTER_GGUF = "adapter.gguf"
MLX_FILE = "adapters.safetensors"
ROUTER_INDEX = "router.json"
BASIS_FILE = "basis.safetensors"
COMPONENTS_FILE = "components.safetensors"  # of the basis beside coded tasks
MODEL_CONFIG = "config.json"
