"""The table of serving targets: what each takes of an adapter, and its rank limits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from vlora_engine.errors import ParameterError
from vlora_engine.formats.config_fields import ALORA
from vlora_engine.quantization.dtypes import Q8_0


@dataclass(frozen=True)
class Target:
    """A program that serves adapters, or a form that several of them take.

    Args:
        name: The word of ``--target``. label: How a sentence about it begins.
        about: What an export to it is, in a sentence.
        form: The files: a PEFT directory, or a GGUF file (and what goes with it).
        uniform: Every module gets one rank and one scale, as rank_pattern and alpha_pattern are
            not read there.
        unit_scale: That scale is 1: it is folded into B, and ``lora_alpha`` is r.
        linear_only: Why factors of embeddings and convolutions are refused; empty where they are
            taken.
        no_rest: Why tensors besides A and B are refused; empty where they are taken.
        ranks: What the server's option for the largest rank may be; empty where any rank will do.
        every_layer: Whether a kind of module that is missing in one layer is dropped in all.
        dtypes: What A and B may be stored in; by default an adapter keeps its own, if it may.
        carries: The fields of the config that change how B @ A acts and that it reads; an adapter
            with another one of them (`vlora_engine.formats.config_fields`) is refused.
    """

    name: str
    label: str
    about: str
    form: Literal["peft", "gguf"] = "peft"
    uniform: bool = True
    unit_scale: bool = False
    linear_only: str = ""
    no_rest: str = ""
    ranks: tuple[int, ...] = ()
    every_layer: bool = False
    dtypes: tuple[str, ...] = ("F32", "F16", "BF16")
    carries: frozenset[str] = frozenset()

    @property
    def max_rank(self) -> int | None:
        """The largest rank that is served; None where there is no limit."""
        return self.ranks[-1] if self.ranks else None


VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # the choices of --max-lora-rank
_IGNORED = "other keys than lora_A.weight and lora_B.weight are passed over in silence"
_GGUF = "a GGUF adapter holds A and B of linear maps, nothing else"
_ALL = (
    Target(
        "peft",
        "PEFT",
        "The adapter as it was, for PEFT and what loads its files.",
        uniform=False,
        dtypes=("F64", "F32", "F16", "BF16"),
    ),
    Target(
        "portable",
        "The portable form",
        "What every server reads the same way: one rank, the scale folded into B, 16 bit.",
        unit_scale=True,
        linear_only="servers do not agree on factors of embeddings and convolutions",
        no_rest="some servers refuse other tensors, some pass over them in silence",
        ranks=VLLM_RANKS,
        every_layer=True,
        dtypes=("F16", "BF16"),
    ),
    Target(
        "vllm",
        "vLLM",
        "One rank and one scale for all modules, as vLLM reads no patterns.",
        linear_only="its LoRA layers are linear maps",
        no_rest="it refuses modules_to_save and biases",
        ranks=VLLM_RANKS,
    ),
    Target(
        "sglang",
        "SGLang",
        "Target modules by their leaf names, one rank and one scale.",
        linear_only="its LoRA layers are linear maps",
        no_rest="it serves A and B alone",
    ),
    Target(
        "tgi",
        "TGI",
        "One rank and one scale; every module in every layer.",
        linear_only=_IGNORED,
        no_rest=_IGNORED,
        every_layer=True,
    ),
    Target(
        "lorax",
        "LoRAX",
        "One rank and one scale; every module in every layer.",
        linear_only=_IGNORED,
        no_rest=_IGNORED,
        every_layer=True,
    ),
    Target(
        "llamacpp",
        "llama.cpp",
        "A GGUF file under llama.cpp's names, its scale as alpha / rank.",
        form="gguf",
        uniform=False,
        linear_only=_GGUF,
        no_rest=_GGUF,
        dtypes=("F32", "F16", "BF16", Q8_0),
        carries=frozenset({ALORA}),
    ),
    Target(
        "ollama",
        "Ollama",
        "The GGUF file of llama.cpp with a Modelfile beside it.",
        form="gguf",
        uniform=False,
        linear_only=_GGUF,
        no_rest=_GGUF,
        dtypes=("F32", "F16", "BF16", Q8_0),
        carries=frozenset({ALORA}),
    ),
)
TARGETS: dict[str, Target] = {target.name: target for target in _ALL}


def find_target(name: str) -> Target:
    """The target of this name.

    Raises:
        ParameterError: There is none; the error names those that there are.
    """
    if name not in TARGETS:
        raise ParameterError(
            f"There is no target {name!r}.", expected=", ".join(TARGETS), found=name
        )
    return TARGETS[name]


class RankLimit(NamedTuple):
    """A server's choices for the largest rank, its default among them, and the option's name.

    No choices: any rank will do.
    """

    choices: tuple[int, ...] = ()
    default: int = 0
    flag: str = ""


# Whoever reads one rank and one scale of an adapter's config (`resize --target`).
RANK_LIMITS = {
    # vllm/config/lora.py: MaxLoRARanks, LoRAConfig.max_lora_rank (vLLM 0.27)
    "vllm": RankLimit(VLLM_RANKS, 16, "--max-lora-rank"),
    **dict.fromkeys(("sglang", "tgi", "lorax", "llamacpp", "ollama"), RankLimit()),
    "portable": RankLimit(VLLM_RANKS),
}


def smallest_choice(limit: RankLimit, rank: int) -> int | None:
    """The smallest choice that takes ``rank``; None where none does."""
    return next((choice for choice in limit.choices if choice >= rank), None)
