"""How often outliers are seen in collections that hold none, and how often planted ones are found.

Run as a process of its own, ``python -m tests.benchmarks.false_alarms FILE REPEATS N...``: numpy
does not sit in the process that measures. A collection is N changes in seven families of modules:
a common part, an own part of random direction, sizes that are spread log-normally (a common spread
and half of it again per family).
"""

from __future__ import annotations

import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vlora_engine.analysis.outliers import THRESHOLD, outliers_in
from vlora_engine.analysis.relations import Relations

FAMILIES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
WIDTH = 400  # entries of a change in one family
PLANTED = 10.0  # times the size, in one family


@dataclass(frozen=True)
class Kind:
    """What collections are made like.

    Args:
        spread: Standard deviation of the logarithm of sizes.
        own: Size of the own part against the common one. uneven: its spread in logarithms.
    """

    name: str
    spread: float
    own: float
    uneven: float


KINDS = (
    Kind("alike, sizes within 5 %", 0.05, 0.1, 0.1),
    Kind("related, sizes within 1.35x", 0.3, 1.0, 0.1),
    Kind("unrelated, sizes within 1.8x", 0.55, 8.0, 0.2),
    Kind("related, sizes within 2.7x", 1.0, 1.0, 0.3),
)


def collection(rng: np.random.Generator, kind: Kind, count: int, planted: float = 1.0) -> Relations:
    """One collection; the first adapter's change in the first family ``planted`` times as large."""
    common = rng.normal(0, kind.spread, count)
    grams = {}
    for family in FAMILIES:
        sizes = np.exp(common + rng.normal(0, kind.spread / 2, count))
        if family == FAMILIES[0]:
            sizes[0] *= planted
        share = kind.own * np.exp(rng.normal(0, kind.uneven, count))
        shared, own = rng.standard_normal(WIDTH), rng.standard_normal((count, WIDTH))
        rows = sizes[:, None] * (shared + share[:, None] * own)
        grams[family] = rows @ rows.T
    total = sum(grams.values(), np.zeros((count, count)))
    return Relations(total, grams, {family: np.ones(count, dtype=bool) for family in FAMILIES})


def rates(kind: Kind, count: int, repeats: int) -> dict[str, float]:
    """Shares of collections: with a false alarm at the default threshold; with the planted one
    found in its family."""
    rng = np.random.default_rng([count, KINDS.index(kind)])
    alarms = found = 0
    for _ in range(repeats):
        alarms += bool(outliers_in(collection(rng, kind, count), THRESHOLD))
        seen = outliers_in(collection(rng, kind, count, PLANTED), THRESHOLD)
        found += any(
            outlier.index == 0 and any(r.family == FAMILIES[0] for r in outlier.reasons)
            for outlier in seen
        )
    return {"alarms": alarms / repeats, "found": found / repeats}


def main(file: str, repeats: str, *counts: str) -> None:
    """Write the rates of every kind and count as JSON."""
    answer = {}
    for word in counts:
        count = int(word)
        # a rate over fewer collections where each is large
        own = max(40, math.ceil(int(repeats) * min(1.0, 60 / count)))
        answer[word] = {kind.name: {**rates(kind, count, own), "of": own} for kind in KINDS}
    Path(file).write_text(json.dumps(answer))


if __name__ == "__main__":
    main(*sys.argv[1:])
