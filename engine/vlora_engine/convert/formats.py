"""The formats that adapters and subspaces are converted to, by their names. No torch, no numpy."""

from __future__ import annotations

from vlora_engine.errors import ParameterError
from vlora_engine.interop.names import LORASHARE, VLORA_DEV

GGUF = "gguf"
PEFT = "peft"
ADAPTER_FORMATS = ("peft", "mlx", GGUF)
PEER_FORMATS = (VLORA_DEV, LORASHARE)
SUBSPACE_FORMATS = ("subspace", *PEER_FORMATS)
ALIASES = {"vlora-tui": "subspace", "vlora": VLORA_DEV, "share": LORASHARE}


def format_named(word: str) -> str:
    """The format that ``word`` names.

    Raises:
        ParameterError: There is none.
    """
    name = ALIASES.get(word, word)
    if name not in (*ADAPTER_FORMATS, *SUBSPACE_FORMATS):
        raise ParameterError(
            f"There is no format {word!r} to convert to.",
            expected=", ".join((*ADAPTER_FORMATS, *SUBSPACE_FORMATS)),
            found=word,
        )
    return name
