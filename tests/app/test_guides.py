"""The guides are true: their blocks run, what they name exists, and moving here leaves nothing out."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import io
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from typer.main import get_command

from tests import make
from tests.app.conftest import Cli
from vlora_tui import guides
from vlora_tui.cli.app import COMMANDS, load_command

TASKS = ("legal", "medical", "sports")
CODE = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`([^`\n]+)`")


class Block(NamedTuple):
    """A block of code: its language, what it needs besides this project, its text."""

    language: str
    needs: list[str]
    text: str


def blocks(name: str) -> list[Block]:
    return [Block(lang, more.split(), text) for lang, more, text in CODE.findall(text_of(name))]


def text_of(name: str) -> str:
    return guides.guide(name).text


# ---- the blocks run


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What every guide begins with: `adapters`, their `base`, and one more in `new`."""
    pytest.importorskip("peft")
    monkeypatch.chdir(tmp_path)
    make.tiny_llama().save_pretrained("base")
    for seed, place in enumerate([*(f"adapters/{t}" for t in TASKS), "new/finance"]):
        model = make.peft_model(make.tiny_llama(), ["q_proj", "v_proj", "down_proj"], seed=seed + 1)
        model.peft_config["default"].base_model_name_or_path = "base"
        model.save_pretrained(place, save_embedding_layers=False)
    return tmp_path


def names_given() -> dict[str, Any]:
    """What a guide says that the reader has: text in batches, embeddings with their tasks."""
    rows = torch.arange(36).reshape(3, 12) * 7 % 40
    return {
        "batches": [{"input_ids": rows, "labels": rows}] * 3,
        "train_dataset": [{"input_ids": row, "labels": row} for row in rows.repeat(4, 1)],
        "tokens": rows,
        "embeddings": torch.randn(12, 16, generator=torch.Generator().manual_seed(0)),
        "labels": [TASKS[i % 3] for i in range(12)],
        "base_model": make.tiny_llama(),
    }


@pytest.mark.parametrize("name", guides.NAMES)
def test_the_blocks_run_in_their_order(
    cli: Cli, world: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found = names_given()
    starts: list[str] = []
    ran = 0
    for block in blocks(name):
        if block.language == "python":
            code = compile(block.text, f"{name}.md", "exec")
            if all(map(is_here, block.needs)):
                exec(code, found)
                ran += 1
        elif block.language == "console":
            for line in commands(block):
                starts = follow(cli, line, starts, world)
                ran += 1
        else:
            assert block.language in ("toml", "text", "json"), block
    assert ran >= 3
    capsys.readouterr()


def is_here(need: str) -> bool:
    """Whether there is a package, or a device, of this name."""
    return torch.cuda.is_available() if need == "cuda" else bool(importlib.util.find_spec(need))


def commands(block: Block) -> Iterator[str]:
    """The lines behind a prompt, those that go on put together."""
    text = block.text.replace("\\\n", " ")
    for line in text.splitlines():
        if line.startswith("$ "):
            yield " ".join(shlex.split(line[2:]))


def follow(cli: Cli, line: str, starts: list[str], world: Path) -> list[str]:
    """Run one of our commands; of another program's, the last export must have told it."""
    program, *words = shlex.split(line)
    if program != "vlora-tui":
        assert line in starts, f"{line}\nis none of\n" + "\n".join(starts)
        return starts
    found = cli(*words)
    told = [line for line in found.out.splitlines() if line.startswith("start it with: ")]
    told = [line.removeprefix("start it with: ").replace(f"{world}/", "") for line in told]
    return told or starts


def test_a_line_that_starts_a_server_is_the_one_that_the_export_printed(
    cli: Cli, world: Path
) -> None:
    cli("compress", "adapters", "-o", "small", "-q")
    starts = follow(cli, "vlora-tui export small legal -o o --target vllm", [], world)
    assert follow(cli, starts[0], starts, world) == starts
    with pytest.raises(AssertionError, match="is none of"):
        follow(cli, starts[0].replace("8", "16"), starts, world)
