"""What users of the first libraries rely on in Python, side by side where these are installed."""

from __future__ import annotations

import copy
import logging
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.witnesses import make
from vlora_engine import (
    LoRAWeights,
    SharedSubspace,
    TaskRouter,
    VLoRAModel,
    extract_adapter,
    load_adapter,
    orthogonal_init,
    stack_lora_weights,
)
from vlora_engine.catalog.open import open_adapter
from vlora_engine.compat.lorashare import SHAREConfig, SHAREModel
from vlora_engine.errors import (
    InputError,
    MissingPathError,
    ModelStateError,
    NotFoundError,
    OutputExistsError,
    ParameterError,
    SubspaceError,
    UnknownTaskError,
    VLoRAError,
)

MODULES = {"q": (16, 24), "v": (16, 12)}
METHODS = ["auto", "own", "delta", "columns", "flat"]


def adapters(count: int = 3, modules: dict[str, tuple[int, int]] = MODULES) -> list[LoRAWeights]:
    return [make.weights(modules, rank=2, seed=i) for i in range(count)]


def subspace(method: str = "delta", count: int = 3, **options: Any) -> SharedSubspace:
    return SharedSubspace.from_adapters(
        adapters(count), [f"t{i}" for i in range(count)], method=method, **options
    )


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.q, self.v = nn.Linear(16, 24), nn.Linear(16, 12, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.q(x), self.v(x)], -1)


# ---- errors


@pytest.mark.parametrize("method", METHODS)
def test_an_unknown_task_is_a_key_error_as_well(method: str) -> None:
    space = subspace(method)
    model = VLoRAModel(Net(), space)
    for call in (
        lambda: space.reconstruct("nope"),
        lambda: space.tasks["nope"],
        lambda: space.remove_task("nope"),
        lambda: space.tasks.record("nope"),
        lambda: model.set_task("nope"),
        lambda: model.set_tasks(["t0", "nope"]),
        lambda: model.set_blend([0.5, 0.5], ["t0", "nope"]),
        lambda: model.merge("nope"),
        lambda: model.reconstruct_state_dict("nope"),
    ):
        with pytest.raises(KeyError, match="There is no task 'nope'") as caught:
            call()
        assert isinstance(caught.value, NotFoundError)
        assert str(caught.value).startswith("There is no task 'nope' in this subspace.\n")
    assert space.tasks.get("nope") is None  # as of any mapping


def test_a_task_of_a_router_that_is_gone_is_a_key_error() -> None:
    space = subspace()
    router = TaskRouter.from_subspace(space, 4)
    space.remove_task("t1")
    with pytest.raises(KeyError):
        router.blend_loadings(torch.zeros(1, 4), space)


