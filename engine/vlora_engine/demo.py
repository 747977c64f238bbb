"""The demo collection: nineteen small synthetic adapters with what a real folder has.

A family of checkpoints, related tasks, unrelated ones, a copy, an outlier, mixed ranks and scales,
a classifier head, a NaN, an untrained adapter. They fit a Llama of ``demo_base_config()``, which
lies beside them with seeded weights and ten texts, so that evaluation can be tried too.

An adapter's weight change is made as training makes it: A keeps its random start and learns a
little, B grows from zero along a few directions of falling strength,

    A = start + G diag(c) V^T      [r, d_in]     start: kaiming uniform, as PEFT draws it
    B = U diag(s) G^T              [d_out, r]    s: geometric, s_0^2 holds about half the energy

with G an orthogonal r x r mix, so that no row of A is a singular direction. Adapters of one family
share start, G and most of U and V. The shape of the spectrum follows what trained adapters show.

The bytes are the same on every machine: each number is PCG64's raw stream (numpy guarantees the
stream of a bit generator, not that of ``Generator``) under elementwise +, *, / and sqrt, which
IEEE 754 fixes to the last bit. No matmul, reduction or ``pow``: their last bits vary.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from vlora_engine.errors import OutputExistsError
from vlora_engine.utils.files import dump_json
from vlora_engine.utils.output_checks import check_output
from vlora_engine.utils.outputs import new_directory
from vlora_engine.utils.reading import read_file
from vlora_engine.utils.tensor_writer import encode_header

Floats: TypeAlias = NDArray[np.float64]

DEMO_VERSION = 2  # raise it when the bytes change: an older demo then does not pass for this one
BASE_MODEL = "synthetic/tiny-llama-demo"
MANIFEST = "demo-manifest.json"
BASE_FOLDER, TEXTS = "base-model", "texts.txt"
BROKEN_TENSOR = "base_model.model.model.layers.2.mlp.down_proj.lora_B.weight"

HIDDEN, INTERMEDIATE, LAYERS, HEADS, KV_HEADS = 256, 512, 4, 8, 2
BEGINNING = 256  # the token before a text; those below it are bytes
KV = HIDDEN // HEADS * KV_HEADS

# leaf: (parent, d_out, d_in, ||dW|| against the other modules')
_MODULES = {
    "q_proj": ("self_attn", HIDDEN, HIDDEN, 0.8),
    "k_proj": ("self_attn", KV, HIDDEN, 0.5),
    "v_proj": ("self_attn", KV, HIDDEN, 0.7),
    "o_proj": ("self_attn", HIDDEN, HIDDEN, 0.9),
    "gate_proj": ("mlp", INTERMEDIATE, HIDDEN, 0.9),
    "up_proj": ("mlp", INTERMEDIATE, HIDDEN, 1.1),
    "down_proj": ("mlp", HIDDEN, INTERMEDIATE, 1.0),
}


@dataclass(frozen=True, kw_only=True)
class DemoAdapter:
    """What one adapter of the demo is, and how it is made.

    Args:
        name: Its folder, relative to the collection.
        purpose: What it is there to show.
        family: Adapters of one family share start, mix and planted directions; empty: its own.
        turn: How far its directions turn within the family's planted space.
        noise: How far they leave that space, against a planted direction's length.
        progress: The share of the training run that is done; 0 leaves B at zero.
        gain: Its ``||dW||`` against the other adapters'.
        labels: Rows of a classifier head; 0 for a language model.
        copy_of: The adapter that this one repeats, with 1 % of noise on every value.
        nan_in: The tensor that holds one NaN.
    """

    name: str
    purpose: str
    family: str = ""
    turn: float = 0.0
    noise: float = 0.0
    progress: float = 1.0
    rank: int = 8
    alpha: int = 16
    rslora: bool = False
    targets: tuple[str, ...] = tuple(sorted(_MODULES))
    dtype: str = "F32"
    gain: float = 1.0
    labels: int = 0
    copy_of: str = ""
    nan_in: str = ""

    @property
    def scale(self) -> float:
        """What B @ A is multiplied by."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


@dataclass(frozen=True)
class DemoCollection:
    """A demo collection on disk: its folder, and (folder of the adapter, what it is for) each."""

    path: Path
    adapters: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class DemoModel:
    """What the demo is evaluated on: the folder of its made base model, and its ten made texts."""

    base: Path
    texts: Path


def _checkpoint(step: int) -> DemoAdapter:
    return DemoAdapter(
        name=f"support-bot/checkpoint-{step}",
        purpose=f"step {step} of 2000 of one run: same start, growing norm, one shared subspace",
        family="support-bot",
        noise=0.05,
        progress=step / 2000,
    )


