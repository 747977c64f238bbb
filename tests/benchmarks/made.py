"""Made adapters: deterministic, written once, kept between runs.

Run as a process of its own, ``python -m tests.benchmarks.made FOLDER COUNT DTYPE MODULES
WIDTH RANK``, so that numpy does not sit in the process that measures the others.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.measure import Bench

VERSION = 1
PLANTED = 24  # directions a side that the adapters of a collection have in common
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")


@dataclass(frozen=True)
class Shape:
    """What the adapters look like: ``modules`` square maps of ``width``, stored as ``dtype``."""

    modules: int
    width: int
    rank: int
    dtype: str = "float32"

    @property
    def nbytes(self) -> int:
        return self.modules * 2 * self.width * self.rank * (4 if self.dtype == "float32" else 2)

    @property
    def name(self) -> str:
        other = "" if self.dtype == "float32" else f"-{self.dtype}"
        return f"made-v{VERSION}-{self.modules}x{self.width}-r{self.rank}{other}"


LARGE = Shape(modules=64, width=1024, rank=16)  # 8.4 MB each, as the peers were first measured with
SMALL = Shape(modules=64, width=32, rank=4)  # the same header, few numbers


def adapters(bench: Bench, shape: Shape, count: int) -> list[Path]:
    """The first ``count`` adapters of this shape, made where they are missing, and read once.

    Reading them leaves their bytes in the page cache, so that nobody pays for the disk.
    """
    folder = bench.data / shape.name
    arguments = [folder, count, shape.dtype, shape.modules, shape.width, shape.rank]
    bench.python("-m", "tests.benchmarks.made", *map(str, arguments), repeats=1)
    paths = [folder / name_of(i) for i in range(count)]
    for path in paths:
        with (path / "adapter_model.safetensors").open("rb") as file:
            while file.read(1 << 22):
                pass
    return paths


def name_of(index: int) -> str:
    return f"a{index:04d}"


def write(folder: Path, count: int, shape: Shape) -> None:
    """Write what is missing of the first ``count`` adapters; each appears in one step."""
    import numpy as np
    from safetensors.numpy import save_file

    missing = [i for i in range(count) if not (folder / name_of(i)).is_dir()]
    if not missing:
        return
    folder.mkdir(parents=True, exist_ok=True)
    names = [
        f"base_model.model.model.layers.{i // 4}.self_attn.{PROJECTIONS[i % 4]}"
        for i in range(shape.modules)
    ]

    def normal(seed: list[int], *size: int) -> np.ndarray:
        return np.random.default_rng(seed).standard_normal(size, dtype=np.float32)

    strength = np.geomspace(1, 0.1, PLANTED, dtype=np.float32)[:, None]
    planted = {
        (name, side): strength * normal([0, i, s], PLANTED, shape.width)
        for i, name in enumerate(names)
        for s, side in enumerate("AB")
    }
    for index in missing:
        tensors = {}
        for i, name in enumerate(names):
            for s, side in enumerate("AB"):
                mix = normal([1, index, i, s], shape.rank, PLANTED)
                own = normal([2, index, i, s], shape.rank, shape.width)
                factor = 0.02 * (mix @ planted[name, side] + 0.3 * own)
                factor = factor if side == "A" else np.ascontiguousarray(factor.T)
                tensors[f"{name}.lora_{side}.weight"] = factor.astype(shape.dtype)
        partial = folder / f".{name_of(index)}.{os.getpid()}"
        partial.mkdir(exist_ok=True)
        save_file(tensors, partial / "adapter_model.safetensors", metadata={"format": "pt"})
        (partial / "adapter_config.json").write_text(json.dumps(config(shape.rank)))
        partial.rename(folder / name_of(index))


def config(rank: int) -> dict[str, object]:
    """adapter_config.json of every made adapter."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "made/base",
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": list(PROJECTIONS),
        "bias": "none",
        "use_rslora": False,
        "rank_pattern": {},
        "alpha_pattern": {},
    }


if __name__ == "__main__":
    place, how_many, dtype, *numbers = sys.argv[1:]
    write(Path(place), int(how_many), Shape(*map(int, numbers), dtype=dtype))
