"""Give every reader changed files: it may only succeed, or raise an error of the program's own.

    python -m tests.fuzz.readers --calls 20000 --seed 1
    python -m tests.fuzz.readers --reader coded --calls 1000000

A call writes one sound example into a folder, changes one or two of its files (structure first,
then bytes; checksums are put right, so that what was changed is read), and reads all of it. Any
other exception is a failure, as are more than `SECONDS` of CPU time and memory beyond `MEMORY`;
they are counted by where they arise, each kind is shown once. The same seed makes the same calls.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import hashlib
import json
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tests.fuzz import examples, reading
from tests.fuzz.mutate import mutation_of

SECONDS = 10.0
SETTLED = 100  # calls after which memory is first looked at
MEMORY = 3 << 30  # bytes above what the process has when it starts
SPARED = "-beef/"  # the job that must be listed, whatever the others are

Files = dict[str, bytes]


class Reader(NamedTuple):
    """One kind of input: how examples are made, how they are read, how checksums are put right."""

    examples: Callable[[Path], None]
    read: Callable[[Path], None]
    mend: Callable[[Files], None] = lambda files: None


class TooSlow(BaseException):
    """A call took more CPU time than it may."""


# ---- checksums


def _mend_subspaces(files: Files) -> None:
    """Make every index of a subspace vouch for the files as they are now."""
    for name in [n for n in files if n.endswith("subspace.json")]:
        folder = name[: -len("subspace.json")]
        try:
            index = json.loads(files[name])
            _vouch(index, folder, files)
            files[name] = json.dumps(index).encode()
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            continue


def _vouch(index: dict[str, Any], folder: str, files: Files) -> None:
    for row in (*index["basis"], *index.get("shared_basis", {"files": []})["files"]):
        raw = files.get(folder + row["file"])
        if raw is not None:
            row["sha256"], row["bytes"] = hashlib.sha256(raw).hexdigest(), len(raw)
    tasks = index["tasks"]
    if isinstance(tasks, list):
        for row in tasks:
            raw = files.get(f"{folder}tasks/{row['file']}")
            if raw is not None:
                row["sha256"], row["bytes"] = hashlib.sha256(raw).hexdigest(), len(raw)
        return
    each = tasks["each"]
    for i, name in enumerate(each["id"]):
        raw = files.get(f"{folder}tasks/{name}.safetensors")
        if raw is not None:
            digest = base64.urlsafe_b64encode(hashlib.sha256(raw).digest()).decode().rstrip("=")
            each["sha256"][i], each["bytes"][i] = digest, len(raw)


READERS: dict[str, Reader] = {
    "basis": Reader(examples.compressed("-k", 2), reading.subspaces, _mend_subspaces),
    "flat": Reader(
        examples.compressed("--method", "flat", "-k", 2), reading.subspaces, _mend_subspaces
    ),
    "packed": Reader(
        examples.compressed("-k", 2, "--quantize", "nf4"), reading.subspaces, _mend_subspaces
    ),
    "coded": Reader(examples.coded, reading.subspaces, _mend_subspaces),
    "beside": Reader(examples.beside, reading.in_basis, _mend_subspaces),
    "spectra": Reader(examples.spectra, reading.spectra),
    "tensors": Reader(examples.tensors, reading.tensors),
    "peft": Reader(examples.peft, reading.diagnosed),
    "pickle": Reader(examples.pickled, reading.adapters),
    "mlx": Reader(examples.mlx, reading.diagnosed),
    "kohya": Reader(examples.kohya, reading.adapters),
    "gguf": Reader(examples.gguf, reading.diagnosed),
    "vlora-dev": Reader(examples.peer("vlora-dev"), reading.subspaces),
    "lorashare": Reader(examples.peer("lorashare"), reading.subspaces),
    "recipe": Reader(examples.recipe, reading.recipe),
    "settings": Reader(examples.settings, reading.settings),
    "mergekit": Reader(examples.mergekit, reading.mergekit),
    "router": Reader(examples.router, reading.router),
    "drafts": Reader(examples.draft, reading.drafts),
    "base": Reader(examples.base_model, reading.base_model),
    "jobs": Reader(examples.job, reading.jobs),
}


# ---- calls


class Fuzz:
    """One reader under attack; `Fuzz.call` makes the call with a given number."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.reader = name, READERS[name]
        self.folder = folder / name
        self.folder.mkdir(parents=True)
        self.reader.examples(self.folder)
        self.sound = {
            path.relative_to(self.folder).as_posix(): path.read_bytes()
            for path in sorted(self.folder.rglob("*"))
            if path.is_file()
        }
        self.reader.read(self.folder)  # they are sound
        self.outcomes: Counter[str] = Counter()
        self.failures: dict[str, str] = {}

    def changed(self, rng: random.Random) -> Files:
        """The example with one file changed, or two."""
        files = dict(self.sound)
        names = [n for n in files if not n.endswith("README.md") and SPARED not in n]
        for name in rng.sample(names, min(len(names), rng.choice((1, 1, 1, 2)))):
            files[name] = mutation_of(name)(files[name], rng)
        self.reader.mend(files)
        return files

    def call(self, seed: int, number: int) -> str:
        """One call: ``read``, ``refused``, or where it failed."""
        from vlora_engine.errors import VLoRAError

        files = self.changed(random.Random(f"{self.name} {seed} {number}"))
        different = [name for name in files if files[name] != self.sound[name]]
        for name in different:
            (self.folder / name).write_bytes(files[name])
        outcome = "read"
        reading.refused.clear()
        try:
            with limited_time():
                self.reader.read(self.folder)
            outcome = "refused" if reading.refused else "read"
        except VLoRAError:
            outcome = "refused"
        except (Exception, TooSlow) as error:
            outcome = _signature(error)
            text = "".join(traceback.format_exception(error))[-3000:]
            self.failures.setdefault(outcome, f"{self.name} call {number} {different}\n{text}")
        for name in different:
            (self.folder / name).write_bytes(self.sound[name])
        self.outcomes[outcome] += 1
        return outcome


