"""Where the subspace of a recipe lies while it is made, so that the next run goes on with it.

Without a [quantize] table the build writes to the output. With one it writes beside it, to a hidden
directory, and marks that as done; packing reads it, writes the output, and it goes.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path

from vlora_engine import __version__
from vlora_engine.utils.file_names import SUBSPACE_INDEX
from vlora_engine.utils.files import discard, write_file
from vlora_engine.utils.partials import partial_path
from vlora_engine.utils.reading import read_text
from vlora_tui.recipe.model import Compress, Recipe

_MARK = ".built.part"  # in what is built: what was asked for; the name of a file half written


def built_path(recipe: Recipe, job: str) -> Path | None:
    """Where the build puts the subspace; None where nothing is written.

    Args:
        job: Names the unfinished directories, as in `partial_path`.
    """
    if recipe.output is None:
        return None
    out = Path(recipe.output)
    is_packed = recipe.compress is not None and recipe.quantize is not None
    return partial_path(out, f"{job}-built") if is_packed else out


def unfinished_build(recipe: Recipe, job: str) -> Path | None:
    """Where finished layers lie, or the whole subspace that is yet to be packed."""
    if recipe.output is None:
        return None
    if is_yet_to_be_packed(recipe, job):
        return built_path(recipe, job)
    return partial_path(Path(recipe.output), job)


def is_yet_to_be_packed(recipe: Recipe, job: str) -> bool:
    """Whether what the recipe compresses to is built, and only the packing is left."""
    built = built_path(recipe, job)
    if built is None or recipe.compress is None:
        return False
    try:
        return read_text(built / _MARK) == _asked(recipe.compress)
    except (OSError, UnicodeDecodeError):
        return False


def mark_built(built: Path, compress: Compress) -> None:
    """Note what the subspace there was built for.

    Raises:
        StorageError: The disk does not take it.
    """
    write_file(built / _MARK, _asked(compress))


def forget_built(built: Path) -> None:
    """Delete it, its mark and its index first: half of it is none."""
    for name in (_MARK, SUBSPACE_INDEX):
        with suppress(OSError):
            (built / name).unlink()
    discard(built)


def _asked(compress: Compress) -> str:
    """What is asked for; what else decides on the result are the tasks' digests."""
    return hashlib.sha256(repr((__version__, compress)).encode()).hexdigest()
