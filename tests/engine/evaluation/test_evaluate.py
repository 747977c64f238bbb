"""What a model notices of compression, on trained adapters, against PEFT driven by hand."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.witnesses import make
from tests.witnesses.train import RANK, Trained
from vlora_engine import SharedSubspace, load_adapter, open_adapter, save_adapter
from vlora_engine.adapters.model import LoRAWeights
from vlora_engine.catalog.originals import find_originals
from vlora_engine.errors import (
    Cancelled,
    CollectionError,
    DependencyError,
    NotFoundError,
    ParameterError,
    UnsupportedAdapterError,
)
from vlora_engine.evaluation.prompts import Prompt, read_prompts

pytest.importorskip("peft")

from vlora_engine.evaluation import evaluate as evaluation
from vlora_engine.evaluation.evaluate import (
    Evaluation,
    Pair,
    derangement,
    evaluate,
    evaluate_subspace,
)
from vlora_engine.nn.peft_model import BaseModel, as_peft_adapter, load_base, read_by_peft

HEAD = "base_model.model.score.weight"
EMBEDDING = "base_model.model.model.embed_tokens.weight"
TOKENS = 600


@pytest.fixture
def base(trained: Trained) -> BaseModel:
    return load_base(trained.base)


@pytest.fixture(scope="module")
def prompts(trained: Trained) -> dict[str, Prompt]:
    return read_prompts([str(trained.path / "texts")], trained.tasks, max_tokens=TOKENS)


def compress(trained: Trained, k: int, method: str = "delta") -> SharedSubspace:
    paths = [trained.adapter(task) for task in trained.tasks]
    return SharedSubspace.from_adapters_streaming(paths, trained.tasks, k, method=method)


def scores_of(
    base: BaseModel, subspace: SharedSubspace, prompts: dict[str, Prompt], **options: object
) -> Evaluation:
    found, missing = find_originals(subspace.tasks.records())
    assert not missing
    options = {"max_tokens": TOKENS, **options}
    return evaluate_subspace(base, subspace, found, prompts=prompts, **options)


def pair(original: Path, compressed: Path | LoRAWeights) -> Pair:
    left = compressed if isinstance(compressed, LoRAWeights) else load_adapter(compressed)
    return Pair(lambda: read_by_peft(open_adapter(original)), lambda: as_peft_adapter(left))


def changed(
    trained: Trained, task: str, to: Path, tensors: dict[str, Tensor], **config: object
) -> Path:
    """A copy of a trained adapter with more tensors and another config."""
    copy = Path(shutil.copytree(trained.adapter(task), to))
    file = copy / "adapter_model.safetensors"
    save_file({**load_file(file), **tensors}, file, {"format": "pt"})
    told = json.loads((copy / "adapter_config.json").read_text())
    (copy / "adapter_config.json").write_text(json.dumps({**told, **config}))
    return copy


def test_an_adapter_beside_itself_is_the_same_to_the_bit(
    trained: Trained, base: BaseModel, prompts: dict[str, Prompt]
) -> None:
    # the one side as PEFT reads its own files, the other as our reader and writer have it
    pairs = {task: pair(trained.adapter(task), trained.adapter(task)) for task in trained.tasks}
    found = evaluate(base, pairs, prompts=prompts, max_tokens=TOKENS)
    for score in found.scores:
        assert score.tokens == TOKENS
        assert (score.compressed.kl, score.compressed.agreement) == (0, 1)
        assert (score.loss_change, score.gain_kept) == (0, 1)
        assert score.base.kl > 0.1
        assert score.shuffled is not None
        assert score.shuffled.kl > 0.1
        assert score.stranger != score.task
    assert found.control is not None
    assert found.control["fails"]


@pytest.mark.parametrize("method", ["delta", "columns", "flat"])
def test_the_figures_are_those_of_peft_driven_by_hand(
    trained: Trained, base: BaseModel, prompts: dict[str, Prompt], tmp_path: Path, method: str
) -> None:
    subspace = compress(trained, 2, method)
    found = scores_of(base, subspace, prompts)
    for task in trained.tasks:
        save_adapter(subspace.reconstruct(task), tmp_path / task)
    for score in found.scores[:2]:
        windows = _windows(trained.text(score.task).read_bytes()[:TOKENS])
        reference = _by_peft(trained, trained.adapter(score.task), windows)
        rivals = {
            "compressed": _by_peft(trained, tmp_path / score.task, windows),
            "base": _by_peft(trained, None, windows),
            "shuffled": _by_peft(trained, tmp_path / str(score.stranger), windows),
        }
        assert score.loss == pytest.approx(_loss(reference, windows), rel=1e-6)
        for name, logits in rivals.items():
            figures = getattr(score, name)
            assert figures.kl == pytest.approx(_kl(reference, logits), rel=1e-5)
            assert figures.agreement == pytest.approx(_agreement(reference, logits), abs=1e-9)
            assert figures.loss == pytest.approx(_loss(logits, windows), rel=1e-6)


def _windows(text: bytes) -> list[Tensor]:
    """The text cut after every 127 bytes; a line begins each piece, as the model's config says."""
    return [torch.tensor([10, *text[i : i + 127]]) for i in range(0, len(text), 127)]


