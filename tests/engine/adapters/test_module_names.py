"""Names of modules: what is taken out of keys, and which two sets of names are one."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.witnesses import make
from vlora_engine.adapters.model import LoRAWeights
from vlora_engine.adapters.module_names import (
    WRAPPERS,
    RenamedAdapter,
    common_names,
    names_like,
    read_key,
    renamed,
    same_modules,
)
from vlora_engine.analysis.similarity import compute_similarity_matrix
from vlora_engine.catalog.open import load_adapter, open_adapter
from vlora_engine.catalog.scanner import scan
from vlora_engine.errors import AdapterError
from vlora_engine.merging.merge_adapters import merge
from vlora_engine.shared_subspace import SharedSubspace
from vlora_engine.targets.save import save_adapter
from vlora_engine.targets.verify import verify_adapter

Q = "model.layers.0.self_attn.q_proj"
KEY = f"base_model.model.{Q}"


@pytest.mark.parametrize("wrapper", sorted(WRAPPERS))
@pytest.mark.parametrize(
    "shape", ["{w}.{p}{q}", "{p}{w}.{q}", "{p}model.{w}.layers.0.self_attn.{w}.q_proj"]
)
def test_wrappers_are_taken_out_wherever_they_stand(wrapper: str, shape: str) -> None:
    found = read_key(shape.format(w=wrapper, p="base_model.model.", q=Q))
    assert (found.key, found.wrapper, found.prefixed) == (KEY, wrapper, True)


@pytest.mark.parametrize(
    ("key", "lead", "doubled", "prefixed"),
    [
        (KEY, "", False, True),
        (f"module.{KEY}", "module", False, True),
        (f"actor.module.{KEY}", "actor.module", False, True),
        (f"base_model.model.{KEY}", "", True, True),
        (f"base_model.model.base_model.model.{KEY}", "", True, True),
        (Q, "", False, False),
    ],
)
def test_prefixes(key: str, lead: str, doubled: bool, prefixed: bool) -> None:
    found = read_key(key)
    assert (found.path, found.lead) == (Q, lead)
    assert (found.doubled, found.prefixed) == (doubled, prefixed)


def test_a_name_that_only_looks_like_a_wrapper_stays(tmp_path: Path) -> None:
    for name in ("my_orig_mod.q_proj", "module.q_proj", "base_model.q_proj", "_orig_mod_2.v"):
        assert read_key(f"base_model.model.{name}").path == name
        place = make.write(tmp_path / name, make.factors({name: (4, 4)}))
        assert "wrapped-names" not in {f.code for f in open_adapter(place).findings}


def table(*heads: str, width: int = 4) -> dict[str, int]:
    return {f"{head}{i}.q_proj": width + n for n, head in enumerate(heads) for i in range(2)}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (table("model.layers."), table("model.language_model.layers.")),
        (table("language_model.model.layers."), table("model.language_model.layers.")),
        (table("layers."), table("model.layers.")),
        (
            table("language_model.model.layers.", "vision_tower.vision_model.encoder.layers."),
            table("model.language_model.layers.", "model.vision_tower.encoder.layers."),
        ),
        (table("model.layers.", "visual.blocks."),
         table("model.language_model.layers.", "model.visual.blocks.")),
        ({"lm_head": 4, **table("model.layers.")},
         {"language_model.lm_head": 4, **table("language_model.model.layers.")}),
    ],
)  # fmt: skip
def test_containers_alone_make_no_other_modules(old: dict[str, int], new: dict[str, int]) -> None:
    there, back = same_modules(old, new), same_modules(new, old)
    assert there is not None
    assert back == {b: a for a, b in there.items()}
    assert set(there) == set(old)
    assert set(there.values()) == set(new)
    assert all(old[a] == new[b] for a, b in there.items())


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (table("encoder.block."), table("decoder.block.")),
        (table("model.layers."), table("model.language_model.layers.", width=5)),
        (table("model.layers."), {"model.language_model.layers.0.k_proj": 4}),
        (table("layers."), table("model.layers.") | table("model.vision_model.layers.")),
        (table("model.layers."), table("model.layers.")),
        ({}, table("layers.")),
    ],
)
def test_what_is_not_the_same(one: dict[str, int], other: dict[str, int]) -> None:
    assert same_modules(one, other) is None
    assert same_modules(other, one) is None


MODULES = {f"model.layers.{i}.self_attn.{leaf}_proj": (12, 8) for i in (0, 1) for leaf in "qv"}


def pair(folder: Path, base: str | None = "org/vlm") -> tuple[Path, Path]:
    """Two adapters of one base, the second under the names of another version."""
    settings = make.config(base_model_name_or_path="org/vlm", target_modules=["q_proj", "v_proj"])
    new = {name.replace("model.", "model.language_model."): size for name, size in MODULES.items()}
    one = make.write(folder / "one", make.factors(MODULES, seed=1), settings)
    settings = settings | {"base_model_name_or_path": base}
    return one, make.write(folder / "two", make.factors(new, seed=2), settings)


def delta(weights: LoRAWeights, name: str) -> torch.Tensor:
    found = [own for own in weights.layer_names if own.endswith(name)]
    assert len(found) == 1
    return weights.delta(found[0])


def test_adapters_of_two_versions_are_merged_module_by_module(tmp_path: Path) -> None:
    one, two = pair(tmp_path)
    loaded = [load_adapter(one), load_adapter(two)]
    merged = merge(loaded, "linear", weights=[0.25, 0.75])
    assert len(merged.layer_names) == 4
    assert all(name.startswith("model.language_model.") for name in merged.layer_names)
    for name in ("layers.0.self_attn.q_proj", "layers.1.self_attn.v_proj"):
        expected = 0.25 * delta(loaded[0], name) + 0.75 * delta(loaded[1], name)
        torch.testing.assert_close(delta(merged, name), expected, rtol=1e-5, atol=1e-7)


def test_they_are_of_one_group_and_one_subspace(tmp_path: Path) -> None:
    one, two = pair(tmp_path)
    assert len(scan(tmp_path).groups) == 1
    space = SharedSubspace.from_adapters(
        [open_adapter(one), open_adapter(two)], ["one", "two"], num_components=8
    )
    assert len(space.layer_names) == 4
    for task, place in (("one", one), ("two", two)):
        back, meant = space.reconstruct(task), load_adapter(place)
        for name in ("layers.0.self_attn.q_proj", "layers.1.self_attn.v_proj"):
            torch.testing.assert_close(delta(back, name), delta(meant, name), rtol=1e-4, atol=1e-4)


def test_similarity_sees_the_same_modules(tmp_path: Path) -> None:
    one, _ = pair(tmp_path)
    weights = load_adapter(one)
    other = renamed(weights, {n: n.replace("model.", "model.language_model.") for n in MODULES})
    for space in ("delta", "factors"):
        matrix = compute_similarity_matrix([weights, other], space=space)
        assert float(matrix[0, 1]) == pytest.approx(1, abs=1e-6)


def test_other_bases_stay_apart(tmp_path: Path) -> None:
    one, two = pair(tmp_path, base="org/another")
    opened = [open_adapter(one), open_adapter(two)]
    assert [set(s.modules) for s in common_names(opened)] == [set(s.modules) for s in opened]
    assert len(scan(tmp_path).groups) == 2


def test_the_names_do_not_depend_on_the_order(tmp_path: Path) -> None:
    one, two = pair(tmp_path)
    sources = [open_adapter(place) for place in (one, one, one, two, two)]
    expected = set(MODULES)  # which most of them have
    for seed in range(5):
        random.Random(seed).shuffle(sources)
        assert all(set(source.modules) == expected for source in common_names(sources))


def test_a_renamed_adapter_is_the_same_adapter(tmp_path: Path) -> None:
    _, two = pair(tmp_path)
    source = open_adapter(two)
    names = {name: f"z{i}.{name}" for i, name in enumerate(reversed(list(source.modules)))}
    other = RenamedAdapter(source, names)
    assert other.digest() == source.digest()
    assert list(other.modules) == sorted(names.values())
    assert RenamedAdapter(source, names, as_new=True).digest() != source.digest()
    for name, new in names.items():
        assert all(map(torch.equal, source.read(name), other.read(new)))
        assert other.scales[new] == source.scales[name]
    with pytest.raises(AdapterError, match="one name"):
        RenamedAdapter(source, dict.fromkeys(names, "same"))


def test_names_that_an_old_subspace_stored_go_on_working(tmp_path: Path) -> None:
    """Made before wrappers were taken out of names: its modules are called ``_orig_mod...``."""
    weights = make.weights(MODULES, rank=4, seed=3)
    stored = {name: f"_orig_mod.base_model.model.{name}" for name in MODULES}
    old = renamed(weights, stored)
    space = SharedSubspace.from_adapters(
        [old, renamed(make.weights(MODULES, seed=4), stored)], ["a", "b"], num_components=8
    )
    space.save(tmp_path / "space")
    loaded = SharedSubspace.load(tmp_path / "space")
    assert set(loaded.layer_names) == set(stored.values())
    back = loaded.reconstruct("a")
    save_adapter(back, tmp_path / "a")
    written = load_adapter(tmp_path / "a")
    assert set(written.layer_names) == set(MODULES)
    assert verify_adapter(back, tmp_path / "a") < 1e-6
    for name in MODULES:
        torch.testing.assert_close(written.delta(name), weights.delta(name), rtol=1e-4, atol=1e-4)
    # A new adapter, read without the wrapper, is one of the same modules there.
    settings = make.config(target_modules=["q_proj", "v_proj"])
    make.write(tmp_path / "c", make.factors(MODULES, seed=5), settings)
    source = open_adapter(tmp_path / "c")
    fits = {spec.name: spec.fits for spec in loaded.space.layers}
    assert set(names_like(source, fits).modules) == set(stored.values())
    loaded.absorb(source, "c")
    assert set(loaded.layer_names) == set(stored.values())


def test_the_original_of_an_old_task_is_found_under_its_stored_names(tmp_path: Path) -> None:
    from vlora_engine.catalog.originals import original_if_there

    stored = {name: f"_orig_mod.base_model.model.{name}" for name in MODULES}
    tensors = {f"_orig_mod.{key}": t for key, t in make.factors(MODULES, seed=6).items()}
    settings = make.config(target_modules=["q_proj", "v_proj"])
    place = make.write(tmp_path / "a", tensors, settings)
    clean = make.write(tmp_path / "b", make.factors(MODULES, seed=7), settings)
    space = SharedSubspace.from_adapters(
        [open_adapter(place), open_adapter(clean)], ["a", "b"], num_components=8
    )
    assert set(space.layer_names) == set(MODULES)
    before = RenamedAdapter(open_adapter(place), stored, as_new=True)  # as it was read then
    record = replace(space.space.tasks.record("a"), digest=before.digest(), source=str(place))
    found = original_if_there(record)
    assert found is not None
    assert set(found.modules) == set(stored.values())
