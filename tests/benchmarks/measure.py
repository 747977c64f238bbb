"""Whole processes, measured from outside: CPU seconds, wall seconds, peak memory.

Keep this process small (no torch, no numpy): on Linux a child's peak starts at its parent's.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RSS_UNIT = 1 if sys.platform == "darwin" else 1024
TORCH_ENV = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
SHORT = 3.0  # a run under this many seconds is repeated and the best counts
REPEATS = 3
NOISE = 0.1  # seconds over the import of torch below which a quotient says nothing


class ChildFailed(Exception):
    """A measured process failed or took too long."""


@dataclass(frozen=True)
class Usage:
    """What one process took: user + system seconds of CPU, seconds by the clock, peak bytes."""

    cpu: float
    wall: float
    peak: int

    def less(self, other: Usage) -> Usage:
        """Without what ``other`` takes; never below a hundredth of a second."""
        return Usage(max(0.01, self.cpu - other.cpu), max(0.01, self.wall - other.wall), self.peak)

    def cpu_over(self, other: Usage) -> float | None:
        """CPU seconds more than ``other``; None where they drown in the noise."""
        return self.cpu - other.cpu if self.cpu - other.cpu >= NOISE else None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def least(runs: Sequence[Usage]) -> Usage:
    """The least CPU, wall and peak of some runs."""
    return Usage(
        min(run.cpu for run in runs), min(run.wall for run in runs), min(run.peak for run in runs)
    )


@dataclass
class Bench:
    """What every section is given.

    Args:
        quick: Smaller sizes, for development.
        data: Where made adapters are kept between runs. scratch: A folder thrown away at the end.
        adapters: Where the real adapters lie, if they do.
        threads: Threads of a linear-algebra call, the same for everyone.
        timeout: Seconds after which a single process is given up.
    """

    quick: bool
    big: bool
    data: Path
    scratch: Path
    adapters: Path
    threads: int = 1
    timeout: float = 600.0
    imports: Usage | None = None
    counter: list[int] = field(default_factory=lambda: [0])

    def path(self, stem: str) -> Path:
        """A path in the scratch folder that nothing has used yet."""
        self.counter[0] += 1
        return self.scratch / f"{stem}-{self.counter[0]}"

    @cached_property
    def environment(self) -> dict[str, str]:
        """A home of its own and no network, so that nothing is cached between runs."""
        home = self.scratch / "home"
        home.mkdir(exist_ok=True)
        own = {f"XDG_{n}_HOME": str(home / n.lower()) for n in ("CACHE", "CONFIG", "DATA", "STATE")}
        kept = {k: v for k, v in os.environ.items() if not k.startswith("VLORA_")}
        kept.pop("PYTHONDONTWRITEBYTECODE", None)  # as installed: modules are compiled once
        return {
            **kept,
            **own,
            **dict.fromkeys(TORCH_ENV, str(self.threads)),
            "HOME": str(home),
            "PYTHONPYCACHEPREFIX": str(self.scratch / "bytecode"),
            "HF_HUB_OFFLINE": "1",
            "NO_COLOR": "1",
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "engine")]),
        }

    @property
    def torch(self) -> Usage:
        """Importing torch: what is subtracted from every process that does it."""
        if self.imports is None:
            self.settle()
        assert self.imports is not None
        return self.imports

    def settle(self) -> None:
        """Measure the import of torch again and keep the least of all: the machine is shared."""
        found = self.python("-c", "import torch", repeats=REPEATS)
        self.imports = least([found, self.imports] if self.imports else [found])

    @cached_property
    def interpreter(self) -> Usage:
        """Starting Python."""
        return self.python("-c", "pass", repeats=REPEATS)

    def python(self, *arguments: str, repeats: int | None = None) -> Usage:
        """Run this interpreter."""
        return self.run([sys.executable, *arguments], repeats=repeats)

    def run(
        self, command: Sequence[str | Path], *, repeats: int | None = None, fresh: str = ""
    ) -> Usage:
        """The least of some runs of ``command``: CPU, wall and peak each.

        Args:
            repeats: How often; by default once, and two times more where that is quick.
            fresh: An argument that is replaced by a new path in every run, for outputs.
        """
        runs = [self._once(command, fresh)]
        wanted = repeats or (REPEATS if runs[0].wall < SHORT and not self.quick else 1)
        runs += [self._once(command, fresh) for _ in range(wanted - 1)]
        return least(runs)

    def _once(self, command: Sequence[str | Path], fresh: str) -> Usage:
        arguments = [str(part) for part in command]
        if fresh:
            arguments = [str(self.path("out")) if a == fresh else a for a in arguments]
        with tempfile.TemporaryFile() as output:
            start = time.perf_counter()
            child = subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                env=self.environment,
            )
            # Killing by process id is safe here: the child is not reaped before wait4 returns.
            alarm = threading.Timer(self.timeout, os.kill, (child.pid, signal.SIGKILL))
            alarm.start()
            try:
                _, status, usage = os.wait4(child.pid, 0)
            finally:
                alarm.cancel()
            wall = time.perf_counter() - start
            child.returncode = os.waitstatus_to_exitcode(status)
            if child.returncode != 0:
                output.seek(0)
                said = output.read().decode(errors="replace").strip().splitlines()[-3:]
                reason = f"no end after {self.timeout:.0f} s" if wall > self.timeout else "failed"
                raise ChildFailed(f"{reason}: {' | '.join(said) or child.returncode}")
        return Usage(usage.ru_utime + usage.ru_stime, wall, usage.ru_maxrss * RSS_UNIT)


def script(name: str) -> str | None:
    """The installed command of this name beside this interpreter, if there is one."""
    found = Path(sys.executable).parent / name
    return str(found) if found.exists() else None


def ours() -> list[str]:
    """How our own command line is started."""
    found = script("vlora-tui")
    return [found] if found else [sys.executable, "-m", "vlora_tui"]