def _by_peft(trained: Trained, adapter: Path | None, windows: list[Tensor]) -> list[Tensor]:
    from peft import PeftModel
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(trained.base)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter)
    with torch.no_grad():
        return [model(input_ids=w[None]).logits[0, :-1].double() for w in windows]


def _kl(reference: list[Tensor], logits: list[Tensor]) -> float:
    pairs = zip(torch.cat(reference), torch.cat(logits), strict=True)
    each = [
        torch.nn.functional.kl_div(
            q.log_softmax(0), p.log_softmax(0), reduction="sum", log_target=True
        )
        for p, q in pairs
    ]
    return float(torch.stack(each).mean())


def _agreement(reference: list[Tensor], logits: list[Tensor]) -> float:
    return float((torch.cat(reference).argmax(1) == torch.cat(logits).argmax(1)).double().mean())


def _loss(logits: list[Tensor], windows: list[Tensor]) -> float:
    following = torch.cat([w[1:] for w in windows])
    return float(torch.nn.functional.cross_entropy(torch.cat(logits), following))


ALL = 4 * RANK  # directions of four adapters


def test_the_more_is_kept_the_less_is_noticed(
    trained: Trained, base: BaseModel, prompts: dict[str, Prompt]
) -> None:
    found = {k: scores_of(base, compress(trained, k), prompts) for k in (1, 4, 12, ALL)}
    kl = [each.mean["kl"] for each in found.values()]
    assert kl == sorted(kl, reverse=True)
    assert kl[0] > 0.1
    assert kl[-1] < 1e-9
    kept = [each.mean["gain_kept"] for each in found.values()]
    assert kept == sorted(kept)
    # the control is not merely worse: it is far off
    control = found[ALL].control
    assert control is not None
    assert control["min_kl"] > 0.1
    worst = [score.compressed.kl for score in found[4].scores]
    assert worst == sorted(worst, reverse=True)
    assert found[4].worst["kl"] == worst[0]


def test_a_control_that_does_as_well_is_named(
    trained: Trained, base: BaseModel, prompts: dict[str, Prompt]
) -> None:
    # what is left of "add" is the adapter of "upper", and the other way round
    swapped = {
        "add": pair(trained.adapter("add"), trained.adapter("upper")),
        "upper": pair(trained.adapter("upper"), trained.adapter("add")),
    }
    found = evaluate(base, swapped, prompts=prompts, max_tokens=TOKENS)
    assert found.control == {
        "mean_kl": 0,
        "min_kl": 0,
        "fails": False,
        "no_worse": [score.task for score in found.scores],
    }
    assert found.worst["gain_kept"] < 0


