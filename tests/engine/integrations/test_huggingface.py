"""transformers' Trainer trains the loadings of one task with the callback, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.engine.nn.tiny_models import LLAMA, TOKENS, logits, peft_adapters, whole
from tests.witnesses import make
from vlora_engine import SharedSubspace, VLoRAModel, orthogonal_init
from vlora_engine.errors import ParameterError
from vlora_engine.nn.hooks import LoRAHook

pytest.importorskip("peft")
pytest.importorskip("accelerate")

from transformers import Trainer, TrainingArguments

from vlora_engine.integrations.huggingface import VLoRACallback


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return peft_adapters(tmp_path_factory.mktemp("llama"), make.tiny_llama, LLAMA)


def data() -> list[dict[str, Any]]:
    return [{"input_ids": row, "labels": row} for row in TOKENS.repeat(8, 1)]


def trainer_for(
    subspace: SharedSubspace, model: Any, folder: Path, **options: Any
) -> tuple[Trainer, VLoRACallback]:
    settings: dict[str, Any] = {
        "max_steps": 6,
        "per_device_train_batch_size": 4,
        "save_strategy": "no",
        "logging_steps": 1,
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        **options,
    }
    arguments = TrainingArguments(output_dir=str(folder / "out"), **settings)
    callback = VLoRACallback(subspace, "new", lr=0.1, log_every=2)
    return Trainer(model, arguments, train_dataset=data(), callbacks=[callback]), callback


def new_task(adapters: dict[str, Path]) -> SharedSubspace:
    subspace = whole(adapters)
    orthogonal_init(subspace, "new")
    return subspace


def losses(trainer: Trainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("accumulation", [1, 2])  # the second with checkpointed activations, too
def test_the_loss_falls_and_the_task_says_what_was_trained(
    adapters: dict[str, Path], tmp_path: Path, accumulation: int
) -> None:
    subspace, base = new_task(adapters), make.tiny_llama()
    before = {name: t.clone() for name, t in base.state_dict().items()}
    trainer, callback = trainer_for(
        subspace,
        base,
        tmp_path,
        gradient_accumulation_steps=accumulation,
        gradient_checkpointing=accumulation > 1,
    )
    assert callback.trainer is None  # as in the first library, before training begins
    seen: list[torch.Tensor] = []
    written = callback.on_train_end
    callback.on_train_end = lambda *a, **k: (seen.append(logits(base.eval())), written(*a, **k))[1]
    trainer.train()
    assert losses(trainer)[-1] < losses(trainer)[0] - 0.05
    assert callback.trainer is not None
    assert callback.trainer.step_count == 6
    assert [e["vlora/step"] for e in trainer.state.log_history if "vlora/step" in e] == [2, 4, 6]
    state = base.state_dict()
    assert state.keys() == before.keys()
    assert all(torch.equal(before[name], t) for name, t in state.items())
    assert all(p.requires_grad for p in base.parameters())
    hooks = [hook for module in base.modules() for hook in module._forward_hooks.values()]
    assert not any(isinstance(hook, LoRAHook) for hook in hooks)
    subspace.save(tmp_path / "subspace")
    for own in (subspace, SharedSubspace.load(tmp_path / "subspace")):
        model = VLoRAModel(make.tiny_llama(), own)
        model.set_task("new")
        torch.testing.assert_close(logits(model), seen[0], rtol=0, atol=1e-5)


def test_accumulated_steps_are_those_of_a_larger_batch(
    adapters: dict[str, Path], tmp_path: Path
) -> None:
    found = []
    for size, accumulation in ((8, 1), (4, 2)):
        subspace = new_task(adapters)
        options = {
            "per_device_train_batch_size": size,
            "gradient_accumulation_steps": accumulation,
        }
        trainer, callback = trainer_for(subspace, make.tiny_llama(), tmp_path, **options)
        trainer.train()
        found.append({name: p.detach().clone() for name, p in callback.trainer.params.items()})
    for name, parameter in found[0].items():
        torch.testing.assert_close(parameter, found[1][name], rtol=1e-3, atol=1e-4)


def test_training_resumes_from_the_trainers_checkpoint(
    adapters: dict[str, Path], tmp_path: Path
) -> None:
    straight = new_task(adapters)
    options = {"save_strategy": "steps", "save_steps": 3}
    trainer, _ = trainer_for(straight, make.tiny_llama(), tmp_path, **options)
    trainer.train()
    resumed = new_task(adapters)
    trainer, callback = trainer_for(resumed, make.tiny_llama(), tmp_path, **options)
    trainer.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-3"))
    assert callback.trainer.step_count == 3  # of this run
    one, other = straight.tasks["new"], resumed.tasks["new"]
    for name, loadings in one.loadings_b.items():
        torch.testing.assert_close(loadings, other.loadings_b[name], rtol=1e-4, atol=1e-6)


def test_what_the_trainer_would_train_otherwise_is_refused(
    adapters: dict[str, Path], tmp_path: Path
) -> None:
    subspace = new_task(adapters)
    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=1, report_to=[], use_cpu=True, disable_tqdm=True
    )
    late = Trainer(make.tiny_llama(), arguments, train_dataset=data())
    late.add_callback(VLoRACallback(subspace, "new"))
    with pytest.raises(ParameterError, match="does not hold the loadings"):
        late.train()
    base = make.tiny_llama()
    own = torch.optim.SGD(base.parameters(), lr=0.1)
    theirs = Trainer(
        base,
        arguments,
        train_dataset=data(),
        callbacks=[VLoRACallback(subspace, "new")],
        optimizers=(own, None),
    )
    with pytest.raises(ParameterError, match="does not hold the loadings"):
        theirs.train()


def test_a_wrapped_model_may_be_given_too(adapters: dict[str, Path], tmp_path: Path) -> None:
    subspace = new_task(adapters)
    model = VLoRAModel(make.tiny_llama(), subspace)
    trainer, _ = trainer_for(subspace, model, tmp_path)
    trainer.train()
    assert losses(trainer)[-1] < losses(trainer)[0] - 0.05
    model.set_task("new")  # its hooks are still there
    plain = make.tiny_llama()
    assert float((logits(model) - logits(plain)).abs().max()) > 1e-2


@pytest.mark.parametrize("method", ["auto", "own"])
def test_a_coded_collection_is_trained_in_its_basis(
    adapters: dict[str, Path], tmp_path: Path, method: str
) -> None:
    whole(adapters, method).save(tmp_path / "subspace")
    subspace = SharedSubspace.load(tmp_path / "subspace")
    before = {name: subspace.reconstruct(name) for name in subspace.tasks}
    orthogonal_init(subspace, "new")
    base = make.tiny_llama()
    trainer, callback = trainer_for(subspace, base, tmp_path)
    seen: list[torch.Tensor] = []
    written = callback.on_train_end
    callback.on_train_end = lambda *a, **k: (seen.append(logits(base.eval())), written(*a, **k))[1]
    trainer.train()
    assert losses(trainer)[-1] < losses(trainer)[0] - 0.05
    assert callback.trainer is not None
    assert callback.trainer.step_count == 6
    subspace.save(tmp_path / "subspace")
    again = SharedSubspace.load(tmp_path / "subspace")
    assert again.tasks.record("new").in_basis
    for name, weights in before.items():  # the others are coded as they were
        for module, factor in weights.lora_a.items():
            assert torch.equal(factor, again.reconstruct(name).lora_a[module])
    model = VLoRAModel(make.tiny_llama(), again)
    model.set_task("new")
    torch.testing.assert_close(logits(model), seen[0], rtol=0, atol=5e-3)  # stored as fp16
