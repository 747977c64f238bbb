"""Subspaces of vlora-dev and lorashare: opened as ours, worked on, and written for them again.

What the packages themselves wrote and read carries the marker `peers`; what they once wrote, and
what nobody should have written, is made by hand.
"""

from __future__ import annotations

import json
import shutil
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.witnesses import make
from vlora_engine.catalog.open import load_adapter, open_adapter
from vlora_engine.catalog.read import read_manifest
from vlora_engine.catalog.scanner import scan, tasks_of
from vlora_engine.doctor.subspace_check import check_subspace
from vlora_engine.errors import (
    CorruptFileError,
    NotFoundError,
    OutputExistsError,
    UnsupportedAdapterError,
    VLoRAError,
)
from vlora_engine.interop.write import write_lorashare, write_vlora_dev
from vlora_engine.linalg.low_rank import relative_error
from vlora_engine.shared_subspace import SharedSubspace

TASKS = ["t/0", "a b", "ü", "..", "plain"]
CLOSE = {"rtol": 0, "atol": 2e-5}


def delta_error(meant, found):
    pairs = (
        (
            (meant.lora_a[n].double(), meant.scales[n] * meant.lora_b[n].double()),
            (found.lora_a[n].double(), found.scales[n] * found.lora_b[n].double()),
        )
        for n in meant.layer_names
    )
    return relative_error(pairs)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("peers") / "runs"
    return make.collection(folder, 5)


@pytest.fixture(scope="module")
def vlora():
    return pytest.importorskip("vlora")


@pytest.fixture(scope="module")
def lorashare():
    warnings.simplefilter("ignore")
    return pytest.importorskip("lorashare")


@pytest.fixture
def ours_as_vlora(runs, tmp_path):
    """A directory of vlora-dev's format that this engine wrote: five tasks, k = 3."""
    adapters = [load_adapter(path) for path in runs]
    for adapter in adapters:
        adapter.scales = dict.fromkeys(adapter.layer_names, 1.0)
    subspace = SharedSubspace.from_adapters(
        adapters, TASKS, num_components=3, method="flat", dtype="fp32"
    )
    (tmp_path / "v").mkdir()
    write_vlora_dev(subspace, tmp_path / "v")
    return tmp_path / "v", subspace


@pytest.fixture
def ours_as_share(runs, tmp_path):
    """A checkpoint of lorashare's format that this engine wrote, the first task with a head."""
    adapters = [load_adapter(path) for path in runs]
    adapters[0].rest = {"base_model.model.score.weight": torch.arange(6).reshape(2, 3).half()}
    subspace = SharedSubspace.from_adapters(
        adapters, list("abcde"), num_components=7, method="columns", dtype="fp32"
    )
    (tmp_path / "s").mkdir()
    write_lorashare(subspace, tmp_path / "s")
    return tmp_path / "s", subspace


# ---- as their own packages see it


@pytest.mark.peers
@pytest.mark.parametrize("form", ["float", "adaptive", "nf4", "int8"])
def test_what_vlora_wrote_stands_for_the_same_here(form, vlora, runs, tmp_path):
    adapters = [vlora.load_adapter(path) for path in runs]
    options = {"adaptive_k": True, "variance_threshold": 0.9} if form == "adaptive" else {}
    k = None if form == "adaptive" else 3
    theirs = vlora.SharedSubspace.from_adapters(adapters, TASKS, num_components=k, **options)
    if form == "int8":
        theirs.quantize(bits=8)  # components that are not orthonormal any more
    (theirs.save_quantized if form == "nf4" else theirs.save)(tmp_path / "v")
    theirs = vlora.SharedSubspace.load(tmp_path / "v")

    ours = SharedSubspace.load(tmp_path / "v")

    assert list(ours.tasks) == TASKS
    assert ours.method == "flat"
    for task in TASKS:
        meant, found = theirs.reconstruct(task), ours.reconstruct(task)
        for name in meant.layer_names:
            torch.testing.assert_close(found.lora_a[name], meant.lora_a[name], **CLOSE)
            torch.testing.assert_close(found.lora_b[name], meant.lora_b[name], **CLOSE)
    assert not [f for f in check_subspace(tmp_path / "v") if f.severity == "error"]
    ours.save(tmp_path / "ours")
    assert check_subspace(tmp_path / "ours") == []  # orthonormal from now on


