"""The examples in docs/examples run as they stand, on what they make themselves, offline."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.witnesses import make

FOLDER = ROOT / "docs" / "examples"

pytest.importorskip("transformers")


def run(name: str, *arguments: object) -> None:
    runpy.run_path(str(FOLDER / name))["main"]([str(word) for word in arguments])


def test_the_notebook_runs_from_top_to_bottom(capsys: pytest.CaptureFixture[str]) -> None:
    book = json.loads((FOLDER / "quickstart.ipynb").read_text("utf-8"))
    assert (book["nbformat"], book["nbformat_minor"]) == (4, 5)
    ids = [cell["id"] for cell in book["cells"]]
    assert len(set(ids)) == len(ids)
    found: dict[str, Any] = {}
    for cell in book["cells"]:
        assert {"id", "cell_type", "metadata", "source"} <= cell.keys()
        if cell["cell_type"] == "code":
            assert (cell["outputs"], cell["execution_count"]) == ([], None)
            exec(compile("".join(cell["source"]), f"quickstart {cell['id']}", "exec"), found)
        else:
            assert cell["cell_type"] == "markdown"
    assert found["subspace"].method == "auto"
    assert found["losses"][-1] < found["losses"][0]
    assert "trained" in found["SharedSubspace"].load(found["work"] / "with-trained").tasks
    assert "largest error" in capsys.readouterr().out


def test_the_pipeline_on_a_4_bit_base(capsys: pytest.CaptureFixture[str]) -> None:
    run("qlora_pipeline.py")
    said = capsys.readouterr().out
    before, after = map(float, re.findall(r"loss ([\d.]+) -> ([\d.]+)", said)[-1])
    assert after < before
    assert "5. train" in said


def test_the_pipeline_on_adapters_and_a_base_that_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("peft")
    shape = {"hidden_size": 96, "num_key_value_heads": 2}
    make.tiny_llama(**shape).save_pretrained(tmp_path / "base")
    paths = []
    for seed in range(3):
        model = make.peft_model(make.tiny_llama(**shape), ["q_proj", "v_proj"], seed + 1, r=8)
        model.save_pretrained(tmp_path / f"task{seed}", save_embedding_layers=False)
        paths.append(tmp_path / f"task{seed}")
    run("qlora_pipeline.py", *paths, "--base", tmp_path / "base")
    assert "task2: loss" in capsys.readouterr().out


def test_measuring_adapters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("real_adapters.py")
    said = capsys.readouterr().out
    assert "french: rank 8, error 4.9" in said
    run("real_adapters.py", *make.collection(tmp_path, 3))
    assert "3 adapters, 4 modules" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        run("real_adapters.py", tmp_path)
