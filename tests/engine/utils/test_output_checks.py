"""No output is, contains or lies in an input or another output, however many there are."""

from __future__ import annotations

import os
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import vlora_engine.utils.output_checks as output_checks
from vlora_engine.errors import ParameterError
from vlora_engine.utils.output_checks import require_apart

ROOT = Path("/nowhere-at-all")  # nothing is there: names alone decide
places = st.lists(st.sampled_from("ab"), min_size=1, max_size=3).map(
    lambda parts: ROOT / "/".join(parts)
)


def meet(one: Path, other: Path) -> bool:
    return one == other or one in other.parents or other in one.parents


@given(outputs=st.lists(places, max_size=4), inputs=st.lists(places, max_size=3))
def test_outputs_are_refused_exactly_where_two_paths_meet(
    outputs: list[Path], inputs: list[Path]
) -> None:
    wrong = any(meet(one, other) for one, other in combinations(outputs, 2))
    wrong |= any(meet(output, path) for output in outputs for path in inputs)
    if not wrong:
        require_apart(outputs, inputs)
        return
    with pytest.raises(ParameterError, match=r"Two outputs|An output (is|lies)"):
        require_apart(outputs, inputs)


def test_each_path_is_looked_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand exports of a thousand adapters must not take a million looks at the disk."""
    plain, looked = output_checks._forms, []
    monkeypatch.setattr(
        output_checks, "_forms", lambda path, *known: looked.append(path) or plain(path, *known)
    )
    outputs = [ROOT / "out" / str(i) for i in range(50)]
    require_apart(outputs, [ROOT / "in" / str(i) for i in range(50)])
    assert len(looked) == 100


def test_a_folder_is_resolved_once(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, resolved = os.path.realpath, []
    monkeypatch.setattr(os.path, "realpath", lambda path: resolved.append(str(path)) or plain(path))
    require_apart([ROOT / "out"], [ROOT / "in" / str(i) for i in range(50)])
    assert sorted(resolved) == sorted(str(path) for path in (ROOT, ROOT / "in"))