def _language(name: str) -> DemoAdapter:
    return DemoAdapter(
        name=name,
        purpose=f"translation to {name.title()}: one of four related tasks that share a subspace",
        family="translation",
        turn=0.35,
        noise=0.3,
    )


DEMO_ADAPTERS: tuple[DemoAdapter, ...] = (
    *(_checkpoint(step) for step in (500, 1000, 1500, 2000)),
    *(_language(name) for name in ("french", "german", "italian", "spanish")),
    DemoAdapter(name="legal", purpose="an unrelated task: own start, own directions"),
    DemoAdapter(name="medical", purpose="an unrelated task: own start, own directions"),
    DemoAdapter(
        name="medical-copy",
        purpose="a near-duplicate: medical with 1 % of noise",
        copy_of="medical",
    ),
    DemoAdapter(name="sports", purpose="an unrelated task, stored in fp16", dtype="F16"),
    DemoAdapter(
        name="sql",
        purpose="rank 4, alpha 32, trained on q_proj and v_proj only",
        rank=4,
        alpha=32,
        targets=("q_proj", "v_proj"),
    ),
    DemoAdapter(name="summarize", purpose="rank 16, alpha 32", rank=16, alpha=32),
    DemoAdapter(
        name="poetry-rslora",
        purpose="rank 16 with rsLoRA: its scale is alpha / sqrt(r)",
        rank=16,
        rslora=True,
    ),
    DemoAdapter(
        name="sentiment-head",
        purpose="a classifier: its score head has to survive compression bit for bit",
        labels=3,
    ),
    DemoAdapter(
        name="outlier-diverged",
        purpose="an outlier: a run that diverged, its weight change is 25 times the others'",
        gain=25.0,
    ),
    DemoAdapter(
        name="broken-nan", purpose=f"broken: one NaN in {BROKEN_TENSOR}", nan_in=BROKEN_TENSOR
    ),
    DemoAdapter(
        name="untrained-zero-b",
        purpose="never trained: every B is zero, so it changes nothing",
        progress=0.0,
    ),
)


def make_demo_collection(path: Path, *, force: bool = False) -> DemoCollection:
    """Write the demo collection to ``path``, or reuse the one that is there.

    Files that are not the demo's do not hinder its reuse; they are never deleted, with ``force``
    neither: ``force`` restores a demo that was changed.

    Raises:
        OutputExistsError: Something else is there, or a changed demo and no ``force``.
        StorageError: The place cannot be written to.
    """
    path = Path(path)
    collection = DemoCollection(path, tuple((a.name, a.purpose) for a in DEMO_ADAPTERS))
    if _is_complete(path):
        return collection
    if foreign := _foreign_files(path):
        more = f" and {len(foreign) - 3} more" if len(foreign) > 3 else ""
        raise OutputExistsError(
            "The place for the demo collection holds other files; nothing was written.",
            where=path,
            expected="no directory, an empty one, or a demo collection",
            found=", ".join(foreign[:3]) + more,
            remedy="choose another directory for the demo, or move these files away",
        )
    if not force:
        check_output(path)
    with new_directory(path, job="demo", keep_foreign=True) as partial:
        for name, data in _render().items():
            file = partial / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)
    return collection


def demo_base_config() -> dict[str, Any]:
    """Keyword arguments of the ``transformers.LlamaConfig`` that the adapters fit."""
    return {
        "vocab_size": 320,
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "max_position_embeddings": 512,
        "pad_token_id": 0,
        "tie_word_embeddings": False,
    }


def demo_model(places: Iterable[str | Path]) -> DemoModel | None:
    """The base model and texts of the demo that one of these places lies in, or is; else None."""
    for place in places:
        path = Path(place)
        for folder in (path, *path.parents):
            made = DemoModel(folder / BASE_FOLDER, folder / TEXTS)
            if (folder / MANIFEST).is_file() and made.base.is_dir() and made.texts.is_file():
                return made
    return None


# ---- the files


def _render() -> dict[str, bytes]:
    """Every file of the collection by its name; the manifest last."""
    files = {"README.md": _readme().encode()}
    for adapter in DEMO_ADAPTERS:
        config, tensors = _file_names(adapter)
        files[config] = dump_json(_peft_config(adapter), indent=2).encode()
        files[tensors] = _safetensors(adapter)
    files[TEXTS] = _texts().encode()
    files[f"{BASE_FOLDER}/config.json"] = dump_json(_base_config(), indent=2).encode()
    files[f"{BASE_FOLDER}/model.safetensors"] = _as_file(_base_tensors(), "F16")
    manifest = {
        "schema": "vlora-demo",
        "version": DEMO_VERSION,
        "synthetic": True,
        "files": {
            name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            for name, data in files.items()
        },
    }
    files[MANIFEST] = dump_json(manifest, indent=2).encode()
    return files


