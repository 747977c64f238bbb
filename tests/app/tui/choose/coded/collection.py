"""Three checkpoints of one run, and three adapters that have nothing to do with anything."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.witnesses import make

MODULES = {
    f"transformer.h.{i}.attn.{kind}": shape
    for i in range(2)
    for kind, shape in (("c_attn", (96, 160)), ("c_proj", (96, 96)))
}
FAMILY = ["run-1", "run-2", "run-3"]
ALONE = ["lone-a", "lone-b", "lone-c"]


def related(folder: Path) -> list[Path]:
    """Three checkpoints of one run, and three adapters that have nothing to do with anything."""
    first = make.factors(MODULES, rank=8, seed=1)
    paths = []
    for i, name in enumerate(FAMILY):
        drift = make.factors(MODULES, rank=8, seed=50 + i)
        tensors = {key: own + 0.05 * drift[key] for key, own in first.items()}
        paths.append(make.write(folder / name, fading(tensors), make.config(r=8)))
    for i, name in enumerate(ALONE):
        tensors = make.factors(MODULES, rank=8, seed=100 + i)
        paths.append(make.write(folder / name, fading(tensors), make.config(r=8)))
    return paths


def fading(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same with rows of A that matter less and less, as those of trained adapters do."""
    weights = 0.7 ** torch.arange(8.0)
    return {k: t * weights[:, None] if "lora_A" in k else t for k, t in tensors.items()}
