"""The catalog: what headers show, which adapters belong together, how quickly."""

from __future__ import annotations

import cProfile
import json

import pytest
import torch

from tests.witnesses import make
from vlora_engine.adapters.base_models import normalise_base_model
from vlora_engine.catalog.scanner import scan
from vlora_engine.errors import CorruptFileError, NotFoundError
from vlora_engine.utils.tensor_writer import encode_header


def codes(info):
    return [finding.code for finding in info.findings]


def test_one_adapter_as_its_headers_show_it(tmp_path):
    ranks = dict(zip(make.MODULES, (4, 4, 2, 6), strict=True))
    pattern = {name: r for name, r in ranks.items() if r != 4}
    head = {f"{make.PREFIX}score.weight": torch.ones(2, 12)}
    make.write(
        tmp_path / "legal",
        {**make.factors(rank=ranks, dtype=torch.bfloat16), **head},
        make.config(rank_pattern=pattern),
    )

    (info,) = scan(tmp_path).adapters

    assert (info.name, info.format, info.base_model) == ("legal", "peft", "gpt2")
    assert (info.rank, info.ranks, info.alpha, info.scale) == (4, (2, 6), 8, 2.0)
    assert (info.modules, info.module_types) == (4, ("c_attn", "c_proj"))
    assert (info.dtype, info.rest, info.group, info.error) == ("BF16", 1, 0, None)
    files = list((tmp_path / "legal").iterdir())
    assert info.nbytes == sum(file.stat().st_size for file in files)
    assert codes(info) == ["mixed-ranks", "rest-tensors"]


def test_identity_changes_with_the_config_and_the_tensors_header(tmp_path):
    make.write(tmp_path)
    seen = {scan(tmp_path).adapters[0].identity}
    make.write(tmp_path, settings=make.config(lora_alpha=9))
    seen.add(scan(tmp_path).adapters[0].identity)
    make.write(tmp_path, make.factors(dtype=torch.float64))
    seen.add(scan(tmp_path).adapters[0].identity)

    assert len({identity[2] for identity in seen}) == 3
    assert scan(tmp_path).adapters[0].identity in seen


def test_a_bad_adapter_is_listed_with_its_error_among_good_ones(tmp_path):
    make.collection(tmp_path, 2)
    bad = make.write(tmp_path / "bad")
    (bad / "adapter_model.safetensors").write_bytes(b"short")
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "lora.safetensors").write_bytes(b"short")

    catalog = scan(tmp_path)

    assert [info.name for info in catalog.usable] == ["task00", "task01"]
    errors = {info.name: info.error for info in catalog.adapters if info.error}
    assert errors.keys() == {"bad", "odd"}
    assert all(isinstance(error, CorruptFileError) for error in errors.values())


def test_groups_are_adapters_that_fit_together(tmp_path):
    other_sizes = {name: (2 * i, 2 * o) for name, (i, o) in make.MODULES.items()}
    some = dict(list(make.MODULES.items())[:1])
    cases = {
        "a": (make.factors(), {}),
        "b-other-rank": (make.factors(rank=2), {"r": 2}),
        "c-fewer-modules": (make.factors(some), {}),
        "d-quantized-base": (make.factors(), {"base_model_name_or_path": "unsloth/gpt2-bnb-4bit"}),
        "e-other-base": (make.factors(), {"base_model_name_or_path": "gpt2-medium"}),
        "f-other-sizes": (make.factors(other_sizes), {}),
        "g-no-base": (make.factors(), {"base_model_name_or_path": None}),
    }
    for name, (tensors, fields) in cases.items():
        make.write(tmp_path / name, tensors, make.config(**fields))
    make.write(tmp_path / "h-pickle", pickle=True)

    catalog = scan(tmp_path)

    assert [info.group for info in catalog.adapters] == [0, 0, 0, 0, 1, 2, 3, None]
    assert catalog.groups[0].names == tuple(list(cases)[:4])
    assert [group.modules for group in catalog.groups] == [4, 4, 4, 4]


