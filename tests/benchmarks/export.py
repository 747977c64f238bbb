"""Taking one task out of many, and telling what a subspace holds."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from tests.benchmarks import made
from tests.benchmarks.measure import REPEATS, Bench, Usage, ours
from tests.benchmarks.peers import LORASHARE, MISSING, VLORA
from tests.benchmarks.table import Cell, Table, mb, ratio

K = 4
OUT = "{out}"


def section(bench: Bench) -> list[Table]:
    """Export of one task and `info`, of a subspace of 1,000 tasks in each one's own format."""
    count = 200 if bench.quick else 1000
    paths = made.adapters(bench, made.SMALL, count)
    task = paths[count // 2].name
    table = Table(
        f"export: one task of {count}, and info ({made.SMALL.modules} modules of "
        f"{made.SMALL.width}, rank {made.SMALL.rank})",
        ["", "wall s", "less torch", "peak MB", "/ limit", "it / ours"],
    )
    torch, python = bench.torch, bench.interpreter
    table.rows.append(["limit of export: importing torch", torch.wall, 0.0, mb(torch.peak)])
    own = _built(bench, [*ours(), "compress", *paths, "-k", K, "--quiet"])
    few = _built(bench, [*ours(), "compress", *paths[:10], "-k", K, "--quiet"])
    exported = _run(bench, [*ours(), "export", own, task, "-o", OUT])
    table.rows.append(_export_row(bench, "vlora-tui export (goal 1 s)", exported, exported))
    from_few = _run(bench, [*ours(), "export", few, paths[0].name, "-o", OUT])
    table.rows.append(_export_row(bench, "the same of 10 tasks", from_few, exported))
    told = _run(bench, [*ours(), "info", own])
    infos: list[list[Cell]] = [
        ["limit of info: starting Python", python.wall, None, mb(python.peak), 1.0, None],
        ["vlora-tui info", told.wall, None, mb(told.peak), ratio(told.wall, python.wall), 1.0],
    ]
    for peer, arguments, export in (
        (VLORA, ["-k", K], ["export", "{dir}", task]),
        (LORASHARE, ["-k", K], ["reconstruct", "{dir}", "--adapter", task]),
    ):
        if not peer.there:
            table.notes.append(f"{peer.name}: {MISSING}")
            continue
        place = _built(bench, peer("compress", *paths, *arguments))
        parts = [str(place) if part == "{dir}" else part for part in export]
        used = _run(bench, peer(*parts, "-o", OUT))
        table.rows.append(_export_row(bench, f"{peer.name} {export[0]}", used, exported))
        told_by = _run(bench, peer("info", place))
        against = [ratio(told_by.wall, python.wall), ratio(told_by.wall, told.wall)]
        infos.append([f"{peer.name} info", told_by.wall, None, mb(told_by.peak), *against])
        shutil.rmtree(place)
    table.rows[0] = [*table.rows[0], 1.0, None]
    table.rows += infos
    table.notes.append(f"the best of {REPEATS} runs; ours reads back what it exported (--verify)")
    return [table]


def _built(bench: Bench, command: Sequence[object]) -> Path:
    place = bench.path("subspace")
    bench.run([*map(str, command), "-o", str(place)], repeats=1)
    return place


def _run(bench: Bench, command: Sequence[object]) -> Usage:
    return bench.run([str(part) for part in command], fresh=OUT, repeats=REPEATS)


def _export_row(bench: Bench, label: str, used: Usage, own: Usage) -> list[Cell]:
    over = used.less(bench.torch).wall
    against = ratio(over, own.less(bench.torch).wall)
    return [label, used.wall, over, mb(used.peak), ratio(used.wall, bench.torch.wall), against]
