"""Rows of one batch wear different tasks, or blends of tasks, and each says what it says alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.engine.nn.tiny_models import LLAMA, TOKENS, logits, on_every_device, peft_adapters, whole
from tests.witnesses import make
from vlora_engine import SharedSubspace, TaskRouter, VLoRAModel
from vlora_engine.errors import CorruptFileError, NotFoundError, ParameterError
from vlora_engine.nn.blend import blend_tasks

pytest.importorskip("peft")

ROWS = ["task2", None, "task0"]


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    pattern = {"rank_pattern": {"v_proj": 2}, "alpha_pattern": {"q_proj": 3}}
    folder = tmp_path_factory.mktemp("llama")
    return peft_adapters(folder, make.tiny_llama, LLAMA, **pattern)


@pytest.fixture(scope="module")
def subspace(adapters: dict[str, Path]) -> SharedSubspace:
    return whole(adapters)


def alone(model: VLoRAModel, rows: list[str | None], tokens: Tensor = TOKENS) -> Tensor:
    """Every row in a batch of its own."""
    said = []
    for i, task in enumerate(rows):
        if task is None:
            model.clear_task()
        else:
            model.set_task(task)
        said.append(logits(model, tokens[i : i + 1]))
    return torch.cat(said)


@on_every_device
@pytest.mark.parametrize("method", ["delta", "columns", "flat", "own", "auto"])
@pytest.mark.parametrize("k", [None, 5], ids=["factors", "cores"])
def test_a_mixed_batch_is_its_rows(
    adapters: dict[str, Path], method: str, k: int | None, device: str
) -> None:
    # with k = 5 a core is smaller than its factors in modules of rank 4, but not in those of rank 2
    small = k is not None and method in ("delta", "columns")
    subspace = whole(adapters, method, **({"num_components": k} if small else {}))
    model = VLoRAModel(make.tiny_llama().to(device), subspace)
    meant = alone(model, ROWS)
    model.set_tasks(ROWS)
    torch.testing.assert_close(logits(model), meant, rtol=0, atol=1e-5)
    model.set_tasks(["task2", None, "task1"])
    assert float((logits(model)[2] - meant[2]).abs().max()) > 1e-2
    model.set_tasks([None, None, None])
    torch.testing.assert_close(logits(model), alone(model, [None] * 3), rtol=0, atol=1e-6)


def test_rows_may_come_as_vectors_and_flattened(subspace: SharedSubspace) -> None:
    class Net(nn.Module):
        """The modules of the adapters alone, as they are called."""

        def __init__(self) -> None:
            super().__init__()
            self.model = make.tiny_llama().model

        def forward(self, x: Tensor) -> Tensor:
            return self.model.layers[0].mlp.gate_proj(x)

    model = VLoRAModel(Net(), subspace)
    x = torch.randn(3, 4, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        model.set_tasks(ROWS)
        whole_batch = model(x)
        assert torch.allclose(model(x.reshape(12, 16)), whole_batch.reshape(12, -1), atol=1e-6)
        assert torch.allclose(model(x[:, 0]), whole_batch[:, 0], atol=1e-6)
        assert torch.allclose(model(x.unsqueeze(2)), whole_batch.unsqueeze(2), atol=1e-6)
        with pytest.raises(ParameterError, match="rows that tasks were set for"):
            model(x.reshape(12, 16)[:11])
        with pytest.raises(ParameterError, match="rows that tasks were set for"):
            model(x[:2])
        model.set_task("task2")
        assert torch.allclose(model(x)[0], whole_batch[0], atol=1e-6)
    for wrong in ("task0", []):
        with pytest.raises(ParameterError, match="one task id"):
            model.set_tasks(wrong)


@pytest.mark.parametrize("method", ["delta", "columns", "flat", "auto"])
@pytest.mark.parametrize("k", [None, 5], ids=["factors", "cores"])
def test_a_blend_in_the_model_is_the_sum_of_weight_changes(
    adapters: dict[str, Path], method: str, k: int | None
) -> None:
    small = k is not None and method in ("delta", "columns")
    subspace = whole(adapters, method, **({"num_components": k} if small else {}))
    model = VLoRAModel(make.tiny_llama(), subspace)
    weights = torch.tensor([[0.5, 0.25, 0.25], [-1.0, 0.0, 2.0], [0.0, 0.0, 0.0]])
    deltas = [model.reconstruct_state_dict(task) for task in model.available_tasks]
    said = []
    for i, row in enumerate(weights):
        base = make.tiny_llama()
        with torch.no_grad():
            for name in deltas[0]:
                change = sum(w * delta[name] for w, delta in zip(row, deltas, strict=True))
                base.get_submodule(name).weight += change
        said.append(logits(base, TOKENS[i : i + 1]))
    model.set_blend(weights)
    torch.testing.assert_close(logits(model), torch.cat(said), rtol=0, atol=2e-5)
    model.set_blend(weights[0])  # one for every input
    torch.testing.assert_close(logits(model)[:1], said[0], rtol=0, atol=2e-5)
    with pytest.raises(ParameterError, match="one weight per task"):
        model.set_blend(weights, ["task0", "task1"])


@pytest.mark.parametrize("method", ["delta", "columns"])
@pytest.mark.parametrize("k", [None, 5], ids=["factors", "cores"])
def test_a_blend_as_a_task_is_exact_and_of_small_rank(
    adapters: dict[str, Path], tmp_path: Path, method: str, k: int | None
) -> None:
    subspace = whole(adapters, method, **({"num_components": k} if k else {}))
    model = VLoRAModel(make.tiny_llama(), subspace)
    names, weights = model.available_tasks, torch.tensor([0.5, -0.25, 0.75])
    blend = blend_tasks(subspace, names, weights)
    subspace.add_task(blend)
    found = model.reconstruct_state_dict(blend.task_id)
    for name, delta in found.items():
        meant = sum(
            w * model.reconstruct_state_dict(task)[name]
            for w, task in zip(weights, names, strict=True)
        )
        torch.testing.assert_close(delta, meant, rtol=1e-4, atol=1e-5)
        spec = next(spec for spec in subspace.layers if spec.name == name)
        ranks = sum(subspace.tasks[task].loadings_a[name].shape[0] for task in names)
        assert len(blend.loadings_a[name]) <= min(ranks, spec.k_a, spec.k_b)
    model.set_blend(weights, names)
    said = logits(model)
    subspace.save(tmp_path / "with-blend")
    again = VLoRAModel(make.tiny_llama(), SharedSubspace.load(tmp_path / "with-blend"))
    again.set_task(blend.task_id)
    torch.testing.assert_close(logits(again), said, rtol=0, atol=2e-5)


def test_flat_blends_are_exact_for_factors_and_coded_ones_say_their_error(
    adapters: dict[str, Path],
) -> None:
    flat = whole(adapters, "flat")
    blend = blend_tasks(flat, sorted(adapters), torch.tensor([0.0, 1.0, 0.0]))
    for name, loadings in blend.loadings_a.items():
        assert torch.equal(loadings, flat.tasks["task1"].loadings_a[name])
        assert blend.scales[name] == flat.tasks["task1"].scales[name]
    coded = whole(adapters, "auto")
    weights = torch.tensor([0.5, 0.2, 0.3])
    with pytest.warns(UserWarning, match="loses"):
        blend = blend_tasks(coded, sorted(adapters), weights)
    norm2 = lost2 = 0.0
    projected = coded.in_basis().reconstruct
    coded.tasks[blend.task_id] = blend
    parts = [coded.reconstruct(name) for name in sorted(adapters)]
    for name in coded.layer_names:
        exact = sum(
            w * part.scales[name] * part.lora_b[name].double() @ part.lora_a[name].double()
            for w, part in zip(weights.tolist(), parts, strict=True)
        )
        of_blend = projected(blend.task_id)
        dense = of_blend.lora_b[name].double() @ of_blend.lora_a[name].double()
        norm2 += float((exact**2).sum())
        lost2 += float(((exact - dense * of_blend.scales[name]) ** 2).sum())
    assert blend.error == pytest.approx((lost2 / norm2) ** 0.5, abs=2e-3)
    assert 0 < blend.error < 0.2
    router = TaskRouter.from_subspace(coded, 16)
    assert router.task_ids == sorted(coded.tasks)


def test_a_router_learns_which_task_a_text_wants(subspace: SharedSubspace, tmp_path: Path) -> None:
    torch.manual_seed(0)
    router = TaskRouter.from_subspace(subspace, input_dim=16)
    assert router.num_params == sum(p.numel() for p in router.parameters())
    centres = torch.randn(3, 16)
    labels = [f"task{i % 3}" for i in range(90)]
    inputs = torch.stack([centres[i % 3] for i in range(90)]) + 0.3 * torch.randn(90, 16)
    losses = router.fit(inputs, labels, epochs=60)
    assert losses[-1] < 0.1 < losses[0]
    weights = router(centres)
    torch.testing.assert_close(weights.sum(1), torch.ones(3))
    assert weights.argmax(1).tolist() == [0, 1, 2]
    router.save(tmp_path / "router")
    again = TaskRouter.load(tmp_path / "router")
    assert again.task_ids == router.task_ids
    assert torch.equal(again(centres), weights)
    blend = router.blend_loadings(centres, subspace)
    assert blend.loadings_b["model.layers.0.mlp.gate_proj"].requires_grad
    with pytest.raises(ParameterError, match="label"):
        router.fit(inputs, ["nobody"] * 90)
    with pytest.raises(NotFoundError):
        TaskRouter.load(tmp_path)
    (tmp_path / "router" / "router.json").write_text("{}")
    with pytest.raises(CorruptFileError):
        TaskRouter.load(tmp_path / "router")


def test_gradients_reach_the_router_through_the_model(subspace: SharedSubspace) -> None:
    torch.manual_seed(0)
    model = VLoRAModel(make.tiny_llama(), subspace)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    router = TaskRouter.from_subspace(subspace, input_dim=16)
    features = torch.randn(3, 16)
    optimizer = torch.optim.Adam(router.parameters(), lr=0.05)
    model.set_task("task1")
    wanted = logits(model)
    distances = []
    for _ in range(30):
        model.set_blend(router(features), router.task_ids)
        loss = (model(input_ids=TOKENS).logits - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        distances.append(float(loss.detach()))
    assert distances[-1] < 0.05 * distances[0]
    assert router(features).argmax(1).tolist() == [1, 1, 1]
