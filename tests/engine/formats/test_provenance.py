"""What a written adapter says of where it comes from; hashlib, PEFT and gguf are the witnesses."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.witnesses import make
from vlora_engine import __version__
from vlora_engine.catalog.open import load_adapter
from vlora_engine.convert.convert import write_adapter
from vlora_engine.doctor import diagnose
from vlora_engine.formats.provenance import KEY, content_of, is_as_written, read_record
from vlora_engine.merging import merge
from vlora_engine.resizing import resize
from vlora_engine.shared_subspace import SharedSubspace
from vlora_engine.targets.save import save_adapter
from vlora_engine.targets.verify import verify_adapter

LLAMA = {
    f"model.layers.{layer}.self_attn.{name}": (32, 32)
    for layer in range(2)
    for name in ("q_proj", "v_proj")
}


def config(**changes: Any) -> dict[str, Any]:
    plain = {"target_modules": ["q_proj", "v_proj"], "fan_in_fan_out": False}
    return make.config(**{**plain, "base_model_name_or_path": "org/base", **changes})


@pytest.fixture
def zoo(tmp_path: Path) -> Path:
    folder = tmp_path / "home" / "alice" / "zoo"
    for seed, name in enumerate(("a", "b")):
        make.write(folder / name, make.factors(LLAMA, seed=seed), config(revision="v1"))
    return folder


def sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def written(place: Path) -> dict[str, Any]:
    """The record as safetensors' own reader gives it."""
    with safe_open(place / "adapter_model.safetensors", framework="pt") as file:
        metadata = file.metadata()
    assert metadata["format"] == "pt"
    return json.loads(metadata[KEY])


def files(place: Path) -> dict[str, str]:
    names = ("adapter_config.json", "adapter_model.safetensors")
    return {name: sha(place / name) for name in names}


def test_a_merge_says_its_sources_its_settings_and_its_base(zoo: Path, tmp_path: Path) -> None:
    pair = [load_adapter(zoo / name) for name in ("a", "b")]
    out = save_adapter(merge(pair, "ties", weights=[0.7, 0.3], density=0.4), tmp_path / "m")
    found = written(out)
    assert found["tool"] == f"vlora-tui {__version__}"
    assert (found["base"], found["revision"]) == ("org/base", "v1")
    assert [row["name"] for row in found["sources"]] == ["a", "b"]
    assert [row["files"] for row in found["sources"]] == [files(zoo / "a"), files(zoo / "b")]
    (step,) = found["steps"]
    expected = {"action": "merge", "method": "ties", "weights": [0.7, 0.3], "density": 0.4}
    assert expected.items() <= step.items()
    card = (out / "README.md").read_text()
    assert sha(zoo / "a" / "adapter_model.safetensors") in card
    assert 'base_model: "org/base"' in card


