"""Tensors of an adapter that are no factors: what each of them does to the base model.

They are told by their names, as PEFT, ComfyUI and the trainers write them. Those that are added to
the base are part of the change: a format that has no place for them cannot hold the adapter.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Literal

from vlora_engine.findings import Finding
from vlora_engine.formats.layout import Described
from vlora_engine.utils.naming import counted
from vlora_engine.utils.safetensors_file import ITEM_BYTES

if TYPE_CHECKING:
    from vlora_engine.adapters.model import AdapterSource

Effect = Literal["foreign", "added", "copy", "embedding", "bias", "replaces"]

# What ComfyUI puts into the base beside the pairs (comfy/weight_adapter, comfy/lora.py): added to
# weights, biases, modulation and norms, or put in their place. PEFT and servers know none of them.
_FOREIGN = re.compile(r"\.(diff|diff_b|diff_m|w_norm|b_norm|set_weight|reshape_weight)$")
_ADDED = re.compile(r"\.lora_B\.([^.]+\.)?bias$")
_COPY = re.compile(r"\.(base_layer\.weight$|original_module\.)")
_EMBEDDING = re.compile(r"\.(embed_tokens|lm_head|wte|word_embeddings|shared|embed_out)\.weight$")

WORDS: dict[Effect, str] = {
    "foreign": "added to the base, by ComfyUI alone",
    "added": "biases of the pairs, added to the base",
    "copy": "the base's own weights under adapted modules: without effect, unless the base differs",
    "embedding": "whole embeddings or output layers in place of the base's",
    "bias": "biases in place of the base's",
    "replaces": "in place of the base's, as heads are",
}
WHOLE_MATRIX = 64  # rows and columns; what is narrower is a head


def effect_of(key: str) -> Effect:
    """What a tensor that is no factor does, by its name."""
    if _FOREIGN.search(key):
        return "foreign"
    if _ADDED.search(key):
        return "added"
    if is_base_layer(key):
        return "copy"
    if key.endswith(".bias"):
        return "bias"
    return "embedding" if _EMBEDDING.search(key) else "replaces"


def is_base_layer(key: str) -> bool:
    """Whether a tensor is the base's own under an adapted module: servers skip it."""
    return _COPY.search(key) is not None


def is_foreign(key: str) -> bool:
    """Whether a tensor is one that ComfyUI alone puts into the base."""
    return _FOREIGN.search(key) is not None


def nbytes_of(described: Described) -> int:
    """How many bytes a tensor takes."""
    dtype, shape = described
    return math.prod(shape) * ITEM_BYTES[dtype]


def foreign_tensors(source: AdapterSource) -> dict[str, int]:
    """The tensors that ComfyUI alone reads and that are not all zero, with their bytes."""
    named = [key for key in source.rest if is_foreign(key)]
    if not named:
        return {}
    values = source.read_rest()
    return {key: nbytes_of(source.rest[key]) for key in named if bool(values[key].any())}


def told(keys: Mapping[str, int]) -> str:
    """Tensors in words: how many, their bytes, their kinds and one of them."""
    total = size_words(sum(keys.values()))
    ends = sorted({f".{key.rpartition('.')[2]}" for key in keys})
    first = next(iter(keys))
    if len(keys) == 1:
        return f"{first} ({total})"
    count = counted(len(keys), "tensor")
    return f"{count} ({total}; {', '.join(ends[:6])}), such as {first}"


def size_words(nbytes: int) -> str:
    """Bytes in a unit that suits them."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if nbytes >= size:
            return f"{nbytes / size:.1f} {unit}"
    return f"{nbytes} bytes"


def rest_findings(rest: Mapping[str, Described], where: str, nbytes: int) -> Iterator[Finding]:
    """What tensors beside the pairs do, and what they take of a file of ``nbytes``."""
    if not rest:
        return
    groups: dict[Effect, dict[str, int]] = {}
    for key, described in rest.items():
        groups.setdefault(effect_of(key), {})[key] = nbytes_of(described)
    parts = [f"{told(keys)}, {WORDS[effect]}" for effect, keys in groups.items()]
    count, stay = counted(len(rest), "tensor"), "is" if len(rest) == 1 else "are"
    what = f"{count} outside the modules {stay} kept bit for bit: {'; '.join(parts)}."
    yield Finding("rest-tensors", "note", what, file=where)
    if "foreign" in groups:
        yield _foreign_finding(groups["foreign"], where)
    whole = {
        key: nbytes_of(described)
        for key, described in rest.items()
        if effect_of(key) not in ("foreign", "copy") and _is_whole(described)
    }
    if whole:
        yield _whole_finding(whole, where, nbytes)
    copies = groups.get("copy")
    if copies:
        yield _copies_finding(copies, where, nbytes, alone=len(copies) == len(rest))


def _foreign_finding(keys: Mapping[str, int], where: str) -> Finding:
    what = f"{told(keys)}: part of the change, which only ComfyUI adds to the base."
    remedy = (
        "use the file in ComfyUI; a conversion refuses to lose them, and leaves them out with "
        "--allow-loss"
    )
    return Finding("foreign-tensors", "warning", what, remedy, file=where, tensor=next(iter(keys)))


def _whole_finding(keys: Mapping[str, int], where: str, nbytes: int) -> Finding:
    what = (
        f"{counted(len(keys), 'whole matrix', 'whole matrices')} "
        f"({size_words(sum(keys.values()))}{_share(keys, nbytes)}), such as {next(iter(keys))}: "
        "PEFT puts them in the place of the base's; no low rank, so no saving there."
    )
    remedy = ""
    if all(effect_of(key) == "embedding" for key in keys):
        remedy = (
            "where the vocabulary was not resized and they were not trained they are the base's "
            "own: doctor --base tells, and names the command that leaves them out"
        )
    return Finding("whole-matrices", "note", what, remedy, file=where)


def _copies_finding(keys: Mapping[str, int], where: str, nbytes: int, *, alone: bool) -> Finding:
    what = (
        f"{counted(len(keys), 'tensor')} of the base model inside "
        f"({size_words(sum(keys.values()))}{_share(keys, nbytes)}), such as {next(iter(keys))}: "
        "copies that the base has itself."
    )
    remedy = "leave them out: export --target peft --drop-rest"
    if not alone:
        remedy = (
            "save it again with save_embedding_layers=False; what else is beside the pairs acts, "
            "and --drop-rest would leave that out, too"
        )
    return Finding("base-copies", "note", what, remedy, file=where)


def _share(keys: Mapping[str, int], nbytes: int) -> str:
    return f", {100 * sum(keys.values()) / nbytes:.0f} % of the file" if nbytes else ""


def _is_whole(described: Described) -> bool:
    _, shape = described
    return len(shape) > 1 and min(shape) >= WHOLE_MATRIX
