"""What PEFT applies is what the doctor says it applies, and what it repairs PEFT applies whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.witnesses import families, make
from tests.witnesses.families import FAMILIES, Family
from vlora_engine.catalog.open import open_adapter
from vlora_engine.doctor import applies, diagnose, read_base, repair
from vlora_engine.errors import OutputExistsError, ParameterError
from vlora_engine.nn import base_modules

peft = pytest.importorskip("peft")
NEW = "model.language_model."


@pytest.fixture(scope="module", params=list(FAMILIES))
def family(request: pytest.FixtureRequest) -> Family:
    return FAMILIES[request.param]


def written(family: Family, folder: Path) -> dict[str, torch.Tensor]:
    """A base as its config alone and an adapter of its text layers; the true dW."""
    model = family.model()
    model.config.save_pretrained(folder / "base")
    targets = r".*language_model\.layers.*\.(q_proj|v_proj)"
    truth = families.tune(model, folder / "a", targets)
    families.reconfigure(folder / "a", target_modules=["q_proj", "v_proj"])
    return truth


def equal(adapter: Path, model: torch.nn.Module, truth: dict[str, torch.Tensor]) -> None:
    """PEFT applies every module, with the true dW."""
    found = families.applied(adapter, model)
    assert set(found) == set(truth)
    for name, change in truth.items():
        torch.testing.assert_close(found[name], change, rtol=1e-6, atol=1e-9)


def test_the_names_of_today_are_sound(family: Family, tmp_path: Path) -> None:
    truth = written(family, tmp_path)
    equal(tmp_path / "a", family.model(), truth)
    base = read_base(tmp_path / "base")
    report = diagnose(tmp_path / "a", base=base)
    assert not report.fails("warning"), report.all_findings
    assert applies(open_adapter(tmp_path / "a"), tmp_path / "base") == (len(truth), len(truth))
    assert (
        str(report.examined[0].reach) == f"applies to {len(truth)} of {len(truth)} modules of base"
    )


def test_old_names_are_judged_as_peft_takes_them_and_repaired(
    family: Family, tmp_path: Path
) -> None:
    truth = written(family, tmp_path)
    families.rename(tmp_path / "a", lambda key: key.replace(NEW, family.old))
    before = families.bits(tmp_path / "a")
    taken = len(families.applied(tmp_path / "a", family.model()))
    base = read_base(tmp_path / "base")
    report = diagnose(tmp_path / "a", base=base)
    assert report.examined[0].reach is not None
    assert report.examined[0].reach.applied == taken
    assert report.fails("error") == (taken < len(truth))
    (repaired,) = repair(report.examined, tmp_path / "out", base=base)
    assert not repaired.found.fails("warning")
    assert repaired.renamed == len(truth)
    equal(tmp_path / "out", family.model(), truth)
    assert families.bits(tmp_path / "out") == before


def test_the_old_names_of_the_vision_part(tmp_path: Path) -> None:
    """Its modules lay outside ``model.``, in a ``vision_model`` of their own."""
    family = FAMILIES["llava"]
    model = family.model()
    model.config.save_pretrained(tmp_path / "base")
    truth = families.tune(model, tmp_path / "a", ["q_proj", "v_proj"])
    new, old = "model.vision_tower.", "vision_tower.vision_model."
    families.rename(tmp_path / "a", lambda key: key.replace(new, old).replace(NEW, family.old))
    taken = len(families.applied(tmp_path / "a", family.model()))
    base = read_base(tmp_path / "base")
    report = diagnose(tmp_path / "a", base=base)
    assert report.examined[0].reach is not None
    assert report.examined[0].reach.applied == taken
    repair(report.examined, tmp_path / "out", base=base)
    equal(tmp_path / "out", family.model(), truth)


def wrapped(part: str) -> Callable[[str], str]:
    """A part of a wrapper in the middle of the path, before the first layer's number."""
    return lambda key: key.replace(".layers.", f".{part}.layers.")


