"""How what we do grows with adapters, width and modules: measured, fitted, and carried on.

``python -m tests.benchmarks.growth REPORT.json FOLDER`` draws the plots of docs/performance.md
from what ``python -m tests.benchmarks.run growth --json REPORT.json`` wrote.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tests.benchmarks import made
from tests.benchmarks.measure import Bench, ChildFailed, ours
from tests.benchmarks.table import Cell, Table

K = 8
OUT = "{out}"
RANK = 16
HOUR = 3600.0
LEAST = 0.2  # CPU seconds over those of a tiny collection under which noise hides the growth
ACTIONS = ("build", "spectra", "auto", "export", "analyze", "open")
WHAT = {
    "build": f"compress --method delta -k {K}",
    "spectra": "spectra",
    "auto": "compress (the default: auto, worst error 5 %)",
    "export": "export --all, of the build",
    "analyze": "analyze",
    "open": "info, of the build",
}


@dataclass(frozen=True)
class Point:
    """A collection: so many adapters of so many modules, square and of one width."""

    adapters: int
    width: int
    modules: int

    @property
    def shape(self) -> made.Shape:
        return made.Shape(modules=self.modules, width=self.width, rank=RANK)


TINY = Point(adapters=2, width=32, modules=4)  # what every start costs, and little else
BASE = Point(adapters=32, width=1024, modules=16)
NARROW = replace(BASE, width=512)
AXES: dict[str, list[Point]] = {
    "adapters": [replace(BASE, adapters=n) for n in (8, 32, 100, 300)],
    "width": [replace(BASE, width=d) for d in (512, 1024, 2048, 4096)],
    "modules": [replace(NARROW, modules=m) for m in (32, 112, 224, 448)],
}
MODELS = {
    "7B (224 modules of 4096)": Point(adapters=10_000, width=4096, modules=224),
    "70B (560 modules of 8192)": Point(adapters=10_000, width=8192, modules=560),
}


def section(bench: Bench) -> list[Table]:
    """CPU seconds along each axis with the fitted exponent, and what 10,000 adapters would take."""
    start = _measured(bench, TINY)
    known: dict[Point, dict[str, float]] = {}
    tables, exponents = [], {}
    for axis, all_points in AXES.items():
        points = all_points[:2] if bench.quick else all_points
        for point in points:
            if point not in known:
                found = _measured(bench, point)
                known[point] = {a: max(0.01, used - start[a]) for a, used in found.items()}
        tables.append(_table(axis, points, known))
        sizes = [getattr(point, axis) for point in points]
        exponents[axis] = {
            action: exponent(sizes, [known[point][action] for point in points])
            for action in ACTIONS
        }
    tables.append(_carried_on(known[BASE], exponents))
    return tables


def _measured(bench: Bench, point: Point) -> dict[str, float]:
    """CPU seconds of whole processes, by action."""
    paths = [str(path) for path in made.adapters(bench, point.shape, point.adapters)]
    built = bench.path("built")
    build = [*ours(), "compress", *paths, "--method", "delta", "-k", str(K), "--quiet"]
    bench.run([*build, "-o", str(built)], repeats=1)
    commands = {
        "build": [*build, "-o", OUT],
        "spectra": [*ours(), "spectra", *paths, "-o", OUT, "--quiet"],
        "auto": [*ours(), "compress", *paths, "--quiet", "-o", OUT],
        "export": [*ours(), "export", str(built), "--all", "-o", OUT, "--quiet"],
        "analyze": [*ours(), "analyze", *paths, "--quiet"],
        "open": [*ours(), "info", str(built)],
    }
    found = {}
    for action, command in commands.items():
        try:
            found[action] = bench.run(command, fresh=OUT).cpu
        except ChildFailed as reason:
            raise ChildFailed(f"{action} of {point}: {reason}") from None
        for made_now in bench.scratch.glob("out-*"):
            shutil.rmtree(made_now)
    shutil.rmtree(built)
    return found


def exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float | None:
    """p of ``seconds ~ size**p`` by least squares of logarithms, over what is no fixed cost."""
    pairs = [(math.log(x), math.log(y)) for x, y in zip(sizes, seconds, strict=True) if y >= LEAST]
    if len(pairs) < 2:
        return None
    x0 = sum(x for x, _ in pairs) / len(pairs)
    y0 = sum(y for _, y in pairs) / len(pairs)
    return sum((x - x0) * (y - y0) for x, y in pairs) / sum((x - x0) ** 2 for x, _ in pairs)


def _table(axis: str, points: Sequence[Point], known: Mapping[Point, Mapping[str, float]]) -> Table:
    first = points[0]
    others = [f"{getattr(first, a)} {a}" for a in AXES if a != axis]
    sizes = [getattr(point, axis) for point in points]
    table = Table(
        f"growth with {axis}: {', '.join(others)}, rank {RANK}, CPU s",
        ["", *map(str, sizes), "exponent"],
    )
    for action in ACTIONS:
        seconds = [known[point][action] for point in points]
        table.rows.append([action, *seconds, exponent(sizes, seconds)])
    table.notes += [f"{action}: vlora-tui {what}" for action, what in WHAT.items()]
    table.notes.append(
        f"what a tiny collection takes ({TINY.adapters} adapters of {TINY.modules} modules of "
        f"{TINY.width}) is taken off; exponents are fitted over what takes at least {LEAST} s more"
    )
    return table


def _carried_on(
    base: Mapping[str, float], exponents: Mapping[str, Mapping[str, float | None]]
) -> Table:
    table = Table("carried on from the fit: 10,000 adapters of rank 16, CPU hours", ["", *MODELS])
    for action in ACTIONS:
        row: list[Cell] = [action]
        powers = {axis: exponents[axis][action] for axis in AXES}
        for point in MODELS.values():
            hours: float | None = base[action] / HOUR
            for axis, power in powers.items():
                step = getattr(point, axis) / getattr(BASE, axis)
                hours = None if hours is None or power is None else hours * step**power
            row.append(hours)
        table.rows.append(row)
    table.notes += [
        "the measured figure at the base point times each axis's ratio to its exponent",
        "an estimate: none of these sizes was run, and growth changes where adapters times rank "
        "pass the width",
    ]
    return table


def draw(report: Mapping[str, Any], folder: Path) -> list[Path]:
    """The plots of docs/performance.md: seconds against size, one file an axis."""
    from vlora_tui.report import svg

    written = []
    tables = report["sections"]["growth"]["tables"]
    for axis, table in zip(AXES, tables, strict=False):
        series = []
        for row in table["rows"]:
            sizes = [int(size) for size in row if size not in ("", "exponent")]
            seconds = [row[str(size)] for size in sizes]
            series.append(svg.Series(row[""], sizes, seconds))
        path = folder / f"growth-{axis}.svg"
        title = table["title"].partition(",")[0]
        picture = svg.lines(title, series, x=axis, y="CPU s", log_y=True, percent=False)
        path.write_text(picture, encoding="utf-8")
        written.append(path)
    return written


if __name__ == "__main__":
    for drawn in draw(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])):
        print(drawn)
