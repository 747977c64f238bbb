"""Step 1: how many modules of each adapter act on its base model, and the repaired copy."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from textual.pilot import Pilot
from textual.widgets import Input, Static

from tests.app.tui.adapters.test_adapters import app, settle, view
from tests.app.tui.drive import run, until
from tests.witnesses import make
from vlora_tui.tui.widgets.dialogs import Prompt

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """``sound``, and ``wrapped`` as torch.compile names its tensors; their base lies beside."""
    pytest.importorskip("peft")
    monkeypatch.chdir(tmp_path)
    make.tiny_llama().save_pretrained("base")
    model = make.peft_model(make.tiny_llama(), ["q_proj", "v_proj"])
    make.randomise(model)
    model.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    model.save_pretrained("runs/sound")
    shutil.copytree("runs/sound", "runs/wrapped")
    tensors = load_file(f"runs/wrapped/{WEIGHTS}")
    save_file({f"_orig_mod.{k}": v for k, v in tensors.items()}, f"runs/wrapped/{WEIGHTS}")
    return tmp_path / "runs"


def applied_by_peft(adapter: Path) -> int:
    """How many modules have a change when PEFT itself loads the adapter."""
    import peft

    model = peft.PeftModel.from_pretrained(make.tiny_llama(), adapter)
    found = [m for m in model.modules() if hasattr(m, "get_delta_weight")]
    return sum(bool(module.get_delta_weight("default").any()) for module in found)


@pytest.mark.slow
def test_each_row_tells_what_applies_and_a_key_writes_the_copy(trained: Path) -> None:
    whole = applied_by_peft(trained / "sound")
    assert applied_by_peft(trained / "wrapped") == 0

    def cells(pilot: Pilot[Any]) -> dict[str, str]:
        rows = view(pilot).table.rows
        return {row.name: row.applies.words for row in rows if row.applies is not None}

    async def steps(pilot: Pilot[Any]) -> None:
        await until(pilot, lambda: "sound" in cells(pilot), "it is known what applies")
        assert cells(pilot)["sound"] == f"{whole}/{whole}"
        assert "applies" in [column.key for column in view(pilot).table.columns]
        await pilot.press("down")
        told = str(pilot.app.query_one("#adapters-facts", Static).render())
        assert "w writes a repaired copy" in " ".join(told.split())
        await pilot.press("w")
        assert isinstance(pilot.app.screen, Prompt)
        pilot.app.screen.query_one(Input).value = str(trained.parent / "mended")
        await pilot.press("enter")
        await until(pilot, lambda: "mended" in cells(pilot), "the copy is looked at")
        assert applied_by_peft(trained.parent / "mended") == whole
        assert cells(pilot)["mended"] == f"{whole}/{whole}"

    run(app(trained), steps)


def test_where_no_base_is_at_hand_nothing_is_shown_of_it(runs: Path) -> None:
    async def steps(pilot: Pilot[Any]) -> None:
        await settle(pilot)
        assert "applies" not in [column.key for column in view(pilot).table.columns]
        assert all(row.applies is None for row in view(pilot).table.rows)

    run(app(runs), steps)
