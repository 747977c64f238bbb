"""What the two first libraries' READMEs say runs here, on what a plain `compress` wrote.

The import is changed and nothing else: ``vlora`` is ``vlora_engine``, ``lorashare`` is
``vlora_engine.compat.lorashare``, and both programs are ``vlora-tui``.
"""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.app.conftest import Cli
from tests.app.guides import first_libraries as theirs
from tests.witnesses import make
from tests.witnesses.hub import TOKEN, Hub
from vlora_engine import SharedSubspace
from vlora_engine.doctor.subspace_check import check_subspace
from vlora_tui.cli import main

pytest.importorskip("peft")

STAND_INS = {
    "the Hub": "tests.witnesses.hub, a server of this machine that speaks the Hub's protocol",
    "a GPU": 'device="cuda" and --device cuda become cpu where there is none',
    "bitsandbytes": "`with_packed_layers`: a plain base whose layers have its classes' names",
    "the models": "folders roberta-base and model-name: tiny models of the same architectures",
    "the reader's data": "`given`: batches, embeddings, a loss, arguments and rows for a Trainer",
}
NAMES = ("cola_lora", "mrpc_lora", "rte_lora")
HEADED = ["query", "value"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real adapters that PEFT wrote, and what a plain `compress` makes of them; to be copied."""
    place = tmp_path_factory.mktemp("first")
    for seed, name in enumerate([*(f"task_{i}" for i in range(10)), "new_task", "another_task"]):
        model = make.peft_model(tiny_base(), ["q_proj", "v_proj"], seed=seed + 1, r=8)
        model.save_pretrained(place / "adapters" / name, save_embedding_layers=False)
    tiny_base().save_pretrained(place / "model-name")
    tiny_roberta().save_pretrained(place / "roberta-base")
    tiny_tokenizer().save_pretrained(place / "roberta-base")
    for seed, name in enumerate(NAMES):
        model = make.peft_model(tiny_roberta(), HEADED, seed=seed + 1, r=8, task_type="SEQ_CLS")
        model.save_pretrained(place / "path" / "to" / name, save_embedding_layers=False)
    tasks = [str(place / "adapters" / f"task_{i}") for i in range(3)]
    assert main(["compress", *tasks, "-o", str(place / "plain"), "-q"]) == 0
    heads = [str(place / "path" / "to" / name) for name in NAMES]
    assert main(["compress", *heads, "-o", str(place / "plain-heads"), "-q"]) == 0
    for plain in ("plain", "plain-heads"):
        assert SharedSubspace.load(place / plain).method == "auto"
    return place


@pytest.fixture
def world(made: Path, tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of a reader: the adapters, the models, and the default output to work on."""
    monkeypatch.chdir(tmp_path)
    for name in ("adapters", "path", "model-name", "roberta-base"):
        (tmp_path / name).symlink_to(made / name)
    for i, name in enumerate(NAMES, start=1):
        (tmp_path / f"adapter{i}").symlink_to(made / "path" / "to" / name)
        hub.add(f"org/{name}", made / "path" / "to" / name)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    shutil.copytree(made / "plain", tmp_path / "shared_subspace")
    return tmp_path


def tiny_base() -> nn.Module:
    return make.tiny_llama(hidden_size=96, intermediate_size=48, num_key_value_heads=2)


def tiny_roberta() -> nn.Module:
    from transformers import RobertaConfig, RobertaForSequenceClassification

    torch.manual_seed(0)
    return RobertaForSequenceClassification(
        RobertaConfig(
            vocab_size=12,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=48,
            max_position_embeddings=64,
        )
    ).eval()


def tiny_tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<s>", "<pad>", "</s>", "<unk>", "I", "liked", "that", "film", "!"]
    fast = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, "<unk>"))
    fast.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=fast, unk_token="<unk>", pad_token="<pad>")


