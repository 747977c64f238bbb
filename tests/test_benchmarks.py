"""The parts of `make bench` are there, and the clock of the first paint goes by the terminal."""

from __future__ import annotations

import importlib
import sys
import time
from pathlib import Path

import pytest

from tests.benchmarks.first_paint import seconds_until
from tests.benchmarks.growth import LEAST, exponent
from tests.benchmarks.measure import Bench, ChildFailed
from tests.benchmarks.run import SECTIONS
from tests.witnesses import make
from tests.witnesses.train import Trained
from vlora_engine.catalog.open import load_adapter
from vlora_engine.targets.save import save_adapter
from vlora_tui.pipeline.inputs import gather_adapters
from vlora_tui.recipe.model import named_inputs


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(quick=True, big=False, data=tmp_path, scratch=tmp_path, adapters=tmp_path)


@pytest.mark.parametrize("name", SECTIONS)
def test_every_part_can_be_run_by_its_name(name: str) -> None:
    assert callable(importlib.import_module(f"tests.benchmarks.{name}").section)


def test_what_the_interface_takes_is_a_part() -> None:
    assert {"first_paint", "choose_key"} <= set(SECTIONS)


def test_a_word_counts_from_when_it_is_on_the_terminal(bench: Bench) -> None:
    code = "print('one', flush=True); print('two' * 10**6, flush=True); print('three')"
    begun = time.perf_counter()
    one, two, three = seconds_until(bench, [sys.executable, "-c", code], ["one", "two", "three"])
    assert 0 < one <= two < three < time.perf_counter() - begun


def test_the_program_sees_a_terminal_of_the_right_size(bench: Bench) -> None:
    code = "import os; print(*os.get_terminal_size(), os.isatty(0), os.environ.get('NO_COLOR'))"
    seconds_until(bench, [sys.executable, "-c", code], ["120 36 True None"])


def test_a_program_that_paints_nothing_is_a_failure(bench: Bench) -> None:
    with pytest.raises(ChildFailed, match="no such luck"):
        seconds_until(bench, [sys.executable, "-c", "print('no such luck')"], ["Adapters"])


@pytest.mark.parametrize("power", [0.0, 1.0, 1.7])
def test_growth_is_fitted_over_what_is_no_fixed_cost(power: float) -> None:
    sizes = [1, 4, 16, 64]
    seconds = [LEAST * 2 * size**power for size in sizes]
    assert exponent(sizes, seconds) == pytest.approx(power, abs=1e-12)
    assert exponent([1e-3, *sizes], [LEAST / 2, *seconds]) == pytest.approx(power, abs=1e-12)
    assert exponent(sizes, [LEAST / 2] * 3 + [9.0]) is None, "one figure has no growth"


def test_anyones_reconstructions_are_measured_on_the_model_by_the_same_lines(
    trained: Trained, tmp_path: Path
) -> None:
    pytest.importorskip("peft")
    from tests.benchmarks.model import measure, with_factors
    from vlora_engine.nn.peft_model import load_base

    base = load_base(trained.base)
    originals = {task: trained.adapter(task) for task in trained.tasks}
    halved, saved = {}, {}
    for task, path in originals.items():
        weights = load_adapter(path)
        factors = {n: (weights.lora_a[n], weights.lora_b[n] / 2) for n in weights.layer_names}
        halved[task] = with_factors(weights, factors)
        saved[task] = save_adapter(halved[task], tmp_path / task)
    texts = trained.path / "texts"
    found = measure(base, originals, halved, texts, max_tokens=300)
    assert found == measure(base, originals, saved, texts, max_tokens=300)
    assert 0.01 < found["kl"] <= found["kl_worst"] < found["control_kl"]
    assert found["gain_kept_least"] <= found["gain_kept"] < 1
    assert found["worst_task"] in originals
    assert found["control_fails"]
    same = measure(base, originals, originals, texts, max_tokens=300)
    assert (same["kl_worst"], same["agreement"], same["gain_kept_least"]) == (0, 1, 1)
    with pytest.raises(ValueError, match="no factors"):
        with_factors(weights, {})


@pytest.mark.peers
def test_the_first_librarys_tables_are_true_of_adapters_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("vlora")
    from tests.benchmarks import real

    make.collection(tmp_path / "runs", 5, noise=0.5)
    sources = gather_adapters(named_inputs([str(tmp_path / "runs")])).adapters
    ours = real.Real("made", sources, tmp_path)
    by_k, lost, sizes = (table(ours) for table in (real.variance, real.error, real.size))
    assert [row[0] for row in by_k.rows] == [row[0] for row in lost.rows] == ["1", "2", "4"]
    shares = [row[1] for row in by_k.rows]
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1)  # five rows without their mean have four directions
    for row in lost.rows:
        its, flat = row[2], row[5]
        assert its == flat, "our flat is its arithmetic"
    assert [row[0] for row in sizes.rows] == ["5", "8", "100", "1000"]
    assert [row[-1] for row in sizes.rows] == ["built", *["computed"] * 3]
    assert [row[3] for row in sizes.rows[1:]] == ["unknown"] * 3
    assert [row[5] for row in sizes.rows[1:]] == [None] * 3
    assert real.main([str(tmp_path / "runs")]) == 0
    said = capsys.readouterr().out
    assert said.count("given: ") == 3
    assert real.main([str(tmp_path / "nothing")]) == 2
