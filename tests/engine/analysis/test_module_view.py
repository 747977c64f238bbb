"""One module looked at closely, against dense arithmetic."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.witnesses import make
from vlora_engine.adapters.model import LoRAWeights
from vlora_engine.analysis.module_view import module_comparison, module_view
from vlora_engine.errors import AdapterError, CollectionError, NotFoundError

NAME = "x.q_proj"
SHAPE = {NAME: (20, 14)}  # d_in, d_out


def adapter(seed: int, rank: int = 4, alpha: float = 12) -> LoRAWeights:
    own = make.weights(SHAPE, rank=rank, seed=seed)
    own.scales[NAME] = alpha / math.sqrt(rank)
    return own


def dense(own: LoRAWeights) -> Tensor:
    return own.scales[NAME] * own.lora_b[NAME].double() @ own.lora_a[NAME].double()


def projected(dw: Tensor, onto: Tensor) -> Tensor:
    """``dw`` between the projections onto the column and row spaces of another."""
    # told to drop far more than rounding: a rank that depends on eps depends on the machine
    inverse = torch.linalg.pinv(onto, rtol=1e-10)
    return (onto @ inverse) @ dw @ (inverse @ onto)


def test_a_portrait_is_that_of_the_dense_matrix() -> None:
    own = adapter(0)
    values = torch.linalg.svdvals(dense(own))[:4]
    portrait = module_view(own, NAME)
    assert portrait["singular_values"] == pytest.approx(values.tolist(), rel=1e-10)
    assert portrait["norm"] == pytest.approx(float(dense(own).norm()))
    share = values.square() / values.square().sum()
    assert portrait["effective_rank"] == pytest.approx(float((-share * share.log()).sum().exp()))
    assert portrait["stable_rank"] == pytest.approx(float(1 / share[0]))
    assert (portrait["d_in"], portrait["d_out"], portrait["numerical_rank"]) == (20, 14, 4)


def test_two_are_compared_as_their_dense_matrices() -> None:
    first, second = adapter(0), adapter(1, rank=6)
    # a direction in common
    second.lora_a[NAME][0], second.lora_b[NAME][:, 0] = (
        first.lora_a[NAME][0],
        3 * first.lora_b[NAME][:, 0],
    )
    one, two = dense(first), dense(second)
    found = module_comparison(first, second, NAME)
    assert found["cosine"] == pytest.approx(float((one * two).sum() / one.norm() / two.norm()))
    assert found["relative_difference"] == pytest.approx(float((one - two).norm() / one.norm()))
    for key, dw, onto in (("a_in_b", one, two), ("b_in_a", two, one)):
        kept = projected(dw, onto).norm() / dw.norm()
        assert found[key] == pytest.approx(float(kept) ** 2, rel=1e-8)
    for key, x, y in (("angles_out", one, two), ("angles_in", one.T, two.T)):
        bases = [torch.linalg.svd(m, full_matrices=False).U[:, :r] for m, r in ((x, 4), (y, 6))]
        cosines = torch.linalg.svdvals(bases[0].T @ bases[1])
        assert found[key] == pytest.approx(cosines.tolist(), abs=1e-8)
        assert found[key][0] == pytest.approx(1)  # the direction in common


def test_a_copy_in_another_gauge_is_the_same() -> None:
    own, twin = adapter(0), adapter(0)
    G = torch.randn(4, 4, generator=torch.Generator().manual_seed(5)).double()
    twin.lora_b[NAME] = own.lora_b[NAME].double() @ G
    twin.lora_a[NAME] = torch.linalg.solve(G, own.lora_a[NAME].double())
    found = module_comparison(own, twin, NAME)
    assert found["cosine"] == pytest.approx(1)
    assert found["relative_difference"] < 1e-6
    assert (found["a_in_b"], found["b_in_a"]) == (pytest.approx(1), pytest.approx(1))
    assert [row["j"] for row in found["directions"]] == [0, 1, 2, 3]


def test_nothing_is_looked_at_without_fuss() -> None:
    nothing = adapter(0)
    nothing.lora_b[NAME].zero_()
    portrait = module_view(nothing, NAME)
    assert (portrait["norm"], portrait["numerical_rank"], portrait["effective_rank"]) == (0, 0, 0)
    found = module_comparison(nothing, adapter(1), NAME)
    assert (found["cosine"], found["a_in_b"], found["b_in_a"]) == (0, 0, 0)
    assert found["relative_difference"] == pytest.approx(1)
    assert (found["angles_in"], found["directions"]) == ([], [])


def test_what_cannot_be_looked_at() -> None:
    own = adapter(0)
    with pytest.raises(NotFoundError, match=r"did you mean 'x\.q_proj'"):
        module_view(own, "x.q_prj")
    with pytest.raises(CollectionError, match="different shapes"):
        module_comparison(own, make.weights({NAME: (20, 15)}), NAME)
    own.lora_a[NAME][0, 0] = math.nan
    with pytest.raises(AdapterError):
        module_view(own, NAME)
