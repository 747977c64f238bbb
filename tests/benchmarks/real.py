"""The first library's own three tables on real adapters, ours beside them: ``make bench-real``.

``python -m tests.benchmarks.real [PLACE ...]``: folders, patterns or hf:// addresses of adapters of
one model; without any, the sets of ../shared/adapters (or VLORA_TEST_ADAPTERS). Its README shows
the variance of A and B by k, the error by k, and the size at 8, 100 and 1000 adapters.
"""

from __future__ import annotations

import argparse
import importlib
import math
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.benchmarks.error import REAL
from tests.benchmarks.quality import Collection, VLoRA, errors_of
from tests.benchmarks.run import parser as bench_parser
from tests.benchmarks.table import Cell, Table
from vlora_engine.adapters.check import check_adapters
from vlora_engine.adapters.model import AdapterSource
from vlora_engine.catalog.open import load_adapter
from vlora_engine.compress.build import build_subspace
from vlora_engine.compress.measure import compute_spectra
from vlora_engine.compression_target import BASIS_METHODS
from vlora_engine.errors import TargetError, VLoRAError
from vlora_engine.spectra.tables import Spectra
from vlora_engine.subspace.request import BuildReport
from vlora_tui.pipeline.inputs import gather_adapters
from vlora_tui.recipe.model import named_inputs

COUNTS = (8, 100, 1000)
ITS_VARIANCE = 0.6  # by which vLoRA chooses k where none is named
OUR_ERROR = 0.05  # what we choose by


class Real:
    """One set of adapters, what was measured on it, and vLoRA's object of it where it can."""

    def __init__(self, name: str, sources: Mapping[str, AdapterSource], work: Path) -> None:
        check = check_adapters(sources)
        self.name, self.work = name, work
        kept = {task: sources[task] for task in check.good}
        self.collection = Collection(kept, check)
        self.originals = {task: load_adapter(str(s.path)) for task, s in kept.items()}
        self.spectra: Spectra = compute_spectra(kept, codec=True, check=check)
        self.notes: list[str] = []
        self.theirs = self.vlora_of(list(kept))

    def vlora_of(self, tasks: Sequence[str]) -> VLoRA | None:
        """vLoRA's object of some of the adapters."""
        try:
            return VLoRA(self.some(tasks))
        except ImportError:
            self.notes.append("vLoRA is not installed; `make bench-real` installs it")
        except Exception as error:  # it may refuse the collection in any way it likes
            self.notes.append(f"vLoRA cannot: {type(error).__name__}: {str(error)[:120]}")
        return None

    @property
    def count(self) -> int:
        return len(self.collection.sources)

    def some(self, tasks: Sequence[str]) -> Collection:
        sources = {task: self.collection.sources[task] for task in tasks}
        return Collection(sources, self.collection.check)

    def all_k(self) -> list[int]:
        """1, 2, 4, ... and the largest that means something to vLoRA."""
        most = max(1, self.count - 1)
        return sorted({min(most, 2**i) for i in range(1 + most.bit_length())})

    def build(self, tasks: Sequence[str] | None = None, **targets: Any) -> BuildReport | None:
        """What a build comes to, of all adapters or of some; None where a target has no answer."""
        some = self.some(tasks or list(self.collection.sources)).sources
        whole = len(some) == self.count
        out = self.work / "built"
        try:
            report = build_subspace(
                some,
                out,
                spectra=self.spectra if whole else None,
                check=self.collection.check if whole else None,
                **targets,
            )
        except TargetError:
            return None
        shutil.rmtree(out)
        return report

    def codec_bytes(self, report: BuildReport | None) -> float | None:
        """All bytes on disk but the heads'."""
        if report is None:
            return None
        return self.some(report.tasks).factor_bytes / report.codec_ratio


# ---- the three tables


def variance(real: Real) -> Table:
    """How much k directions hold."""
    table = Table(
        f"{real.name}: variance by k, {real.count} adapters",
        ["k", "A, vLoRA's", "B, vLoRA's", *(f"dW, {method}" for method in BASIS_METHODS)],
        notes=[
            "A and B: as vLoRA shows it, of the factors apart with their mean taken off; mean of "
            "all layers",
            "dW: the share of its energy that is kept, mean of all adapters; negative where the "
            "product of what is left of A and B is further off than nothing would be",
            *real.notes,
        ],
    )
    for k in real.all_k():
        own = [_energy(real.build(method=method, k=k, dtype="fp16")) for method in BASIS_METHODS]
        table.rows.append([str(k), *(factor_variance(real, k, side) for side in "ab"), *own])
    return table


def factor_variance(real: Real, k: int, side: str) -> float | None:
    """vLoRA's explained variance at k, from its singular values."""
    if real.theirs is None:
        return None
    values = getattr(real.theirs.full, f"singular_values_{side}").values()
    shares = [float((s[:k] ** 2).sum() / max(1e-30, float((s**2).sum()))) for s in values]
    return sum(shares) / len(shares)


def _energy(report: BuildReport | None) -> float | None:
    if report is None:
        return None
    return 1 - sum(error**2 for error in report.task_errors.values()) / len(report.task_errors)


