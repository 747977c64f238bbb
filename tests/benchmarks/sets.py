"""Made collections whose structure is known: ``python -m tests.benchmarks.sets KIND FOLDER``.

independent: nothing in common. same-init: one A to start from, then each its own way. shared: a
small subspace on both sides that all lie in, and a little of their own. family: checkpoints of one
run.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

COUNT, WIDTH, RANK = 24, 256, 8
KINDS = ("independent", "same-init", "shared", "family")
LAYERS, PROJECTIONS = range(3), ("q_proj", "v_proj")
MODULES = tuple(f"model.layers.{i}.self_attn.{name}" for i in LAYERS for name in PROJECTIONS)
PLANTED = 16


def write(kind: str, folder: Path) -> None:
    """Write the collection, if it is not there; it appears in one step."""
    import numpy as np
    from safetensors.numpy import save_file

    if folder.is_dir():
        return
    partial = folder.parent / f".{folder.name}.{os.getpid()}"
    draws = np.random.default_rng([7, KINDS.index(kind)])
    fall = np.geomspace(1, 0.1, RANK)[:, None]
    common = {
        (module, side): draws.standard_normal((PLANTED if kind == "shared" else RANK, WIDTH))
        for module in MODULES
        for side in "AB"
    }
    walked = {key: fall * value[:RANK] for key, value in common.items()}
    for index in range(COUNT):
        tensors = {}
        for module in MODULES:
            for side in "AB":
                own = draws.standard_normal((RANK, WIDTH))
                shared = common[module, side]
                if kind == "independent":
                    factor = fall * own
                elif kind == "same-init":
                    factor = shared + 0.7 * own if side == "A" else fall * own
                elif kind == "shared":
                    factor = fall * (
                        draws.standard_normal((RANK, PLANTED)) @ shared / 4 + 0.05 * own
                    )
                else:
                    walked[module, side] = walked[module, side] + 0.15 * own
                    factor = walked[module, side]
                factor = (0.02 * factor).astype(np.float32)
                factor = factor if side == "A" else np.ascontiguousarray(factor.T)
                tensors[f"base_model.model.{module}.lora_{side}.weight"] = factor
        place = partial / f"a{index:02d}"
        place.mkdir(parents=True)
        save_file(tensors, place / "adapter_model.safetensors", metadata={"format": "pt"})
        (place / "adapter_config.json").write_text(json.dumps(config()))
    partial.rename(folder)


def config() -> dict[str, object]:
    """adapter_config.json of every adapter."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "made/base",
        "r": RANK,
        "lora_alpha": 2 * RANK,
        "target_modules": ["q_proj", "v_proj"],
        "bias": "none",
    }


if __name__ == "__main__":
    write(sys.argv[1], Path(sys.argv[2]))
