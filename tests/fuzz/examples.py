"""Sound examples of everything that is read, for the fuzzer to change."""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.witnesses import make

TASKS = ("a", "b", "c")


def run(*words: object) -> tuple[int, str]:
    from vlora_tui.cli import main

    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = main([str(word) for word in words])
    return code, said.getvalue()


def made(*words: object) -> None:
    code, said = run(*words)
    assert code == 0, said


SMALL = {"h.0.attn.c_attn": (6, 9), "h.1.attn.c_attn": (6, 9), "h.1.mlp": (5, 4)}


def collection(folder: Path) -> list[Path]:
    paths = []
    for i, name in enumerate(TASKS):
        tensors = make.factors(SMALL, rank=2, seed=i + 1)
        tensors["base_model.model.score.weight"] = make.torch.ones(2, 3)
        settings = make.config(r=2, alpha_pattern={"h.1.mlp": 4}, target_modules=["c_attn", "mlp"])
        paths.append(make.write(folder / name, tensors, settings))
    return paths


def compressed(*flags: object) -> Callable[[Path], None]:
    def build(folder: Path) -> None:
        with tempfile.TemporaryDirectory() as place:
            paths = collection(Path(place))
            made("compress", *paths, "-o", folder / "s", *flags)

    return build


def coded(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as place:
        paths = collection(Path(place))
        near = make.write(Path(place) / "d", nudged(1), make.config(r=2))
        made("compress", *paths, near, "-o", folder / "own", "--method", "own", "--max-error", 0.1)
        made("compress", *paths, near, "-o", folder / "auto", "--max-error", 0.01)


def beside(folder: Path) -> None:
    """Format 3: a basis beside coded tasks, and a task that is loadings in it."""
    from dataclasses import replace

    from vlora_engine.shared_subspace import SharedSubspace

    with tempfile.TemporaryDirectory() as place:
        made("compress", *collection(Path(place)), "-o", folder / "s", "--max-error", 0.1)
    made("basis", folder / "s", "-k", 2)
    opened = SharedSubspace.load(folder / "s")
    opened.add_task(replace(opened.in_basis().tasks["a"], task_id="inside"))
    opened.save(folder / "s")
    (folder / ".s.lock").unlink(missing_ok=True)  # no subspace


def nudged(seed: int) -> dict[str, Any]:
    tensors = make.factors(SMALL, rank=2, seed=seed)
    return {key: 1.01 * tensor for key, tensor in tensors.items()}


def spectra(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as place:
        made("spectra", *collection(Path(place)), "-o", folder / "spectra")


def peft(folder: Path) -> None:
    collection(folder)


def pickled(folder: Path) -> None:
    make.write(folder / "a", make.factors(SMALL, rank=2), make.config(r=2), pickle=True)
    tensors = make.factors(SMALL, rank=2)
    (folder / "b").mkdir()
    (folder / "b" / "adapter_config.json").write_text(json.dumps(make.config(r=2)))
    make.torch.save(
        tensors, folder / "b" / "adapter_model.bin", _use_new_zipfile_serialization=False
    )


def mlx(folder: Path) -> None:
    folder = folder / "a"
    folder.mkdir(parents=True)
    name = "model.layers.3.self_attn.q_proj"
    a, b = make.torch.randn(5, 2), make.torch.randn(2, 7)
    make.save_file({f"{name}.lora_a": a, f"{name}.lora_b": b}, folder / "adapters.safetensors")
    config = {"model": "org/base", "num_layers": 2, "lora_parameters": {"rank": 2, "scale": 10.0}}
    (folder / "adapter_config.json").write_text(json.dumps(config))


def kohya(folder: Path) -> None:
    tensors = {}
    for name in ("lora_unet_mid_attn1_to_q", "lora_te_text_model_layers_0_mlp_fc1"):
        tensors[f"{name}.lora_down.weight"] = make.torch.randn(2, 5)
        tensors[f"{name}.lora_up.weight"] = make.torch.randn(7, 2)
        tensors[f"{name}.alpha"] = make.torch.tensor(1.0)
    (folder / "a").mkdir()
    make.save_file(tensors, folder / "a" / "x.safetensors", metadata={"ss_network_dim": "2"})


def gguf(folder: Path) -> None:
    from vlora_engine.targets.save import save_adapter

    modules = {f"model.layers.{i}.self_attn.{p}_proj": (8, 8) for i in (0, 1) for p in "qv"}
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": 2,
        "hidden_size": 8, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 4,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as base:
        (Path(base) / "config.json").write_text(json.dumps(config))
        weights = make.weights(modules, rank=2)
        save_adapter(weights, folder / "a", target="llamacpp", base=base)


def peer(to: str) -> Callable[[Path], None]:
    def build(folder: Path) -> None:
        with tempfile.TemporaryDirectory() as place:
            modules = {"h.0.attn.c_attn": (6, 9), "h.1.attn.c_attn": (6, 9)}
            paths = [
                make.write(Path(place) / name, make.factors(modules, rank=2, seed=i))
                for i, name in enumerate(TASKS)
            ]
            for path in paths:
                config = make.config(r=2, target_modules=["c_attn"])
                (path / "adapter_config.json").write_text(json.dumps(config))
            made("convert", *paths, "--to", to, "-o", folder / "s", "--allow-loss")

    return build


RECIPE = """\
[input]
adapters = ["runs/*", { path = "other/a", name = "named" }]
skip_bad = true

[compress]
method = "delta"
max_error = 0.05
layers = { "*.c_attn" = 4 }
dtype = "fp16"
device = "cpu"

[output]
subspace = "out"

[[export]]
tasks = ["a", "b*"]
target = "vllm"
path = "exported"
alpha = 16.0
target_modules = ["q", "v"]

[[merge]]
adapters = ["a", "b"]
method = "ties"
weights = [0.5, 0.5]
density = 0.3
path = "merged"

[[merge]]
adapters = ["a", "b"]
path = "merged2"
[merge.layers]
"*.attn.*" = [0.25, 0.75]
"h.1.*" = { weights = [0.5, 0.5], density = 0.3 }

[[resize]]
tasks = ["a"]
dynamic = ["sv_fro", 0.97]
path = "small"
"""


def recipe(folder: Path) -> None:
    (folder / "r.toml").write_text(RECIPE)


MERGEKIT = """\
merge_method: ties
base_model: base
dtype: bfloat16
models:
- model: a
  parameters:
    weight: [0.1, 0.9]
    density: 0.5
- model: b
  parameters:
    weight:
    - filter: attn
      value: 0.7
    - value: 0.1
parameters:
  normalize: true
"""


def mergekit(folder: Path) -> None:
    collection(folder)
    (folder / "m.yml").write_text(MERGEKIT)


def job(folder: Path) -> None:
    from vlora_tui.pipeline import events

    if not _EVENTS:
        _fill_events()
    for name in ("20260101-000000-abcd", "20260102-000000-beef"):
        job = folder / "jobs" / name
        job.mkdir(parents=True)
        info = {"id": name, "kind": "build", "title": name[-4:], "created": 1.7e9, "force": False,
                "outputs": ["/tmp/out"], "device": "cpu", "host": "h", "torch": "2"}  # fmt: skip
        (job / "job.json").write_text(json.dumps(info))
        (job / "recipe.toml").write_text(RECIPE)
        rows = [{"seq": i, "time": 1.7e9 + i, "type": kind} for i, kind in enumerate(_EVENTS)]
        for row in rows:
            row |= _EVENTS[str(row["type"])]
        assert all(events.decode(json.dumps(row)) for row in rows), rows
        (job / "events.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


_ERROR = {"error": "InputError", "what": "w", "where": None, "expected": None, "found": None,
          "remedy": None}  # fmt: skip
_EVENTS: dict[str, dict[str, Any]] = {}


def _example_of(hint: Any) -> Any:
    """Some value of a field's type."""
    import typing

    origin, inside = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        return [_example_of(inside[0])]
    if origin is dict or hint is dict:
        return {"what": "x", "a": 1, "path": "/tmp/x"}
    if inside:
        return _example_of(inside[0])
    return {str: "text", int: 3, float: 0.5, bool: True}.get(hint)


def _fill_events() -> None:
    from vlora_tui.pipeline import events

    for kind in events.EVENT_TYPES:
        row = {
            name: _example_of(hint)
            for name, (hint, _) in events._fields_of(kind).items()
            if _example_of(hint) is not None
        }
        _EVENTS[kind] = row


def tensors(folder: Path) -> None:
    tensors = {"a": make.torch.ones(2, 3), "b": make.torch.ones(4).half(), "c": make.torch.ones(0)}
    make.save_file(tensors, folder / "x.safetensors", metadata={"format": "pt"})


def router(folder: Path) -> None:
    from vlora_engine.nn.router import TaskRouter

    make.torch.manual_seed(1)
    TaskRouter(4, 2, 3, ["a", "b"], 0.5).save(folder / "r")


def draft(folder: Path) -> None:
    from vlora_tui.jobs.drafts import save_draft
    from vlora_tui.recipe.reader import load_recipe

    (folder / "r.toml").write_text(RECIPE)
    state = {"folder": "runs", "screen": "choose", "marks": ["a", "b"]}
    save_draft(folder / "drafts" / "1-a.toml", load_recipe(folder / "r.toml"), state)
    (folder / "r.toml").unlink()


def base_model(folder: Path) -> None:
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": 2,
        "hidden_size": 8, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 4,
        "tie_word_embeddings": False,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))


def settings(folder: Path) -> None:
    (folder / "vlora-tui").mkdir()
    text = 'theme = "x"\nascii = true\nscan_depth = 4\n[keys]\n"app.help" = "f1,?"\n'
    (folder / "vlora-tui" / "config.toml").write_text(text)
