"""A sample of the monkey's keys (`make soak` sends 100,000), and that it would see a fault."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from tests.monkey import SIZES, TOUR, Alphabet, bytes_of, play
from vlora_tui.tui.app.keymap import all_bindings

KEYS = 100

BREAK = """
class Breaker:
    def find_spec(self, name, where, target=None):
        if name != "vlora_tui.tui.app.base_app":
            return None
        import importlib.util
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module
        def exec_module(module):
            execute(module)
            def broken(self):
                {broken}
            module.BaseApp.action_explain = broken
        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, Breaker())
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="it looks into /proc"),
]


@pytest.fixture
def folder(runs: Path, built: Path, tmp_path: Path) -> Path:
    """Four adapters and the subspace built of them."""
    there = Path(shutil.copytree(runs, tmp_path / "both"))
    shutil.copytree(built, there / "subspace")
    return there


@pytest.mark.parametrize("size", SIZES)
def test_random_keys_are_survived(size: str, folder: Path) -> None:
    outcome = play(KEYS, size, seed=7, adapters=folder, children=size == SIZES[0])
    assert outcome.faults == [], outcome.words()
    assert outcome.keys == KEYS
    assert f"{KEYS} keys" in outcome.words()
    assert outcome.late > 10_000_000  # it was a whole process that was measured


@pytest.mark.parametrize(
    "broken", ["raise ValueError('broken on purpose')", "self.exit(return_code=3)"]
)
def test_the_monkey_sees_a_fault(broken: str, folder: Path) -> None:
    assert "?" in TOUR
    outcome = play(1, "80x24", 1, folder, children=0, hook_more=BREAK.format(broken=broken))
    assert outcome.faults
    assert ("broken on purpose" if "raise" in broken else "exit code 3") in outcome.words()


def test_a_seed_repeats_its_keys() -> None:
    def keys(seed: int) -> list[str]:
        alphabet = Alphabet(seed, 80, 24)
        return [alphabet.key(may_quit=n < 1000) for n in range(3000)]

    assert keys(1) == keys(1)
    assert keys(1) != keys(2)
    sent = set(keys(3))
    for _, binding in all_bindings().values():
        for key in binding.key.split(","):
            assert bytes_of(key.strip()) in sent | {"q", "\x11"}, key
    assert not {"q", "\x11"} & set(keys(4)[1000:])