def _signature(error: BaseException) -> str:
    own = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if "vlora" in frame.filename and "/fuzz/" not in frame.filename
    ]
    place = f"{Path(own[-1].filename).name}:{own[-1].lineno}" if own else "?"
    return f"{type(error).__name__} at {place}"


@contextlib.contextmanager
def limited_time() -> Iterator[None]:
    """Raise `TooSlow` in what takes more CPU time than it may."""

    def stop(*_: object) -> None:
        raise TooSlow

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def _resident() -> int:
    """Bytes of memory that the process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@contextlib.contextmanager
def limited_memory(more: int = MEMORY) -> Iterator[None]:
    """Let allocations fail beyond ``more`` bytes of address space than there are now."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + more, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--calls", type=int, default=1000, help="of every reader")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="the number of the first call")
    parser.add_argument("--reader", action="append", choices=list(READERS))
    parser.add_argument("--seconds", type=float, help="of CPU time, of every reader at most")
    options = parser.parse_args(arguments)
    failed = 0
    with tempfile.TemporaryDirectory() as place:
        for name in options.reader or READERS:
            fuzz = Fuzz(name, Path(place))
            begun = time.process_time()
            settled = _resident()
            with limited_memory():
                for number in range(options.first, options.first + options.calls):
                    fuzz.call(options.seed, number)
                    if number - options.first == SETTLED:
                        settled = _resident()
                    if options.seconds and time.process_time() - begun > options.seconds:
                        break
            taken = time.process_time() - begun
            counts = {key: fuzz.outcomes.pop(key, 0) for key in ("read", "refused")}
            wrong = sum(fuzz.outcomes.values())
            failed += wrong
            total = sum(counts.values()) + wrong
            held = f"{settled >> 20} to {_resident() >> 20} MB"
            row = f"{name:10} {total:8} calls {counts['read']:8} read {counts['refused']:8} refused"
            print(f"{row} {wrong:5} failed {taken:7.1f} s  memory {held}", flush=True)
            for key, count in fuzz.outcomes.most_common():
                print(f"  {count} x {key}\n{fuzz.failures[key]}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