WITHOUT_BASE: dict[str, Callable[[str], str]] = {
    "torch.compile": lambda key: f"_orig_mod.{key}",
    "compiled layers": lambda key: key.replace(".self_attn.", "._orig_mod.self_attn."),
    "fsdp": wrapped("_fsdp_wrapped_module"),
    "checkpointing": lambda key: key.replace(
        ".self_attn.", "._checkpoint_wrapped_module.self_attn."
    ),
    "both": lambda key: f"_fsdp_wrapped_module.{wrapped('_checkpoint_wrapped_module')(key)}",
    "fabric": lambda key: f"_forward_module.{key}",
    "ddp": lambda key: f"module.{key}",
    "ddp and compile": lambda key: f"module._orig_mod.{key}",
    "a trainer": lambda key: f"policy.{key}",
    "doubled": lambda key: make.PREFIX + key,
    "no prefix": lambda key: key.removeprefix(make.PREFIX),
    "no prefix, compiled": lambda key: "_orig_mod." + key.removeprefix(make.PREFIX),
}
WITH_BASE: dict[str, Callable[[str], str]] = {
    **WITHOUT_BASE,
    "ddp inside": lambda key: key.replace(make.PREFIX, f"{make.PREFIX}module."),
    "ddp in the middle": wrapped("module"),
    "head-less": lambda key: key.replace(f"{make.PREFIX}model.", make.PREFIX),
    "one model too many": lambda key: key.replace(make.PREFIX, f"{make.PREFIX}model."),
    "an attribute inside": lambda key: key.replace(make.PREFIX, f"{make.PREFIX}pretrained_model."),
}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, torch.Tensor]]:
    """A base, an adapter of it under PEFT's own names, and its true dW."""
    folder = tmp_path_factory.mktemp("llama")
    make.tiny_llama().save_pretrained(folder / "base")
    patterns = {"layers.1.self_attn.q_proj": 2}
    truth = families.tune(
        make.tiny_llama(), folder / "a", ["q_proj", "v_proj"], rank_pattern=patterns
    )
    return folder, truth


def renamed_copy(folder: Path, out: Path, change: Callable[[str], str]) -> Path:
    out.mkdir(parents=True)
    for file in (folder / "a").iterdir():
        (out / file.name).write_bytes(file.read_bytes())
    return families.rename(out, change)


@pytest.mark.parametrize("kind", WITHOUT_BASE)
def test_what_wrappers_leave_is_told_and_taken_out(kind, llama, tmp_path: Path) -> None:
    folder, truth = llama
    bad = renamed_copy(folder, tmp_path / "bad", WITHOUT_BASE[kind])
    assert not families.applied(bad, make.tiny_llama())  # the witness: it would do nothing
    report = diagnose(bad)
    errors = {f.code for f in report.all_findings if f.severity == "error"}
    assert errors <= {"wrapped-names", "no-prefix"}
    assert errors
    (repaired,) = repair(report.examined, tmp_path / "out")
    assert not repaired.found.fails("warning")
    assert repaired.renamed == len(truth)
    equal(tmp_path / "out", make.tiny_llama(), truth)
    assert families.bits(tmp_path / "out") == families.bits(bad)


@pytest.mark.parametrize("kind", WITH_BASE)
def test_the_base_says_which_names_are_its_own(kind, llama, tmp_path: Path) -> None:
    folder, truth = llama
    bad = renamed_copy(folder, tmp_path / "bad", WITH_BASE[kind])
    base = read_base(folder / "base")
    report = diagnose(bad, base=base)
    assert report.examined[0].reach is not None
    assert report.examined[0].reach.applied == 0
    assert "no-module-fits" in {f.code for f in report.all_findings}
    (repaired,) = repair(report.examined, tmp_path / "out", base=base)
    assert not repaired.found.fails("warning"), repaired.found.all_findings
    equal(tmp_path / "out", make.tiny_llama(), truth)
    assert families.bits(tmp_path / "out") == families.bits(bad)


def test_a_module_that_is_called_module_stays(tmp_path: Path) -> None:
    """``module`` is a wrapper's only where the tree has it otherwise, or before PEFT's prefix."""
    place = make.write(tmp_path / "a", make.factors({"module.layers.0.q_proj": (12, 12)}))
    assert set(open_adapter(place).modules) == {"module.layers.0.q_proj"}
    families.rename(place, lambda key: f"module.{key}")
    assert set(open_adapter(place).modules) == {"module.layers.0.q_proj"}


def test_heads_and_patterns_get_the_names_too(tmp_path: Path) -> None:
    """A head beside the factors, full names in the config, wrappers in all of them."""
    from peft import PeftModel

    model = make.tiny_llama()
    model.save_pretrained(tmp_path / "base")
    names = [f"model.layers.{i}.self_attn.q_proj" for i in range(2)]
    truth = families.tune(
        model, tmp_path / "a", names, rank_pattern={names[1]: 2}, modules_to_save=["lm_head"]
    )
    families.rename(tmp_path / "a", lambda key: f"_orig_mod.{key}")
    old = [name.replace(".self_attn", "._orig_mod.self_attn") for name in names]
    families.reconfigure(tmp_path / "a", target_modules=old, rank_pattern={old[1]: 2})
    repair(diagnose(tmp_path / "a").examined, tmp_path / "out")
    equal(tmp_path / "out", make.tiny_llama(), truth)
    loaded = PeftModel.from_pretrained(make.tiny_llama(), tmp_path / "out")
    assert "lm_head.weight" in "".join(sorted(open_adapter(tmp_path / "out").rest))
    saved = loaded.base_model.model.lm_head.modules_to_save["default"].weight
    assert torch.equal(saved, next(iter(open_adapter(tmp_path / "out").read_rest().values())))


