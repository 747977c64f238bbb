"""CONTRIBUTING.md is true: its worked examples run as they stand, and do what they are for."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from tests.conftest import FreshPython

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
CODE = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SECTIONS = [part.partition("\n") for part in PAGE.split("\n### ")[1:]]
EXAMPLES = {heading: "\n".join(CODE.findall(text)) for heading, _, text in SECTIONS}

# What each example must have made possible. Every check compares with plain torch on what it wrote
# or was given, in a process of its own, so that no registry of the other tests gains an entry.
CHECKS = {
    "A merge method": """
import torch
from tests.witnesses import make
from vlora_engine import merge

def dense(adapter, module):
    alpha = adapter.metadata["lora_alpha"] / adapter.metadata["r"]
    return alpha * adapter.lora_b[module].double() @ adapter.lora_a[module].double()

first, second = make.weights(seed=1), make.weights(seed=2)
longer = make.MODULES.copy()
for number, module in enumerate(sorted(make.MODULES)):
    short, longer[module] = (first, second) if number % 2 else (second, first)
    short.lora_b[module] = short.lora_b[module] / 100
merged = merge([first, second], "strongest")
for module, adapter in longer.items():
    torch.testing.assert_close(dense(merged, module), dense(adapter, module), rtol=0, atol=1e-5)

from vlora_tui.cli import main
assert main(["merge", "--list-methods"]) == 0
""",
    "A format": """
from pathlib import Path
import torch
from safetensors.torch import save_file
from vlora_engine import load_adapter, scan
from vlora_engine.errors import AdapterError

tensors = {
    "layers.0.q_proj.down": torch.arange(6.0).reshape(2, 3),
    "layers.0.q_proj.up": torch.arange(8.0).reshape(4, 2),
    "score": torch.ones(5),
}
Path("folder").mkdir()
save_file(tensors, "folder/tiny.safetensors")
for place in ("folder", "folder/tiny.safetensors"):
    adapter = load_adapter(place)
    assert adapter.layer_names == ["layers.0.q_proj"] and adapter.rank == 2
    assert torch.equal(adapter.lora_a["layers.0.q_proj"], tensors["layers.0.q_proj.down"])
    assert torch.equal(adapter.lora_b["layers.0.q_proj"], tensors["layers.0.q_proj.up"])
    assert torch.equal(adapter.rest["score"], tensors["score"])
    assert adapter.metadata["lora_alpha"] == adapter.metadata["r"] == 2
assert [info.rank for info in scan("folder").adapters] == [2]

save_file({"layers.0.q_proj.down": torch.ones(2, 3)}, "half.safetensors")
try:
    load_adapter("half.safetensors")
except AdapterError as error:
    assert "one of its two factors" in str(error)
else:
    raise AssertionError("half a pair was read")
""",
    "A doctor rule": """
from pathlib import Path
from tests.witnesses import make
from vlora_engine import diagnose

make.write(Path("high"), settings=make.config(lora_dropout=0.9))
make.write(Path("usual"), settings=make.config(lora_dropout=0.5))
found = {p.name: [f for f in p.findings if f.code == "high-dropout"]
         for p in diagnose(["high", "usual"]).examined}
assert found.keys() == {"high", "usual"} and found["usual"] == []
(finding,) = found["high"]
assert finding.severity == "note" and "0.9" in finding.what and finding.remedy
assert finding.where.endswith("adapter_config.json")
""",
    "A target": """
import json
from pathlib import Path
import torch
from safetensors.torch import load_file
from tests.witnesses import make
from vlora_engine import save_adapter
from vlora_engine.errors import VLoRAError

