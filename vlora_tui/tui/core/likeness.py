"""Similarities between the adapters of a collection, and the groups they form. No widget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np

from vlora_engine.analysis.relations import (
    Array,
    Relations,
    clusters_of,
    cosines_of,
    order_by_likeness,
)
from vlora_engine.utils.naming import cosine_text
from vlora_engine.utils.ranking import ranked
from vlora_tui.tui.text import clean

if TYPE_CHECKING:
    from vlora_engine.spectra.tables import Spectra

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
Kind = Literal["alike", "identical", "same change", "multiple", "run", "start"]


@dataclass(frozen=True)
class Likeness:
    """How the adapters of a collection relate.

    Args:
        relations: Inner products of their weight changes, in all and per family of modules.
        paths: Where each lies, None where that is not known.
    """

    names: tuple[str, ...]
    relations: Relations
    paths: tuple[str | None, ...] = ()

    @cached_property
    def cosines(self) -> Array:
        return cosines_of(self.relations.total)

    @cached_property
    def norms(self) -> Array:
        """(N,) ||dW||."""
        return self.relations.norms

    @cached_property
    def by_likeness(self) -> list[int]:
        """The adapters in an order in which those that are alike stand together."""
        return order_by_likeness(self.cosines)

    def groups(self, threshold: float) -> list[Group]:
        """Those of two or more of which any two are at least that alike, the largest first."""
        found = [m for m in clusters_of(self.cosines, threshold) if len(m) > 1]
        alike = ranked(((self.least(m), m) for m in found), lambda row: row[0])
        rows = sorted(alike, key=lambda row: -len(row[1]))
        alone = len(self.names) - sum(len(members) for members in found)
        return [
            Group(
                kind="alike",
                members=tuple(members),
                least=least,
                how=f"cosine {cosine_text(least)} or more; {alone} not similar to any other",
                letter=LETTERS[i] if i < len(LETTERS) else "+",
            )
            for i, (least, members) in enumerate(rows)
        ]

    def least(self, members: Sequence[int]) -> float:
        """The cosine of the two most different of some."""
        return float(self.cosines[np.ix_(members, members)].min())


@dataclass(frozen=True)
class Group:
    """Adapters that belong together.

    Args:
        kind: ``alike`` by their cosines; copies of three kinds (see `Duplicates`); a ``run`` of
            checkpoints in its order, or those of one ``start``.
        least: The cosine of dW of its two most different.
        how: How that is known.
        letter: Of those that are alike, for the matrix.
    """

    kind: Kind
    members: tuple[int, ...]
    least: float
    how: str
    letter: str = ""


def likeness_of(spectra: Spectra | None) -> Likeness | None:
    """How the adapters of some spectra relate; None before all layers are there."""
    if spectra is None or spectra.relations is None or not spectra.tasks:
        return None
    return Likeness(
        names=tuple(clean(task.name) for task in spectra.tasks),
        relations=spectra.relations,
        paths=tuple(task.path for task in spectra.tasks),
    )
