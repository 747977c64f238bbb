"""Measure how similar adapters are: inner products of weight changes, cosines, clusters."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from vlora_engine.adapters.collection import modules_of
from vlora_engine.adapters.model import AdapterSource, LoRAWeights, as_source
from vlora_engine.adapters.module_names import common_names
from vlora_engine.adapters.needs import by_layer, comparing
from vlora_engine.analysis.relations import Relations, RelationsSum, clusters_of
from vlora_engine.errors import AdapterError, CollectionError, ParameterError, VLoRAError
from vlora_engine.linalg.grams import gram_cosines
from vlora_engine.linalg.low_rank import Factors, module_grams
from vlora_engine.utils.progress import CancelCheck, ProgressCallback
from vlora_engine.utils.run_context import RunContext
from vlora_engine.utils.workers import map_ordered

Adapter = LoRAWeights | AdapterSource
Space = Literal["delta", "factors"]

# One module of all adapters is read once and held in memory up to here; above, read per block.
_HELD_BYTES = 256 << 20


def relate(
    sources: Sequence[Adapter],
    *,
    dtype: torch.dtype = torch.float64,
    bad: dict[int, VLoRAError] | None = None,
    progress: ProgressCallback | None = None,
    cancelled: CancelCheck | None = None,
) -> Relations:
    """Compute the relations of N adapters in one pass: every tensor is read once, by module.

    Similarity, clusters, outliers, duplicates and runs of checkpoints all start from the result.
    Memory: some (N, N) matrices and the few modules in progress.

    Args:
        sources: The adapters.
        dtype: In which Gram blocks are multiplied (see `low_rank.module_grams`).
        bad: Filled, by index, with the errors of adapters that cannot be read or hold NaN or
            infinity; their rows are then zero. Without it they are raised.
        progress: Called after each module.
        cancelled: Asked after each module whether to stop.

    Raises:
        CollectionError: Two adapters disagree about a module's dimensions.
        AdapterError: NaN or infinity in an adapter, and no ``bad``.
    """
    opened = common_names([as_source(source) for source in sources])
    holders = modules_of(opened)

    def grams_of(module: str) -> tuple[Tensor, Tensor]:
        owners = [opened[i] for i in holders[module]]
        shapes = [owner.modules[module] for owner in owners]
        nbytes = sum(4 * shape.rank * (shape.d_in + shape.d_out) for shape in shapes)
        reread = _Reread(owners, module, holders[module], bad)
        return module_grams(
            reread if nbytes > _HELD_BYTES else list(reread),
            [owner.scales[module] for owner in owners],
            ranks=[shape.rank for shape in shapes],
            dtype=dtype,
        )

    total = RelationsSum(len(opened), holders)
    run = RunContext(progress, cancelled)
    need = by_layer(opened, lambda shape: comparing(shape, 2 * _HELD_BYTES))
    grams = map_ordered(grams_of, list(holders), run, stage="similarity", need=need)
    with closing(grams):
        for module, (gram, a_gram) in zip(holders, grams, strict=True):
            at = holders[module]
            for k in (~gram.diagonal().isfinite()).nonzero().flatten().tolist():
                if bad is None:
                    raise not_finite(opened[at[k]], at[k], module)
                bad.setdefault(at[k], not_finite(opened[at[k]], at[k], module))
                gram[k], gram[:, k], a_gram[k], a_gram[:, k] = 0, 0, 0, 0
            total.add(module, at, gram.numpy(), a_gram.numpy())
    return total.relations()


def delta_grams(sources: Sequence[Adapter], **settings: Any) -> Tensor:
    """The inner products ``G[i, j] = <dW_i, dW_j>`` over all modules, (N, N) fp64, symmetric.

    Arguments and errors are those of `relate`, which gives more for the same work.
    """
    return torch.from_numpy(relate(sources, **settings).total)


def cosines(gram: Tensor) -> Tensor:
    """Cosine similarities from inner products, (N, N) fp64.

    The diagonal is 1. An adapter without effect has similarity 0 to all others.
    """
    return gram_cosines(gram).fill_diagonal_(1.0)


def compute_similarity_matrix(adapters: Sequence[Adapter], *, space: Space = "delta") -> Tensor:
    """Pairwise cosine similarity of adapters.

    Args:
        adapters: At least two; ranks, scales and module sets may differ with ``"delta"``.
        space: ``"delta"`` compares weight changes; ``"factors"`` the concatenated entries of A
            and B, as vlora-dev does (it ignores scales and depends on the gauge).

    Returns:
        (N, N) in torch's default dtype, symmetric, 1 on the diagonal. An adapter without effect
        has similarity 0 to every other (with ``"factors"`` vlora-dev's 0 on the diagonal,
        too).

    Raises:
        CollectionError: Fewer than two adapters, or adapters that cannot be compared.
        ParameterError: An unknown space.
    """
    check_space(space)
    if len(adapters) < 2:
        raise CollectionError(
            "A similarity needs two adapters or more.",
            expected="at least 2 adapters",
            found=str(len(adapters)),
        )
    if space == "delta":
        return cosines(delta_grams(adapters)).to(torch.get_default_dtype())
    opened = common_names([as_source(adapter) for adapter in adapters])
    gram = _factor_grams(opened)
    norms = gram.diagonal().sqrt().clamp(min=1e-8)
    return (gram / norms[:, None] / norms).to(torch.get_default_dtype())


def find_clusters(similarity_matrix: Tensor, threshold: float = 0.9) -> list[list[int]]:
    """Cluster adapters so that every two of a cluster have at least the cosine ``threshold``.

    Complete linkage: the most similar are joined first. vlora-dev lets each adapter join the first
    cluster that takes it, so that its clusters depend on the adapters' order; these do not, except
    in exact ties, and where only one grouping is possible both agree.

    Args:
        similarity_matrix: (N, N).
        threshold: A cosine in [-1, 1].

    Returns:
        The clusters as lists of indices; every index is in exactly one.

    Raises:
        ParameterError: The matrix is not square or not finite, or the threshold is no cosine.
    """
    if similarity_matrix.ndim != 2 or similarity_matrix.shape[0] != similarity_matrix.shape[1]:
        raise ParameterError(
            "A similarity matrix is square.", found=str(tuple(similarity_matrix.shape))
        )
    if not bool(similarity_matrix.isfinite().all()):
        raise ParameterError("The similarity matrix holds NaN or infinity.")
    if not -1 <= threshold <= 1:
        raise ParameterError(
            "The threshold of a cluster is a cosine.", expected="-1 to 1", found=str(threshold)
        )
    return clusters_of(similarity_matrix.detach().cpu().double().numpy(), threshold)


def scaled_factors(source: AdapterSource, module: str) -> Factors:
    """The factors A (r, d_in) and scale * B (d_out, r) of one module, in fp64."""
    a, b = source.read(module)
    return a.double(), b.double() * source.scales[module]


def same_factor_shapes(sources: Sequence[AdapterSource], module: str) -> None:
    """Check that all sources have the module, at one rank.

    Raises:
        CollectionError: They do not.
    """
    ranks = [s.modules[module].rank if module in s.modules else None for s in sources]
    if len(set(ranks)) > 1:
        raise CollectionError(
            f"A and B of module {module!r} cannot be compared entry by entry.",
            expected="one rank in all adapters",
            found=f"ranks {ranks}".replace("None", "(no such module)"),
            remedy="compare weight changes: space='delta'",
        )


def check_space(space: str) -> None:
    """Check that ``space`` is ``delta`` or ``factors``.

    Raises:
        ParameterError: It is neither.
    """
    if space not in ("delta", "factors"):
        raise ParameterError(
            "Adapters are compared in one of two spaces.",
            expected="'delta' or 'factors'",
            found=repr(space),
        )


def not_finite(source: AdapterSource, position: int, module: str) -> AdapterError:
    """The error for NaN or infinity in a module."""
    return AdapterError(
        f"The weight change of module {module!r} is not finite.",
        where=source.path or f"adapter {position}",
        expected="finite numbers",
        found="NaN or infinity in A, B or the scale",
        remedy="leave this adapter out",
    )


def _factor_grams(sources: Sequence[AdapterSource]) -> Tensor:
    """The inner products of the adapters' concatenated factors, (N, N)."""
    gram = torch.zeros(len(sources), len(sources), dtype=torch.float64)
    for module in modules_of(sources):
        same_factor_shapes(sources, module)
        factors = [source.read(module) for source in sources]
        for side in (0, 1):
            rows = torch.stack([pair[side].double().flatten() for pair in factors])  # [N, r d]
            gram += rows @ rows.T
    return gram


@dataclass
class _Reread(Sequence[Factors]):
    """The factors of one module, read from their source each time they are asked for.

    With ``bad``, what cannot be read is zero and its error is noted there.
    """

    owners: Sequence[AdapterSource]
    module: str
    positions: Sequence[int]
    bad: dict[int, VLoRAError] | None

    def __len__(self) -> int:
        return len(self.owners)

    def __getitem__(self, i: Any) -> Any:
        try:
            return self.owners[i].read(self.module)
        except VLoRAError as error:
            if self.bad is None:
                raise
            self.bad.setdefault(self.positions[i], error)
            shape = self.owners[i].modules[self.module]
            return torch.zeros(shape.rank, shape.d_in), torch.zeros(shape.d_out, shape.rank)
