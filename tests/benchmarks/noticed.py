"""What a model notices: KL of its logits on adapters trained here, at equal codec ratio.

``python -m tests.benchmarks.noticed TRAINED WORK RESULT RATIO...`` measures in a process of its own
and writes a JSON file; TRAINED is where the adapters are, or where they are going to be trained.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.benchmarks.measure import Bench
from tests.benchmarks.table import Table

if TYPE_CHECKING:
    from vlora_engine.adapters.model import LoRAWeights

RATIOS = (4, 8, 16, 32)
GOALS = {4: 0.001, 8: 0.005}  # mean KL of auto, in nats a token
METHODS = ("auto", "own", "delta", "columns")


def section(bench: Bench) -> list[Table]:
    """KL, and the share of the loss gain that is kept."""
    result, work = bench.path("noticed").with_suffix(".json"), bench.path("work")
    arguments = ["tests.benchmarks.noticed", str(bench.data / "trained"), str(work), str(result)]
    bench.python("-m", *arguments, *map(str, RATIOS), repeats=1)
    found = json.loads(result.read_text())
    title = f"on the model: {found['tasks']} adapters trained here on a tiny byte Llama"
    table = Table(f"{title}: KL mean / worst, in nats a token", ["", *(f"{r}x" for r in RATIOS)])
    kept = Table(f"{title}: loss gain kept, mean / least", ["", *(f"{r}x" for r in RATIOS)])
    for name, rows in found["rows"].items():
        cells = [rows.get(str(r)) for r in RATIOS]
        table.rows.append([name, *(c and f"{c['kl']:.4f} / {c['kl_worst']:.4f}" for c in cells)])
        gains = (c and f"{c['gain_kept']:.3f} / {c['gain_kept_least']:.3f}" for c in cells)
        kept.rows.append([name, *gains])
    bounds = (found["bounds"].get(str(r)) for r in RATIOS)
    table.rows.append(["about what theory allows", *(b and f"{b:.4f}" for b in bounds)])
    table.rows.append(["goal of auto, mean", *(GOALS.get(r) for r in RATIOS)])
    table.notes.append(
        "theory: normal numbers of these energies, coded one adapter at a time at the "
        "rate-distortion bound without a byte beside them; KL goes with the squared error"
    )
    table.notes += [*found["notes"], f"with shuffled names, KL is {found['control']:.2f} at 4x"]
    return [table, kept]


def main(trained: Path, work: Path, result: Path, ratios: list[int]) -> None:
    """Measure everything once."""
    from tests.benchmarks.model import measure, with_factors
    from tests.benchmarks.quality import LoRAShare, VLoRA, collect, largest
    from tests.witnesses import train
    from vlora_engine.catalog.open import load_adapter
    from vlora_engine.compress.build import build_subspace
    from vlora_engine.errors import TargetError
    from vlora_engine.nn.peft_model import load_base
    from vlora_engine.shared_subspace import SharedSubspace

    made = train.trained(trained) or train.train(trained)
    base = load_base(made.base)
    collection = collect(trained / "adapters", work, one_shape=True)
    originals = {task: made.adapter(task) for task in collection.sources}
    in_memory = {task: load_adapter(path) for task, path in originals.items()}
    texts, rows, notes, control = trained / "texts", {}, [], 0.0
    bounds = {}
    for method in METHODS:
        rows[method] = {}
        for ratio in ratios:
            out = work / "built"
            try:
                budget = int(collection.factor_bytes / ratio)
                report = build_subspace(collection.sources, out, method=method, budget=budget)
            except TargetError:
                continue
            subspace = SharedSubspace.load(out)
            got: dict[str, Any] = {task: subspace.reconstruct(task) for task in originals}
            rows[method][ratio] = measure(base, originals, got, texts)
            control = control or rows[method][ratio]["control_kl"]
            if method == "auto":
                least = least_error(in_memory.values(), budget)
                bounds[ratio] = rows[method][ratio]["kl"] * (least / report.mean_error) ** 2
            shutil.rmtree(out)
    for peer in (VLoRA, LoRAShare):
        try:
            model = peer(collection)
        except ImportError:
            notes.append(f"{peer.name}: not installed; `make bench` installs both peers")
            continue
        rows[peer.name] = {}
        for ratio in ratios:
            fits = lambda k: collection.factor_bytes / (2 * model.numbers(k)) >= ratio  # noqa: B023, E731
            k = largest(fits, model.most)
            if k:
                found = model.reconstructions(k)
                got = {task: with_factors(in_memory[task], found[task]) for task in originals}
                rows[peer.name][ratio] = measure(base, originals, got, texts)
    content = {"tasks": len(originals), "rows": rows, "notes": notes, "control": control}
    content["bounds"] = bounds
    result.write_text(json.dumps(content))


def least_error(adapters: Iterable[LoRAWeights], nbytes: int) -> float:
    """The mean error of dW that normal numbers with these energies cannot go below in ``nbytes``.

    Reverse water-filling (Cover and Thomas, section 10.3) over both sides of every singular
    direction, or the direction is left out; all adapters at unit norm, each by itself.
    """
    import numpy as np

    from vlora_engine.linalg.low_rank import canonical_svd

    energies, widths, owners = [], [], []
    for i, own in enumerate(adapters):
        found = [
            (canonical_svd(own.lora_a[n], own.lora_b[n], own.scales[n])[1].numpy() ** 2, n)
            for n in own.layer_names
        ]
        whole = sum(values.sum() for values, _ in found)
        for values, name in found:
            energies += (values / whole).tolist()
            widths += [(own.lora_a[name].shape[1], own.lora_b[name].shape[0])] * len(values)
            owners += [i] * len(values)
    energy, width, owner = np.array(energies), np.array(widths), np.array(owners)
    low, high = -60.0, 0.0  # log2 of the water
    for _ in range(60):
        water = 2.0 ** ((low + high) / 2)
        each = energy[:, None] / width  # [directions, 2] variance of a number
        bits = (width * np.log2(np.maximum(each / water, 1)) / 2).sum(axis=1)
        missed = (width * np.minimum(each, water)).sum(axis=1)
        out = energy <= missed + 2 * np.log(2) * water * bits
        bits, missed = np.where(out, 0, bits), np.where(out, energy, missed)
        low, high = (np.log2(water), high) if bits.sum() > 8 * nbytes else (low, np.log2(water))
    return float(np.sqrt(np.bincount(owner, weights=missed)).mean())


if __name__ == "__main__":
    place, scratch, target, *numbers = sys.argv[1:]
    Path(scratch).mkdir(parents=True, exist_ok=True)
    main(Path(place), Path(scratch), Path(target), [int(number) for number in numbers])
