"""One matrix of a merged checkpoint beside base + adapter: what the adapter's change became.

Of the base's W, its change dW and the merged M three figures tell what happened
(docs/mathematics.md#a-merged-checkpoint):

- ``error``, ``||M - W - dW|| / ||dW||``;
- ``factor``, ``<M - W, dW> / ||dW||^2``: 1 where dW is in M once, 0 where it is not, 2 where twice.
  Rounding hardly moves it, since it is not aligned with dW, so it tells even a dW that is smaller
  than the rounding of W;
- the bound on what rounding alone can do: per entry with unit roundoff u of M's dtype
  ``u (|W| + |W + dW| + 2 |dW| + (2 + sqrt(r)) s |B| |A|)``: W read in that dtype, A and B in it,
  their product rounded, the sum rounded.

One part of one matrix is in memory at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vlora_engine.doctor.checkpoint import row_blocks
from vlora_engine.doctor.merged_report import ModuleVerdict, Verdict
from vlora_engine.utils.naming import percent_text
from vlora_engine.utils.safetensors_file import torch_dtype

Rows = Callable[[int, int], Tensor]  # the first row and their number -> rows of a matrix


COARSE = "BF16"  # what a merge may have been computed in whatever it was stored in


SAME_FACTOR = 0.02  # factors closer than this, and than what rounding does to them, are one


SURVIVES = 0.5  # the share of dW that has to survive rounding for a merge to be told from none


@dataclass
class _Sums:
    """Sums over the entries of one matrix, with D = M - W.

    Args:
        change2: ``||dW||^2``.
        moved2: ``||D||^2``.
        along: ``<D, dW>``.
        error2: ``||D - dW||^2``.
        rounding2: The square of the bound on rounding in M's dtype.
        coarse2: The same in bf16.
        kept2: The square of the bound for a matrix that only changed its dtype.
        noise2: ``||tau dW||^2``, what rounding may do to ``along``.
        survives: ``<round(W + dW) - W, dW>``.
        across: ``<D, dW^T>`` of a square matrix.
    """

    change2: float = 0.0
    moved2: float = 0.0
    along: float = 0.0
    error2: float = 0.0
    rounding2: float = 0.0
    coarse2: float = 0.0
    kept2: float = 0.0
    noise2: float = 0.0
    survives: float = 0.0
    across: float = 0.0

    def beside(self, factor: float) -> float:
        """``||D - factor dW||``."""
        square = self.moved2 - 2 * factor * self.along + factor**2 * self.change2
        return math.sqrt(max(0.0, square))

    def beside_transpose(self) -> float:
        """``||D - dW^T||``."""
        return math.sqrt(max(0.0, self.moved2 - 2 * self.across + self.change2))


def measure(
    sides: tuple[Tensor, Tensor],
    scale: float,
    size: Sequence[int],
    before: Rows,
    after: Rows,
) -> _Sums:
    """Sum over one matrix, some rows at a time; ``dW = scale * left @ right``.

    Args:
        sides: left (rows, r) and right (r, columns).
        scale: Of the module.
        size: Of the matrix.
        before: Rows of the base's matrix, from their first and number.
        after: The same of the merged one.
    """
    stored = after(0, 0).dtype
    kind = torch.float64 if stored.itemsize > 2 else torch.float32
    left, right = sides[0].to(kind) * scale, sides[1].to(kind)
    sums, u, coarse = _Sums(), roundoff(stored), roundoff(torch_dtype(COARSE))
    tiny = float(torch.finfo(stored).smallest_normal) * float(torch.finfo(stored).eps)
    products = 2 + math.sqrt(left.shape[1])
    square = left.shape[0] == right.shape[1]
    for first, count in row_blocks(size):
        rows = slice(first, first + count)
        w, m = before(first, count).to(kind), after(first, count).to(kind)
        change = left[rows] @ right
        d, total = m - w, w + change
        product = left[rows].abs() @ right.abs()
        tau = w.abs() + total.abs() + 2 * change.abs() + products * product
        sums.change2 += square_sum(change)
        sums.moved2 += square_sum(d)
        sums.along += _inner(d, change)
        sums.error2 += square_sum(d - change)
        sums.rounding2 += square_sum(u * tau + tiny)
        sums.coarse2 += square_sum(max(u, coarse) * tau + tiny)
        sums.kept2 += square_sum(u * w.abs() + tiny)
        sums.noise2 += square_sum((u * tau + tiny) * change)
        sums.survives += _inner(total.to(stored).to(kind) - w, change)
        if square:
            sums.across += _inner(d, (left @ right[:, rows]).T)
    return sums


def known_factors(scale: float, rank: int) -> dict[str, float]:
    """Factors that a well-known mistake leaves, and its name."""
    known = {"twice": 2.0, "subtracted, -1 times": -1.0}
    if scale:
        known["with a scale of 1, without alpha / r"] = 1 / scale
    known["as if it were rsLoRA, sqrt(r) times"] = math.sqrt(rank)
    known["as if it were no rsLoRA, 1 / sqrt(r) times"] = 1 / math.sqrt(max(1, rank))
    return known


def judge(
    module: str, there: str, sums: _Sums, dtype: str, known: Mapping[str, float]
) -> ModuleVerdict:
    """What the sums of one matrix mean; the order of the questions matters."""
    if not math.isfinite(sums.moved2):
        return ModuleVerdict(module, there, "off", what="NaN or infinity in its merged matrix.")
    rounding = math.sqrt(sums.rounding2)
    if not sums.change2:
        if math.sqrt(sums.moved2) <= rounding:
            return ModuleVerdict(module, there, "right", 0.0, None, None, "dW is zero here.")
        what = "The adapter changes nothing here, yet its matrix is not the base's."
        return ModuleVerdict(module, there, "off", None, None, None, what)
    size = math.sqrt(sums.change2)
    factor, survives = sums.along / sums.change2, sums.survives / sums.change2
    error = math.sqrt(sums.error2) / size
    slack = max(SAME_FACTOR, 4 * math.sqrt(sums.noise2) / sums.change2)

    def judged(verdict: Verdict, what: str) -> ModuleVerdict:
        return ModuleVerdict(module, there, verdict, error, factor, rounding / size, what)

    within = math.sqrt(sums.error2) <= rounding
    if within and survives < SURVIVES and abs(factor - survives) <= max(slack, SAME_FACTOR):
        return judged(
            "lost",
            f"dW is below the rounding of {dtype}: {percent_text(max(0.0, survives))} of it "
            "survives there, so a merge has almost no effect.",
        )
    if within and abs(factor - survives) <= slack:
        return judged("right", "")
    if math.sqrt(sums.moved2) <= math.sqrt(sums.kept2) and abs(factor) <= slack:
        return judged("not-merged", "It is the base's matrix: dW is not in it.")
    limit = rounding * max(1.0, abs(factor))
    if sums.beside(factor) <= limit and abs(factor - 1) > slack:
        return judged("scaled", f"dW is in it {_times(factor, known)}.")
    if sums.beside_transpose() <= rounding:
        return judged("transposed", "dW is in it transposed (fan_in_fan_out).")
    coarse = math.sqrt(sums.coarse2)
    if abs(factor - 1) <= SAME_FACTOR and math.sqrt(sums.error2) <= coarse:
        return judged("rounded", f"It is right up to the rounding of {COARSE}, stored as {dtype}.")
    if sums.beside(factor) <= coarse * max(1.0, abs(factor)) and abs(factor - 1) > SAME_FACTOR:
        return judged(
            "scaled", f"dW is in it {_times(factor, known)}, up to the rounding of {COARSE}."
        )
    if abs(factor - 1) <= SAME_FACTOR:
        return judged(
            "off",
            f"dW is in it, but the rest is not this base's (off by {error:.2g} of dW): was it "
            "merged onto a quantized base, or another one?",
        )
    return judged("off", f"It is off by {error:.2g} of dW; dW is in it {_times(factor, known)}.")


def _times(factor: float, known: Mapping[str, float]) -> str:
    """How often dW is in a matrix, in words."""
    words = [w for w, value in known.items() if abs(factor - value) <= SAME_FACTOR * abs(value)]
    return ", or ".join(words) or f"{factor:.3g} times"


def roundoff(dtype: torch.dtype) -> float:
    """The unit roundoff u of a dtype: the most that rounding to it changes a number, relatively."""
    return float(torch.finfo(dtype).eps) / 2


def square_sum(x: Tensor) -> float:
    """The sum of the squares of all entries, added up in fp64."""
    return float(x.square().sum(dtype=torch.float64))


def _inner(x: Tensor, y: Tensor) -> float:
    return float((x * y).sum(dtype=torch.float64))
