"""What keys and a job under way write to the terminal, counted on a pty; idle: `test_start`.

The limits are upper bounds of bytes a second: on a loaded machine less is painted, never more.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.app.tui.app.test_start import Terminal
from tests.witnesses import make
from vlora_engine.catalog.open import open_adapter
from vlora_engine.compress.measure import compute_spectra

SECONDS = 6.0
STATUS_LINE = 500.0  # bytes a second
CHART = 10_000.0
PLACEHOLDER = 1_000.0
KEY, STEP = 6_000, 15_000  # bytes
STEPS = "23451"
MODULES = {
    f"transformer.h.{i}.attn.{name}": shape
    for i in range(12)
    for name, shape in (("c_attn", (12, 36)), ("c_proj", (12, 12)))
}

# The interface as it is, but for a job that a timer moves on as often as jobs are looked at.
PROGRAM = """
import sys, time
from pathlib import Path
from vlora_engine.catalog.scanner import scan
from vlora_engine.spectra.tables import Spectra
from vlora_tui.jobs.store import Job, JobInfo
from vlora_tui.jobs.watch import JobView, State
from vlora_tui.pipeline import events
from vlora_tui.tui.app.app import VLoRAApp
from vlora_tui.tui.core.job_client import POLL_SECONDS
from vlora_tui.tui.core.messages import JobsChanged, SpectraChanged
from vlora_tui.tui.terminal.driver import Terminal

runs, place, *rest = sys.argv[1:]
first = int(rest[0]) if rest else 4  # layers that are there
app = VLoRAApp([runs])
app.driver_class = Terminal
session = app.session
session.add_found(scan([runs]).adapters)
for path in session.infos:
    session.mark(path, True)
app.jobs.spectra_of = tuple(sorted(session.marked))
spectra = Spectra.load(Path(place))
late = list(spectra.layers.items())[first:]
for name, _ in late:
    del spectra.layers[name]
session.set_spectra(spectra)
view = JobView(Job(Path("/jobs/a"), JobInfo("a", "build", "spectra", time.time())))
view.state = State.RUNNING
done = 0

def move():
    global done
    done += 1
    if late and first:
        name, layer = late.pop(0)
        spectra.layers[name] = layer
        session.set_spectra(spectra)
        app.post_message(SpectraChanged())
    view.progress = events.Progress("spectra", done, 10_000)
    view.stage_since, view.progress_time = 1.0, 1.0 + 0.7 * done
    app.jobs.views = [view]
    app.post_message(JobsChanged())

app.call_later(lambda: app.set_interval(POLL_SECONDS, move))
app.run()
"""

# The interface on spectra of 224 layers, in all colours; nothing is found or run.
LARGE = """
import os
os.environ["COLORTERM"] = "truecolor"
from tests.benchmarks.key_presses import synthetic
from vlora_engine.compression_target import CompressionTarget
from vlora_tui.tui.app.app import VLoRAApp
from vlora_tui.tui.core.session import Session
from vlora_tui.tui.terminal.driver import Terminal

session = Session(choosing=CompressionTarget(k=16))
session.set_spectra(synthetic(10, 32))
app = VLoRAApp(session=session)
app.driver_class = Terminal
app.run()
"""

# The interface with a choice of k on spectra that are all there.
CHOOSING = """
import sys
from pathlib import Path
from vlora_engine.catalog.scanner import scan
from vlora_engine.compression_target import CompressionTarget
from vlora_engine.spectra.tables import Spectra
from vlora_tui.tui.app.app import VLoRAApp
from vlora_tui.tui.terminal.driver import Terminal

runs, place = sys.argv[1:]
app = VLoRAApp([runs])
app.driver_class = Terminal
session = app.session
session.add_found(scan([runs]).adapters)
for path in session.infos:
    session.mark(path, True)
app.jobs.spectra_of = tuple(sorted(session.marked))
session.set_spectra(Spectra.load(Path(place)))
session.choose(CompressionTarget("delta", k=3))
app.run()
"""


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder of adapters of 24 modules, and their spectra."""
    runs = tmp_path_factory.mktemp("busy") / "runs"
    for i in range(3):
        make.write(runs / f"task{i:02d}", make.factors(MODULES, seed=i + 1))
    place = tmp_path_factory.mktemp("spectra") / "spectra"
    compute_spectra({path.name: open_adapter(path) for path in sorted(runs.iterdir())}, place)
    return runs, place


@pytest.fixture
def terminal(places: tuple[Path, Path]) -> Iterator[Terminal]:
    there = Terminal(*map(str, places), code=PROGRAM)
    there.read(b"measuring ")
    yield there
    there.close()


@pytest.fixture
def large() -> Iterator[Terminal]:
    there = Terminal(code=LARGE)
    there.read(b"Adapters")
    there.quiet()
    yield there
    there.close()


def written(terminal: Terminal, key: str) -> int:
    """Bytes that a key leads to, until there are no more."""
    terminal.press(key)
    text = terminal.read(b"\x1b[")
    while more := terminal.read(seconds=0.7):
        text += more
    return len(text)


def bytes_a_second(terminal: Terminal) -> float:
    begun = time.monotonic()
    written = len(terminal.read(seconds=SECONDS))
    return written / (time.monotonic() - begun)


def test_a_job_costs_the_terminal_a_status_line(terminal: Terminal) -> None:
    terminal.read(seconds=2)  # whatever the start still paints
    assert 0 < bytes_a_second(terminal) <= STATUS_LINE


def test_a_chart_that_fills_in_is_painted_at_most_once_a_second(terminal: Terminal) -> None:
    terminal.press("2")
    terminal.read(b"Explained variance")
    terminal.read(seconds=0.5)
    assert 0 < bytes_a_second(terminal) <= CHART


def test_what_is_said_while_no_layer_is_there_costs_next_to_nothing(
    places: tuple[Path, Path],
) -> None:
    terminal = Terminal(*map(str, places), "0", code=PROGRAM)
    try:
        terminal.read(b"measuring ")
        terminal.press("2")
        terminal.read(b"no module is done")
        terminal.read(seconds=2)
        assert 0 < bytes_a_second(terminal) <= PLACEHOLDER
    finally:
        terminal.close()


def test_a_key_and_a_step_have_a_budget(large: Terminal) -> None:
    for visit in ("first", "again"):
        for key in STEPS:
            assert written(large, key) <= STEP, f"step {key}, {visit} visit"
    written(large, "2")
    for _ in range(6):
        assert written(large, "]") <= KEY


def test_a_step_that_is_asked_for_before_the_first_paint_is_shown() -> None:
    terminal = Terminal()
    try:
        terminal.read(b"Adapters")
        terminal.press("2")
        terminal.read(b"No adapters are marked")
    finally:
        terminal.close()


def test_moving_k_with_errors_in_the_cells_costs_few_bytes(places: tuple[Path, Path]) -> None:
    there = Terminal(*map(str, places), code=CHOOSING)
    try:
        there.read(b"task02")
        there.quiet()
        there.press("2")
        there.read(b"Explained variance")
        there.quiet()
        there.press("t")
        there.read(b"error of each module")
        there.quiet()
        for _ in range(3):
            there.press("]")
            written = len(there.read(seconds=2))
            assert 200 < written <= KEY  # the errors of all layers are others
    finally:
        there.close()
