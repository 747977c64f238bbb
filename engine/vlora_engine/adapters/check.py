"""The first pass over a collection: every tensor is read once, measured and judged."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vlora_engine.adapters.model import AdapterSource, ContentHash, hashed_names, read_modules
from vlora_engine.adapters.needs import checking
from vlora_engine.errors import AdapterError, CollectionError, VLoRAError
from vlora_engine.findings import Finding
from vlora_engine.utils.progress import CancelCheck, ProgressCallback
from vlora_engine.utils.run_context import RunContext
from vlora_engine.utils.workers import map_ordered

BATCH = 1 << 18  # numbers of one adapter that are measured at once, more by a module


@dataclass
class AdapterCheck:
    """What the first pass found in one adapter.

    Args:
        digest: sha256 of its content.
        norms: ||dW|| per module.
        error: Why it cannot be used, if it cannot.
    """

    name: str
    digest: str = ""
    norms: dict[str, float] = field(default_factory=dict)
    error: VLoRAError | None = None
    findings: list[Finding] = field(default_factory=list)

    @property
    def norm(self) -> float:
        """||dW|| over all modules."""
        return math.sqrt(sum(norm * norm for norm in self.norms.values()))

    @property
    def weight(self) -> float:
        """1 / ||dW||, and 0 for an adapter without effect."""
        return 1.0 / self.norm if self.norm > 0 else 0.0


@dataclass
class CheckReport:
    """What the first pass found in a collection, by task name."""

    adapters: dict[str, AdapterCheck]

    @property
    def good(self) -> list[str]:
        return [name for name, check in self.adapters.items() if check.error is None]

    @property
    def bad(self) -> list[VLoRAError]:
        return [check.error for check in self.adapters.values() if check.error is not None]

    @property
    def findings(self) -> list[Finding]:
        return [finding for check in self.adapters.values() for finding in check.findings]

    def require(self, *, skip_bad: bool = False) -> list[str]:
        """The names to go on with.

        Raises:
            CollectionError: Some adapter is bad and ``skip_bad`` is not given, or none is left.
            AdapterError: The only one is bad.
        """
        if self.bad and len(self.adapters) == 1 and not skip_bad:
            raise self.bad[0]  # nothing is left without it
        if self.bad and not skip_bad:
            count = len(self.bad)
            raise CollectionError(
                f"{count} of {len(self.adapters)} adapters cannot be used; nothing was written.",
                errors=self.bad,
                remedy="leave them out with --skip-bad, or fix them",
            )
        if not self.good:
            raise CollectionError("No usable adapter is left.", errors=self.bad)
        return self.good


def check_adapters(
    sources: Mapping[str, AdapterSource],
    *,
    progress: ProgressCallback | None = None,
    cancelled: CancelCheck | None = None,
    max_memory: int | None = None,
) -> CheckReport:
    """Read every tensor of every adapter: norms of dW, NaN and Inf, sha256, shapes that fit."""
    names = list(sources)
    misfits = misfits_of(sources)

    def check(name: str) -> AdapterCheck:
        if name in misfits:
            return AdapterCheck(name, error=misfits[name])
        return check_adapter(name, sources[name])

    def need(name: str) -> int:
        return checking(sources[name])

    run = RunContext(progress, cancelled, max_memory=max_memory)
    results = map_ordered(check, names, run, stage="check", need=need)
    return CheckReport({result.name: result for result in results})


def check_adapter(
    name: str,
    source: AdapterSource,
    observe: Callable[[str, Tensor, Tensor], None] | None = None,
    observe_rest: Callable[[str, Tensor], None] | None = None,
) -> AdapterCheck:
    """Check one adapter; ``observe`` is shown every module's A and B while they are in memory.

    ``observe_rest`` is shown every other tensor.
    """
    where = f"{source.path or name}"
    check = AdapterCheck(name)
    try:
        if not source.modules:
            raise AdapterError("The adapter has no LoRA module.", where=where, code="no-factors")
        content = ContentHash()
        for batch in _batches(source, 1 if observe is not None else BATCH):
            grams = _Grams(source, batch[0][0], len(batch))
            for module, hashed in batch:
                [(a, b)] = read_modules(source, [module])
                content.add_module(hashed, source.scales[module], a, b)
                grams.add(a, b)
            for (module, _), norm in zip(batch, grams.norms(), strict=True):
                _check_finite(source, module, norm, where)
                check.norms[module] = abs(source.scales[module]) * norm
                if observe is not None:
                    observe(module, a, b)
        for key, tensor in sorted(source.read_rest().items()):
            content.add_rest(key, tensor)
            if observe_rest is not None:
                observe_rest(key, tensor)
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor.float()).all()):
                what = "A tensor that is kept as it is holds NaN or Inf."
                remedy = "look at how the adapter was trained"
                check.findings.append(
                    Finding("rest-not-finite", "warning", what, remedy, adapter=where, tensor=key)
                )
        check.digest = content.hexdigest()
    except VLoRAError as error:
        error.adapter = error.adapter or where
        check.error = error
        return check
    if check.norm == 0:
        what = "The adapter changes nothing: B (or A, or the scale) is zero in every module."
        remedy = "it may never have been trained; it is kept, with error 0"
        check.findings.append(Finding("no-effect", "warning", what, remedy, adapter=where))
    return check


def _batches(source: AdapterSource, most: int) -> Iterator[list[tuple[str, str]]]:
    """Modules of one shape that follow each other, with their `hashed_names`.

    Args:
        most: Numbers in all of a batch, more by a module.
    """
    batch: list[tuple[str, str]] = []
    shape, numbers = None, 0
    for module, hashed in hashed_names(source):
        own = source.modules[module]
        key = (own.rank, own.d_in, own.d_out, own.dtype)
        if batch and (key != shape or numbers >= most):
            yield batch
            batch, numbers = [], 0
        batch.append((module, hashed))
        shape, numbers = key, numbers + own.rank * (own.d_in + own.d_out)
    if batch:
        yield batch


class _Grams:
    """The Gram matrices of some modules of one shape, for their norms all at once."""

    def __init__(self, source: AdapterSource, first: str, count: int) -> None:
        shape = source.modules[first]
        rank = shape.rank
        self._a = torch.empty(rank, shape.d_in, dtype=torch.float64)
        self._b = torch.empty(shape.d_out, rank, dtype=torch.float64)
        self._of_a = torch.empty(count, rank, rank, dtype=torch.float64)
        self._of_b = torch.empty(count, rank, rank, dtype=torch.float64)
        self._places = zip(self._of_a, self._of_b, strict=True)

    def add(self, a: Tensor, b: Tensor) -> None:
        """The factors of one more module."""
        of_a, of_b = next(self._places)
        self._a.copy_(a)
        self._b.copy_(b)
        torch.mm(self._a, self._a.T, out=of_a)
        torch.mm(self._b.T, self._b, out=of_b)

    def norms(self) -> list[float]:
        """||B A|| of every module; not finite where a number of the module is not."""
        # A number that is not finite makes its own square on a diagonal so, whatever else is there.
        diagonals = (gram.diagonal(dim1=1, dim2=2) for gram in (self._of_a, self._of_b))
        squares = torch.cat(list(diagonals), 1).sum(1)
        norms = (self._of_a * self._of_b).sum((1, 2)).clamp_min(0).sqrt()
        found: list[float] = torch.where(squares.isfinite(), norms, squares).tolist()
        return found


def _check_finite(source: AdapterSource, module: str, norm: float, where: str) -> None:
    """Raise for a number or a scale that is not finite, given the norm of the module's factors."""
    if not math.isfinite(norm):
        for side, tensor in zip(("lora_A", "lora_B"), source.read(module), strict=True):
            bad = int((~torch.isfinite(tensor)).sum())
            if not bad:
                continue
            kind = "NaN" if torch.isnan(tensor).any() else "Inf"
            raise AdapterError(
                f"The adapter holds {kind}.",
                where=f"{where}: tensor {module}.{side}",
                adapter=where,
                module=module,
                tensor=f"{module}.{side}",
                expected="finite numbers",
                found=f"{bad} of {tensor.numel()} entries not finite",
                remedy="use an earlier checkpoint of it, or leave it out with --skip-bad",
                code="not-finite",
            )
    scale = source.scales[module]
    if not math.isfinite(scale):
        raise AdapterError(
            "The adapter's scale is not finite.",
            where=f"{where}: {module}",
            found=str(scale),
            adapter=where,
            module=module,
        )


