"""What ``Y`` copies, run in a shell, makes the same bytes as Enter."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from tests import make
from tests.app.tui.test_bad_adapters import with_nan
from tests.app.tui.test_run import session_of
from tests.app.tui.test_sizes import related
from vlora_engine.manifest import read_manifest
from vlora_tui.cli import main
from vlora_tui.run import Run
from vlora_tui.tui.session import Choosing

LAYER = next(iter(make.MODULES))


@pytest.mark.parametrize(
    "choosing",
    [
        Choosing(),
        Choosing(goal=("k", 3), layers=((LAYER, 5),)),
        Choosing(method="columns", goal=("variance", 0.9), dtype="fp32"),
        Choosing(goal=("budget", 30_000)),
        Choosing(method="flat", goal=("mean_error", 0.3), dtype="bf16"),
        Choosing(method="auto", goal=("max_error", 0.05)),
        Choosing(method="own", goal=("mean_error", 0.1)),
    ],
    ids=lambda c: f"{c.method}-{c.goal[0]}",
)
def test_the_copied_command_makes_the_same_subspace(choosing: Choosing, tmp_path: Path) -> None:
    folder = tmp_path / "a b"
    session = session_of(related(folder) if choosing.is_coded else make.collection(folder, 4))
    session.choose(choosing)
    session.output = str(tmp_path / "by command")
    words = shlex.split(session.command())
    assert words[0] == "vlora-tui"
    assert main(words[1:]) == 0
    recipe = replace(session.recipe(), output=str(tmp_path / "by enter"))
    Run(recipe, lambda event: None).execute()
    one, two = tmp_path / "by command", tmp_path / "by enter"
    files = sorted(p.relative_to(one) for p in one.rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(two) for p in two.rglob("*") if p.is_file())
    for file in files:
        assert (one / file).read_bytes() == (two / file).read_bytes(), file


def test_the_copied_command_leaves_out_what_enter_leaves_out(tmp_path: Path) -> None:
    session = session_of([*make.collection(tmp_path / "in", 3), with_nan(tmp_path / "in")])
    session.choose(Choosing(goal=("k", 3)))
    session.leave_out(path for path in session.infos if path.endswith("with-nan"))
    session.output = str(tmp_path / "out")
    assert main(shlex.split(session.command())[1:]) == 0
    assert len(read_manifest(tmp_path / "out").tasks) == 3
