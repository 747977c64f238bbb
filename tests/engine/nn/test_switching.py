"""A model that wears a task says what PEFT says with the adapter that the task stands for."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from tests.engine.nn.tiny_models import (
    GPT2,
    LLAMA,
    TOKENS,
    VARIANTS,
    logits,
    on_every_device,
    peft_adapters,
    peft_logits,
    whole,
)
from tests.witnesses import make
from vlora_engine import SharedSubspace, VLoRAModel, apply, load_adapter, save_adapter
from vlora_engine.errors import (
    CollectionError,
    NotFoundError,
    ParameterError,
    SubspaceError,
    UnsupportedAdapterError,
)

pytest.importorskip("peft")


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return peft_adapters(tmp_path_factory.mktemp("llama"), make.tiny_llama, LLAMA)


@pytest.fixture(scope="module")
def subspace(adapters: dict[str, Path]) -> SharedSubspace:
    return whole(adapters)


def far(one: Tensor, other: Tensor) -> float:
    return float((one.float().cpu() - other.float().cpu()).abs().max())


@on_every_device
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    ("base", "targets"), [(make.tiny_gpt2, GPT2), (make.tiny_llama, LLAMA)], ids=["gpt2", "llama"]
)
def test_every_task_says_what_peft_says(
    tmp_path: Path, base: Callable[[], nn.Module], targets: list[str], variant: str, device: str
) -> None:
    adapters = peft_adapters(tmp_path, base, targets, **VARIANTS[variant])
    model = VLoRAModel(base().to(device), whole(adapters))
    nothing = logits(model)
    for task, path in adapters.items():
        model.set_task(task)
        meant = peft_logits(base(), path)
        assert far(logits(model), meant) < 1e-5
        model.set_task(next(other for other in adapters if other != task))
        assert far(logits(model), meant) > 1e-2, "a stranger's task passes for the right one"
    model.clear_task()
    assert torch.equal(logits(model), nothing)
    assert far(nothing, meant) > 1e-2


@pytest.mark.parametrize("method", ["columns", "flat", "own", "auto"])
def test_every_method_says_what_its_export_says(
    adapters: dict[str, Path], tmp_path: Path, method: str
) -> None:
    whole(adapters, method).save(tmp_path / "subspace")
    subspace = SharedSubspace.load(tmp_path / "subspace")
    model = VLoRAModel(make.tiny_llama(), subspace)
    for task in adapters:
        model.set_task(task)
        exported = save_adapter(subspace.reconstruct(task), tmp_path / "out" / task)
        assert far(logits(model), peft_logits(make.tiny_llama(), exported)) < 1e-5


@on_every_device
def test_bf16_is_within_its_rounding(
    adapters: dict[str, Path], subspace: SharedSubspace, device: str
) -> None:
    model = VLoRAModel(make.tiny_llama().to(device, torch.bfloat16), subspace)
    exact = VLoRAModel(make.tiny_llama(), subspace)
    for task, path in adapters.items():
        model.set_task(task)
        exact.set_task(task)
        meant = peft_logits(make.tiny_llama().to(torch.bfloat16), path)
        reference = logits(exact)
        # as near to the exact logits as PEFT in bf16 is, whose factors are kept in fp32
        assert far(logits(model), reference) < 2 * far(meant, reference) + 2**-8


def test_packed_bases_are_worn_as_they_are(adapters: dict[str, Path], tmp_path: Path) -> None:
    subspace = whole(adapters, num_components=8, quantize="int8")
    model = VLoRAModel(make.tiny_llama(), subspace)
    for task in adapters:
        model.set_task(task)
        exported = save_adapter(subspace.reconstruct(task), tmp_path / task)
        assert far(logits(model), peft_logits(make.tiny_llama(), exported)) < 1e-5


def test_convolutions_and_embeddings_too(tmp_path: Path) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(11, 6)
            self.conv = nn.Conv2d(2, 5, 3, stride=2, padding=1)
            self.head = nn.Linear(5, 4)

        def forward(self, x: Tensor) -> Tensor:
            image = self.embed(x).reshape(len(x), 2, 3, -1)
            return self.head(self.conv(image).mean((2, 3)))

    def net() -> nn.Module:
        torch.manual_seed(0)
        return Net().eval()

    x = torch.arange(36).reshape(3, 12) % 11
    targets = ["embed", "conv", "head"]
    adapters = peft_adapters(tmp_path, net, targets, r=2)
    from peft import PeftModel

    model = VLoRAModel(net(), whole(adapters))
    meant = {}
    with torch.no_grad():
        for task, path in adapters.items():
            meant[task] = PeftModel.from_pretrained(net(), path).eval()(x)
            model.set_task(task)
            assert far(model(x), meant[task]) < 1e-5
            assert far(model(x), net()(x)) > 1e-2
        model.set_tasks(["task2", None, "task0"])
        assert (
            far(model(x), torch.stack([meant["task2"][0], net()(x)[1], meant["task0"][2]])) < 1e-5
        )
        model.merge("task1")
        assert far(model(x), meant["task1"]) < 1e-5
    grouped = net()
    grouped.conv = nn.Conv2d(2, 5, 3, dilation=2)
    with pytest.raises(UnsupportedAdapterError, match="Conv2d"):
        VLoRAModel(grouped, whole(adapters))


def test_modules_that_the_basis_lacks_are_worn(adapters: dict[str, Path], tmp_path: Path) -> None:
    more = peft_adapters(tmp_path, make.tiny_llama, [*LLAMA, "o_proj"], count=1)["task0"]
    subspace = whole(adapters)
    subspace.add_task(subspace.project(load_adapter(more), "more"))
    model = VLoRAModel(make.tiny_llama(), subspace)
    model.set_task("more")
    kept = save_adapter(subspace.reconstruct("more"), tmp_path / "kept")
    assert far(logits(model), peft_logits(make.tiny_llama(), kept)) < 1e-5
    model.set_tasks(["task1", "more", None])
    mixed = logits(model)
    for row, task in enumerate(["task1", "more"]):
        model.set_task(task)
        assert far(mixed[row], logits(model)[row]) < 1e-6
    later = whole(adapters)
    model = VLoRAModel(make.tiny_llama(), later)
    later.add_task(later.project(load_adapter(more), "more"))  # after the model was wrapped
    model.set_task("more")
    assert far(logits(model), peft_logits(make.tiny_llama(), kept)) < 1e-5


def test_a_head_comes_and_goes_with_its_task(tmp_path: Path) -> None:
    from transformers import LlamaForSequenceClassification

    def classifier() -> nn.Module:
        config = make.tiny_llama().config
        config.num_labels, config.pad_token_id = 3, 0
        torch.manual_seed(0)
        return LlamaForSequenceClassification(config).eval()

    fields = {"task_type": "SEQ_CLS", "modules_to_save": ["score"]}
    adapters = peft_adapters(tmp_path, classifier, LLAMA, **fields)
    base = classifier()
    own = base.score.weight.detach().clone()
    model = VLoRAModel(base, whole(adapters))
    for task, path in adapters.items():
        model.set_task(task)
        assert far(logits(model), peft_logits(classifier(), path)) < 1e-5
        assert not torch.equal(base.score.weight, own)
    with pytest.raises(ParameterError, match="tensors of its own"):
        model.set_tasks(["task0", "task1", None])
    assert model.active_task == "task2"
    model.clear_task()
    assert torch.equal(base.score.weight, own)
    bare = make.tiny_llama()
    stranger = VLoRAModel(bare, whole(adapters))
    with pytest.warns(UserWarning, match="name nothing in the model"):
        stranger.set_task("task0")


def test_merging_is_undone_to_the_bit(subspace: SharedSubspace) -> None:
    for dtype, near in ((torch.float32, 1e-5), (torch.bfloat16, 0.2)):
        base = make.tiny_llama().to(dtype)
        before = {name: t.clone() for name, t in base.state_dict().items()}
        model = VLoRAModel(base, subspace)
        model.set_task("task1")
        worn = logits(model)
        model.merge()
        assert model.is_merged
        assert model.active_task == "task1"
        assert far(logits(model), worn) < near
        assert any(not torch.equal(before[n], t) for n, t in base.state_dict().items())
        for refused in (model.merge, model.clear_task, partial(model.set_task, "task0")):
            with pytest.raises(SubspaceError, match="merged"):
                refused()
        model.unmerge()
        assert all(torch.equal(before[n], t) for n, t in base.state_dict().items())
        assert (model.is_merged, model.active_task) == (False, None)
    with pytest.raises(SubspaceError, match="not merged"):
        model.unmerge()
    with pytest.raises(ParameterError, match="No task"):
        model.merge()


def test_quantized_layers_are_worn_but_not_merged(subspace: SharedSubspace) -> None:
    class Linear4bit(nn.Linear):  # as bitsandbytes names it; known by its name alone
        compute_dtype = torch.float32

    base = make.tiny_llama()
    for layer in base.model.layers:
        own = layer.mlp.down_proj
        packed = Linear4bit(own.in_features, own.out_features, bias=False)
        packed.weight = own.weight
        layer.mlp.down_proj = packed
    model = VLoRAModel(base, subspace)
    assert model.qlora_info == {
        "quantized": True,
        "method": "nf4",
        "num_quantized_layers": 2,
        "num_target_layers": 8,
    }
    plain = VLoRAModel(make.tiny_llama(), subspace)
    assert plain.qlora_info["quantized"] is False
    model.set_task("task0")
    plain.set_task("task0")
    assert far(logits(model), logits(plain)) < 1e-6
    with pytest.raises(SubspaceError, match="Quantized"):
        model.merge()
    params = sum(p.numel() for p in base.parameters())
    told = subspace.full_stack_compression(base_model=base)["base_model"]
    assert (told["params"], told["measured"]) == (params, "quantized_bytes")
    told = subspace.full_stack_compression(base_model=plain.base_model)["base_model"]
    assert (told["original_bytes"], told["measured"]) == (4 * params, "original_bytes")
    assert told["quantized_bytes"] == params / 2


def test_coded_collections_tell_their_own_bytes(adapters: dict[str, Path]) -> None:
    coded = whole(adapters, "auto")
    told = coded.full_stack_compression(1000)
    assert told["adapter"] == coded.compression_stats()
    assert told["total_compressed_bytes"] == 500 + coded.compression_stats()["bytes_compressed"]


def test_a_weight_of_two_modules_is_not_merged(tmp_path: Path) -> None:
    def tied() -> nn.Module:
        return make.tiny_gpt2(tie_word_embeddings=True)

    adapters = peft_adapters(tmp_path, tied, ["lm_head"], count=2, r=2)
    model = VLoRAModel(tied(), whole(adapters))
    with pytest.raises(SubspaceError, match="several modules share"):
        model.merge("task0")
    model.set_task("task0")
    assert far(logits(model), peft_logits(tied(), adapters["task0"])) < 1e-5


def test_what_does_not_fit_is_said(subspace: SharedSubspace, adapters: dict[str, Path]) -> None:
    with pytest.raises(SubspaceError, match="No module") as caught:
        VLoRAModel(make.tiny_gpt2(), subspace)
    assert "model.layers.0" in str(caught.value)
    assert "transformer.h.0" in str(caught.value)
    short = make.tiny_llama(num_hidden_layers=1)
    with pytest.warns(UserWarning, match="4 of 8 modules"):
        model = VLoRAModel(short, subspace)
    assert [name for name in model.unmatched if "layers.1." not in name] == []
    with pytest.raises(CollectionError, match="another shape"):
        VLoRAModel(make.tiny_llama(hidden_size=32), subspace)
    with pytest.raises(NotFoundError, match="nobody"):
        model.set_task("nobody")
    changed = whole(adapters)
    projection = changed.tasks["task0"]
    projection.config["init_lora_weights"] = "pissa"
    changed.tasks["task0"] = projection
    with pytest.raises(UnsupportedAdapterError, match="PiSSA"):
        VLoRAModel(make.tiny_llama(), changed).set_task("task0")


class Watch(TorchDispatchMode):
    """Remembers the shape of everything that is computed, but for views of a model's weights."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.shapes: set[tuple[int, ...]] = set()
        self.known = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and out.untyped_storage().data_ptr() not in self.known:
            self.shapes.add(tuple(out.shape))
        return out


