"""Measures, in a process of its own, what each method loses on one collection.

``python -m tests.benchmarks.quality NAME FOLDER WORK RESULT RATIO...`` writes a JSON file.
An empty FOLDER means the demo collection without its broken adapter.
"""

from __future__ import annotations

import copy
import importlib
import json
import math
import shutil
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlora_engine.adapters.check import CheckReport, check_adapters
from vlora_engine.adapters.model import AdapterSource, LoRAWeights
from vlora_engine.catalog.open import find_adapters, load_adapter, open_adapter
from vlora_engine.compress.build import build_subspace
from vlora_engine.compress.measure import compute_spectra
from vlora_engine.compression_target import BASIS_METHODS, CODED_METHODS
from vlora_engine.demo import make_demo_collection
from vlora_engine.errors import TargetError
from vlora_engine.linalg.low_rank import relative_error
from vlora_engine.spectra.sizes import factor_bytes_16, rest_bytes
from vlora_engine.spectra.tables import Spectra
from vlora_engine.utils.naming import unique_names

Factors = Mapping[str, tuple[Tensor, Tensor]]  # module: A, B without the scale
Row = dict[str, Any]
GRID = 24  # values of k that are tried below the largest that fits


@dataclass
class Collection:
    """The adapters of one comparison, by task name."""

    sources: dict[str, AdapterSource]
    check: CheckReport

    @property
    def factor_bytes(self) -> int:
        """A and B at 16 bit."""
        shapes = [shape for source in self.sources.values() for shape in source.modules.values()]
        return sum(2 * s.rank * (s.d_in + s.d_out) for s in shapes)


def collect(folder: Path | None, work: Path, *, one_shape: bool) -> Collection:
    """Open a folder of adapters or the demo's; ``one_shape``: only what the peers accept."""
    place = folder or make_demo_collection(work / "demo").path
    found = [location.path for location in find_adapters(place)]
    sources = dict(
        zip(unique_names([str(p) for p in found]), map(open_adapter, found), strict=True)
    )
    check = check_adapters(sources)
    kept = {name: sources[name] for name in check.good}
    if one_shape:
        kept = {name: s for name, s in kept.items() if check.adapters[name].norm > 0}
        shapes = {name: str(sorted(source.modules.items())) for name, source in kept.items()}
        usual = max(shapes.values(), key=list(shapes.values()).count)
        kept = {name: source for name, source in kept.items() if shapes[name] == usual}
    return Collection(kept, CheckReport({name: check.adapters[name] for name in kept}))


def measure_ours(
    collection: Collection, spectra: Spectra, work: Path, ratios: list[int]
) -> dict[str, list[Row]]:
    """Per method and ratio a subspace that is really built, in fp16 or coded."""
    found: dict[str, list[Row]] = {}
    for method in (*CODED_METHODS[::-1], *BASIS_METHODS):
        coded = method in CODED_METHODS
        found[method] = []
        for ratio in ratios:
            out = work / "built"
            try:
                report = build_subspace(
                    collection.sources,
                    out,
                    method=method,
                    budget=int(factor_bytes_16(spectra) / ratio) + rest_bytes(spectra),
                    dtype="auto" if coded else "fp16",
                    spectra=spectra if method in BASIS_METHODS or coded else None,
                    check=collection.check,
                )
            except TargetError:
                continue
            shutil.rmtree(out)
            found[method].append(
                {
                    "ratio": ratio,
                    "codec": report.codec_ratio,
                    "mean": report.mean_error,
                    "worst": report.max_error,
                    "k": {name: list(k) for name, k in report.k.items()},
                    "rms": math.sqrt(max(0.0, 1 - report.variance)),
                }
            )
    return found


def limits(spectra: Spectra, rows: list[Row]) -> dict[int, dict[str, float]]:
    """Root mean square errors at `delta`'s k: ours, and what no orthonormal bases can beat.

    The energy outside the best k_b directions on one side, or outside the best k_a on the other,
    whichever is more, is lost by any pair of bases of this size (docs/mathematics.md#bounds).
    """
    found = {}
    effective = sum(1 for weight in spectra.weights if weight > 0)
    for row in rows:
        lost = 0.0
        for name in spectra.layer_names:
            table = spectra.table(name, "delta")
            k_a, k_b = row["k"][name]
            tails = (table.singular_values_a[k_a:], table.singular_values_b[k_b:])
            lost += max(float((tail**2).sum()) for tail in tails)
        share = effective / len(spectra.tasks)
        found[row["ratio"]] = {
            "ours": row["rms"],
            "limit": math.sqrt(lost / effective * share) if effective else 0.0,
        }
    return found


