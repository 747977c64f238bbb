"""``merge`` in all its forms and ``interference``, on the command line."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path

import pytest
import torch

from tests.app.conftest import Cli
from tests.witnesses import make
from vlora_engine.analysis.interference_measures import pair_interference
from vlora_engine.catalog.open import load_adapter, open_adapter
from vlora_engine.merging import MERGE_METHODS, PEFT_METHODS, merge
from vlora_tui.recipe.mergekit_methods import ALIASES

MODULES = {
    f"model.layers.{layer}.self_attn.{name}": (12, 12)
    for layer in range(3)
    for name in ("q_proj", "k_proj")
}


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three adapters, ``a``, ``b`` and ``c``, of three layers."""
    folder = tmp_path_factory.mktemp("zoo")
    for seed, name in enumerate("abc"):
        settings = make.config(target_modules=["q_proj", "k_proj"], fan_in_fan_out=False)
        make.write(folder / name, make.factors(MODULES, seed=seed), settings)
    return folder


def same_deltas(place: Path, expected: object, tol: float = 1e-5) -> None:
    found = load_adapter(place)
    for module in found.layer_names:
        one, other = found.delta(module), expected.delta(module)
        torch.testing.assert_close(one, other, rtol=0, atol=tol * float(other.norm()))


def loaded(zoo: Path, names: str = "abc") -> list[object]:
    return [load_adapter(zoo / name) for name in names]


# ---- methods and flags --------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(MERGE_METHODS))
def test_every_method_runs_and_every_parameter_has_a_flag(
    cli: Cli, zoo: Path, tmp_path: Path, name: str
) -> None:
    method = MERGE_METHODS[name]
    places = [zoo / "a", zoo / "b", zoo / "c"][: method.adapters]
    values = {"seed": 3, "t": 0.25} | {p.name: p.default for p in method.parameters if p.default}
    values = {p.name: values[p.name] for p in method.parameters}
    flags = [f"--{key.replace('_', '-')}={value}" for key, value in values.items()]
    found = cli("merge", *places, "-o", tmp_path / "m", "--method", name, *flags, "--json").data
    assert found["parameters"] == values
    adapters = loaded(zoo, "abc"[: len(places)])
    same_deltas(tmp_path / "m", merge(adapters, name, **values))


@pytest.mark.parametrize("name", sorted(PEFT_METHODS))
def test_every_method_of_the_dialect_runs(cli: Cli, zoo: Path, tmp_path: Path, name: str) -> None:
    words = ["merge", zoo / "a", zoo / "b", "--method", name, "--dialect", "peft"]
    seed = ["--seed", "1"] if "seed" in [p.name for p in PEFT_METHODS[name].parameters] else []
    cli(*words, *seed, "-o", tmp_path / "m")
    expected = merge(loaded(zoo, "ab"), name, dialect="peft", **({"seed": 1} if seed else {}))
    same_deltas(tmp_path / "m", expected)


def test_weights_of_some_layers_and_what_else_every_method_takes(
    cli: Cli, zoo: Path, tmp_path: Path
) -> None:
    words = ["merge", zoo / "a", zoo / "b", "-o", tmp_path / "m", "--weights", "2,1"]
    more = ["--layers", "*.q_proj=1,0", "--normalize", "--scale", "0.5", "--dtype", "fp16"]
    assert "others in 3 modules" in cli(*words, *more).out
    one, other = loaded(zoo, "ab")
    found = load_adapter(tmp_path / "m")
    assert found.lora_a[found.layer_names[0]].dtype == torch.float16
    for module in found.layer_names:
        shares = (1.0, 0.0) if module.endswith("q_proj") else (2 / 3, 1 / 3)
        expected = 0.5 * (shares[0] * one.delta(module) + shares[1] * other.delta(module))
        torch.testing.assert_close(found.delta(module), expected, rtol=0, atol=2e-2)


