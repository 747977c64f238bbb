"""The trainer of the suite's own adapters: it learns, and it writes what PEFT writes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.witnesses import train
from tests.witnesses.train import Trained
from vlora_engine.catalog.open import open_adapter

pytest.importorskip("peft")


def test_every_adapter_learns_its_task(trained: Trained) -> None:
    assert len(trained.losses) == 4
    for task, (before, after) in trained.losses.items():
        assert after < before - 0.2, task


def test_the_adapters_are_peft_directories_of_one_base(trained: Trained) -> None:
    for task in trained.tasks:
        source = open_adapter(trained.adapter(task))
        assert len(source.modules) == 2 * len(train.TARGETS)
        assert {shape.rank for shape in source.modules.values()} == {train.RANK}
        assert source.config["base_model_name_or_path"] == "tiny-byte-llama"


def test_an_adapter_belongs_to_its_own_task(trained: Trained) -> None:
    from peft import PeftModel
    from transformers import LlamaForCausalLM

    base = LlamaForCausalLM.from_pretrained(trained.base)
    model = PeftModel.from_pretrained(base, trained.adapter("reverse"))
    own = train.loss_on(model, trained.text("reverse").read_bytes())
    assert own == pytest.approx(trained.losses["reverse"][1], rel=1e-5)
    assert train.loss_on(model, trained.text("upper").read_bytes()) > own + 0.5


def test_training_again_gives_the_same_tensors(tmp_path: Path) -> None:
    made = [
        train.train(tmp_path / name, ["add"], base_steps=4, steps=4) for name in ("one", "other")
    ]
    one, other = (load_file(t.adapter("add") / "adapter_model.safetensors") for t in made)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert made[0].losses == made[1].losses
    # what came to its end is found again; what did not is not
    assert train.trained(tmp_path / "one") == made[0]
    (tmp_path / "one" / "losses.json").unlink()
    assert train.trained(tmp_path / "one") is None


def test_a_text_depends_on_its_seed_alone() -> None:
    for task in train.TASKS:
        assert train.text_of(task, 5000, seed=1) != train.text_of(task, 5000, seed=2)
        assert train.text_of(task, 5000, seed=2) == train.text_of(task, 5000, seed=2)