def test_an_adapter_of_nothing_keeps_nothing_of_the_gain(
    trained: Trained, base: BaseModel, prompts: dict[str, Prompt]
) -> None:
    nothing = load_adapter(trained.adapter("add"))
    nothing.lora_b = {name: torch.zeros_like(b) for name, b in nothing.lora_b.items()}
    lost = {"add": pair(trained.adapter("add"), nothing)}
    score = evaluate(base, lost, prompts=prompts, max_tokens=TOKENS).scores[0]
    assert score.gain_kept == pytest.approx(0, abs=1e-6)
    assert score.compressed.kl == pytest.approx(score.base.kl, rel=1e-6)
    assert (score.shuffled, score.stranger) == (None, None)
    # and where the adapter gains nothing over the base there is no share to speak of
    score = evaluate(
        base, {"zero": Pair(lambda: as_peft_adapter(nothing), lambda: as_peft_adapter(nothing))}
    ).scores[0]
    assert score.gain_kept is None


def test_sampled_texts_depend_on_seed_and_task_alone(trained: Trained, base: BaseModel) -> None:
    whole = {task: pair(trained.adapter(task), trained.adapter("add")) for task in trained.tasks}
    by_task = {s.task: s for s in evaluate(base, whole, max_tokens=200, seed=3).scores}
    again = evaluate(base, {"upper": whole["upper"]}, max_tokens=200, seed=3).scores[0]
    assert again.compressed == by_task["upper"].compressed
    assert again.tokens == 254  # whole sequences of 127
    other = evaluate(base, {"upper": whole["upper"]}, max_tokens=200, seed=4).scores[0]
    assert other.loss != again.loss
    # a text of the original's own: the others' loss on it is its entropy and the KL, but for luck
    sure = evaluate(base, {"upper": whole["upper"]}, max_tokens=4000).scores[0]
    assert sure.loss_change == pytest.approx(sure.compressed.kl, rel=0.2)


