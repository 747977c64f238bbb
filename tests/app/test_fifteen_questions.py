"""Fifteen questions that people with adapters ask, and the one command that answers each.

Read from top to bottom this is a manual. The adapters are made here; PEFT, dense arithmetic, the
packages gguf and mlx-lm's own layout are the witnesses of what was written.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.app.conftest import Cli
from tests.witnesses import make
from vlora_engine.catalog.open import open_adapter
from vlora_engine.shared_subspace import SharedSubspace

pytest.importorskip("peft")

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``base``, a tiny Llama, and adapters of it: ``legal`` of rank 4, ``medical`` of rank 8."""
    place = tmp_path_factory.mktemp("adapters")
    make.tiny_llama(hidden_size=32).save_pretrained(place / "base")
    for seed, (name, rank) in enumerate({"legal": 4, "medical": 8}.items(), start=1):
        trained(place, name, seed=seed, r=rank)
    return place


@pytest.fixture
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of them, which is the current directory."""
    place = Path(shutil.copytree(made, tmp_path / "work"))
    monkeypatch.chdir(place)
    return place


def trained(place: Path, name: str, seed: int = 1, **fields: Any) -> Path:
    """An adapter of the base by PEFT, with an effect."""
    model = make.peft_model(
        make.tiny_llama(hidden_size=32), ["q_proj", "v_proj"], seed=seed, **fields
    )
    make.randomise(model)
    model.peft_config["default"].base_model_name_or_path = "base"
    model.save_pretrained(place / name)
    return place / name


def applied(adapter: str | Path) -> dict[str, Tensor]:
    """dW of every module on which PEFT lets the adapter act."""
    import peft

    model = peft.PeftModel.from_pretrained(make.tiny_llama(hidden_size=32), adapter)
    found = {
        name: module.get_delta_weight("default").detach().double()
        for name, module in model.named_modules()
        if hasattr(module, "get_delta_weight")
    }
    return {name: dw for name, dw in found.items() if bool(dw.any())}


def same(found: dict[str, Tensor], meant: dict[str, Tensor], limit: float = 1e-6) -> None:
    assert found.keys() == meant.keys()
    for name, dw in meant.items():
        assert float((found[name] - dw).norm()) <= limit * float(dw.norm()), name


def rewritten(adapter: Path, **names: Any) -> None:
    """Change the tensors' names as a wrapper around the model would have."""
    tensors = load_file(adapter / WEIGHTS)
    save_file({f"{names['prefix']}{key}": t for key, t in tensors.items()}, adapter / WEIGHTS)


# 1


def test_did_my_adapter_do_anything_at_all(cli: Cli, here: Path) -> None:
    said = cli("doctor", "legal", "--base", "base").out
    assert "applies to 4 of 4 modules of base" in said

    rewritten(here / "legal", prefix="_orig_mod.")  # as torch.compile leaves it
    assert not applied("legal")
    said = cli("doctor", "legal", "--base", "base", "--fail-on", "warning", code=3).out
    assert "applies to 0 of 4 modules of base" in said
    cli("doctor", "legal", "--base", "base", "--fix", "-o", "mended")
    assert len(applied("mended")) == 4

    tensors = load_file("medical/" + WEIGHTS)
    save_file({k: t * ("lora_B" not in k) for k, t in tensors.items()}, "medical/" + WEIGHTS)
    said = cli("doctor", "medical", code=3).out  # B is zero: it was never trained
    assert "no-effect" in said


# 2


def test_merge_these_into_one_whatever_their_ranks(cli: Cli, here: Path) -> None:
    cli("merge", "legal", "medical", "-o", "merged")
    one, other = applied("legal"), applied("medical")
    same(applied("merged"), {name: (one[name] + other[name]) / 2 for name in one}, 1e-5)


# 3


def test_my_rank_is_too_big_for_the_server(cli: Cli, here: Path) -> None:
    trained(here, "wide", r=24)
    said = cli("resize", "wide", "--target", "vllm", "-o", "served").out
    assert "start vllm with --max-lora-rank 32" in said
    same(applied("served"), applied("wide"))