def given(world: Path) -> dict[str, Any]:
    """The names that the READMEs' blocks use and do not make."""
    from vlora_engine import VLoRAModel, load_adapter

    rows = torch.arange(36).reshape(3, 12) * 7 % 40
    found: dict[str, Any] = {"torch": torch}

    def compute_loss(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        """Of a model that wears the block's task; which, the README leaves to its reader."""
        if "worn" not in found:
            found["worn"] = VLoRAModel(model, found["subspace"])
            found["worn"].set_task("new_task")
        return found["worn"](input_ids=batch, labels=batch).loss

    found |= {
        "subspace": SharedSubspace.load("shared_subspace"),
        "adapters": [load_adapter(f"adapters/task_{i}") for i in range(5)],
        "adapter_paths": [f"adapters/task_{i}" for i in range(5)],
        "new_adapter": load_adapter("adapters/new_task"),
        "base_model": tiny_base(),
        "model": tiny_base(),
        "input_ids": rows,
        "batch": rows,
        "dataloader": [rows] * 4,
        "compute_loss": compute_loss,
        "get_input_embedding": lambda batch: torch.randn(
            len(batch), 4096, generator=torch.Generator().manual_seed(0)
        ),
    }
    return found


def trainer_names(world: Path) -> dict[str, Any]:
    """A Trainer with its rows, and its arguments."""
    pytest.importorskip("accelerate")
    from transformers import Trainer, TrainingArguments

    rows = torch.arange(36).reshape(3, 12) * 7 % 40
    data = [{"input_ids": row, "labels": row} for row in rows.repeat(4, 1)]
    arguments = TrainingArguments(
        str(world / "out"), max_steps=4, save_strategy="no", report_to=[], disable_tqdm=True
    )
    return {"Trainer": partial(Trainer, train_dataset=data), "args": arguments}


def with_packed_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models load as bitsandbytes packs them, as far as their layers' names tell."""
    import transformers

    class Linear4bit(nn.Linear):
        compute_dtype = torch.bfloat16

    class Config:
        def __init__(self, **settings: Any) -> None:
            assert settings["load_in_4bit"]

    load = transformers.AutoModelForCausalLM.from_pretrained

    def packed(name: str, quantization_config: Config) -> nn.Module:
        model = load(name)
        for module in list(model.modules()):
            for child, layer in list(module.named_children()):
                if type(layer) is nn.Linear and child != "lm_head":
                    twin = Linear4bit(layer.in_features, layer.out_features, bias=False)
                    twin.weight = layer.weight
                    setattr(module, child, twin)
        return model

    monkeypatch.setattr(transformers, "BitsAndBytesConfig", Config)
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", packed)


def ours(text: str) -> str:
    """With the import changed; and the device, where there is no GPU."""
    text = re.sub(r"\bfrom vlora\b", "from vlora_engine", text)
    text = re.sub(r"\bfrom lorashare\b", "from vlora_engine.compat.lorashare", text)
    return text if torch.cuda.is_available() else text.replace('"cuda"', '"cpu"')


def run(text: str, found: dict[str, Any]) -> dict[str, Any]:
    exec(compile(ours(text), "README", "exec"), found)
    return found


def lines(text: str) -> Iterator[list[str]]:
    """Our words of every command line."""
    for line in re.sub(r"\n    ", " ", text).strip().splitlines():
        _, *words = shlex.split(line)
        cpu = not torch.cuda.is_available()
        yield ["cpu" if cpu and word == "cuda" else word for word in words]


# ---- the first library


def test_its_commands(cli: Cli, world: Path) -> None:
    shutil.rmtree("shared_subspace")
    for words in lines(theirs.VLORA_COMMANDS):
        cli(*words)
    assert SharedSubspace.load("shared_subspace").method == "auto"
    assert "new_task" in SharedSubspace.load("shared_subspace").tasks


@pytest.mark.parametrize("block", theirs.VLORA)
def test_its_python(block: str, world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = given(world)
    if block == "base in 4 bit":
        with_packed_layers(monkeypatch)
    if block == "trainer of transformers":
        found.update(trainer_names(world))
    run(theirs.VLORA[block], found)
    check(block, found)
    for place in ("shared_subspace", "updated_subspace", "made_in_python"):
        if Path(place).exists():
            assert check_subspace(Path(place)) == []


def check(block: str, found: Mapping[str, Any]) -> None:
    """What a block says came of it."""
    if block.startswith("quickstart"):
        assert {"new_task", "another"} <= set(found["subspace"].tasks)
    elif block == "several tasks":
        assert found["model"].available_tasks == ["task_0", "task_1", "task_2"]
        assert (found["first"].logits - found["output"].logits).abs().max() > 1e-3
    elif block == "merged into the base":
        model = found["model"]
        model.set_task("task_0")
        merged, worn = found["output"].logits, model(found["input_ids"]).logits
        torch.testing.assert_close(merged, worn, rtol=0, atol=1e-5)
    elif block == "base in 4 bit":
        assert found["model"].qlora_info["method"] == "nf4"
    elif block == "full stack":
        assert found["stats"]["total_original_bytes"] >= 14_000_000_000
        assert found["stats"]["total_compression_ratio"] > 3.9
    elif block == "training":
        assert found["losses"][-1] < found["losses"][0]
        assert "new_task" in SharedSubspace.load("updated_subspace").tasks
    elif block == "trainer of transformers":
        task = SharedSubspace.load("updated_subspace").tasks["new_task"]
        assert any(bool(loadings.any()) for loadings in task.loadings_b.values())
    elif block == "growing":
        moved = found["subspace"]
        assert {c.dtype for c in moved.components_a.values()} == {torch.float16}
        before = moved.reconstruct("new_task")
        moved.save("updated_subspace")
        again = SharedSubspace.load("updated_subspace").reconstruct("new_task")
        for name, factor in before.lora_a.items():
            torch.testing.assert_close(factor, again.lora_a[name], rtol=2e-3, atol=1e-3)


def test_its_reference(world: Path) -> None:
    found = run(theirs.VLORA_REFERENCE, given(world))
    assert min(row["coverage"] for row in found["coverage"].values()) > 0.9
    assert found["shapes"][0][1] == 96


# ---- the second library


def test_the_second_ones_commands(cli: Cli, world: Path) -> None:
    for words in lines(theirs.LORASHARE_COMMANDS):
        shutil.rmtree("compressed", ignore_errors=True)
        cli(*words)
    Path("cola").symlink_to("adapter1")
    shutil.rmtree("compressed")
    cli("compress", "cola", "adapter2/", "adapter3/", "-o", "compressed")
    assert SharedSubspace.load("compressed").method == "auto"
    for words in lines(theirs.LORASHARE_COMMANDS_ON):
        cli(*words)
    assert len(list(Path("all_reconstructed").iterdir())) == 3


@pytest.mark.parametrize("block", theirs.LORASHARE)
def test_the_second_ones_python(block: str, world: Path, hub: Hub) -> None:
    paths = [f"path/to/{name}" for name in NAMES]
    found: dict[str, Any] = {"adapters": paths, "many_adapters": paths}
    if block in ("on a model", "kept"):
        run(theirs.LORASHARE["quickstart"], found)
    run(theirs.LORASHARE[block], found)
    assert set(found["share"].adapter_names) <= set(NAMES)
    if block == "kept":
        assert "share_config.json" in hub.repos["username/my-share-model"].files


def test_the_second_ones_python_on_what_compress_wrote(made: Path, world: Path, hub: Hub) -> None:
    shutil.rmtree("shared_subspace")
    shutil.copytree(made / "plain-heads", "shared_subspace")
    found = run(theirs.LORASHARE_ON_DEFAULT, {})
    assert found["figures"]["dw"] <= 0.05
    assert set(found["share"].adapter_names) == set(NAMES)
    assert "share_config.json" in hub.repos["username/my-share-model"].files
