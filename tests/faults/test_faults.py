"""A fixed sample of what `make soak` tries whole: nothing is lost, half written or left over."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")


def run(*words: str) -> str:
    """The last line of a suite, which ended well."""
    done = subprocess.run(
        [sys.executable, "-m", *words],
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "0",
        },  # the suite has its own Hub
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout.splitlines()[-1]


def test_kills_and_faults_of_the_disk_at_write_points() -> None:
    said = run("tests.faults.run", "--sample", "60")
    assert re.match(r"60 of \d{5,} points of 68 commands .*: 0 not sound", said), said


def test_kills_where_names_cannot_be_exchanged() -> None:
    said = run(
        "tests.faults.run", "--two-renames", "--acts", "kill", "--only", "force", "--sample", "30"
    )
    assert re.match(r"30 of \d{2,} points .*: 0 not sound", said), said


def test_two_commands_on_one_subspace() -> None:
    said = run("tests.faults.pairs", "--sample", "30")
    assert re.match(r"30 points of 30 pairs: 0 not sound", said), said