def misfits_of(sources: Mapping[str, AdapterSource]) -> dict[str, CollectionError]:
    """Adapters whose modules have other dimensions than most others have; from headers alone."""
    votes: dict[str, Counter[tuple[str, int, int]]] = {}
    for source in sources.values():
        for module, shape in source.modules.items():
            votes.setdefault(module, Counter())[shape.fits] += 1
    # The majority decides; a tie goes to the smaller shape, so that order does not matter.
    usual = {m: max(sorted(count), key=count.__getitem__) for m, count in votes.items()}
    found = {}
    for name, source in sources.items():
        wrong = [m for m, shape in source.modules.items() if shape.fits != usual[m]]
        if wrong:
            found[name] = _misfit(name, source, wrong[0], usual[wrong[0]])
    return found


def _misfit(
    name: str, source: AdapterSource, module: str, usual: tuple[str, int, int]
) -> CollectionError:
    kind, d_in, d_out = source.modules[module].fits
    return CollectionError(
        "The adapter belongs to another base model than the others.",
        where=f"{source.path or name}: module {module}",
        adapter=f"{source.path or name}",
        module=module,
        expected=f"{usual[0]} {usual[1]} -> {usual[2]}",
        found=f"{kind} {d_in} -> {d_out}",
        remedy="compress each group of `vlora-tui inspect` separately",
        code="other-dimensions",
    )