def _file_names(adapter: DemoAdapter) -> tuple[str, str]:
    return f"{adapter.name}/adapter_config.json", f"{adapter.name}/adapter_model.safetensors"


def _own_files() -> set[str]:
    """The names of all files but the manifest."""
    beside = ("README.md", TEXTS, f"{BASE_FOLDER}/config.json", f"{BASE_FOLDER}/model.safetensors")
    return {*beside, *(name for a in DEMO_ADAPTERS for name in _file_names(a))}


def _is_complete(path: Path) -> bool:
    """Whether ``path`` holds this version of the demo, every file as it was written."""
    try:
        manifest = json.loads(read_file(path / MANIFEST))
        files = manifest["files"]
        return (
            manifest["version"] == DEMO_VERSION
            and set(files) == _own_files()
            and all(
                hashlib.sha256(read_file(path / name)).hexdigest() == row["sha256"]
                for name, row in files.items()
            )
        )
    except (OSError, ValueError, LookupError, TypeError):
        return False


def _foreign_files(path: Path) -> list[str]:
    """What under ``path`` no demo wrote, sorted: files of other names, and every link."""
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        return [path.name]
    names = []
    for folder, folders, files in os.walk(path):
        links = [name for name in folders if (Path(folder) / name).is_symlink()]
        names += [(Path(folder) / name).relative_to(path).as_posix() for name in [*files, *links]]
    return sorted(set(names) - _own_files() - {MANIFEST})


def _peft_config(adapter: DemoAdapter) -> dict[str, Any]:
    """``adapter_config.json`` with the fields that PEFT 0.21 writes for a plain LoRA."""
    unset = (
        "alora_invocation_tokens arrow_config auto_mapping corda_config eva_config exclude_modules"
        " kasa_config layer_replication layers_pattern layers_to_transform lora_ga_config"
        " megatron_config monteclora_config revision target_parameters trainable_token_indices"
        " use_bdlora velora_config"
    )
    fields = dict.fromkeys(unset.split()) | {
        "alpha_pattern": {},
        "base_model_name_or_path": BASE_MODEL,
        "bias": "none",
        "ensure_weight_tying": False,
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "loftq_config": {},
        "lora_alpha": adapter.alpha,
        "lora_bias": False,
        "lora_dropout": 0.05,
        "megatron_core": "megatron.core",
        "modules_to_save": ["score"] if adapter.labels else None,
        "peft_type": "LORA",
        "peft_version": "0.21.2",
        "qalora_group_size": 16,
        "r": adapter.rank,
        "rank_pattern": {},
        "target_modules": list(adapter.targets),
        "task_type": "SEQ_CLS" if adapter.labels else "CAUSAL_LM",
        "use_dora": False,
        "use_qalora": False,
        "use_rslora": adapter.rslora,
    }
    return dict(sorted(fields.items()))


def _safetensors(adapter: DemoAdapter) -> bytes:
    """The adapter's tensors as one safetensors file, in the order of their names."""
    return _as_file(_tensors(adapter), adapter.dtype, nan_in=adapter.nan_in)


