"""The demo collection keeps what it promises, checked on dense weight changes by numpy alone."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from tests.conftest import FreshPython
from vlora_engine.demo import (
    BASE_FOLDER,
    BROKEN_TENSOR,
    DEMO_ADAPTERS,
    MANIFEST,
    TEXTS,
    demo_base_config,
    demo_model,
    make_demo_collection,
)
from vlora_engine.errors import OutputExistsError

CHECKPOINTS = [f"support-bot/checkpoint-{step}" for step in (500, 1000, 1500, 2000)]
LANGUAGES = ["french", "german", "italian", "spanish"]
UNRELATED = ["legal", "medical", "sports", "sentiment-head"]
NAMES = [adapter.name for adapter in DEMO_ADAPTERS]

# All that a reader of the files sees, without the layout of the safetensors header. It holds on
# every machine (see the module's docstring). A change is on purpose: raise DEMO_VERSION with it.
GOLDEN = "4f1f49d712b63b4f0c9b2441225d33239cc0c54cb8abfa1bd1ae6a4adf83dc4c"

Deltas = dict[str, np.ndarray]  # module: dW [d_out, d_in], float64


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_demo_collection(tmp_path_factory.mktemp("demo") / "demo").path


@pytest.fixture(scope="module")
def deltas(demo: Path) -> dict[str, Deltas]:
    return {name: dense_deltas(demo / name) for name in NAMES}


def read_config(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "adapter_config.json").read_text("utf-8"))


def read_tensors(folder: Path) -> dict[str, np.ndarray]:
    return load_file(folder / "adapter_model.safetensors")


def dense_deltas(folder: Path) -> Deltas:
    """dW = scale * B @ A of each module, with the scale that the config on disk gives."""
    config, tensors = read_config(folder), read_tensors(folder)
    r, alpha = config["r"], config["lora_alpha"]
    scale = alpha / math.sqrt(r) if config["use_rslora"] else alpha / r
    found = {}
    for key in tensors:
        if key.endswith(".lora_A.weight"):
            module = key.removesuffix(".lora_A.weight")
            A = tensors[key].astype(np.float64)
            B = tensors[f"{module}.lora_B.weight"].astype(np.float64)
            assert A.shape[0] == B.shape[1] == r
            found[module] = scale * B @ A
    return found


def norm(of: Deltas) -> float:
    return math.sqrt(sum(float(np.sum(W * W)) for W in of.values()))


def cosine(one: Deltas, other: Deltas) -> float:
    inner = sum(float(np.sum(one[m] * other[m])) for m in one.keys() & other.keys())
    return inner / (norm(one) * norm(other))


def overlap(of: Deltas, within: Deltas, rank: int = 8) -> tuple[float, float]:
    """The share of `of`'s energy in the output and in the input space of `within`."""
    outputs = inputs = 0.0
    for module, W in of.items():
        U, _, Vt = np.linalg.svd(within[module], full_matrices=False)
        outputs += float(np.sum((U[:, :rank].T @ W) ** 2))
        inputs += float(np.sum((W @ Vt[:rank].T) ** 2))
    return outputs / norm(of) ** 2, inputs / norm(of) ** 2


def shared_basis_error(group: list[Deltas], k: int) -> float:
    """Relative dW error of one basis of size k per side and module (HOSVD), in one layer."""
    squares = []
    for module in (name for name in group[0] if ".layers.1." in name):
        stack = [delta[module] / np.linalg.norm(delta[module]) for delta in group]
        U = np.linalg.svd(np.hstack(stack), full_matrices=False)[0][:, :k]
        Vt = np.linalg.svd(np.vstack(stack), full_matrices=False)[2][:k]
        squares += [1 - float(np.sum((U.T @ W @ Vt.T) ** 2)) for W in stack]
    return math.sqrt(np.mean(squares))


