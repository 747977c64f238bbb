"""``export`` of adapters as they are: no subspace in between, nothing lost."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.app.conftest import Cli
from tests.witnesses import make
from vlora_engine.catalog.open import load_adapter, open_adapter
from vlora_engine.targets import TARGETS

GPT2 = {"model_type": "gpt2", "n_layer": 2, "n_head": 2, "n_embd": 12}
ROUNDING = {"portable": 1e-3}  # stored in 16 bit


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """The config of the model that the adapters of `runs` fit."""
    folder = tmp_path / "some-base"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(GPT2))
    return folder


def dense(path: str | Path) -> dict[str, Tensor]:
    """Every module's dW as one matrix."""
    source = open_adapter(path)
    found = {}
    for name in source.modules:
        a, b = source.read(name)
        found[name] = source.scales[name] * b.double() @ a.double()
    return found


def off(path: str | Path, meant: dict[str, Tensor]) -> float:
    found = dense(path)
    assert found.keys() == meant.keys()
    return max(float((found[n] - dw).norm() / dw.norm()) for n, dw in meant.items())


def resolved(folder: Path, name: str, served: str) -> Path | None:
    """The adapter that vLLM's filesystem resolver would load: its documented rule, written anew."""
    place = folder / name
    if not (place / "adapter_config.json").is_file():
        return None
    config = json.loads((place / "adapter_config.json").read_text())
    fits = config["peft_type"] == "LORA" and config["base_model_name_or_path"] == served
    return place if fits else None


@pytest.mark.parametrize("target", TARGETS)
def test_dw_is_what_it_was_for_every_target(
    cli: Cli, runs: Path, base: Path, tmp_path: Path, target: str
) -> None:
    words = ["export", runs / "task01", "--target", target, "--base", base, "-o", tmp_path / "o"]
    (row,) = cli(*words, "--json").data["exported"]
    limit = ROUNDING.get(target, 1e-6)
    assert off(row["path"], dense(runs / "task01")) < limit
    assert row["verify_error"] < limit


def test_several_and_a_folder_go_to_a_folder_each(cli: Cli, runs: Path, tmp_path: Path) -> None:
    cli("export", runs / "task00", runs / "task03", "-o", tmp_path / "two")
    assert sorted(p.name for p in (tmp_path / "two").iterdir()) == ["task00", "task03"]
    cli("export", runs, "-o", tmp_path / "all")
    assert sorted(p.name for p in (tmp_path / "all").iterdir()) == [f"task0{i}" for i in range(4)]
    cli("export", runs / "task00", "--all", "-o", tmp_path / "one")
    assert off(tmp_path / "one/task00", dense(runs / "task00")) == 0
    said = cli("export", runs, "-o", tmp_path / "all").out  # again
    assert said.count("skipped") == 4


def test_a_task_of_a_subspace_by_its_address(cli: Cli, built: Path, tmp_path: Path) -> None:
    cli("export", f"{built}:task02", "--target", "vllm", "-o", tmp_path / "a")
    cli("export", built, "task02", "--target", "vllm", "-o", tmp_path / "b")
    weights = "adapter_model.safetensors"
    assert (tmp_path / "a" / weights).read_bytes() == (tmp_path / "b" / weights).read_bytes()


def test_the_folder_is_one_that_vllms_resolver_serves(cli: Cli, runs: Path, tmp_path: Path) -> None:
    words = ["export", runs, "--target", "vllm", "--base", "org/model", "-o", tmp_path / "o"]
    data = cli(*words, "--json").data
    on_demand, at_once = data["start"]
    settings = dict(word.split("=", 1) for word in shlex.split(on_demand)[:3])
    assert settings == {
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
        "VLLM_PLUGINS": "lora_filesystem_resolver",
        "VLLM_LORA_RESOLVER_CACHE_DIR": str(tmp_path / "o"),
    }
    assert shlex.split(on_demand)[3:6] == ["vllm", "serve", "org/model"]
    assert "--lora-modules" in at_once
    for name in ("task00", "task01", "task02", "task03"):
        served = resolved(Path(settings["VLLM_LORA_RESOLVER_CACHE_DIR"]), name, "org/model")
        assert served is not None
        assert off(served, dense(runs / name)) < 1e-6


