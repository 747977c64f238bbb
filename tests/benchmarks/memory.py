"""Peak memory of whole commands: many adapters, wide layers, many tasks; under a limit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.benchmarks import made
from tests.benchmarks.made import Shape
from tests.benchmarks.measure import Bench, Usage, ours
from tests.benchmarks.table import Cell, Table, mb

OUT = "{out}"
COLUMNS = ["", "cpu s", "wall s", "peak MB", "limit MB"]
MODULES_OF_7B = 224
WIDE = Shape(modules=4, width=4096, rank=16, dtype="float16")
TINY = Shape(modules=2, width=32, rank=2)
HOUR = 3600.0


def section(bench: Bench) -> list[Table]:
    """Layers 4096 wide and many tasks; with ``--big`` also 1,000 adapters of 8 MB."""
    with _patient(bench):
        tables = [_wide(bench), _tasks(bench)]
        if bench.big:
            tables.append(_many(bench))
    return tables


@contextmanager
def _patient(bench: Bench) -> Iterator[None]:
    usual, bench.timeout = bench.timeout, 2 * HOUR
    try:
        yield
    finally:
        bench.timeout = usual


def _many(bench: Bench) -> Table:
    """1,000 adapters of 8 MB, all different, under 1.5 GB."""
    limit, size, count = 1500, made.LARGE, 1000
    paths = made.adapters(bench, size, count + 1)
    folder = bench.path("many")
    folder.mkdir()
    for path in paths[:count]:
        (folder / path.name).symlink_to(path)
    table = Table(f"memory: {count} adapters of {size.nbytes / 1e6:.1f} MB", COLUMNS)
    for method, target in (("delta", ["-k", "8"]), ("auto", ["--max-error", "0.3"])):
        built = bench.path(method)
        work = [
            ("compress", [folder, "-o", built, "--method", method, *target]),
            ("info", [built]),
            ("export", [built, paths[count // 2].name, "-o", bench.path("one")]),
            ("add", [built, paths[count]]),
        ]
        for command, arguments in work:
            table.rows.append(_row(bench, f"{method}: {command}", command, arguments, limit))
    table.notes.append(f"--max-memory {limit}MB for each; the adapters are all different")
    return table


def _wide(bench: Bench) -> Table:
    """A few of the 224 modules of a 7B model, 100 adapters, under 3 GB; the rest by proportion."""
    limit, count = 3000, 8 if bench.quick else 100
    folder = made.adapters(bench, WIDE, count)[0].parent
    table = Table(
        f"memory: {count} adapters, {WIDE.modules} modules of {WIDE.width}, rank {WIDE.rank}, fp16",
        [*COLUMNS, f"cpu min of {MODULES_OF_7B}"],
    )
    for label, target in (
        ("delta, k = 16", ["--method", "delta", "-k", "16"]),
        ("delta, by error", ["--method", "delta", "--max-error", "0.3"]),
        ("auto, by error", ["--method", "auto", "--max-error", "0.3"]),
    ):
        arguments = [folder, "-o", OUT, *target]
        used = _run(bench, "compress", arguments, limit)
        whole = (used.cpu - bench.torch.cpu) * MODULES_OF_7B / WIDE.modules / 60
        table.rows.append([label, *_figures(used), limit, whole])
    table.notes += [
        f"the last column is extrapolated: CPU less `import torch`, times {MODULES_OF_7B} over "
        f"{WIDE.modules}; two cores take half of it",
        "memory is that of a few layers, whatever their number",
    ]
    return table


def _tasks(bench: Bench) -> Table:
    """Very many tiny tasks: what takes time for each task, not for each byte."""
    count = 500 if bench.quick else 10_000
    folder = made.adapters(bench, TINY, count)[0].parent
    table = Table(f"memory: {count} tiny tasks", COLUMNS)
    table.rows.append(_row(bench, "inspect", "inspect", [folder], None))
    for method, target in (("delta", ["-k", "4"]), ("own", ["--max-error", "0.1"])):
        built = bench.path(method)
        work = [
            ("compress", [folder, "-o", built, "--method", method, *target]),
            ("info", [built]),
            ("export", [built, made.name_of(count // 2), "-o", OUT]),
        ]
        for command, arguments in work:
            table.rows.append(_row(bench, f"{method}: {command}", command, arguments, None))
    return table


def _row(
    bench: Bench, label: str, command: str, arguments: list[str | Path], limit: int | None
) -> list[Cell]:
    return [label, *_figures(_run(bench, command, arguments, limit)), limit]


def _run(bench: Bench, command: str, arguments: list[str | Path], limit: int | None) -> Usage:
    flags = [] if limit is None else ["--max-memory", f"{limit}MB"]
    words = [*ours(), command, *map(str, arguments), *flags, "--quiet"]
    return bench.run(words, fresh=OUT, repeats=1)


def _figures(used: Usage) -> list[Cell]:
    return [used.cpu, used.wall, mb(used.peak)]
