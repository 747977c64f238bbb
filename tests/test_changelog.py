"""The changelog's moved modules are where it says, and what it promises can be imported."""

from __future__ import annotations

import importlib
import re
from importlib.util import find_spec
from pathlib import Path

import pytest

import vlora_engine

PAGE = (Path(__file__).resolve().parents[1] / "CHANGELOG.md").read_text("utf-8")
MOVED = re.findall(r"^\| `(vlora_engine[\w.]*)` \| (.+) \|$", PAGE, re.MULTILINE)

# What the first release of the modules of these names had for others to use.
STAY = {
    "vlora_engine.ops": "compute_svd project_onto_subspace reconstruct_from_subspace gram_schmidt "
    "explained_variance_ratio select_num_components incremental_svd_update",
    "vlora_engine.analysis": "adapter_diff find_outliers find_duplicates find_runs interference "
    "compute_similarity_matrix find_clusters subspace_coverage",
    "vlora_engine.pipeline": "init_subspace absorb_task extract_adapter",
    "vlora_engine.catalog": "AdapterInfo Catalog scan",
    "vlora_engine.subspace": "SharedSubspace",
}


def there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False


@pytest.mark.parametrize(("old", "new"), MOVED)
def test_a_moved_module_is_where_the_table_says(old: str, new: str) -> None:
    modules = re.findall(r"`(vlora_engine[\w.]+)`", new)
    assert modules
    assert all(there(module) for module in modules)
    for name, module in re.findall(r"`(\w+)`: `(vlora_engine[\w.]+)`", new):
        assert hasattr(importlib.import_module(module), name)


@pytest.mark.parametrize("module", STAY)
def test_what_is_promised_can_be_imported_as_before(module: str) -> None:
    promise = PAGE.split("### Moved modules")[1].split("| before |")[0]
    assert f"`{module}`" in promise
    for name in STAY[module].split():
        assert getattr(importlib.import_module(module), name) is getattr(vlora_engine, name)


def test_other_old_paths_are_gone_or_packages() -> None:
    for old, _ in MOVED:
        if old not in STAY and there(old):
            assert find_spec(old).submodule_search_locations, f"{old} is still a module"


def test_the_version_is_that_of_the_package() -> None:
    assert f"## [{vlora_engine.__version__}]" in PAGE
