"""For every rule of the doctor an adapter that it must name, and a near miss that it must not."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.witnesses import make
from vlora_engine.catalog.open import load_adapter
from vlora_engine.merging import merge
from vlora_engine.targets.save import save_adapter

Build = Callable[[Path], Path | None]  # writes below a folder; returns the place, if it is another
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12345\n"
LAYER0 = "transformer.h.0.attn.c_attn"
WEIGHTS = "adapter_model.safetensors"


@dataclass(frozen=True)
class Case:
    """One rule: what triggers it, what must not, and for whom.

    ``bad_base`` is what the base's config says otherwise, where that is what triggers it.
    """

    bad: Build
    good: Build
    target: str | None = None
    with_base: bool = False
    bad_base: Mapping[str, Any] = field(default_factory=dict)


def put(tensors: Mapping[str, Tensor] | None = None, **changes: Any) -> Build:
    """An adapter ``a`` with these tensors and these fields of its config."""

    def build(folder: Path) -> None:
        make.write(folder / "a", tensors, make.config(**changes))

    return build


def then(build: Build, change: Callable[[Path], Any]) -> Build:
    """The same, changed afterwards: ``change`` gets the adapter's directory."""

    def changed(folder: Path) -> None:
        build(folder)
        change(folder / "a")

    return changed


def both(*builds: Build) -> Build:
    """Several adapters, each in a folder of its own."""

    def build(folder: Path) -> None:
        for i, one in enumerate(builds):
            one(folder / str(i))

    return build


def with_tensors(**more: Tensor) -> dict[str, Tensor]:
    """The usual factors and other tensors; ``__`` in a name stands for a dot."""
    extra = {f"{make.PREFIX}{name.replace('__', '.')}": tensor for name, tensor in more.items()}
    return {**make.factors(), **extra}


def renamed(change: Callable[[str], str]) -> dict[str, Tensor]:
    return {change(key): tensor for key, tensor in make.factors().items()}


def changed(part: str, change: Callable[[Tensor], Tensor], **kwargs: Any) -> dict[str, Tensor]:
    """The usual factors, those with ``part`` in their key changed."""
    tensors = make.factors(**kwargs)
    return {key: change(t) if part in key else t for key, t in tensors.items()}


def pickled(value: Any, *, raw: bool = False) -> Build:
    def build(folder: Path) -> None:
        make.write(folder / "a", settings=make.config())
        (folder / "a" / WEIGHTS).unlink()
        place = folder / "a" / "adapter_model.bin"
        if raw:
            place.write_bytes(pickle.dumps(value, protocol=2))
        else:
            torch.save(value, place)

    return build


def linked(place: str) -> Callable[[Path], None]:
    """Put a link to ``place`` where the tensors were; to the tensors themselves if empty."""

    def change(adapter: Path) -> None:
        moved = (adapter / WEIGHTS).rename(adapter.parent / "moved.bytes")
        (adapter / WEIGHTS).symlink_to(place or moved)

    return change


