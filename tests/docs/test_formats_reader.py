"""The readers in docs/formats.md read what the engine writes, and its tables name what there is."""

from __future__ import annotations

import json
import re
import types
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch

import vlora_engine
from tests.engine.codec import made
from tests.witnesses import make
from vlora_engine import SharedSubspace, SubspaceTrainer
from vlora_engine.adapters.model import LoRAWeights
from vlora_engine.catalog.read import read_manifest
from vlora_engine.compression_target import CompressionTarget
from vlora_tui.jobs.joblock import JobLock
from vlora_tui.jobs.store import JobInfo
from vlora_tui.pipeline.events import EVENT_TYPES
from vlora_tui.recipe.model import Compress, Convert, Export, Input, Merge, Push, Quantize, Resize

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "formats.md").read_text("utf-8")
DATA = ROOT / "tests" / "data" / "subspaces"
TABLES = next(Path(vlora_engine.__file__).parent.rglob("tables.npz"))
LONG = {"model.layers.0.mlp.down_proj": (2500, 60), "model.layers.0.self_attn.q_proj": (96, 96)}


@pytest.fixture(scope="module")
def reader() -> types.SimpleNamespace:
    """What the code of the page defines, and nothing of the engine."""
    code = "\n".join(re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE))
    assert "vlora" not in code.replace('"vlora-subspace"', "")
    found: dict[str, object] = {}
    exec(compile(code, "docs/formats.md", "exec"), found)
    return types.SimpleNamespace(**found)


def mixed() -> dict[str, LoRAWeights]:
    """Ranks, scales and modules differ; one has no effect."""
    found = {f"task {i}": make.weights(rank=4, seed=i) for i in range(4)}
    found["narrow"] = make.weights(rank=2, seed=9)
    found["half"] = make.weights({"transformer.h.0.attn.c_attn": (12, 36)}, rank=3, seed=10)
    found["none"] = made.without_effect(make.MODULES, rank=4)
    return found


def saved(adapters: dict[str, LoRAWeights], out: Path, **options: object) -> Path:
    SharedSubspace.from_adapters(list(adapters.values()), list(adapters), **options).save(out)
    return out


def read_all(reader: types.SimpleNamespace, directory: Path) -> None:
    """Every task, by the page's reader and by the engine's own."""
    subspace = SharedSubspace.load(directory)
    assert len(subspace.tasks)
    for task in subspace.tasks:
        changes = reader.weight_changes(directory, task, TABLES)
        meant = subspace.reconstruct(task)
        assert sorted(changes) == meant.layer_names
        for name, change in changes.items():
            wanted = meant.delta(name).double().numpy()
            room = 2e-5 * max(float(np.abs(wanted).max()), 1e-12)
            np.testing.assert_allclose(change, wanted, rtol=0, atol=room, err_msg=f"{task} {name}")


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("method", ["delta", "columns", "flat"])
def test_a_shared_basis(
    reader: types.SimpleNamespace, tmp_path: Path, method: str, dtype: str
) -> None:
    read_all(reader, saved(mixed(), tmp_path / "s", method=method, num_components=5, dtype=dtype))


@pytest.mark.parametrize("method", ["auto", "own"])
def test_a_basis_beside_coded_tasks(
    reader: types.SimpleNamespace, tmp_path: Path, method: str
) -> None:
    made = SharedSubspace.load(saved(mixed(), tmp_path / "s", method=method)).with_basis(k=3)
    made.absorb_incremental(make.weights({**make.MODULES, **LONG}, rank=3, seed=30), "wider")
    seen = made.in_basis()
    wide = make.weights({**make.MODULES, **LONG}, rank=3, seed=31)
    made.add_task(seen.project(wide, "in the basis"))
    trainer = SubspaceTrainer(made, "task 1", num_expand=2)
    trainer.write_back()
    made.save(tmp_path / "s")
    manifest = read_manifest(tmp_path / "s")
    assert (manifest.version, manifest.shared_basis.k[-1]) == (3, (0, 0))
    assert sum(task.in_basis for task in manifest.tasks.values()) == 2
    read_all(reader, tmp_path / "s")


