"""The guides: short Markdown files beside this module, each one aim from start to end.

Their code blocks are run by the tests, in order. Words behind a block's language name packages, or
a device ("cuda"), without which it cannot run.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from vlora_engine.errors import NotFoundError

NAMES = (
    *("python", "peft", "training", "qlora"),
    *("vllm", "tgi", "ollama"),
    *("from-peft", "from-vlora", "from-lorashare"),
)
FOLDER = Path(__file__).parent


class Guide(NamedTuple):
    """One guide: the word that asks for it, its heading, and the whole in Markdown."""

    name: str
    title: str
    text: str


def guide(name: str) -> Guide:
    """The guide of this name.

    Raises:
        NotFoundError: There is none; the error names those that there are.
    """
    if name not in NAMES:
        raise NotFoundError(
            f"There is no guide {name!r}.",
            expected=", ".join(NAMES),
            found=name,
            remedy="vlora-tui guide lists them",
        )
    text = (FOLDER / f"{name}.md").read_text("utf-8")
    return Guide(name, text.partition("\n")[0].removeprefix("# "), text)


def guides() -> list[Guide]:
    """All of them, in the order in which they are listed."""
    return [guide(name) for name in NAMES]
