"""Group the keys and shapes of a PEFT file into modules and rest tensors; no data, no torch.

Key forms are those of PEFT: ``<module>.lora_A.weight`` and ``.lora_B.weight`` of linear maps and
convolutions, ``<module>.lora_embedding_A`` and ``_B`` of embeddings, each perhaps with an adapter's
name inside (``lora_A.default.weight``). Everything else is a rest tensor, under its full key.
What training wrappers left in a key (`vlora_engine.adapters.module_names`) belongs to no name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from vlora_engine.adapters.model import Kind, ModuleShape
from vlora_engine.adapters.module_names import PREFIX, KeyName, plain_rest, read_key, usual_path
from vlora_engine.errors import AdapterError, CorruptFileError, UnsupportedAdapterError, VLoRAError
from vlora_engine.formats.config import Settings
from vlora_engine.utils.safetensors_file import FLOAT_DTYPES, ITEM_BYTES

Described = tuple[str, tuple[int, ...]]  # a tensor's dtype, in safetensors' words, and its shape


@dataclass(frozen=True)
class Pair:
    """The keys of one module's two factors, and their shape."""

    key_a: str
    key_b: str
    shape: ModuleShape


@dataclass(frozen=True)
class Layout:
    """Every tensor of a file, accounted for: ``pairs`` by module (sorted), and the rest.

    ``rest_keys`` has the key in the file of every rest tensor, ``odd`` the keys that PEFT would not
    look for, taken apart.
    """

    pairs: Mapping[str, Pair]
    rest: Mapping[str, Described]
    adapter_name: str | None
    rest_keys: Mapping[str, str]
    odd: Mapping[str, KeyName]

    @property
    def stored_names(self) -> dict[str, str]:
        """The modules whose name in the file is another one, with it."""
        stored = {module: _module_in_file(pair.key_a) for module, pair in self.pairs.items()}
        return {module: name for module, name in stored.items() if module != name}


def read_layout(tensors: Mapping[str, Described], where: Path) -> Layout:
    """Group the tensors of a file by module.

    Raises:
        AdapterError: Half a pair, shapes that do not multiply, a zero size, a dtype that is not
            floating point, several adapters in one file.
        UnsupportedAdapterError: A grouped convolution.
    """
    factors: dict[str, dict[str, str]] = {}
    rest: dict[str, Described] = {}
    names: set[str] = set()
    rest_keys: dict[str, str] = {}
    odd: dict[str, KeyName] = {}
    for key, described in tensors.items():
        check_name(key, where)
        split = split_key(key)
        if split is None:
            plain = plain_rest(key)
            if plain in rest or (plain in tensors and plain != key):
                plain = key  # both are there: neither may hide the other
            rest[plain], rest_keys[plain] = described, key
            continue
        module, side, name = split
        if name:
            names.add(name)
        path = usual_path(module)
        if path is None:
            found = read_key(module)
            path = found.path
            if found.key != module:
                odd[key] = found
        module = path
        sides = factors.setdefault(module, {})
        if side in sides:
            raise _several_error(module, sides[side], key, where)
        sides[side] = key
    pairs = {module: pair_of(module, factors[module], tensors, where) for module in sorted(factors)}
    return Layout(
        pairs=pairs,
        rest=dict(sorted(rest.items())),
        adapter_name=min(names, default=None),
        rest_keys=rest_keys,
        odd=odd,
    )


def _module_in_file(key_a: str) -> str:
    """The module as its key calls it, without PEFT's prefix at the start."""
    split = split_key(key_a)
    return key_a if split is None else split[0].removeprefix(PREFIX)


