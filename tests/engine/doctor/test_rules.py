"""Every rule names what it is for, and leaves alone what only looks like it."""

from __future__ import annotations

import importlib.util
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import FreshPython
from tests.engine.doctor.cases import CASES, Build, base_of, write_base
from tests.witnesses import make
from vlora_engine.catalog.open import FORMATS
from vlora_engine.catalog.scanner import scan
from vlora_engine.doctor import TARGETS, all_rules, diagnose, read_base, verdict
from vlora_engine.findings import Finding
from vlora_engine.formats.base import Probe

RULES = {rule.code: rule for rule in all_rules()}


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base"))


def found(build: Build, folder: Path, target: str | None, base: Path | None) -> list[Finding]:
    place = build(folder) or folder
    facts = None if base is None else read_base(base)
    return diagnose(place, target=target, base=facts).all_findings


def test_every_rule_has_its_cases() -> None:
    assert set(CASES) == set(RULES)


@pytest.mark.parametrize("code", RULES)
def test_a_rule_names_what_it_is_for(code: str, tmp_path: Path, base: Path) -> None:
    case = CASES[code]
    findings = found(case.bad, tmp_path / "in", case.target, base_of(case, base, tmp_path))
    mine = [finding for finding in findings if finding.code == code]
    assert mine, [finding.code for finding in findings]
    assert all(f.severity == RULES[code].severity and f.where and f.what for f in mine)
    assert all(str(f.what).endswith(".") for f in mine)


@pytest.mark.parametrize("code", RULES)
def test_a_rule_leaves_a_near_miss_alone(code: str, tmp_path: Path, base: Path) -> None:
    case = CASES[code]
    findings = found(case.good, tmp_path, case.target, base if case.with_base else None)
    assert code not in {finding.code for finding in findings}


@pytest.mark.parametrize("code", [c for c, rule in RULES.items() if rule.targets])
def test_a_rule_of_a_target_speaks_for_it_alone(code: str, tmp_path: Path, base: Path) -> None:
    case = CASES[code]
    case.bad(tmp_path / "in")
    place = base_of(case, base, tmp_path)
    facts = None if place is None else read_base(place)
    for target in (None, *TARGETS):
        report = diagnose(tmp_path / "in", target=target, base=facts, read_tensors=False)
        codes = {f.code for f in report.all_findings}
        assert (code in codes) == (target in RULES[code].targets)


@pytest.mark.parametrize("code", RULES)
def test_a_row_says_on_what_it_is_believed(code: str) -> None:
    rule = RULES[code]
    assert rule.what.endswith(".")
    assert rule.since
    known = ("https://", "arXiv:", "IEEE", "vlora_engine")
    assert rule.source.startswith(known)
    if rule.source.startswith("vlora_engine"):
        assert importlib.util.find_spec(rule.source) is not None
    assert set(rule.targets) <= set(TARGETS)
    assert (rule.stage == "target") == bool(rule.targets)


def test_grave_findings_say_what_mends_them(tmp_path: Path, base: Path) -> None:
    for code, case in CASES.items():
        if RULES[code].severity != "error":
            continue
        beside = base_of(case, base, tmp_path / code)
        for finding in found(case.bad, tmp_path / code / "in", case.target, beside):
            if finding.code == code and code != "unreadable":
                assert finding.remedy or finding.fix, code


# ---- what nobody should be troubled with


@pytest.mark.parametrize(
    ("targets", "fields"),
    [
        (["q_proj", "v_proj"], {}),
        (["q_proj", "down_proj"], {"use_rslora": True, "r": 8}),
        ("all-linear", {"init_lora_weights": "gaussian"}),
    ],
)
def test_what_peft_makes_is_sound(targets, fields, tmp_path: Path) -> None:
    make.peft_model(make.tiny_llama(), targets, task_type="CAUSAL_LM", **fields).save_pretrained(
        tmp_path / "a"
    )
    make.tiny_llama().save_pretrained(tmp_path / "base")
    base = read_base(tmp_path / "base")
    for target in (None, "peft", "vllm", "tgi", "portable"):
        report = diagnose(tmp_path / "a", target=target, base=base)
        grave = [f for f in report.all_findings if f.severity != "note"]
        assert grave == [], target


