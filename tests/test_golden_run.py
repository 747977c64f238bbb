"""The golden run: what is volatile goes, what is not stays, and every difference is shown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.golden_run import (
    Normaliser,
    Runner,
    describe,
    differences,
    main,
    needs,
    read_expected,
    report,
    run_all,
)
from tests.golden_steps import Step, demo_steps

normalise = Normaliser({"/tmp/w": "<work>", "/tmp/w/home": "<home>"}, "0.3.1")


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("written to /tmp/w/steps/a/out", "written to <work>/steps/a/out"),
        ("cache in /tmp/w/home/.cache", "cache in <home>/.cache"),
        ("finished in 14.5 s", "finished in <duration>"),
        ("took 310 ms, then 2 min", "took <duration>, then <duration>"),
        ("at 2025-03-04 10:11:12", "at <time>"),
        ('"time": 1761775200.25, "done": 3', '"time": <volatile>, "done": 3'),
        ('"seconds": 2e-05}', '"seconds": <volatile>}'),
        ("vlora-tui 0.3.1", "vlora-tui <version>"),
        ("made by 0.3.1.", "made by <version>."),
        ("[516181, 1795990208398239046]", "[516181, <ns>]"),
        ("finished in 2 min 3 s", "finished in <duration>"),
        ("20261129-222733-d9e3  finished  22:27:33", "<job>  finished  <time>"),
        (
            '{"seq": 1, "time": 1.5, "type": "started"}\n'
            '{"seq": 2, "time": 1.6, "type": "progress", "done": 1}\n'
            '{"seq": 3, "time": 1.7, "type": "finished"}\n',
            '{"seq": <seq>, "time": <volatile>, "type": "started"}\n'
            '{"seq": <seq>, "time": <volatile>, "type": "finished"}\n',
        ),
    ],
)
def test_what_changes_from_run_to_run_is_replaced(text: str, meant: str) -> None:
    assert normalise(text) == meant


@pytest.mark.parametrize(
    "text",
    [
        "error of dW  4.97 % on average, 4.98 % at worst",
        "on disk 907 kB of 9.6 MB (10.6x)",
        '"version": 1, "k": 16, "bytes": 516181',
        "10.3.1 and 0.3.11 are other versions",
        "model.layers.3.mlp.down_proj sv_fro 0.95",
        "18 tasks, 28 layers, 12 modules",
        "arXiv:2212.04089",
        '"seconds_of_text": 3',
    ],
)
def test_figures_stay(text: str) -> None:
    assert normalise(text) == text


def test_a_safetensors_file_is_told_tensor_by_tensor(tmp_path: Path) -> None:
    one, two = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    tensors = {"a": torch.zeros(2, 3), "b": torch.ones(4)}
    save_file(tensors, one, metadata={"by": "0.3.1"})
    save_file({**tensors, "b": torch.ones(4) * 2}, two, metadata={"by": "0.3.1"})
    first, second = (describe(path, normalise) for path in (one, two))
    assert first is not None
    assert second is not None
    changed = set(first.splitlines()) ^ set(second.splitlines())
    assert len(changed) == 2
    assert all(line.startswith("b F32 [4]") for line in changed)
    assert '"by": "<version>"' in first
    (tmp_path / "torn.safetensors").write_bytes(one.read_bytes()[:20])
    assert describe(tmp_path / "torn.safetensors", normalise) is None


def _record(**steps: dict[str, str]) -> dict[str, Any]:
    """A record of steps whose parts are given as text; the text "#..." is bytes without a text."""
    texts = {f"key of {text}": text for parts in steps.values() for text in parts.values()}
    return {
        "python": "3",
        "machine": "m",
        "scope": ["*", False],
        "texts": {key: text for key, text in texts.items() if not text.startswith("#")},
        "steps": {
            name: {
                "commands": [name],
                "parts": {part: f"key of {text}" for part, text in parts.items()},
            }
            for name, parts in steps.items()
        },
    }


BEFORE = _record(
    info={"exit": "0", "stdout": "k 8\nerror 5 %\n"},
    merge={"exit": "0", "file out/model.gguf": "#1"},
    gone={"exit": "0"},
)


def test_equal_records_do_not_differ() -> None:
    assert differences(BEFORE, BEFORE) == []
    assert report([]) == ""


def test_every_kind_of_difference_is_found() -> None:
    after = _record(
        info={"exit": "1", "stdout": "k 8\nerror 6 %\n"},
        merge={"exit": "0", "file out/model.gguf": "#2", "file out/extra": "x"},
        new={"exit": "0"},
    )
    found = differences(BEFORE, after)
    assert [(d.step, d.part) for d in found] == [
        ("info", "exit"),
        ("info", "stdout"),
        ("merge", "file out/model.gguf"),
        ("merge", "file out/extra"),
        ("gone", "step"),
        ("new", "step"),
    ]
    text = report(found)
    assert "-error 5 %" in text
    assert "+error 6 %" in text
    assert "the bytes differ" in text
    assert "only in the second record" in text


def test_a_quick_record_is_compared_on_the_steps_of_both() -> None:
    after = _record(info={"exit": "1", "stdout": "k 8\nerror 5 %\n"}, new={"exit": "0"})
    after["scope"] = ["*", True]
    assert [(d.step, d.part) for d in differences(BEFORE, after)] == [("info", "exit")]


def test_a_long_diff_is_cut() -> None:
    old = _record(a={"stdout": "".join(f"{i}\n" for i in range(99))})
    new = _record(a={"stdout": "".join(f"{i + 500}\n" for i in range(99))})
    text = report(differences(old, new), lines=10)
    assert len(text.splitlines()) == 13
    assert "lines more" in text


def test_one_line_of_json_is_compared_value_by_value() -> None:
    rows = {f"name{i}": i for i in range(40)}
    old = _record(a={"stdout": json.dumps(rows)})
    new = _record(a={"stdout": json.dumps({**rows, "name7": 70})})
    (found,) = differences(old, new)
    assert [line for line in found.diff.splitlines() if line[0] in "+-"] == [
        '- "name7": 7,',
        '+ "name7": 70,',
    ]


def test_what_is_expected_is_told_with_its_reason(tmp_path: Path) -> None:
    after = _record(
        info={"exit": "0", "stdout": "k 9\nerror 5 %\n"},
        merge={"exit": "2", "file out/model.gguf": "#2"},
        gone={"exit": "0"},
    )
    for name, record in (("a.json", BEFORE), ("b.json", after)):
        (tmp_path / name).write_text(json.dumps(record))
    expect = tmp_path / "expect"
    words = ["compare", str(tmp_path / "a.json"), str(tmp_path / "b.json")]
    assert main(words) == 1
    expect.write_text("# why\ninfo = k was wrong\nmerge: file * = another writer\n")
    assert main([*words, "--expect", str(expect)]) == 1  # the exit code of merge is not covered
    expect.write_text("info = k was wrong\nmerge = another writer\n")
    assert main([*words, "--expect", str(expect)]) == 0


def test_an_expectation_without_a_reason_is_refused() -> None:
    with pytest.raises(ValueError, match="line 1: expected PATTERN = reason"):
        read_expected("info\n")


def test_steps_run_after_those_that_they_use() -> None:
    steps = [
        Step("c", ["info @b/out"], files={"x.toml": 'path = "@a/sub"'}),
        Step("b", ["add sub"], copies={"sub": "@a/out"}),
        Step("a", ["demo out"]),
    ]
    assert needs(steps[0]) == {"a", "b"}
    order = [step.name for step, _ in run_all(steps, lambda step: {}, jobs=2)]
    assert order == ["a", "b", "c"]
    with pytest.raises(ValueError, match="no step makes: b"):
        list(run_all([steps[0], steps[2]], lambda step: {}))


def test_the_plan_is_sound() -> None:
    steps = demo_steps({"ties": ["density"], "dare": ["drop_rate", "seed"]})
    names = [step.name for step in steps]
    assert len(set(names)) == len(names)
    assert {name for step in steps for name in needs(step)} <= set(names)
    (dare,) = [step for step in steps if step.name == "merge-dare"]
    assert "--seed" in dare.lines[0]  # else every run draws anew


def test_a_step_keeps_what_it_printed_and_wrote(tmp_path: Path) -> None:
    runner = Runner(Path(__file__).resolve().parents[1], tmp_path)
    row = runner.step(Step("config", ["config path", "no-such-command"], files={"a/b": "c\n"}))
    assert list(row["parts"]) == [
        *("1 exit", "1 stdout", "1 stderr", "2 exit", "2 stdout", "2 stderr"),
        "file a/b",
    ]
    told = {part: runner.texts[key] for part, key in row["parts"].items()}
    assert (told["1 exit"], told["2 exit"], told["file a/b"]) == ("0", "2", "c\n")
    assert told["1 stdout"].startswith("<work>/homes/config/")
    assert "no-such-command" in told["2 stderr"]
