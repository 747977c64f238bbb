"""What is worth knowing of a collection or a subspace, in sentences that lead to pictures.

All of it is taken from figures that are there. No widget.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from vlora_engine.utils.naming import cosine_text
from vlora_engine.utils.ranking import ranked, worst
from vlora_tui.tui.core.likeness import Group, Likeness
from vlora_tui.tui.inspect.data import Interference, Kin, Outlier, PairLayers, module_of_family
from vlora_tui.tui.inspect.rows import plain, share
from vlora_tui.tui.text import clean, plural

if TYPE_CHECKING:
    from vlora_engine.manifest.layer_figures import LayerFigures
    from vlora_engine.manifest.manifest import Manifest
    from vlora_engine.spectra.tables import Spectra

Topic = Literal[
    "unusable",
    "similar",
    "outlier",
    "no outlier",
    "interference",
    "not measured",
    "task",
    "error",
    "bits",
]
NEAR = 0.9  # the cosine from which on adapters are near copies
GROUPS, OUTLIERS, LAYERS, NAMES = 3, 2, 3, 4  # that are told of at most
PICTURES = {
    "unusable": "the fix, in Adapters",
    "similar": "the matrix at this pair",
    "outlier": "its layers",
    "no outlier": "the list of outliers",
    "interference": "the matrix of interference, and the pair's layers",
    "not measured": "measures it",
    "task": "the task's layers",
    "error": "the error of every module",
    "bits": "the bits of every module",
}


@dataclass(frozen=True)
class Sentence:
    """One thing that is worth knowing, and what its picture is about.

    Args:
        pair: Two adapters by their indices; one adapter twice.
        module: The layer to look at first. task: The task; none for all of them.
        warns: It says that something may be wrong.
    """

    topic: Topic
    text: str
    pair: tuple[int, int] | None = None
    module: str | None = None
    task: str | None = None
    warns: bool = False

    @property
    def picture(self) -> str:
        """What Enter shows."""
        return PICTURES[self.topic]


# of adapters


def about_unusable(bad: Mapping[str, str]) -> list[Sentence]:
    """Which adapters were ruled out; ``bad`` says by name what is wrong with each."""
    if not bad:
        return []
    names = list(bad)
    words = f"{clean(names[0])} cannot be used: {bad[names[0]]}"
    if len(names) > 1:
        words = f"{_listed([clean(name) for name in names])} cannot be used."
    return [Sentence("unusable", words, warns=True)]


def about_adapters(
    likeness: Likeness, spectra: Spectra, kin: Kin | None, conflict: Sequence[Sentence]
) -> list[Sentence]:
    """Who are near copies, who stands apart and why, and who interferes."""
    if kin is None:
        return list(conflict)
    return [*_similar(likeness, kin), *_outliers(likeness, spectra, kin), *conflict]


def _similar(likeness: Likeness, kin: Kin) -> list[Sentence]:
    """Copies, near copies and runs; without any, the two that are most similar."""
    # Who began alike and ended alike is a near copy first of all.
    told = [g for g in kin.groups if g.kind != "start" or g.least < NEAR]
    known = [set(group.members) for group in told]
    near = [g for g in likeness.groups(NEAR) if not any(set(g.members) <= m for m in known)]
    groups = [*told, *near]
    if groups:
        rows = [_of_group(likeness, group) for group in groups]
        shown = sorted(rows, key=lambda row: not row.warns)[:GROUPS]
        more = len(rows) - len(shown)
        if more:
            words = f"{shown[-1].text} Groups lists {plural(more, 'more group')}."
            shown[-1] = Sentence("similar", words, shown[-1].pair)
        return shown
    count = len(likeness.names)
    if count < 2:
        return []
    cosines = np.where(np.triu(np.ones((count, count)), 1) > 0, likeness.cosines, -np.inf)
    i, j = (int(at) for at in np.unravel_index(int(np.argmax(cosines)), cosines.shape))
    words = f"No near copies: {likeness.names[i]} and {likeness.names[j]} are the most similar"
    return [Sentence("similar", f"{words}, cosine {cosine_text(cosines[i, j])}.", (i, j))]


def _of_group(likeness: Likeness, group: Group) -> Sentence:
    names = _listed([likeness.names[i] for i in group.members])
    least, many = cosine_text(group.least), len(group.members) > 2
    words = {
        "identical": "are copies: the same bits",
        "same change": "are copies: the same dW in another form",
        "multiple": "are one dW at different strengths",
        "run": f"are checkpoints of one run, in this order: cosine {least} or more",
        "start": f"started from the same weights: cosine {least}{' or more' if many else ''}",
        "alike": f"are near copies: cosine {least}{' or more' if many else ''}",
    }[group.kind]
    copies = group.kind not in ("run", "start")
    pair = group.members[0], group.members[1]
    return Sentence("similar", f"{names} {words}.", pair, warns=copies)


def _outliers(likeness: Likeness, spectra: Spectra, kin: Kin) -> list[Sentence]:
    if not kin.outliers:
        if len(likeness.names) < 3:
            return []
        return [Sentence("no outlier", "No outliers: size and direction of every dW are usual.")]
    rows = []
    for row in kin.outliers[:OUTLIERS]:
        module = module_of_family(spectra, row.index, row.foremost_reason)
        text = f"{row.name} is an outlier: {_reason(row)}."
        rows.append(Sentence("outlier", text, (row.index, row.index), module, warns=True))
    more = len(kin.outliers) - len(rows)
    if more:
        last = rows[-1]
        words = f"{last.text} There {'is' if more == 1 else 'are'} {more} more."
        rows[-1] = Sentence("outlier", words, last.pair, last.module, warns=True)
    return rows


def _reason(row: Outlier) -> str:
    """The strongest reason in words."""
    reason = row.reasons[0]
    of_family = "" if reason.family is None else f" in {clean(reason.family)}"
    if reason.feature == "similarity":
        return (
            f"unlike the others{of_family}, mean cosine {cosine_text(reason.value)}"
            f" where {cosine_text(reason.typical)} is typical"
        )
    if reason.value == 0:
        return f"no effect{of_family}, where a norm of {plain(reason.typical)} is typical"
    if reason.typical > 0:
        return f"its dW{of_family} is {reason.value / reason.typical:.2g}x the typical size"
    return f"it alone acts{of_family}"


# of interference


def about_interference(
    found: Interference, at: Sequence[int], names: Sequence[str], layers: PairLayers | None
) -> list[Sentence]:
    """Which pair interferes most, and in which layers.

    Args:
        at: The adapters that were measured, by their indices.
        layers: Of that pair, once they are measured.
    """
    pair = found.worst
    if pair is None:
        return []
    i, j = (at[k] for k in pair.pair)
    first, second = names[i], names[j]
    contested = share(pair.contested)
    if pair.kind == "opposed":
        words = f"{first} and {second} interfere most: they oppose each other, cosine "
        words += cosine_text(pair.cosine)
    elif pair.interferes:
        words = f"{first} and {second} interfere most: {contested} of one is contested by the other"
    else:
        words = f"No two interfere: at most {contested} of one is contested, {first} by {second}"
    if layers is not None and layers.contested:
        most = ranked(layers.contested, lambda name: layers.contested[name])[:LAYERS]
        short = shortened(layers.contested)
        shown = ", ".join(f"{short[m]} ({share(layers.contested[m])})" for m in most)
        words += f"; most in {shown}"
    module = None if layers is None else worst(layers.contested)
    return [Sentence("interference", f"{words}.", (i, j), module, warns=pair.interferes)]


def not_measured(count: int) -> Sentence:
    """Interference was not measured unasked, for it takes its time."""
    return Sentence("not measured", f"Interference of {plural(count, 'adapter')} is not measured.")


# of a subspace


def about_subspace(manifest: Manifest, figures: LayerFigures | None) -> list[Sentence]:
    """What lost most, and what takes most bits."""
    rows = []
    if manifest.worst is not None and not manifest.peer:
        bad, count = manifest.worst, len(manifest.tasks)
        words = f"{clean(bad.id)} has the largest error of all tasks: {share(bad.error)} of dW"
        mean = f"; the mean of {count} is {share(manifest.mean_error)}" if count > 1 else ""
        rows.append(Sentence("task", f"{words}{mean}.", task=bad.id))
    if figures is None or not len(figures.layers):
        return rows
    errors, bits = figures.by_layer(figures.errors), figures.by_layer(figures.bits)
    short = shortened(figures.layers)
    usual = f"the median module has {share(float(np.median(figures.errors)))}"
    most = worst(errors)
    if most is not None:
        words = f"{short[most]} has the largest error of all modules: {share(errors[most])} of dW"
        rows.append(Sentence("error", f"{words}; {usual}.", module=most))
    total = 8 * float(figures.nbytes.sum()) / max(1.0, float(figures.weights.sum()))
    dear = worst(bits)
    if dear is not None:
        words = f"{short[dear]} takes most bits: {plain(bits[dear])} per weight of A and B"
        rows.append(Sentence("bits", f"{words}; on average {plain(total)}.", module=dear))
    return rows


def shortened(modules: Iterable[str]) -> dict[str, str]:
    """Names of modules without the part that all of them begin with."""
    names = list(modules)
    parts = [name.split(".") for name in names]
    shared, least = 0, min(map(len, parts), default=1) - 1
    while shared < least and len({each[shared] for each in parts}) == 1:
        shared += 1
    return {name: clean(".".join(each[shared:])) for name, each in zip(names, parts, strict=True)}


def _listed(names: Sequence[str]) -> str:
    """``a, b and c``; of many the first few."""
    if len(names) > NAMES:
        return f"{', '.join(names[:NAMES])} and {len(names) - NAMES} more"
    return f"{', '.join(names[:-1])} and {names[-1]}"