def one_file(name: str, keys: list[str]) -> Build:
    def build(folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        save_file({key: torch.ones(4, 4) for key in keys}, folder / name)
        return folder / name

    return build


def mlx(folder: Path) -> None:
    """An adapter as MLX-LM writes it."""
    (folder / "a").mkdir(parents=True)
    stem = "model.layers.0.self_attn.q_proj"
    tensors = {f"{stem}.lora_a": torch.ones(12, 4), f"{stem}.lora_b": torch.ones(4, 12)}
    save_file(tensors, folder / "a" / "adapters.safetensors")
    told = {"rank": 4, "scale": 2.0, "dropout": 0.0}
    settings = {"fine_tune_type": "lora", "num_layers": 1, "lora_parameters": told, "model": "x"}
    (folder / "a" / "adapter_config.json").write_text(json.dumps(settings))


def fresh(*, moved: bool) -> dict[str, Tensor]:
    """A as PEFT initialises it, on modules large enough to tell; or moved as training does."""
    modules = dict.fromkeys(make.MODULES, (64, 64))
    tensors = make.factors(modules, rank=8)
    generator = torch.Generator().manual_seed(5)
    for key, tensor in tensors.items():
        if "lora_A" in key:
            uniform = torch.empty(tensor.shape)  # as PEFT's reset_lora_parameters does it
            torch.nn.init.kaiming_uniform_(uniform, a=5**0.5, generator=generator)
            move = 0.02 * torch.randn(tensor.shape, generator=generator)
            tensors[key] = uniform + move if moved else uniform
    return tensors


def _embedding(d: int = 12) -> dict[str, Tensor]:
    return {
        f"{make.PREFIX}transformer.wte.lora_embedding_A": torch.ones(4, 40),
        f"{make.PREFIX}transformer.wte.lora_embedding_B": torch.ones(d, 4),
    }


def base_embedding() -> Tensor:
    """What the base of `write_base` has for its tokens."""
    return torch.randn(400, 12, generator=torch.Generator().manual_seed(3))


def _convolution(groups: int = 1) -> dict[str, Tensor]:
    return {
        f"{make.PREFIX}conv.lora_A.weight": torch.ones(4, 3, 3, 3),
        f"{make.PREFIX}conv.lora_B.weight": torch.ones(8, 4 // groups, 1, 1),
    }


def _ranks(first: int, second: int) -> Build:
    """c_attn of rank ``first`` in layer 0 and ``second`` in layer 1."""
    names = list(make.MODULES)
    ranks = dict.fromkeys(names, 4) | {names[0]: first, names[2]: second}
    return put(make.factors(rank=ranks), rank_pattern=ranks, alpha_pattern=_halves(ranks))


def _halves(ranks: Mapping[str, int]) -> dict[str, float]:
    return {name: 2.0 * rank for name, rank in ranks.items()}  # a scale of 2 everywhere


def _without(part: str) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in make.factors().items() if part not in key}


CLEAN = put()
HEAD = put(with_tensors(score__weight=torch.ones(2, 12)), modules_to_save=["score"])
UNPREFIXED = put(renamed(lambda key: key.removeprefix(make.PREFIX)))
NAMED = put(renamed(lambda key: key.replace(".weight", ".default.weight")))
CONVOLUTION = put(_convolution(), target_modules=["conv"])
DORA = put(use_dora=True)
PATTERN = put(alpha_pattern={"c_proj": 16})
SAME_PATTERN = put(alpha_pattern={"c_proj": 8})  # what lora_alpha says anyway
SEQ_CLS = put(task_type="SEQ_CLS")
KASA = put(kasa_config={"beta": 1.0})
UNLISTED = put(target_modules=["c_attn"])
NO_TYPE = put(peft_type=None)
ZERO_B = put(changed("lora_B", torch.zeros_like))

READING = {
    "lfs-pointer": Case(then(CLEAN, lambda a: (a / WEIGHTS).write_text(POINTER)), CLEAN),
    "corrupt-file": Case(
        then(CLEAN, lambda a: (a / WEIGHTS).write_bytes((a / WEIGHTS).read_bytes()[:300])), CLEAN
    ),
    "missing-file": Case(then(CLEAN, linked("/nowhere/at/all")), then(CLEAN, linked(""))),
    "unsafe-pickle": Case(pickled(print, raw=True), pickled(make.factors())),
    "not-tensors": Case(pickled([torch.ones(2)]), pickled(make.factors())),
    "no-config": Case(then(CLEAN, lambda a: (a / "adapter_config.json").unlink()), CLEAN),
    "bad-config": Case(put(r="four"), put(r=4)),
    "no-tensors": Case(then(CLEAN, lambda a: (a / WEIGHTS).unlink()), CLEAN),
    "no-factors": Case(put({"base_model.model.score.weight": torch.ones(2, 2)}), HEAD),
    "half-pair": Case(put(_without(f"{LAYER0}.lora_B")), put(_without(LAYER0))),
    "factors-disagree": Case(
        put(make.factors() | {f"{make.PREFIX}{LAYER0}.lora_B.weight": torch.ones(36, 3)}), CLEAN
    ),
    "empty-factor": Case(
        put(make.factors() | {f"{make.PREFIX}{LAYER0}.lora_A.weight": torch.ones(0)}), CLEAN
    ),
    "factor-dtype": Case(
        put(changed("lora_A", lambda t: t.to(torch.int8))),
        put(make.factors(dtype=torch.float16)),
    ),
    "several-in-one-file": Case(
        put(
            renamed(lambda k: k.replace(".weight", ".one.weight"))
            | renamed(lambda k: k.replace(".weight", ".two.weight"))
        ),
        NAMED,
    ),
    "grouped-convolution": Case(put(_convolution(groups=2)), CONVOLUTION),
    "rank-disagrees": Case(put(r=6), put(r=6, rank_pattern={"c_attn": 4, "c_proj": 4})),
    "other-peft-type": Case(put(peft_type="IA3"), put(peft_type="lora")),
    "dora": Case(DORA, put(use_dora=False)),
    "moves-base": Case(put(init_lora_weights="pissa_niter_4"), put(init_lora_weights="gaussian")),
    "no-product": Case(KASA, put(kasa_config=None)),
    "foreign-format": Case(
        one_file("style.safetensors", ["lora_unet_a.hada_w1_a", "lora_unet_a.hada_w1_b"]), CLEAN
    ),
    "unknown-format": Case(one_file("some.safetensors", ["one", "two"]), CLEAN),
    "unreadable": Case(
        # reading at 0 of it is an error of the system, of which no code of ours knows
        then(
            CLEAN,
            lambda a: ((a / WEIGHTS).unlink(), (a / WEIGHTS).symlink_to("/proc/self/mem")),
        ),
        CLEAN,
    ),
}

REMARKED = {
    "no-peft-type": Case(NO_TYPE, CLEAN),
    "no-r": Case(put(make.factors(rank=8), r=...), put(make.factors(rank=8), r=8)),
    "no-lora-alpha": Case(put(lora_alpha=None), CLEAN),
    "zero-alpha": Case(put(lora_alpha=0), put(lora_alpha=0.1)),
    "no-base-model": Case(put(base_model_name_or_path=None), CLEAN),
    "local-base-model": Case(
        put(base_model_name_or_path="/data/llama"), put(base_model_name_or_path="org/llama")
    ),
    "pickle-weights": Case(pickled(make.factors()), CLEAN),
    "pickle-beside": Case(
        then(CLEAN, lambda a: (a / "training_args.bin").write_bytes(b"\x80")),
        then(CLEAN, lambda a: (a / "training_args.json").write_text("{}")),
    ),
    "no-prefix": Case(UNPREFIXED, CLEAN),
    "wrapped-names": Case(
        put(renamed(lambda key: key.replace(".attn.", "._orig_mod.attn."))),
        put(renamed(lambda key: key.replace("attn", "module"))),  # a name like any other
    ),
    "named-keys": Case(NAMED, CLEAN),
    "mixed-ranks": Case(_ranks(4, 6), _ranks(4, 4)),
    "overlapping-patterns": Case(
        put(alpha_pattern={"c_attn": 4, "h.0.attn.c_attn": 16}),
        put(alpha_pattern={"c_attn": 4, "h.0.attn.c_attn": 4}),
    ),
    "stale-targets": Case(put(target_modules=["c_attn", "c_proj", "q_proj"]), CLEAN),
    "unlisted-modules": Case(UNLISTED, CLEAN),
    "rest-tensors": Case(HEAD, CLEAN),
    "whole-matrices": Case(put(with_tensors(wte__weight=torch.ones(100, 80))), HEAD),
    "foreign-tensors": Case(
        put(with_tensors(transformer__wpe__diff=torch.ones(3))),
        put(with_tensors(transformer__wpe__diff=torch.zeros(3))),
    ),
    "base-copies": Case(put(with_tensors(wte__base_layer__weight=torch.ones(3, 3))), HEAD),
}

HEADERS = {
    "code-beside": Case(
        then(CLEAN, lambda a: (a / "modeling_mine.py").write_text("")),
        then(CLEAN, lambda a: (a / "README.md").write_text("")),
    ),
    "local-paths": Case(
        put(auto_mapping={"parent_library": "/home/me/code"}),
        put(base_model_name_or_path="/home/me/base"),  # which has a rule of its own
    ),
    "quantized-base": Case(
        put(base_model_name_or_path="unsloth/llama-3-8b-bnb-4bit"),
        put(base_model_name_or_path="unsloth/llama-3-8b"),
    ),
    "wide-dtype": Case(put(make.factors(dtype=torch.float64)), CLEAN),
    "narrow-dtype": Case(
        put(make.factors(dtype=torch.float8_e4m3fn)), put(make.factors(dtype=torch.bfloat16))
    ),
    "mixed-dtypes": Case(
        put(changed("lora_A", lambda t: t.half())),
        put(with_tensors(score__weight=torch.ones(2, 12).half())),  # of a head it is no matter
    ),
    "odd-scale": Case(put(lora_alpha=4000), put(lora_alpha=128)),
    "redundant-rank": Case(put(make.factors(rank=16), r=16), put(make.factors(rank=12), r=12)),
}  # fmt: skip

BASE = {
    "no-module-fits": Case(
        put(renamed(lambda k: k.replace("transformer.h", "model.layers"))),
        # for embeddings the model is loaded without its head
        put(renamed(lambda k: k.replace("transformer.h", "h")), task_type="FEATURE_EXTRACTION"),
        with_base=True,
    ),
    "unknown-modules": Case(
        put(make.factors({**make.MODULES, "transformer.h.7.attn.c_attn": (12, 36)})),
        CLEAN,
        with_base=True,
    ),
    "wrong-shape": Case(put(make.factors({LAYER0: (12, 24)})), CLEAN, with_base=True),
    "other-base": Case(
        put(base_model_name_or_path="org/other"),
        put(base_model_name_or_path="openai-community/gpt2"),
        with_base=True,
    ),
    "vocabulary-differs": Case(
        put(with_tensors(transformer__wte__weight=torch.ones(500, 12))),
        put(with_tensors(transformer__wte__weight=torch.ones(400, 12))),
        with_base=True,
    ),
}


def _loader(name: str) -> dict[str, Case]:
    """The rules that TGI and LoRAX share."""
    return {
        f"{name}-patterns": Case(PATTERN, SAME_PATTERN, name),
        f"{name}-mixed-ranks": Case(_ranks(4, 12), _ranks(4, 6), name),
        f"{name}-missing-layer": Case(put(_without("h.1.attn.c_proj")), CLEAN, name),
        f"{name}-keys": Case(NAMED, CLEAN, name),
        f"{name}-dora": Case(DORA, CLEAN, name),
        f"{name}-embeddings": Case(put(_embedding(), target_modules=["wte"]), CLEAN, name),
        f"{name}-heads": Case(HEAD, CLEAN, name),
        f"{name}-convolutions": Case(CONVOLUTION, CLEAN, name),
    }


TARGETS = {
    "vllm-rank": Case(
        put(make.factors(rank=520), r=520), put(make.factors(rank=512), r=512), "vllm"
    ),
    "vllm-embeddings": Case(put(_embedding(), target_modules=["wte"]), CLEAN, "vllm"),
    "vllm-default-rank": Case(
        put(make.factors(rank=17), r=17), put(make.factors(rank=16), r=16), "vllm"
    ),
    "vllm-bias": Case(put(bias="all"), put(bias="none"), "vllm"),
    "vllm-patterns": Case(PATTERN, SAME_PATTERN, "vllm"),
    "vllm-heads": Case(
        HEAD, put(with_tensors(wte__base_layer__weight=torch.ones(3, 3))), "vllm"
    ),
    "vllm-dora": Case(DORA, CLEAN, "vllm"),
    "vllm-convolutions": Case(CONVOLUTION, CLEAN, "vllm"),
    "vllm-prefix": Case(UNPREFIXED, NAMED, "vllm"),
    "sglang-target-pattern": Case(
        put(target_modules=".*(c_attn|c_proj)"), put(target_modules="all-linear"), "sglang"
    ),
    "sglang-target-paths": Case(put(target_modules=list(make.MODULES)), CLEAN, "sglang"),
    **_loader("tgi"),
    **_loader("lorax"),
    "gguf-rslora": Case(
        put(use_rslora=True), put(make.factors(rank=1), r=1, use_rslora=True), "llamacpp"
    ),
    "gguf-alpha-pattern": Case(PATTERN, SAME_PATTERN, "llamacpp"),
    "gguf-zero-alpha": Case(put(lora_alpha=0), CLEAN, "llamacpp"),
    "gguf-heads": Case(HEAD, CLEAN, "ollama"),
    "gguf-dora": Case(DORA, CLEAN, "llamacpp"),
    "gguf-named-keys": Case(NAMED, CLEAN, "llamacpp"),
    "gguf-convolutions": Case(CONVOLUTION, CLEAN, "llamacpp"),
    "gguf-embeddings": Case(put(_embedding(), target_modules=["wte"]), CLEAN, "llamacpp"),
    "gguf-modules": Case(
        put(make.factors({"lm_head": (12, 400)})),  # GPT-2's output layer is its embedding
        CLEAN,
        "llamacpp",
        with_base=True,
    ),
    "gguf-wrong-base": Case(
        put(make.factors({"transformer.h.2.attn.c_attn": (12, 36)})),
        put(make.factors({"transformer.h.1.attn.c_attn": (12, 36)})),
        "ollama",
        with_base=True,
    ),
    "gguf-architecture": Case(
        CLEAN, CLEAN, "llamacpp", True, {"architectures": ["GPT2DoubleHeadsModel"]}
    ),
    "ollama-safetensors": Case(
        put(base_model_name_or_path="Qwen/Qwen3-8B"),
        put(base_model_name_or_path="meta-llama/Llama-3.1-8B"),
        "ollama",
    ),
    "not-generating": Case(SEQ_CLS, CLEAN, "vllm"),
    "not-peft-files": Case(mlx, CLEAN, "vllm"),
    "peft-prefix": Case(UNPREFIXED, CLEAN, "peft"),
    "peft-ignores": Case(UNLISTED, CLEAN, "peft"),
    "peft-no-type": Case(NO_TYPE, CLEAN, "peft"),
    "peft-foreign": Case(
        put(with_tensors(transformer__wpe__diff=torch.ones(3))),
        HEAD,
        "peft",
    ),
    "sglang-heads": Case(HEAD, CLEAN, "sglang"),
    "sglang-convolutions": Case(CONVOLUTION, CLEAN, "sglang"),
    "sglang-embeddings": Case(put(_embedding(), target_modules=["wte"]), CLEAN, "sglang"),
    "unread-field": Case(
        put(layer_replication=[[0, 1], [0, 2]]), put(layer_replication=None), "vllm"
    ),
    "portable-rank": Case(
        put(make.factors(rank=520), r=520), put(make.factors(rank=512), r=512), "portable"
    ),
    "portable-heads": Case(HEAD, CLEAN, "portable"),
    "portable-convolutions": Case(CONVOLUTION, CLEAN, "portable"),
    "portable-embeddings": Case(
        put(_embedding(), target_modules=["wte"]), CLEAN, "portable"
    ),
    "portable-missing-layer": Case(put(_without("h.1.attn.c_proj")), CLEAN, "portable"),
}  # fmt: skip


def copied(folder: Path) -> Path:
    """An adapter ``source``, and beside it ``a``, which this program made of it."""
    make.write(folder / "source", make.factors(), make.config())
    save_adapter(merge([load_adapter(folder / "source")], "linear", weights=[-1]), folder / "a")
    return folder


def overwritten(name: str) -> Build:
    """The same, the tensors of one of the two changed under what its header says."""

    def build(folder: Path) -> Path:
        file = copied(folder) / name / WEIGHTS
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata()
        save_file({key: 1.5 * t for key, t in load_file(file).items()}, file, metadata)
        return folder

    return build


TENSORS = {
    "content-changed": Case(overwritten("a"), overwritten("source")),
    "not-finite": Case(put(changed(f"{LAYER0}.lora_A", lambda t: t.fill_(float("inf")))), CLEAN),
    "rest-not-finite": Case(put(with_tensors(score__weight=torch.full((2, 12), torch.nan))), HEAD),
    "no-effect": Case(ZERO_B, put(changed(f"{LAYER0}.lora_B", torch.zeros_like))),
    "idle-modules": Case(put(changed(f"{LAYER0}.lora_B", torch.zeros_like)), CLEAN),
    "fresh-a": Case(put(fresh(moved=False), r=8), put(fresh(moved=True), r=8)),
    "beyond-fp16": Case(put(changed("lora_B", lambda t: 1e6 * t)), CLEAN),
}

TENSORS |= {
    "same-as-base": Case(
        put(with_tensors(transformer__wte__weight=base_embedding())),
        put(with_tensors(transformer__wte__weight=base_embedding() + 1)),
        with_base=True,
    ),
    "other-than-base": Case(
        put(with_tensors(transformer__wte__base_layer__weight=base_embedding() + 1)),
        put(with_tensors(transformer__wte__base_layer__weight=base_embedding().half())),
        with_base=True,
    ),
}

TOGETHER = {
    "source-changed": Case(overwritten("source"), overwritten("a")),
    "base-models-differ": Case(
        both(CLEAN, put(base_model_name_or_path="org/other")),
        # a copy of the base under another owner, in four bits, is the same base
        both(CLEAN, put(base_model_name_or_path="unsloth/gpt2-bnb-4bit")),
    ),
    "dimensions-differ": Case(
        both(CLEAN, put(make.factors({LAYER0: (12, 24)}))),
        both(CLEAN, put(make.factors({LAYER0: (12, 24)}), base_model_name_or_path="org/other")),
    ),
    "duplicates": Case(both(CLEAN, put(lora_dropout=0.5)), both(CLEAN, put(make.factors(seed=1)))),
}

CASES: dict[str, Case] = {
    **READING, **REMARKED, **HEADERS, **BASE, **TARGETS, **TENSORS, **TOGETHER
}  # fmt: skip


def write_base(folder: Path) -> Path:
    """A GPT-2 that the usual factors fit: two layers, 12 wide, 400 tokens."""
    base = folder / "gpt2"
    model = make.tiny_gpt2(n_embd=12, vocab_size=400)
    model.transformer.wte.weight.data.copy_(base_embedding())
    model.save_pretrained(base)
    assert json.loads((base / "config.json").read_text())["n_embd"] == 12
    return base


def base_of(case: Case, base: Path, folder: Path) -> Path | None:
    """The base beside which the rule is to speak up."""
    if not case.with_base or not case.bad_base:
        return base if case.with_base else None
    other = folder / "base" / base.name
    shutil.copytree(base, other)
    told = json.loads((base / "config.json").read_text()) | case.bad_base
    (other / "config.json").write_text(json.dumps(told))
    return other