def test_the_content_is_a_hash_of_the_tensors_alone(zoo: Path, tmp_path: Path) -> None:
    out = save_adapter(load_adapter(zoo / "a"), tmp_path / "copy")
    whole = hashlib.sha256()
    for name, tensor in sorted(load_file(out / "adapter_model.safetensors").items()):
        own = hashlib.sha256(tensor.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()
        whole.update(f"{name}\0{own}\n".encode())
    assert written(out)["content"] == whole.hexdigest()
    assert is_as_written(out) is True
    assert content_of([("x", [b"a", b"b"])]) == content_of([("x", [b"ab"])])


def test_errors_and_steps_add_up_over_the_way_to_a_server(zoo: Path, tmp_path: Path) -> None:
    small, report = resize(load_adapter(zoo / "a"), rank=2)
    out = save_adapter(small, tmp_path / "served", target="vllm", dtype="bf16")
    resized, exported = written(out)["steps"]
    assert resized["action"] == "resize"
    assert resized["rank"] == 2
    assert resized["error"] == pytest.approx(report.error, rel=1e-5)
    rounding = verify_adapter(small, out)
    assert exported.pop("error") == pytest.approx(rounding, rel=1e-4)
    assert exported == {"action": "export", "target": "vllm", "dtype": "bf16"}
    assert written(out)["sources"] == [{"name": "a", "files": files(zoo / "a")}]


def test_a_task_of_a_subspace_names_the_adapter_that_it_was_made_from(
    zoo: Path, tmp_path: Path
) -> None:
    sources = {name: load_adapter(zoo / name) for name in ("a", "b")}
    space = SharedSubspace.from_adapters(list(sources.values()), task_ids=["a", "b"])
    out = save_adapter(space.reconstruct("b"), tmp_path / "task")
    (source,) = written(out)["sources"]
    assert source["name"] == "b"
    assert source["files"] == {"content": space.tasks.record("b").digest}
    assert written(out)["steps"][0]["action"] == "reconstruct"


def test_nothing_of_this_machine_is_written_and_the_bytes_are_the_same(
    zoo: Path, tmp_path: Path
) -> None:
    """Another folder, another time: the same bytes. A base that is a path is left out."""
    elsewhere = tmp_path / "else"
    shutil.copytree(zoo, elsewhere)
    made = []
    for place in (zoo, elsewhere):
        settings = config(base_model_name_or_path="org/base")
        (place / "a" / "adapter_config.json").write_text(json.dumps(settings))
        out = save_adapter(merge([load_adapter(place / n) for n in "ab"], "cat"), place / "m")
        made.append({p.name: p.read_bytes() for p in sorted(out.iterdir())})
    assert made[0] == made[1]
    local = config(base_model_name_or_path="/home/alice/models/base", revision="v1")
    (zoo / "a" / "adapter_config.json").write_text(json.dumps(local))
    out = save_adapter(load_adapter(zoo / "a"), tmp_path / "local")
    assert "base" not in written(out)
    for text in (*made[0].values(), (out / "README.md").read_bytes()):
        assert b"alice" not in text
        assert str(tmp_path).encode() not in text
    with safe_open(out / "adapter_model.safetensors", framework="pt") as file:
        assert "alice" not in file.metadata()[KEY]


def test_peft_reads_what_is_written(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model = make.peft_model(make.tiny_llama(), ["q_proj", "v_proj"])
    model.save_pretrained(tmp_path / "a")
    out = save_adapter(load_adapter(tmp_path / "a"), tmp_path / "out")
    assert read_record(out) is not None
    back = peft.PeftModel.from_pretrained(make.tiny_llama(), str(out))
    torch.testing.assert_close(make.logits(back), make.logits(model), rtol=0, atol=0)


def test_gguf_has_it_as_a_key_and_is_read_by_ggufs_own_reader(zoo: Path, tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    base = tmp_path / "base"
    make.tiny_llama(hidden_size=32, num_key_value_heads=2).config.save_pretrained(base)
    for dtype in (None, "q8_0"):
        out = save_adapter(
            load_adapter(zoo / "a"), tmp_path / f"g{dtype}", target="llamacpp", base=base,
            dtype=dtype,
        )  # fmt: skip
        field = gguf.GGUFReader(out / "adapter.gguf").get_field(KEY)
        assert field is not None
        found = json.loads(field.contents())
        assert found["sources"] == [{"name": "a", "files": files(zoo / "a")}]
        assert read_record(out).as_dict() == found
        assert is_as_written(out) is True
        assert found["content"] in (out / "README.md").read_text()


def test_mlx_has_it_in_its_metadata(zoo: Path, tmp_path: Path) -> None:
    write_adapter("mlx", load_adapter(zoo / "a"), "a", tmp_path / "mlx")
    record = read_record(tmp_path / "mlx")
    assert record is not None
    assert record.steps[-1] == {"action": "convert", "to": "mlx"}
    assert is_as_written(tmp_path / "mlx") is True


# ---- what the doctor makes of it ----------------------------------------------------------------


def codes(*places: Path) -> list[str]:
    return [finding.code for finding in diagnose(places).all_findings]


def test_the_doctor_tells_tensors_and_sources_that_changed(zoo: Path, tmp_path: Path) -> None:
    out = save_adapter(merge([load_adapter(zoo / n) for n in "ab"], "linear"), tmp_path / "m")
    told = {"content-changed", "source-changed"}
    assert not told & set(codes(out, zoo / "a", zoo / "b"))
    # a source is trained on
    file = zoo / "a" / "adapter_model.safetensors"
    save_file({k: t * 1.5 for k, t in load_file(file).items()}, file, {"format": "pt"})
    found = diagnose([out, zoo / "a", zoo / "b"]).all_findings
    (changed,) = [f for f in found if f.code in told]
    assert changed.code == "source-changed"
    assert "a is not what it was made from: adapter_model.safetensors differs" in changed.what
    # and the result's tensors are changed under the old record
    file = out / "adapter_model.safetensors"
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    tensors = load_file(file)
    tensors[min(tensors)][0, 0] += 1
    save_file(tensors, file, metadata)
    assert "content-changed" in codes(out)
    assert is_as_written(out) is False


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{", "{}", '{"content": 3}', '{"content": "x", "steps": [1]}', "[" * 100_000,
     '{"content": "x", "sources": {}}'],
)  # fmt: skip
def test_a_record_that_is_none_is_passed_over(zoo: Path, text: str) -> None:
    file = zoo / "a" / "adapter_model.safetensors"
    save_file(load_file(file), file, {"format": "pt", KEY: text})
    assert read_record(zoo / "a") is None
    assert is_as_written(zoo / "a") is None
    assert not {"content-changed", "source-changed"} & set(codes(zoo / "a"))


def test_odd_types_in_a_record_do_no_harm(zoo: Path) -> None:
    sources = [{"name": 3, "files": [1]}, {"files": {"a": 2}}]
    told = {"content": "x", "tool": "t", "sources": sources,
            "steps": [{"action": None, "error": "much", "x": {"y": [1, None]}}]}  # fmt: skip
    file = zoo / "a" / "adapter_model.safetensors"
    save_file(load_file(file), file, {"format": "pt", KEY: json.dumps(told)})
    record = read_record(zoo / "a")
    assert record is not None
    assert isinstance(record.words + record.card, str)
    assert "content-changed" in codes(zoo / "a", zoo / "b")
