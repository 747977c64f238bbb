"""The real program in a real terminal: tmux holds it, keys go in, the screen is read back.

Nothing waits for a length of time, only for what a screen or a file says, within a bound. A job is
held in its middle by the gate of the job tests. The folders lie in the test's home, so that the
screen shows them as ``~/demo`` however deep pytest has put them.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.app.jobs.conftest import CODED_LAYER, MODULES, Gate, kill, pid_of, state, until
from tests.witnesses import make
from tests.witnesses.files import tree
from vlora_engine.catalog.read import read_manifest
from vlora_engine.demo import demo_base_config, make_demo_collection
from vlora_tui.jobs import Job, JobStore, State, start, wait

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed"),
]

ROOT = Path(__file__).resolve().parents[3]
PATIENCE = 60.0  # for one screen; only a broken test waits so long
JOB_PATIENCE = 300.0  # for the end of a job on a machine that others use too
LOOK_SECONDS = 0.1


class Terminal:
    """The program in a terminal, on a tmux server of its own."""

    def __init__(self, place: Path, *words: object, size: tuple[int, int] = (120, 36)) -> None:
        self._server = f"vlora-{uuid.uuid4().hex[:12]}"
        self._environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("TMUX")},
            "LC_ALL": "C.UTF-8",
            "TMUX_TMPDIR": str(place),  # the socket's path must be short
            "PYTHONPATH": os.pathsep.join(
                [*filter(None, [os.environ.get("PYTHONPATH")]), str(ROOT), str(ROOT / "engine")]
            ),
        }
        self._last = ""
        program = [sys.executable, "-m", "vlora_tui", *map(str, words)]
        columns, lines = map(str, size)
        done = self._tmux("new-session", "-d", "-x", columns, "-y", lines, *program)
        assert done.returncode == 0, done.stderr
        self.pid = int(self._tmux("display-message", "-p", "#{pane_pid}").stdout)

    def _tmux(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["tmux", "-u", "-f", os.devnull, "-L", self._server, *words],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            timeout=PATIENCE,
        )

    @property
    def screen(self) -> str:
        """What is to be seen now; empty once the program has ended."""
        done = self._tmux("capture-pane", "-p")
        if done.returncode != 0:
            return ""
        self._last = done.stdout.rstrip("\n")
        return self._last

    def until(self, holds: Callable[[str], object], what: str, patience: float = PATIENCE) -> str:
        """Look at the screen until ``holds(screen)``; the screen that it was."""
        __tracebackhide__ = True
        end = time.monotonic() + patience
        while not holds(screen := self.screen):
            if time.monotonic() > end:
                pytest.fail(f"in {patience:.0f} s it never came to this: {what}\n{self._last}")
            time.sleep(LOOK_SECONDS)
        return screen

    def sees(self, *texts: str) -> str:
        """Wait until all of ``texts`` are to be seen together."""
        __tracebackhide__ = True
        return self.until(lambda screen: all(text in screen for text in texts), " and ".join(texts))

    def press(self, *keys: str) -> None:
        """Press keys, by tmux's names."""
        assert self._tmux("send-keys", *keys).returncode == 0, self._last

    def type(self, text: str) -> None:
        """Type text, letter for letter."""
        assert self._tmux("send-keys", "-l", text).returncode == 0, self._last

    def send(self, sent: bytes) -> None:
        """Let the terminal send bytes, whatever they are."""
        words = [f"{byte:02x}" for byte in sent]
        assert self._tmux("send-keys", "-H", *words).returncode == 0, self._last

    def has_ended(self) -> None:
        """Wait until the program has ended, and with it its terminal."""
        __tracebackhide__ = True
        self.until(lambda _: self._tmux("has-session").returncode != 0, "the program ended")

    def close(self) -> None:
        """End the server and what runs in it."""
        self._tmux("kill-server")


Open = Callable[..., Terminal]


