"""Findings: their fields, their JSON both ways, and what earlier versions wrote."""

from __future__ import annotations

import json
import string

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from vlora_engine.errors import AdapterError, CollectionError, told
from vlora_engine.findings import SEVERITIES, Finding, as_text, finding_of

WORDS = st.text(string.ascii_letters + " ./:é", max_size=12)
FINDINGS = st.builds(
    Finding,
    st.text("abc-", min_size=1),
    st.sampled_from(SEVERITIES),
    WORDS,
    WORDS,
    WORDS,
    adapter=WORDS,
    file=WORDS,
    module=WORDS,
    tensor=WORDS,
    rule=WORDS,
    place=WORDS,
)
NAN = AdapterError(
    "The adapter holds NaN.",
    where="/a/bad: tensor h.0.lora_A",
    found="3 of 8 entries not finite",
    remedy="leave it out",
    code="not-finite",
    adapter="/a/bad",
    module="h.0",
    tensor="h.0.lora_A",
)


@given(FINDINGS)
@example(Finding("a", "error", "", place="/"))  # a place in words, of no file
def test_a_finding_comes_back_from_its_json(finding: Finding) -> None:
    back = Finding.from_json(json.loads(json.dumps(finding.as_json())))
    assert back.as_json() == finding.as_json()
    if finding.adapter or finding.file:
        assert back.called(back.where) == finding.called(finding.where)


def test_what_commands_tell_keeps_its_keys_in_their_order() -> None:
    finding = Finding("x", "note", "Odd.", adapter="/a", tensor="t", rule="A rule.")
    assert list(finding.as_dict()) == ["severity", "code", "where", "what", "remedy", "fix"]
    assert finding.as_dict()["where"] == "/a: t"
    more = {"adapter": "/a", "tensor": "t", "rule": "A rule."}
    assert finding.as_json() == {**finding.as_dict(), **more}


@pytest.mark.parametrize(
    ("where", "file", "tensor"),
    [
        ("/a/x", "/a/x", ""),
        ("/a/x: h.0.lora_A", "/a/x", "h.0.lora_A"),
        ("/a/x: tensor h.0.lora_A", "/a/x", "h.0.lora_A"),
        ("/a/x: module h.0", "/a/x", ""),
        ("3 module(s)", "", ""),
        ("", "", ""),
    ],
)
def test_findings_of_earlier_versions_have_their_place_in_words(
    where: str, file: str, tensor: str
) -> None:
    row = {"severity": "warning", "code": "x", "where": where, "what": "Odd.", "remedy": ""}
    finding = Finding.from_json(row)
    assert (finding.where, finding.file, finding.tensor) == (where, file, tensor)
    assert (finding.severity, finding.code, finding.what) == ("warning", "x", "Odd.")


def test_what_is_no_text_counts_as_not_said() -> None:
    finding = Finding.from_json({"severity": 7, "code": None, "where": [], "what": {}, "fix": 1})
    assert finding == Finding("", "note", "")


def test_an_error_is_a_finding_with_the_same_place() -> None:
    finding = finding_of(NAN)
    assert (finding.code, finding.severity) == ("not-finite", "error")
    assert finding.what == "The adapter holds NaN: 3 of 8 entries not finite."
    assert (finding.adapter, finding.module, finding.tensor) == ("/a/bad", "h.0", "h.0.lora_A")
    assert finding.where == NAN.where
    assert Finding.from_json(json.loads(json.dumps(NAN.as_json()))) == finding


def test_an_error_that_knows_no_place_is_about_what_was_read() -> None:
    finding = finding_of(AdapterError("It is bad."), "/a/bad")
    assert (finding.adapter, finding.where, finding.code) == ("/a/bad", "/a/bad", "unreadable")


def test_an_error_without_words_for_its_place_has_them_made() -> None:
    assert AdapterError("Bad.", file="/a/w.safetensors", tensor="t").where == "/a/w.safetensors: t"
    assert AdapterError("Bad.").where is None


def test_an_error_in_an_event_is_told_as_it_always_was() -> None:
    several = CollectionError("Two are bad.", errors=[NAN, AdapterError("Bad.", where="x")])
    assert told(several.as_json()) == several.as_dict()
    assert several.as_json()["errors"][0]["adapter"] == "/a/bad"


def test_a_finding_as_text_has_all_of_it() -> None:
    finding = Finding("x", "warning", "Odd.", "look", "vlora-tui x", file="/a", rule="no text")
    assert as_text(finding, "a") == "warning: a: Odd.\n  /a\n  look\n  vlora-tui x"