def test_dense_cores_and_factors_are_both_read(
    reader: types.SimpleNamespace, tmp_path: Path
) -> None:
    out = saved(mixed(), tmp_path / "s", method="delta", k_a=3, k_b=7)
    assert {own.rank * (3 + 7) > 3 * 7 for own in mixed().values()} == {True, False}
    read_all(reader, out)


@pytest.mark.parametrize("packing", ["int8", "int4", "nf4"])
@pytest.mark.parametrize("method", ["delta", "columns", "flat"])
def test_packed_numbers(
    reader: types.SimpleNamespace, tmp_path: Path, method: str, packing: str
) -> None:
    options = {"method": method, "num_components": 5, "quantize": packing}
    read_all(reader, saved(mixed(), tmp_path / "s", **options))


def test_packed_without_a_second_level(reader: types.SimpleNamespace, tmp_path: Path) -> None:
    adapters = mixed()
    subspace = SharedSubspace.from_adapters(
        list(adapters.values()), list(adapters), num_components=5, method="delta"
    )
    subspace.quantize(4, "nf4", block_size=32).save(tmp_path / "s")
    read_all(reader, tmp_path / "s")


@pytest.mark.parametrize("options", [{}, {"quantize": "nf4"}, {"method": "flat"}])
def test_a_basis_in_several_files(
    reader: types.SimpleNamespace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, str],
) -> None:
    monkeypatch.setattr("vlora_engine.subspace.write.MAX_SHARD_BYTES", 200)
    settings = {"method": "delta", "num_components": 5, "dtype": "fp16", **options}
    out = saved(mixed(), tmp_path / "s", **settings)
    assert len(read_manifest(out).basis) > 1
    read_all(reader, out)


def test_modules_that_the_basis_lacks(reader: types.SimpleNamespace, tmp_path: Path) -> None:
    first = "transformer.h.0.attn.c_proj"
    known = {f"t{i}": make.weights({first: (12, 12)}, seed=i) for i in range(3)}
    subspace = SharedSubspace.from_adapters(
        list(known.values()), list(known), num_components=4, method="delta"
    )
    subspace.add_task(subspace.project(make.weights(seed=8), "more"))
    subspace.save(tmp_path / "s")
    assert read_manifest(tmp_path / "s").tasks["more"].own
    read_all(reader, tmp_path / "s")


@pytest.mark.parametrize("error", [0.001, 0.1])
def test_coded_tasks(reader: types.SimpleNamespace, tmp_path: Path, error: float) -> None:
    """Alone, in a transform and in shared columns; rows in several pieces; many escapes."""
    adapters = {
        **made.around(6, rank=4),
        "stranger": make.weights(made.SQUARE, rank=3, seed=50),
        "long": make.weights(LONG, rank=4, seed=51),
        "nothing": made.without_effect(),
    }
    out = saved(adapters, tmp_path / "s", method="auto", max_error=error)
    coding = read_manifest(out).coding
    assert coding is not None
    assert coding.units()
    read_all(reader, out)


def test_every_kind_of_directory_that_was_ever_written(reader: types.SimpleNamespace) -> None:
    """Those that are kept in the repository hold every kind of blob."""
    for directory in sorted(DATA.iterdir()):
        read_all(reader, directory)


def test_numbers_of_every_size(reader: types.SimpleNamespace) -> None:
    """Low bits, escapes and empty rows, against the engine's own coder."""
    from vlora_engine.codec.vectors import encode_matrices

    draw = np.random.default_rng(3)
    tables = reader.Tables(TABLES)
    for n, d in ((1, 1), (3, 7), (5, 96), (2, 2048), (2, 2049), (1, 5000), (0, 4), (4, 0)):
        for size in (0.3, 5, 900, 1e6):
            rows = np.rint(draw.standard_t(2, (n, d)) * size).clip(-(2**30), 2**30)
            rows = rows.astype(np.int32)
            found = reader.decode_matrix(encode_matrices([rows])[0], n, d, tables)
            assert np.array_equal(found, rows)


