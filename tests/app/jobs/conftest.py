"""Real jobs in real processes, held at a place of the test's choosing without any clock.

A job's process is held by a gate: a FIFO that it opens for reading after the nth call of one of
the engine's functions. The hook comes in through ``sitecustomize`` on PYTHONPATH, so the product
knows nothing of it. A blocked process still hears signals, and goes on when the test lets it.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.witnesses import make
from vlora_engine.compression_target import CompressionTarget
from vlora_tui.jobs import Job, JobStore, State, look, start, wait
from vlora_tui.recipe.model import AdapterInput, Compress, Export, Input, Recipe

PATIENCE = 60.0  # only a broken test waits so long
MODULES = {f"transformer.h.{i}.attn.c_attn": (12, 36) for i in range(6)}

HOOK = """\
import importlib.abc, importlib.util, os, sys

class Gatekeeper(importlib.abc.MetaPathFinder):
    def find_spec(self, name, where, target=None):
        if name != module:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module
        def exec_module(loaded):
            execute(loaded)
            *owners, last = path.split(".")
            for word in owners:
                loaded = getattr(loaded, word)
            original, calls = getattr(loaded, last), []
            def gated(*args, **kwargs):
                result = original(*args, **kwargs)
                calls.append(1)
                if len(calls) == int(count):
                    open(fifo).read()  # until the test lets go of the other end
                return result
            setattr(loaded, last, gated)
        spec.loader.exec_module = exec_module
        return spec

if "VLORA_TEST_GATE" in os.environ:
    module, path, count, fifo = os.environ["VLORA_TEST_GATE"].split("|")
    sys.meta_path.insert(0, Gatekeeper())
"""


def until(condition: Callable[[], object], what: str, seconds: float = PATIENCE) -> None:
    """Wait until ``condition()`` holds."""
    __tracebackhide__ = True
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            pytest.fail(f"in {seconds:.0f} s it never came to this: {what}")
        time.sleep(0.005)


class Gate:
    """Where the processes that are started from now on are held."""

    def __init__(self, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.fifo = place / "gate"
        self._environment = monkeypatch
        self._open: int | None = None
        (place / "sitecustomize.py").write_text(HOOK)
        before = os.environ.get("PYTHONPATH")
        monkeypatch.setenv(
            "PYTHONPATH", os.pathsep.join([str(place), *([before] if before else [])])
        )

    def close_after(self, function: str, count: int = 1) -> None:
        """Hold new processes after the ``count``-th call of ``module|path``."""
        self.fifo.unlink(missing_ok=True)
        os.mkfifo(self.fifo)
        self._environment.setenv("VLORA_TEST_GATE", f"{function}|{count}|{self.fifo}")

    def no_more(self) -> None:
        """Hold no process that is started from now on."""
        self._environment.delenv("VLORA_TEST_GATE", raising=False)

    def reached(self) -> None:
        """Wait until a process stands at the gate."""
        __tracebackhide__ = True
        until(self._try, "a process reached the gate")

    def release(self) -> None:
        """Let the process that stands there go on."""
        assert self._open is not None
        os.close(self._open)
        self._open = None

    def _try(self) -> bool:
        try:
            self._open = os.open(self.fifo, os.O_WRONLY | os.O_NONBLOCK)
        except OSError as error:
            if error.errno != errno.ENXIO:  # nobody reads yet
                raise
            return False
        return True


LAYER = "vlora_engine.subspace.layer_parts|LayerParts.write"
CODED_LAYER = "vlora_engine.subspace.coded.layer_parts|FileParts.write"
SPECTRUM = "vlora_engine.compress.measure|write_layer"
SAVE = "vlora_engine.targets.save|save_adapter"


@pytest.fixture
def gate(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Gate:
    return Gate(tmp_path_factory.mktemp("gate"), monkeypatch)


@pytest.fixture(scope="session")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four adapters of six modules."""
    folder = tmp_path_factory.mktemp("adapters") / "runs"
    for i in range(4):
        make.write(folder / f"task{i}", make.factors(MODULES, seed=i))
    return folder


@pytest.fixture
def store(home: Path) -> Iterator[JobStore]:
    """The jobs of this test's own home; whatever still runs at the end is killed."""
    store = JobStore.open()
    yield store
    for job in store.jobs():
        kill(job)


def kill(job: Job, number: int = signal.SIGKILL) -> None:
    """Kill the process of a job, if it has one, and wait until it is gone."""
    lock = job.standing()
    if lock.held and lock.identity is not None:
        with suppress(ProcessLookupError):
            os.kill(lock.identity.pid, number)
        until(lambda: not job.standing().held, f"job {job.id} was gone")


def pid_of(job: Job) -> int:
    """The process of a job that runs."""
    until(lambda: job.standing().identity is not None, "the job said who it is")
    identity = job.standing().identity
    assert identity is not None
    return identity.pid


def build_recipe(adapters: Path, out: Path, *, export: Path | None = None) -> Recipe:
    """Compress with k given, on the CPU; with ``export`` all tasks are written there."""
    return Recipe(
        input=Input((AdapterInput(str(adapters)),)),
        compress=Compress(CompressionTarget(k=4), device="cpu"),
        output=str(out),
        exports=() if export is None else (Export(str(export / "{task}")),),
    )


def state(job: Job) -> str:
    return look(job).state.value


@pytest.fixture
def undisturbed(store: JobStore, adapters: Path, tmp_path: Path) -> Path:
    """What a job makes when nobody disturbs it."""
    folder = tmp_path / "undisturbed"
    job = start(store, build_recipe(adapters, folder / "s", export=folder / "tasks"))
    assert wait(job, PATIENCE).state is State.FINISHED, job.log_tail()
    return folder


@pytest.fixture
def job(store: JobStore, adapters: Path, tmp_path: Path) -> Job:
    """A job that was made and never started."""
    job, lock = store.create(build_recipe(adapters, tmp_path / "s"))
    lock.release()
    return job