def test_modules_that_the_config_leaves_out_are_no_part_of_what_applies(
    llama, tmp_path: Path
) -> None:
    folder, truth = llama
    bad = renamed_copy(folder, tmp_path / "bad", str)
    families.reconfigure(bad, target_modules=["q_proj"])
    taken = families.applied(bad, make.tiny_llama())
    base = read_base(folder / "base")
    report = diagnose(bad, base=base)
    assert report.examined[0].reach is not None
    assert report.examined[0].reach.applied == len(taken) == len(truth) // 2
    assert {"unlisted-modules", "unknown-modules"} <= {f.code for f in report.all_findings}
    (repaired,) = repair(report.examined, tmp_path / "out", base=base)
    assert not repaired.found.fails("warning")
    equal(tmp_path / "out", make.tiny_llama(), truth)


def test_another_base_is_not_repaired(llama, tmp_path: Path) -> None:
    folder, _ = llama
    make.tiny_gpt2().save_pretrained(tmp_path / "gpt2")
    base = read_base(tmp_path / "gpt2")
    report = diagnose(folder / "a", base=base)
    assert report.examined[0].reach is not None
    assert (report.examined[0].reach.applied, report.examined[0].reach.names) == (0, {})
    with pytest.raises(ParameterError, match="none of the adapter's modules"):
        repair(report.examined, tmp_path / "out", base=base)
    assert not (tmp_path / "out").exists()


def test_dimensions_of_another_size_apply_to_nothing(llama, tmp_path: Path) -> None:
    folder, _ = llama
    make.tiny_llama(hidden_size=32).save_pretrained(tmp_path / "other")
    with pytest.raises(RuntimeError, match="size mismatch"):
        families.applied(folder / "a", make.tiny_llama(hidden_size=32))
    report = diagnose(folder / "a", base=read_base(tmp_path / "other"))
    assert {f.code for f in report.all_findings if f.severity == "error"} == {"wrong-shape"}
    assert report.examined[0].reach is not None
    assert report.examined[0].reach.applied == 0


def test_without_a_base_or_transformers_nothing_is_told(
    llama, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, truth = llama
    alone = diagnose(folder / "a").examined[0]
    assert alone.as_dict()["applies"]["applied"] is None
    assert alone.as_dict()["applies"]["total"] == len(truth)
    assert "no base" in alone.as_dict()["applies"]["unknown"]
    monkeypatch.setattr(base_modules, "missing_library", lambda: "transformers is not installed")
    report = diagnose(folder / "a", base=read_base(folder / "base"))
    assert "cannot tell: transformers is not installed" in str(report.examined[0].reach)
    assert not report.fails("warning")


def test_a_base_that_transformers_cannot_build_is_not_judged(llama, tmp_path: Path) -> None:
    folder, _ = llama
    (tmp_path / "config.json").write_text('{"model_type": "of-tomorrow", "hidden_size": 16}')
    report = diagnose(folder / "a", base=read_base(tmp_path))
    assert "cannot tell" in str(report.examined[0].reach)
    assert not report.fails("warning")


def test_an_adapter_of_the_body_alone_is_one_for_its_task(tmp_path: Path) -> None:
    """An adapter for embeddings is loaded onto the model without its head."""
    from transformers import AutoModel

    make.tiny_llama().save_pretrained(tmp_path / "base")
    body = AutoModel.from_pretrained(tmp_path / "base")
    truth = families.tune(body, tmp_path / "a", ["q_proj"], task_type="FEATURE_EXTRACTION")
    assert all(name.startswith("layers.") for name in truth)
    assert applies(open_adapter(tmp_path / "a"), tmp_path / "base") == (2, 2)


def test_inputs_and_outputs_stay_apart(llama, tmp_path: Path) -> None:
    folder, _ = llama
    a = renamed_copy(folder, tmp_path / "a", str)
    before = {file.name: file.read_bytes() for file in a.iterdir()}
    examined = diagnose(a).examined
    for out in (a, a / "inside"):
        with pytest.raises(ParameterError):
            repair(examined, out, force=True)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(OutputExistsError):
        repair(examined, tmp_path / "full", force=True)
    assert {file.name: file.read_bytes() for file in a.iterdir()} == before
    b = renamed_copy(folder, tmp_path / "b", lambda key: f"module.{key}")
    both = repair(diagnose([a, b]).examined, tmp_path / "both")
    assert [each.output.name for each in both] == ["a", "b"]