def check_ranks(layout: Layout, settings: Settings, config_path: Path, where: Path) -> None:
    """Raise if a tensor's rank is not what the config says: PEFT cannot load such a file.

    Raises:
        AdapterError: Names the first tensor and says how many disagree.
    """
    wrong = [
        (module, pair, settings.rank_of(module))
        for module, pair in layout.pairs.items()
        if pair.shape.rank != settings.rank_of(module)
    ]
    if not wrong:
        return
    module, pair, expected = wrong[0]
    ranks = {pair.shape.rank for pair in layout.pairs.values()}
    found = pair.shape.rank
    advice = f'set "r": {found}' if len(ranks) == 1 else "set r and rank_pattern"
    raise AdapterError(
        f"The rank of {len(wrong)} of {len(layout.pairs)} modules disagrees with the config.",
        module=module,
        file=where,
        tensor=pair.key_a,
        expected=f"rank {expected}, as r or rank_pattern of {config_path.name} says",
        found=f"rank {found}, shape {list(pair.shape.shape_a)}",
        remedy=f"{advice} in {config_path} if the tensors are right (lora_alpha is divided by r, "
        "so look at it too), or find the config that belongs to them",
        code="rank-disagrees",
    )


def split_key(key: str) -> tuple[str, str, str] | None:
    """Module, side ("A", "B", "embedding_A", "embedding_B") and adapter name inside ``key``.

    None for a key that is no factor.
    """
    at = key.rfind(".lora_")
    if at <= 0:
        return None
    tail = key[at + 6 :]
    side = _SIDES.get(tail)
    if side is not None:
        return key[:at], side, ""
    match = _NAMED.match(tail)
    if match is None:
        return None
    side = match["side"] or match["embedding"]
    return key[:at], side, match["name"] or match["embedding_name"]


_SIDES = {
    "A.weight": "A",
    "B.weight": "B",
    "embedding_A": "embedding_A",
    "embedding_B": "embedding_B",
}
_NAMED = re.compile(
    r"(?P<side>[AB])\.(?P<name>[^.]+)\.weight\Z"
    r"|(?P<embedding>embedding_[AB])\.(?P<embedding_name>[^.]+)\Z"
)


def pair_of(
    module: str, sides: Mapping[str, str], tensors: Mapping[str, Described], where: Path
) -> Pair:
    """The two factors of a module from their keys by side.

    Raises:
        AdapterError: As `read_layout`. UnsupportedAdapterError: A grouped convolution.
    """
    try:
        return _pair_of(module, sides, tensors, where)
    except VLoRAError as error:
        error.module = module
        raise


def _pair_of(
    module: str, sides: Mapping[str, str], tensors: Mapping[str, Described], where: Path
) -> Pair:
    key_a = sides.get("A") or sides.get("embedding_A")
    key_b = sides.get("B") or sides.get("embedding_B")
    if key_a is None or key_b is None or len(sides) > 2 or ("A" in sides) != ("B" in sides):
        raise _half_error(module, sides.values(), where)
    (dtype_a, shape_a), (dtype_b, shape_b) = tensors[key_a], tensors[key_b]
    if len(shape_a) == 2 and len(shape_b) == 2 and shape_a[0] == shape_b[1] != 0:
        kind: Kind = "linear" if "A" in sides else "embedding"
        d_in, d_out = shape_a[1], shape_b[0]
    else:
        kind = "conv2d"
        d_in, d_out = _conv_dimensions(key_a, shape_a, key_b, shape_b, where)
        if "A" not in sides:
            raise _product_error(key_a, shape_a, shape_b, where)
    if d_in == 0 or d_out == 0:
        raise _empty_error(key_a if d_in == 0 else key_b, shape_a if d_in == 0 else shape_b, where)
    if dtype_a not in FLOAT_DTYPES or dtype_b not in FLOAT_DTYPES:
        wrong_a = dtype_a not in FLOAT_DTYPES
        raise AdapterError(
            f"A factor of module {module!r} is not made of floating-point numbers.",
            file=where,
            tensor=key_a if wrong_a else key_b,
            expected="F32, F16, BF16, F64 or an 8-bit float",
            found=dtype_a if wrong_a else dtype_b,
            remedy="save the adapter again in bf16, fp16 or fp32; quantized factors are not read",
            code="factor-dtype",
        )
    wider = dtype_a if ITEM_BYTES[dtype_a] >= ITEM_BYTES[dtype_b] else dtype_b
    return Pair(key_a, key_b, ModuleShape(shape_a[0], d_in, d_out, wider, kind, shape_a, shape_b))