@pytest.fixture
def terminal() -> Iterator[Open]:
    """Open the program on words of its command line: ``terminal(folder)``."""
    opened: list[Terminal] = []
    with tempfile.TemporaryDirectory(prefix="vlora-tmux-") as place:

        def open_one(*words: object, size: tuple[int, int] = (120, 36)) -> Terminal:
            opened.append(Terminal(Path(place), *words, size=size))
            return opened[-1]

        yield open_one
        for one in opened:
            one.close()


@pytest.fixture
def store(home: Path) -> Iterator[JobStore]:
    """The jobs of this test's home; whatever still runs at the end is killed."""
    store = JobStore.open()
    yield store
    for job in store.jobs():
        kill(job)


@pytest.fixture
def gate(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Gate:
    """Holds the job at a layer; the spectra of Choose k pass it."""
    return Gate(tmp_path_factory.mktemp("gate"), monkeypatch)


def choose_k(tui: Terminal, layers: int, k: int) -> None:
    """From a marked set to the Run screen, with k for every module."""
    tui.press("2")
    tui.until(
        lambda screen: f"median of {layers} modules" in screen and "job:" not in screen,
        "the spectra of all modules, and their job ended",
    )
    for method in ("own", "columns", "flat", "delta"):  # m goes round; auto has no k
        tui.press("m")
        tui.until(
            lambda screen, method=method: re.search(rf"now\s+{method}\b", screen) is not None,
            f"the method {method}",
        )
    tui.press("=")
    tui.sees("1 to ")
    tui.type(str(k))
    tui.press("Enter")
    tui.sees(f"delta, k {k}: ", "[ w Build ]")
    tui.press("3")
    tui.sees(f"k = {k} for every module")


def run_job(tui: Terminal) -> None:
    """Start what the Run screen offers, and wait for its end."""
    tui.press("w")
    sees_the_end(tui)


def sees_the_end(tui: Terminal) -> None:
    """Wait until the list of jobs says that the build has finished."""
    tui.until(re.compile(r"finished +\d+ adapters -> ").search, "the job finished")


def test_from_the_demo_folder_to_an_adapter_that_peft_loads(
    terminal: Open, store: JobStore, home: Path
) -> None:
    demo = make_demo_collection(home / "demo").path
    tui = terminal(demo)
    tui.sees("19 found", "not checked")
    tui.press("/")
    tui.until(lambda screen: "* Group" not in screen, "the filter is open")
    tui.type("support-bot")
    tui.sees("4 of 19 shown")
    tui.press("Enter")
    tui.sees("4 of 19 shown", "* Group")
    tui.press("+")
    tui.sees("4 adapters")

    choose_k(tui, 28, 8)
    run_job(tui)
    tui.press("v")
    tui.sees("Tasks of support-bot-subspace", "Layers of all tasks")
    tui.press("5")
    tui.sees("Tasks of support-bot-subspace")
    tui.press("BTab", "BTab")  # to the preview
    tui.sees("Each is a folder with", "apters/checkpoint-500", "new")
    tui.press("w")
    tui.sees("4 written", "4 read back, the same", "v Open")
    tui.press("q")
    tui.has_ended()

    written = [path.parent for path in demo.glob("support-bot-subspace-*/*/adapter_config.json")]
    assert sorted(path.name for path in written) == [
        f"checkpoint-{step}" for step in (1000, 1500, 2000, 500)
    ]
    assert [path for path in demo.rglob("*") if ".part-" in path.name] == []
    import peft
    import torch
    import transformers

    torch.manual_seed(0)
    base = transformers.LlamaForCausalLM(transformers.LlamaConfig(**demo_base_config())).eval()
    tokens = torch.arange(1, 9).reshape(1, 8)
    with torch.no_grad():
        before = base(tokens).logits
        exported = next(path for path in written if path.name == "checkpoint-2000")
        model = peft.PeftModel.from_pretrained(base, exported).eval()
        after = model(tokens).logits
    assert torch.isfinite(after).all()
    assert not torch.equal(before, after)


def test_the_same_way_with_real_adapters(
    terminal: Open, store: JobStore, real_adapters: Path, home: Path
) -> None:
    source = real_adapters / "gpt2-medical-sports-legal"
    folder = Path(shutil.copytree(source, home / "gpt2"))
    count = len(list(folder.glob("*/adapter_config.json")))
    tui = terminal(folder)
    tui.sees(f"{count} found", "* Group")
    tui.press("*")
    tui.sees(f"{count} adapters ·")
    choose_k(tui, 36, 8)
    run_job(tui)
    tui.press("v")
    tui.sees("Layers of all tasks")
    tui.press("q")
    tui.has_ended()
    built = next(job for job in store.jobs() if job.info.kind != "spectra")
    manifest = read_manifest(Path(built.recipe().output or ""))
    assert len(manifest.tasks) == count
    assert len(manifest.layers) == 36
    assert {(layer.k_a, layer.k_b) for layer in manifest.layers} == {(8, 8)}


# Each key, and what the screen says of it at that moment, for who has never seen the program.
DEMO_STORY = (
    ("Enter marks all that fit", "Enter"),
    ("19 marked", "[ 2 Choose k ]", "2"),
    ("broken-nan", "The adapter holds NaN", "Enter select", "skip and continue", "Enter"),
    ("auto, worst 5 %", "smaller than the originals", "[ w Build ]", "w"),
    ("18 adapters", "verified, worst", "[ e Evaluate ]", "e"),
    ("made by the demo", "[ w Evaluate 18 tasks ]", "w"),
    ("Same next token", "[ E Export ]", "E"),
    ("18 of 18 marked", "[ w Write 18 adapters ]", "w"),
)
ONE_STORY = (
    ("Enter marks all that fit", "Enter"),
    ("9 marked", "[ 2 Choose k ]", "2"),
    ("auto, worst 5 %", "smaller than the originals", "[ w Build ]", "w"),
    ("9 adapters", "verified, worst", "[ E Export ]", "E"),
    ("9 of 9 marked", "+ all or none", "+"),
    ("0 of 9 marked", "Space marks one", "Space"),
    ("1 of 9 marked", "[ w Write 1 adapter ]", "w"),
)
MOST_KEYS = 12


def walk(tui: Terminal, story: tuple[tuple[str, ...], ...]) -> None:
    """Press the keys of a story, each once the screen has said it and no job is under way."""
    assert len(story) <= MOST_KEYS
    for *said, key in story:
        tui.until(
            lambda screen, said=said: (
                all(text in screen for text in said)
                and ("skip and continue" in said or "job:" not in screen)
            ),
            " and ".join(said),
            JOB_PATIENCE,
        )
        tui.press(key)


def test_from_the_demo_to_an_evaluated_and_exported_adapter(
    terminal: Open, store: JobStore, home: Path
) -> None:
    tui = terminal("demo", home / "demo")
    walk(tui, DEMO_STORY)
    tui.until(lambda screen: "Done: 18 written" in screen, "all are written", JOB_PATIENCE)
    screen = tui.sees("18 read back, the same", "[ v Open result ]")
    assert "[ Writing ]" not in screen
    exported = list((home / "demo").glob("adapters-subspace-adapters/*/adapter_config.json"))
    assert len(exported) == 18
    kinds = {job.info.kind: wait(job, PATIENCE).state for job in store.jobs()}
    assert kinds["eval"] is State.FINISHED


def test_on_a_small_terminal_one_adapter_is_exported_of_what_was_built(
    terminal: Open, store: JobStore, home: Path
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


def test_after_a_suspension_the_whole_screen_is_there_again(terminal: Open, home: Path) -> None:
    for i in range(3):
        make.write(home / "runs" / f"task{i}", make.factors(MODULES, seed=i))
    tui = terminal(home / "runs")
    before = tui.sees("3 found", "Details", "q Quit")
    tui.press("C-z")  # there is no shell here: tmux wakes what has stopped

    def moved(screen: str) -> bool:
        if "▌  task2" in screen:
            return True
        tui.press("Down")  # again: what was typed meanwhile is lost with the terminal's queue
        return False

    tui.until(moved, "the cursor on the last row")
    whole = [line for line in before.splitlines() if "task" not in line]
    tui.until(
        lambda screen: [line for line in screen.splitlines() if "task" not in line] == whole,
        "everything that was there before",
    )


def test_bytes_that_are_no_keys_end_nothing(terminal: Open, home: Path) -> None:
    make.collection(home / "runs", 2)
    tui = terminal(home / "runs")
    tui.sees("2 adapters found")

    tui.send(b"\xff\xfe\xc3")  # no UTF-8: another terminal's letters, or a file of bytes
    tui.send(b"\x1b[200~a\x1b[31mq\rq\r\x1b[201~")  # a paste with an escape sequence
    tui.send(b"\x1b[<0;99999;99999M\x1b[999999999999999999;5u\x1b[1;1R")
    tui.press("?")

    tui.sees("Step 1, Adapters")


@pytest.fixture
def held(terminal: Open, store: JobStore, gate: Gate, home: Path) -> tuple[Terminal, Job, Path]:
    """The program with four adapters of a folder marked, and its job held after two layers."""
    folder = home / "runs"
    for i in range(4):
        make.write(folder / f"task{i}", make.factors(MODULES, seed=i))
    gate.close_after(CODED_LAYER, 2)
    tui = terminal(folder)
    tui.sees("4 found", "* Group")
    tui.press("*")
    tui.sees("4 adapters ·")
    tui.press("3")
    tui.sees("Ready to run", "4 adapters")
    tui.press("w")
    gate.reached()
    tui.sees("running", "job: ")
    gate.no_more()
    (job,) = store.jobs()
    return tui, job, folder


def undisturbed(store: JobStore, job: Job) -> dict[str, bytes]:
    """What the recipe of this job makes when nobody disturbs it, in a place as deep."""
    output = Path(job.recipe().output or "")
    place = output.with_name("undisturbed")
    again = start(store, replace(job.recipe(), output=str(place)))
    assert wait(again, PATIENCE).state is State.FINISHED, again.log_tail()
    return tree(place)


def test_quitting_asks_about_a_job_and_the_next_session_finds_it(
    terminal: Open, store: JobStore, gate: Gate, held: tuple[Terminal, Job, Path]
) -> None:
    tui, job, folder = held
    tui.press("q")
    tui.sees("A job is running", "leave it running", "cancel it", "stay")
    tui.press("s")
    tui.until(lambda screen: "leave it running" not in screen, "the dialog is gone")
    tui.sees("job: ")
    tui.press("q")
    tui.sees("leave it running")
    tui.press("l")
    tui.has_ended()
    assert state(job) == "running"

    later = terminal(folder)
    later.sees("4 found", "job: ")
    later.press("3")
    later.sees("running", job.id)
    gate.release()
    sees_the_end(later)
    later.press("q")
    later.has_ended()
    assert wait(job, PATIENCE).state is State.FINISHED
    assert tree(Path(job.recipe().output or "")) == undisturbed(store, job)


def test_quitting_can_cancel_the_job_and_keep_its_layers(
    store: JobStore, gate: Gate, held: tuple[Terminal, Job, Path]
) -> None:
    tui, job, _ = held
    tui.press("q")
    tui.sees("leave it running", "cancel it")
    tui.press("c")
    tui.has_ended()
    gate.release()
    assert wait(job, PATIENCE).state is State.CANCELLED
    assert job.kept_layers() == 2
    assert not Path(job.recipe().output or "").exists()


@pytest.mark.parametrize("end", ["killed", "terminal closed"])
def test_a_job_outlives_its_interface(
    end: str, store: JobStore, gate: Gate, held: tuple[Terminal, Job, Path]
) -> None:
    tui, job, _ = held
    assert tui.pid != pid_of(job)
    if end == "killed":
        os.kill(tui.pid, signal.SIGKILL)
    else:
        tui.close()
    until(lambda: is_gone(tui.pid), "the interface was gone")
    assert state(job) == "running"
    assert not Path(job.recipe().output or "").exists()
    gate.release()
    assert wait(job, PATIENCE).state is State.FINISHED, job.log_tail()
    assert tree(Path(job.recipe().output or "")) == undisturbed(store, job)


def is_gone(pid: int) -> bool:
    """Ended, though perhaps nobody has asked for its exit status."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True
