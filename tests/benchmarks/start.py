"""How long a command takes that computes nothing: help, and a listing from headers."""

from __future__ import annotations

from tests.benchmarks import made
from tests.benchmarks.measure import REPEATS, Bench, ours
from tests.benchmarks.peers import LORASHARE, MISSING, VLORA
from tests.benchmarks.table import Table, mb, ratio


def section(bench: Bench) -> list[Table]:
    """`--help` of all three, and our `inspect`."""
    return [_help(bench), _inspect(bench)]


def _help(bench: Bench) -> Table:
    limit = bench.interpreter
    table = Table("start: --help", ["", "wall s", "cpu s", "peak MB", "wall / limit"])
    table.rows.append(["limit: starting Python", limit.wall, limit.cpu, mb(limit.peak), 1.0])
    own = bench.run([*ours(), "--help"], repeats=REPEATS)
    rows = [("vlora-tui --help (goal 0.3 s)", own)]
    for peer in (VLORA, LORASHARE):
        if not peer.there:
            table.notes.append(f"{peer.name}: {MISSING}")
            continue
        rows.append((f"{peer.name} --help", bench.run(peer("--help"), repeats=REPEATS)))
    for label, used in rows:
        table.rows.append([label, used.wall, used.cpu, mb(used.peak), ratio(used.wall, limit.wall)])
    table.rows += [
        [f"{label.split()[0]} / ours", used.wall / own.wall, used.cpu / own.cpu, None, None]
        for label, used in rows[1:]
    ]
    table.notes.append(f"the best of {REPEATS} runs, whole processes")
    return table


def _inspect(bench: Bench) -> Table:
    count = 100 if bench.quick else 500
    paths = made.adapters(bench, made.SMALL, count)
    limit = bench.python("-m", "tests.benchmarks.limit", "headers", "0", *map(str, paths))
    own = bench.run([*ours(), "inspect", *paths, "--quiet"], repeats=REPEATS)
    table = Table(
        f"start: listing {count} adapters of {made.SMALL.modules} modules, headers only",
        ["", "wall s", "cpu s", "peak MB", "wall / limit"],
    )
    table.rows += [
        ["limit: Python parses the headers", limit.wall, limit.cpu, mb(limit.peak), 1.0],
        [
            "vlora-tui inspect (goal 1 s for 500)",
            own.wall,
            own.cpu,
            mb(own.peak),
            ratio(own.wall, limit.wall),
        ],
    ]
    table.notes.append("neither peer lists adapters without loading them")
    return table
