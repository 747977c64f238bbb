"""The guides are true: what stands in their blocks runs; printed, drawn, and in the interface."""

from __future__ import annotations

import importlib.util
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from textual.containers import VerticalScroll
from textual.pilot import Pilot
from textual.widgets import Static

from tests.app.conftest import Cli
from tests.app.tui.adapters.test_adapters import app, settle
from tests.app.tui.drive import run
from tests.witnesses import make
from vlora_tui import guides
from vlora_tui.cli import main
from vlora_tui.guides.drawing import WIDEST, drawn
from vlora_tui.tui.widgets.dialogs import Ask
from vlora_tui.tui.widgets.guide_page import GuidePage

TASKS = ("legal", "medical", "sports")
CODE = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


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
    tiny_base().save_pretrained("base")
    for seed, place in enumerate([*(f"adapters/{t}" for t in TASKS), "new/finance"]):
        targets = ["q_proj", "v_proj", "down_proj"]
        model = make.peft_model(tiny_base(), targets, seed=seed + 1, r=16, lora_alpha=32)
        model.peft_config["default"].base_model_name_or_path = "base"
        model.save_pretrained(place, save_embedding_layers=False)
    return tmp_path


def tiny_base() -> torch.nn.Module:
    return make.tiny_llama(hidden_size=32, intermediate_size=48, num_key_value_heads=2)


def names_given() -> dict[str, Any]:
    """What a guide says that the reader has: text in batches, embeddings with their tasks."""
    rows = torch.arange(36).reshape(3, 12) * 7 % 40
    return {
        "batches": [{"input_ids": rows, "labels": rows}] * 3,
        "train_dataset": [{"input_ids": row, "labels": row} for row in rows.repeat(4, 1)],
        "tokens": rows,
        "embeddings": torch.randn(12, 16, generator=torch.Generator().manual_seed(0)),
        "labels": [TASKS[i % 3] for i in range(12)],
        "base_model": tiny_base(),
    }


def with_theirs(name: str) -> None:
    """In the guides for those who come from a peer, a directory that the peer itself wrote."""
    paths = [f"adapters/{task}" for task in TASKS]
    if name == "from-vlora":
        vlora = pytest.importorskip("vlora")
        loaded = [vlora.load_adapter(path) for path in paths]
        vlora.SharedSubspace.from_adapters(loaded, [*TASKS], num_components=2).save("theirs")
    elif name == "from-lorashare":
        lorashare = pytest.importorskip("lorashare")
        lorashare.SHAREModel.from_adapters(paths, num_components=8).save_pretrained("theirs")


PEERS = ("from-vlora", "from-lorashare")
MARKED = [pytest.param(n, marks=[pytest.mark.peers] * (n in PEERS)) for n in guides.NAMES]


@pytest.mark.parametrize("name", MARKED)
def test_the_blocks_run_in_their_order(
    cli: Cli, world: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with_theirs(name)
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
    check_outcome(name, found)
    capsys.readouterr()


def check_outcome(name: str, found: dict[str, Any]) -> None:
    """What a guide says came of its blocks."""
    if name == "peft":
        tokens = found["tokens"]
        exported, applied = (make.logits(found[who]) for who in ("exported", "applied"))
        torch.testing.assert_close(exported, applied)
        rows = found["answers"]
        torch.testing.assert_close(rows[0], found["answer"][0])
        assert rows.shape[:2] == tokens.shape
        assert (rows[1:] - found["answer"][1:]).abs().amax() > 1e-3, "another task, another answer"
    elif name in ("training", "qlora"):
        assert found["losses"][-1] < found["losses"][0]
        assert "finance" in found["SharedSubspace"].load("with-finance").tasks


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
        follow(cli, starts[0].replace("16", "32"), starts, world)


# ---- printed, and in the interface


def test_a_pipe_gets_the_markdown_and_a_script_an_object(cli: Cli) -> None:
    for name in guides.NAMES:
        assert cli("guide", name).out == (guides.FOLDER / f"{name}.md").read_text("utf-8")
    row = cli("guide", "vllm", "--json").data
    assert (row["schema"], row["name"]) == ("vlora-tui/guide", "vllm")
    assert row["text"] == text_of("vllm")
    assert row["title"] == "Serve with vLLM"
    listed = cli("guide", "--json").data["guides"]
    assert [one["name"] for one in listed] == [*guides.NAMES] == cli("guide", "-q").out.split()
    assert {path.stem for path in guides.FOLDER.glob("*.md")} == {*guides.NAMES}
    said = cli("guide").out
    assert all(one["title"] in said for one in listed)
    for name in guides.NAMES:
        assert name in cli("guide", "tui", code=2).err


@pytest.mark.parametrize("width", [80, 120])
def test_a_terminal_gets_it_drawn_and_nothing_is_cut(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr("vlora_tui.cli.guide.is_terminal", lambda stream: True)
    for name in guides.NAMES:
        assert main(["guide", name]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert max(map(len, lines)) <= min(width, WIDEST)
        assert not any("…" in line or "```" in line or line.startswith("#") for line in lines)
        code = [line.strip() for block in blocks(name) for line in block.text.splitlines()]
        for line in code:
            assert any(line in one for one in lines), f"folded: {line}"


def test_a_guide_in_ascii_has_nothing_else() -> None:
    for name in guides.NAMES:
        assert drawn(text_of(name), 60, ascii_only=True).plain.isascii()


@pytest.mark.parametrize("size", [(120, 36), (80, 24), (40, 12)])
def test_the_help_and_the_palette_lead_to_the_guides(runs: Path, size: tuple[int, int]) -> None:
    async def steps(pilot: Pilot[Any]) -> None:
        await settle(pilot)
        await pilot.press("question_mark", "g")
        assert isinstance(pilot.app.screen, Ask)
        await pilot.press("5")
        await pilot.pause()
        assert isinstance(pilot.app.screen, GuidePage)
        page = pilot.app.screen.query_one(Static)
        assert "vllm serve base" in str(page.render())
        scroll = pilot.app.screen.query_one(VerticalScroll)
        lines = page.content.plain.splitlines()
        assert 20 < max(map(len, lines)) <= page.content_size.width, "it would be folded again"
        await pilot.press("j")
        await pilot.pause()
        assert scroll.scroll_y > 0
        await pilot.press("q")
        shown = {c.title: c for c in pilot.app.get_system_commands(pilot.app.screen)}
        shown["Guide: Coming from lorashare"].callback()
        await pilot.pause()
        assert isinstance(pilot.app.screen, GuidePage)
        assert "lorashare" in str(pilot.app.screen.query_one(Static).render())

    run(app(runs), steps, size)
