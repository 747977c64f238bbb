"""What every test may rely on: one thread, no network, a home of its own, the real adapters."""

from __future__ import annotations

import atexit
import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.witnesses import train
from tests.witnesses.hub import Hub, running
from tests.witnesses.train import Trained

ROOT = Path(__file__).resolve().parents[1]

TRAINED_TASKS = ("reverse", "caesar", "add", "upper")  # all of them are for `make bench`

LONGEST = ("tests/faults/", "tests/app/tui/test_tmux.py")

FreshPython = Callable[..., "subprocess.CompletedProcess[str]"]


def _home_variables(home: Path) -> dict[str, str]:
    """The variables that send every read and write of a home directory to `home`."""
    return {
        "HOME": str(home),
        "XDG_CACHE_HOME": str(home / "cache"),
        "XDG_CONFIG_HOME": str(home / "config"),
        "XDG_DATA_HOME": str(home / "data"),
        "XDG_RUNTIME_DIR": str(home / "run"),
        "XDG_STATE_HOME": str(home / "state"),
        "HF_HOME": str(home / "cache" / "huggingface"),
    }


def _real_adapters_folder() -> Path:
    named = os.environ.get("VLORA_TEST_ADAPTERS")
    return Path(named) if named else ROOT.parent / "shared" / "adapters"


# Libraries read these when they are imported, which is before the first fixture runs.
# One thread: sums come in one order, so figures repeat, and two workers do not fight for two cores.
_collection_home = Path(tempfile.mkdtemp(prefix="vlora-tests-"))
atexit.register(shutil.rmtree, _collection_home, ignore_errors=True)
os.environ.update(_home_variables(_collection_home))
os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")
# NumPy codes, wherever numba is there as well, so that it does not depend on how much was coded
# before which of the two a test sees; tests/engine/codec/test_compiled.py turns numba on.
os.environ["NUMBA_DISABLE_JIT"] = "1"
os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1")
for _name in list(os.environ):
    styles_output = _name in (
        "NO_COLOR",
        "FORCE_COLOR",
        "CLICOLOR",
        "CLICOLOR_FORCE",
        "COLUMNS",
        "LINES",
    )
    if styles_output or (_name.startswith("VLORA_") and not _name.startswith("VLORA_TEST_")):
        del os.environ[_name]


@pytest.fixture(autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home directory, with the XDG folders inside, for each test."""
    home = tmp_path_factory.mktemp("home")
    (home / "run").mkdir(mode=0o700)
    for name, value in _home_variables(home).items():
        monkeypatch.setenv(name, value)
    return home


@pytest.fixture(scope="session")
def real_adapters() -> Path:
    """The folder of real trained adapters; marks the test `real`, skips it where there are none."""
    folder = _real_adapters_folder()
    if folder.is_dir():
        return folder
    if "VLORA_TEST_ADAPTERS" in os.environ:
        pytest.fail(f"VLORA_TEST_ADAPTERS names {folder}, which is not a folder")
    pytest.skip(
        "no real adapters: VLORA_TEST_ADAPTERS is not set, and ../shared/adapters is absent"
    )


@pytest.fixture(scope="session")
def fresh_python(tmp_path_factory: pytest.TempPathFactory) -> FreshPython:
    """Run Python source, or with `-m` and the like any arguments, in a new interpreter.

    ``fresh_python("import x; print(x)")`` or ``fresh_python("-m", "vlora_tui", "--version")``.
    It runs in an empty folder with the environment of the test; `check=False` returns a failure
    instead of failing the test with what the interpreter wrote.
    """
    elsewhere = tmp_path_factory.mktemp("elsewhere")

    def run(
        *args: str,
        check: bool = True,
        timeout: float = 120,
        cwd: Path = elsewhere,
        env: dict[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        __tracebackhide__ = True
        arguments = ["-c", *args] if not args[0].startswith("-") else list(args)
        search_path = os.pathsep.join([str(ROOT), str(ROOT / "engine")])
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=cwd,
            env={**os.environ, "PYTHONPATH": search_path, **(env or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        if check and done.returncode != 0:
            pytest.fail(f"exit {done.returncode} from {arguments}\n{done.stdout}\n{done.stderr}")
        return done

    return run


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub on loopback that this process and its children ask, with a cache of its own."""
    from vlora_engine.hub import listing

    monkeypatch.setattr(listing, "_by_commit", {})
    monkeypatch.setattr(listing, "_revisions", {})
    with running(tmp_path / "hf", monkeypatch) as hub:
        yield hub


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A tiny base and four adapters trained on it, once for all workers; to be read only."""
    pytest.importorskip("peft")
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent  # of the whole run; each worker has a folder in it
    out = shared / "trained"
    with (shared / "trained.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the other workers wait for the one that trains
        return train.trained(out) or train.train(out, TRAINED_TASKS)


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses, so that it sees the marker
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "real_adapters" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.real)
        # For .ci/check_required.py: the JUnit report holds neither node ids nor markers of itself.
        item.user_properties.append(("nodeid", item.nodeid))
        if item.get_closest_marker("real"):
            item.user_properties.append(("real", "yes"))
    # The longest begin first, so that no worker is at work long after the others.
    items.sort(key=lambda item: not item.nodeid.startswith(LONGEST))
