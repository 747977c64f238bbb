"""Two commands on one subspace: the first halted at each write point while the second runs.

    python -m tests.faults.pairs                  every pair, every point
    python -m tests.faults.pairs --sample 30      every pair at one point, at most so many
    python -m tests.faults.pairs --points 6       every pair at so many points, evenly spread

The second one waits until the first goes on, or refuses (``--no-wait``), or comes before it. In the
end the tasks are those that one order of those commands gives which said that they had done their
work; the subspace is sound, and nothing else is left. Readers see the old state or the new.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.faults.run import Bench, begin, ended, left_over, outcome
from vlora_engine.catalog.read import read_manifest
from vlora_engine.doctor.subspace_check import check_subspace

Tasks = frozenset[str]
START: Tasks = frozenset({"task00", "task01", "task02"})


@dataclass(frozen=True)
class Rival:
    """One of two commands, and what it makes of the tasks. {S} is the subspace, {id} a name."""

    words: str
    effect: Callable[[Tasks, str], Tasks] | None = None  # None: it only reads
    waits: bool = True  # else it refuses while another is at it


def _adds(tasks: Tasks, name: str) -> Tasks:
    return tasks | {name}


def _rebuilds(tasks: Tasks, name: str) -> Tasks:
    return START


def _stays(tasks: Tasks, name: str) -> Tasks:
    return tasks


FIRST, SECOND = "task00", "task01"  # what each of two removes
BASIS = {
    "add": Rival("add {S} late/fresh --task-id {id}", _adds),
    "project": Rival("add {S} late/fresh --project --task-id {id}", _adds),
    "incremental": Rival("add {S} late/fresh --incremental --task-id {id}", _adds),
    "remove": Rival("remove {S} {victim}", lambda tasks, name: tasks - {_victim(name)}),
    "save": Rival("!save {S} {victim}", lambda tasks, name: tasks - {_victim(name)}),
    "rebuild": Rival("compress in -o {S} -k 2 --force", _rebuilds, waits=False),
    "pull": Rival("pull hf://org/space -o {S} --force", _rebuilds, waits=False),
}
CODED = {
    "add": BASIS["add"],
    "remove": BASIS["remove"],
    "save": BASIS["save"],
    "compact": Rival("compact {S}", _stays),
    "basis": Rival("basis {S} -k 2", _stays),
    "rebuild": Rival("compress in -o {S} --force", _rebuilds, waits=False),
    "pull": BASIS["pull"],
}
READERS = {
    "validate": Rival("validate {S}"),
    "export": Rival("export {S} task02 -o read-{id}"),
    "info": Rival("info {S}"),
    "gguf": Rival("convert {S}:task02 --to gguf --base base -o read-{id}"),
    "ollama": Rival("export {S} task02 --target ollama --base base -o read-{id}"),
    "resize": Rival("resize {S}:task02 --target vllm -o read-{id}"),
    "recipe": Rival(
        "run --headless {S} --convert mlx --convert-tasks task02 --convert-path read-{id}"
    ),
}


def _victim(name: str) -> str:
    return FIRST if name == "one" else SECOND


def _words(rival: Rival, place: str, name: str) -> str:
    return rival.words.format(S=place, id=name, victim=_victim(name))


def tried(bench: Bench, place: str, first: Rival, second: Rival, at: int, wait: bool) -> list[str]:
    """Halt the first at a point, let the second run, let the first go on; what is wrong then."""
    work = bench.fresh()
    process = begin(work, _words(first, place, "one"), "stop", at, log="said-one")
    _, status = os.waitpid(process, os.WUNTRACED)
    if not os.WIFSTOPPED(status):
        return [] if os.waitstatus_to_exitcode(status) == 0 else ["the first failed by itself"]
    words = _words(second, place, "two")
    if second.effect and second.waits and not wait and not words.startswith("!"):
        words += " --no-wait"
    rival = begin(work, words, log="said-two")
    done = _until_it_waits(rival, work.with_name("said-two"))
    os.kill(process, signal.SIGCONT)
    one = ended(process, work, "said-one")
    two = ended(rival, work, "said-two") if done is None else outcome(done, work, "said-two")
    wrong = []
    for name, own in (("first", one), ("second", two)):
        if own.code not in (0, 1, 2) or "Traceback" in own.said:
            wrong.append(f"the {name}: exit {own.code}: {own.said.strip()}")
    if second.effect is None and two.code != 0:
        wrong.append(f"the reader: exit {two.code}: {two.said.strip()}")
    if one.code != 0 and (second.effect is None or two.code != 0):
        wrong.append(f"neither did its work: {one.said.strip()} | {two.said.strip()}")
    orders = ([(first, "one"), (second, "two")], [(second, "two"), (first, "one")])
    codes = {"one": one.code, "two": two.code}
    allowed = {_in_order([r for r in order if codes[r[1]] == 0]) for order in orders}
    tasks = frozenset(read_manifest(work / place).tasks)
    if tasks not in allowed:
        expected = " or ".join(str(sorted(tasks)) for tasks in allowed)
        wrong.append(f"{sorted(tasks)} instead of {expected} (exits {codes})")
    faults = [f.what for f in check_subspace(work / place) if f.severity != "note"]
    wrong += [f"not sound: {what}" for what in faults]
    wrong += [f"left over: {path}" for path in left_over(work)]
    return wrong


def _in_order(rivals: list[tuple[Rival, str]]) -> Tasks:
    tasks = START
    for rival, name in rivals:
        tasks = rival.effect(tasks, name) if rival.effect else tasks
    return tasks


def _until_it_waits(process: int, log: Path) -> int | None:
    """Wait until a process ends, or says that it waits; its status in the first case."""
    while True:
        ended_one, status = os.waitpid(process, os.WNOHANG)
        if ended_one:
            return status
        if log.exists() and b"waiting for another command" in log.read_bytes():
            return None
        os.sched_yield()
        time.sleep(0.002)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--sample", type=int, default=0, help="each pair once, at most so many")
    parser.add_argument("--only", default="", help="pairs with this in their names")
    parser.add_argument("--points", type=int, default=0, help="of each pair, evenly spread")
    options = parser.parse_args()
    began = os.times()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder).resolve())
        chosen = [
            (f"{place}: {name} + {other}", place, first, second)
            for place, rivals in (("basis", BASIS), ("coded", CODED))
            for name, first in rivals.items()
            for other, second in {**rivals, **READERS}.items()
        ]
        chosen = [pair for pair in chosen if options.only in pair[0]]
        if options.sample:
            step = max(1, len(chosen) / options.sample)
            chosen = [chosen[int(i * step)] for i in range(min(options.sample, len(chosen)))]
        counts: dict[str, int] = {}
        tried_count: Counter[str] = Counter()
        faulty = set()
        for number, (pair, place, first, second) in enumerate(chosen):
            words = _words(first, place, "one")
            if words not in counts:
                alone = ended(begin(bench.fresh(), words), bench.folder / "work")
                assert alone.code == 0, f"{words}: {alone.said}"
                counts[words] = alone.count
            points = [(at, wait) for at in range(1, counts[words] + 1) for wait in (True, False)]
            if options.sample:
                points = [points[number * 7 % len(points)]]
            elif options.points:
                points = points[number % 5 :: max(1, len(points) // options.points)]
            for at, wait in points:
                tried_count[pair] += 1
                for wrong in tried(bench, place, first, second, at, wait):
                    faulty.add((pair, at, wait))
                    how = "waiting" if wait else "not waiting"
                    print(f"{pair} [halted at {at}, {how}]: {wrong}", flush=True)
    now = os.times()
    seconds = sum(now[:4]) - sum(began[:4])
    total = sum(tried_count.values())
    print(
        f"{total} points of {len(tried_count)} pairs: {len(faulty)} not sound; {seconds:.0f} CPU s"
    )
    return 1 if faulty else 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import torch

    import vlora_tui.cli.app  # noqa: F401  (before the first fork)

    torch.set_num_threads(1)
    sys.exit(main())
