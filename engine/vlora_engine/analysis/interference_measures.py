"""Measure how adapters would interfere if they were merged, pair by pair.

Every figure is on ``dW_i = U_i S_i V_i^T``. It does not depend on the gauge ``(B G, G^-1 A)``, the
size of an adapter or the other adapters of the collection (docs/mathematics.md#interference):

- ``cosine`` of dW_i and dW_j;
- ``writes``: the share of i's energy in j's output space, ``||U_j^T dW_i||^2 / ||dW_i||^2``;
- ``reads``: the same of the input space, ``||dW_i V_j||^2 / ||dW_i||^2``;
- ``overlap``: the share in both, ``||U_j^T dW_i V_j||^2 / ||dW_i||^2``, the part of i that j can
  affect at all. These three are shares of i: row i, column j; their matrices are not symmetric;
- ``sign_conflict``: ``<dW_i, dW_j>`` is the sum over singular directions a of i and b of j of
  ``t_ab = S_i[a] S_j[b] (U_i[a] . U_j[b]) (V_i[a] . V_j[b])``; the conflict is the share of
  ``sum |t_ab|`` with a negative sign: 0 where everything common has one sign or nothing is common,
  1 where all of it is opposed. It is defined where the singular values of each adapter differ, so
  that its directions are unique.

Over several modules numerators and denominators are summed; a module that an adapter lacks counts
as zero.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from vlora_engine.adapters.collection import modules_of
from vlora_engine.adapters.model import AdapterSource, as_source, padded
from vlora_engine.adapters.module_names import common_names
from vlora_engine.adapters.needs import by_layer, interfering
from vlora_engine.analysis.similarity import Adapter, not_finite
from vlora_engine.errors import AdapterError, CollectionError
from vlora_engine.linalg.low_rank import canonical_svd_batch
from vlora_engine.utils.naming import cosine_text, percent_text
from vlora_engine.utils.progress import CancelCheck, ProgressCallback
from vlora_engine.utils.run_context import RunContext
from vlora_engine.utils.workers import map_ordered

_BLOCK_ROWS = 512  # singular directions of one block: 33 MB of fp64 a block at d = 4096 + 4096
_NOTHING = 1e-12  # of the product of the two norms: below it what is common is rounding

MEASURES = {
    "cosine": "cosine of the two dW",
    "writes": "share of the first's energy in the second's output space",
    "reads": "share of the first's energy in the second's input space",
    "overlap": "share of the first's energy in both spaces of the second",
    "sign_conflict": "share of what is common that pulls in opposite directions",
}


@dataclass(frozen=True)
class Interference:
    """The interference of N adapters: (N, N) fp64 each, see `MEASURES`; ``norms`` (N,) ||dW_i||."""

    cosine: Tensor
    writes: Tensor
    reads: Tensor
    overlap: Tensor
    sign_conflict: Tensor
    norms: Tensor

    @property
    def contested(self) -> Tensor:
        """(N, N) the share of one's energy where the other acts with other signs, at most."""
        return torch.maximum(self.overlap, self.overlap.T) * self.sign_conflict

    def as_dict(self) -> dict[str, list[list[float]]]:
        """The matrices as lists, for JSON."""
        return {name: getattr(self, name).tolist() for name in MEASURES}


# Where a verdict turns (docs/mathematics.md#interference): conventions, each with what it means.
TURNS = 0.1  # |cosine|: a plain sum of two of one size changes the strength of each by 10 %
ALIKE = 0.5  # cosine from which two do much the same
TANGLED = 0.05  # the share of one's energy that lies where the other acts, and with other signs
DROWNS = 3.0  # times the norm: at equal weights the larger has 9 times the energy


@dataclass(frozen=True)
class PairVerdict:
    """What a merge would meet with two adapters.

    Args:
        first: The index of one.
        second: Of the other.
        kind: ``opposed`` (they cancel), ``tangled`` (they share directions with mixed signs),
            ``alike`` (they reinforce each other), ``apart`` (they leave each other alone).
        cosine: Of the two dW.
        contested: The share of one's energy where the other acts with other signs, at most.
        ratio: The norm of the second over that of the first.
    """

    first: int
    second: int
    kind: str
    cosine: float
    contested: float
    ratio: float

    @property
    def interferes(self) -> bool:
        """Whether they interfere."""
        return self.kind in ("opposed", "tangled")

    @property
    def drowned(self) -> int | None:
        """The index of the one that the other would drown at equal weights."""
        if self.ratio >= DROWNS:
            return self.first
        return self.second if 0 < self.ratio <= 1 / DROWNS else None

    def sentence(self, names: Sequence[str]) -> str:
        """The verdict in one sentence."""
        a, b = names[self.first], names[self.second]
        cosine = cosine_text(self.cosine)
        losses = self.cosine * self.ratio, self.cosine / self.ratio if self.ratio else 0.0
        from_a, from_b = (percent_text(min(1.0, -loss)) for loss in losses)
        if self.kind == "opposed":
            text = (
                f"{a} and {b} pull against each other (cosine {cosine}): a plain sum takes "
                f"{from_a} from {a} and {from_b} from {b}"
            )
        elif self.kind == "tangled":
            text = (
                f"{a} and {b} use the same directions with mixed signs: up to "
                f"{percent_text(self.contested)} of one is contested by the other, so prefer "
                "ties, or weights by module, to a sum"
            )
        elif self.kind == "alike":
            much = "do much the same" if self.cosine >= ALIKE else "agree in part"
            text = (
                f"{a} and {b} {much} (cosine {cosine}) and do not interfere: average "
                "them, a sum would be too strong"
            )
        else:
            text = f"{a} and {b} do not interfere: they can be added up"
        if self.drowned is None:
            return f"{text}."
        small, large = (a, b) if self.drowned == self.first else (b, a)
        times = max(self.ratio, 1 / self.ratio)
        return f"{text}; but {large} is {times:.2g} times as large and would drown {small}."