class VLoRA:
    """vlora-dev at any k: its SVD is nested, so one run at the largest k holds them all."""

    name = "vlora-dev"

    def __init__(self, collection: Collection) -> None:
        vlora = importlib.import_module("vlora")

        paths = {name: Path(str(s.path)) for name, s in collection.sources.items()}
        loaded = {name: vlora.load_adapter(path) for name, path in paths.items()}
        self.most = max(1, len(paths) - 1)
        self.full = vlora.SharedSubspace.from_adapters(
            list(loaded.values()), task_ids=list(loaded), num_components=self.most
        )

    def numbers(self, k: int) -> int:
        """Numbers in components, means and loadings."""
        sub, tasks = self.full, len(self.full.tasks)
        widths = [sub.means_a[n].numel() + sub.means_b[n].numel() for n in sub.layer_names]
        return sum((k + 1) * width + tasks * 2 * k for width in widths)

    def at(self, k: int) -> Any:
        """Its object with k components, rounded to fp16."""
        sub = copy.copy(self.full)
        for side in ("a", "b"):
            for attribute in ("components", "singular_values"):
                whole = getattr(self.full, f"{attribute}_{side}")
                setattr(sub, f"{attribute}_{side}", {n: t[:k].half() for n, t in whole.items()})
            means = getattr(self.full, f"means_{side}")
            setattr(sub, f"means_{side}", {n: t.half() for n, t in means.items()})
        sub.num_components = k
        sub.tasks = {}
        for name, task in self.full.tasks.items():
            own = copy.copy(task)
            own.loadings_a = {n: t[:k].half() for n, t in task.loadings_a.items()}
            own.loadings_b = {n: t[:k].half() for n, t in task.loadings_b.items()}
            sub.tasks[name] = own
        return sub

    def files(self, k: int, out: Path) -> int:
        """Bytes of the files that its own `save` writes."""
        self.at(k).save(out)
        return size_of(out)

    def reconstructions(self, k: int) -> dict[str, Factors]:
        """What its own `reconstruct` returns for every task; fp16 numbers, fp32 arithmetic."""
        sub = self.at(k).to(dtype=torch.float32)
        found: dict[str, Factors] = {}
        for name in sub.tasks:
            made = sub.reconstruct(name)
            found[name] = {n: (made.lora_a[n], made.lora_b[n]) for n in made.layer_names}
        return found


class LoRAShare:
    """lorashare at any k: its eigenvectors are nested, so one run holds them all."""

    name = "lorashare"

    def __init__(self, collection: Collection) -> None:
        lorashare = importlib.import_module("lorashare")

        paths = {name: str(s.path) for name, s in collection.sources.items()}
        widest = max(
            min(max(s.d_in, s.d_out), s.rank * len(paths))
            for source in collection.sources.values()
            for s in source.modules.values()
        )
        self.model = lorashare.SHAREModel
        self.full = self.model.from_adapters(paths, num_components=widest, device="cpu")
        self.most = self.full.config.num_components

    def numbers(self, k: int) -> int:
        """Numbers in components and loadings."""
        basis = sum(t.shape[0] * k for t in self.full.components.values())
        loadings = [t for own in self.full.all_loadings.values() for t in own.values()]
        return basis + sum(k * t.shape[1] for t in loadings)

    def at(self, k: int, dtype: torch.dtype = torch.float16) -> Any:
        """Its object with k components, rounded to fp16."""
        config = copy.deepcopy(self.full.config)
        config.num_components = k
        return self.model(
            config,
            {n: t[:, :k].half().to(dtype).contiguous() for n, t in self.full.components.items()},
            {
                task: {n: t[:k].half().to(dtype).contiguous() for n, t in own.items()}
                for task, own in self.full.all_loadings.items()
            },
            self.full.adapter_configs,
            self.full.all_classifier_heads,
            self.full.adapter_sources,
        )

    def files(self, k: int, out: Path) -> int:
        """Bytes of the files that its own save writes, heads left out."""
        self.at(k).save_pretrained(out)
        for head in out.rglob("classifier_head.safetensors"):
            head.unlink()
        return size_of(out)

    def reconstructions(self, k: int) -> dict[str, Factors]:
        """What its own `reconstruct` returns for every task; fp16 numbers, fp32 arithmetic."""
        model = self.at(k, torch.float32)
        found: dict[str, Factors] = {}
        for name in model.adapter_names:
            made = model.reconstruct(name)
            sides = {s: f".lora_{s}.weight" for s in "AB"}
            modules = [key.removesuffix(sides["A"]) for key in made if key.endswith(sides["A"])]
            found[name] = {
                m.removeprefix("base_model.model."): (made[m + sides["A"]], made[m + sides["B"]])
                for m in modules
            }
        return found