def test_methods_are_listed_with_what_they_claim(cli: Cli) -> None:
    text, data = cli("merge", "--list-methods").out, cli("merge", "--list-methods", "--json").data
    assert [row["name"] for row in data["methods"]] == list(MERGE_METHODS)
    for row in data["methods"]:
        method = MERGE_METHODS[row["name"]]
        assert row["normalises_weights"] == method.normalises_weights
        assert set(row["identities"]) == method.identities
        for word in (method.summary, method.acts_on, method.weighting, method.reference):
            assert word in text
    for name in (*ALIASES, *PEFT_METHODS):
        assert name in text


# ---- preview ------------------------------------------------------------------------------------


def test_a_preview_says_what_is_kept_and_writes_nothing(
    cli: Cli, zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["merge", zoo / "a", zoo / "b", "--preview", "--rank", "3", "--weights", "3,1"]
    (found,) = cli(*words, "--json").data["merges"]
    assert found["path"] is None
    merged = merge(loaded(zoo, "ab"), "average", weights=[3, 1], rank=3)
    for name, adapter in zip("ab", loaded(zoo, "ab"), strict=True):
        inner = norm2 = merged2 = inside = 0.0
        cosines = {}
        for module in adapter.layer_names:
            D, M = adapter.delta(module), merged.delta(module)
            U, S, Vh = torch.linalg.svd(M)
            rank = int((1e-6 * S[0] < S).sum())
            inside += float((U[:, :rank].T @ D @ Vh[:rank].T).square().sum())
            inner += float((D * M).sum())
            norm2 += float(D.square().sum())
            merged2 += float(M.square().sum())
            cosines[module] = float((D * M).sum() / D.norm() / M.norm())
        kept = found["kept"][name]
        assert kept["cosine"] == pytest.approx(inner / math.sqrt(norm2 * merged2), abs=1e-5)
        assert kept["strength"] == pytest.approx(inner / norm2, abs=1e-5)
        assert kept["energy"] == pytest.approx(inside / norm2, abs=1e-5)
        assert kept["worst_module"] == min(cosines, key=lambda m: cosines[m])
        assert kept["worst_cosine"] == pytest.approx(min(cosines.values()), abs=1e-5)
    text = cli(*words)
    assert found["kept"]["a"]["worst_module"] in text.out
    assert "nothing was written" in text.err
    assert list(tmp_path.iterdir()) == []


def test_recipes_are_previewed(cli: Cli, zoo: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text(
        f'[input]\nadapters = ["{zoo}/*"]\n'
        '[[merge]]\nadapters = ["a", "b"]\npath = "out/one"\nmethod = "ties"\n'
        'layers = { "*.2.*" = { weights = [1, 0], density = 1.0 } }\n'
        '[[merge]]\nadapters = ["*"]\npath = "out/two"\nenergy = 0.9\n'
    )
    for words in (["merge", recipe, "--preview"], ["run", recipe, "--headless", "--preview"]):
        merges = cli(*words, "--json").data["merges"]
        assert [row["adapters"] for row in merges] == [["a", "b"], ["a", "b", "c"]]
        assert merges[0]["path"] == str(tmp_path / "out" / "one")
        assert not (tmp_path / "out").exists()
    done = cli("run", recipe, "--headless", "--json").data["merged"]
    assert [row["kept"] for row in done] == [row["kept"] for row in merges]
    one, found = load_adapter(zoo / "a"), load_adapter(tmp_path / "out" / "one")
    module = "model.layers.2.self_attn.q_proj"
    torch.testing.assert_close(found.delta(module), one.delta(module), rtol=0, atol=1e-4)


# ---- mergekit's files ---------------------------------------------------------------------------

DARE = """
models:
  - model: org/base
  - model: a
    parameters: {weight: [0.2, 0.8], density: 0.5}
  - model: b
    parameters:
      weight: 0.5
      density:
        - filter: k_proj
          value: 0.3
        - value: 0.6
merge_method: dare_ties
base_model: org/base
parameters: {normalize: true, int8_mask: true, lambda: 1.5}
dtype: float32
"""


def config(folder: Path, text: str) -> Path:
    path = folder / "merge.yml"
    path.write_text(text)
    return path


def test_a_mergekit_file_is_its_merge(cli: Cli, zoo: Path, tmp_path: Path) -> None:
    place = config(tmp_path, DARE.replace("model: a", f"model: {zoo}/a"))
    place.write_text(place.read_text().replace("model: b", f"model: {zoo}/b"))
    told = cli("merge", place, "-o", tmp_path / "m", "--seed", "5").err
    assert "dare_ties: dare_ties, weights normalised" in told
    assert "int8_mask: no effect" in told
    layers = {
        module: {
            "weights": [0.2 + 0.3 * int(module.split(".")[2]), 0.5],
            "density": [0.5, 0.3 if "k_proj" in module else 0.6],
        }
        for module in MODULES
    }
    expected = merge(loaded(zoo, "ab"), "dare_ties", layers=layers, scale=1.5, seed=5)
    same_deltas(tmp_path / "m", expected)


@pytest.mark.parametrize("name", sorted(ALIASES))
def test_every_merge_method_of_the_table(cli: Cli, zoo: Path, tmp_path: Path, name: str) -> None:
    weight = "" if name in ("slerp", "sce", "model_stock") else ", parameters: {weight: 0.4}"
    t = "base_model: b\nparameters: {t: 0.25}" if name == "slerp" else ""
    text = f"models:\n- {{model: a{weight}}}\n- {{model: b{weight}}}\nmerge_method: {name}\n{t}\n"
    place = config(zoo, text)
    seed = ["--seed", "1"] if name.startswith(("dare", "della")) else []
    cli("merge", place, "-o", tmp_path / "m", *seed)
    place.unlink()
    a, b = loaded(zoo, "ab")
    expected = {
        "linear": lambda: merge([a, b], "average"),
        "task_arithmetic": lambda: merge([a, b], "average", weights=[0.4, 0.4]),
        "dare_linear": lambda: merge([a, b], "average", weights=[0.4, 0.4]),  # density 1: all stay
        "ties": lambda: merge([a, b], "ties", density=1.0),
        "slerp": lambda: merge([b, a], "slerp", t=0.25),
        "nuslerp": lambda: merge([a, b], "slerp"),
        "model_stock": lambda: merge([a, b], "model_stock"),
    }
    if name in expected:
        same_deltas(tmp_path / "m", expected[name]())
    assert open_adapter(tmp_path / "m").modules.keys() == open_adapter(zoo / "a").modules.keys()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("models: [", "not YAML"),
        ("- a\n- b", "no merge file"),
        ("!!python/object/apply:os.system ['true']", "not YAML"),
        ("a: 2001-13-45", "not YAML"),
        ("a: &a [x, x]\nb: &b [*a, *a, *a]\nmodels: [{model: *b}]\nmerge_method: ties", "'a'"),
        ("models: [{model: a}, {model: b}]\nmerge_method: ties\nparameters: {lambda: .inf}", "num"),
        ("merge_method: ties", "names no models"),
        ("models: [{model: a}, {model: b}]", "merge_method"),
        ("models: [{model: a}, {model: b}]\nmerge_method: passthrough", "task_arithmetic"),
        ("models: [{model: a}]\nmerge_method: ties", "one alone needs a weight"),
        ("models: [{model: a}, {model: nope}]\nmerge_method: ties", "no such adapter"),
        ("models: [{model: a}, {model: org/m+org/lora}]\nmerge_method: ties", "behind the +"),
        ("models: [{model: a, layers: 3}, {model: b}]\nmerge_method: ties", "'layers'"),
        ("slices: [1]\nmerge_method: ties", "slices cannot be merged"),
        ("modules: {x: 1}\nmerge_method: ties", "modules cannot be merged"),
        ("models: [{model: a}, {model: b}]\nmerge_method: ties\ntokenizer_source: base", "token"),
        ("models: [{model: a}, {model: b}]\nmerge_method: ties\ndtype: int3", "no such dtype"),
        ("models: [{model: a}, {model: b}]\nmerge_method: ties\nturbo: 1", "'turbo'"),
        (
            "models: [{model: a, parameters: {weight: 1}}, {model: b}]\nmerge_method: ties",
            "others have none",
        ),
        (
            "models: [{model: a}, {model: b}]\nmerge_method: ties\nparameters: {gamma: 1}",
            "no parameter 'gamma'",
        ),
        (
            "models: [{model: a}, {model: b}]\nmerge_method: ties\nparameters: {density: x}",
            "density is a number",
        ),
        (
            "models: [{model: a}, {model: b}]\nmerge_method: ties\n"
            "parameters: {density: [{filter: k_proj, value: 0.5}]}",
            "No filter of density",
        ),
        (
            "models: [{model: a}, {model: b}]\nmerge_method: ties\nparameters: {density: 3}",
            "density is out of range",
        ),
    ],
)
def test_what_adapters_do_not_have_is_refused_by_name(
    cli: Cli, zoo: Path, tmp_path: Path, text: str, words: str
) -> None:
    place = config(zoo, text)
    found = cli("merge", place, "-o", tmp_path / "m", code=2)
    place.unlink()
    assert words in found.err
    assert str(place) in found.err or "out of range" in words
    assert list(tmp_path.iterdir()) == []


