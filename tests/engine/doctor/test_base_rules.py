"""A base model is told by its headers, or by its config alone; never by its weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.engine.doctor.cases import write_base
from tests.witnesses import make
from vlora_engine.adapters.model import ModuleShape
from vlora_engine.catalog.open import open_adapter
from vlora_engine.doctor import diagnose, read_base
from vlora_engine.errors import CorruptFileError, NotFoundError

LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 3,
    "vocab_size": 400,
}


def config_alone(folder: Path, **changes: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(LLAMA | changes))
    return folder / "config.json"


@pytest.mark.parametrize(
    ("made", "targets"),
    [
        (make.tiny_llama, "all-linear"),
        (make.tiny_gpt2, ["c_attn", "c_proj", "c_fc"]),
        (make.tiny_llama, ["embed_tokens", "q_proj"]),
        (make.tiny_llama, ["lm_head", "q_proj"]),
    ],
)
@pytest.mark.parametrize("alone", [False, True])
def test_what_peft_trained_on_a_base_fits_it(made, targets, alone, tmp_path: Path) -> None:
    made().save_pretrained(tmp_path / "base")
    tuned = make.peft_model(made(), targets)
    tuned.save_pretrained(tmp_path / "a", save_embedding_layers=False)
    base = read_base(tmp_path / "base" / "config.json" if alone else tmp_path / "base")
    modules = open_adapter(tmp_path / "a").modules
    assert all(base.misfit(name, shape) == "" for name, shape in modules.items())
    assert all(base.knows(name) is not False for name in modules)
    if not alone:
        assert all(base.knows(name) is True for name in modules)
        assert base.knows("model.layers.0.self_attn.no_proj") is False
    assert (base.layers, base.vocabulary) == (2, 40)


def test_a_config_alone_tells_layers_and_shapes(tmp_path: Path) -> None:
    base = read_base(config_alone(tmp_path))
    assert base.knows("model.layers.2.self_attn.q_proj") is None
    assert base.knows("model.layers.3.self_attn.q_proj") is False
    right, wrong = ModuleShape(4, 64, 32, "F32"), ModuleShape(4, 64, 64, "F32")
    assert base.misfit("model.layers.0.self_attn.k_proj", right) == ""
    assert "32 x 64" in base.misfit("model.layers.0.self_attn.k_proj", wrong)
    assert base.misfit("model.layers.0.other", wrong) == ""  # of which nothing is known


def test_the_text_part_of_a_model_of_several(tmp_path: Path) -> None:
    place = tmp_path / "config.json"
    place.write_text(json.dumps({"model_type": "vision", "text_config": LLAMA}))
    assert read_base(place).layers == 3
    assert read_base(place).model_type == "llama"


def test_sharded_and_packed_weights(tmp_path: Path) -> None:
    folder = config_alone(tmp_path).parent
    stem = "model.layers.0.self_attn"
    save_file({f"{stem}.q_proj.weight": torch.ones(64, 64)}, folder / "model-1.safetensors")
    save_file({f"{stem}.k_proj.qweight": torch.ones(8, 32)}, folder / "model-2.safetensors")
    save_file({"leftover.weight": torch.ones(2)}, folder / "consolidated.safetensors")
    table = {f"{stem}.q_proj.weight": "model-1.safetensors",
             f"{stem}.k_proj.qweight": "model-2.safetensors"}  # fmt: skip
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": table}))
    base = read_base(folder)
    assert set(base.weights) == {f"{stem}.q_proj", f"{stem}.k_proj"}
    shape = ModuleShape(4, 64, 48, "F32")
    assert base.misfit(f"{stem}.q_proj", shape) == "64 x 64"
    assert base.misfit(f"{stem}.k_proj", shape) == ""  # packed: its shape says nothing


@pytest.mark.parametrize(
    ("text", "error"),
    [(None, NotFoundError), ("[1]", CorruptFileError), ("{not json", CorruptFileError)],
)
def test_what_is_no_base_is_refused(text: str | None, error: type, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(error):
        read_base(tmp_path)
    with pytest.raises(NotFoundError):
        read_base(tmp_path / "nothing")


def test_the_base_that_is_given_decides_what_ollama_reads(tmp_path: Path) -> None:
    make.write(tmp_path / "a", settings=make.config(base_model_name_or_path="mine"))
    base = read_base(write_base(tmp_path))
    codes = [f.code for f in diagnose(tmp_path / "a", target="ollama", base=base).all_findings]
    assert "ollama-safetensors" in codes
