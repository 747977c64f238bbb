"""Adapters of the Hub: looked at by headers, fetched at one commit, and every way to fail."""

from __future__ import annotations

import json
import re
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.witnesses import make
from tests.witnesses.hub import TOKEN, Hub, read_tree
from vlora_engine import SharedSubspace, load_adapter, load_adapter_from_hub
from vlora_engine.adapters.address import hub_cache, repo_folder
from vlora_engine.catalog.read import read_manifest
from vlora_engine.catalog.scanner import scan
from vlora_engine.errors import (
    Cancelled,
    CorruptFileError,
    HubAccessError,
    HubError,
    HubOfflineError,
    NotFoundError,
    StorageError,
    VLoRAError,
)
from vlora_engine.hub import AdapterRef
from vlora_engine.hub.fetch import Fetched, cached_path, fetch, pin
from vlora_engine.utils.progress import Progress

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n"


@pytest.fixture
def legal(tmp_path: Path, hub: Hub) -> Path:
    """A local adapter that is org/legal on the Hub, beside files that are no adapter."""
    folder = make.write(tmp_path / "legal")
    extras = {"training_args.bin": b"pickle", "optimizer.pt": b"x" * 1000, "README.md": b"# legal"}
    files = {p.name: p.read_bytes() for p in folder.iterdir()} | extras
    hub.add("org/legal", files, card={"license": "mit"})
    return folder


def get(text: str, **options: Any) -> Fetched:
    return fetch(AdapterRef.on_hub(text), **options)


def weights_requests(hub: Hub) -> list[str | None]:
    """The spans in which large files were asked for; None is all of one."""
    return [r.span for r in hub.asked("^GET /lfs/")]


# what is read


def test_a_look_reads_headers_alone_and_sees_what_a_local_look_sees(hub: Hub, legal: Path) -> None:
    (legal / "training_args.bin").write_bytes(b"pickle")
    (legal / "optimizer.pt").write_bytes(b"x")
    local, remote = scan(legal).adapters[0], scan("hf://org/legal").adapters[0]

    ours, theirs = local.as_dict(), remote.as_dict()
    for row in (ours, theirs):
        del row["path"], row["identity"]
    commit = hub.repos["org/legal"].refs["main"]
    address = f"hf://org/legal@{commit}"
    assert str(remote.path) == address
    for row, place in ((ours, str(legal)), (theirs, address)):
        for finding in row["findings"]:
            assert finding["where"].startswith(place), "told by its place, not by its shadow"
            finding["where"] = finding["where"].removeprefix(place)
    assert ours["findings"], "the pickle beside is remarked on"
    assert theirs == ours
    assert weights_requests(hub) == ["bytes=0-131071"]
    assert not hub_cache().exists(), "nothing was downloaded"


def test_a_long_header_takes_a_second_request_and_no_data(hub: Hub, tmp_path: Path) -> None:
    modules = {f"model.layers.{i}.self_attn.q_proj": (4, 4) for i in range(900)}
    settings = make.config(target_modules=["q_proj"], r=1)
    folder = make.write(tmp_path / "big", make.factors(modules, rank=1), settings)
    hub.add("org/big", folder)
    info = scan("hf://org/big").adapters[0]
    assert (info.error, info.modules) == (None, 900)
    assert len(weights_requests(hub)) == 2
    assert None not in weights_requests(hub)


