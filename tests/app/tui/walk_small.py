"""On a small terminal one adapter is exported of what was built: a walk that `make soak` takes.

On a machine with twice as many processes as cores it was seen to wait for ever, once in five times.
"""

from __future__ import annotations

from pathlib import Path

from tests.app.tui.test_tmux import (  # noqa: F401  (two of them are fixtures)
    JOB_PATIENCE,
    MODULES,
    Open,
    store,
    terminal,
    walk,
)
from tests.witnesses import make
from vlora_tui.jobs.store import JobStore

ONE_STORY = (
    ("Enter marks all that fit", "Enter"),
    ("9 marked", "[ 2 Choose k ]", "2"),
    ("auto, worst 5 %", "smaller than the originals", "[ w Build ]", "w"),
    ("9 adapters", "verified, worst", "[ E Export ]", "E"),
    ("9 of 9 marked", "+ all or none", "+"),
    ("0 of 9 marked", "Space marks one", "Space"),
    ("1 of 9 marked", "[ w Write 1 adapter ]", "w"),
)


def test_on_a_small_terminal_one_adapter_is_exported_of_what_was_built(
    terminal: Open,  # noqa: F811
    store: JobStore,  # noqa: F811
    home: Path,
) -> None:
    folder = home / "runs"
    for i in range(9):
        make.write(folder / f"task{i}", make.factors(MODULES, seed=i))
    tui = terminal(folder, size=(80, 24))
    walk(tui, ONE_STORY)
    tui.until(lambda screen: "1 written" in screen, "it is written", JOB_PATIENCE)
    tui.sees("1 read back, the same")
    written = [path.parent.name for path in home.glob("runs-subspace-adapters/*/adapter_model.*")]
    assert written == ["task0"]
