"""The hostile inputs of ../shared/crashers, each as its cases.json says, on the real program."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, FreshPython

FOLDER = Path(os.environ.get("VLORA_TEST_CRASHERS", ROOT.parent / "shared" / "crashers"))
CPU_SECONDS, MEMORY_MB = 15, 2500  # where a case names no bound
CASES: list[dict[str, Any]] = (
    json.loads((FOLDER / "cases.json").read_bytes()) if (FOLDER / "cases.json").is_file() else []
)


def test_the_inputs_are_here() -> None:
    if not CASES:
        pytest.skip("no hostile inputs: VLORA_TEST_CRASHERS is not set, ../shared is absent")
    assert {case["run"][0] for case in CASES} >= {"compress", "validate", "inspect", "run", "jobs"}


# The program as it is run, and then what it took: CPU seconds and kB, its children's included.
PROGRAM = """
import resource, sys
from vlora_tui.cli import main
code = main(sys.argv[2:])
spent = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
seconds = sum(usage.ru_utime + usage.ru_stime for usage in spent)
with open(sys.argv[1], "w") as file:
    print(seconds, max(usage.ru_maxrss for usage in spent), file=file)
sys.exit(code)
"""


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_case(case: dict[str, Any], tmp_path: Path, fresh_python: FreshPython) -> None:
    """The exit code, words of the program's own, nothing left behind, within time and memory."""
    here, out, spent = FOLDER.resolve(), tmp_path / "new" / "out", tmp_path / "spent"
    out.parent.mkdir()
    line = [word.format(here=here, out=out) for word in case["run"]]

    done = fresh_python(PROGRAM, str(spent), *line, check=False, cwd=out.parent)

    told = done.stdout + done.stderr
    assert done.returncode in case["exit"], told
    assert "Traceback" not in told
    assert "A bug in vlora-tui" not in told
    assert case.get("says", "") in done.stdout
    if done.returncode:
        assert not list(out.parent.iterdir())
    seconds, kilobytes = map(float, spent.read_text().split())
    assert seconds < case.get("seconds", CPU_SECONDS)
    assert kilobytes < 1000 * case.get("memory_mb", MEMORY_MB)