def test_how_the_text_is_cut_up_changes_no_figure(
    trained: Trained,
    base: BaseModel,
    prompts: dict[str, Prompt],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pairs = {"add": pair(trained.adapter("add"), trained.adapter("upper"))}
    whole = evaluate(base, pairs, prompts=prompts, max_tokens=TOKENS).scores[0]
    monkeypatch.setattr(evaluation, "PART", 256 * 7)
    monkeypatch.setattr(evaluation, "LOGITS", 1)
    cut = evaluate(base, pairs, prompts=prompts, max_tokens=TOKENS).scores[0]
    assert cut.tokens == whole.tokens
    assert cut.compressed.kl == pytest.approx(whole.compressed.kl, rel=1e-5)
    assert cut.compressed.loss == pytest.approx(whole.compressed.loss, rel=1e-6)


def test_every_token_is_predicted_once_with_and_without_a_beginning(
    trained: Trained, base: BaseModel
) -> None:
    prompt = {"add": Prompt("0123456789" * 5, "a file")}
    pairs = {"add": pair(trained.adapter("add"), trained.adapter("add"))}

    def tokens(**options: int) -> int:
        return evaluate(base, pairs, prompts=prompt, **options).scores[0].tokens

    assert tokens(max_tokens=20, length=7) == 20
    assert tokens(max_tokens=99, length=7) == 50
    base.model.config.bos_token_id = None
    assert tokens(max_tokens=20, length=7) == 20
    assert tokens(max_tokens=99, length=7) == 49
    assert tokens(max_tokens=99, length=50) == 49


def test_what_has_no_place_is_told_and_what_an_adapter_brings_leaves_with_it(
    trained: Trained, base: BaseModel, prompts: dict[str, Prompt], tmp_path: Path
) -> None:
    plain = {"upper": pair(trained.adapter("upper"), trained.adapter("add"))}
    before = evaluate(base, plain, prompts=prompts, max_tokens=TOKENS).scores[0]
    embedding = load_file(trained.base / "model.safetensors")["model.embed_tokens.weight"]
    tensors = {HEAD: torch.ones(3, 96), EMBEDDING: embedding.flip(0).contiguous()}
    odd = changed(
        trained,
        "add",
        tmp_path / "odd",
        tensors,
        task_type="SEQ_CLS",
        modules_to_save=["score"],
        a_field_of_tomorrow=1,
    )
    pairs = {"add": pair(odd, odd), **plain}
    found = evaluate(base, pairs, prompts=prompts, max_tokens=TOKENS)
    scores = {score.task: score for score in found.scores}
    assert found.unplaced == [HEAD]
    assert scores["add"].compressed.kl == 0
    assert scores["add"].loss > before.loss + 1  # it reads every byte as another one
    assert scores["upper"].compressed == before.compressed
    assert scores["upper"].base == before.base


def test_a_module_that_the_adapter_lacks_says_nothing(
    trained: Trained, base: BaseModel, tmp_path: Path
) -> None:
    # its config names q_proj of both layers and has init_lora_weights off: PEFT would leave noise
    part = load_adapter(trained.adapter("add"))
    part.layer_names = [name for name in part.layer_names if ".layers.0." in name]
    part.metadata["init_lora_weights"] = False
    whole = load_adapter(trained.adapter("add"))
    for name in set(whole.layer_names) - set(part.layer_names):
        whole.lora_b[name].zero_()
    pairs = {"add": Pair(lambda: as_peft_adapter(whole), lambda: as_peft_adapter(part))}
    assert evaluate(base, pairs, max_tokens=100).scores[0].compressed.kl == 0


def test_adapters_of_another_base_are_refused_by_name(
    trained: Trained, base: BaseModel, tmp_path: Path
) -> None:
    own = trained.adapter("add")
    strange = make.write(tmp_path / "gpt2")
    with pytest.raises(CollectionError, match="does not fit the base model") as refused:
        evaluate(base, {"x": pair(strange, strange)})
    assert str(strange) in str(refused.value)
    assert "gpt2" in str(refused.value.expected)
    wide = load_adapter(own)
    wide.lora_a = {name: torch.cat([a, a], 1) for name, a in wide.lora_a.items()}
    with pytest.raises(CollectionError, match="does not fit"):
        evaluate(load_base(trained.base), {"x": pair(own, wide)})
    resized = changed(trained, "add", tmp_path / "resized", {EMBEDDING: torch.ones(300, 96)})
    with pytest.raises(CollectionError, match="embed_tokens"):
        evaluate(load_base(trained.base), {"x": pair(resized, resized)})
    biased = changed(trained, "add", tmp_path / "biased", {}, bias="all")
    with pytest.raises(UnsupportedAdapterError, match="biases"):
        evaluate(load_base(trained.base), {"x": pair(biased, biased)})


def test_logits_that_are_no_numbers_are_an_error(
    trained: Trained, base: BaseModel, prompts: dict[str, Prompt]
) -> None:
    loud = load_adapter(trained.adapter("add"))
    loud.lora_b = {name: torch.full_like(b, 3e38) for name, b in loud.lora_b.items()}
    pairs = {"add": pair(trained.adapter("add"), loud)}
    for texts in (prompts, None):
        with pytest.raises(ParameterError, match="not numbers"):
            evaluate(base, pairs, prompts=texts, max_tokens=100)
    sampled = {"add": Pair(lambda: as_peft_adapter(loud), lambda: as_peft_adapter(loud))}
    with pytest.raises(ParameterError, match="not numbers"):
        evaluate(base, sampled, max_tokens=100)


def test_it_tells_how_far_it_is_and_stops_between_two_tasks(
    trained: Trained, base: BaseModel
) -> None:
    pairs = {task: pair(trained.adapter(task), trained.adapter(task)) for task in trained.tasks}
    steps: list[tuple[str, int, int, str]] = []

    def step(at: object) -> None:
        steps.append(tuple(vars(at).values()))  # type: ignore[arg-type]

    with pytest.raises(Cancelled, match="2 of 4"):
        evaluate(base, pairs, max_tokens=9, progress=step, cancelled=lambda: len(steps) == 2)
    assert steps == [("evaluate", i, 4, trained.tasks[i - 1], "") for i in (1, 2)]


@pytest.mark.parametrize("options", [{"max_tokens": 0}, {"length": 1}])
def test_figures_out_of_range(trained: Trained, options: dict[str, int]) -> None:
    some = pair(trained.adapter("add"), trained.adapter("add"))
    with pytest.raises(ParameterError):
        evaluate(load_base(trained.base), {"add": some}, **options)


def test_in_a_derangement_no_one_keeps_a_name() -> None:
    names = [f"task{i}" for i in range(9)]
    for seed in range(20):
        table = derangement(names, seed)
        assert sorted(table) == sorted(table.values()) == names
        assert not any(name == other for name, other in table.items())
        assert table == derangement(names[::-1], seed)
    assert derangement(["one"], 0) == {}


# ---- the base model


def with_tokenizer(trained: Trained, to: Path, vocabulary: int) -> Path:
    """The base with a tokenizer of that many words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(vocabulary)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    folder = Path(shutil.copytree(trained.base, to))
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(folder)
    return folder


def test_the_tokenizer_beside_the_base_makes_the_tokens(trained: Trained, tmp_path: Path) -> None:
    base = load_base(with_tokenizer(trained, tmp_path / "base", 300))
    assert base.encode("w7 w255 what") == [7, 255, 0]
    pairs = {"add": pair(trained.adapter("add"), trained.adapter("add"))}
    good = {"add": Prompt("w7 w255 what", "a")}
    assert evaluate(base, pairs, prompts=good).scores[0].tokens == 3
    with pytest.raises(ParameterError, match="tokens that the base model lacks") as refused:
        evaluate(base, pairs, prompts={"add": Prompt("w7 w299", "a")})
    assert refused.value.found == "299"


def test_without_a_tokenizer_only_a_vocabulary_of_bytes_can_read() -> None:
    base = BaseModel("some", make.tiny_llama(vocab_size=1000), None, torch.device("cpu"))
    with pytest.raises(ParameterError, match="no tokenizer"):
        base.encode("text")


def test_a_base_that_is_none(trained: Trained, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no such base model"):
        load_base("./nowhere")
    with pytest.raises(NotFoundError, match="no model in this folder"):
        load_base(trained.adapter("add"))
    with pytest.raises(NotFoundError, match="nor to be had from the Hub") as refused:
        load_base("an-owner/a-model")
    assert "hf download an-owner/a-model" in str(refused.value.remedy)
    for spoil in (_truncated, _emptied, _halved, _of_another_kind):
        copy = Path(shutil.copytree(trained.base, tmp_path / spoil.__name__))
        spoil(copy)
        with pytest.raises((NotFoundError, ParameterError)) as refused:
            load_base(copy)
        assert str(copy) in str(refused.value)
    with pytest.raises(ParameterError, match="dtype"):
        load_base(trained.base, dtype="int8")
    assert load_base(trained.base, dtype="bf16").model.dtype is torch.bfloat16


def _truncated(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:5000])


def _emptied(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def _halved(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    kept = {name: t for name, t in tensors.items() if "layers.1" not in name}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})


def _of_another_kind(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "vit"}')


@pytest.mark.parametrize("library", ["peft", "transformers"])
def test_a_missing_library_names_the_extra(
    trained: Trained, monkeypatch: pytest.MonkeyPatch, library: str
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(DependencyError, match=library) as refused:
        load_base(trained.base)
    assert refused.value.remedy == "pip install 'vlora-tui[peft]'"


# ---- the originals


def test_originals_are_found_by_content(trained: Trained, tmp_path: Path) -> None:
    subspace = compress(trained, 2)
    records = subspace.tasks.records()
    moved = tmp_path / "moved"
    shutil.copytree(trained.path / "adapters", moved)
    (moved / "add").rename(moved / "with another name")
    steps: list[object] = []
    found, missing = find_originals(records, [moved], progress=steps.append)
    assert not missing
    assert len(steps) == 4
    assert found["add"].path == moved / "with another name"
    # changed since, and gone
    changed(trained, "upper", tmp_path / "upper", {HEAD: torch.ones(3, 96)})
    shutil.rmtree(moved / "upper")
    (tmp_path / "upper").rename(moved / "upper")
    shutil.rmtree(moved / "reverse")
    (moved / "caesar" / "adapter_model.safetensors").write_bytes(b"broken")
    found, missing = find_originals(records, [moved])
    assert set(found) == {"add"}
    assert "has changed" in str(missing["upper"])
    assert "is not there" in str(missing["reverse"])
    assert "caesar" in missing


def test_the_recorded_original_is_proved_too(trained: Trained, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(trained.path / "adapters", tmp_path / "adapters"))
    paths = [copy / task for task in trained.tasks]
    subspace = SharedSubspace.from_adapters_streaming(paths, trained.tasks, 2)
    shutil.rmtree(copy / "add")
    shutil.copytree(trained.adapter("upper"), copy / "add")
    shutil.rmtree(copy / "reverse")
    found, missing = find_originals(subspace.tasks.records())
    assert set(found) == {"caesar", "upper"}
    assert isinstance(missing["add"], CollectionError)
    assert isinstance(missing["reverse"], NotFoundError)
    assert str(copy / "reverse") in str(missing["reverse"])


# ---- the texts

TASKS = ["a", "b", "x/y"]
Write = Callable[[str, str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(name: str, text: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text(text)
        return path

    return write


def test_a_text_for_all_a_folder_and_one_for_a_task(write: Write, tmp_path: Path) -> None:
    shared, own = write("shared", "for all"), write("o=n.txt", "own")
    write("folder/a.txt", "of a")
    write("folder/x-y.txt", "of x/y")  # names of tasks are no paths
    places = [f"b={own}", str(tmp_path / "folder"), str(shared)]
    found = {t: p.text for t, p in read_prompts(places, TASKS, max_tokens=9).items()}
    assert found == {"a": "of a", "b": "own", "x/y": "of x/y"}
    found = {t: p.text for t, p in read_prompts(places[1:], TASKS, max_tokens=9).items()}
    assert found == {"a": "of a", "b": "for all", "x/y": "of x/y"}
    with pytest.raises(NotFoundError, match="no text for some tasks") as refused:
        read_prompts(places[1:2], TASKS, max_tokens=9)
    assert refused.value.found == "none for b"


def test_no_more_of_a_text_is_read_than_is_used(write: Write) -> None:
    file = write("long", "ä" * 1000)
    text = read_prompts([str(file)], ["a"], max_tokens=1)["a"].text
    assert text == "ä" * 32
    assert read_prompts([str(write("odd", "x" + "ä" * 99))], ["a"], max_tokens=1)["a"].text == (
        "x" + "ä" * 31
    )


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "no text"),
        (b" \n\t\n", "no text"),
        (b"abc\0def", "not text"),
        (b"caf\xe9 au lait", "not text"),
        (b"\x89PNG\r\n", "not text"),
        (b"cut short \xc3", "not text"),
    ],
)
def test_a_file_that_is_no_text(tmp_path: Path, content: bytes, words: str) -> None:
    file = tmp_path / "file"
    file.write_bytes(content)
    with pytest.raises(ParameterError, match=words) as refused:
        read_prompts([str(file)], ["a"], max_tokens=9)
    assert refused.value.where == str(file)


def test_places_that_cannot_be_meant(write: Write, tmp_path: Path) -> None:
    one, other = str(write("one", "1")), str(write("other", "2"))
    with pytest.raises(NotFoundError):
        read_prompts([str(tmp_path / "none")], TASKS, max_tokens=9)
    with pytest.raises(NotFoundError):
        read_prompts([f"a={tmp_path / 'none'}"], TASKS, max_tokens=9)
    with pytest.raises(ParameterError, match="Two files"):
        read_prompts([one, other], TASKS, max_tokens=9)
    with pytest.raises(ParameterError, match="not evaluated"):
        read_prompts([f"c={one}"], TASKS, max_tokens=9)
    with pytest.raises(ParameterError, match="is a file"):
        read_prompts([f"a={tmp_path}"], TASKS, max_tokens=9)
