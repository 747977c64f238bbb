"""``doctor ADAPTER --base B --merged M`` on the command line."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from tests.app.conftest import Cli
from tests.engine.doctor.merges import Bench
from tests.witnesses import make

pytest.importorskip("peft")


def test_the_command_says_it_in_a_sentence_and_exits_with_3(cli: Cli, tmp_path: Path) -> None:
    llama = Bench(tmp_path, make.tiny_llama(), ["q_proj", "v_proj", "down_proj"])
    folder = llama.folder
    llama.judged(llama.merged(), "right")
    llama.judged(llama.merged(times=2), "twice")
    words = ["doctor", folder / "a", "--base", folder / "base", "--merged"]
    right = cli(*words, folder / "right")
    assert "merged right: 6 of 6 modules; no other tensor changed" in right.out
    data = cli(*words, folder / "twice", "--json", code=3).data
    assert data["schema"] == "vlora-tui/doctor-merged"
    assert data["right"] == 0
    for row in data["modules"]:
        assert row["verdict"] == "scaled"
        assert math.isclose(row["factor"], 2, abs_tol=1e-4)
    assert cli(*words, folder / "twice", "--fail-on", "never")
    refused = cli("doctor", folder / "a", "--merged", folder / "right", code=2)
    assert "--base" in refused.err