def pair_verdicts(found: Interference) -> list[PairVerdict]:
    """The verdict on every pair, the worst first."""
    verdicts = []
    count, contests = len(found.norms), found.contested
    for i in range(count):
        for j in range(i + 1, count):
            cosine = float(found.cosine[i, j])
            contested = float(contests[i, j])
            if cosine <= -TURNS:
                kind = "opposed"
            elif cosine >= TURNS:
                kind = "alike"
            else:
                kind = "tangled" if contested >= TANGLED else "apart"
            norms = float(found.norms[i]), float(found.norms[j])
            ratio = norms[1] / norms[0] if norms[0] else 0.0
            verdicts.append(PairVerdict(i, j, kind, cosine, contested, ratio))
    order = ("opposed", "tangled", "alike", "apart")
    return sorted(
        verdicts,
        key=lambda v: (order.index(v.kind), v.drowned is None, -v.contested, v.first, v.second),
    )


@dataclass
class _Sums:
    """Sums over modules, (n, n) each; the diagonal of ``inner`` is ||dW||^2."""

    inner: Tensor
    writes: Tensor
    reads: Tensor
    overlap: Tensor
    opposed: Tensor
    common: Tensor

    @classmethod
    def zeros(cls, n: int) -> _Sums:
        return cls(*(torch.zeros(n, n, dtype=torch.float64) for _ in fields(cls)))

    def add(self, other: _Sums) -> None:
        """Add the sums of another module."""
        for name, values in vars(other).items():
            getattr(self, name).add_(values)

    def spread(self, holders: Sequence[int], n: int) -> _Sums:
        """The same among n adapters, of which these have the module."""
        if len(holders) == n:
            return self
        wide, at = _Sums.zeros(n), torch.tensor(holders)
        for name, values in vars(self).items():
            getattr(wide, name)[at[:, None], at] = values
        return wide


def interference(
    adapters: Sequence[Adapter],
    *,
    progress: ProgressCallback | None = None,
    cancelled: CancelCheck | None = None,
) -> Interference:
    """Measure the interference of every pair of adapters, module by module, in one pass.

    A module's singular directions are held in blocks of 512: each adapter is read once where all
    of them fit one block, and once per block otherwise; memory does not grow with the collection.

    Raises:
        CollectionError: Fewer than two adapters, or a module's dimensions differ.
        AdapterError: NaN or infinity in an adapter.
    """
    sources = _sources(adapters)
    total = _Sums.zeros(len(sources))
    for _, sums in _each_module(sources, RunContext(progress, cancelled)):
        total.add(sums)
    return _shares(total)


def pair_interference(
    first: Adapter,
    second: Adapter,
    *,
    progress: ProgressCallback | None = None,
    cancelled: CancelCheck | None = None,
) -> tuple[Interference, dict[str, Interference]]:
    """Measure the interference of two adapters as a whole and in every module that both have.

    Raises:
        CollectionError: A module's dimensions differ.
        AdapterError: NaN or infinity in an adapter.
    """
    sources = _sources([first, second])
    total, modules = _Sums.zeros(2), {}
    for module, sums in _each_module(sources, RunContext(progress, cancelled)):
        total.add(sums)
        if all(module in source.modules for source in sources):
            modules[module] = _shares(sums)
    return _shares(total), modules


def _sources(adapters: Sequence[Adapter]) -> list[AdapterSource]:
    sources = common_names([as_source(adapter) for adapter in adapters])
    if len(sources) < 2:
        raise CollectionError(
            "Interference is between two adapters or more.",
            expected="at least 2 adapters",
            found=str(len(sources)),
        )
    return sources


