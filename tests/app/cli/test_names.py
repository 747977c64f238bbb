"""Names that PEFT does not look for, from the command line: told, and repaired by what is said."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import torch

from tests.app.conftest import Cli
from tests.witnesses import families, make
from tests.witnesses.families import FAMILIES
from vlora_engine.catalog.open import load_adapter

pytest.importorskip("peft")


def remedy_of(report: dict, code: str) -> list[str]:
    """The words of the command that a finding names."""
    (adapter,) = report["adapters"]
    (fix,) = [f["fix"] for f in adapter["findings"] if f["code"] == code]
    program, *words = shlex.split(fix)
    assert program == "vlora-tui"
    return words


def equal(adapter: Path, model: torch.nn.Module, truth: dict, tolerance: float = 1e-6) -> None:
    """PEFT applies every module, with the true dW."""
    found = families.applied(adapter, model)
    assert set(found) == set(truth)
    for name, change in truth.items():
        assert float((found[name] - change).norm()) <= tolerance * float(change.norm())


@pytest.fixture
def compiled(tmp_path: Path) -> tuple[Path, dict]:
    """An adapter saved after torch.compile, and the dW that it stands for."""
    make.tiny_llama().save_pretrained(tmp_path / "base")
    truth = families.tune(make.tiny_llama(), tmp_path / "a", ["q_proj", "v_proj"])
    families.rename(tmp_path / "a", lambda key: f"_orig_mod.{key}")
    return tmp_path / "a", truth


def test_what_the_doctor_says_of_a_compiled_adapter_mends_it(
    cli: Cli, compiled: tuple[Path, dict], tmp_path: Path
) -> None:
    adapter, truth = compiled
    assert not families.applied(adapter, make.tiny_llama())
    said = cli("doctor", adapter, "--json", code=3).data
    assert said["counts"]["error"] == 1
    assert said["adapters"][0]["applies"]["applied"] is None
    words = remedy_of(said, "wrapped-names")
    cli(*words)
    out = Path(words[words.index("-o") + 1])
    equal(out, make.tiny_llama(), truth)
    assert families.bits(out) == families.bits(adapter)
    after = cli("doctor", out, "--base", tmp_path / "base", "--target", "peft", "--json").data
    assert after["counts"] | {"note": 0} == {"error": 0, "warning": 0, "note": 0}
    assert after["adapters"][0]["applies"]["applied"] == len(truth)
    text = cli("doctor", out, "--base", tmp_path / "base").out
    assert f"applies to {len(truth)} of {len(truth)} modules of base" in text
    assert "cannot tell" in cli("doctor", out).out


def test_every_writer_gives_a_compiled_adapter_its_own_names(
    cli: Cli, compiled: tuple[Path, dict], tmp_path: Path
) -> None:
    adapter, truth = compiled
    cli("convert", adapter, "--to", "peft", "-o", tmp_path / "converted")
    equal(tmp_path / "converted", make.tiny_llama(), truth)
    space = tmp_path / "space"
    cli("compress", adapter, "--method", "own", "--max-error", "1e-6", "-o", space)
    for target in ("peft", "vllm"):
        cli("export", space, "--all", "--target", target, "-o", tmp_path / target)
        equal(tmp_path / target / "a", make.tiny_llama(), truth, 1e-3)
    cli("export", adapter, "--target", "vllm", "-o", tmp_path / "direct")
    equal(tmp_path / "direct", make.tiny_llama(), truth)
    cli("resize", adapter, "--rank", "8", "-o", tmp_path / "resized")
    equal(tmp_path / "resized", make.tiny_llama(), truth)


def test_old_names_of_a_model_of_two_parts(cli: Cli, tmp_path: Path) -> None:
    family = FAMILIES["qwen2-vl"]
    base = tmp_path / "base"
    model = family.model()
    model.save_pretrained(base)
    targets = r".*language_model\.layers.*\.(q_proj|v_proj)"
    truth = families.tune(model, tmp_path / "new", targets)
    families.reconfigure(tmp_path / "new", target_modules=["q_proj", "v_proj"])
    old = tmp_path / "old"
    old.mkdir()
    for file in (tmp_path / "new").iterdir():
        (old / file.name).write_bytes(file.read_bytes())
    families.rename(old, lambda key: key.replace("model.language_model.", "model."))
    assert len(families.applied(tmp_path / "new", family.model())) == 4
    assert families.applied(old, family.model()) == {}
    sound = cli("doctor", tmp_path / "new", "--base", base, "--fail-on", "warning", "--json").data
    assert sound["adapters"][0]["applies"] == {
        "applied": 4,
        "total": 4,
        "base": "base",
        "unknown": None,
    }
    said = cli("doctor", old, "--base", base, "--fail-on", "warning", "--json", code=3).data
    words = remedy_of(said, "no-module-fits")
    mended = cli(*words, "--json").data
    assert mended["fixed"][0]["applies"]["applied"] == 4
    assert mended["fixed"][0]["renamed"] == 4
    equal(Path(words[words.index("-o") + 1]), family.model(), truth)
    # An export that is told the base writes the names of the base, and says so.
    found = cli("export", old, "--target", "peft", "--base", base, "-o", tmp_path / "out")
    assert "4 modules renamed" in found.out + found.err
    equal(tmp_path / "out", family.model(), truth)
    told = cli("convert", old, "--to", "peft", "--base", base, "-o", tmp_path / "again")
    assert "4 modules renamed" in told.out + told.err
    equal(tmp_path / "again", family.model(), truth)
    # And so does one that finds the base where the adapter names it.
    families.reconfigure(old, base_model_name_or_path=str(base))
    cli("convert", old, "--to", "peft", "-o", tmp_path / "converted")
    equal(tmp_path / "converted", family.model(), truth)
    cli("export", old, "--target", "vllm", "-o", tmp_path / "served")
    equal(tmp_path / "served", family.model(), truth)
    # Both versions are one collection.
    merged = tmp_path / "merged"
    families.reconfigure(tmp_path / "new", base_model_name_or_path=str(base))
    cli("merge", tmp_path / "new", old, "--method", "linear", "-o", merged)
    assert len(load_adapter(merged).layer_names) == 4


def test_what_a_base_ignores_is_written_with_a_word(cli: Cli, tmp_path: Path) -> None:
    make.tiny_llama().save_pretrained(tmp_path / "base")
    families.tune(make.tiny_llama(), tmp_path / "a", ["q_proj", "v_proj"])
    families.rename(tmp_path / "a", lambda key: key.replace("layers.1.", "layers.9."))
    found = cli("export", tmp_path / "a", "--base", tmp_path / "base", "-o", tmp_path / "out")
    assert "ignore" in found.out + found.err
    report = cli("doctor", tmp_path / "out", "--base", tmp_path / "base", "--json", code=3).data
    assert report["adapters"][0]["applies"]["applied"] == 2


def test_no_effect_is_an_error(cli: Cli, tmp_path: Path) -> None:
    tensors = {k: t * ("lora_A" in k) for k, t in make.factors().items()}
    make.write(tmp_path / "a", tensors)
    found = cli("doctor", tmp_path / "a", "--json", code=3).data
    assert [(f["code"], f["severity"]) for f in found["adapters"][0]["findings"]] == [
        ("no-effect", "error")
    ]
    cli("compress", tmp_path / "a", "-o", tmp_path / "space")  # which keeps such adapters


@pytest.mark.parametrize("words", [["--fix"], ["-o", "OUT"]])
def test_fix_and_output_go_together(cli: Cli, tmp_path: Path, words: list[str]) -> None:
    make.write(tmp_path / "a")
    found = cli("doctor", tmp_path / "a", *words, code=2)
    assert "--fix -o OUT" in found.err


def test_the_input_is_never_written_over(cli: Cli, tmp_path: Path) -> None:
    place = make.write(tmp_path / "a")
    before = {file.name: file.read_bytes() for file in place.iterdir()}
    cli("doctor", place, "--fix", "-o", place, "--force", code=2)
    assert {file.name: file.read_bytes() for file in place.iterdir()} == before
    cli("doctor", place, "--fix", "-o", tmp_path / "b")
    found = cli("doctor", place, "--fix", "-o", tmp_path / "b", code=2)
    assert "--force" in found.err
    cli("doctor", place, "--fix", "-o", tmp_path / "b", "--force")
