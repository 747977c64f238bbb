"""``resize`` on the command line, and as a step of a recipe."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from tests.app.conftest import Cli
from tests.witnesses import make
from vlora_engine.catalog.open import load_adapter
from vlora_engine.targets.verify import verify_adapter
from vlora_tui.jobs.watch import TimedEvent, written_paths
from vlora_tui.pipeline import events
from vlora_tui.pipeline.run import Run
from vlora_tui.recipe.model import Input, Recipe, Resize, named_inputs


def test_one_adapter_goes_to_the_output_itself(cli: Cli, runs: Path, tmp_path: Path) -> None:
    out = tmp_path / "small"
    [row] = cli("resize", runs / "task00", "-o", out, "--rank", "2", "--json").data["resized"]
    config = json.loads((out / "adapter_config.json").read_text())
    assert config["r"] == 2
    assert (row["former_ranks"], row["ranks"]) == ([4, 4], [2, 2])
    assert row["verified"]
    assert row["modules"][row["worst_module"]]["error"] == row["worst_error"] > 0
    # `diff` measures on its own, from the two directories.
    total = cli("diff", runs / "task00", out, "--json").data["total"]
    assert abs(total["relative_difference"] - row["error"]) < 1e-6 * row["error"]
    assert (
        "dW changed by" in cli("resize", runs / "task00", "-o", out, "--rank", "2", "--force").out
    )


def test_a_folder_of_them_goes_to_a_folder_each(cli: Cli, runs: Path, tmp_path: Path) -> None:
    rows = cli("resize", runs, "-o", tmp_path, "--energy", "0.9", "--json").data["resized"]
    assert [Path(row["path"]).name for row in rows] == [f"task0{i}" for i in range(4)]
    assert all(row["kept"] >= 0.9 for row in rows)
    assert all(load_adapter(row["path"]).layer_names for row in rows)


def test_a_task_of_a_subspace_gets_another_rank(cli: Cli, built: Path, tmp_path: Path) -> None:
    out = tmp_path / "one"
    assert cli("resize", f"{built}:task01", "-o", out, "--rank", "8", "-q").out.strip() == str(out)
    assert load_adapter(out).rank == 8


def test_what_is_there_stays_without_force(cli: Cli, runs: Path, tmp_path: Path) -> None:
    (tmp_path / "x").write_text("mine")
    cli("resize", runs / "task00", "-o", tmp_path, "--rank", "2", code=2)
    assert (tmp_path / "x").read_text() == "mine"


def test_as_a_step_of_a_recipe(cli: Cli, runs: Path, built: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        f"""\
[input]
subspace = "{built}"

[[resize]]
tasks = ["task00", "task03"]
dynamic = ["sv_fro", 0.9]
path = "out/{{task}}"
"""
    )
    told = tmp_path / "events.jsonl"
    data = cli("run", recipe, "--headless", "--events", told, "--json").data
    assert [row["task"] for row in data["resized"]] == ["task00", "task03"]
    assert data["outputs"] == [str(tmp_path / "out" / name) for name in ("task00", "task03")]
    seen = [event for _, event in events.read_events(told)]
    assert {type(e) for e in seen} >= {events.Resized, events.Verified, events.Finished}
    assert sum(isinstance(e, events.Verified) for e in seen) == 2


def test_a_cap_that_costs_more_than_was_allowed_is_said(
    cli: Cli, runs: Path, tmp_path: Path
) -> None:
    found = cli("resize", runs / "task00", "-o", tmp_path / "o", "--energy", "0.999", "--rank", "1")
    assert "Less is kept than was asked for" in found.err


def test_what_an_earlier_attempt_wrote_is_not_made_again(runs: Path, tmp_path: Path) -> None:
    recipe = Recipe(
        Input(named_inputs([str(runs)])), resizes=(Resize(str(tmp_path / "{task}"), rank=2),)
    )
    told: list[events.Event] = []
    Run(recipe, told.append).execute()
    rows = [TimedEvent(i, 0.0, event) for i, event in enumerate(told)]
    done = written_paths(rows)
    assert len(done) == 4
    (tmp_path / "task01" / "adapter_model.safetensors").write_bytes(b"mine now")
    again: list[events.Event] = []
    Run(recipe, again.append, done=frozenset(done)).execute()
    assert not any(isinstance(event, events.Resized) for event in again)
    assert (tmp_path / "task01" / "adapter_model.safetensors").read_bytes() == b"mine now"


def test_a_rank_that_the_server_takes_stays_and_its_option_is_said(
    cli: Cli, tmp_path: Path
) -> None:
    modules = {"h.0.c_fc": (80, 80), "h.1.c_fc": (80, 80)}
    made = make.write(tmp_path / "in", make.factors(modules, rank=64), make.config(r=64))
    meant = load_adapter(made)
    done = cli("resize", made, "--target", "vllm", "-o", tmp_path / "o")
    assert "start vllm with --max-lora-rank 64" in done.out
    assert verify_adapter(meant, tmp_path / "o") < 1e-6
    assert json.loads((tmp_path / "o/adapter_config.json").read_text())["r"] == 64
    assert "--target vllm" in cli("resize", made, "--for", "vllm", "-o", tmp_path / "p").err
    (row,) = cli("resize", made, "--target", "vllm", "-o", tmp_path / "q", "--json").data["resized"]
    assert row["server_option"] == "--max-lora-rank 64"


def test_what_the_server_refuses_at_any_rank_is_refused_before_it_is_written(
    cli: Cli, tmp_path: Path
) -> None:
    head = {"base_model.model.score.weight": torch.ones(2, 16)}
    made = make.write(tmp_path / "in", {**make.factors(), **head})
    refused = cli("resize", made, "--target", "vllm", "-o", tmp_path / "o", code=2).err
    assert "score.weight" in refused
    assert not (tmp_path / "o").exists()
    cli("resize", made, "--rank", "2", "-o", tmp_path / "o")  # no server was named


def test_a_cut_that_costs_more_than_is_allowed_leaves_nothing(cli: Cli, tmp_path: Path) -> None:
    made = make.write(tmp_path / "in", make.factors(rank=8), make.config(r=8))
    words = ["resize", made, "--rank", "2", "-o", tmp_path / "o"]
    refused = cli(*words, "--max-error", "0.05", code=2).err
    assert "dW would change by" in refused
    assert not (tmp_path / "o").exists()
    assert "dW changed by" in cli(*words).out