@pytest.mark.peers
def test_what_lorashare_wrote_stands_for_the_same_here(lorashare, runs, tmp_path):
    theirs = lorashare.SHAREModel.from_adapters([str(path) for path in runs], num_components=7)
    theirs.save_pretrained(tmp_path / "s")

    ours = SharedSubspace.load(tmp_path / "s")

    assert (ours.method, sorted(ours.tasks)) == ("columns", sorted(theirs.adapter_names))
    for task in ours.tasks:
        meant, found = theirs.reconstruct(task), ours.reconstruct(task)
        assert found.metadata == theirs.adapter_configs[task]
        for name in found.layer_names:
            key = f"{make.PREFIX}{name}.lora_{{}}.weight"
            torch.testing.assert_close(found.lora_a[name], meant[key.format("A")], **CLOSE)
            torch.testing.assert_close(found.lora_b[name], meant[key.format("B")], **CLOSE)


@pytest.mark.peers
def test_vlora_loads_what_this_engine_writes(vlora, ours_as_vlora):
    place, subspace = ours_as_vlora
    theirs = vlora.SharedSubspace.load(place)

    assert sorted(theirs.tasks) == sorted(TASKS)
    for task in TASKS:
        meant, found = subspace.reconstruct(task), theirs.reconstruct(task)
        for name in meant.layer_names:
            torch.testing.assert_close(found.lora_a[name], meant.lora_a[name], **CLOSE)
            torch.testing.assert_close(found.lora_b[name], meant.lora_b[name], **CLOSE)


@pytest.mark.peers
def test_lorashare_loads_what_this_engine_writes(lorashare, ours_as_share):
    place, subspace = ours_as_share
    theirs = lorashare.SHAREModel.from_pretrained(place)

    assert theirs.adapter_names == list("abcde")
    for task in "abcde":
        meant, found = subspace.reconstruct(task), theirs.reconstruct(task)
        for name in meant.layer_names:
            key = f"{make.PREFIX}{name}.lora_{{}}.weight"
            torch.testing.assert_close(found[key.format("A")], meant.lora_a[name], **CLOSE)
            torch.testing.assert_close(found[key.format("B")], meant.lora_b[name], **CLOSE)
        assert theirs.adapter_configs[task] == meant.metadata
    head = theirs.reconstruct("a")["base_model.model.score.weight"]
    assert torch.equal(head, torch.arange(6).reshape(2, 3).half())


# ---- as any of our subspaces


def test_every_task_of_a_peer_is_an_adapter(ours_as_vlora, ours_as_share):
    for (place, subspace), peer in ((ours_as_vlora, "vlora-dev"), (ours_as_share, "lorashare")):
        assert scan(place).subspaces == (place,)
        assert scan(place.parent).findings
        assert [info.path.name for info in tasks_of(place)] != []
        assert {info.format for info in tasks_of(place)} == {peer}
        for task in subspace.tasks:
            found = load_adapter(f"{place}:{task}")
            assert delta_error(subspace.reconstruct(task), found) < 1e-6
        (info,) = scan(f"{place}:{task}").adapters
        assert (info.format, info.error, info.rank) == (peer, None, 4)


