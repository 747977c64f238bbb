"""``convert``, and the commands on what a peer's user brings along."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.app.conftest import Cli
from tests.witnesses import make
from vlora_engine.catalog.open import load_adapter


@pytest.fixture(scope="module")
def share(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of lorashare, as a user of it has one; to be read only."""
    from vlora_engine.compat.lorashare import SHAREModel

    folder = tmp_path_factory.mktemp("share")
    paths = make.collection(folder / "runs", 4)
    SHAREModel.from_adapters(paths, num_components=100).save_pretrained(folder / "old")
    return folder / "old"


def test_a_peers_directory_is_looked_at_and_worked_on_as_it_is(
    cli: Cli, share: Path, tmp_path: Path
) -> None:
    runs = share.parent / "runs"
    listed = cli("inspect", share, "--json").data
    assert [Path(task["path"]).name for task in listed["tasks"]] == [
        f"old:task0{i}" for i in range(4)
    ]
    assert "4 tasks in 1 subspace" in cli("inspect", share).out
    info = cli("info", share, "--json").data
    assert (info["format"], info["mean_error"], info["num_tasks"]) == ("lorashare", None, 4)
    assert "lorashare does not keep" in cli("info", share).out
    assert cli("validate", share, "--json").data["ok"]
    alike = cli("diff", f"{share}:task00", runs / "task00", "-q").out
    assert float(alike) < 1e-6
    cli("export", share, "task02", "-o", tmp_path / "task02")
    cli("merge", f"{share}:task00", f"{share}:task01", "-o", tmp_path / "merged")
    cli("analyze", f"{share}:task00", f"{share}:task01")
    assert load_adapter(tmp_path / "task02").metadata["lora_alpha"] == 8


def test_changing_a_peers_directory_names_the_commands_that_do_it(
    cli: Cli, share: Path, tmp_path: Path
) -> None:
    adapter = make.write(tmp_path / "new one", make.factors(seed=50))
    refused = cli("add", share, adapter, "--project", "--json", code=2)
    remedy = json.loads(refused.err)["remedy"]
    convert, add = (shlex.split(words)[1:] for words in remedy.split(" && "))
    convert[-1] = add[1] = str(tmp_path / "ours")

    cli(*convert)
    cli(*add, "--project", "--task-id", "new")
    cli("remove", tmp_path / "ours", "task03")

    info = cli("info", tmp_path / "ours", "--json").data
    assert info["task_ids"] == ["task00", "task01", "task02", "new"]
    assert {task["origin"] for task in info["tasks"]} == {"lorashare", None}
    assert "counted from what lorashare held" in cli("info", tmp_path / "ours").out
    assert "lorashare" in cli("remove", share, "task03", code=2).err


def test_a_conversion_says_what_it_does_and_does_nothing_in_a_dry_run(
    cli: Cli, runs: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    dry = cli("convert", runs, "--to", "vlora-dev", "-o", out, "--dry-run", "--json").data
    assert not out.exists()
    assert any("alpha" in loss["what"] for loss in dry["losses"])
    assert "exact" in dry["how"]

    done = cli("convert", runs, "--to", "vlora-dev", "-o", out, "--json").data

    assert done["losses"] == dry["losses"]
    assert done["written"][0]["error"] < 1e-6
    assert cli("info", out, "--json").data["format"] == "vlora-dev"
    assert cli("convert", runs, "--to", "vlora-dev", "-o", out, code=2).out == ""
    assert cli("convert", runs, "--to", "vlora-dev", "-o", out, "--force", "-q").out == f"{out}\n"


def test_a_head_is_left_out_only_where_that_is_said(cli: Cli, tmp_path: Path) -> None:
    tensors = {**make.factors(), f"{make.PREFIX}score.weight": torch.ones(2, 12)}
    place = make.write(tmp_path / "headed", tensors)

    refused = cli("convert", place, "--to", "mlx", "-o", tmp_path / "out", code=2)
    assert "--allow-loss" in refused.err
    assert "headed: 1 tensor outside the modules" in refused.err
    cli("convert", place, "--to", "mlx", "-o", tmp_path / "out", "--allow-loss")

    assert load_adapter(tmp_path / "out").rest == {}


def test_a_subspace_among_adapters_stands_for_its_tasks(
    cli: Cli, runs: Path, built: Path, tmp_path: Path
) -> None:
    line = ("convert", built, runs / "task00", "--to", "peft", "-o", tmp_path / "out", "--json")
    done = cli(*line).data

    assert len(done["written"]) == 5
    assert max(row["error"] for row in done["written"]) < 1e-6


def test_an_adapter_of_another_tool_is_used_like_any(cli: Cli, tmp_path: Path) -> None:
    tensors = {
        "lora_unet_to_q.lora_down.weight": torch.randn(2, 8),
        "lora_unet_to_q.lora_up.weight": torch.randn(6, 2),
        "lora_unet_to_q.alpha": torch.tensor(1.0),
    }
    for name in ("one", "two"):
        save_file(tensors, tmp_path / f"{name}.safetensors")
    listed = cli("inspect", tmp_path / "one.safetensors", tmp_path / "two.safetensors", "--json")
    assert [a["format"] for a in listed.data["adapters"]] == ["kohya", "kohya"]
    line = ("compress", tmp_path / "one.safetensors", tmp_path / "two.safetensors", "-k", 2)

    cli(*line, "-o", tmp_path / "s")
    cli("export", tmp_path / "s", "one", "-o", tmp_path / "back")

    again = load_adapter(tmp_path / "back")
    meant = load_adapter(tmp_path / "one.safetensors")
    torch.testing.assert_close(
        again.delta("lora_unet_to_q"), meant.delta("lora_unet_to_q"), rtol=1e-5, atol=1e-5
    )
    assert "source_format" not in json.loads((tmp_path / "back/adapter_config.json").read_text())