@pytest.mark.parametrize("method", ["delta", "columns", "flat", "auto"])
def test_no_dense_change_is_formed_and_hooks_stay(adapters: dict[str, Path], method: str) -> None:
    subspace = whole(adapters, method)
    base = make.tiny_llama()
    model = VLoRAModel(base, subspace)
    gate = base.model.layers[0].mlp.gate_proj
    hooks, bases = dict(gate._forward_hooks), [hook.a for hook in model._hooks.values()]
    with Watch(base) as watch, torch.no_grad():
        for task in adapters:
            model.set_task(task)
            model(input_ids=TOKENS)
        model.set_tasks(list(adapters))
        model(input_ids=TOKENS)
    assert (24, 16) not in watch.shapes
    assert (3, 12, 24) in watch.shapes  # it does watch
    assert dict(gate._forward_hooks) == hooks
    assert all(a is hook.a for a, hook in zip(bases, model._hooks.values(), strict=True))


def test_tasks_worn_are_kept_up_to_a_number_of_bytes(
    adapters: dict[str, Path], tmp_path: Path
) -> None:
    whole(adapters).save(tmp_path / "subspace")
    subspace = SharedSubspace.load(tmp_path / "subspace")
    model = VLoRAModel(make.tiny_llama(), subspace)
    for task in adapters:
        model.set_task(task)
    each = model._cache.nbytes // 3
    assert each > 0
    assert not subspace.tasks._projections  # the engine's own cache, which has no bound
    assert not subspace.bases._loaded
    small = VLoRAModel(make.tiny_llama(), subspace, cache_bytes=2 * each)
    for task in [*adapters, *adapters]:
        small.set_task(task)
        assert small._cache.nbytes <= 2 * each
        model.set_task(task)
        assert torch.equal(logits(small), logits(model))
    none = VLoRAModel(make.tiny_llama(), subspace, cache_bytes=0)
    none.set_task("task0")
    model.set_task("task0")
    assert torch.equal(logits(none), logits(model))