def test_a_peers_subspace_is_worked_on_like_ours(ours_as_share, runs, tmp_path):
    place, _ = ours_as_share
    before = {f: f.read_bytes() for f in place.rglob("*") if f.is_file()}
    opened = SharedSubspace.load(place)

    opened.remove_task("e")
    opened.add_task(opened.project(load_adapter(runs[4]), "again"))
    opened.absorb(load_adapter(runs[3]), "more")
    opened.absorb_incremental(load_adapter(runs[2]), "still more")
    opened.save(tmp_path / "ours")

    assert before == {f: f.read_bytes() for f in place.rglob("*") if f.is_file()}
    again = SharedSubspace.load(tmp_path / "ours")
    assert sorted(again.tasks) == ["a", "again", "b", "c", "d", "more", "still more"]
    assert torch.equal(
        again.reconstruct("a").rest["base_model.model.score.weight"],
        torch.arange(6).reshape(2, 3).half(),
    )
    assert delta_error(load_adapter(runs[3]), again.reconstruct("more")) < 0.05
    assert read_manifest(tmp_path / "ours").tasks["a"].origin == "lorashare"


def test_nothing_is_written_over_a_peers_directory(ours_as_share, ours_as_vlora):
    for place, _ in (ours_as_share, ours_as_vlora):
        for marked in place.glob("*.json"):  # as the peer itself writes it
            marked.write_text(marked.read_text().replace('"written_by": "vlora-tui"', '"x": 1'))
        opened = SharedSubspace.load(place)
        with pytest.raises(OutputExistsError, match="did not write"):
            opened.save(place, force=True)
        assert len(SharedSubspace.load(place).tasks) == 5


def test_a_peer_says_what_it_does_not_know(ours_as_vlora):
    place, _ = ours_as_vlora
    manifest = read_manifest(place)

    assert manifest.as_dict()["mean_error"] is None
    assert {f.code for f in manifest.findings} == {"no-alpha"}
    assert {f.code for f in check_subspace(place)} == {"no-alpha", "no-checksums"}


# ---- older files, other shapes


def test_older_files_of_vlora_lack_what_can_be_found_out(ours_as_vlora, tmp_path):
    place, subspace = ours_as_vlora
    meta = json.loads((place / "subspace_meta.json").read_text())
    for task, file in meta.pop("task_filenames").items():
        if file != task and "/" not in task:
            (place / f"task_{file}.safetensors").rename(place / f"task_{task}.safetensors")
    meta["task_ids"].remove("t/0")  # older versions could not even save it
    for name in ("shapes_a", "shapes_b", "num_components", "adaptive_k", "variance_threshold"):
        del meta[name]
    (place / "subspace_meta.json").write_text(json.dumps(meta))

    found = SharedSubspace.load(place)

    assert delta_error(subspace.reconstruct("plain"), found.reconstruct("plain")) < 1e-6
    assert delta_error(subspace.reconstruct(".."), found.reconstruct("..")) < 1e-6


def test_groups_of_lorashare_may_have_different_k_and_tasks_may_lack_layers(tmp_path):
    generator = torch.Generator().manual_seed(3)

    def directions(d, k):
        return torch.linalg.qr(torch.randn(d, k, generator=generator))[0].contiguous()

    components = {"m.0:A": directions(8, 3), "m.0:B": directions(6, 2), "m.1:A": directions(8, 4)}
    components["m.1:B"] = directions(6, 5)
    place = tmp_path / "s"
    loadings = {k: torch.randn(c.shape[1], 2, generator=generator) for k, c in components.items()}
    for name, own in (("whole", loadings), ("part", dict(list(loadings.items())[:2]))):
        (place / "adapters" / name).mkdir(parents=True)
        save_file(
            {key: value.clone() for key, value in own.items()},
            place / "adapters" / name / "loadings.safetensors",
        )
    save_file(components, place / "shared_components.safetensors")
    (place / "share_config.json").write_text(json.dumps({"lora_rank": 2, "lora_alpha": 6}))

    subspace = SharedSubspace.load(place)

    weights = subspace.reconstruct("whole")
    a = (components["m.1:A"] @ loadings["m.1:A"]).T
    b = components["m.1:B"] @ loadings["m.1:B"]
    torch.testing.assert_close(weights.lora_a["m.1"], a, **CLOSE)
    torch.testing.assert_close(weights.lora_b["m.1"], b, **CLOSE)
    assert weights.scales["m.1"] == 3.0
    assert subspace.reconstruct("part").layer_names == ["m.0"]
    assert "no-config" in {f.code for f in read_manifest(place).findings}


