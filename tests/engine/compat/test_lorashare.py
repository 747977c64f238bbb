"""lorashare's API over this engine, side by side with the package itself."""

from __future__ import annotations

import dataclasses
import inspect
import warnings

import pytest
import torch

from tests.witnesses import make
from tests.witnesses.hub import TOKEN
from vlora_engine.catalog.open import load_adapter
from vlora_engine.compat.lorashare import SHAREConfig, SHAREModel
from vlora_engine.errors import HubAccessError, VLoRAError

CLOSE = {"rtol": 0, "atol": 2e-5}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return [str(p) for p in make.collection(tmp_path_factory.mktemp("share") / "runs", 5)]


@pytest.fixture(scope="module")
def lorashare():
    warnings.simplefilter("ignore")
    return pytest.importorskip("lorashare")


@pytest.fixture
def model(runs):
    return SHAREModel.from_adapters(runs[:4], num_components=7)


def same(one, other):
    assert one.keys() == other.keys()
    for key in one:
        torch.testing.assert_close(one[key].float(), other[key].float(), **CLOSE)


# ---- the two packages


@pytest.mark.peers
def test_every_public_name_of_lorashare_is_here(lorashare):
    for theirs, ours in ((lorashare.SHAREModel, SHAREModel), (lorashare.SHAREConfig, SHAREConfig)):
        for name, member in inspect.getmembers(theirs):
            if name.startswith("_"):
                continue
            assert hasattr(ours, name), name
            if inspect.isfunction(member) or inspect.ismethod(member):
                wanted = inspect.signature(member).parameters
                given = inspect.signature(getattr(ours, name)).parameters
                assert list(given) == list(wanted), name
                assert [p.default for p in given.values()] == [p.default for p in wanted.values()]
    fields = [f.name for f in dataclasses.fields(lorashare.SHAREConfig)]
    assert [f.name for f in dataclasses.fields(SHAREConfig)] == fields
    wanted = inspect.signature(lorashare.SHAREModel.__init__).parameters
    assert list(inspect.signature(SHAREModel.__init__).parameters) == list(wanted)


@pytest.mark.peers
def test_a_checkpoint_goes_both_ways(lorashare, runs, model, tmp_path):
    theirs = lorashare.SHAREModel.from_adapters(runs[:4], num_components=7)
    theirs.save_pretrained(tmp_path / "theirs")
    model.save_pretrained(tmp_path / "ours")

    read_here = SHAREModel.from_pretrained(tmp_path / "theirs")
    made_here = SHAREModel(
        theirs.config,
        theirs.components,
        theirs.all_loadings,
        theirs.adapter_configs,
        theirs.all_classifier_heads,
        theirs.adapter_sources,
    )
    read_there = lorashare.SHAREModel.from_pretrained(tmp_path / "ours")

    assert read_here.config.to_dict() == theirs.config.to_dict()
    assert read_here.adapter_sources == theirs.adapter_sources
    assert read_there.config.compression_stats.pop("written_by") == "vlora-tui"
    assert read_there.config.to_dict() == model.config.to_dict()
    for name in theirs.adapter_names:
        same(theirs.reconstruct(name), read_here.reconstruct(name))
        same(theirs.reconstruct(name), made_here.reconstruct(name))
        same(model.reconstruct(name), read_there.reconstruct(name))
    same(theirs.components, read_here.components)
    for name, loadings in theirs.all_loadings.items():
        same(loadings, read_here.all_loadings[name])


@pytest.mark.peers
def test_reconstruction_errors_are_those_that_lorashare_works_out(lorashare, runs, model):
    theirs = lorashare.SHAREModel.from_adapters(runs[:4], num_components=7)

    for name, path in zip(model.adapter_names, runs, strict=False):
        ours = model.reconstruction_error(name, original_path=path)
        weights = {k: v for k, v in theirs.reconstruct(name).items() if ".lora_" in k}
        figures = theirs.reconstruction_error(name, original_path=path)
        again = lorashare.compression.compute_reconstruction_error(
            lorashare.io.load_peft_adapter(path)[0], model.reconstruct(name)
        )
        assert ours["mean"] == pytest.approx(again["mean"], rel=1e-4)
        assert ours["per_layer"].keys() == figures["per_layer"].keys() == weights.keys()


@pytest.mark.peers
def test_adding_projects_or_computes_anew_as_lorashare_does(lorashare, runs, model):
    theirs = lorashare.SHAREModel.from_adapters(runs[:4], num_components=7)

    for one in (theirs, model):
        done = one.add_adapter(runs[4], variance_threshold=0.9)
        assert (done["method"], done["adapter_name"]) == ("projection", "task04")
        assert 0.9 < done["min_explained_variance"] <= done["mean_explained_variance"] <= 1
        anew = one.add_adapter(runs[4], name="again", force_recompute=True)
        assert anew == {"method": "recompute", "adapter_name": "again"}
        assert {"task04", "again"} <= set(one.adapter_names)
        assert one.config.num_adapters == 6
        with pytest.raises(ValueError, match="already"):
            one.add_adapter(runs[4], name="again")


# ---- alone