def _conv_dimensions(
    key_a: str, shape_a: tuple[int, ...], key_b: str, shape_b: tuple[int, ...], where: Path
) -> tuple[int, int]:
    """d_in (channels times kernel) and d_out of a convolution; 1-D and 3-D ones are alike.

    A (r, in / groups, *kernel) is seen as (r, in * kernel), B (out, r, 1, ...) as (out, r).
    """
    for key, shape in ((key_a, shape_a), (key_b, shape_b)):
        if len(shape) < 2 or 0 in shape:
            raise _empty_error(key, shape, where)
    convolution = 3 <= len(shape_a) == len(shape_b) <= 5 and set(shape_b[2:]) == {1}
    rank = shape_a[0]
    if convolution and shape_b[1] != rank and rank % shape_b[1] == 0:
        raise UnsupportedAdapterError(
            "A module is a grouped convolution, whose update is not B @ A.",
            file=where,
            tensor=key_b,
            expected=f"B of shape [out, {rank}, 1, 1]",
            found=f"shape {list(shape_b)} beside A {list(shape_a)}",
            remedy="retrain it without that module, "
            "or pass --allow-unsupported to carry it along as it is",
            code="grouped-convolution",
        )
    if not convolution or shape_b[1] != rank:
        raise _product_error(key_a, shape_a, shape_b, where)
    return math.prod(shape_a[1:]), shape_b[0]


def check_name(key: str, where: Path) -> None:
    """Raise if a tensor's name has characters that cannot be printed.

    Raises:
        CorruptFileError: It has.
    """
    if not key.isprintable():
        raise CorruptFileError(
            "A tensor's name has characters that no module has.",
            where=where,
            expected="printable text",
            found=ascii(key)[:80],
            remedy="do not use this file: it was damaged, or made to do damage",
            code="corrupt-file",
        )


def _product_error(
    key_a: str, shape_a: tuple[int, ...], shape_b: tuple[int, ...], where: Path
) -> AdapterError:
    return AdapterError(
        "The two factors of a module do not multiply.",
        file=where,
        tensor=key_a,
        expected="A [r, in] and B [out, r] with the same r",
        found=f"A {list(shape_a)} and B {list(shape_b)}",
        remedy="save the adapter again where it was trained; one tensor is not its own",
        code="factors-disagree",
    )


def _half_error(module: str, keys: Iterable[str], where: Path) -> AdapterError:
    keys = sorted(keys)
    other = {"A": "B", "B": "A"}
    missing = ", ".join(
        re.sub(r"lora_(embedding_)?([AB])", lambda m: f"lora_{m[1] or ''}{other[m[2]]}", key)
        for key in keys
    )
    return AdapterError(
        f"Module {module!r} has only one of its two factors.",
        file=where,
        tensor=keys[0],
        expected=f"{missing} beside it" if len(keys) == 1 else "lora_A and lora_B of one kind",
        found=", ".join(keys) if len(keys) > 1 else "no such tensor",
        remedy="save or download the adapter again: it is not complete",
        code="half-pair",
    )


def _several_error(module: str, first: str, second: str, where: Path) -> AdapterError:
    return AdapterError(
        f"The file holds two tensors for the same factor of module {module!r}.",
        module=module,
        file=where,
        tensor=second,
        expected="one adapter per file",
        found=f"{first} and {second}",
        remedy="save each adapter into its own directory: model.save_pretrained(dir) in PEFT",
        code="several-in-one-file",
    )


def _empty_error(key: str, shape: tuple[int, ...], where: Path) -> AdapterError:
    return AdapterError(
        "A factor has no elements, or is not a matrix.",
        file=where,
        tensor=key,
        expected="a matrix with at least one row and one column",
        found=f"shape {list(shape)}",
        remedy="gather the shards before saving (DeepSpeed ZeRO-3: GatheredParameters; FSDP: "
        "summon_full_params), then save the adapter again",
        code="empty-factor",
    )
