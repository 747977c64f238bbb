"""A recipe's target as the interface shows it, and what of it cannot be shown."""

from __future__ import annotations

from dataclasses import replace

from vlora_engine.compression_target import CompressionTarget


def shown_target(target: CompressionTarget) -> tuple[CompressionTarget, list[str]]:
    """A recipe's target as the screens show it, and what of it they have no place for."""
    lost = [name for name in ("k_a", "k_b", "adaptive", "refine") if getattr(target, name)]
    return replace(target, adaptive=False, refine=0).with_goal(*target.goal), lost