def test_a_model_is_saved_over_its_own_checkpoint_and_goes_on(model, runs, tmp_path):
    model.save_pretrained(tmp_path / "s")
    (tmp_path / "s" / "notes.txt").write_text("mine")
    opened = SHAREModel.from_pretrained(tmp_path / "s")
    opened.remove_adapter("task01")
    opened.add_adapter(runs[4])

    opened.save_pretrained(tmp_path / "s")

    again = SHAREModel.from_pretrained(tmp_path / "s")
    assert again.adapter_names == ["task00", "task02", "task03", "task04"]
    assert sorted(p.name for p in (tmp_path / "s" / "adapters").iterdir()) == again.adapter_names
    assert (tmp_path / "s" / "notes.txt").read_text() == "mine"
    for name in again.adapter_names:
        same(opened.reconstruct(name), again.reconstruct(name))


def test_heads_and_configs_are_kept_and_written_with_an_adapter(runs, tmp_path):
    tensors = {**make.factors(seed=77), "base_model.model.score.weight": torch.ones(2, 3)}
    make.write(tmp_path / "headed", tensors)
    model = SHAREModel.from_adapters({"h": tmp_path / "headed", "o": runs[0]}, "auto", 0.999)

    state = model.reconstruct("h", output_dir=tmp_path / "out")

    assert torch.equal(state["base_model.model.score.weight"], torch.ones(2, 3))
    assert list(model.all_classifier_heads) == ["h"]
    assert model.config.component_selection == "auto"
    written = load_adapter(tmp_path / "out")
    assert torch.equal(written.rest["base_model.model.score.weight"], torch.ones(2, 3))
    assert written.metadata["lora_alpha"] == model.adapter_configs["h"]["lora_alpha"]


def test_an_applied_adapter_acts_as_the_one_it_was_made_from(tmp_path):
    pytest.importorskip("peft")
    from peft import PeftModel

    for seed in (1, 2):
        trained = make.peft_model(make.tiny_gpt2(), ["c_attn"], seed=seed)
        trained.save_pretrained(tmp_path / f"t{seed}")
    model = SHAREModel.from_adapters([tmp_path / "t1", tmp_path / "t2"], num_components=100)

    applied = model.apply(make.tiny_gpt2(), "t2")

    meant = PeftModel.from_pretrained(make.tiny_gpt2(), str(tmp_path / "t2"))
    assert isinstance(applied, PeftModel)
    torch.testing.assert_close(make.logits(applied), make.logits(meant), rtol=0, atol=1e-4)


def test_bad_requests_are_answered_as_lorashare_answers_them(model, runs, tmp_path):
    for call in (
        lambda: model.reconstruct("nope"),
        lambda: model.remove_adapter("nope"),
        lambda: model.apply(None, "nope"),
    ):
        with pytest.raises(KeyError) as caught:
            call()
        assert isinstance(caught.value, VLoRAError)
    for call in (
        lambda: SHAREModel.from_adapters(runs[:1]),
        lambda: SHAREModel.from_adapters(runs, on_error="ignore"),
        lambda: SHAREModel.from_adapters(runs, num_components="many"),
        lambda: SHAREModel.from_adapters([runs[0], str(tmp_path / "none")], on_error="skip"),
        lambda: model.reconstruction_error("task00"),
    ):
        with pytest.raises(ValueError, match=r".") as caught:
            call()
        assert isinstance(caught.value, VLoRAError)
    one = SHAREModel.from_adapters(runs[:2])
    one.remove_adapter("task00")
    with pytest.raises(ValueError, match="last"):
        one.remove_adapter("task01")


def test_adapters_that_cannot_be_used_are_left_out_where_asked(runs, tmp_path):
    tensors = make.factors()
    key = next(iter(tensors))
    make.write(tmp_path / "nan", {**tensors, key: torch.full_like(tensors[key], float("nan"))})
    make.write(tmp_path / "other", settings=make.config(base_model_name_or_path="llama"))

    model = SHAREModel.from_adapters(
        [*runs[:2], str(tmp_path / "nan"), str(tmp_path / "gone")], on_error="skip"
    )

    assert model.adapter_names == list(model.adapter_sources) == ["task00", "task01"]
    with pytest.raises(ValueError, match="different base models"):
        SHAREModel.from_adapters([*runs[:2], str(tmp_path / "other")])


def test_names_are_numbered_and_the_summary_says_what_there_is(runs, capsys):
    model = SHAREModel.from_adapters([runs[0], runs[0], runs[1]], num_components=3)

    model.summary()

    assert model.adapter_names == ["task00", "task00_1", "task01"]
    said = capsys.readouterr().out
    assert "3 (task00, task00_1, task01)" in said
    assert "Components (k):   3" in said


# ---- the Hub


def test_a_checkpoint_is_pushed_to_the_hub(model, hub, monkeypatch, tmp_path):
    with pytest.raises(HubAccessError, match="token"):
        model.push_to_hub("me/share")
    address = model.push_to_hub("me/share", token=TOKEN, private=True)
    assert address.endswith("/me/share")
    assert hub.repos["me/share"].private
    for name, data in hub.repos["me/share"].files.items():
        file = tmp_path / "back" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    back = SHAREModel.from_pretrained(tmp_path / "back")
    assert back.adapter_names == model.adapter_names
    same(back.reconstruct(back.adapter_names[0]), model.reconstruct(model.adapter_names[0]))
