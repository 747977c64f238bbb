"""From one format to another and back: dW and rest tensors stay, and what cannot is said."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from tests.engine.interop.test_peers import delta_error
from tests.witnesses import make
from vlora_engine.catalog.open import load_adapter, open_adapter
from vlora_engine.convert import convert as conversion
from vlora_engine.errors import (
    OutputExistsError,
    ParameterError,
    StorageError,
    UnsupportedAdapterError,
)
from vlora_engine.shared_subspace import SharedSubspace
from vlora_engine.targets.save import save_adapter

HEAD = {"base_model.model.score.weight": torch.arange(6).reshape(2, 3).half()}
LLAMA = {f"model.layers.{i}.self_attn.{m}_proj": (8, 6) for i in (2, 3) for m in "qv"}
METHODS = ("delta", "columns", "flat", "own", "auto")


def convert(to, out, **what):
    options = {name: what.pop(name) for name in ("allow_loss", "force") if name in what}
    return conversion.convert(conversion.plan(to, out, **what), **options)


def collection(count=4, **options):
    """Adapters with scales of their own, the first with a head."""
    made = [
        make.weights(seed=i, metadata=make.config(r=4, lora_alpha=4 * (i + 1)), **options)
        for i in range(count)
    ]
    made[0].rest = dict(HEAD)
    return dict(zip("abcdefgh", made, strict=False))


def sources(weights, folder):
    return {n: open_adapter(save_adapter(w, folder / n)) for n, w in weights.items()}


# ---- adapters


def test_mlx_and_back_keeps_dw_and_config(tmp_path):
    adapter = make.weights(LLAMA, metadata=make.config(r=4, lora_alpha=6))
    place = save_adapter(adapter, tmp_path / "peft")

    (there,) = convert("mlx", tmp_path / "mlx", adapters={"x": open_adapter(place)})
    (back,) = convert("peft", tmp_path / "back", adapters={"x": open_adapter(there.path)})

    written = json.loads((there.path / "adapter_config.json").read_text())
    assert written["lora_parameters"] | {"keys": 0} == {
        "rank": 4,
        "scale": 1.5,
        "dropout": 0.0,
        "keys": 0,
    }
    assert written["lora_parameters"]["keys"] == ["self_attn.q_proj", "self_attn.v_proj"]
    assert (written["model"], written["num_layers"]) == ("gpt2", 2)
    tensors = load_file(there.path / "adapters.safetensors")
    name = next(iter(LLAMA))
    assert torch.equal(tensors[f"{name}.lora_a"], adapter.lora_a[name].T)
    assert torch.equal(tensors[f"{name}.lora_b"], adapter.lora_b[name].T)
    found = load_adapter(back.path)
    assert all(torch.equal(found.lora_a[n], adapter.lora_a[n]) for n in LLAMA)
    assert all(torch.equal(found.lora_b[n], adapter.lora_b[n]) for n in LLAMA)
    assert found.scales == adapter.scales
    assert load_adapter(back.path).metadata["base_model_name_or_path"] == "gpt2"


def test_mlx_has_one_rank_and_one_scale(tmp_path):
    ranks = dict(zip(LLAMA, (2, 3, 4, 4), strict=True))
    adapter = make.weights(LLAMA, rank=ranks)
    adapter.scales = dict(zip(LLAMA, (0.5, 2.0, 2.0, -1.0), strict=True))
    place = save_adapter(adapter, tmp_path / "peft")

    plan = conversion.plan("mlx", tmp_path / "mlx", adapters={"x": open_adapter(place)})
    (there,) = conversion.convert(plan)

    assert {"ranks" in loss.what for loss in plan.losses} == {True, False}
    assert {"scales" in loss.what for loss in plan.losses} == {True, False}
    found = load_adapter(there.path)
    assert {a.shape[0] for a in found.lora_a.values()} == {4}
    assert set(found.scales.values()) == {2.0}
    assert delta_error(adapter, found) < 1e-6


def test_what_mlx_said_of_an_adapter_comes_back_to_it(tmp_path):
    config = {"model": "m", "num_layers": 7, "seed": 3, "lora_parameters": {"scale": 2.0, "x": 1}}
    adapter = make.weights(LLAMA, metadata={})
    adapter.scales = dict.fromkeys(LLAMA, 2.0)
    (first,) = convert(
        "mlx", tmp_path / "one", adapters={"x": open_adapter(save_adapter(adapter, tmp_path / "p"))}
    )
    (first.path / "adapter_config.json").write_text(json.dumps(config))

    convert("mlx", tmp_path / "two", adapters={"x": open_adapter(first.path)})

    again = json.loads((tmp_path / "two" / "adapter_config.json").read_text())
    assert again.items() >= {"model": "m", "num_layers": 7, "seed": 3}.items()
    assert again["lora_parameters"].items() >= {"scale": 2.0, "x": 1, "rank": 4}.items()


def test_a_head_is_not_left_out_without_a_word(tmp_path):
    adapters = sources({"x": replace(make.weights(), rest=dict(HEAD))}, tmp_path)

    with pytest.raises(ParameterError, match="cannot hold all of this") as caught:
        convert("mlx", tmp_path / "out", adapters=adapters)
    assert "x: 1 tensor outside the modules" in caught.value.found
    assert not (tmp_path / "out").exists()
    (written,) = convert("mlx", tmp_path / "out", adapters=adapters, allow_loss=True)
    assert load_adapter(written.path).rest == {}
    (kept,) = convert("peft", tmp_path / "peft", adapters=adapters)
    assert torch.equal(load_adapter(kept.path).rest.popitem()[1], next(iter(HEAD.values())))


@pytest.mark.parametrize("to", ["mlx", "vlora-dev", "lorashare"])
def test_a_convolution_has_no_place_but_in_peft(to, tmp_path):
    tensors = {
        f"{make.PREFIX}conv.lora_A.weight": torch.randn(2, 3, 3, 3),
        f"{make.PREFIX}conv.lora_B.weight": torch.randn(5, 2, 1, 1),
    }
    place = make.write(tmp_path / "conv", tensors, make.config(r=2, target_modules=["conv"]))
    adapters = {name: open_adapter(place) for name in "ab"}

    with pytest.raises(UnsupportedAdapterError, match="conv2d"):
        convert(to, tmp_path / "out", adapters=adapters)
    assert len(convert("peft", tmp_path / "out", adapters=adapters)) == 2


def test_an_output_is_replaced_only_by_force_and_a_bad_write_is_found(tmp_path, monkeypatch):
    adapters = sources({"x": make.weights()}, tmp_path)
    convert("mlx", tmp_path / "out", adapters=adapters)
    with pytest.raises(OutputExistsError):
        convert("mlx", tmp_path / "out", adapters=adapters)
    convert("mlx", tmp_path / "out", adapters=adapters, force=True)

    from vlora_engine.formats import mlx_save

    honest = mlx_save.mlx_tensors

    def doubled(weights):
        tensors, scale, rank = honest(weights)
        return tensors, 2 * scale, rank

    monkeypatch.setattr(mlx_save, "mlx_tensors", doubled)
    with pytest.raises(StorageError, match="does not read back"):
        convert("mlx", tmp_path / "out", adapters=adapters, force=True)


# ---- subspaces


@pytest.mark.parametrize("to", ["vlora-dev", "lorashare"])
def test_adapters_become_a_peers_subspace_exactly(to, tmp_path):
    weights = collection()
    ranks = dict.fromkeys(make.MODULES, 4)
    weights["b"] = make.weights(rank={**ranks, next(iter(ranks)): 2}, seed=9)
    del ranks[next(iter(ranks))]
    weights["c"] = make.weights({n: make.MODULES[n] for n in ranks}, seed=10)
    adapters = sources(weights, tmp_path)

    (written,) = convert(to, tmp_path / "out", adapters=adapters, allow_loss=True)

    assert written.error < 1e-6
    found = SharedSubspace.load(tmp_path / "out")
    for name, meant in weights.items():
        back = found.reconstruct(name)
        assert delta_error(meant, back) < 1e-6
        if to == "vlora-dev":
            assert set(back.layer_names) == set(make.MODULES)
            continue
        assert back.layer_names == meant.layer_names
        assert back.metadata["lora_alpha"] == meant.metadata["lora_alpha"]
        assert back.rest.keys() == meant.rest.keys()
        assert all(torch.equal(back.rest[key], own) for key, own in meant.rest.items())


@pytest.mark.parametrize("to", ["vlora-dev", "lorashare"])
@pytest.mark.parametrize("method", METHODS)
def test_a_subspace_of_any_method_becomes_a_peers_and_ours_again(method, to, tmp_path):
    k = {"num_components": 3 if method == "flat" else 5} if method in METHODS[:3] else {}
    ours = SharedSubspace.from_adapters(
        list(collection().values()), list("abcd"), method=method, **k
    )
    ours.save(tmp_path / "ours")

    (there,) = convert(to, tmp_path / "there", whole=tmp_path / "ours", allow_loss=True)
    (back,) = convert("subspace", tmp_path / "back", whole=tmp_path / "there")

    assert max(there.error, back.error) < 1e-6
    again = SharedSubspace.load(tmp_path / "back")
    for name in "abcd":
        assert delta_error(ours.reconstruct(name), again.reconstruct(name)) < 1e-6
    if to == "lorashare":
        assert torch.equal(again.reconstruct("a").rest.popitem()[1], next(iter(HEAD.values())))


def test_bases_stay_where_the_target_has_the_same_ones(tmp_path):
    adapters = list(collection().values())
    SharedSubspace.from_adapters(adapters, method="columns", num_components=5).save(tmp_path / "c")
    for adapter in adapters:
        adapter.scales, adapter.rest = dict.fromkeys(adapter.layer_names, 2.5), {}
    SharedSubspace.from_adapters(adapters, method="flat", num_components=2).save(tmp_path / "f")

    share = conversion.plan("lorashare", tmp_path / "s", whole=tmp_path / "c")
    vlora = conversion.plan("vlora-dev", tmp_path / "v", whole=tmp_path / "f")

    assert share.how == vlora.how == "bases and loadings stay as they are"
    assert max(c.error for p in (share, vlora) for c in conversion.convert(p)) < 1e-6
    assert SharedSubspace.load(tmp_path / "s").num_components == 5
    assert SharedSubspace.load(tmp_path / "v").num_components == 2


def test_a_smaller_k_is_what_was_asked_for_and_its_error_is_told(tmp_path):
    adapters = sources(collection(), tmp_path)

    (written,) = convert("lorashare", tmp_path / "out", adapters=adapters, k=2)

    assert 0.05 < written.error < 1.5
    assert SharedSubspace.load(tmp_path / "out").num_components == 2


def test_a_subspace_becomes_one_adapter_each(tmp_path):
    ours = SharedSubspace.from_adapters(
        list(collection().values()), ["x/y", "b", "c", "d"], method="delta", num_components=16
    )
    ours.save(tmp_path / "ours")

    written = convert("peft", tmp_path / "out", whole=tmp_path / "ours")

    assert {w.name for w in written} == {"x/y", "b", "c", "d"}
    assert all(w.path.parent == tmp_path / "out" for w in written)
    for one in written:
        assert delta_error(ours.reconstruct(one.name), load_adapter(one.path)) < 1e-6


def test_what_makes_no_sense_is_refused_with_the_way_on(tmp_path):
    adapters = sources(collection(2), tmp_path / "in")
    convert("lorashare", tmp_path / "s", adapters=adapters)
    for to, what, words in (
        ("ggml", {"adapters": adapters}, "no format 'ggml'"),
        ("subspace", {"adapters": adapters}, "compressing"),
        ("lorashare", {"whole": tmp_path / "s"}, "already"),
        ("vlora-dev", {"adapters": {"a": adapters["a"]}}, "two adapters or more"),
        ("lorashare", {"adapters": adapters, "k": 0}, "at least 1"),
    ):
        with pytest.raises(ParameterError, match=words):
            conversion.plan(to, tmp_path / "out", **what)


def test_only_what_this_engine_wrote_is_replaced(tmp_path):
    adapters = sources(collection(2), tmp_path / "in")
    for to, index in (("lorashare", "share_config.json"), ("vlora-dev", "subspace_meta.json")):
        out = tmp_path / to
        convert(to, out, adapters=adapters, allow_loss=True)
        convert(to, out, adapters=adapters, allow_loss=True, force=True)
        (out / index).write_text((out / index).read_text().replace("vlora-tui", "somebody"))
        with pytest.raises(OutputExistsError, match="did not write"):
            convert(to, out, adapters=adapters, allow_loss=True, force=True)