def test_the_same_adapter_reached_twice_is_listed_once(tmp_path):
    make.write(tmp_path / "a")
    (tmp_path / "link").symlink_to(tmp_path / "a")

    catalog = scan([tmp_path, tmp_path / "a", tmp_path / "link", tmp_path / "a" / ".." / "a"])

    assert [info.name for info in catalog.adapters] == ["a"]


def test_names_are_the_shortest_suffixes_that_tell_apart(tmp_path):
    for path in ("x/final", "y/final", "y/checkpoint-10"):
        make.write(tmp_path / path)

    catalog = scan([tmp_path / "x", tmp_path / "y"])

    assert [info.name for info in catalog.adapters] == ["x/final", "checkpoint-10", "y/final"]


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"target_modules": ["c_attn", "c_proj", "q_proj"]}, "stale-targets"),
        ({"target_modules": ["c_attn"]}, "unlisted-modules"),
        ({"base_model_name_or_path": "/home/me/llama"}, "local-base-model"),
        ({"base_model_name_or_path": None}, "no-base-model"),
        ({"lora_alpha": ...}, "no-lora-alpha"),
        ({"lora_alpha": 0}, "zero-alpha"),
        ({"peft_type": ...}, "no-peft-type"),
    ],
)
def test_findings_that_the_config_shows(fields, code, tmp_path):
    make.write(tmp_path, settings=make.config(**fields))

    assert codes(scan(tmp_path).adapters[0]) == [code]


@pytest.mark.parametrize(
    ("extra", "code"),
    [
        ({"base_model.model.lm_head.weight": (100, 64)}, "whole-matrices"),
        ({"base_model.model.x.base_layer.weight": (100, 64)}, "base-copies"),
    ],
)
def test_findings_that_the_header_shows(extra, code, tmp_path):
    tensors = {name: torch.zeros(shape) for name, shape in extra.items()}
    make.write(tmp_path, {**make.factors(), **tensors})

    assert codes(scan(tmp_path).adapters[0]) == ["rest-tensors", code]


def test_a_pickle_is_listed_but_not_opened(tmp_path, monkeypatch):
    make.write(tmp_path, pickle=True)
    monkeypatch.setattr(torch, "load", None)

    (info,) = scan(tmp_path).adapters

    assert (info.rank, info.modules, info.error) == (4, None, None)
    assert codes(info) == ["pickle-weights"]


def test_a_subspace_is_listed_apart_and_not_searched(tmp_path):
    make.write(tmp_path / "a")
    (tmp_path / "s" / "tasks").mkdir(parents=True)
    (tmp_path / "s" / "subspace.json").write_text('{"format": "vlora-subspace"}')
    make.write(tmp_path / "s" / "tasks" / "never")

    catalog = scan(tmp_path)

    assert [info.name for info in catalog.adapters] == ["a"]
    assert catalog.subspaces == (tmp_path / "s",)
    (finding,) = catalog.findings
    assert (finding.code, finding.severity) == ("subspace-unreadable", "error")


def test_json_has_everything_and_no_nan(tmp_path):
    make.write(tmp_path / "good")
    make.write(tmp_path / "bad", settings=make.config(r=9))

    table = json.loads(json.dumps(scan(tmp_path).as_dict(), allow_nan=False))

    bad, good = table["adapters"]
    assert bad["error"]["found"] == "rank 4, shape [4, 12]"
    assert good["ranks"] == [4, 4]
    assert table["groups"] == [{"number": 0, "base_model": "gpt2", "names": ["good"], "modules": 4}]


def test_names_of_files_that_are_no_text(tmp_path):
    import os

    raw = os.fsencode(tmp_path) + b"/caf\xe9"
    os.mkdir(raw)
    make.write(tmp_path / os.fsdecode(b"caf\xe9") / "x")
    make.write(tmp_path / os.fsdecode(b"caf\xe9") / "y" / "x")

    json.dumps(scan(tmp_path).as_dict(), ensure_ascii=False).encode()


@pytest.mark.parametrize("paths", [[], ()])
def test_no_path_at_all(paths):
    with pytest.raises(NotFoundError, match="No path was given"):
        scan(paths)


def test_only_so_many_are_listed(tmp_path):
    make.collection(tmp_path, 3)

    catalog = scan(tmp_path, max_adapters=2)

    assert len(catalog.adapters) == 2
    assert [finding.code for finding in catalog.findings] == ["too-many"]


