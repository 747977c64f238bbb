"""The table of merge methods, and of PEFT's under PEFT's names; no torch.

The arithmetic of each stands in `vlora_engine.merging.operators` under its name, that of PEFT's in
`vlora_engine.merging.factorwise`: these need torch, which a list of methods does without.

Where a method works "entry by entry on the core", the core of adapter i is ``M_i = U^T dW_i V`` in
the common space of all adapters of the merge (`vlora_engine.merging.core_space`): lossless, at most
(sum r)^2 entries, the same for every gauge. An operator that sees single entries depends on the
coordinates: the same one on the entries of the dense dW gives another result. How far the two lie
apart, ``||core - dense|| / ||dense||`` with default parameters and equal weights, as measured by
``python -m tests.benchmarks.run merge_gap`` on four adapters of each set:

    method            GPT-2, three fields   RoBERTa, one run   made, independent
    ties                     0.75                0.29                0.76
    dare                     1.04                0.79                0.99
    dare_ties                1.13                0.76                1.09
    della                    0.95                0.44                1.02
    della_linear             0.87                0.54                0.87
    breadcrumbs              0.93                0.99                0.82
    breadcrumbs_ties         0.99                1.00                0.96
    magnitude_prune          0.21                0.11                0.25
    sce                      0.76                0.14                0.81

The draws differ between the two, so that dare's row is the noise of two draws; in either
coordinates its expectation is the sum. Trimming takes less away on the core (magnitude_prune: 2 %
of the sum's length on GPT-2, against 21 % on dense entries), since a core has few large entries;
dropping the largest (breadcrumbs) takes away far more.

Sums, SLERP, model stock, TSV-M and Iso-C do not depend on coordinates: there the core and the
dense dW give the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from vlora_engine.errors import ParameterError
from vlora_engine.merging.registry import MergeMethod, MergeParameter, MergeRegistry

MERGE_METHODS = MergeRegistry()
PEFT_METHODS = MergeRegistry()
DEFAULT_METHOD = "average"
CORE = "the entries of the core U^T dW V"
EXACT = frozenset({"one", "copies", "gauge", "order", "scaling"})
DRAWN = EXACT - {"order"}  # draws depend on an adapter's position

DENSITY = MergeParameter(
    "density", "float", 0.5, "share of entries kept", low=0, high=1, low_open=True, each=True
)
DROP_RATE = MergeParameter(
    "drop_rate", "float", 0.5, "share of entries dropped",
    low=0, high=1, high_open=True, each=True, complement="density",
)  # fmt: skip
SEED = MergeParameter("seed", "int", None, "seed of the draws; a fresh one by default")
EPSILON = MergeParameter(
    "epsilon", "float", 0.15, "how far the chance to stay moves with the size of an entry",
    low=0, high=0.5, high_open=True, each=True,
)  # fmt: skip
GAMMA = MergeParameter(
    "gamma", "float", 0.01, "share of the largest entries dropped",
    low=0, high=1, high_open=True, each=True,
)  # fmt: skip
BREADCRUMBS_DENSITY = MergeParameter(
    "density", "float", 0.9, "share of entries kept", low=0, high=1, low_open=True, each=True
)
# Measured by merge_gap: with the default gamma of 0.01 next to nothing of four checkpoints of one
# run is left (99.5 % of their mean's dW is gone); on dense entries it is 45 %.
OUTLIERS = (
    "In the core the largest entries are what the adapters do most: dropping even a few takes away "
    "most of dW where adapters are alike. Look at what is kept, or set gamma to 0."
)


CAT = MergeMethod(
    "cat",
    "A and B side by side: the sum of the weight changes, the rank that of all together",
    "A and B, whose product is dW",
    default_weights="1",
    identities=(EXACT - {"copies"}) | {"linear"},
    reference="PEFT, add_weighted_adapter",
    remark="cat adds the adapters up, each at its weight (1 where none is given), as PEFT's cat "
    "does; it was the average before, which is now: average.",
)


def _chances(values: Mapping[str, Any]) -> None:
    """Check that DELLA's probabilities, density - epsilon to density + epsilon, are within (0, 1].

    Raises:
        ParameterError: They are not.
    """
    densities, widths = (
        v if isinstance(v, tuple) else (v,) for v in (values["density"], values["epsilon"])
    )
    longest = max(len(densities), len(widths))
    pairs = zip(
        densities * (longest // len(densities)), widths * (longest // len(widths)), strict=False
    )
    for density, epsilon in pairs:
        if density < 1 and not (epsilon < density <= 1 - epsilon):
            raise ParameterError(
                "density and epsilon do not fit together.",
                expected="0 < density - epsilon and density + epsilon <= 1; or density = 1",
                found=f"density {density:g}, epsilon {epsilon:g}",
            )


for _method in (
    MergeMethod(
        "task_arithmetic",
        "weighted sum of the weight changes, exact",
        "dW",
        identities=EXACT | {"linear"},
        aliases=("average", "linear", "weighted_sum"),
        factors=True,
        reference="arXiv:2212.04089",
    ),
    MergeMethod(
        "ties",
        "keep the largest entries, elect signs, average what agrees",
        CORE,
        (DENSITY,),
        {"density": 1.0},
        normalises="entry",
        identities=EXACT,
        factors=True,
        reference="arXiv:2306.01708",
    ),
    MergeMethod(
        "dare",
        "drop entries at random, rescale the rest, sum",
        CORE,
        (DROP_RATE, SEED),
        {"drop_rate": 0.0},
        order_independent=False,
        identities=DRAWN | {"linear"},
        aliases=("dare_linear",),
        factors=True,
        reference="arXiv:2311.03099",
    ),
    MergeMethod(
        "dare_ties",
        "drop entries at random, rescale, elect signs, average what agrees",
        CORE,
        (DROP_RATE, SEED),
        {"drop_rate": 0.0},
        normalises="entry",
        order_independent=False,
        identities=DRAWN,
        reference="arXiv:2311.03099",
    ),
    MergeMethod(
        "della",
        "drop small entries more often than large ones, elect signs, average what agrees",
        f"{CORE}, ranked in each row",
        (DENSITY, EPSILON, SEED),
        {"density": 1.0},
        normalises="entry",
        order_independent=False,
        identities=DRAWN,
        reference="arXiv:2406.11617",
        rule=_chances,
    ),
    MergeMethod(
        "della_linear",
        "drop small entries more often than large ones, rescale, sum",
        f"{CORE}, ranked in each row",
        (DENSITY, EPSILON, SEED),
        {"density": 1.0},
        order_independent=False,
        identities=DRAWN | {"linear"},
        reference="arXiv:2406.11617",
        rule=_chances,
    ),
    MergeMethod(
        "breadcrumbs",
        "drop the largest and the smallest entries, sum",
        CORE,
        (BREADCRUMBS_DENSITY, GAMMA),
        {"density": 1.0},
        identities=EXACT | {"linear"},
        reference="arXiv:2312.06795",
        caution=OUTLIERS,
    ),
    MergeMethod(
        "breadcrumbs_ties",
        "drop the largest and the smallest entries, elect signs, average what agrees",
        CORE,
        (BREADCRUMBS_DENSITY, GAMMA),
        {"density": 1.0},
        normalises="entry",
        identities=EXACT,
        reference="arXiv:2312.06795",
        caution=OUTLIERS,
    ),
    MergeMethod(
        "magnitude_prune",
        "keep the largest entries, sum",
        CORE,
        (DENSITY,),
        {"density": 1.0},
        identities=EXACT | {"linear"},
        reference="PEFT, add_weighted_adapter",
    ),
    MergeMethod(
        "sce",
        "keep the entries that vary most, weigh by energy, drop minority signs",
        CORE,
        (
            MergeParameter(
                "select_topk", "float", 1.0, "share of entries kept: those that vary most",
                low=0, high=1, low_open=True,
            ),
        ),
        {"select_topk": 1.0},
        normalises="entry",
        may_normalise=False,
        identities=EXACT,
        reference="arXiv:2408.07990",
    ),
    MergeMethod(
        "slerp",
        "along the great circle between two, by the angle of their dW",
        "dW",
        (
            MergeParameter(
                "t", "float", None, "0 is the first, 1 the second; by default from the weights",
                low=0, high=1,
            ),
        ),
        normalises="sum",
        may_normalise=False,
        adapters=2,
        identities=EXACT,
        aliases=("nuslerp",),
        reference="Shoemake 1985",
    ),
    MergeMethod(
        "model_stock",
        "the mean, shortened by the angle between the adapters",
        "dW",
        normalises="sum",
        may_normalise=False,
        identities=EXACT,
        reference="arXiv:2403.19522",
    ),
    MergeMethod(
        "knots",
        "TIES on the right factors of a joint SVD",
        "the entries of V_i in [dW_1 ... dW_T] = U S [V_1^T ... V_T^T]",
        (DENSITY,),
        {"density": 1.0},
        normalises="entry",
        identities=EXACT,
        aliases=("knots_ties",),
        reference="arXiv:2410.19735",
    ),
    MergeMethod(
        "tsv_m",
        "singular directions of all, made orthogonal to each other, sum",
        "the singular vectors of dW",
        (
            MergeParameter(
                "keep", "float", 1.0, "share of each adapter's directions kept",
                low=0, high=1, low_open=True,
            ),
        ),
        {"keep": 1.0},
        default_weights="1",
        identities=EXACT,
        aliases=("tsv",),
        reference="arXiv:2412.00081",
    ),
    MergeMethod(
        "iso_c",
        "the sum, all its singular values set to their mean",
        "the singular values of the sum of dW",
        default_weights="1",
        identities=frozenset({"gauge", "order", "scaling"}),
        aliases=("iso",),
        reference="arXiv:2502.04959",
    ),
    CAT,
):  # fmt: skip
    MERGE_METHODS.add(_method)


# PEFT's add_weighted_adapter, under its own names (`vlora_engine.merging.peft`). On A and B apart
# the result depends on the gauge, and T copies at 1/T do not come back: only "cat" and "svd" are
# merges of weight changes.
FACTORWISE = "the entries of A and of B, each times sqrt(|weight * scale|)"
PEFT_DENSITY = MergeParameter(
    "density", "float", 0.5, "share of entries kept", low=0, high=1, low_open=True
)
MAJORITY = MergeParameter(
    "majority_sign", "word", "total", "how signs are elected", words=("total", "frequency")
)
for _method in (
    MergeMethod("linear", "weighted sum of A and of B", FACTORWISE),
    MergeMethod("ties", "TIES on A and on B", FACTORWISE, (PEFT_DENSITY, MAJORITY)),
    MergeMethod(
        "dare_linear",
        "DARE on A and on B",
        FACTORWISE,
        (PEFT_DENSITY, SEED),
        order_independent=False,
    ),
    MergeMethod(
        "dare_ties",
        "DARE, then TIES's election, on A and on B",
        FACTORWISE,
        (PEFT_DENSITY, SEED, MAJORITY),
        order_independent=False,
    ),
    MergeMethod(
        "magnitude_prune", "keep the largest entries of A and of B", FACTORWISE, (PEFT_DENSITY,)
    ),
    replace(CAT, reference=""),  # as of all of PEFT's
    MergeMethod(
        "svd",
        "weighted sum of the weight changes, cut to the largest rank of the adapters",
        "dW",
        identities=EXACT,
    ),
):
    PEFT_METHODS.add(_method)
DENSE_IN_PEFT = tuple(
    f"{name}_svd" for name in PEFT_METHODS if name not in ("linear", "cat", "svd")
)


def find_method(name: str, dialect: str | None = None) -> MergeMethod:
    """Find a method by name or alias, in the default dialect or in ``"peft"``.

    Raises:
        ParameterError: There is none, or no such dialect.
    """
    if dialect is None:
        return MERGE_METHODS.find(name).as_typed(name)
    if dialect != "peft":
        raise ParameterError("There is no such dialect.", expected="peft", found=repr(dialect))
    if name.replace("-", "_") in DENSE_IN_PEFT:
        method = name.replace("-", "_").removesuffix("_svd")
        raise ParameterError(
            f"PEFT's {name} works on whole d_out x d_in matrices, which are never formed here.",
            remedy=f"--method {method} --rank R, without the dialect: the same steps on the core",
        )
    return PEFT_METHODS.find(DEFAULT_IN_PEFT if name == DEFAULT_METHOD else name).as_typed(name)


DEFAULT_IN_PEFT = "linear"