def measure_peer(
    make: Callable[[Collection], VLoRA | LoRAShare],
    collection: Collection,
    originals: Mapping[str, LoRAWeights],
    work: Path,
    ratios: list[int],
) -> list[Row]:
    """Per ratio the best k that fits, by the mean error of dW."""
    peer = make(collection)
    total = collection.factor_bytes
    fits = {r: largest(lambda k: total / (2 * peer.numbers(k)) >= r, peer.most) for r in ratios}  # noqa: B023
    # Its error need not fall with k, so smaller k are tried too: all, or a grid and the largest.
    tried = set(range(1, peer.most + 1))
    if peer.most > GRID:
        tried = {round(peer.most ** (i / GRID)) for i in range(GRID + 1)} | set(fits.values())
    errors = {
        k: errors_of(originals, peer.reconstructions(k))
        for k in sorted(tried)
        if 0 < k <= max(fits.values())
    }
    rows = []
    for ratio, most in fits.items():
        allowed = {k: e for k, e in errors.items() if k <= most}
        if not allowed:
            continue
        k = min(allowed, key=lambda k: sum(allowed[k]))
        out = work / "peer"
        rows.append(
            {
                "ratio": ratio,
                "k": k,
                "codec": total / (2 * peer.numbers(k)),
                "files": total / peer.files(k, out),
                "mean": sum(allowed[k]) / len(allowed[k]),
                "worst": max(allowed[k]),
            }
        )
        shutil.rmtree(out)
    return rows


def largest(fits: Callable[[int], bool], most: int) -> int:
    """The largest k up to ``most`` that fits, 0 if none does."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def errors_of(originals: Mapping[str, LoRAWeights], found: Mapping[str, Factors]) -> list[float]:
    """Per task the error of dW, with the scale that the adapter really has."""
    return [
        relative_error(
            (
                (weights.lora_a[n], weights.lora_b[n].double() * weights.scales[n]),
                (found[task][n][0], found[task][n][1].double() * weights.scales[n]),
            )
            for n in weights.layer_names
        )
        for task, weights in originals.items()
    ]


def size_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def main(name: str, folder: Path | None, work: Path, result: Path, ratios: list[int]) -> None:
    """Measure one collection and write what was found."""
    work.mkdir(parents=True)
    collection = collect(folder, work, one_shape="one shape" in name)
    spectra = compute_spectra(collection.sources, codec=True, check=collection.check)
    ours = measure_ours(collection, spectra, work, ratios)
    originals = {n: load_adapter(str(s.path)) for n, s in collection.sources.items()}
    notes: list[str] = []
    peers: dict[str, list[Row]] = {}
    for peer in (VLoRA, LoRAShare):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                peers[peer.name] = measure_peer(peer, collection, originals, work, ratios)
        except ImportError:
            notes.append(f"{peer.name}: not installed; `make bench` installs both peers")
        except Exception as error:  # a peer may refuse the collection in any way it likes
            reason = str(error).splitlines()[0][:120]
            notes.append(f"{peer.name} cannot: {type(error).__name__}: {reason}")
    content = {
        "name": name,
        "tasks": len(collection.sources),
        "modules": len(spectra.layer_names),
        "megabytes": collection.factor_bytes / 1e6,
        "ours": ours,
        "peers": peers,
        "limits": limits(spectra, ours["delta"]),
        "notes": notes,
    }
    result.write_text(json.dumps(content))


if __name__ == "__main__":
    title, where, scratch, target, *numbers = sys.argv[1:]
    main(
        title,
        Path(where) if where else None,
        Path(scratch),
        Path(target),
        [int(number) for number in numbers],
    )