def test_what_is_fetched_is_the_adapter_and_nothing_else(hub: Hub, legal: Path) -> None:
    told: list[Progress] = []
    found = get("hf://org/legal", progress=told.append)

    commit = hub.repos["org/legal"].refs["main"]
    assert str(found.address) == f"hf://org/legal@{commit}"
    names = {p.name for p in found.path.iterdir()}
    assert names == {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (found.path / name).read_bytes() == (legal / name).read_bytes()
    assert told[-1].stage == "download"
    assert told[-1].done == told[-1].total == found.downloaded
    assert [p.done for p in told] == sorted(p.done for p in told)

    before = len(hub.requests)
    assert get(str(found.address)).downloaded == 0
    assert len(hub.requests) == before, "what is pinned and whole is asked of nobody"
    remote, cached = scan(str(found.address)).adapters[0], scan(found.path).adapters[0]
    assert (
        (remote.name, remote.identity)
        == (cached.name, cached.identity)
        == (
            "legal",
            remote.identity,
        )
    )


@pytest.mark.parametrize("named", ["org/legal", "hf://org/legal@main"])
def test_it_loads_as_it_does_from_a_folder(hub: Hub, legal: Path, named: str) -> None:
    ours, theirs = load_adapter(legal), load_adapter_from_hub(named)
    assert theirs.scales == ours.scales
    assert theirs.metadata == ours.metadata
    for name in ours.layer_names:
        assert torch.equal(theirs.lora_a[name], ours.lora_a[name])
        assert torch.equal(theirs.lora_b[name], ours.lora_b[name])


def test_a_revision_means_its_commit_then_and_later(hub: Hub, legal: Path, tmp_path: Path) -> None:
    repo = hub.repos["org/legal"]
    first = repo.refs["main"]
    repo.refs["v1"] = first
    second = repo.commit(repo.files | {"adapter_config.json": b"{}"})
    assert pin(AdapterRef.on_hub("hf://org/legal")).revision == second
    assert pin(AdapterRef.on_hub("hf://org/legal@v1")).revision == first
    assert get("hf://org/legal@v1").address.revision == first
    assert load_adapter_from_hub("org/legal", revision="v1").rank == 4


def test_the_root_is_meant_where_it_is_an_adapter_else_every_folder(
    hub: Hub, tmp_path: Path
) -> None:
    files: dict[str, bytes] = {}
    for name in ("", "checkpoint-500/", "deep/er/"):
        folder = make.write(tmp_path / "x", make.factors(seed=len(name)))
        files |= {name + p.name: p.read_bytes() for p in folder.iterdir()}
    hub.add("org/both", files)
    hub.add("org/many", {k: v for k, v in files.items() if "/" in k})

    catalog = scan("hf://org/both")
    assert [info.name for info in catalog.adapters] == ["both"]
    assert [f.code for f in catalog.findings] == ["hub-more"]
    assert "checkpoint-500" in catalog.findings[0].where
    assert get("hf://org/both").files == ("adapter_config.json", "adapter_model.safetensors")
    many = scan("hf://org/many")
    assert {info.name for info in many.adapters} == {"checkpoint-500", "er"}
    one = get("hf://org/both/deep/er")
    assert one.path.name == "er"
    assert load_adapter("hf://org/many/checkpoint-500").rank == 4
    with pytest.raises(NotFoundError, match="no such folder") as refused:
        get("hf://org/many/nope")
    assert "checkpoint-500" in str(refused.value)


# what can go wrong


def gated(hub: Hub, folder: Path) -> None:
    hub.repos["org/legal"].gated = True


def private(hub: Hub, folder: Path) -> None:
    hub.repos["org/legal"].private = True


def absent(hub: Hub, folder: Path) -> None:
    del hub.repos["org/legal"]


def no_adapter(hub: Hub, folder: Path) -> None:
    hub.repos["org/legal"].commit({"README.md": b"#", "notes.txt": b"x"})


def whole_model(hub: Hub, folder: Path) -> None:
    hub.repos["org/legal"].commit({"config.json": b"{}", "model.safetensors": b"12345678"})


def pointer(hub: Hub, folder: Path) -> None:
    repo = hub.repos["org/legal"]
    repo.commit(repo.files | {"adapter_model.safetensors": POINTER})


def out_of_order(hub: Hub, folder: Path) -> None:
    hub.broken["/api/models/"] = 500


def too_many(hub: Hub, folder: Path) -> None:
    hub.broken["/api/models/"] = 429


def gone(hub: Hub, folder: Path) -> None:
    hub.close()


FAULTS = [
    (gated, HubAccessError, "gated", "ask for access on"),
    (private, NotFoundError, "no such repository", "hf auth login"),
    (absent, NotFoundError, "or it is private", "check the spelling"),
    (no_adapter, NotFoundError, "no adapter in this repository", "hf://org/name/folder"),
    (whole_model, NotFoundError, "whole model", "--search-base org/legal"),
    (pointer, CorruptFileError, "Git LFS", "git lfs pull"),
    (out_of_order, HubError, "HTTP 500", "try again later"),
    (too_many, HubError, "too many requests", "wait some minutes"),
    (gone, HubOfflineError, "cannot be reached", "HF_ENDPOINT"),
]


@pytest.mark.parametrize(("break_it", "kind", "words", "remedy"), FAULTS)
@pytest.mark.parametrize("read", [scan, load_adapter])
def test_every_fault_has_its_own_words(
    hub: Hub,
    legal: Path,
    monkeypatch: pytest.MonkeyPatch,
    read: Any,
    break_it: Any,
    kind: type[VLoRAError],
    words: str,
    remedy: str,
) -> None:
    from huggingface_hub.utils import _http

    monkeypatch.setattr(_http.time, "sleep", lambda seconds: None)  # between its retries
    break_it(hub, legal)
    try:
        found = read("hf://org/legal")
        error = found.adapters[0].error  # of one among others it stands in the list
    except VLoRAError as raised:
        error = raised
    assert type(error) is kind, error
    assert words in str(error)
    assert remedy in (error.remedy or ""), error
    assert re.search("org(/|--)legal", str(error.where))
    assert "vlora-hub-" not in str(error), "a shadow is nobody's place"


def test_gated_with_a_token_that_has_no_access(
    hub: Hub, legal: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    gated(hub, legal)
    with pytest.raises(HubAccessError, match="gated"):
        load_adapter("hf://org/legal")
    hub.repos["org/legal"].gated = False
    private(hub, legal)
    assert load_adapter("hf://org/legal").rank == 4, "the token opens what is private"
    assert {r.token for r in hub.asked("/api/|/resolve/")} == {TOKEN}
    assert {r.token for r in hub.asked("/lfs/")} == {None}, "it goes to the Hub and nowhere else"


def test_a_token_that_is_none_any_more(
    hub: Hub, legal: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_expired0123456789")
    with pytest.raises(HubAccessError, match="does not accept the token") as refused:
        load_adapter("hf://org/legal")
    assert "expired" not in str(refused.value)


def test_a_wrong_revision(hub: Hub, legal: Path) -> None:
    with pytest.raises(NotFoundError, match="no revision 'v9'") as refused:
        get("hf://org/legal@v9")
    assert "branch" in str(refused.value.expected)


def test_what_answers_may_not_be_the_hub(hub: Hub, legal: Path) -> None:
    address = pin(AdapterRef.on_hub("hf://org/legal"))
    hub.broken["/resolve/"] = 200
    with pytest.raises(HubError, match="not the Hub"):
        fetch(address)


def test_a_renamed_repository_is_followed_and_said(hub: Hub, legal: Path) -> None:
    hub.repos["new/law"] = hub.repos.pop("org/legal")
    hub.moved["org/legal"] = "new/law"
    found = get("hf://org/legal")
    assert found.address.repo == "new/law"
    assert [r.code for r in found.remarks] == ["hub-moved"]
    catalog = scan("hf://org/legal")
    assert catalog.adapters[0].name == "law"
    assert "hub-moved" in [f.code for f in catalog.findings]


# without the Hub


def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    from vlora_engine.hub import listing

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(listing, "_by_commit", {})


@pytest.mark.parametrize("way", ["switched off", "out of reach"])
def test_what_was_fetched_is_there_without_the_hub(
    hub: Hub, legal: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    found = get("hf://org/legal")
    if way == "switched off":
        offline(monkeypatch)
    else:
        hub.close()
    before = len(hub.requests)
    again = get("hf://org/legal")
    assert again.path == found.path
    assert [r.code for r in again.remarks] == ["hub-cached"]
    assert load_adapter(str(found.address)).rank == 4
    assert [str(i.path) for i in scan("hf-cache:").adapters] == [str(found.address)]
    with pytest.raises(HubOfflineError, match="cache") as refused:
        get("hf://org/other")
    assert refused.value.remedy
    assert len(hub.requests) == before


def test_a_half_file_is_downloaded_again_or_named(
    hub: Hub, legal: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = get("hf://org/legal")
    blob = (found.path / "adapter_model.safetensors").resolve()
    whole = blob.read_bytes()
    blob.write_bytes(whole[:-100])
    again = get(str(found.address))
    assert [r.code for r in again.remarks] == ["hub-mended"]
    assert (found.path / "adapter_model.safetensors").read_bytes() == whole

    (found.path / "adapter_model.safetensors").resolve().write_bytes(whole[:-100])
    offline(monkeypatch)
    with pytest.raises(CorruptFileError, match="only half there") as refused:
        get(str(found.address))
    assert "adapter_model.safetensors" in str(refused.value.where)
    (found.path / "adapter_model.safetensors").resolve().unlink()
    with pytest.raises(CorruptFileError, match="only half there"):
        get("hf://org/legal")


def test_a_line_that_breaks_is_gone_on_with(
    hub: Hub, legal: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants, file_download

    monkeypatch.setattr(file_download.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 500)
    hub.cut = 1000
    found = get("hf://org/legal")
    assert (found.path / "adapter_model.safetensors").stat().st_size == (
        legal / "adapter_model.safetensors"
    ).stat().st_size
    assert "bytes=1000-" in weights_requests(hub)


def test_a_download_stops_when_asked_and_goes_on_later(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    folder = make.write(tmp_path / "legal")
    hub.add("org/legal", folder)
    hub.slow = threading.Event()  # half of the file comes, and then nothing
    seen: list[Progress] = []

    def stop() -> bool:
        return bool(seen) and seen[-1].done > 1000

    with pytest.raises(Cancelled) as stopped:
        get("hf://org/legal", progress=seen.append, cancelled=stop)
    hub.slow.set()
    hub.slow = None
    assert "files that are whole stay" in str(stopped.value.remedy)
    assert read_tree(get("hf://org/legal").path) == read_tree(folder)
    assert len(hub.asked("^GET .*/adapter_config.json")) == 1, "what was whole stayed"
    assert not [p.name for p in hub_cache().rglob("*.incomplete")]


def test_a_full_disk_is_seen_before_the_download(
    hub: Hub, legal: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import collections

    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10, 10, 0))
    with pytest.raises(StorageError, match="no room") as refused:
        get("hf://org/legal")
    assert "HF_HUB_CACHE" in str(refused.value.remedy)
    assert weights_requests(hub) == []


# what is found


def test_a_search_lists_the_adapters_of_a_base_model(hub: Hub, tmp_path: Path) -> None:
    for i in range(4):
        folder = make.write(tmp_path / f"a{i}", make.factors(seed=i))
        hub.add(f"org/a{i}", folder, tags=["peft", "base_model:adapter:org/base"], downloads=i)
    hub.repos["org/a1"].gated = True
    hub.add("org/base", {"config.json": b"{}"})
    catalog = scan("hf-search:org/base", search_limit=3)
    assert [info.name for info in catalog.adapters] == ["a3", "a2", "a1"]
    assert [info.group for info in catalog.adapters] == [0, 0, None]
    assert isinstance(catalog.adapters[2].error, HubAccessError)
    assert None not in weights_requests(hub)
    with pytest.raises(NotFoundError, match="names this base model"):
        scan("hf-search:org/nothing")


def test_the_cache_is_listed_without_asking(hub: Hub, legal: Path, tmp_path: Path) -> None:
    first = get("hf://org/legal")
    repo = hub.repos["org/legal"]
    repo.commit(repo.files | {"README.md": b"# another"})
    second = get("hf://org/legal@main")
    hub.add("org/model", {"config.json": b"{}"})
    before = len(hub.requests)
    found = scan("hf-cache:").adapters
    assert {str(i.path) for i in found} == {str(first.address), str(second.address)}
    assert {i.name for i in found} == {
        f"{f.address.revision[:8]}/org/legal" for f in (first, second) if f.address.revision
    }
    assert len(hub.requests) == before
    shutil.rmtree(repo_folder("org/legal"))
    with pytest.raises(NotFoundError):
        scan("hf-cache:")


# where it came from


def test_a_subspace_tells_the_commit_and_finds_the_original_again(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in make.collection(tmp_path / "runs", 3):
        hub.add(f"org/{path.name}", path)
    places = [f"hf://org/task{i:02d}" for i in range(3)]
    built = SharedSubspace.from_adapters_streaming(places, ["a", "b", "c"], num_components=8)
    built.save(tmp_path / "subspace")

    commits = {name: repo.refs["main"] for name, repo in hub.repos.items()}
    manifest = read_manifest(tmp_path / "subspace")
    assert manifest.tasks["b"].source == f"hf://org/task01@{commits['org/task01']}"
    text = (tmp_path / "subspace" / "subspace.json").read_text()
    assert str(tmp_path) not in text
    assert "127.0.0.1" not in text

    hub.close()
    opened = SharedSubspace.load(tmp_path / "subspace")
    weights = load_adapter(places[0])
    assert opened.absorb(weights, "again") == [], "the originals are still in the cache"
    opened.save(tmp_path / "subspace")
    source = json.loads((tmp_path / "subspace" / "subspace.json").read_text())
    assert all(t["source"]["path"].startswith("hf://org/") for t in source["tasks"])
    assert cached_path(AdapterRef.of_repo("org/none", "0" * 40)) is None
