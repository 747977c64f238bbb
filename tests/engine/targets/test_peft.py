"""From PEFT through a subspace back to PEFT: the model says what the reconstruction predicts."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.witnesses import make
from vlora_engine import SharedSubspace, load_adapter, save_adapter
from vlora_engine.adapters.model import LoRAWeights
from vlora_engine.catalog.open import open_adapter
from vlora_engine.compress.build import build_subspace
from vlora_engine.doctor import diagnose
from vlora_engine.manifest.records import max_k, shared_layers
from vlora_engine.pipeline import extract_adapter
from vlora_engine.resizing import resize

peft = pytest.importorskip("peft")

BASE_NAME = "tiny/base"
HEAD = "base_model.model.score.weight"
METHODS = ("delta", "columns", "flat")
TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}

ModelFactory = Callable[[], torch.nn.Module]


def classifier(base: torch.nn.Module, kind: str) -> torch.nn.Module:
    """A classifier of three labels with the body of ``base``."""
    import transformers

    torch.manual_seed(99)
    base.config.num_labels = 3
    model = getattr(transformers, kind)(base.config)
    model.base_model.load_state_dict(base.base_model.state_dict())
    return model.eval()


def gpt2() -> torch.nn.Module:
    return make.tiny_gpt2()


def gpt2_classifier() -> torch.nn.Module:
    return classifier(make.tiny_gpt2(), "GPT2ForSequenceClassification")


def llama() -> torch.nn.Module:
    return make.tiny_llama()


def llama_classifier() -> torch.nn.Module:
    return classifier(make.tiny_llama(), "LlamaForSequenceClassification")


@dataclass(frozen=True)
class Base:
    """An architecture, the modules to adapt, and what its patterns are written for."""

    model: ModelFactory
    classifier: ModelFactory
    targets: tuple[str, ...]
    transposed: bool
    patterns: dict[str, dict[str, int]]


BASES = {
    "gpt2": Base(
        gpt2,
        gpt2_classifier,
        ("c_attn", "c_proj", "c_fc"),
        True,
        {
            "rank_pattern": {"h.0.attn.c_attn": 2, "mlp.c_proj": 5},
            "alpha_pattern": {"h.1.attn.c_attn": 5},
        },
    ),
    "llama": Base(
        llama,
        llama_classifier,
        ("q_proj", "v_proj", "down_proj"),
        False,
        {
            "rank_pattern": {"layers.0.self_attn.q_proj": 2, "down_proj": 6},
            "alpha_pattern": {"v_proj": 3},
        },
    ),
}


@dataclass
class Collection:
    """Adapters that PEFT made and saved, what each says, and the model that each belongs to."""

    base: Base
    paths: dict[str, Path]
    logits: dict[str, Tensor]
    models: dict[str, ModelFactory]


def make_collection(base: Base, folder: Path) -> Collection:
    made = Collection(base, {}, {}, {})
    variants: dict[str, dict[str, Any]] = {
        "plain": {},
        "rslora": {"use_rslora": True, "r": 6, "lora_alpha": 5},
        "patterns": base.patterns,
        "one module": {"target_modules": [base.targets[0]], "r": 2},
        "head": {"task_type": "SEQ_CLS"},
    }
    for seed, (name, fields) in enumerate(variants.items(), start=1):
        is_classifier = fields.get("task_type") == "SEQ_CLS"
        factory = base.classifier if is_classifier else base.model
        body = factory()
        body.name_or_path = BASE_NAME
        settings = {
            "task_type": "CAUSAL_LM",
            "target_modules": list(base.targets),
            "fan_in_fan_out": base.transposed,
            **fields,
        }
        targets = settings.pop("target_modules")
        model = make.peft_model(body, targets, seed=seed, **settings)
        model.save_pretrained(folder / name)
        made.paths[name] = folder / name
        made.logits[name] = make.logits(model)
        made.models[name] = factory
    return made


@pytest.fixture(scope="module", params=BASES)
def collection(request: pytest.FixtureRequest, tmp_path_factory) -> Collection:
    return make_collection(BASES[request.param], tmp_path_factory.mktemp(request.param))


def with_changes(model: torch.nn.Module, weights: LoRAWeights, transposed: bool) -> torch.nn.Module:
    """``model`` with every dW added to its weights by hand, and the head put in."""
    modules = dict(model.named_modules())
    with torch.no_grad():
        for name in weights.layer_names:
            change = weights.delta(name)
            module = modules[name]
            module.weight += (change.T if transposed else change).to(module.weight.dtype)
        if HEAD in weights.rest:
            model.score.weight.copy_(weights.rest[HEAD])
    return model


def full_k(sources: dict[str, Any], method: str) -> int:
    limits = [max_k(method, spec, sources) for spec in shared_layers(sources)]
    return max(max(limit) for limit in limits)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("full", [False, True], ids=["low k", "full k"])
def test_peft_says_what_the_reconstruction_predicts(
    collection: Collection, method: str, full: bool, tmp_path: Path
) -> None:
    sources = {name: open_adapter(path) for name, path in collection.paths.items()}
    k = full_k(sources, method) if full else 2
    build_subspace(sources, tmp_path / "s", method=method, k=k)
    subspace = SharedSubspace.load(tmp_path / "s")
    transposed = collection.base.transposed
    furthest = 0.0
    for name, original in collection.logits.items():
        build = collection.models[name]
        out = tmp_path / name
        if name == "rslora":
            save_adapter(subspace.reconstruct(name), out)
        else:
            extract_adapter(subspace, name, out)

        said = make.logits(peft.PeftModel.from_pretrained(build(), out))

        predicted = make.logits(with_changes(build(), subspace.reconstruct(name), transposed))
        torch.testing.assert_close(said, predicted, **TOLERANCE)
        if full:
            torch.testing.assert_close(said, original, **TOLERANCE)
        furthest = max(furthest, float((said - original).abs().max()))
    assert full or furthest > 1e-2  # at a low k something is lost, so the prediction says something


@pytest.mark.parametrize("method", METHODS)
def test_everything_but_the_factors_comes_back_exactly(
    collection: Collection, method: str, tmp_path: Path
) -> None:
    sources = {name: open_adapter(path) for name, path in collection.paths.items()}
    build_subspace(sources, tmp_path / "s", method=method, k=2)
    subspace = SharedSubspace.load(tmp_path / "s")
    for name, path in collection.paths.items():
        extract_adapter(subspace, name, tmp_path / name)

        was, now = load_adapter(path), load_adapter(tmp_path / name)

        assert now.scales == was.scales
        assert now.rest.keys() == was.rest.keys()
        for key, tensor in was.rest.items():
            assert torch.equal(now.rest[key], tensor), key
            assert now.rest[key].dtype == tensor.dtype
        before = peft.PeftConfig.from_pretrained(path)
        after = peft.PeftConfig.from_pretrained(tmp_path / name)
        assert after.base_model_name_or_path == BASE_NAME
        same = ("lora_alpha", "r", "task_type", "target_modules", "use_rslora", "modules_to_save")
        same += ("rank_pattern", "alpha_pattern", "fan_in_fan_out", "bias")
        for field in same:
            assert getattr(after, field) == getattr(before, field), field
    assert HEAD in load_adapter(tmp_path / "head").rest


def test_two_adapters_of_one_subspace_are_switched_in_one_model(
    collection: Collection, tmp_path: Path
) -> None:
    """Exports stand side by side in one PeftModel, as a server loads them."""
    names = ["plain", "patterns"]
    sources = {name: open_adapter(path) for name, path in collection.paths.items()}
    k = full_k(sources, "delta")
    build_subspace(sources, tmp_path / "s", k=k)
    subspace = SharedSubspace.load(tmp_path / "s")
    for name in names:
        extract_adapter(subspace, name, tmp_path / name)
    first, second = names
    model = peft.PeftModel.from_pretrained(collection.base.model(), tmp_path / first, first)
    model.load_adapter(tmp_path / second, second)
    for name in [second, first]:
        model.set_adapter(name)
        torch.testing.assert_close(make.logits(model), collection.logits[name], **TOLERANCE)


# ---- what PEFT adapts beyond the names that target_modules lists


def applied(base: torch.nn.Module, place: Path) -> dict[str, torch.Tensor]:
    """dW of every module as PEFT loads an adapter."""
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = PeftModel.from_pretrained(base, place).eval()
    return {
        name: module.get_delta_weight("default").detach().double()
        for name, module in model.named_modules()
        if hasattr(module, "get_delta_weight")
    }


def tied(vocabulary: int = 40) -> torch.nn.Module:
    return make.tiny_llama(tie_word_embeddings=True, vocab_size=vocabulary)


@pytest.mark.parametrize(
    ("targets", "ties"),
    [
        (["embed_tokens", "q_proj"], True),
        (["lm_head", "q_proj"], True),
        (["embed_tokens", "lm_head", "q_proj"], False),
    ],
)
@pytest.mark.parametrize("rank", [2, 6])
def test_what_is_tied_to_a_listed_embedding_is_listed(
    targets: list[str], ties: bool, rank: int, tmp_path: Path
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tuned = make.peft_model(tied(), targets, ensure_weight_tying=ties)
        tuned.save_pretrained(tmp_path / "a")
    errors = [f for f in diagnose(tmp_path / "a", target="peft").all_findings
              if f.severity != "note"]  # fmt: skip
    assert errors == []
    resized, _ = resize(open_adapter(tmp_path / "a"), rank=rank)
    save_adapter(resized, tmp_path / "out")
    before, after = applied(tied(), tmp_path / "a"), applied(tied(), tmp_path / "out")
    assert list(before) == list(after)
    assert sum(bool(change.any()) for change in after.values()) == 4
    if rank == 6:
        for name, change in before.items():
            torch.testing.assert_close(after[name], change, rtol=1e-5, atol=1e-7)


def test_the_inner_layer_of_attention_is_listed(tmp_path: Path) -> None:
    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.attn = torch.nn.MultiheadAttention(16, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.attn(x, x, x)[0]

    tuned = make.peft_model(Net(), ["attn"])
    tuned.save_pretrained(tmp_path / "a")
    found = diagnose(tmp_path / "a", target="peft").all_findings
    assert [f.code for f in found if f.severity != "note"] == []
    resized, _ = resize(open_adapter(tmp_path / "a"), rank=6)
    save_adapter(resized, tmp_path / "out")
    before, after = applied(Net(), tmp_path / "a"), applied(Net(), tmp_path / "out")
    assert list(before) == list(after) == ["base_model.model.attn",
                                           "base_model.model.attn.base_layer.out_proj"]  # fmt: skip
    for name, change in before.items():
        torch.testing.assert_close(after[name], change, rtol=1e-5, atol=1e-7)
