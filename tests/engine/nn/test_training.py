"""Training in a subspace: the loss falls, and nothing but the loadings moves."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.engine.nn.tiny_models import LLAMA, TOKENS, logits, on_every_device, peft_adapters, whole
from tests.witnesses import make, train
from tests.witnesses.train import Trained
from vlora_engine import SharedSubspace, SubspaceTrainer, VLoRAModel, orthogonal_init
from vlora_engine.errors import NotFoundError, ParameterError

pytest.importorskip("peft")


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return peft_adapters(tmp_path_factory.mktemp("llama"), make.tiny_llama, LLAMA)


def steps(model: VLoRAModel, trainer: SubspaceTrainer, count: int) -> list[float]:
    """Steps towards repeating one text."""
    tokens = TOKENS.to(next(model.base_model.parameters()).device)
    return [trainer.step(model(input_ids=tokens, labels=tokens).loss) for _ in range(count)]


def files(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*.safetensors")
    }


@on_every_device
@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
@pytest.mark.parametrize("expand", [0, 3])
@pytest.mark.parametrize("method", ["delta", "columns", "flat"])
def test_what_was_learned_is_what_the_task_says_afterwards(
    adapters: dict[str, Path], tmp_path: Path, method: str, expand: int, dtype: str, device: str
) -> None:
    k = {"flat": 2}.get(method, 5)
    subspace = whole(adapters, method, num_components=k, dtype=dtype)
    subspace.save(tmp_path / "subspace")
    before = files(tmp_path / "subspace")
    orthogonal_init(subspace, "new", scale=0.1)
    trainer = SubspaceTrainer(subspace, "new", lr=0.1, num_expand=expand)
    base = make.tiny_llama().to(device)
    weights = {name: t.clone() for name, t in base.state_dict().items()}
    model = VLoRAModel(base, subspace)
    with model.train_task(trainer):
        losses = steps(model, trainer, 12)
        learned = logits(model)
        assert not any(p.requires_grad for p in base.parameters())
    assert all(p.requires_grad for p in base.parameters())
    assert losses[-1] < losses[0] - 0.02
    assert trainer.step_count == 12
    assert all(torch.equal(weights[name], t) for name, t in base.state_dict().items())
    trainer.write_back()
    near = 1e-5 if dtype == "fp32" or expand else 2e-2
    model.set_task("new")
    assert float((logits(model) - learned).abs().max()) < near
    assert subspace.tasks.record("new").error < (1e-5 if dtype == "fp32" or expand else 2e-3)
    subspace.save(tmp_path / "subspace")
    after = files(tmp_path / "subspace")
    assert before.items() <= after.items(), "the bases or another task changed"
    assert len(after) == len(before) + 1
    again = VLoRAModel(make.tiny_llama().to(device), SharedSubspace.load(tmp_path / "subspace"))
    again.set_task("new")
    assert float((logits(again) - learned).abs().max()) < near


def test_an_existing_task_is_trained_further(adapters: dict[str, Path]) -> None:
    subspace = whole(adapters)
    model = VLoRAModel(make.tiny_llama(), subspace)
    model.set_task("task1")
    before = logits(model)
    trainer = SubspaceTrainer(subspace, "task1", lr=0.02, num_expand=2)
    with model.train_task(trainer):
        assert float((logits(model) - before).abs().max()) < 1e-5, "expanding changed the task"
        losses = steps(model, trainer, 5)
    assert losses[-1] < losses[0]
    model.set_task("task1")
    assert torch.equal(logits(model), before), "not written back yet"
    trainer.write_back()
    model.set_task("task1")
    assert float((logits(model) - before).abs().max()) > 1e-3
    record = subspace.tasks.record("task1")
    assert (record.source, record.digest) == (None, "")  # it is no copy of that adapter any more
    with pytest.raises(ParameterError, match="no loadings to train"):
        SubspaceTrainer(subspace, "task1")


def test_the_gradient_is_that_of_peft_chained_to_the_loadings(adapters: dict[str, Path]) -> None:
    from peft import PeftModel

    subspace = whole(adapters)
    trainer = SubspaceTrainer(subspace, "task0")
    model = VLoRAModel(make.tiny_llama(), subspace)
    with model.train_task(trainer):
        model(input_ids=TOKENS, labels=TOKENS).loss.backward()
    witness = PeftModel.from_pretrained(make.tiny_llama(), adapters["task0"], is_trainable=True)
    witness(input_ids=TOKENS, labels=TOKENS).loss.backward()
    name = "model.layers.1.mlp.gate_proj"
    module = witness.base_model.model.get_submodule(name)
    dense = _dense_gradient(module, name, witness)
    la, lb = (trainer.params[f"{name}.loadings_{side}"] for side in "ab")
    a, b = subspace.components_a[name], subspace.components_b[name]
    scale = trainer.scales[name]
    torch.testing.assert_close(la.grad, scale * lb.detach() @ b @ dense @ a.T, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(
        lb.grad, scale * (la.detach() @ a) @ dense.T @ b.T, rtol=1e-3, atol=1e-6
    )


def _dense_gradient(module: Any, name: str, witness: Any) -> Tensor:
    """d loss / d dW (d_out, d_in) of a module, by autograd on a merged copy."""
    base = make.tiny_llama()
    state = witness.merge_and_unload().state_dict()
    base.load_state_dict(state)
    base(input_ids=TOKENS, labels=TOKENS).loss.backward()
    return base.get_submodule(name).weight.grad


def test_training_goes_on_from_a_checkpoint(adapters: dict[str, Path], tmp_path: Path) -> None:
    def fresh() -> tuple[VLoRAModel, SubspaceTrainer]:
        subspace = whole(adapters)
        orthogonal_init(subspace, "new")
        return VLoRAModel(make.tiny_llama(), subspace), SubspaceTrainer(subspace, "new", lr=0.05)

    model, trainer = fresh()
    with model.train_task(trainer):
        steps(model, trainer, 4)
        torch.save(trainer.state_dict(), tmp_path / "state.pt")
        straight = steps(model, trainer, 4)
    model, resumed = fresh()
    resumed.load_state_dict(torch.load(tmp_path / "state.pt"))
    with model.train_task(resumed):
        assert steps(model, resumed, 4) == straight
    assert resumed.step_count == 8
    with pytest.raises(ParameterError, match="another task"):
        SubspaceTrainer(resumed.subspace, "task0").load_state_dict(trainer.state_dict())


def test_what_cannot_be_trained_is_said(adapters: dict[str, Path]) -> None:
    subspace = whole(adapters)
    with pytest.raises(ParameterError, match="already"):
        orthogonal_init(subspace, "task0")
    with pytest.raises(NotFoundError):
        SubspaceTrainer(subspace, "nobody")
    model = VLoRAModel(make.tiny_llama(), subspace)
    trainer = SubspaceTrainer(subspace, "task0")
    with pytest.raises(ParameterError, match="does not depend"):
        trainer.step(torch.zeros(()))
    with (
        pytest.raises(ParameterError, match="another subspace"),
        model.train_task(SubspaceTrainer(whole(adapters), "task0")),
    ):
        pass


@pytest.mark.parametrize("method", ["delta", "auto", "flat"])
def test_the_first_librarys_loop_trains_as_it_stands(
    adapters: dict[str, Path], method: str
) -> None:
    """`orthogonal_init`, `SubspaceTrainer`, `set_task`, `step`: no block, in whichever order."""
    subspace = whole(adapters, method)
    orthogonal_init(subspace, "new")
    model = VLoRAModel(make.tiny_llama(), subspace)
    model.set_task("new")
    start = logits(model)
    trainer = SubspaceTrainer(subspace, "new", lr=0.05)
    losses = [trainer.step(model(input_ids=TOKENS, labels=TOKENS).loss) for _ in range(8)]
    assert losses[-1] < losses[0] - 0.005
    trainer.write_back()
    trained = logits(model)
    assert float((trained - start).abs().max()) > 1e-3
    del trainer
    again = VLoRAModel(make.tiny_llama(), subspace)
    again.set_task("new")
    torch.testing.assert_close(logits(again), trained, rtol=0, atol=2e-3)  # stored as fp16


def test_a_step_that_moves_nothing_is_refused(adapters: dict[str, Path]) -> None:
    subspace = whole(adapters)
    orthogonal_init(subspace, "new")
    model = VLoRAModel(make.tiny_llama(), subspace)
    trainer = SubspaceTrainer(subspace, "new")
    model.set_task("task1")
    with pytest.raises(ParameterError, match="received a gradient") as caught:
        trainer.step(model(input_ids=TOKENS, labels=TOKENS).loss)
    assert "set_task('new')" in str(caught.value)
    assert trainer.step_count == 0
    with model.train_task(trainer):  # which ends the trainer's turn
        pass
    model.set_task("new")
    with pytest.raises(ParameterError, match="received a gradient"):
        trainer.step(model(input_ids=TOKENS, labels=TOKENS).loss)
    model.set_task("new")  # as the error says
    trainer.step(model(input_ids=TOKENS, labels=TOKENS).loss)
    assert trainer.step_count == 1


def test_the_parameters_are_few_and_named_as_the_first_library_names_them(
    adapters: dict[str, Path],
) -> None:
    subspace = whole(adapters)
    params = subspace.get_trainable_params("task0", num_expand=2)
    shapes = {name: tuple(p.shape) for name, p in params.items()}
    # room for two more directions beside the 12 of k, where a module is wide enough
    assert shapes["model.layers.0.mlp.gate_proj.loadings_a"] == (4, 14)
    assert shapes["model.layers.0.self_attn.v_proj.loadings_b"] == (4, 8)  # it has 8 outputs
    assert all(isinstance(p, nn.Parameter) and p.requires_grad for p in params.values())
    assert subspace.components_a["model.layers.0.mlp.gate_proj"].shape == (12, 16)
    trainer = SubspaceTrainer(subspace, "task0")
    assert trainer.num_trainable_params == sum(p.numel() for p in trainer.params.values())


def test_a_new_task_of_trained_ones_learns_with_a_tenth_of_the_numbers(trained: Trained) -> None:
    from transformers import LlamaForCausalLM

    held, others = "caesar", ["reverse", "add", "upper"]
    paths = [trained.adapter(task) for task in others]
    subspace = SharedSubspace.from_adapters_streaming(paths, others, 16)
    orthogonal_init(subspace, "new", rank=5)
    trainer = SubspaceTrainer(subspace, "new", 0.1)
    full = subspace.tasks.record("add").factor_elements
    assert trainer.num_trainable_params <= 0.1 * full
    model = VLoRAModel(LlamaForCausalLM.from_pretrained(trained.base), subspace)
    text = trained.text(held).read_bytes()
    with model.train_task(trainer):
        train.fit(model, trainer.optimizer, train.text_of(held, 40_000, seed=1), 30)
    trainer.write_back()
    model.set_task("new")
    before, after = trained.losses[held]
    gain = (before - train.loss_on(model, text)) / (before - after)
    # 30 of 130 steps; make bench measures all of them (`training`)
    assert gain > 0.4, gain


def test_the_basis_of_a_coded_collection_trains_as_well_as_that_of_the_originals(
    trained: Trained,
) -> None:
    from transformers import LlamaForCausalLM

    held, others, k = "caesar", ["reverse", "add", "upper"], 16
    paths = [trained.adapter(task) for task in others]
    coded = SharedSubspace.from_adapters_streaming(paths, others)  # at its default
    assert coded.method == "auto"
    text, gains = trained.text(held).read_bytes(), []
    for subspace in (
        SharedSubspace.from_adapters_streaming(paths, others, k, method="delta"),
        coded.with_basis(k=k),
    ):
        orthogonal_init(subspace, "new", rank=5)
        trainer = SubspaceTrainer(subspace, "new", 0.1)
        model = VLoRAModel(LlamaForCausalLM.from_pretrained(trained.base), subspace)
        before = train.loss_on(model, text)
        with model.train_task(trainer):
            train.fit(model, trainer.optimizer, train.text_of(held, 40_000, seed=1), 30)
        trainer.write_back()
        model.set_task("new")
        gains.append(before - train.loss_on(model, text))
    of_originals, of_coded = gains
    assert of_originals > 0.3 * (trained.losses[held][0] - trained.losses[held][1])
    assert of_coded >= 0.97 * of_originals, gains
