"""No command writes over what it reads, whatever it is called and whatever --force says."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.app.conftest import Cli

COMMANDS = {
    "convert": ["convert", "A", "--to", "mlx"],
    "convert a task": ["convert", "S:task00", "--to", "peft"],
    "convert a subspace": ["convert", "S", "--to", "lorashare"],
    "resize": ["resize", "A", "--rank", "2"],
    "resize a task": ["resize", "S:task00", "--rank", "2"],
    "merge": ["merge", "A", "B"],
    "merge tasks": ["merge", "S:task00", "S:task01"],
    "compress": ["compress", "A", "B", "-k", "2"],
    "quantize": ["quantize", "S"],
    "export": ["export", "S", "task00"],
    "spectra": ["spectra", "A", "B"],
}


@pytest.fixture
def places(runs: Path, built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for place, name in ((runs / "task00", "A"), (runs / "task01", "B"), (built, "S")):
        shutil.copytree(place, tmp_path / "all" / name)
    (tmp_path / "link").symlink_to(tmp_path / "all")
    monkeypatch.chdir(tmp_path / "all")
    for name in "AS":
        Path(f"{name}-link").symlink_to(name)
    return tmp_path / "all"


@pytest.mark.parametrize("command", COMMANDS)
def test_an_output_that_is_an_input_is_refused(places: Path, cli: Cli, command: str) -> None:
    words = COMMANDS[command]
    read = words[1].partition(":")[0]
    before = {p: p.read_bytes() for p in places.rglob("*") if p.is_file()}
    names = [
        read,
        f"{read}/",
        f"../all/./{read}",
        str(places / read),
        str(places.parent / "link" / read),
        f"{read}-link",
        f"{read}/inside",
        str(places),
        "..",
    ]
    for name in names:
        told = cli(*words, "-o", name, "--force", code=2).err
        assert "one of the inputs" in told or "lies inside" in told, (name, told)
    assert {p: p.read_bytes() for p in places.rglob("*") if p.is_file()} == before
    assert sorted(os.listdir(places)) == ["A", "A-link", "B", "S", "S-link"]


ONTO = {
    "export": ["export", "S", "task00"],
    "export to a server": ["export", "S", "task00", "--target", "vllm"],
    "resize a task": ["resize", "S:task00", "--rank", "2"],
    "convert a task": ["convert", "S:task00", "--to", "peft"],
    "convert a subspace": ["convert", "S", "--to", "lorashare"],
    "merge tasks": ["merge", "S:task00", "S:task01"],
    "compress a task": ["compress", "S:task00", "S:task01", "-k", "2"],
    "quantize": ["quantize", "S"],
    "compact": ["compact", "C"],
}


@pytest.mark.parametrize("command", ONTO)
def test_what_a_task_was_made_from_is_not_written_over(
    places: Path, cli: Cli, command: str
) -> None:
    cli("compress", "A", "B", "--names", "task00", "task01", "-k", "2", "-o", "S", "--force")
    cli("compress", "A", "B", "--names", "task00", "task01", "-o", "C")
    before = {p: p.read_bytes() for p in places.rglob("*") if p.is_file()}
    for name in ("A", "A-link", "../all/A/", "A/inside", str(places.parent / "link" / "A")):
        told = cli(*ONTO[command], "-o", name, "--force", code=2).err
        assert "task was made from" in told or "lies inside" in told, (name, told)
    assert {p: p.read_bytes() for p in places.rglob("*") if p.is_file()} == before


def test_files_beside_the_output_go_into_no_input_either(places: Path, cli: Cli) -> None:
    before = {p: p.read_bytes() for p in places.rglob("*") if p.is_file()}
    for target in ("A/adapter_config.json", "A/adapter_model.safetensors", "A/new.csv", "S/x.csv"):
        cli("analyze", "A", "B", "--csv", target, "--force", code=2)
    for target in ("S/report.md", "A-link/report.md"):
        cli("report", "A", "B", "-o", target, "--force", code=2)
    for target in ("A/adapter_model.safetensors", "A/adapter_config.json", "S/README.md"):
        told = cli("resize", "A", "--rank", "2", "-o", "new", "--events", target, code=2).err
        assert "would lie in" in told
    (places.parent / "notes.txt").write_text("mine")
    words = ["resize", "A", "--rank", "2", "-o", "new", "--events", places.parent / "notes.txt"]
    assert "holds something else" in cli(*words, code=2).err
    assert {p: p.read_bytes() for p in places.rglob("*") if p.is_file()} == before
    assert not Path("new").exists()


SHEETS = {
    "analyze": ["analyze", "one.safetensors", "two.safetensors"],
    "analyze a folder": ["analyze", "."],
    "interference": ["interference", "one.safetensors", "two.safetensors"],
    "diff": ["diff", "one.safetensors", "two.safetensors"],
    "coverage": ["coverage", "S", "one.safetensors"],
}


@pytest.mark.parametrize("command", SHEETS)
@pytest.mark.parametrize("name", ["one.safetensors", "../files/one.safetensors", "soft", "hard"])
def test_a_sheet_never_takes_the_place_of_an_adapter_in_one_file(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, name: str
) -> None:
    (tmp_path / "files").mkdir()
    monkeypatch.chdir(tmp_path / "files")
    for i, file in enumerate(("one.safetensors", "two.safetensors")):
        save_file(kohya(seed=i), file)
    if "S" in SHEETS[command]:
        cli("compress", "one.safetensors", "two.safetensors", "-k", "2", "-o", "S")
    Path("soft").symlink_to("one.safetensors")
    Path("hard").hardlink_to("one.safetensors")
    before = Path("one.safetensors").read_bytes()
    told = cli(*SHEETS[command], "--csv", name, "--force", code=2).err
    assert "An output is one of the inputs" in told or "is the adapter that a task" in told
    assert Path("one.safetensors").read_bytes() == before
    assert Path("soft").is_symlink()
    assert Path("hard").samefile("one.safetensors")
    cli(*SHEETS[command], "--csv", "figures.csv")


def kohya(seed: int) -> dict[str, Tensor]:
    """An adapter of one module as kohya's tools write it, without a config."""
    generator = torch.Generator().manual_seed(seed)
    module = "lora_unet_down_blocks_0_attn_to_q"
    return {
        f"{module}.lora_down.weight": torch.randn(4, 16, generator=generator),
        f"{module}.lora_up.weight": torch.randn(16, 4, generator=generator),
        f"{module}.alpha": torch.tensor(4.0),
    }