def test_a_base_in_a_folder_is_served_under_the_name_that_is_written(
    cli: Cli, runs: Path, base: Path, tmp_path: Path
) -> None:
    words = ["export", runs, "--target", "vllm", "--base", base, "-o", tmp_path / "o"]
    words_of_line = shlex.split(cli(*words, "--json").data["start"][0])[3:]
    assert words_of_line[:3] == ["vllm", "serve", str(base)]
    served = words_of_line[words_of_line.index("--served-model-name") + 1]
    assert resolved(tmp_path / "o", "task02", served) is not None
    # Nobody else's machine has this folder.
    written = (tmp_path / "o/task02/adapter_config.json").read_text()
    assert str(tmp_path) not in written


def test_an_adapter_without_a_base_is_told_to_name_one(cli: Cli, tmp_path: Path) -> None:
    bare = make.write(tmp_path / "in/bare", settings=make.config(base_model_name_or_path=None))
    said = cli("export", bare, "--target", "vllm", "-o", tmp_path / "o").err
    assert "--base MODEL" in said
    assert (
        "--base"
        not in cli("export", bare, "--target", "vllm", "--base", "org/m", "-o", tmp_path / "p").err
    )


def test_the_old_flag_for_the_name_is_understood(cli: Cli, runs: Path, tmp_path: Path) -> None:
    words = ["export", runs / "task00", "--base-model", "org/named", "-o", tmp_path / "o"]
    assert "--base org/named" in cli(*words).err
    config = json.loads((tmp_path / "o/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "org/named"


def test_without_the_rest_peft_loads_the_pairs_alone(cli: Cli, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model = make.peft_model(
        make.tiny_llama(), ["q_proj", "v_proj"], modules_to_save=["lm_head"], bias="none"
    )
    make.randomise(model)
    model.save_pretrained(tmp_path / "in")
    meant = {
        name: module.get_delta_weight("default")
        for name, module in model.named_modules()
        if hasattr(module, "get_delta_weight")
    }
    refused = cli("export", tmp_path / "in", "--target", "vllm", "-o", tmp_path / "o", code=2)
    assert "lm_head" in refused.err
    assert "--drop-rest" in refused.err
    for target in ("vllm", "peft"):
        out = tmp_path / target
        said = cli("export", tmp_path / "in", "--target", target, "--drop-rest", "-o", out)
        assert "1 tensor besides A and B" in said.err
        assert not json.loads((out / "adapter_config.json").read_text())["modules_to_save"]
        loaded = peft.PeftModel.from_pretrained(make.tiny_llama(), out)
        found = {
            name: module.get_delta_weight("default")
            for name, module in loaded.named_modules()
            if hasattr(module, "get_delta_weight")
        }
        assert found.keys() == meant.keys()
        for name, dw in meant.items():
            torch.testing.assert_close(found[name], dw, rtol=1e-6, atol=1e-7)


def test_all_that_a_target_refuses_is_named_at_once(cli: Cli, runs: Path, tmp_path: Path) -> None:
    head = {"base_model.model.score.weight": torch.zeros(2, 16)}
    for name in ("a", "b"):
        make.write(tmp_path / "in" / name, {**make.factors(), **head})
    refused = cli(
        "export", tmp_path / "in", runs, "--target", "vllm", "-o", tmp_path / "o", code=2
    ).err
    assert "2 of 6 adapters" in refused
    assert refused.count("score.weight") == 2
    assert not (tmp_path / "o").exists()


def test_numbers_that_are_none_are_refused(cli: Cli, tmp_path: Path) -> None:
    tensors = make.factors()
    next(iter(tensors.values()))[0, 0] = float("nan")
    broken = make.write(tmp_path / "in", tensors)
    assert "not finite" in cli("export", broken, "-o", tmp_path / "o", code=2).err
    assert not (tmp_path / "o").exists()


def test_no_export_goes_over_its_input(cli: Cli, tmp_path: Path) -> None:
    own = make.write(tmp_path / "runs/a")
    before = (own / "adapter_model.safetensors").read_bytes()
    cli("export", own, "-o", own, "--force", code=2)
    cli("export", own, "-o", own / "inside", code=2)
    assert (own / "adapter_model.safetensors").read_bytes() == before


def test_a_recipe_exports_adapters_or_what_was_made_of_them(
    cli: Cli, runs: Path, tmp_path: Path
) -> None:
    recipe = tmp_path / "r.toml"
    alone = f'[input]\nadapters = ["{runs}"]\n[[export]]\npath = "plain/{{task}}"\n'
    recipe.write_text(alone)
    cli("run", "--headless", recipe)
    meant = dense(runs / "task01")
    assert off(tmp_path / "plain/task01", meant) == 0
    recipe.write_text(
        f'[input]\nadapters = ["{runs}"]\n[compress]\nmethod = "delta"\nk = 1\n'
        '[output]\nsubspace = "s"\n'
        '[[export]]\npath = "of-subspace/{task}"\n'
        '[[export]]\npath = "of-input/{task}"\nsource = "input"\n'
    )
    cli("run", "--headless", recipe)
    assert off(tmp_path / "of-input/task01", meant) == 0
    assert off(tmp_path / "of-subspace/task01", meant) > 0.01
    whole = load_adapter(runs / "task01")
    again = load_adapter(tmp_path / "of-input/task01")
    for name in whole.layer_names:
        assert torch.equal(whole.lora_a[name], again.lora_a[name])
        assert torch.equal(whole.lora_b[name], again.lora_b[name])


def test_what_was_typed_wrongly_is_said(cli: Cli, runs: Path, built: Path, tmp_path: Path) -> None:
    out = tmp_path / "o"
    assert "nowhere" in cli("export", runs / "nowhere", "-o", out, code=2).err
    assert "adapters alone" in cli("export", runs, "--adapter", "task00", "-o", out, code=2).err
    assert "--all" in cli("export", built, "-o", out, code=2).err
    assert "--names" in cli("export", built, "--all", "--names", "x", "-o", out, code=2).err
    assert not out.exists()


def test_gguf_is_a_format_to_convert_to(cli: Cli, runs: Path, base: Path, tmp_path: Path) -> None:
    words = ["convert", runs / "task01", "--to", "gguf", "-o", tmp_path / "a"]
    assert "--base" in cli(*words, code=2).err  # nothing else says whose names to write
    cli(*words, "--base", base)
    cli("export", runs / "task01", "--target", "llamacpp", "--base", base, "-o", tmp_path / "b")
    one, other = load_adapter(tmp_path / "a"), load_adapter(tmp_path / "b")
    for name in one.layer_names:  # only what they say of their making differs
        assert torch.equal(one.lora_a[name], other.lora_a[name])
        assert torch.equal(one.lora_b[name], other.lora_b[name])
    assert off(tmp_path / "a", dense(runs / "task01")) < 1e-6
    recipe = tmp_path / "r.toml"
    recipe.write_text(
        f'[input]\nadapters = ["{runs}"]\n'
        f'[[convert]]\nto = "gguf"\npath = "c"\nbase = "{base}"\ndtype = "fp16"\n'
    )
    cli("run", "--headless", recipe)
    assert off(tmp_path / "c/task01", dense(runs / "task01")) < 1e-3
    assert (
        "gguf"
        in cli("convert", runs, "--to", "mlx", "--base", base, "-o", tmp_path / "d", code=2).err
    )


def test_what_gguf_has_no_place_for_is_let_go_only_on_purpose(
    cli: Cli, base: Path, tmp_path: Path
) -> None:
    head = {"base_model.model.score.weight": torch.ones(2, 16)}
    made = make.write(tmp_path / "in", {**make.factors(), **head})
    words = ["convert", made, "--to", "gguf", "--base", base, "-o", tmp_path / "o"]
    assert "--allow-loss" in cli(*words, code=2).err
    assert not (tmp_path / "o").exists()
    cli(*words, "--allow-loss")
    assert off(tmp_path / "o", dense(made)) < 1e-6


@pytest.mark.parametrize("target", [name for name in TARGETS if name != "peft"])
def test_the_bases_own_matrix_under_an_adapted_head_is_left_out_with_a_word(
    cli: Cli, tmp_path: Path, target: str
) -> None:
    """PEFT writes it beside A and B of a head; servers pass over it: no reason to stop."""
    pytest.importorskip("peft")
    make.tiny_llama().save_pretrained(tmp_path / "base")
    model = make.peft_model(make.tiny_llama(), ["q_proj", "lm_head"])
    model.save_pretrained(tmp_path / "in", save_embedding_layers=True)
    assert any("base_layer" in key for key in open_adapter(tmp_path / "in").rest)
    words = ("export", tmp_path / "in", "--target", target, "--base", tmp_path / "base")
    said = cli(*words, "-o", tmp_path / "out")
    assert "lm_head.base_layer.weight" in said.err
    assert not open_adapter(tmp_path / "out").rest
    assert off(tmp_path / "out", dense(tmp_path / "in")) < ROUNDING.get(target, 1e-6)
    cli("doctor", tmp_path / "in", "--target", target, "--base", tmp_path / "base")


@pytest.mark.parametrize(
    ("target", "dtype"),
    [("portable", None), ("peft", "bf16"), ("vllm", "fp16"), ("llamacpp", "q8_0")],
)
def test_what_rounding_costs_is_in_the_record_of_what_was_written(
    cli: Cli, runs: Path, base: Path, tmp_path: Path, target: str, dtype: str | None
) -> None:
    words = ["export", runs / "task00", "--target", target, "-o", tmp_path / "out"]
    words += ["--base", base] if target == "llamacpp" else []
    cli(*words, *(["--dtype", dtype] if dtype else []))
    record = cli("inspect", tmp_path / "out", "--json").data["provenance"]["out"]
    meant, found = dense(runs / "task00"), dense(tmp_path / "out")
    change = sum(float((found[name] - dw).norm() ** 2) for name, dw in meant.items())
    cost = (change / sum(float(dw.norm() ** 2) for dw in meant.values())) ** 0.5
    assert cost > 1e-5
    assert record["steps"][-1]["error"] == pytest.approx(cost, rel=1e-3)


def test_a_base_addressed_on_the_hub_is_written_by_its_name(
    cli: Cli, runs: Path, tmp_path: Path
) -> None:
    """vLLM's resolver compares names: an address would match no served model."""
    said = cli("export", runs, "--target", "vllm", "--base", "hf://org/m", "-o", tmp_path / "out")
    assert "vllm serve org/m " in said.out
    assert resolved(tmp_path / "out", "task00", "org/m") is not None


def test_the_doctor_counts_a_gguf_of_several_ranks_as_it_is(cli: Cli, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    base = make.tiny_llama(hidden_size=32)
    base.save_pretrained(tmp_path / "base")
    fields = {"rank_pattern": {"q_proj": 6, "down_proj": 3}}
    model = make.peft_model(base, ["q_proj", "v_proj", "down_proj"], **fields)
    make.randomise(model)
    model.save_pretrained(tmp_path / "in")
    words = ["export", tmp_path / "in", "--target", "llamacpp", "--base", tmp_path / "base"]
    cli(*words, "-o", tmp_path / "gguf")
    said = cli("doctor", tmp_path / "gguf", "--base", tmp_path / "base").out
    assert "applies to 6 of 6 modules" in said