def test_a_task_that_is_replaced_is_worn_anew(adapters: dict[str, Path]) -> None:
    subspace = whole(adapters)
    model = VLoRAModel(make.tiny_llama(), subspace)
    model.set_task("task0")
    before = logits(model)
    projection = subspace.tasks["task0"]
    projection.scales = {name: 2 * scale for name, scale in projection.scales.items()}
    subspace.tasks["task0"] = projection
    model.set_task("task0")
    assert far(logits(model), before) > 1e-2


def test_a_scale_or_an_alpha_of_the_caller_counts(
    adapters: dict[str, Path], subspace: SharedSubspace
) -> None:
    own = VLoRAModel(make.tiny_llama(), subspace).reconstruct_state_dict("task0")
    weights = load_adapter(adapters["task0"])
    for name, delta in own.items():
        torch.testing.assert_close(delta.double(), weights.delta(name), rtol=1e-5, atol=1e-6)
    for given, scale in (({"scaling": 0.5}, 0.5), ({"lora_alpha": 12}, 12 / 4)):
        model = VLoRAModel(make.tiny_llama(), subspace, **given)
        for name, delta in model.reconstruct_state_dict("task0").items():
            torch.testing.assert_close(delta, own[name] * (scale / weights.scales[name]))
        model.set_task("task0")
        worn = logits(model)
        model.merge()
        assert far(logits(model), worn) < 1e-5