# ---- interference -------------------------------------------------------------------------------


def test_interference_of_two_tells_their_layers(cli: Cli, zoo: Path) -> None:
    first, second = (open_adapter(zoo / name) for name in ("a", "b"))
    _, expected = pair_interference(first, second)
    data = cli("interference", zoo / "a", zoo / "b", "--json").data
    assert set(data["layers"]) == set(expected)
    for name, found in expected.items():
        row = data["layers"][name]
        assert row["contested"] == pytest.approx(float(found.contested[0, 1]))
        assert row["cosine"] == pytest.approx(float(found.cosine[0, 1]))
    most = max(expected, key=lambda name: float(expected[name].contested[0, 1]))
    assert f"most contested in: {most} " in cli("interference", zoo / "a", zoo / "b").out
    assert cli("interference", zoo, "--json").data["layers"] == {}  # of more than two, of none


def test_interference_in_three_forms(cli: Cli, zoo: Path) -> None:
    data = cli("interference", zoo, "--json").data
    assert data["adapters"] == ["a", "b", "c"]
    matrices = data["matrices"]
    assert matrices.keys() == data["measures"].keys()
    rows = list(csv.DictReader(io.StringIO(cli("interference", zoo, "--csv", "-").out)))
    assert [(row["adapter"], row["and"]) for row in rows] == [
        (a, b) for a in "abc" for b in "abc" if a != b
    ]
    for row in rows:
        for name, matrix in matrices.items():
            assert float(row[name]) == pytest.approx(matrix[row["adapter"]][row["and"]], abs=1e-8)
    similar = cli("analyze", zoo, "--json").data["similarity_matrix"]
    assert matrices["cosine"]["a"]["b"] == pytest.approx(similar["a"]["b"], abs=1e-6)
    text = cli("interference", zoo).out
    assert "conflicting" in text
    assert json.dumps(data)
    cli("interference", zoo, "--csv", "-", "--json", code=2)
    assert "nothing to compare" in cli("interference", zoo / "a", code=2).err


