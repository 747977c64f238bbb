"""``interference``: which adapters would get into each other's way if they were merged."""

from __future__ import annotations

import csv
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from vlora_engine.errors import ParameterError
from vlora_tui.cli import options as o
from vlora_tui.cli.compare import open_all
from vlora_tui.cli.output import Output, percent, plural
from vlora_tui.cli.progress import Watcher

if TYPE_CHECKING:
    from vlora_engine.conflicts import Interference

SHOWN = 20  # pairs that are printed


def interference(
    adapters: o.Adapters,
    skip_bad: o.SkipBad = False,
    as_csv: Annotated[
        bool, typer.Option("--csv", help="Every ordered pair as a line of CSV.")
    ] = False,
    as_json: o.AsJson = False,
    quiet: o.Quiet = False,
) -> None:
    """Which adapters share directions, and where they pull against each other."""
    from vlora_engine.conflicts import MEASURES
    from vlora_engine.conflicts import interference as measure

    out = Output(json=as_json, quiet=quiet)
    if as_csv and as_json:
        raise ParameterError("--csv and --json are two forms of the same.", expected="one of them")
    sources = open_all(adapters, out, skip_bad=skip_bad)
    names = list(sources)
    if len(names) < 2:
        raise ParameterError("There is nothing to compare: one adapter.", found=", ".join(names))
    with Watcher(out) as watcher:
        found = measure(list(sources.values()), progress=watcher.on_progress)
    if as_csv:
        _write_csv(names, found)
        return
    matrices = found.as_dict()
    out.json(
        "interference",
        {
            "adapters": names,
            "norms": dict(zip(names, found.norms.tolist(), strict=True)),
            "measures": MEASURES,
            "matrices": {
                measure_name: {
                    a: dict(zip(names, row, strict=True))
                    for a, row in zip(names, matrix, strict=True)
                }
                for measure_name, matrix in matrices.items()
            },
        },
    )
    _show_pairs(out, names, matrices)
    for name, words in MEASURES.items():
        out.text(f"{name.replace('_', ' ')}: {words}")


def _show_pairs(out: Output, names: list[str], matrices: dict[str, list[list[float]]]) -> None:
    """The pairs, those first of which most is opposed."""
    overlap, conflict = matrices["overlap"], matrices["sign_conflict"]

    def opposed(pair: tuple[int, int]) -> float:
        i, j = pair
        return max(overlap[i][j], overlap[j][i]) * conflict[i][j]

    pairs = [(i, j) for i in range(len(names)) for j in range(i + 1, len(names))]
    pairs.sort(key=opposed, reverse=True)
    rows = [
        (
            names[i],
            names[j],
            f"{matrices['cosine'][i][j]:.3f}",
            f"{conflict[i][j]:.3f}",
            *(
                f"{percent(matrices[name][i][j])} / {percent(matrices[name][j][i])}"
                for name in ("writes", "reads", "overlap")
            ),
        )
        for i, j in pairs[:SHOWN]
    ]
    out.table(("adapter", "and", "cosine", "sign conflict", "writes", "reads", "overlap"), rows)
    if len(pairs) > SHOWN:
        out.text(f"the first {SHOWN} of {plural(len(pairs), 'pair')}; --json and --csv tell all")
    out.text()
    if pairs:
        out.essence(f"{opposed(pairs[0]):.6g}")


def _write_csv(names: list[str], found: Interference) -> None:
    matrices = found.as_dict()
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["adapter", "and", *matrices])
    for i, first in enumerate(names):
        for j, second in enumerate(names):
            if i != j:
                values = (f"{matrix[i][j]:.9g}" for matrix in matrices.values())
                writer.writerow([first, second, *values])