ranks = {module: 2 + 2 * (i % 2) for i, module in enumerate(sorted(make.MODULES))}
adapter = make.weights(rank=ranks, dtype=torch.float16)
adapter.metadata.update(r=4, lora_alpha=8, rank_pattern={m: 2 for m, r in ranks.items() if r == 2})
save_adapter(adapter, "served", target="tinyserve")
config = json.loads(Path("served/adapter_config.json").read_text())
stored = load_file("served/adapter_model.safetensors")
assert config["r"] == config["lora_alpha"] and not config.get("rank_pattern")
for module, rank in ranks.items():
    a, b = (stored[f"base_model.model.{module}.lora_{side}.weight"] for side in "AB")
    assert a.dtype == b.dtype == torch.float16 and a.shape[0] == b.shape[1] == config["r"]
    meant = 8 / rank * adapter.lora_b[module].double() @ adapter.lora_a[module].double()
    torch.testing.assert_close(b.double() @ a.double(), meant, rtol=2e-3, atol=2e-3)

save_adapter(make.weights(rank=8, dtype=torch.float16), "even", target="tinyserve")
config = json.loads(Path("even/adapter_config.json").read_text())
assert config["r"] == config["lora_alpha"] == 8  # it was 16: the scale of 2 is in B

def refused(weights):
    try:
        save_adapter(weights, "refused", target="tinyserve")
    except VLoRAError as error:
        assert not Path("refused").exists()
        return str(error)
    raise AssertionError("it was not refused")

assert "TinyServe" in refused(make.weights(rank=32, dtype=torch.float16))
head = make.weights(dtype=torch.float16, rest={"base_model.model.score.weight": torch.ones(3, 12)})
assert "reads A and B alone" in refused(head)
""",
    "A screen pane": """
import asyncio
from textual.app import App

class Scales(App):
    CSS = ".one .pane { border: none; }"
    def compose(self):
        yield ScalesView()

async def used(size, one):
    app = Scales()
    async with app.run_test(size=size) as pilot:
        view = app.query_one(ScalesView)
        view.query_one(ScalesPane).show({"q_proj": 2.0, "v_proj": 0.5})
        view.draw_tabs()
        view.action_next_pane(1)
        await pilot.pause()
        table = app.query_one(Table)
        assert app.focused is table and view.pane == "inspect-scales"
        assert view.has_class("one") == one
        await pilot.press("down")
        assert table.row == ("v_proj", 0.5)
        lines = [table.render_line(y).text.lstrip("▌ ").split() for y in range(3)]
        assert lines == [["module", "scale"], ["q_proj", "2"], ["v_proj", "0.5"]], lines
        assert "Scales" in view.query_one(PaneTabs).render_line(0).text

asyncio.run(used((120, 36), False))
asyncio.run(used((60, 20), True))

import sys
assert "torch" not in sys.modules
""",
}


def test_every_example_is_checked() -> None:
    assert list(EXAMPLES) == list(CHECKS)
    assert all(EXAMPLES.values())
    assert PAGE.count("```python") == len(EXAMPLES)


@pytest.mark.parametrize("heading", CHECKS)
def test_an_example_works(heading: str, tmp_path: Path, fresh_python: FreshPython) -> None:
    fresh_python(EXAMPLES[heading] + CHECKS[heading], cwd=tmp_path)


def test_the_hooks_run_what_make_lint_runs() -> None:
    recipe = (ROOT / "Makefile").read_text("utf-8").split("\nlint:")[1].split("\n\n")[0]
    lint = [line.strip().removesuffix(" .") for line in recipe.splitlines()[1:]]
    (repo,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text("utf-8"))["repos"]
    hooks = [hook["entry"].replace(".venv/bin", "$(BIN)") for hook in repo["hooks"]]
    assert repo["repo"] == "local"
    assert hooks == lint


def test_files_that_are_named_are_there() -> None:
    named = set(re.findall(r"`([\w./-]+/[\w.-]*)`", PAGE)) | set(
        re.findall(r"^# ((?:engine|vlora_tui)/[\w./]+\w)", PAGE, re.MULTILINE)
    )
    made = {"engine/vlora_engine/formats/updown.py", "vlora_tui/tui/inspect/scales.py"}
    missing = {name for name in named - made if not (ROOT / name).exists()}
    assert missing == set()
    assert len(named) > 12
    assert made <= named