# ---- one adapter alone, and the method by the name that was typed -------------------------------


def test_one_adapter_is_negated_by_flags_recipe_and_mergekit_file(
    cli: Cli, zoo: Path, tmp_path: Path
) -> None:
    negative = load_adapter(zoo / "a")
    negative.scales = {module: -scale for module, scale in negative.scales.items()}
    cli("merge", zoo / "a", "--method", "linear", "--weights=-1", "-o", tmp_path / "flags")
    recipe = tmp_path / "merge.toml"
    table = f'[[merge]]\nadapters = ["{zoo}/a"]\nmethod = "linear"\nweights = [-1]\npath = "toml"\n'
    recipe.write_text(f'[input]\nadapters = ["{zoo}/a"]\n{table}')
    cli("run", "--headless", recipe)
    kit = config(zoo, "models: [{model: a, parameters: {weight: -1}}]\nmerge_method: linear\n"
                 "parameters: {normalize: false}")  # fmt: skip
    cli("merge", kit, "-o", tmp_path / "kit")
    kit.unlink()
    for name in ("flags", "toml", "kit"):
        same_deltas(tmp_path / name, negative, 1e-6)


def test_one_adapter_without_a_weight_is_no_merge(cli: Cli, zoo: Path, tmp_path: Path) -> None:
    refused = cli("merge", zoo / "a", "-o", tmp_path / "m", code=2)
    assert "one alone needs a weight" in refused.err
    refused = cli(
        "merge", zoo / "a", "-o", tmp_path / "m", "--method", "model_stock", "--weights=-1", code=2
    )
    assert "of one adapter's -1 1 would be left" in refused.err
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("typed", ["linear", "average", "task_arithmetic", "dare-linear", "cat"])
def test_a_merge_is_told_by_the_name_that_was_typed(
    cli: Cli, zoo: Path, tmp_path: Path, typed: str
) -> None:
    words = ["merge", zoo / "a", zoo / "b", "--method", typed, "-o", tmp_path / "m"]
    found = cli(*words)
    assert f" by {typed} (weights " in found.out
    assert ("it was the average before" in found.err) == (typed == "cat")
    assert cli(*words, "--force", "--json").data["method"] == typed
    assert cli(*words, "--preview", "--json").data["merges"][0]["method"] == typed


