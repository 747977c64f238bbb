"""Addresses on the Hub: one form, read strictly, written back alike; and the cache's form."""

from __future__ import annotations

from pathlib import Path

import pytest

from vlora_engine.adapters.address import address_of_page, address_text, is_pinned_form
from vlora_engine.errors import ParameterError
from vlora_engine.hub import AdapterRef, address_of, is_address

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("hf://org/name", AdapterRef.of_repo("org/name")),
        ("hf://org/name@main", AdapterRef.of_repo("org/name", "main")),
        ("hf://org/name@v1.0/a/b", AdapterRef.of_repo("org/name", "v1.0", "a/b")),
        ("hf://org/name/a", AdapterRef.of_repo("org/name", None, "a")),
        ("hf://org/name@refs/pr/3/a", AdapterRef.of_repo("org/name", "refs/pr/3", "a")),
        ("hf://org/name@feature%2Fx", AdapterRef.of_repo("org/name", "feature/x")),
        (f"hf://org/name@{COMMIT}:legal", AdapterRef.of_repo("org/name", COMMIT, "", "legal")),
        ("hf://org/name/sub:a:b/c", AdapterRef.of_repo("org/name", None, "sub", "a:b/c")),
        ("hf://o_1/n-a.m_e", AdapterRef.of_repo("o_1/n-a.m_e")),
    ],
)
def test_an_address_is_taken_apart_and_put_together_again(text: str, address: AdapterRef) -> None:
    assert AdapterRef.on_hub(text) == address
    assert AdapterRef.on_hub(str(address)) == address
    assert str(address) == text
    assert AdapterRef.on_hub(Path(text)) == address, "a path writes two slashes as one"


@pytest.mark.parametrize(
    "text",
    [
        *("hf://", "hf://org", "hf://org/", "hf:///name", "hf://org/name@", "hf://org/name:"),
        *("hf://../name", "hf://org/..", "hf://org/name/../x", "hf://org/name@../x/y"),
        *("hf://org/na me", "hf://org/name@a b", "hf://or--g/name", "hf://org/a..b"),
        *("hf://user:secret@host/org/name", "hf://org/name@%2e%2e%2fx"),
    ],
)
def test_what_is_no_address_is_refused_with_the_form(text: str) -> None:
    with pytest.raises(ParameterError) as refused:
        AdapterRef.on_hub(text)
    assert "hf://org/name" in str(refused.value)


def test_a_place_in_the_cache_is_known_as_a_copy_of_its_commit(tmp_path: Path) -> None:
    folder = tmp_path / "hub" / "models--org--name" / "snapshots" / COMMIT
    assert address_of(folder) == AdapterRef.of_repo("org/name", COMMIT)
    assert address_of(folder / "a" / "b") == AdapterRef.of_repo("org/name", COMMIT, "a/b")
    assert address_of(tmp_path / "models--org--name") is None
    assert address_text(f"{folder}/x.safetensors: key") == (
        f"hf://org/name@{COMMIT}/x.safetensors: key"
    )
    assert address_text(f"{folder}:a task") == f"hf://org/name@{COMMIT}:a task"
    assert address_text("/elsewhere/x") == "/elsewhere/x"
    assert not is_address("org/name")
    assert not is_address("/hf://x/y")


def test_a_page_of_the_hub_means_its_repository() -> None:
    page = "https://huggingface.co/org/name"
    assert str(address_of_page(page)) == "hf://org/name"
    assert str(address_of_page(f"{page}/tree/v1/sub?x=1")) == "hf://org/name@v1/sub"
    assert address_of_page("https://example.org/org/name") is None


def test_an_open_revision_may_have_become_a_commit() -> None:
    assert is_pinned_form(f"hf://org/name@{COMMIT}", "hf://org/name@main")
    assert not is_pinned_form(f"hf://org/name@{COMMIT}", "hf://org/other")
    assert not is_pinned_form(f"hf://org/name@{COMMIT}/a", "hf://org/name")