def error(real: Real) -> Table:
    """What k directions lose, and what `auto` loses in the same bytes."""
    table = Table(
        f"{real.name}: error by k, mean / worst of {real.count} adapters",
        [
            "k",
            "A and B, vLoRA's",
            "dW, vLoRA's",
            *(f"dW, {m}" for m in BASIS_METHODS),
            "flat kB",
            "auto",
        ],
        notes=[
            "A and B: all numbers of both together, as the factors happen to be; what a model sees "
            "is dW",
            "all in fp16; auto: in the bytes on disk that flat takes at this k (the column before, "
            "heads left out)",
            *real.notes,
        ],
    )
    for k in real.all_k():
        ours = {method: real.build(method=method, k=k, dtype="fp16") for method in BASIS_METHODS}
        flat = ours["flat"]
        auto = real.build(method="auto", budget=flat.nbytes) if flat else None
        table.rows.append(
            [
                str(k),
                *vlora_errors(real, real.theirs, k),
                *(_pair(report) for report in ours.values()),
                round(real.codec_bytes(flat) / 1000) if flat else None,
                _pair(auto),
            ]
        )
    return table


def vlora_errors(real: Real, theirs: VLoRA | None, k: int) -> list[Cell]:
    """What vLoRA loses at k: of A and B, and of dW."""
    if theirs is None:
        return [None, None]
    found = theirs.reconstructions(k)
    originals = {task: real.originals[task] for task in found}
    factors = []
    for task, weights in originals.items():
        lost = kept = 0.0
        for name in weights.layer_names:
            sides = zip(
                (weights.lora_a[name], weights.lora_b[name]), found[task][name], strict=True
            )
            for original, made in sides:
                lost += float((original.double() - made.double()).square().sum())
                kept += float(original.double().square().sum())
        factors.append(math.sqrt(lost / kept) if kept else 0.0)
    return [_both(factors), _both(errors_of(originals, found))]


def size(real: Real) -> Table:
    """What 8, 100 and 1000 adapters take; what is beyond those that are there is computed."""
    k = vloras_k(real)
    table = Table(
        f"{real.name}: size at N adapters, A and B at 16 bit against what replaces them",
        ["N", "A and B MB", f"vLoRA, k = {k}", "its dW error", "own, 5 %", "auto, 5 %", ""],
        notes=[
            f"vLoRA: k = {k} as it chooses it on the {real.count} that are there (variance "
            f"{ITS_VARIANCE}); its numbers at 2 bytes, no header, no JSON",
            "beyond the adapters that are there vLoRA's README goes on at a fixed k: the ratio "
            "then grows with N, and of the error nothing is known: more adapters share the same k "
            "directions",
            "own: every adapter is coded by itself, so the bytes of a further one are known, and "
            "its error stays within 5 %, if it is like those that are there",
            "auto: only where it was built: what further ones could share is not known",
            *real.notes,
        ],
    )
    own = own_bytes(real)
    for count in sorted({real.count, *COUNTS}):
        there = count <= real.count
        tasks = list(real.collection.sources)[:count]
        factors = real.some(tasks).factor_bytes * count / len(tasks)
        ours = [
            real.codec_bytes(real.build(tasks, method=method, max_error=OUR_ERROR))
            for method in ("own", "auto")
            if there
        ]
        table.rows.append(
            [
                str(count),
                factors / 1e6,
                _smaller(factors, _vlora_bytes(real, k, count)),
                vlora_errors(real, real.vlora_of(tasks), k)[1] if there else "unknown",
                *(_smaller(factors, nbytes) for nbytes in (ours or [own(count), None])),
                "built" if there else "computed",
            ]
        )
    return table


def vloras_k(real: Real) -> int:
    """The k that vLoRA chooses where none is named."""
    if real.theirs is None:
        return max(1, real.count - 1)
    vlora = importlib.import_module("vlora")
    paths = [Path(str(source.path)) for source in real.collection.sources.values()]
    chosen = vlora.SharedSubspace.from_adapters([vlora.load_adapter(path) for path in paths])
    return int(chosen.num_components)


def own_bytes(real: Real) -> Callable[[int], float | None]:
    """Bytes of `own` for N adapters: a line through the builds of half of them and of all."""
    tasks = list(real.collection.sources)
    few = max(1, len(tasks) // 2)
    half, whole = (
        real.codec_bytes(real.build(some, method="own", max_error=OUR_ERROR))
        for some in (tasks[:few], tasks)
    )
    if half is None or whole is None or few == len(tasks):
        return lambda count: None
    slope = (whole - half) / (len(tasks) - few)
    return lambda count: whole + slope * (count - len(tasks))


def _vlora_bytes(real: Real, k: int, count: int) -> float | None:
    if real.theirs is None:
        return None
    here = real.theirs.numbers(k)  # of all that are there; a task has the same in every set
    per_task = 2 * k * len(real.theirs.full.layer_names)
    return 2 * (here + per_task * (count - real.count))


def _smaller(whole: float, part: float | None) -> str | None:
    return None if part is None else f"{part / 1e6:.2f} MB, {whole / part:.1f}x"


def _pair(report: BuildReport | None) -> str | None:
    return _both(list(report.task_errors.values())) if report else None


def _both(errors: Sequence[float]) -> str:
    return f"{sum(errors) / len(errors):.3f} / {max(errors):.3f}"


# ---- which adapters


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables of every set."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("places", nargs="*", metavar="PLACE", help="adapters of one model")
    named = parser.parse_args(arguments).places
    folder = bench_parser().get_default("adapters")
    sets = {"given": named} if named else {name: [str(folder / name)] for name in REAL}
    for name, places in sets.items():
        try:
            sources = gather_adapters(named_inputs(places)).adapters
            with (
                tempfile.TemporaryDirectory(prefix="vlora-real-") as work,
                warnings.catch_warnings(),
            ):
                warnings.simplefilter("ignore")
                real = Real(name, sources, Path(work))
                for table in (variance, error, size):
                    print(table(real).text(), flush=True)
        except VLoRAError as fault:
            print(f"{name}: {fault}\n", file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