# 4


def test_the_server_refuses_modules_to_save(cli: Cli, here: Path) -> None:
    trained(here, "headed", modules_to_save=["lm_head"])
    words = ["export", "headed", "--target", "vllm", "-o", "served"]
    assert "--drop-rest" in cli(*words, code=2).err
    cli(*words, "--drop-rest")
    assert not json.loads(Path("served", CONFIG).read_text())["modules_to_save"]
    same(applied("served"), applied("headed"))


# 5


def test_gguf_without_merging(cli: Cli, here: Path) -> None:
    gguf = pytest.importorskip("gguf")
    cli("export", "legal", "--target", "llamacpp", "--base", "base", "-o", "gguf")
    reader = gguf.GGUFReader("gguf/adapter.gguf")
    assert {t.name.rpartition(".")[2] for t in reader.tensors} == {"lora_a", "lora_b"}
    assert len(reader.tensors) == 8
    back = open_adapter("gguf")  # q and k have another row order there, which is undone
    meant = applied("legal")
    for name, dw in meant.items():
        a, b = back.read(name.removeprefix("base_model.model."))
        found = back.scales[name.removeprefix("base_model.model.")] * b.double() @ a.double()
        assert float((found - dw).norm()) < 1e-6 * float(dw.norm())


# 6


def test_the_merged_model_behaves_differently(cli: Cli, here: Path) -> None:
    import peft

    base = make.tiny_llama(hidden_size=32)
    merged = peft.PeftModel.from_pretrained(base, "legal").merge_and_unload()
    merged.save_pretrained("merged")
    cli("doctor", "legal", "--base", "base", "--merged", "merged")
    with torch.no_grad():
        merged.model.layers[1].self_attn.v_proj.weight.copy_(
            make.tiny_llama(hidden_size=32).model.layers[1].self_attn.v_proj.weight
        )
    merged.save_pretrained("half-merged")
    said = cli("doctor", "legal", "--base", "base", "--merged", "half-merged", code=3).out
    assert "model.layers.1.self_attn.v_proj" in said
    assert "not merged" in said


# 7


def test_why_is_my_adapter_gigabytes(cli: Cli, here: Path) -> None:
    trained(here, "heavy")
    tensors = load_file("heavy/" + WEIGHTS)
    copies = {
        f"base_model.model.{key}": tensor.clone()
        for key, tensor in make.tiny_llama(hidden_size=32).state_dict().items()
        if "embed_tokens" in key or key == "lm_head.weight"
    }
    save_file({**tensors, **copies}, "heavy/" + WEIGHTS)
    said = cli("doctor", "heavy", "--base", "base").out
    nbytes = sum(tensor.nbytes for tensor in copies.values())
    assert f"{nbytes / 1000:.3g} kB" in said
    (command,) = {
        line.split("command: ", 1)[1].split("  (")[0]
        for line in said.splitlines()
        if "--drop-rest" in line and "command: " in line
    }
    words = command.split()[1:]
    cli(*words)
    out = Path(words[words.index("-o") + 1])
    assert (out / WEIGHTS).stat().st_size < Path("heavy", WEIGHTS).stat().st_size / 2
    same(applied(out), applied("heavy"))


# 8


def test_it_does_not_load_the_vocabulary_is_another(cli: Cli, here: Path) -> None:
    model = make.peft_model(
        make.tiny_llama(hidden_size=32, vocab_size=44), ["q_proj", "embed_tokens"]
    )
    model.peft_config["default"].base_model_name_or_path = "base"
    model.save_pretrained("grown", save_embedding_layers=False)
    said = cli("doctor", "grown", "--base", "base", code=3).out
    assert "embed_tokens" in said
    assert "44" in said
    assert "40" in said


# 9