def test_all_real_adapters_get_an_answer(real_adapters: Path) -> None:
    report = diagnose(real_adapters)
    names = {adapter.name for adapter in report.examined}
    assert len(names) == len(report.examined) >= 28
    assert "foreign-format" not in {  # of those that are PEFT's none is refused
        f.code for p in report.examined if p.kind == "peft" for f in p.findings
    }
    for adapter in report.examined:
        if "legal" in adapter.name or "causal" in adapter.name:
            assert adapter.findings == ()
    for target in TARGETS:
        codes = {f.code for f in diagnose(real_adapters, target=target, read_tensors=False)
                 .all_findings}  # fmt: skip
        assert codes


# ---- the verdict that screens ask for


def test_a_verdict_is_the_same_by_path_inspection_and_entry(tmp_path: Path) -> None:
    CASES["vllm-patterns"].bad(tmp_path)
    place = tmp_path / "a"
    by_path = verdict(place, "vllm")
    assert [finding.code for finding in by_path] == ["vllm-patterns"]
    probe = Probe(place)
    form = FORMATS.find(probe)
    assert form is not None
    assert verdict(form.inspect(probe), "vllm") == by_path
    [entry] = scan(place).adapters
    assert verdict(entry, "vllm") == by_path
    assert verdict(place, "peft") == []


def test_a_verdict_of_what_cannot_be_read_is_why(tmp_path: Path) -> None:
    CASES["half-pair"].bad(tmp_path)
    [entry] = scan(tmp_path).adapters
    assert [f.code for f in verdict(entry, "vllm")] == ["half-pair"]


def test_a_verdict_loads_no_torch(tmp_path: Path, fresh_python: FreshPython) -> None:
    CASES["vllm-default-rank"].bad(tmp_path)
    done = fresh_python(
        "import sys\n"
        "from vlora_engine.doctor import verdict, read_base, all_rules\n"
        f"print(*[f.code for f in verdict({str(tmp_path / 'a')!r}, 'vllm')])\n"
        "assert all_rules()\n"
        "assert not {'torch', 'numpy'} & set(sys.modules)\n"
    )
    assert done.stdout.split() == ["vllm-default-rank"]


def test_a_task_of_a_subspace_has_a_verdict(tmp_path: Path) -> None:
    from vlora_engine.catalog.open import open_adapter
    from vlora_engine.compress.build import build_subspace

    CASES["vllm-heads"].bad(tmp_path)
    make.write(tmp_path / "b", make.factors(rank=20), make.config(r=20))
    sources = {name: open_adapter(tmp_path / name) for name in ("a", "b")}
    build_subspace(sources, tmp_path / "s", method="delta", k=24)
    assert [f.code for f in verdict(f"{tmp_path / 's'}:b", "vllm")] == ["vllm-default-rank"]
    report = diagnose(tmp_path / "s", target="vllm")
    [adapter] = report.examined
    assert adapter.kind == "subspace"
    assert {f.code for f in adapter.findings} >= {"vllm-default-rank", "vllm-heads"}
    basis = tmp_path / "s" / "basis.safetensors"
    raw = bytearray(basis.read_bytes())
    raw[-1] ^= 1
    basis.write_bytes(bytes(raw))
    assert "checksum" in {f.code for f in diagnose(tmp_path / "s").all_findings}


# ---- configs come from strangers

FIELDS = [*sorted(make.config()), "auto_mapping", "use_dora", "kasa_config", "lora_bias"]
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=4,
)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from(FIELDS), json_values, min_size=1, max_size=4))
def test_no_config_can_break_a_rule(fields: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        make.write(Path(folder) / "a", settings={**make.config(), **fields})
        for target in TARGETS:
            assert isinstance(verdict(Path(folder) / "a", target), list)
        assert diagnose(folder, read_tensors=False).examined