# ---- the verdict of interference ----------------------------------------------------------------


def turned(zoo: Path, name: str, factor: float) -> Path:
    """Adapter ``a`` with another sign or size."""
    from safetensors.torch import load_file

    place = zoo.parent / f"{zoo.name}-{name}"
    tensors = load_file(zoo / "a" / "adapter_model.safetensors")
    changed = {k: t * factor if "lora_B" in k else t for k, t in tensors.items()}
    settings = json.loads((zoo / "a" / "adapter_config.json").read_text())
    return make.write(place, changed, settings)


@pytest.mark.parametrize(
    ("factor", "kind", "words"),
    [
        (-1.0, "opposed", "takes 100 % from a and 100 % from"),
        (2.0, "alike", "do much the same (cosine 1.0)"),
        (-5.0, "opposed", "is 5 times as large and would drown a."),
    ],
)
def test_the_verdict_on_a_pair_comes_first(
    cli: Cli, zoo: Path, factor: float, kind: str, words: str
) -> None:
    other = turned(zoo, f"x{factor}", factor)
    found = cli("interference", zoo / "a", other)
    assert words in found.out.splitlines()[0]
    data = cli("interference", zoo / "a", other, "--json").data
    assert data["verdict"] == data["pairs"][0]["verdict"]
    assert data["pairs"][0]["kind"] == kind


def test_the_verdict_on_pairs_that_leave_each_other_alone_and_that_do_not(
    cli: Cli, tmp_path: Path
) -> None:
    """The same two directions with weights (3, 1) and (1, -3): orthogonal, half is contested."""
    module = "model.layers.0.self_attn.q_proj"
    eye = torch.eye(12)
    for name, rows, sizes in (("p", (0, 1), (3, 1)), ("q", (0, 1), (1, -3)), ("r", (4, 5), (2, 1))):
        a, b = eye[list(rows)], eye[:, list(rows)] * torch.tensor(sizes, dtype=torch.float32)
        tensors = {f"{make.PREFIX}{module}.lora_{s}.weight": t.contiguous()
                   for s, t in (("A", a), ("B", b))}  # fmt: skip
        make.write(tmp_path / name, tensors, make.config(r=2, target_modules=["q_proj"]))
    data = cli("interference", tmp_path, "--json").data
    assert [row["kind"] for row in data["pairs"]] == ["tangled", "apart", "apart"]
    assert data["pairs"][0]["contested"] == pytest.approx(0.5)
    assert data["verdict"].startswith("1 of 3 pairs interfere; the worst: p and q")
    apart = cli("interference", tmp_path / "p", tmp_path / "r").out
    assert apart.splitlines()[0].startswith("p and r do not interfere")