# ---- what nobody should have written


def edited(place, **changes):
    path = place / "subspace_meta.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    "changes",
    [
        {"task_filenames": {"plain": "../../secret"}},
        {"task_filenames": {"plain": "/etc/passwd"}},
        {"task_filenames": {"plain": "a/../b"}},
        {"task_filenames": []},
        {"task_ids": "plain"},
        {"task_ids": ["plain", "plain"]},
        {"layer_names": []},
        {"layer_names": [1]},
        {"layer_names": ["nowhere"]},
        {"rank": -1},
        {"rank": 10**30},
        {"shapes_a": {"transformer.h.0.attn.c_attn": [4, -12]}},
        {"shapes_a": {"transformer.h.0.attn.c_attn": [4, 13]}},
        {"shapes_b": 7},
        {"format": "nf5"},
        {"format": "nf4_packed"},
        {"format": "nf4_packed", "nf4_block_size": 10**12},
    ],
)
def test_an_unsound_index_of_vlora_is_refused(changes, ours_as_vlora):
    place, _ = ours_as_vlora
    (place.parent / "secret.safetensors").write_bytes(b"no")
    edited(place, **changes)

    with pytest.raises((CorruptFileError, NotFoundError)):
        SharedSubspace.load(place)
    with pytest.raises(VLoRAError):
        open_adapter(f"{place}:plain")
    (info, *_) = [f for f in scan(place).findings if f.severity == "error"]
    assert info.code == "subspace-unreadable"


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000, b'{"x": 1e999}', b'{"x": "\\ud800"}']
)
@pytest.mark.parametrize("name", ["subspace_meta.json", "share_config.json"])
def test_an_index_that_is_no_json_is_refused(name, raw, tmp_path):
    (tmp_path / name).write_bytes(raw)

    with pytest.raises(CorruptFileError):
        read_manifest(tmp_path)


def test_damaged_numbers_of_a_peer_are_found(ours_as_vlora, ours_as_share):
    place, _ = ours_as_vlora
    file = place / "task_plain.safetensors"
    tensors = load_file(file)
    name = next(iter(tensors))
    save_file({**tensors, name: torch.full_like(tensors[name], float("nan"))}, file)
    assert "unreadable" in {f.code for f in check_subspace(place)}
    with pytest.raises(CorruptFileError, match="not sound"):
        SharedSubspace.load(place).reconstruct("plain")
    save_file({**tensors, name: torch.ones(99)}, file)
    with pytest.raises(CorruptFileError):
        SharedSubspace.load(place).reconstruct("plain")

    place, _ = ours_as_share
    file = place / "adapters" / "c" / "loadings.safetensors"
    tensors = load_file(file)
    save_file({f"{k.rpartition(':')[0]}x:A": v.clone() for k, v in tensors.items()}, file)
    with pytest.raises(CorruptFileError, match="not sound"):
        read_manifest(place)
    shutil.rmtree(place / "adapters" / "c")
    assert "adapters-missing" in {f.code for f in read_manifest(place).findings}


def test_the_whole_directory_of_a_peer_is_no_adapter(ours_as_share):
    place, _ = ours_as_share

    with pytest.raises(VLoRAError, match="a subspace, not one adapter") as caught:
        open_adapter(place)
    assert not isinstance(caught.value, UnsupportedAdapterError)
    with pytest.raises(NotFoundError, match="no task 'nope'"):
        open_adapter(f"{place}:nope")


def test_looking_at_a_peers_subspace_needs_no_torch(fresh_python, ours_as_vlora, ours_as_share):
    places = [str(place) for place, _ in (ours_as_vlora, ours_as_share)]

    said = fresh_python(
        "import sys; from vlora_engine.catalog.scanner import scan, tasks_of;"
        "from vlora_engine.catalog.read import read_manifest;"
        f"scan({places!r});"
        f"print([len(tasks_of(read_manifest(p).path)) for p in {places!r}],"
        "'torch' in sys.modules)"
    ).stdout

    assert said.strip() == "[5, 5] False"
