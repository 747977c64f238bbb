"""``coverage``: how much of an adapter's change the bases of a subspace can express."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from vlora_engine.errors import AdapterError, ParameterError
from vlora_tui.cli import options as o
from vlora_tui.cli.csv_file import Csv, CsvFile
from vlora_tui.cli.declare import option
from vlora_tui.cli.errors import FOUND
from vlora_tui.cli.output import Output
from vlora_tui.utils.formatting import percent, printable

SHARES = ("coverage", "coverage_a", "coverage_b")


def coverage(
    out: Output,
    subspace: o.Subspace,
    adapters: o.Adapters,
    fail_below: Annotated[
        float | None, option("--fail-below", "Exit 3 if the bases hold less of an adapter's dW.")
    ] = None,
    csv: Csv = None,
    force: o.Force = False,
    skip_bad: o.SkipBad = False,
) -> None:
    """The share of each adapter's ||dW||^2 that the bases hold: in all, per side, per module.

    A share of 0.9 means that projecting the adapter would lose 10 % of its energy: an error of
    sqrt(0.1) = 32 %.
    """
    if fail_below is not None and not 0 <= fail_below <= 1:
        raise ParameterError("--fail-below is a share, 0 to 1.", found=str(fail_below))
    sheet = CsvFile(csv, out, force=force)
    rows = coverage_rows(subspace, adapters, sheet, out, skip_bad=skip_bad)
    short = [row["name"] for row in rows if fail_below is not None and row["coverage"] < fail_below]
    out.json(
        "coverage",
        {"subspace": subspace, "adapters": rows, "fail_below": fail_below, "short": short},
    )
    sheet.write(
        ("adapter", "module", *SHARES, "energy"),
        [
            (row["name"], module, *(figures[share] for share in SHARES), figures["energy"])
            for row in rows
            for module, figures in row["modules"].items()
        ],
    )
    _show(out, rows)
    for row in rows:
        out.essence(f"{row['coverage']:.6g}")
    if short:
        out.note(f"below {percent(fail_below)}: {', '.join(short)}")
        raise typer.Exit(FOUND)


def coverage_rows(
    subspace: str, adapters: list[str], sheet: CsvFile, out: Output, *, skip_bad: bool
) -> list[dict[str, Any]]:
    """Per adapter its shares as a whole and per module."""
    from vlora_engine.shared_subspace import SharedSubspace
    from vlora_engine.subspace.coverage import coverage_total, subspace_coverage
    from vlora_engine.utils.progress import Progress
    from vlora_tui.cli.compare import find_all
    from vlora_tui.cli.progress import Watcher

    opened = SharedSubspace.load(subspace, lazy=True)
    collection = find_all(adapters, out, skip_bad=skip_bad)
    sheet.require_apart_from([subspace, *collection.places.values()])
    rows = []
    total = len(collection.adapters)
    with Watcher(out) as watcher:
        for done, (name, source) in enumerate(collection.adapters.items(), 1):
            try:
                modules = subspace_coverage(opened, source)
            except AdapterError as error:
                if not skip_bad:
                    raise
                out.warn(f"{name} is left out: {error.what}")
                continue
            shares = {share: coverage_total(modules, share) for share in SHARES}
            energy = sum(figures["energy"] for figures in modules.values())
            rows.append({"name": name, **shares, "energy": energy, "modules": modules})
            watcher.on_progress(Progress("coverage", done, total, name))
    for note in opened.notes:
        out.once(note)
    return rows


def _show(out: Output, rows: list[dict[str, Any]]) -> None:
    heads = ("of dW", "of A's side", "of B's side")
    out.table(
        ("adapter", *heads),
        [(row["name"], *(percent(row[share]) for share in SHARES)) for row in rows],
    )
    if len(rows) == 1:
        out.text()
        modules = rows[0]["modules"]
        out.table(
            ("module", *heads, "||dW||"),
            [
                (module, *(percent(figures[s]) for s in SHARES), f"{figures['energy'] ** 0.5:.4g}")
                for module, figures in modules.items()
            ],
        )
    lacking = {
        m for row in rows for m, figures in row["modules"].items() if figures["coverage"] == 0
    }
    if lacking:
        first = printable(min(lacking))
        out.note(f"nothing of {len(lacking)} modules is held, such as {first}")