def test_many_adapters_in_one_server(cli: Cli, here: Path) -> None:
    cli("compress", "legal", "medical", "-o", "shared", "--max-error", "0.01")
    said = cli("export", "shared", "--all", "--target", "vllm", "-o", "served").out
    assert "VLLM_LORA_RESOLVER_CACHE_DIR=" in said
    for name in ("legal", "medical"):
        config = json.loads(Path("served", name, CONFIG).read_text())
        assert (config["peft_type"], config["base_model_name_or_path"]) == ("LORA", "base")
        found, meant = applied(f"served/{name}"), applied(name)
        lost = sum(float((found[module] - dw).square().sum()) for module, dw in meant.items())
        assert lost <= (1.01 * 0.01) ** 2 * sum(float(dw.square().sum()) for dw in meant.values())
    assert sorted(SharedSubspace.load("shared").tasks) == ["legal", "medical"]


# 10


@pytest.mark.parametrize("fault", ["nan", "cut short", "pointer"])
def test_is_this_file_broken(cli: Cli, here: Path, fault: str) -> None:
    file = Path("legal", WEIGHTS)
    if fault == "nan":
        tensors = load_file(file)
        next(iter(tensors.values()))[0, 0] = float("nan")
        save_file(tensors, file)
    elif fault == "cut short":
        file.write_bytes(file.read_bytes()[:-100])
    else:
        file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    words = {"nan": "not finite", "cut short": "truncated", "pointer": "LFS"}
    said = cli("doctor", "legal", code=3).out
    assert words[fault].lower() in said.lower() or (fault == "nan" and "NaN" in said)


# 11


def test_mlx_to_peft_and_back(cli: Cli, here: Path) -> None:
    cli("convert", "legal", "--to", "mlx", "-o", "mlx")
    tensors = load_file("mlx/adapters.safetensors")
    assert all(key.endswith((".lora_a", ".lora_b")) for key in tensors)
    cli("convert", "mlx", "--to", "peft", "-o", "again")
    same(applied("again"), applied("legal"))


# 12


def test_where_does_this_adapter_come_from(cli: Cli, here: Path) -> None:
    cli("merge", "legal", "medical", "--method", "ties", "-o", "merged")
    said = cli("inspect", "merged").out
    for word in ("legal", "medical", "ties"):
        assert word in said
    for file in Path("merged").iterdir():
        assert str(here).encode() not in file.read_bytes()


# 13


def test_will_these_two_get_in_each_others_way(cli: Cli, here: Path) -> None:
    verdict, _, figures = cli("interference", "legal", "medical").out.partition("\n")
    assert "legal" in verdict
    assert "medical" in verdict
    assert verdict.endswith(".")
    assert "cosine" in figures


# 14


def test_make_it_as_small_as_my_quantized_model(cli: Cli, here: Path) -> None:
    pytest.importorskip("gguf")
    trained(here, "wide", r=32)
    words = ["export", "wide", "--target", "llamacpp", "--base", "base"]
    cli(*words, "-o", "whole")
    cli(*words, "--dtype", "q8_0", "-o", "eighth")
    sizes = [Path(place, "adapter.gguf").stat().st_size for place in ("whole", "eighth")]
    assert sizes[1] < 0.5 * sizes[0]
    back, meant = open_adapter("eighth"), open_adapter("wide")
    for name in meant.modules:
        (a, b), (c, d) = meant.read(name), back.read(name)
        dw = meant.scales[name] * b.double() @ a.double()
        assert float((back.scales[name] * d.double() @ c.double() - dw).norm()) < 0.02 * dw.norm()


# 15


def test_it_takes_hours(cli: Cli, here: Path) -> None:
    """What is done is not done again: the same command, run again, goes on where it was."""
    words = ["export", "legal", "medical", "--target", "vllm", "-o", "served"]
    cli(*words)
    shutil.rmtree("served/medical")  # as if it had been stopped there
    before = Path("served/legal", WEIGHTS).stat()
    said = cli(*words).out
    assert "skipped legal: the same is there already" in said
    assert "exported medical" in said
    assert Path("served/legal", WEIGHTS).stat().st_mtime_ns == before.st_mtime_ns
