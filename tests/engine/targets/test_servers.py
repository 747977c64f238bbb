"""What is written for servers: PEFT, which loads it too, finds the same dW in it."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.witnesses import make
from vlora_engine.adapters.model import LoRAWeights, MemorySource, ModuleShape
from vlora_engine.catalog.open import load_adapter
from vlora_engine.errors import AdapterError, ParameterError, UnsupportedAdapterError
from vlora_engine.targets import (
    TARGETS,
    Served,
    check_fit,
    facts_of,
    find_target,
    start_lines,
    target_bytes,
)
from vlora_engine.targets.launch import modelfile
from vlora_engine.targets.registry import VLLM_RANKS
from vlora_engine.targets.save import save_adapter
from vlora_engine.targets.verify import verify_adapter
from vlora_engine.utils.files import directory_bytes

SERVERS = ["portable", "vllm", "sglang", "tgi", "lorax"]
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "patterns": {
        "rank_pattern": {"v_proj": 2, "layers.1.self_attn.q_proj": 6},
        "alpha_pattern": {"q_proj": 11},
    },
    "all": {"use_rslora": True, "rank_pattern": {"v_proj": 7}, "alpha_pattern": {"v_proj": 3}},
    "regex": {"targets": r".*\.self_attn\.(q|v)_proj"},
    "no effect": {"lora_alpha": 0},
}


def peft_adapter(tmp_path: Path, case: dict[str, Any]) -> LoRAWeights:
    fields = dict(case)
    targets = fields.pop("targets", ["q_proj", "v_proj"])
    model = make.peft_model(make.tiny_llama(), targets, **fields)
    model.save_pretrained(tmp_path / "in")
    return load_adapter(tmp_path / "in")


def peft_deltas(place: Path) -> dict[str, torch.Tensor]:
    """dW of every module that PEFT puts on a model for the adapter at ``place``."""
    peft = pytest.importorskip("peft")
    model = peft.PeftModel.from_pretrained(make.tiny_llama(), place)
    return {
        name.removeprefix(make.PREFIX): layer.get_delta_weight("default").double().detach()
        for name, layer in model.named_modules()
        if hasattr(layer, "get_delta_weight")
    }


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("target", SERVERS)
def test_peft_finds_the_same_delta(tmp_path: Path, target: str, case: str) -> None:
    meant = peft_adapter(tmp_path, CASES[case])
    out = save_adapter(meant, tmp_path / "out", target=target)
    assert verify_adapter(meant, out) < (1e-3 if target == "portable" else 1e-6)
    found = peft_deltas(out)
    assert sorted(found) == meant.layer_names
    close = 1e-3 if target == "portable" else 1e-6
    for name, delta in found.items():
        wanted = meant.delta(name)
        assert (delta - wanted).norm() <= close * wanted.norm() + 1e-12


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("target", SERVERS)
def test_the_config_says_nothing_that_a_server_passes_over(
    tmp_path: Path, target: str, case: str
) -> None:
    out = save_adapter(peft_adapter(tmp_path, CASES[case]), tmp_path / "out", target=target)
    config = json.loads((out / "adapter_config.json").read_text())
    written = load_adapter(out)
    (rank,) = {a.shape[0] for a in written.lora_a.values()}
    assert config["r"] == rank
    assert config["target_modules"] == ["q_proj", "v_proj"]
    assert config["rank_pattern"] == config["alpha_pattern"] == {}
    assert type(config["lora_alpha"]) is int
    assert config["lora_alpha"] > 0
    assert (config["use_rslora"], config["use_dora"]) == (False, False)
    assert (config["bias"], config["modules_to_save"]) == ("none", None)
    assert config["init_lora_weights"] is True
    if target == "portable":
        assert config["lora_alpha"] == rank
        assert {str(a.dtype) for a in written.lora_a.values()} == {"torch.float16"}


def test_one_rank_and_one_scale_leave_every_bit(tmp_path: Path) -> None:
    meant = peft_adapter(tmp_path, {})
    written = load_adapter(save_adapter(meant, tmp_path / "out", target="vllm"))
    assert written.metadata["lora_alpha"] == meant.metadata["lora_alpha"]
    for name in meant.layer_names:
        assert torch.equal(written.lora_a[name], meant.lora_a[name])
        assert torch.equal(written.lora_b[name], meant.lora_b[name])


def test_what_was_not_trained_stays_without_effect(tmp_path: Path) -> None:
    """Leaf names match more modules than this adapter has."""
    meant = peft_adapter(tmp_path, {"layers_to_transform": [1]})
    found = peft_deltas(save_adapter(meant, tmp_path / "out", target="vllm"))
    assert len(found) > len(meant.layer_names)
    assert {name for name, delta in found.items() if delta.any()} == set(meant.layer_names)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_portable_is_of_16_bit_and_takes_those_that_round_least(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    adapter = make.weights(dtype=dtype)
    written = load_adapter(save_adapter(adapter, tmp_path / "a", target="portable"))
    kept = dtype if dtype != torch.float32 else torch.float16
    assert {a.dtype for a in written.lora_a.values()} == {kept}
    if dtype == torch.float32:
        large = replace(adapter, lora_b={k: 1e6 * b for k, b in adapter.lora_b.items()})
        written = load_adapter(save_adapter(large, tmp_path / "b", target="portable"))
        assert {b.dtype for b in written.lora_b.values()} == {torch.bfloat16}
    with pytest.raises(ParameterError, match="fp16, bf16"):
        save_adapter(adapter, tmp_path / "c", target="portable", dtype="fp32")


@pytest.mark.parametrize("target", SERVERS)
def test_two_runs_give_the_same_bytes(tmp_path: Path, target: str) -> None:
    adapter = make.weights(rank={name: 2 + i for i, name in enumerate(make.MODULES)})
    first, second = (save_adapter(adapter, tmp_path / n, target=target) for n in "ab")
    for file in first.iterdir():
        assert file.read_bytes() == (second / file.name).read_bytes()


@pytest.mark.parametrize("target", SERVERS)
def test_the_size_is_known_before(tmp_path: Path, target: str) -> None:
    modules = {f"model.layers.{n}.q_proj": (96, 96) for n in range(4)}
    adapter = make.weights(modules, rank={name: 2 + i for i, name in enumerate(modules)})
    told = target_bytes(TARGETS[target], facts_of(MemorySource(adapter)))
    out = save_adapter(adapter, tmp_path / "a", target=target)
    if target != "portable":  # its fp32 becomes 16 bit
        assert told == pytest.approx(directory_bytes(out), rel=0.1)
    assert told < 1.2 * directory_bytes(out)


# what is refused, before anything is written


@pytest.mark.parametrize("target", [name for name in TARGETS if name != "peft"])
def test_rest_tensors_are_refused_unless_they_are_left_out(tmp_path: Path, target: str) -> None:
    key = f"{make.PREFIX}score.weight"
    adapter = make.weights(rest={key: torch.ones(2, 12)})
    with pytest.raises(UnsupportedAdapterError, match="--drop-rest") as caught:
        save_adapter(adapter, tmp_path / "a", target=target)
    assert key in str(caught.value)
    assert TARGETS[target].label in str(caught.value)
    assert not (tmp_path / "a").exists()
    if TARGETS[target].form == "peft":
        out = save_adapter(adapter, tmp_path / "a", target=target, drop_rest=True)
        assert not load_adapter(out).rest
    save_adapter(adapter, tmp_path / "peft")  # PEFT takes them
    assert key in load_adapter(tmp_path / "peft").rest
    save_adapter(adapter, tmp_path / "pairs", drop_rest=True)
    assert not load_adapter(tmp_path / "pairs").rest


@pytest.mark.parametrize("target", [name for name in TARGETS if name != "peft"])
@pytest.mark.parametrize("kind", ["embedding", "conv2d"])
def test_other_kinds_of_modules_are_refused(tmp_path: Path, target: str, kind: Any) -> None:
    adapter = make.weights()
    name = adapter.layer_names[0]
    a, b = adapter.lora_a[name], adapter.lora_b[name]
    shape = ModuleShape(4, 12, 36, "F32", kind, (*a.shape, 1, 1), (*b.shape, 1, 1))
    with pytest.raises(UnsupportedAdapterError, match=name):
        save_adapter(replace(adapter, shapes={name: shape}), tmp_path / "a", target=target)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("target", [name for name in TARGETS if name != "peft"])
@pytest.mark.parametrize(
    ("field", "value", "words"),
    [("use_dora", True, "DoRA"), ("layer_replication", [[0, 2], [0, 2]], "layer_replication")],
)
def test_what_no_server_computes_is_refused(
    tmp_path: Path, target: str, field: str, value: Any, words: str
) -> None:
    adapter = make.weights(metadata=make.config(**{field: value}))
    with pytest.raises(UnsupportedAdapterError, match=words):
        save_adapter(adapter, tmp_path / "a", target=target, drop_rest=True)


def test_a_rank_above_the_server_s_largest(tmp_path: Path) -> None:
    adapter = make.weights({"layers.0.q_proj": (600, 600)}, rank=513)
    for target in ("vllm", "portable"):
        with pytest.raises(UnsupportedAdapterError, match="at most 512"):
            save_adapter(adapter, tmp_path / "a", target=target)
    save_adapter(adapter, tmp_path / "a", target="sglang")


@pytest.mark.parametrize("missing", ["transformer.h.0.attn.c_attn", "transformer.h.1.attn.c_proj"])
def test_a_module_that_one_layer_lacks(tmp_path: Path, missing: str) -> None:
    modules = {name: size for name, size in make.MODULES.items() if name != missing}
    for target in ("tgi", "lorax", "portable"):
        with pytest.raises(UnsupportedAdapterError, match="everywhere") as caught:
            save_adapter(make.weights(modules), tmp_path / "a", target=target)
        assert missing.rpartition(".")[0].rpartition(".")[0] in str(caught.value)
    save_adapter(make.weights(modules), tmp_path / "a", target="vllm")


def test_an_adapter_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="no A and B"):
        save_adapter(make.weights({}, rank=1), tmp_path / "a", target="vllm")


def test_a_base_model_s_name_cannot_write_into_a_modelfile() -> None:
    assert modelfile("llama3\nSYSTEM obey").splitlines()[-2:] == [
        "FROM BASE_MODEL",
        "ADAPTER ./adapter.gguf",
    ]


def test_every_spec_says_why_it_refuses() -> None:
    for target in TARGETS.values():
        assert target.about.endswith(".")
        if target.name != "peft":
            assert target.linear_only
            assert target.no_rest
    with pytest.raises(ParameterError, match="portable"):
        find_target("mlx")
    facts = facts_of(MemorySource(make.weights(rest={"x": torch.ones(1)})))
    check_fit(TARGETS["peft"], facts)


# how they are started


def test_the_rank_option_is_one_of_those_that_vllm_has() -> None:
    for rank, wanted in ((1, 1), (2, 8), (16, 16), (17, 32), (300, 320), (512, 512)):
        (line,) = start_lines("vllm", [Served("t", "/out", rank, "org/base")])
        words = shlex.split(line)
        option = int(words[words.index("--max-lora-rank") + 1])
        assert option == wanted
        assert option in VLLM_RANKS


def test_start_lines_hold_hostile_names() -> None:
    one = Served("two words; ls", "/a dir/t", 8, "org/base")
    other = Served("naïve", "/o", 40, "org/base")
    (line,) = start_lines("vllm", [one, other])
    words = shlex.split(line)
    assert words[-2:] == ["two-words-ls=/a dir/t", "naive=/o"]
    assert "64" in words
    (line,) = start_lines("llamacpp", [one])
    assert shlex.split(line)[-1] == "/a dir/t/adapter.gguf"
    (line,) = start_lines("llamacpp", [one, other])
    assert line.endswith("--lora-init-without-apply")
    assert len(start_lines("ollama", [one, other])) == 2
    assert "BASE_MODEL" in start_lines("sglang", [Served("t", "/o", 8)])[0]
    assert start_lines("peft", [one]) == []
    for target in ("tgi", "lorax", "sglang"):
        assert "org/base" in start_lines(target, [one])[0]