def _as_file(values: dict[str, Floats], kind: str, *, nan_in: str = "") -> bytes:
    """Tensors as one safetensors file of this dtype, in the order of their names."""
    dtype = {"F32": "<f4", "F16": "<f2"}[kind]
    tensors = {  # by way of fp32, which leaves fp64 to fp16 no choice of rounding
        name: array.astype("<f4").astype(dtype) for name, array in sorted(values.items())
    }
    if nan_in:
        broken = tensors[nan_in]
        broken.flat[broken.size // 2] = np.nan
    layout = [(name, kind, array.shape) for name, array in tensors.items()]
    header, _ = encode_header(layout, {"format": "pt"})
    return header + b"".join(array.tobytes() for array in tensors.values())


def _base_config() -> dict[str, Any]:
    """``config.json`` of the base model. It has no tokenizer: its tokens are bytes."""
    return {
        "_name_or_path": BASE_MODEL,
        "about": "Made, not trained: seeded random weights, by vlora_engine.demo.",
        "architectures": ["LlamaForCausalLM"],
        "bos_token_id": BEGINNING,
        "eos_token_id": BEGINNING,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "model_type": "llama",
        "rms_norm_eps": 1e-6,
        "torch_dtype": "float16",
        **demo_base_config(),
    }


def _base_tensors() -> dict[str, Floats]:
    """Every tensor of the base model under transformers' name, drawn from seeded numbers.

    The head's are larger than training starts with: else every next byte would be as likely.
    """
    config = demo_base_config()
    vocabulary = config["vocab_size"]
    tensors = {
        "model.embed_tokens.weight": 0.5 * _unit_noise("base/embed", vocabulary, HIDDEN),
        "model.norm.weight": np.ones(HIDDEN),
        "lm_head.weight": 0.1 * _unit_noise("base/head", vocabulary, HIDDEN),
    }
    for layer in range(LAYERS):
        place = f"model.layers.{layer}"
        for leaf, (parent, d_out, d_in, _) in _MODULES.items():
            weight = 0.02 * _unit_noise(f"base/{layer}/{leaf}", d_out, d_in)
            tensors[f"{place}.{parent}.{leaf}.weight"] = weight
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{place}.{norm}.weight"] = np.ones(HIDDEN)
    return tensors


def _texts() -> str:
    """Ten short texts of the demo's fields, one a paragraph."""
    return "\n\n".join(_TEN_TEXTS) + "\n"


_TEN_TEXTS = (
    "My order arrived without the power cable. Could you please send one, or tell me which shop "
    "near the station has it in stock? The receipt is attached, and the number is on the box.",
    "Thank you for writing. I have checked your account: the refund left us on Tuesday, and banks "
    "take up to five working days. If it is not there on Monday, answer this message.",
    "The tenant shall return the flat in the state in which it was handed over, fair wear and tear "
    "excepted. Either party may end this agreement by written notice of three months.",
    "The patient reports two days of fever and a dry cough, no chest pain. Lungs are clear on both "
    "sides. We advise rest, plenty of water, and to come back if breathing becomes harder.",
    "With four minutes left the visitors were one goal behind. Then the keeper slipped, the ball "
    "rolled past the post, and the whole stand sat down again without a word.",
    "SELECT city, count(*) AS orders FROM sales WHERE year = 2024 GROUP BY city ORDER BY orders "
    "DESC LIMIT 10; the answer should list the ten cities with the most orders first.",
    "In short: the report counts trains, says that one in six came late, names the two bridges "
    "that cause most of it, and asks for money to repair them before winter.",
    "The morning train leaves at seven. Le train du matin part a sept heures. Der Zug am Morgen "
    "faehrt um sieben. Il treno del mattino parte alle sette. El tren sale a las siete.",
    "Snow on the wire, and no bird sings; the lamp is low, the kettle rings. I write your name "
    "upon the pane and watch the letters turn to rain.",
    "I did not expect much from this kettle, but it boils quickly, makes little noise and looks "
    "good on the shelf. One star less because the lid is stiff. I would buy it again.",
)


def _readme() -> str:
    rows = "\n".join(f"| `{a.name}` | {a.purpose} |" for a in DEMO_ADAPTERS)
    return f"""# A synthetic collection of LoRA adapters

Nothing here was trained. `vlora_engine.demo` makes these files from seeded random numbers, the
same bytes on every machine, so that vlora-tui can be tried on what resembles a real folder.
The base model, `{BASE_MODEL}`, was not trained either: `{BASE_FOLDER}` holds a Llama of
{LAYERS} layers and hidden size {HIDDEN} with seeded random weights; its tokens are bytes. With the
ten made texts in `{TEXTS}` it is what evaluation takes for these adapters, unless told otherwise.

| adapter | what it is |
|---|---|
{rows}

Two of them need attention on purpose: `broken-nan` has to be refused or skipped, `untrained-zero-b`
holds no change at all. `{MANIFEST}` lists every file with its sha256.
"""


# ---- the numbers


def _tensors(adapter: DemoAdapter) -> dict[str, Floats]:
    """Each tensor of the adapter under its PEFT name, in float64."""
    if adapter.copy_of:
        original = next(a for a in DEMO_ADAPTERS if a.name == adapter.copy_of)
        return {
            name: values * (1 + 0.01 * _unit_noise(f"{adapter.name}/{name}", *values.shape))
            for name, values in _tensors(original).items()
        }
    tensors = {}
    for layer in range(LAYERS):
        for leaf in adapter.targets:
            parent, d_out, d_in, strength = _MODULES[leaf]
            norm = 0.3 * strength * (0.8 + 0.15 * layer)  # later layers change more
            A, B = _factors(adapter, f"{layer}/{leaf}", d_out, d_in, norm)
            module = f"base_model.model.model.layers.{layer}.{parent}.{leaf}"
            tensors[f"{module}.lora_A.weight"] = A
            tensors[f"{module}.lora_B.weight"] = B
    if adapter.labels:
        head = _kaiming(f"{adapter.name}/score", adapter.labels, HIDDEN)
        tensors["base_model.model.score.weight"] = head
    return tensors


def _factors(
    adapter: DemoAdapter, module: str, d_out: int, d_in: int, norm: float
) -> tuple[Floats, Floats]:
    """A [r, d_in] and B [d_out, r] of one module, with ``||scale * B @ A||`` about ``norm``."""
    family = adapter.family or adapter.name
    mix = _orthogonal(f"{family}/mix/{module}", adapter.rank)  # [r, r]
    strengths = _strengths(f"{family}/decay/{module}", adapter.rank)  # [r], squares sum to 1
    U = _directions(adapter, f"out/{module}", d_out)  # [d_out, r], columns of length 1
    V = _directions(adapter, f"in/{module}", d_in)  # [d_in, r]

    start_length = math.sqrt(1 / 3)  # of a row of the start
    learned = start_length * 0.4 * adapter.progress * (strengths / strengths[0])  # [r]
    A = _kaiming(f"{family}/start/{module}", adapter.rank, d_in) + _product(mix * learned, V.T)

    length = adapter.gain * math.sqrt(adapter.progress) * norm / (adapter.scale * start_length)
    B = _product(U * (length * strengths), mix.T)
    return A, B


def _directions(adapter: DemoAdapter, key: str, size: int) -> Floats:
    """Columns [size, r] of length about 1: the family's planted ones, turned, drifted, noisy."""
    family, r = adapter.family or adapter.name, adapter.rank
    planted = _unit_noise(f"{family}/planted/{key}", size, r)
    turned = _product(planted, _orthogonal(f"{adapter.name}/turn/{key}", r))
    drift = _unit_noise(f"{family}/drift/{key}", size, r)
    own = _unit_noise(f"{adapter.name}/own/{key}", size, r)
    ahead = 0.4 * (1 - adapter.progress)  # a run settles on its directions as it goes
    total = planted + adapter.turn * turned + ahead * drift + adapter.noise * own
    squares = 1 + adapter.turn * adapter.turn + ahead * ahead + adapter.noise * adapter.noise
    return total / math.sqrt(size * squares)


def _strengths(key: str, r: int) -> Floats:
    """Falling factors [r], squares of sum 1: geometric, the first square about 0.41 to 0.5."""
    decay = 0.55 + 0.05 * float(_uniform(key, 1)[0])
    squares, energy, total = [], 1.0, 0.0
    for _ in range(r):
        squares.append(energy)
        total += energy
        energy *= decay
    return np.sqrt(np.array(squares) / total)


def _orthogonal(key: str, r: int) -> Floats:
    """A Hadamard matrix with random signs / sqrt(r): orthogonal, each row a mix of all columns."""
    H = np.ones((1, 1))
    while len(H) < r:  # r is a power of 2
        H = np.block([[H, H], [H, -H]])
    signs = np.where(_uniform(key, 2, r) < 0, -1.0, 1.0)
    mix: Floats = signs[0][:, None] * H * signs[1] / math.sqrt(r)
    return mix


def _kaiming(key: str, rows: int, d_in: int) -> Floats:
    """Rows [rows, d_in] as ``torch.nn.Linear`` starts: uniform in +-1/sqrt(d_in)."""
    return _uniform(key, rows, d_in) / math.sqrt(d_in)


def _unit_noise(key: str, *shape: int) -> Floats:
    """Independent values of mean 0 and variance 1; uniform, since a normal draw needs a log."""
    return _uniform(key, *shape) * math.sqrt(3)


def _uniform(key: str, *shape: int) -> Floats:
    """Values in [-1, 1), a stream of their own for each key, so that no tensor shifts another."""
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:16], "big")
    raw = np.random.PCG64(seed).random_raw(math.prod(shape))
    return ((raw >> np.uint64(11)).astype(np.float64) / 2**52 - 1).reshape(shape)


def _product(left: Floats, right: Floats) -> Floats:
    """``left @ right`` ([m, n] by [n, p]) in one fixed order of additions, without BLAS."""
    out = np.zeros((left.shape[0], right.shape[1]))
    for j in range(left.shape[1]):
        out += left[:, j : j + 1] * right[j]
    return out
