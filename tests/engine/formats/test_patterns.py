"""The quick pattern table against the rule in one line."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.witnesses import make
from vlora_engine.adapters.model import match_pattern
from vlora_engine.catalog.open import open_adapter
from vlora_engine.errors import AdapterError
from vlora_engine.formats import patterns
from vlora_engine.formats.patterns import PatternTable

WORDS = st.lists(st.sampled_from(["h", "1", "11", "q", "v", "xq", "q.v", "-a"]), min_size=1)
NAMES = WORDS.map(".".join)
KEYS = NAMES | st.sampled_from(["^h.1", r"h\.\d+.*", ".*q", "(q|v)", "q$", "h.1|v", "", "."])


@given(table=st.dictionaries(KEYS, st.integers(0, 5), max_size=5), module=NAMES)
def test_the_table_finds_what_the_rule_finds(table, module):
    assert PatternTable(table).get(module, None) == match_pattern(table, module, None)


@pytest.mark.parametrize(
    ("key", "module", "matches"),
    [
        ("h.1.q", "model.h.1.q", True),
        ("h.1.q", "model.h.11.q", False),
        ("1.q", "h.11.q", False),
        ("h.1.q", "model.hx1.q", True),  # a dot is any letter: PEFT's rule, not ours
        ("^h.1.q", "model.h.1.q", False),
        ("q", "xq", False),
    ],
)
def test_where_a_key_may_begin(key, module, matches):
    assert (PatternTable({key: 1}).get(module, 0) == 1) is matches


def test_only_keys_with_the_leaf_of_a_module_are_tried_on_it(monkeypatch):
    tried = []

    def counted(key, module):
        tried.append(key)
        return original(key, module)

    original = patterns.matches_end
    monkeypatch.setattr(patterns, "matches_end", counted)
    names = [f"model.layers.{i}.{leaf}" for i in range(80) for leaf in ("q", "k", "v", "o")]
    table = PatternTable(dict.fromkeys(names, 3))

    assert all(table.get(name, 0) == 3 for name in names)
    assert len(tried) == 80 * len(names)  # and not all 320 on every one


def test_entries_whose_order_decides_are_reported(tmp_path):
    # PEFT writes its config sorted, so {"h.1.attn.c_attn": 5, "c_attn": 11} comes back reversed.
    patterns = {"c_attn": 11, "h.1.attn.c_attn": 5}
    make.write(tmp_path, settings=make.config(alpha_pattern=patterns))

    adapter = open_adapter(tmp_path)

    assert adapter.scales["transformer.h.1.attn.c_attn"] == 11 / 4
    (finding,) = [f for f in adapter.findings if f.code == "overlapping-patterns"]
    assert finding.severity == "warning"
    assert "transformer.h.1.attn.c_attn" in finding.what


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("target_modules", "(.|..)+@"),
        ("exclude_modules", "(a+)+$"),
        ("layers_pattern", ["h", "(.*.*.*.*.*.*)+@"]),
        ("rank_pattern", {"(x|x)*y": 3}),
        ("target_modules", "(q"),
    ],
)
def test_what_peft_would_match_for_ever_is_not_given_to_it(field, value):
    with pytest.raises(AdapterError, match=f"A module pattern in '{field}'"):
        patterns.check_for_peft({field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("target_modules", r".*decoder.*(SelfAttention|EncDecAttention).*(q|v)$"),
        ("target_modules", r"^(?!.*(lm_head|visual)).*\.(q_proj|v_proj)"),
        ("exclude_modules", ["(a+)+$"]),  # a list has names
        ("layers_pattern", "(layers|h)"),
        ("layers_pattern", 7),
        ("alpha_pattern", {r"model\.layers\.(0|1|2|10)\..*proj": 3}),
    ],
)
def test_what_is_common_may_be_given_to_peft(field, value):
    patterns.check_for_peft({field: value})