@pytest.mark.parametrize(
    "name",
    [
        "meta-llama/Llama-3.1-8B",
        "unsloth/Llama-3.1-8B-bnb-4bit",
        "unsloth/llama-3.1-8b-unsloth-bnb-4bit",
        "unsloth/Meta-Llama-3.1-8B",
        "/home/me/models/Llama-3.1-8B/",
        r"C:\models\Llama-3.1-8B",
    ],
)
def test_names_of_one_base_model(name):
    assert normalise_base_model(name) == "llama-3.1-8b"


def test_names_of_other_base_models_stay_apart():
    names = ["gpt2", "gpt2-medium", "Llama-3.1-8B-Instruct", "Llama-3.1-8B", "roberta-base"]
    assert len({normalise_base_model(name) for name in names}) == len(names)
    assert normalise_base_model(None) is None


def test_importing_and_scanning_take_no_torch(fresh_python, tmp_path):
    make.collection(tmp_path, 2)
    make.write(tmp_path / "pickle", pickle=True)

    done = fresh_python(
        "import sys; from vlora_engine.catalog.scanner import scan;"
        f"print(len(scan({str(tmp_path)!r}).adapters), 'torch' in sys.modules)"
    )

    assert done.stdout.split() == ["3", "False"]


MOST_CALLS = 75  # for a tensor; 60 with Python 3.11


def test_what_an_adapter_costs_to_list_grows_with_its_tensors_alone(tmp_path):
    """Counted in calls, which no other CPU and no busy machine changes; `make bench` has seconds.

    So far five hundred adapters of 64 modules take less than a second of a CPU.
    """
    names = [
        f"{make.PREFIX}model.layers.{i}.self_attn.{leaf}_proj" for i in range(32) for leaf in "qv"
    ]
    layout = [
        (f"{name}.lora_{side}.weight", "F32", shape)
        for name in names
        for side, shape in (("A", (2, 4)), ("B", (4, 2)))
    ]
    raw, size = encode_header(layout, {"format": "pt"})
    settings = json.dumps(make.config(r=2, target_modules=["q_proj", "v_proj"]))
    calls = []
    for count in (20, 60):
        folder = tmp_path / str(count)
        for i in range(count):
            (folder / f"run{i}").mkdir(parents=True)
            (folder / f"run{i}" / "adapter_config.json").write_text(settings)
            (folder / f"run{i}" / "adapter_model.safetensors").write_bytes(raw.ljust(size, b"\0"))
        scan(folder)  # what is loaded and compiled once is no part of it
        profile = cProfile.Profile()
        catalog = profile.runcall(scan, folder)
        calls.append(sum(entry.callcount for entry in profile.getstats()))
        assert len(catalog.usable) == count
        assert len(catalog.groups) == 1
    per_adapter = (calls[1] - calls[0]) / 40
    assert calls[1] < 1.1 * per_adapter * 60  # not with the number of adapters beside it
    assert per_adapter / len(layout) < MOST_CALLS


def test_tasks_of_a_subspace_are_listed_when_they_are_named(tmp_path):
    from vlora_engine.catalog.open import load_adapter, open_adapter
    from vlora_engine.shared_subspace import SharedSubspace

    paths = make.collection(tmp_path / "in", 3)
    tasks = ["legal", "a:b", "in/out"]
    adapters = [load_adapter(path) for path in paths]
    SharedSubspace.from_adapters(adapters, task_ids=tasks, num_components=6).save(tmp_path / "s")

    catalog = scan([paths[0], *(f"{tmp_path}/s:{task}" for task in (*tasks, "none"))])

    *good, bad = catalog.adapters
    assert [info.name for info in good] == ["task00", "legal", "a:b", "out"]
    assert [info.group for info in good] == [0] * 4
    assert {info.format for info in good[1:]} == {"vlora-subspace"}
    assert (good[1].rank, good[1].modules, good[1].scale) == (4, 4, 2.0)
    assert bad.error is not None
    assert "no task 'none'" in bad.error.what
    source = open_adapter(good[2].path)
    assert source.modules.keys() == make.MODULES.keys()