def test_gradients_and_inference_mode_get_along(subspace: SharedSubspace) -> None:
    model = VLoRAModel(make.tiny_llama(), subspace)
    with torch.inference_mode():
        model.set_task("task0")
        model(input_ids=TOKENS)
    embedded = model.base_model.get_input_embeddings()(TOKENS).detach().requires_grad_()
    model(inputs_embeds=embedded).logits.square().mean().backward()
    ours = embedded.grad.clone()
    model.merge()
    embedded.grad = None
    model(inputs_embeds=embedded).logits.square().mean().backward()
    torch.testing.assert_close(ours, embedded.grad, rtol=1e-4, atol=1e-6)


def test_it_follows_the_base_model_and_gives_it_back(subspace: SharedSubspace) -> None:
    base = make.tiny_llama()
    nothing = logits(base)
    model = VLoRAModel(base, subspace)
    model.set_task("task0")
    worn = logits(model)
    model.to(torch.float64)
    assert far(logits(model), worn) < 1e-5
    assert {hook.a.dtype for hook in model._hooks.values()} == {torch.float64}
    model.merge("task0")
    model.to(torch.float32)
    model.unmerge()
    assert far(logits(model), nothing) < 1e-6
    assert model.config is base.config  # what the wrapper lacks is the base's
    model.set_task("task0")
    how = {"max_new_tokens": 4, "do_sample": False, "attention_mask": torch.ones_like(TOKENS)}
    base.generation_config.eos_token_id = None
    said = model.generate(TOKENS, pad_token_id=0, **how)
    expected = logits(model, said[:, :-1])[:, -4:].argmax(-1)
    assert torch.equal(said[:, -4:], expected)
    assert model.detach() is base
    assert not any(module._forward_hooks for module in base.modules())
    assert far(logits(base), nothing) < 1e-6


