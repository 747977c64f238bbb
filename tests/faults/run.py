"""Kill and disturb every writing command at its write points, and judge what is left.

    python -m tests.faults.run                    every point of every command
    python -m tests.faults.run --sample 60        a fixed sample of so many
    python -m tests.faults.run --share 3/16       the third of 16 shares of them, evenly spread

Each point: a fresh copy of the start; the command, disturbed at its n-th operation on the disk;
then the same again, undisturbed. After the first every output is the old or the new one and no
input has changed; after the second all is as if nothing had happened, and nothing else is left.
The command runs in a fork of this process, which has loaded everything once.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import io
import json
import logging
import math
import os
import pkgutil
import random
import shutil
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import vlora_engine.utils.outputs as outputs_module
from tests.faults.commands import COMMANDS, STATE, Command, make_demo_small, prepare
from tests.faults.shim import KILLED, Faults
from tests.witnesses.hub import Hub
from vlora_engine.catalog.read import read_manifest
from vlora_engine.utils.partials import former_path

ACTS = ("kill", "ENOSPC", "ENOSPC!", "EIO", "EACCES", "EINTR", "EROFS!", "short")
ERRORS = (1, 2)
Tree = dict[str, bytes]


def tree(place: Path) -> Tree | None:
    """Every file below, by its path; of a file itself; None where nothing is."""
    if place.is_file():
        return {"": place.read_bytes()}
    if not place.exists():
        return None
    return {str(p.relative_to(place)): p.read_bytes() for p in place.rglob("*") if p.is_file()}


@dataclass(frozen=True)
class Outcome:
    """How a command ended in its fork."""

    code: int
    said: str
    count: int


def forked(work: Path, words: str, act: str = "count", at: int = 0) -> Outcome:
    """Run a command line in ``work``, in a process of its own, disturbed at an operation."""
    return ended(begin(work, words, act, at), work)


def begin(work: Path, words: str, act: str = "count", at: int = 0, *, log: str = "said") -> int:
    """Start a command line in a fork; what starts with ``!`` is a program (`PROGRAMS`)."""
    for name in (log, f"{log}.count"):
        work.with_name(name).unlink(missing_ok=True)
    process = os.fork()
    if process == 0:
        faults = Faults(work, work.with_name("cache"), act=act, at=at)
        _be_the_command(work, words, faults, work.with_name(log))
    return process


def ended(process: int, work: Path, log: str = "said") -> Outcome:
    """Wait for the end of a process that was begun."""
    status = os.waitpid(process, 0)[1]
    return outcome(status, work, log)


def outcome(status: int, work: Path, log: str = "said") -> Outcome:
    """What a process that has ended came to."""
    counted = work.with_name(f"{log}.count")
    count = int(counted.read_text()) if counted.exists() else 0
    said = work.with_name(log).read_text(errors="replace")
    return Outcome(os.waitstatus_to_exitcode(status), said, count)


def _be_the_command(work: Path, words: str, faults: Faults, log: Path) -> None:
    code = 70
    try:
        os.chdir(work)
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        sys.stdout = io.TextIOWrapper(io.FileIO(1, "w"), write_through=True)
        sys.stderr = io.TextIOWrapper(io.FileIO(2, "w"), write_through=True)
        faults.install()
        program, *rest = words.split()
        code = PROGRAMS[program](*rest) if program in PROGRAMS else _command(words)
    except BaseException:  # the judge reads of it
        traceback.print_exc()
    finally:
        faults.roots = ()  # what is written from here on is not the command's
        log.with_name(f"{log.name}.count").write_text(str(faults.count))
        os._exit(code)


def _command(words: str) -> int:
    from vlora_tui.cli import main

    return main(words.split())


def _save(place: str, task: str) -> int:
    """What a program does that has opened the subspace before."""
    from vlora_engine.errors import VLoRAError
    from vlora_engine.shared_subspace import SharedSubspace

    logging.basicConfig()
    try:
        opened = SharedSubspace.load(place)
        if task in opened.tasks:
            opened.remove_task(task)
        opened.save(place)
    except VLoRAError as error:
        print("\n".join(error.lines()), file=sys.stderr)
        return error.exit_code
    return 0


def _job(recipe: str) -> int:
    """What `jobs start` does, the job in this very process; run again it resumes or is done."""
    from vlora_engine.errors import VLoRAError
    from vlora_tui.jobs.runner import run_job
    from vlora_tui.jobs.store import JobStore
    from vlora_tui.jobs.watch import State, look
    from vlora_tui.pipeline import events
    from vlora_tui.recipe.reader import load_recipe

    events.PROGRESS_INTERVAL = math.inf  # one line of progress, however slow it is
    try:
        store = JobStore.open(Path("later"))
        jobs = store.jobs()
        if any(look(job).state is State.FINISHED for job in jobs):
            return 0
        job, lock = (jobs[-1], None) if jobs else store.create(load_recipe(Path(recipe)))
        if lock is not None:
            lock.release()
        run_job(job.folder, listen=lambda event: None, cancelled=lambda: False)
    except VLoRAError as error:
        print("\n".join(error.lines()), file=sys.stderr)
        return error.exit_code
    return 0


def _remove_job() -> int:
    """Remove the one job that is there, by its id; where none is left, look at that."""
    from vlora_engine.errors import VLoRAError
    from vlora_tui.jobs.store import JobStore

    try:
        jobs = JobStore.open(Path(STATE)).jobs()
    except VLoRAError as error:
        print("\n".join(error.lines()), file=sys.stderr)
        return error.exit_code
    return max((_command(f"jobs --state-dir {STATE} remove {job.id}") for job in jobs), default=0)


PROGRAMS = {"!save": _save, "!job": _job, "!remove-job": _remove_job}


class Bench:
    """The start, and for every command what it gives undisturbed."""

    def __init__(self, folder: Path) -> None:
        from vlora_tui.cli import main

        self.folder, self.start = folder, folder / "start"
        self.start.mkdir()
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        for name in ("CONFIG", "STATE", "DATA"):
            os.environ[f"XDG_{name}_HOME"] = str(folder / name.lower())
        before = Path.cwd()
        os.chdir(self.start)
        with open(os.devnull, "w") as nowhere:
            told = sys.stdout, sys.stderr
            sys.stdout = sys.stderr = nowhere
            try:
                prepare(self.start, main)
            finally:
                sys.stdout, sys.stderr = told
                os.chdir(before)
        for handler in logging.getLogger("huggingface_hub").handlers:
            if isinstance(handler, logging.StreamHandler):
                handler.stream = sys.stderr  # it began when stderr was nowhere
        self._serve_hub()
        load_everything()
        make_demo_small()
        self._after: dict[str, tuple[dict[str, Tree | None], int]] = {}
        self._twice: dict[str, dict[str, Tree | None]] = {}

    def _serve_hub(self) -> None:
        """A Hub in a process of its own, which ends with this one."""
        told, tells = os.pipe()
        stays, ends = os.pipe()  # nobody writes: it is at its end when this process is
        if os.fork() == 0:
            try:
                os.close(ends)
                hub = Hub()
                for name, place in (("plain", "in/task00"), ("several", "in"), ("space", "basis")):
                    hub.add(f"org/{name}", self.start / place)
                os.write(tells, json.dumps(hub.environment(self.folder / "cache" / "hf")).encode())
                os.read(stays, 1)
            finally:
                os._exit(0)
        os.close(stays)
        os.environ |= json.loads(os.read(told, 1 << 16))
        import huggingface_hub.hf_api  # noqa: F401  (after the variables, before the first fork)

    def fresh(self) -> Path:
        """A copy of the start, with empty caches."""
        work = self.folder / "work"
        for folder in (work, self.folder / "cache"):
            shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.start, work)
        return work

    def after(self, command: Command) -> tuple[dict[str, Tree | None], int]:
        """What the command leaves undisturbed, by its first part, and its number of operations."""
        if command.name not in self._after:
            work = self.fresh()
            done = forked(work, command.words)
            assert done.code == 0, f"{command.name}: {done.said}"
            assert not left_over(work), f"{command.name}: {left_over(work)}"
            self._after[command.name] = snapshot(work, command), done.count
        return self._after[command.name]

    def after_twice(self, command: Command) -> dict[str, Tree | None]:
        """The same after it has run undisturbed a second time."""
        if command.name not in self._twice:
            work = self.fresh()
            for _ in range(2):
                done = forked(work, command.words)
                assert done.code == 0, f"{command.name}: {done.said}"
            self._twice[command.name] = snapshot(work, command)
        return self._twice[command.name]

    def before(self, command: Command) -> dict[str, Tree | None]:
        """The same places in the start."""
        return snapshot(self.start, command)

    def faults_of(self, command: Command, act: str, at: int) -> list[str]:
        """Disturb a command at one point and run it again; what is wrong then, in words."""
        after, _ = self.after(command)
        twice = self.after_twice(command) if command.moves else after
        work = self.fresh()
        cut = forked(work, command.words, act, at)
        wrong = [*self._judged_first(command, act, cut, work), *_inputs(work, self.start, command)]
        is_done = all(_is(command, work, name, after) for name in after)
        after = twice if is_done else after
        again = forked(work, command.again or command.words)
        if again.code != 0 and not (is_done and again.code in command.done):
            wrong.append(f"again: exit {again.code}: {again.said.strip()}")
        wrong += [f"again: {n} is another" for n in after if not _is(command, work, n, after)]
        if again.code != 0 and left_over(work):
            # It was done; whatever writes there next tidies up.
            place = command.in_place
            next_one = f"remove {place} task00" if place else f"{command.words} --force"
            swept = forked(work, next_one)
            if swept.code != 0:
                wrong.append(f"next: exit {swept.code}: {swept.said.strip()}")
        wrong += [f"left over: {path}" for path in left_over(work)]
        return wrong

    def _judged_first(self, command: Command, act: str, cut: Outcome, work: Path) -> Iterator[str]:
        before, (after, _) = self.before(command), self.after(command)
        allowed = {"kill": (KILLED,), "short": (0,)}.get(act, (0, *ERRORS))
        if cut.code not in allowed:
            yield f"exit {cut.code}: {cut.said.strip()}"
        if "Traceback" in cut.said or "bug in vlora-tui" in cut.said:
            yield f"it says: {cut.said.strip()}"
        for name in after:
            new, old = (_is(command, work, name, state) for state in (after, before))
            if not (new or (old and cut.code != 0)):
                yield f"{name} is neither the old nor the new one (exit {cut.code}): {cut.said}"


def load_everything() -> None:
    """Import all that some command imports, so that no fork does it again."""
    import vlora_engine
    import vlora_tui

    for package in (vlora_engine, vlora_tui):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
    gc.freeze()  # a fork that collects garbage would copy every page of all that


def _no_exchange(one: Path, other: Path) -> bool:
    """As on a file system that cannot: the two renames stand in."""
    return False


def snapshot(work: Path, command: Command) -> dict[str, Tree | None]:
    """The outputs of a command, and the subspace that it changes."""
    names = (*command.outputs, *([command.in_place] if command.in_place else []))
    return {name: tree(work / name) for name in names}


def _is(command: Command, work: Path, name: str, state: dict[str, Tree | None]) -> bool:
    """Whether a place is in this state; a subspace that is changed may hold more until later.

    Where names cannot be exchanged, the old one may lie beside its place, to be put back.
    """
    former = former_path(work / name)
    hidden = outputs_module.exchange is _no_exchange and not (work / name).exists()
    now, wanted = tree(former if hidden else work / name), state[name]
    if name == STATE:
        return _jobs(now) == _jobs(wanted)
    if name != command.in_place or now is None or wanted is None:
        return now == wanted
    more = [f for f in now if f not in wanted and not f.startswith("tasks/") and f[0] != "."]
    return not more and all(now.get(f) == wanted[f] for f in wanted if f != "README.md")


def _jobs(state: Tree | None) -> Tree:
    """The files of jobs: what is hidden is none, and a lock may be taken and let go."""
    files = (state or {}).items()
    return {f: data for f, data in files if "/." not in f and not f.endswith("/lock")}


def _inputs(work: Path, start: Path, command: Command) -> Iterator[str]:
    """What else lies there is as it was."""
    written = (*command.outputs, *command.loose, command.in_place or "")
    changed = {name.split("/")[0] for name in written}
    for place in sorted(start.iterdir()):
        if place.name not in changed and tree(place) != tree(work / place.name):
            yield f"{place.name} was changed"


def left_over(work: Path) -> list[str]:
    """Hidden files and folders that are no locks, and files that no index names."""
    hidden = [p for p in work.rglob(".*") if not p.name.endswith(".lock")]
    loose = []
    for index in work.glob("*/subspace.json"):
        manifest = read_manifest(index.parent)
        named = {record.file for record in manifest.tasks.values()}
        loose += [p for p in (index.parent / "tasks").iterdir() if p.name not in named]
        named = {file.name for file in manifest.files}
        loose += [p for p in index.parent.glob("*.safetensors") if p.name not in named]
    caches = [p for p in work.with_name("cache").rglob(".*.part*") if "hf" not in p.parts]
    return [str(p.relative_to(work.parent)) for p in (*hidden, *loose, *caches)]


def points(bench: Bench, acts: tuple[str, ...]) -> list[tuple[Command, str, int]]:
    """Every command, act and operation."""
    return [
        (command, act, at)
        for command in COMMANDS
        for act in acts
        for at in range(1, bench.after(command)[1] + 1)
    ]


def sampled(every: list[tuple[Command, str, int]], count: int) -> list[tuple[Command, str, int]]:
    """A fixed choice: of every command and act in turn, points spread over its operations."""
    chooser = random.Random(20261130)
    shuffled = chooser.sample(every, len(every))
    seen: Counter[tuple[str, str]] = Counter()
    rank = []
    for i, (command, act, _) in enumerate(shuffled):
        seen[command.name, act] += 1
        rank.append((seen[command.name, act], i))
    return [shuffled[i] for _, i in sorted(rank)[:count]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--sample", type=int, default=0, help="so many points, a fixed choice")
    parser.add_argument("--share", default="1/1", help="one of several shares that make the whole")
    parser.add_argument("--acts", default=",".join(ACTS))
    parser.add_argument("--only", default="", help="commands with this in their words")
    parser.add_argument("--json", type=Path, help="where to write the faults and counts")
    parser.add_argument("--two-renames", action="store_true", help="as where none can exchange")
    options = parser.parse_args()
    if options.two_renames:
        outputs_module.exchange = _no_exchange
    began = os.times()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder).resolve())
        every = points(bench, tuple(options.acts.split(",")))
        every = [point for point in every if options.only in point[0].name]
        share, shares = (int(number) for number in options.share.split("/"))
        chosen = sampled(every, options.sample or len(every))[share - 1 :: shares]
        tried: Counter[str] = Counter()
        faults = []
        for command, act, at in chosen:
            tried[act] += 1
            for wrong in bench.faults_of(command, act, at):
                faults.append({"command": command.name, "act": act, "at": at, "what": wrong})
                print(f"{command.name} [{act} at {at}]: {wrong}", flush=True)
    seconds = sum(os.times()[:4]) - sum(began[:4])
    counts = ", ".join(f"{count} {act}" for act, count in tried.items())
    print(
        f"{len(chosen)} of {len(every)} points of {len(COMMANDS)} commands ({counts}): "
        f"{len({(f['command'], f['act'], f['at']) for f in faults})} not sound; {seconds:.0f} CPU s"
    )
    if options.json:
        options.json.write_text(json.dumps({"tried": dict(tried), "faults": faults}))
    return 1 if faults else 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import torch

    torch.set_num_threads(1)
    sys.exit(main())