def test_no_file_goes_deep_into_an_adapter_a_subspace_or_spectra(places: Path, cli: Cli) -> None:
    cli("spectra", "A", "B", "-o", "P")
    before = {p: p.read_bytes() for p in places.rglob("*") if p.is_file()}
    task = next(Path("S/tasks").glob("task00*"))
    for target in (task, "S/tasks/new.csv", "A/sub/new.csv", "P/layers/new.csv", "A-link/x/y.csv"):
        told = cli("diff", "S:task00", "A", "--csv", target, "--force", code=2).err
        assert "would lie in" in told, target
    for target in ("S/tasks/r.md", "A/docs/r.md", "P/layers/r.md"):
        cli("report", "A", "B", "-o", target, "--force", code=2)
    for target in ("S/tasks/events", "A/sub/events", "P/vectors/events"):
        for words in (["resize", "A", "--rank", "2"], ["export", "S", "task00"], ["spectra", "A"]):
            told = cli(*words, "-o", "new", "--events", target, code=2).err
            assert "would lie in" in told, target
    for folder in ("S", "A/sub"):
        assert "would lie in" in cli("demo", f"{folder}/demo", "--headless", code=2).err
    assert {p: p.read_bytes() for p in places.rglob("*") if p.is_file()} == before
    assert not any((places / name).exists() for name in ("new", "A/sub", "A/docs", "S/demo"))


def test_events_go_into_no_output(places: Path, cli: Cli) -> None:
    Path("r.toml").write_text(
        '[input]\nadapters = ["A", "B"]\n[[resize]]\nrank = 2\npath = "each/{task}"\n'
    )
    for words, target in (
        (["compress", "A", "B", "-k", "2", "-o", "new"], "new/events"),
        (["compress", "A", "B", "-k", "2", "-o", "new"], "new"),
        (["spectra", "A", "B", "-o", "new"], "new/events"),
        (["export", "S", "--all", "-o", "new"], "new/task00/events"),
        (["run", "--headless", "r.toml"], "each/task00/events"),
    ):
        for more in ([], ["--dry-run"]):
            told = cli(*words, "--events", target, *more, code=2).err
            assert "would lie in an output" in told, (words, target)
    assert not Path("new").exists()
    assert not Path("each").exists()
    cli("run", "--headless", "r.toml", "--events", "each.events")


@pytest.mark.parametrize("name", ["P", "P/", "P-link", "P/inside", "../all/P"])
def test_spectra_that_are_chosen_on_are_an_input(places: Path, cli: Cli, name: str) -> None:
    cli("spectra", "A", "B", "-o", "P")
    Path("P-link").symlink_to("P")
    before = {p: p.read_bytes() for p in places.rglob("*") if p.is_file()}
    words = ["compress", "A", "B", "--method", "own", "--max-error", "0.2", "--spectra", "P"]
    told = cli(*words, "-o", name, "--force", code=2).err
    assert "one of the inputs" in told or "lies inside" in told
    assert {p: p.read_bytes() for p in places.rglob("*") if p.is_file()} == before


def test_beside_an_input_is_room(places: Path, cli: Cli) -> None:
    cli("convert", "A", "--to", "mlx", "-o", "A-mlx")
    cli("resize", "S:task00", "--rank", "2", "-o", "S2")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes")
def test_events_wait_for_no_reader(places: Path, cli: Cli) -> None:
    os.mkfifo(pipe := places / "pipe")
    words = ["resize", "A", "--rank", "2", "-o", "new", "--events", pipe]

    told = cli(*words, code=1).err
    assert "nobody reads this pipe" in told
    assert "start what reads it first" in told

    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    cli(*words)
    assert b'"type": "finished"' in os.read(reader, 1 << 16)
    os.close(reader)