def _each_module(sources: Sequence[AdapterSource], run: RunContext) -> Iterator[tuple[str, _Sums]]:
    """The sums of every module among all adapters, zero for those that lack it."""
    holders = modules_of(sources)

    def measure(module: str) -> _Sums:
        return _of_module(sources, holders[module], module)

    need = by_layer(sources, interfering)
    each = map_ordered(measure, list(holders), run, stage="interference", need=need)
    with closing(each) as results:
        for module, sums in zip(holders, results, strict=True):
            yield module, sums.spread(holders[module], len(sources))


def _shares(total: _Sums) -> Interference:
    """Divide the sums: energies by ||dW_i||^2, opposed terms by all terms."""
    norm2 = total.inner.diagonal().clamp(min=0)
    norms = norm2.sqrt()
    inverse = torch.where(norm2 > 0, 1 / norm2, torch.zeros_like(norm2))[:, None]
    both = norms[:, None] * norms
    nonzero = total.common > _NOTHING * both
    zeros = torch.zeros_like(both)
    return Interference(
        cosine=torch.where(both > 0, total.inner / both, zeros).clamp(-1, 1),
        writes=(total.writes * inverse).clamp(0, 1),
        reads=(total.reads * inverse).clamp(0, 1),
        overlap=(total.overlap * inverse).clamp(0, 1),
        sign_conflict=torch.where(nonzero, total.opposed / total.common, zeros).clamp(0, 1),
        norms=norms,
    )


def _of_module(sources: Sequence[AdapterSource], holders: Sequence[int], module: str) -> _Sums:
    """The sums of one module over the adapters that have it."""
    sums = _Sums.zeros(len(holders))
    blocks = _blocks([sources[i].modules[module].rank for i in holders])
    for x, rows in enumerate(blocks):
        first = _directions(sources, [holders[i] for i in rows], module)
        for columns in blocks[x:]:
            same = columns is rows
            second = first if same else _directions(sources, [holders[i] for i in columns], module)
            _add_pairs(sums, rows, first, columns, second)
            if not same:
                _add_pairs(sums, columns, second, rows, first)
    return sums


_Directions = tuple[Tensor, Tensor, Tensor]  # U (n, d_out, q), S (n, q), V (n, d_in, q)


def _add_pairs(
    sums: _Sums, rows: range, first: _Directions, columns: range, second: _Directions
) -> None:
    """Fill the block (rows, columns) of every sum: n adapters of q directions, m of p."""
    out = _products(first[0], second[0])  # [n, m, q, p]
    into = _products(first[2], second[2])  # V_i^T V_j
    S, T = first[1][:, None, :, None], second[1][None, :, None, :]  # [n, 1, q, 1], [1, m, 1, p]
    at = slice(rows.start, rows.stop), slice(columns.start, columns.stop)
    terms = S * T * out * into  # t_ab, whose sum is <dW_i, dW_j>
    sums.inner[at] = terms.sum(dim=(-2, -1))
    sums.common[at] = terms.abs().sum(dim=(-2, -1))
    sums.opposed[at] = terms.clamp(max=0).abs().sum(dim=(-2, -1))
    sums.writes[at] = (S * out).square().sum(dim=(-2, -1))
    sums.reads[at] = (S * into).square().sum(dim=(-2, -1))
    sums.overlap[at] = ((S * out).mT @ into).square().sum(dim=(-2, -1))


def _products(x: Tensor, y: Tensor) -> Tensor:
    """All inner products of the columns of (n, d, q) and (m, d, p): (n, m, q, p)."""
    n, d, q = x.shape
    m, _, p = y.shape
    flat = x.mT.reshape(n * q, d) @ y.mT.reshape(m * p, d).T  # [n q, m p]
    return flat.reshape(n, q, m, p).permute(0, 2, 1, 3)


def _directions(
    sources: Sequence[AdapterSource], owners: Sequence[int], module: str
) -> _Directions:
    """The canonical SVDs of some adapters, those of smaller rank padded with zeros."""
    pairs = [sources[i].read(module) for i in owners]
    rank = max(a.shape[0] for a, _ in pairs)
    a = torch.stack([padded(pair[0].double(), rank, 0) for pair in pairs])  # [n, r, d_in]
    b = torch.stack([padded(pair[1].double(), rank, 1) for pair in pairs])  # [n, d_out, r]
    scales = torch.tensor([sources[i].scales[module] for i in owners], dtype=torch.float64)
    try:
        return canonical_svd_batch(a, b, scales)
    except AdapterError:
        for i, pair, scale in zip(owners, pairs, scales, strict=True):
            if not bool((sum(t.double().sum() for t in pair) * scale).isfinite()):
                raise not_finite(sources[i], i, module) from None
        raise


def _blocks(ranks: Sequence[int]) -> list[range]:
    """Divide adapters into blocks of about `_BLOCK_ROWS` directions together."""
    size = max(1, _BLOCK_ROWS // max(1, *ranks))
    return [range(i, min(i + size, len(ranks))) for i in range(0, len(ranks), size)]
