"""Where the subspace of a recipe lies while it is made, so that the next run goes on with it.

Without a [quantize] table the build writes to the output. With one it writes beside it, to a hidden
directory that is named after what is asked for; packing reads that, writes the output, and it goes.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from vlora_engine import __version__
from vlora_engine.utils.files import partial_path
from vlora_tui.recipe.model import Recipe


def built_path(recipe: Recipe, job: str) -> Path | None:
    """Where the build puts the subspace; None where nothing is written.

    Args:
        job: Names the unfinished directories, as in `partial_path`.
    """
    if recipe.output is None:
        return None
    out = Path(recipe.output)
    if recipe.compress is None or recipe.quantize is None:
        return out
    asked = repr((__version__, recipe.compress))  # what else decides on it: the tasks' digests
    return partial_path(out, f"{job}-{hashlib.sha256(asked.encode()).hexdigest()[:8]}")


def unfinished_build(recipe: Recipe, job: str) -> Path | None:
    """Where finished layers lie, or the whole subspace that is yet to be packed."""
    built = built_path(recipe, job)
    if built is None:
        return None
    return built if is_yet_to_be_packed(recipe, job) else partial_path(built, job)


def is_yet_to_be_packed(recipe: Recipe, job: str) -> bool:
    """Whether the build is done and lies there, and only the packing is left."""
    built = built_path(recipe, job)
    return built is not None and str(built) != recipe.output and os.path.isdir(built)
