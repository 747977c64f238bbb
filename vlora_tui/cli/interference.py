"""``interference``: which adapters would interfere if they were merged."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from vlora_engine.utils.naming import cosine_text
from vlora_engine.utils.ranking import ranked
from vlora_tui.cli import options as o
from vlora_tui.cli.csv_file import Csv, CsvFile
from vlora_tui.cli.output import Output
from vlora_tui.utils.formatting import percent, plural

if TYPE_CHECKING:
    from vlora_engine.analysis.interference_measures import Interference, PairVerdict

SHOWN = 20  # pairs that are printed
HEADS = {"sign_conflict": "conflicting", "writes": "output overlap", "reads": "input overlap"}
LAYERS = 5  # that are named


def interference(
    out: Output,
    adapters: o.Adapters,
    skip_bad: o.SkipBad = False,
    csv: Csv = None,
    force: o.Force = False,
) -> None:
    """Which adapters share directions, and where they pull against each other."""
    from vlora_engine.adapters.check import check_adapters
    from vlora_engine.analysis.interference_measures import (
        MEASURES,
        pair_interference,
        pair_verdicts,
    )
    from vlora_engine.analysis.interference_measures import interference as measure
    from vlora_tui.cli.compare import find_all
    from vlora_tui.cli.progress import Watcher
    from vlora_tui.report.comparison import require_several

    sheet = CsvFile(csv, out, force=force)
    collection = find_all(adapters, out, skip_bad=skip_bad)
    sheet.require_apart_from(collection.places.values())
    require_several(list(collection.adapters))
    with Watcher(out) as watcher:
        report = check_adapters(collection.adapters, progress=watcher.on_progress)
        names = report.require(skip_bad=skip_bad)
        require_several(names)
        sources = [collection.adapters[name] for name in names]
        layers: dict[str, Interference] = {}
        if len(sources) == 2:
            found, layers = pair_interference(*sources, progress=watcher.on_progress)
        else:
            found = measure(sources, progress=watcher.on_progress)
    matrices = found.as_dict()
    verdicts = pair_verdicts(found)
    sentence = _sentence(names, verdicts)
    out.json(
        "interference",
        {
            "adapters": names,
            "verdict": sentence,
            "pairs": [
                {
                    "adapter": names[v.first],
                    "and": names[v.second],
                    "kind": v.kind,
                    "contested": v.contested,
                    "verdict": v.sentence(names),
                }
                for v in verdicts
            ],
            "norms": dict(zip(names, found.norms.tolist(), strict=True)),
            "measures": MEASURES,
            "matrices": {
                measure_name: {
                    a: dict(zip(names, row, strict=True))
                    for a, row in zip(names, matrix, strict=True)
                }
                for measure_name, matrix in matrices.items()
            },
            "layers": {name: _of_layer(measured) for name, measured in layers.items()},
        },
    )
    sheet.write(("adapter", "and", *matrices), _rows(names, matrices))
    out.text(sentence)
    out.text()
    _show_pairs(out, names, matrices)
    _show_layers(out, layers)
    for name, words in MEASURES.items():
        out.text(f"{HEADS.get(name, name)}: {words}")


def _sentence(names: list[str], verdicts: Sequence[PairVerdict]) -> str:
    """The answer in one sentence; of several pairs how many there are, and the worst."""
    worst = verdicts[0].sentence(names)
    if len(verdicts) == 1:
        return worst
    count = sum(verdict.interferes for verdict in verdicts)
    if not count:
        return f"None of {len(verdicts)} pairs interfere; the closest: {worst}"
    return f"{count} of {len(verdicts)} pairs interfere; the worst: {worst}"


def _show_pairs(out: Output, names: list[str], matrices: dict[str, list[list[float]]]) -> None:
    """The pairs, those first of which most is opposed."""
    overlap, conflict = matrices["overlap"], matrices["sign_conflict"]

    def opposed(pair: tuple[int, int]) -> float:
        i, j = pair
        return max(overlap[i][j], overlap[j][i]) * conflict[i][j]

    pairs = [(i, j) for i in range(len(names)) for j in range(i + 1, len(names))]
    pairs = ranked(pairs, opposed)
    rows = [
        (
            names[i],
            names[j],
            cosine_text(matrices["cosine"][i][j]),
            percent(conflict[i][j]),
            *(
                f"{percent(matrices[name][i][j])} / {percent(matrices[name][j][i])}"
                for name in ("writes", "reads", "overlap")
            ),
        )
        for i, j in pairs[:SHOWN]
    ]
    measures = ("cosine", "sign_conflict", "writes", "reads", "overlap")
    out.table(("adapter", "and", *(HEADS.get(name, name) for name in measures)), rows)
    if len(pairs) > SHOWN:
        out.text(f"the first {SHOWN} of {plural(len(pairs), 'pair')}; --json and --csv tell all")
    out.text()
    if pairs:
        out.essence(f"{opposed(pairs[0]):.6g}")


def _of_layer(found: Interference) -> dict[str, float]:
    """The figures of two in one module: those of the first, and what is contested."""
    figures = {name: float(matrix[0][1]) for name, matrix in found.as_dict().items()}
    return figures | {"contested": float(found.contested[0, 1])}


def _show_layers(out: Output, layers: dict[str, Interference]) -> None:
    """The layers in which two are most at odds."""
    contested = {name: float(found.contested[0, 1]) for name, found in layers.items()}
    most = [name for name in ranked(contested, lambda name: contested[name]) if contested[name] > 0]
    if most:
        shown = ", ".join(f"{name} {percent(contested[name])}" for name in most[:LAYERS])
        out.text(f"most contested in: {shown}")
        out.text()


def _rows(names: list[str], matrices: dict[str, Any]) -> Iterator[list[object]]:
    """The rows of the table: every ordered pair of adapters."""
    for i, first in enumerate(names):
        for j, second in enumerate(names):
            if i != j:
                yield [first, second, *(matrix[i][j] for matrix in matrices.values())]