def test_damage_is_noticed(reader: types.SimpleNamespace) -> None:
    from vlora_engine.codec.vectors import encode_matrices

    rows = np.arange(64, dtype=np.int32).reshape(1, 64) % 7
    raw = bytearray(encode_matrices([rows])[0])
    raw[2] ^= 1  # of the lane's state
    with pytest.raises((AssertionError, RuntimeError, StopIteration)):
        reader.decode_matrix(bytes(raw), 1, 64, reader.Tables(TABLES))


def table_rows(heading: str) -> list[list[str]]:
    """The cells of the tables under a heading."""
    section = PAGE.split(f"\n{heading}\n", 1)[1].split("\n## ", 1)[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def words(cell: str) -> set[str]:
    return set(re.findall(r"`([a-z_]+)`", cell))


def test_every_event_is_described() -> None:
    said = {row[0].strip("`"): words(row[1]) for row in table_rows("## Events")[1:]}
    assert said.keys() == EVENT_TYPES.keys()
    for name, cls in EVENT_TYPES.items():
        assert {f.name for f in fields(cls)} <= said[name], name


def test_every_key_of_a_recipe_is_described() -> None:
    said: dict[str, set[str]] = {}
    table = ""
    for cells in table_rows("## Recipes")[1:]:
        table = cells[0].strip("`[]") or table
        said.setdefault(table, set()).update(words(cells[1]))
    known = {
        "input": Input, "compress": Compress, "quantize": Quantize,
        "export": Export, "merge": Merge, "resize": Resize, "convert": Convert, "push": Push,
    }  # fmt: skip
    for name, cls in known.items():
        keys = {f.name for f in fields(cls)} - {"parameters"}
        if cls is Compress:  # whose target stands in the table itself; what packing costs does not
            keys = keys - {"target"} | {f.name for f in fields(CompressionTarget)} - {"noise"}
        assert keys == said[name], name
    assert said["output"] == {"subspace"}


def test_the_job_s_files_are_described(tmp_path: Path) -> None:
    section = PAGE.split("\n## The job directory\n")[1].split("\n## ")[0]
    assert {f.name for f in fields(JobInfo)} <= words(section)
    with JobLock.take(tmp_path / "lock") as lock:
        lock.publish()
        record = (tmp_path / "lock").read_bytes()
    assert len(record) == 1024
    assert json.loads(record).keys() <= words(section)


def test_the_tables_are_those_that_the_page_means() -> None:
    from vlora_engine.utils.files import sha256_file

    assert sha256_file(TABLES) in PAGE
    assert torch.equal(vlora_engine.NF4_QUANT_TABLE, torch.tensor(reader_table()))


def reader_table() -> list[float]:
    block = PAGE.split("may be\n  negative.\n\n```\n")[1].split("```")[0]
    return [float(number) for number in block.replace("\n", " ").split(",")]


def test_links_lead_somewhere() -> None:
    """Links between the pages and into them; those to the web are not followed."""
    for page in sorted((ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\(((?!http)[^)]+)\)", page.read_text("utf-8")):
            file, _, anchor = target.partition("#")
            meant = page.parent / file if file else page
            assert meant.is_file(), f"{page.name}: {target}"
            assert not anchor or anchor in anchors(meant), f"{page.name}: {target}"


def test_references_in_the_code_lead_somewhere() -> None:
    for top in ("engine", "vlora_tui", "tests"):
        for file in (ROOT / top).rglob("*.py"):
            text = file.read_text("utf-8")
            for name, anchor in re.findall(r"docs/(\w+\.md)#([\w-]+)", text):
                assert anchor in anchors(ROOT / "docs" / name), f"{file}: {name}#{anchor}"


def anchors(page: Path) -> set[str]:
    """Those that GitHub makes of headings."""
    text = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
