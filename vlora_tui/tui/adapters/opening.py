"""A recipe as the interface shows it."""

from __future__ import annotations

from vlora_tui.recipe.model import Compress
from vlora_tui.tui.core.session import Choosing


def choosing_of(compress: Compress) -> tuple[Choosing, list[str]]:
    """The choice that a recipe makes, and what of it the screens have no place for."""
    lost = [
        name
        for name, given in (
            ("k_a", compress.k_a),
            ("k_b", compress.k_b),
            ("adaptive", compress.adaptive),
            ("refine", compress.refine),
        )
        if given
    ]
    target = compress.target
    k = compress.k or max(compress.k_a or 0, compress.k_b or 0) or 1
    goal = ("k", float(k)) if target is None else (target[0], float(target[1]))
    layers = tuple(sorted(compress.layers.items()))
    return Choosing(compress.method, goal, layers, compress.dtype, compress.quantize), lost
