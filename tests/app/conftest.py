"""The command line in this process, and small collections for it."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.witnesses import make
from vlora_tui.cli import main


class Result(NamedTuple):
    """What a command line came to."""

    code: int
    out: str
    err: str

    @property
    def data(self) -> dict[str, Any]:
        """stdout as the one JSON object that it must be, without NaN."""

        def refuse(word: str) -> None:
            raise AssertionError(f"{word} in JSON")

        value = json.loads(self.out, parse_constant=refuse)
        assert value["schema"].startswith("vlora-tui/")
        assert value["version"] == 1
        return value


Cli = Callable[..., Result]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    """Run one command line: ``cli("info", path).out``; a traceback is never an answer."""

    def run(*words: object, code: int | None = 0) -> Result:
        __tracebackhide__ = True
        capsys.readouterr()
        found = main([str(word) for word in words])
        written = capsys.readouterr()
        assert "Traceback" not in written.err, written.err
        assert code is None or found == code, f"exit {found}\n{written.out}\n{written.err}"
        return Result(found, written.out, written.err)

    return run


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of four adapters, task00 to task03, that share three directions a side."""
    folder = tmp_path_factory.mktemp("collection") / "runs"
    make.collection(folder, 4)
    return folder


@pytest.fixture(scope="session")
def built(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A subspace of them, exact; to be read only."""
    place = tmp_path_factory.mktemp("built") / "subspace"
    assert main(["compress", str(runs), "-o", str(place), "-k", "16", "-q"]) == 0
    return place


@pytest.fixture
def subspace(built: Path, tmp_path: Path) -> Path:
    """A copy of it, to be changed."""
    return Path(shutil.copytree(built, tmp_path / "subspace"))


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Path], None]]:
    """Take the right to read away from a file or a directory: ``closed(path)``.

    Root may read everything, so for root the calls that open it are made to refuse.
    """
    mode: dict[Path, int] = {}
    refused: set[str] = set()

    def guarded(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any = ".", *args: Any, **kwargs: Any) -> Any:
            if not isinstance(path, int) and os.fspath(path) in refused:
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
            return original(path, *args, **kwargs)

        return call

    def close(path: Path) -> None:
        if os.geteuid() != 0:
            mode[path] = path.stat().st_mode
            path.chmod(0)
            return
        if not refused:
            for module, name in ((os, "scandir"), (os, "listdir"), (os, "open"), (io, "open")):
                monkeypatch.setattr(module, name, guarded(getattr(module, name)))
        refused.add(str(path))

    yield close
    for path, before in mode.items():
        path.chmod(before)


@pytest.fixture
def broken(runs: Path, tmp_path: Path) -> Path:
    """The folder with a fifth adapter that holds a NaN, and a sixth that is half a file."""
    folder = Path(shutil.copytree(runs, tmp_path / "broken-runs"))
    tensors = make.factors(seed=99)
    next(iter(tensors.values()))[0, 0] = float("nan")
    make.write(folder / "with-nan", tensors)
    cut = make.write(folder / "cut-short") / "adapter_model.safetensors"
    cut.write_bytes(cut.read_bytes()[:200])
    return folder