def test_a_missing_path_is_a_file_not_found_error_as_well(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for place in (tmp_path / "no", tmp_path / "empty"):
        for call in (
            load_adapter,
            open_adapter,
            SharedSubspace.load,
            TaskRouter.load,
            SHAREModel.from_pretrained,
            SHAREConfig.load,
            lambda path: SharedSubspace.from_adapters_streaming([path, path], ["a", "b"]),
            lambda path: SHAREModel.from_adapters({"a": str(path), "b": str(path)}),
        ):
            with pytest.raises(FileNotFoundError) as caught:
                call(place)
            assert isinstance(caught.value, NotFoundError)
            assert caught.value.what in str(caught.value)


@pytest.mark.parametrize("kind", [UnknownTaskError, MissingPathError, ModelStateError])
def test_these_errors_print_and_travel_as_all_others(kind: type[VLoRAError]) -> None:
    error = kind("It isn't 'there'.", where="here", remedy="look elsewhere")
    plain = InputError("It isn't 'there'.", where="here", remedy="look elsewhere")
    assert str(error) == str(plain)
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(twin) is kind
        assert (str(twin), twin.as_json()) == (str(error), error.as_json())


def test_a_model_in_the_wrong_state_is_a_runtime_error_as_well() -> None:
    model = VLoRAModel(Net(), subspace())
    with pytest.raises(RuntimeError, match="not merged"):
        model.unmerge()
    model.merge("t0")
    for call in (lambda: model.set_task("t1"), model.clear_task, lambda: model.merge("t1")):
        with pytest.raises(RuntimeError, match="merged") as caught:
            call()
        assert isinstance(caught.value, SubspaceError)


def test_the_first_library_raises_the_same_kinds(tmp_path: Path) -> None:
    vlora = pytest.importorskip("vlora")
    theirs = vlora.SharedSubspace.from_adapters(adapters(), num_components=2)
    model = vlora.VLoRAModel(Net(), theirs)
    with pytest.raises(KeyError):
        theirs.reconstruct("nope")
    with pytest.raises(RuntimeError):
        model.unmerge()
    with pytest.raises(FileNotFoundError):
        vlora.load_adapter(tmp_path)
    callback = pytest.importorskip("vlora.integrations.huggingface").VLoRACallback
    assert callback(theirs, "task_0").trainer is None


# ---- merged and hooked


class Mixed(nn.Module):
    """A linear map, an embedding, GPT-2's transposed one, and a convolution."""

    def __init__(self) -> None:
        super().__init__()
        conv1d = pytest.importorskip("transformers.pytorch_utils").Conv1D
        torch.manual_seed(1)
        self.embed = nn.Embedding(20, 16)
        self.line = nn.Linear(16, 24)
        self.turned = conv1d(16, 24)
        self.conv = nn.Conv2d(1, 6, 3)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.turned(self.line(self.embed(ids)))
        return torch.cat([x.flatten(1), self.conv(x.unsqueeze(1)).flatten(1)], 1)


@pytest.mark.parametrize("method", METHODS)
def test_merged_and_hooked_outputs_agree(method: str) -> None:
    space = subspace(method)
    model, x = VLoRAModel(Net(), space), torch.randn(5, 16)
    for task in space.tasks:
        model.set_task(task)
        hooked = model(x)
        model.merge(task)
        merged = model(x)
        model.unmerge()
        assert float((hooked - merged).norm() / merged.norm()) < 1e-5


@pytest.mark.parametrize("method", ["auto", "delta"])
def test_so_they_do_for_every_kind_of_module(method: str) -> None:
    from vlora_engine.adapters.model import ModuleShape

    def one(seed: int) -> LoRAWeights:
        torch.manual_seed(seed)
        a = {"line": (2, 16), "turned": (2, 24), "embed": (2, 20), "conv": (2, 9)}
        b = {"line": (24, 2), "turned": (16, 2), "embed": (16, 2), "conv": (6, 2)}
        shapes = {
            "embed": ModuleShape(2, 20, 16, "F32", "embedding", (2, 20), (16, 2)),
            "conv": ModuleShape(2, 9, 6, "F32", "conv2d", (2, 1, 3, 3), (6, 2, 1, 1)),
        }
        return LoRAWeights(
            layer_names=sorted(a),
            lora_a={n: torch.randn(s) for n, s in a.items()},
            lora_b={n: torch.randn(s) for n, s in b.items()},
            rank=2,
            metadata=make.config(r=2, lora_alpha=4),
            scales=dict.fromkeys(a, 2.0),
            shapes=shapes,
        )

    space = SharedSubspace.from_adapters([one(i) for i in range(3)], method=method)
    model = VLoRAModel(Mixed(), space)
    ids = torch.randint(0, 20, (3, 5))
    plain = model(ids)
    model.set_task("task_0")
    hooked = model(ids)
    model.merge("task_0")
    merged = model(ids)
    assert float((hooked - merged).norm() / merged.norm()) < 1e-5
    assert float((hooked - plain).norm() / plain.norm()) > 0.1


# ---- a name that exists


def in_python_words(error: ParameterError) -> None:
    assert "replace=True" in str(error)
    assert "--" not in str(error)


@pytest.mark.parametrize("method", METHODS)
def test_a_task_of_a_name_that_exists_is_replaced_when_asked(method: str) -> None:
    space, new = subspace(method), make.weights(MODULES, rank=2, seed=77)
    before = {name: space.reconstruct(name) for name in ("t0", "t2")}
    for call in (space.absorb, space.absorb_incremental):
        with pytest.raises(ParameterError) as caught:
            call(new, "t1")
        in_python_words(caught.value)
    projection = space.project(new, "t1", None)
    with pytest.raises(ParameterError) as caught:
        space.add_task(projection)
    in_python_words(caught.value)
    space.add_task(projection, replace=True)
    for call in (space.absorb, space.absorb_incremental):
        call(new, "t1", replace=True)
        assert sorted(space.tasks) == ["t0", "t1", "t2"]
        digest = open_digest(new)
        assert space.tasks.record("t1").digest == digest
    if method in ("auto", "own"):  # the others keep their bytes
        for name, weights in before.items():
            assert torch.equal(space.reconstruct(name).lora_a["q"], weights.lora_a["q"])


def open_digest(weights: LoRAWeights) -> str:
    from vlora_engine.adapters.model import MemorySource

    return MemorySource(weights).digest()


@pytest.mark.parametrize("method", METHODS)
def test_an_output_that_exists_is_told_of_in_words_of_python_too(
    method: str, tmp_path: Path
) -> None:
    space = subspace(method)
    space.save(tmp_path / "s")
    extract_adapter(space, "t0", tmp_path / "t0")
    for call in (
        lambda: subspace(method).save(tmp_path / "s"),
        lambda: subspace(method).save_quantized(tmp_path / "s"),
        lambda: extract_adapter(space, "t0", tmp_path / "t0"),
    ):
        with pytest.raises(OutputExistsError, match="in Python force=True"):
            call()


def test_flat_has_one_k_for_both_sides() -> None:
    with pytest.raises(ParameterError, match="one k"):
        SharedSubspace.from_adapters(adapters(), method="flat", k_a=1, k_b=2)


@pytest.mark.parametrize("method", ["delta", "columns", "flat"])
def test_orthogonal_init_replaces_when_asked(method: str) -> None:
    space = subspace(method, num_components=2 if method == "flat" else 6)
    orthogonal_init(space, "new", seed=1)
    with pytest.raises(ParameterError) as caught:
        orthogonal_init(space, "new", seed=2)
    in_python_words(caught.value)
    again = orthogonal_init(space, "new", seed=2, replace=True)
    assert torch.equal(space.tasks["new"].loadings_a["q"], again.loadings_a["q"])


# ---- devices


@pytest.mark.parametrize("device", ["cuda:99", "mps", "toaster", "meta"])
@pytest.mark.parametrize("method", METHODS)
def test_to_refuses_a_device_that_is_not_here(method: str, device: str) -> None:
    if device == "mps" and torch.backends.mps.is_available():
        pytest.skip("there is one")
    for word in (device, torch.device(device)) if device != "toaster" else (device,):
        with pytest.raises(ParameterError, match="device"):
            subspace(method).to(word)


@pytest.mark.parametrize("method", ["delta", "columns", "flat"])
def test_to_moves_the_loadings_too(method: str, tmp_path: Path) -> None:
    space = subspace(method, num_components=2)
    seen = space.tasks["t0"].loadings_a["q"]
    assert space.to("cpu", torch.float64) is space
    for name in space.tasks:
        task = space.tasks[name]
        tensors = [*task.loadings_a.values(), *task.loadings_b.values(), space.components_a["q"]]
        assert {t.dtype for t in tensors} == {torch.float64}
    assert torch.equal(space.tasks["t0"].loadings_a["q"].float(), seen)
    space.save(tmp_path / "s")
    again = SharedSubspace.load(tmp_path / "s")
    assert torch.equal(again.tasks["t0"].loadings_a["q"], seen)
    if torch.cuda.is_available():
        space.to("cuda")
        assert space.tasks["t1"].loadings_a["q"].device.type == "cuda"
        assert space.reconstruct("t1").lora_a["q"].device.type == "cuda"


# ---- the first library's call forms


def test_adaptive_k_means_what_it_means_there() -> None:
    given = adapters(5)
    alone = SharedSubspace.from_adapters(given, adaptive_k=True)
    named = SharedSubspace.from_adapters(given, adaptive_k=True, variance_threshold=0.6)
    fixed = SharedSubspace.from_adapters(given, adaptive_k=True, num_components=1)
    assert alone.method == "delta"
    ks = [[(s.k_a, s.k_b) for s in space.layers] for space in (alone, named, fixed)]
    assert ks[0] == ks[1] == ks[2]
    vlora = pytest.importorskip("vlora")
    theirs = [
        vlora.SharedSubspace.from_adapters(given, adaptive_k=True),
        vlora.SharedSubspace.from_adapters(given, adaptive_k=True, num_components=1),
    ]
    assert theirs[0].num_components == theirs[1].num_components


def test_stack_lora_weights_takes_their_sides() -> None:
    given = adapters()
    for side in ("A", "B"):
        ours = stack_lora_weights(given, side)  # type: ignore[arg-type]
        assert torch.equal(ours["q"], stack_lora_weights(given, side.lower())["q"])  # type: ignore[arg-type]
    vlora = pytest.importorskip("vlora.io")
    for side in ("A", "B"):
        theirs = vlora.stack_lora_weights(given, side)
        ours = stack_lora_weights(given, side)  # type: ignore[arg-type]
        assert theirs.keys() == ours.keys()
        assert all(torch.equal(theirs[name], ours[name]) for name in theirs)


def test_scaling_is_that_of_the_model() -> None:
    space, x = subspace("flat", num_components=2), torch.randn(4, 16)
    given = {"scaling": 3.0}, {"lora_alpha": 8.0}
    ours = [VLoRAModel(Net(), space, **options) for options in given]  # type: ignore[arg-type]
    assert [model.scaling for model in ours] == [3.0, 4.0]
    assert VLoRAModel(Net(), space).scaling is None
    vlora = pytest.importorskip("vlora")
    theirs = vlora.SharedSubspace.from_adapters(adapters(), ["t0", "t1", "t2"], num_components=2)
    for options, model in zip(given, ours, strict=True):
        other = vlora.VLoRAModel(Net(), theirs, **options)
        assert other.scaling == model.scaling
        other.set_task("t0")
        model.set_task("t0")
        assert torch.allclose(other(x), model(x), rtol=1e-4, atol=1e-4)


def test_project_warns_where_the_basis_holds_little() -> None:
    space, stranger = subspace("delta", num_components=1), make.weights(MODULES, rank=2, seed=99)
    with pytest.warns(UserWarning, match="Low coverage") as said:
        projection = space.project(stranger, "new")
    assert projection.record is not None
    assert len(said) == 1
    assert said[0].filename == __file__
    assert projection.record.error**2 > 0.5


def test_project_is_quiet_where_it_holds_much(recwarn: pytest.WarningsRecorder) -> None:
    space = subspace("delta", num_components=6)
    space.project(adapters()[0], "new")
    subspace("delta", num_components=1).project(make.weights(MODULES, rank=2, seed=99), "n", None)
    assert not recwarn.list


@pytest.mark.parametrize("method", METHODS)
def test_counts_are_integers(method: str) -> None:
    stats = subspace(method).full_stack_compression(1_000_001)
    rows = {**stats.pop("adapter"), **stats.pop("base_model"), **stats}
    rows.pop("components_per_layer")
    for name, value in rows.items():
        kind = float if "ratio" in name else int
        assert type(value) is kind, name


# ---- the second library's log


def moments(caplog: pytest.LogCaptureFixture, prefix: str) -> list[str]:
    found = [r.getMessage() for r in caplog.records if r.name.startswith(prefix)]
    caplog.clear()
    return found


def test_the_share_model_logs_what_it_does(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make.collection(tmp_path / "in", 4)
    paths = [str(p) for p in sorted((tmp_path / "in").iterdir())]
    for name in ("vlora_engine", "lorashare"):
        caplog.set_level(logging.INFO, logger=name)
    ours = "vlora_engine.compat"
    model = SHAREModel.from_adapters(paths[:3], num_components=2)
    text = "\n".join(moments(caplog, ours))
    assert "3 adapters" in text
    assert "k = 2" in text
    assert "fit together" in text
    assert "k is 2" in text
    model.add_adapter(paths[3], force_recompute=True)
    assert "Recomputing" in "\n".join(moments(caplog, ours))
    model.remove_adapter("task03")
    model.add_adapter(paths[3], variance_threshold=0.0)
    assert "enough" in "\n".join(moments(caplog, ours))
    SHAREModel.from_adapters(paths[:2], num_components=2, layer_by_layer=True)
    assert [line for line in moments(caplog, ours) if line.startswith("Layer 1 of")]
    theirs = pytest.importorskip("lorashare").SHAREModel
    peer = theirs.from_adapters(paths[:3], num_components=2)
    assert "Selected 2 components" in moments(caplog, "lorashare")
    peer.add_adapter(paths[3], variance_threshold=0.0)
    assert moments(caplog, "lorashare")
