"""Fields that change when or how B @ A acts are carried, or stop whoever cannot carry them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.witnesses import make
from tests.witnesses.llama_cpp import Lora
from vlora_engine.catalog.open import open_adapter
from vlora_engine.convert.convert import losses_of
from vlora_engine.errors import AdapterError, UnsupportedAdapterError
from vlora_engine.formats.config import VARIANTS
from vlora_engine.formats.config_fields import FIELDS, unread
from vlora_engine.merging import merge
from vlora_engine.resizing import resize
from vlora_engine.targets import TARGETS
from vlora_engine.targets.save import save_adapter

TOKENS = [5, 6, 8]
SERVERS = [name for name, target in TARGETS.items() if name != "peft" and target.form == "peft"]
ACTING: dict[str, Any] = {
    "alora_invocation_tokens": TOKENS,
    "layer_replication": [[0, 1], [0, 2]],
    "a_field_of_next_year": {"gate": "sigmoid"},
}


def test_every_field_of_peft_has_a_decision() -> None:
    config = pytest.importorskip("peft").LoraConfig
    named = {field.name for field in dataclasses.fields(config)}
    assert named <= set(FIELDS), "say in config_fields.py what a new field decides"
    assert {variant.field for variant in VARIANTS} <= {
        name for name, field in FIELDS.items() if field.decides in ("kind", "training")
    }
    assert unread(config(target_modules=["q_proj"], task_type="CAUSAL_LM").to_dict()) == []


def test_a_field_that_says_nothing_stops_nobody() -> None:
    empty = {"a_field_of_next_year": None, "another": False, "third": [], "fourth": {}}
    assert unread(make.config(alora_invocation_tokens=None, **empty)) == []


@pytest.mark.parametrize("field", ACTING)
@pytest.mark.parametrize("target", SERVERS)
def test_a_server_that_does_not_know_a_field_does_not_get_it(
    field: str, target: str, tmp_path: Path
) -> None:
    weights = make.weights(metadata=make.config(**{field: ACTING[field]}))
    with pytest.raises(UnsupportedAdapterError, match=field):
        save_adapter(weights, tmp_path / "out", target=target)
    assert not (tmp_path / "out").exists()
    with pytest.raises(UnsupportedAdapterError, match=field):
        resize(weights, target=target)


@pytest.mark.parametrize("field", ACTING)
def test_what_is_written_for_peft_keeps_it(field: str, tmp_path: Path) -> None:
    make.write(tmp_path / "a", settings=make.config(**{field: ACTING[field]}))
    source = open_adapter(tmp_path / "a")
    smaller, _ = resize(source, rank=2)
    merged = merge([source, source], "linear")
    for name, weights in (("smaller", smaller), ("merged", merged)):
        save_adapter(weights, tmp_path / name)
        written = json.loads((tmp_path / name / "adapter_config.json").read_text())
        assert written[field] == ACTING[field], name


@pytest.mark.parametrize("field", ACTING)
def test_adapters_that_differ_in_it_are_not_merged(field: str) -> None:
    one = make.weights(metadata=make.config(**{field: ACTING[field]}))
    other = make.weights(seed=1, metadata=make.config())
    with pytest.raises(UnsupportedAdapterError, match=field):
        merge([one, other], "linear")


@pytest.mark.parametrize("field", ACTING)
@pytest.mark.parametrize("to", ["mlx", "vlora-dev"])
def test_a_format_without_a_place_for_it_says_so(field: str, to: str, tmp_path: Path) -> None:
    make.write(tmp_path / "a", settings=make.config(**{field: ACTING[field]}))
    found = losses_of(to, {"a": open_adapter(tmp_path / "a")})
    assert [field in loss.what for loss in found if loss.serious] == [True]


@pytest.mark.parametrize("target", ["llamacpp", "ollama"])
def test_llama_cpp_gets_the_tokens_under_its_own_key(target: str, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    make.tiny_llama().save_pretrained(tmp_path / "base")
    tuned = make.peft_model(
        make.tiny_llama(), ["q_proj"], task_type="CAUSAL_LM", alora_invocation_tokens=TOKENS
    )
    tuned.save_pretrained(tmp_path / "a")
    weights = open_adapter(tmp_path / "a")
    merged = merge([weights], "linear")
    save_adapter(merged, tmp_path / "out", target=target, base=tmp_path / "base")
    file = tmp_path / "out" / "adapter.gguf"
    assert Lora.read(file).values["adapter.alora.invocation_tokens"] == TOKENS
    from gguf import GGUFReader, GGUFValueType

    kinds = GGUFReader(file).fields["adapter.alora.invocation_tokens"].types
    assert kinds == [GGUFValueType.ARRAY, GGUFValueType.UINT32]  # llama.cpp takes no other
    assert open_adapter(tmp_path / "out").config["alora_invocation_tokens"] == TOKENS


@pytest.mark.parametrize("tokens", ["5 6", [1.5], [-1], [True], [2**32]])
def test_tokens_that_are_none_are_refused(tokens: Any, tmp_path: Path) -> None:
    make.write(tmp_path / "a", settings=make.config(alora_invocation_tokens=tokens))
    with pytest.raises(AdapterError, match="alora_invocation_tokens"):
        open_adapter(tmp_path / "a")


def test_a_model_of_hooks_does_not_act_from_the_first_token(tmp_path: Path) -> None:
    from vlora_engine import SharedSubspace, VLoRAModel

    sources = {
        name: make.weights(seed=i, metadata=make.config(alora_invocation_tokens=TOKENS))
        for i, name in enumerate("ab")
    }
    space = SharedSubspace.from_adapters(list(sources.values()), list(sources), num_components=8)
    model = VLoRAModel(make.tiny_gpt2(n_embd=12), space)
    with pytest.raises(UnsupportedAdapterError, match="alora_invocation_tokens"):
        model.set_task("a")
    assert torch.is_tensor(make.logits(model))
