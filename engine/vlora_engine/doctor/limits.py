"""The largest ranks that servers can be told to take. No torch."""

from __future__ import annotations

from typing import NamedTuple

from vlora_engine.targets.registry import VLLM_RANKS


class RankLimit(NamedTuple):
    """What a server takes: ``choices`` for the largest rank, and which one it starts with.

    No choices: any rank will do.
    """

    choices: tuple[int, ...] = ()
    default: int = 0
    flag: str = ""


# Whoever reads one rank and one scale of an adapter's config (`resize --for`).
RANK_LIMITS = {
    # vllm/config/lora.py: MaxLoRARanks, LoRAConfig.max_lora_rank (vLLM 0.27)
    "vllm": RankLimit(VLLM_RANKS, 16, "--max-lora-rank"),
    **dict.fromkeys(("sglang", "tgi", "lorax", "llamacpp", "ollama", "portable"), RankLimit()),
}


def smallest_choice(limit: RankLimit, rank: int) -> int | None:
    """The smallest choice that takes ``rank``; None where none does."""
    return next((choice for choice in limit.choices if choice >= rank), None)