def all_files(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


# ---- the same everywhere


def test_two_runs_give_the_same_bytes_in_any_process(
    demo: Path, tmp_path: Path, fresh_python: FreshPython
) -> None:
    again = tmp_path / "again"
    fresh_python(
        "import pathlib, sys\n"
        "from vlora_engine.demo import make_demo_collection\n"
        f"make_demo_collection(pathlib.Path({str(again)!r}))\n"
        "assert 'torch' not in sys.modules, 'making the demo loads torch'\n",
        env={"PYTHONHASHSEED": "7"},
    )
    assert all_files(again) == all_files(demo)


def test_the_content_is_the_published_one(demo: Path) -> None:
    digest = hashlib.sha256()
    for name, data in sorted(all_files(demo).items()):
        if name.endswith(".safetensors"):
            for key, tensor in sorted(load_file(demo / name).items()):
                digest.update(f"{name} {key} {tensor.dtype.str} {tensor.shape}\n".encode())
                digest.update(tensor.tobytes())
        elif name != MANIFEST:  # it hashes whole files, headers included
            digest.update(name.encode() + b"\n" + data)
    assert digest.hexdigest() == GOLDEN


def test_the_manifest_lists_every_file_with_its_hash(demo: Path) -> None:
    files = all_files(demo)
    manifest = json.loads(files.pop(MANIFEST))
    assert manifest["synthetic"] is True
    assert manifest["files"] == {
        name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for name, data in files.items()
    }


# ---- what a folder of adapters looks like


def test_it_holds_the_adapters_it_names_and_about_ten_megabytes(demo: Path) -> None:
    folders = {path.parent.relative_to(demo).as_posix() for path in demo.rglob("adapter_*")}
    collection = make_demo_collection(demo)
    assert [name for name, _ in collection.adapters] == NAMES
    assert folders == set(NAMES)
    assert all(purpose for _, purpose in collection.adapters)
    sizes = {name: len(data) for name, data in all_files(demo).items()}
    beside = sum(size for name, size in sizes.items() if name.startswith(BASE_FOLDER))
    assert 8e6 < sum(sizes.values()) - beside < 12e6
    assert beside < 5e6


def test_it_says_that_it_is_synthetic(demo: Path) -> None:
    readme = (demo / "README.md").read_text("utf-8")
    assert "synthetic" in readme
    for adapter in DEMO_ADAPTERS:
        assert f"| `{adapter.name}` | {adapter.purpose} |" in readme
        base = read_config(demo / adapter.name)["base_model_name_or_path"]
        assert base.startswith("synthetic/")


@pytest.mark.parametrize("name", NAMES)
def test_tensors_are_those_of_the_config_and_of_the_base_model(demo: Path, name: str) -> None:
    base, config = demo_base_config(), read_config(demo / name)
    hidden, wide = base["hidden_size"], base["intermediate_size"]
    kv = hidden // base["num_attention_heads"] * base["num_key_value_heads"]
    sizes = {  # leaf: (d_out, d_in)
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (kv, hidden),
        "self_attn.v_proj": (kv, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (wide, hidden),
        "mlp.up_proj": (wide, hidden),
        "mlp.down_proj": (hidden, wide),
    }
    expected = {}
    for layer in range(base["num_hidden_layers"]):
        for leaf, (d_out, d_in) in sizes.items():
            if leaf.split(".")[1] in config["target_modules"]:
                module = f"base_model.model.model.layers.{layer}.{leaf}"
                expected[f"{module}.lora_A.weight"] = (config["r"], d_in)
                expected[f"{module}.lora_B.weight"] = (d_out, config["r"])
    if config["modules_to_save"]:
        expected["base_model.model.score.weight"] = (3, hidden)
    tensors = read_tensors(demo / name)
    assert {key: tensor.shape for key, tensor in tensors.items()} == expected
    assert config["target_modules"] == sorted(config["target_modules"])
    assert {t.dtype.name for t in tensors.values()} == {
        "float16" if name == "sports" else "float32"
    }
    with safe_open(demo / name / "adapter_model.safetensors", "np") as file:
        assert file.metadata() == {"format": "pt"}


def test_weight_changes_have_the_spectrum_and_the_start_of_trained_ones(
    demo: Path, deltas: dict[str, Deltas]
) -> None:
    for name in set(NAMES) - {"broken-nan", "untrained-zero-b"}:
        rank = read_config(demo / name)["r"]
        for module, W in deltas[name].items():
            values = np.linalg.svd(W, compute_uv=False)
            assert 0.35 < values[0] ** 2 / np.sum(values**2) < 0.65, (name, module)
            assert values[rank - 1] > 1e-3 * values[0], (name, module)
            assert values[rank:].max() < 1e-6 * values[0], (name, module)
            A = read_tensors(demo / name)[f"{module}.lora_A.weight"].astype(np.float64)
            # Rows of the start have squared length 1/3; what was learned adds some energy.
            assert 0.95 < 3 * np.mean(np.sum(A * A, axis=1)) < 1.3, (name, module)


def test_changes_are_about_as_strong_as_each_other_but_for_the_outlier(
    deltas: dict[str, Deltas],
) -> None:
    ordinary = [norm(deltas[n]) for n in [*LANGUAGES, *UNRELATED, "summarize", "poetry-rslora"]]
    assert max(ordinary) < 1.05 * min(ordinary)
    assert norm(deltas["outlier-diverged"]) > 20 * max(ordinary)
    assert abs(cosine(deltas["outlier-diverged"], deltas["legal"])) < 0.02


# ---- who belongs together


def test_checkpoints_grow_and_stay_in_one_subspace(deltas: dict[str, Deltas]) -> None:
    norms = [norm(deltas[name]) for name in CHECKPOINTS]
    assert norms == sorted(norms)
    assert norms[0] < 0.6 * norms[-1]
    first, second, _, last = (deltas[name] for name in CHECKPOINTS)
    outputs, inputs = overlap(first, within=last)
    assert outputs > 0.85
    assert inputs > 0.9
    assert cosine(second, last) > cosine(first, last) > 0.9  # it settles as it goes


def test_related_tasks_share_most_of_a_subspace_and_are_not_the_same(
    deltas: dict[str, Deltas],
) -> None:
    for name in LANGUAGES[1:]:
        outputs, inputs = overlap(deltas[name], within=deltas["french"])
        assert 0.75 < outputs < 0.95
        assert inputs > 0.85
        assert 0.5 < cosine(deltas[name], deltas["french"]) < 0.9


def test_unrelated_tasks_share_no_more_than_chance(deltas: dict[str, Deltas]) -> None:
    for name in [*UNRELATED[1:], "french", CHECKPOINTS[-1]]:
        outputs, inputs = overlap(deltas[name], within=deltas["legal"])
        assert outputs < 0.06  # rank / d, with d between 64 and 512
        assert inputs < 0.06
        assert abs(cosine(deltas[name], deltas["legal"])) < 0.02


def test_sharing_pays_for_the_families_and_much_less_for_the_unrelated(
    deltas: dict[str, Deltas],
) -> None:
    def error(names: list[str]) -> float:
        return shared_basis_error([deltas[name] for name in names], k=8)

    assert error(CHECKPOINTS) < 0.15
    assert error(LANGUAGES) < 0.25
    assert error(UNRELATED) > 0.45


# ---- the odd ones


def test_the_copy_is_the_original_with_one_percent_of_noise(
    demo: Path, deltas: dict[str, Deltas]
) -> None:
    assert 0.999 < cosine(deltas["medical-copy"], deltas["medical"]) < 1
    copy, original = read_tensors(demo / "medical-copy"), read_tensors(demo / "medical")
    for key in original:
        change = np.linalg.norm(copy[key] - original[key]) / np.linalg.norm(original[key])
        assert 0.007 < change < 0.013, key


def test_ranks_scales_and_targets_differ(demo: Path) -> None:
    def facts(name: str) -> tuple[int, int, bool]:
        config = read_config(demo / name)
        return config["r"], config["lora_alpha"], config["use_rslora"]

    assert facts("legal") == (8, 16, False)
    assert facts("sql") == (4, 32, False)
    assert facts("summarize") == (16, 32, False)
    assert facts("poetry-rslora") == (16, 16, True)
    assert read_config(demo / "sql")["target_modules"] == ["q_proj", "v_proj"]


def test_the_classifier_brings_its_head(demo: Path) -> None:
    config = read_config(demo / "sentiment-head")
    assert config["task_type"] == "SEQ_CLS"
    assert config["modules_to_save"] == ["score"]
    assert np.all(read_tensors(demo / "sentiment-head")["base_model.model.score.weight"])


def test_one_value_of_one_adapter_is_not_finite(demo: Path) -> None:
    broken = {
        (name, key): int(np.sum(~np.isfinite(tensor)))
        for name in NAMES
        for key, tensor in read_tensors(demo / name).items()
        if not np.isfinite(tensor).all()
    }
    assert broken == {("broken-nan", BROKEN_TENSOR): 1}


def test_the_untrained_adapter_has_a_start_and_exact_zeros(demo: Path) -> None:
    for key, tensor in read_tensors(demo / "untrained-zero-b").items():
        if ".lora_B." in key:
            assert tensor.tobytes() == bytes(tensor.nbytes), key  # no -0 either
        else:
            assert np.all(np.abs(tensor) <= 1 / math.sqrt(tensor.shape[1])), key
            assert np.std(tensor) > 0.5 / math.sqrt(tensor.shape[1]), key


# ---- what it is evaluated on


def test_the_base_is_a_whole_model_of_the_adapters_shape(demo: Path) -> None:
    """By transformers itself: every weight is there, none is left over, the shapes fit."""
    transformers = pytest.importorskip("transformers")
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        str(demo / BASE_FOLDER), output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    config = model.config.to_dict()
    assert {key: config[key] for key in demo_base_config()} == demo_base_config()
    shapes = {name: tuple(weight.shape) for name, weight in model.named_parameters()}
    for key, W in dense_deltas(demo / "legal").items():
        assert shapes[f"{key.removeprefix('base_model.model.')}.weight"] == W.shape
    assert "not trained" in json.loads((demo / BASE_FOLDER / "config.json").read_text())["about"]


def test_there_are_ten_texts_and_every_letter_is_a_token_of_the_base(demo: Path) -> None:
    text = (demo / TEXTS).read_text("ascii")
    assert len(text.strip().split("\n\n")) == 10
    assert len(text.encode()) > 1000


def test_base_and_texts_are_found_from_an_adapter_of_the_demo_alone(
    demo: Path, tmp_path: Path
) -> None:
    found = demo_model([tmp_path, demo / "support-bot" / "checkpoint-500"])
    assert found is not None
    assert (found.base, found.texts) == (demo / BASE_FOLDER, demo / TEXTS)
    assert demo_model([tmp_path, demo.parent]) is None


# ---- where it is written


def test_a_complete_demo_is_reused_and_keeps_what_lies_beside_it(tmp_path: Path) -> None:
    demo = make_demo_collection(tmp_path / "demo").path
    mine = demo / "mine" / "notes.txt"
    mine.parent.mkdir()
    mine.write_text("keep me")
    before = (demo / "README.md").stat().st_ino
    for force in (False, True):
        assert make_demo_collection(demo, force=force).path == demo
    assert (demo / "README.md").stat().st_ino == before
    assert mine.read_text() == "keep me"


@pytest.mark.parametrize("damage", ["edit", "remove", "manifest", "version"])
def test_a_changed_demo_is_replaced_only_by_force(tmp_path: Path, damage: str) -> None:
    demo = make_demo_collection(tmp_path / "demo").path
    whole = all_files(demo)
    if damage == "edit":
        with (demo / "legal" / "adapter_model.safetensors").open("r+b") as file:
            file.seek(-1, 2)
            file.write(b"\xff")
    elif damage == "remove":
        (demo / "legal" / "adapter_config.json").unlink()
    elif damage == "manifest":
        (demo / MANIFEST).write_text("[]")
    else:
        manifest = json.loads((demo / MANIFEST).read_text())
        (demo / MANIFEST).write_text(json.dumps({**manifest, "version": 0}))
    changed = all_files(demo)
    with pytest.raises(OutputExistsError):
        make_demo_collection(demo)
    assert all_files(demo) == changed
    make_demo_collection(demo, force=True)
    assert all_files(demo) == whole
    assert list(tmp_path.iterdir()) == [demo]


def test_force_deletes_nothing_that_is_not_the_demo(tmp_path: Path) -> None:
    mine = tmp_path / "folder" / "thesis.txt"
    mine.parent.mkdir()
    mine.write_text("years of work")
    link = tmp_path / "link"
    link.symlink_to(mine.parent)
    for place in (mine.parent, mine, link):
        with pytest.raises(OutputExistsError) as caught:
            make_demo_collection(place, force=True)
        assert caught.value.remedy
    assert mine.read_text() == "years of work"
    assert sorted(tmp_path.iterdir()) == [mine.parent, link]


def test_an_empty_directory_is_filled_and_parents_are_made(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert (make_demo_collection(tmp_path / "empty").path / MANIFEST).exists()
    assert (make_demo_collection(tmp_path / "a" / "b").path / MANIFEST).exists()


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = Path.write_bytes

    def fail_at_sql(path: Path, data: bytes) -> int:
        if path.parent.name == "sql":
            raise OSError(28, "No space left on device")
        return write(path, data)

    monkeypatch.setattr(Path, "write_bytes", fail_at_sql)
    with pytest.raises(OSError, match="No space left"):
        make_demo_collection(tmp_path / "demo")
    assert not list(tmp_path.iterdir())


# ---- PEFT


@pytest.mark.parametrize("name", ["french", "sql", "poetry-rslora", "sports", "sentiment-head"])
def test_peft_loads_every_tensor_and_computes_the_same_change(
    demo: Path, deltas: dict[str, Deltas], name: str
) -> None:
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    config = read_config(demo / name)
    kind = {
        "CAUSAL_LM": transformers.LlamaForCausalLM,
        "SEQ_CLS": transformers.LlamaForSequenceClassification,
    }[config["task_type"]]
    base = kind(transformers.LlamaConfig(**demo_base_config(), num_labels=3))
    model = peft.PeftModel.from_pretrained(base, demo / name)

    loaded = peft.get_peft_model_state_dict(model)
    stored = read_tensors(demo / name)
    assert loaded.keys() == stored.keys()
    for key, tensor in stored.items():
        assert np.array_equal(loaded[key].numpy(), tensor), key

    modules = dict(model.named_modules())
    for module, W in deltas[name].items():
        with torch.no_grad():
            theirs = modules[module].get_delta_weight("default").double().numpy()
        assert np.linalg.norm(theirs - W) < 1e-6 * np.linalg.norm(W), module


def test_a_model_notices_a_trained_adapter_and_not_the_untrained_one(demo: Path) -> None:
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    base = transformers.LlamaForCausalLM(transformers.LlamaConfig(**demo_base_config())).eval()
    tokens = torch.arange(3, 35)[None]
    with torch.no_grad():
        before = base(tokens).logits
        model = peft.PeftModel.from_pretrained(base, demo / "untrained-zero-b").eval()
        assert torch.equal(model(tokens).logits, before)
        model.load_adapter(demo / "french", "french")
        model.set_adapter("french")
        assert (model(tokens).logits - before).norm() > 0.02 * before.norm()