def test_it_compiles_and_still_switches(subspace: SharedSubspace) -> None:
    plain = VLoRAModel(make.tiny_llama(), subspace)
    model = VLoRAModel(make.tiny_llama(), subspace).compile(backend="eager")
    for task in ("task0", "task1", "task0"):
        plain.set_task(task)
        model.set_task(task)
        assert far(logits(model), logits(plain)) < 1e-5


def test_a_task_becomes_a_peft_model(
    adapters: dict[str, Path], subspace: SharedSubspace, tmp_path: Path
) -> None:
    from peft import PeftModel

    subspace.save(tmp_path / "subspace")
    for made in (
        apply(make.tiny_llama(), subspace, "task1"),
        apply(make.tiny_llama(), tmp_path / "subspace", "task1"),
        subspace.apply(make.tiny_llama(), "task1"),
    ):
        assert isinstance(made, PeftModel)
        assert far(logits(made), peft_logits(make.tiny_llama(), adapters["task1"])) < 1e-5
    with pytest.raises(CollectionError, match="does not fit"):
        apply(make.tiny_gpt2(), subspace, "task1")
    with pytest.raises(NotFoundError):
        apply(make.tiny_llama(), subspace, "nobody")


def test_vlora_devs_users_find_its_names(subspace: SharedSubspace) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = VLoRAModel(make.tiny_llama(), subspace, None, None, torch.float32)
    assert model.available_tasks == ["task0", "task1", "task2"]
    assert model.active_task is None
    model.set_task("task1")
    assert "'task1'" in repr(model)
    model.set_tasks(["task1", None])
    assert "2 rows" in repr(model)
    assert json.dumps(model.qlora_info)
