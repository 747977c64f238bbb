"""An adapter's data: per module A, B and a scale; the rest tensors; the config as found.

An adapter's effect on module m is ``dW = scale * B @ A`` with A (r, d_in) and B (d_out, r).
Two forms of it: `LoRAWeights` holds everything in memory, an `AdapterSource` reads one module at
a time. The engine's builds take sources, so that a collection never has to fit in memory.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from vlora_engine.adapters.provenance import Origin, Provenance
from vlora_engine.adapters.unchanged import require_unchanged
from vlora_engine.errors import AdapterError, CollectionError, ParameterError
from vlora_engine.utils.regex import PLAIN, Budget, bounded, matches_end
from vlora_engine.utils.safetensors_file import dtype_name
from vlora_engine.utils.tensor_writer import element_bytes

if TYPE_CHECKING:
    from torch import Tensor

Kind = Literal["linear", "conv2d", "embedding"]
Side = Literal["a", "b", "A", "B"]


@dataclass(frozen=True)
class ModuleShape:
    """One module of an adapter as its file has it; A is seen as (rank, d_in), B as (d_out, rank).

    ``shape_a`` and ``shape_b`` are the shapes on disk: those of a Conv2d have four dimensions.
    """

    rank: int
    d_in: int
    d_out: int
    dtype: str
    kind: Kind = "linear"
    shape_a: tuple[int, ...] = ()
    shape_b: tuple[int, ...] = ()

    @property
    def fits(self) -> tuple[str, int, int]:
        """A key that is equal for modules that can be compressed together; ranks may differ."""
        return (form_word(self.kind, self.shape_a[1:]), self.d_in, self.d_out)

    def at_rank(self, rank: int) -> ModuleShape:
        """The same module at another rank."""
        shape_a, shape_b = (rank, *self.shape_a[1:]), (self.shape_b[0], rank, *self.shape_b[2:])
        return replace(self, rank=rank, shape_a=shape_a, shape_b=shape_b)


def form_word(kind: Kind, tail_a: Sequence[int]) -> str:
    """A kind with the kernel of a convolution, whose equal d_in does not make it alike."""
    kernel = "x".join(str(n) for n in tail_a[1:]) if kind == "conv2d" else ""
    return f"{kind} {kernel}".strip()


@runtime_checkable
class AdapterSource(Protocol):
    """An adapter that is read one module at a time. Reading may happen from several threads."""

    @property
    def path(self) -> Path | None:
        """Its path, if it is on a disk."""

    @property
    def config(self) -> Mapping[str, Any]:
        """adapter_config.json as found (empty when there is none)."""

    @property
    def modules(self) -> Mapping[str, ModuleShape]:
        """The modules by name, in sorted order, without PEFT's ``base_model.model.`` prefix."""

    @property
    def scales(self) -> Mapping[str, float]:
        """The scale of every module."""

    @property
    def rest(self) -> Mapping[str, tuple[str, tuple[int, ...]]]:
        """dtype and shape of every tensor that is no part of a module, under its full key."""

    @property
    def nbytes(self) -> int:
        """Bytes of the adapter's files as stored."""

    def read(self, module: str) -> tuple[Tensor, Tensor]:
        """A (rank, d_in) and B (d_out, rank) of one module, in their own dtype."""

    def read_rest(self) -> dict[str, Tensor]:
        """The rest tensors, bit for bit."""

    def digest(self) -> str:
        """sha256 over the tensors and what of the config changes their meaning."""


@dataclass
class LoRAWeights:
    """An adapter in memory.

    Args:
        layer_names: The modules, sorted.
        lora_a: Per module A (rank, d_in).
        lora_b: Per module B (d_out, rank).
        rank: The adapter's nominal rank (``r`` of its config); modules may differ from it.
        metadata: adapter_config.json as found.
        scales: Per module the scale; by default what PEFT derives from ``metadata``
            (1.0 where it names no ``lora_alpha``).
        rest: Every other tensor under its full key, kept bit for bit.
        shapes: For modules that are not plain linear maps, how they lie on disk.
        source: The directory or file it came from, and the bytes that it takes there.
        provenance: What it was made of, where that is not the adapter at ``source`` as it is.
    """

    layer_names: list[str]
    lora_a: dict[str, Tensor]
    lora_b: dict[str, Tensor]
    rank: int
    metadata: dict[str, Any] = field(default_factory=dict)
    scales: dict[str, float] = field(default_factory=dict)
    rest: dict[str, Tensor] = field(default_factory=dict)
    shapes: dict[str, ModuleShape] = field(default_factory=dict)
    source: str | None = None
    stored_bytes: int = 0
    provenance: Provenance | None = None

    def __post_init__(self) -> None:
        for name in self.layer_names:
            a, b = self.lora_a.get(name), self.lora_b.get(name)
            if a is None or b is None:
                raise AdapterError(
                    f"Module {name!r} has only one of its two factors.",
                    where=self.source,
                    expected="A and B",
                    found="no A" if a is None else "no B",
                )
            if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1]:
                raise AdapterError(
                    f"The factors of module {name!r} do not multiply.",
                    where=self.source,
                    expected="A (r, d_in) and B (d_out, r)",
                    found=f"A {tuple(a.shape)} and B {tuple(b.shape)}",
                )
        missing = [name for name in self.layer_names if name not in self.scales]
        if missing:
            ranks = {name: self.lora_a[name].shape[0] for name in missing}
            self.scales = {**self.scales, **module_scales(self.metadata, ranks)}

    def __repr__(self) -> str:
        return f"LoRAWeights(rank={self.rank}, layers={len(self.layer_names)})"

    def delta(self, layer: str) -> Tensor:
        """The dense weight change of one module, (d_out, d_in), in fp64; for checks and tests."""
        return self.scales[layer] * (self.lora_b[layer].double() @ self.lora_a[layer].double())


def provenance_of(adapter: LoRAWeights | AdapterSource) -> Provenance:
    """What an adapter was made of: what it says itself, or the files at its path."""
    weights = adapter.weights if isinstance(adapter, MemorySource) else adapter
    if isinstance(weights, LoRAWeights):
        place = weights.source
        if weights.provenance is not None:
            return weights.provenance
    else:
        place = None if weights.path is None else str(weights.path)
    return Provenance((Origin.at(place),) if place else ())


class MemorySource:
    """An `AdapterSource` over weights in memory."""

    def __init__(self, weights: LoRAWeights) -> None:
        self.weights = weights
        self.path = Path(weights.source) if weights.source else None
        self.config = weights.metadata
        self.modules = {
            name: self._shape(name, dtype_name(weights.lora_a[name].dtype))
            for name in sorted(weights.layer_names)
        }
        self.scales = {name: float(weights.scales[name]) for name in self.modules}
        self.rest = {
            name: (dtype_name(t.dtype), tuple(t.shape)) for name, t in sorted(weights.rest.items())
        }

    @property
    def nbytes(self) -> int:
        if self.weights.stored_bytes:
            return self.weights.stored_bytes
        factors = [*self.weights.lora_a.values(), *self.weights.lora_b.values()]
        return sum(t.numel() * t.element_size() for t in [*factors, *self.weights.rest.values()])

    def read(self, module: str) -> tuple[Tensor, Tensor]:
        return self.weights.lora_a[module], self.weights.lora_b[module]

    def read_rest(self) -> dict[str, Tensor]:
        return {name: self.weights.rest[name] for name in self.rest}

    def digest(self) -> str:
        return content_digest(self)

    def _shape(self, name: str, dtype: str) -> ModuleShape:
        a, b = self.weights.lora_a[name], self.weights.lora_b[name]
        shape = self.weights.shapes.get(name)
        return ModuleShape(
            rank=a.shape[0],
            d_in=a.shape[1],
            d_out=b.shape[0],
            dtype=dtype,
            kind=shape.kind if shape else "linear",
            shape_a=shape.shape_a if shape else tuple(a.shape),
            shape_b=shape.shape_b if shape else tuple(b.shape),
        )


def read_modules(source: AdapterSource, modules: Sequence[str]) -> Sequence[tuple[Tensor, Tensor]]:
    """A and B of several modules, read in one go where they lie side by side in a file.

    They may share memory, which stays until the last of them is let go.
    """
    read_many = getattr(source, "read_many", None)
    found: Sequence[tuple[Tensor, Tensor]]
    found = [source.read(module) for module in modules] if read_many is None else read_many(modules)
    return found


def read_module_into(source: AdapterSource, module: str, a: Tensor, b: Tensor) -> None:
    """Read A and B of one module into places of their shapes, whose dtype may be another."""
    read_into = getattr(source, "read_into", None)
    if read_into is None or not read_into(module, a, b):
        [(a_as_read, b_as_read)] = read_modules(source, [module])
        a.copy_(a_as_read)
        b.copy_(b_as_read)


def nominal_rank(source: AdapterSource) -> int:
    """``r`` of the config, or the rank that most modules have."""
    rank = source.config.get("r")
    if type(rank) is int and rank > 0:
        return rank
    ranks = Counter(shape.rank for shape in source.modules.values())
    return max(ranks, key=lambda r: (ranks[r], r), default=0)


def as_source(adapter: LoRAWeights | AdapterSource) -> AdapterSource:
    """An adapter as something that is read module by module."""
    return MemorySource(adapter) if isinstance(adapter, LoRAWeights) else adapter


class ContentHash:
    """sha256 over an adapter's names, scales and bytes; the same for a file and for memory.

    Modules are added in sorted order, then the rest tensors in sorted order.
    """

    def __init__(self) -> None:
        self._sha = hashlib.sha256()

    def add_module(self, name: str, scale: float, a: Tensor, b: Tensor) -> None:
        self._sha.update(f"{name}\0{scale!r}\0".encode())
        self._add(a)
        self._add(b)

    def add_rest(self, name: str, tensor: Tensor) -> None:
        self._sha.update(f"{name}\0".encode())
        self._add(tensor)

    def hexdigest(self) -> str:
        return self._sha.hexdigest()

    def _add(self, tensor: Tensor) -> None:
        self._sha.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        for piece in element_bytes(tensor):
            self._sha.update(piece)


def hashed_names(source: AdapterSource) -> list[tuple[str, str]]:
    """Every module with the name that its content is hashed under, in the order of hashing.

    An adapter that is read under other names (``hashed`` has its own) is the same adapter.
    """
    own: Mapping[str, str] = getattr(source, "hashed", {})
    names = [(name, own.get(name, name)) for name in source.modules]
    return sorted(names, key=lambda pair: pair[1]) if own else names


def content_digest(source: AdapterSource) -> str:
    """The `ContentHash` of a whole adapter."""
    content = ContentHash()
    for name, hashed in hashed_names(source):
        content.add_module(hashed, source.scales[name], *source.read(name))
    for name, tensor in sorted(source.read_rest().items()):
        content.add_rest(name, tensor)
    return content.hexdigest()


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are the same, bit for bit."""
    import torch

    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    if not a.numel():
        return True
    first, second = (t.detach().cpu().contiguous().reshape(-1).view(torch.uint8) for t in (a, b))
    return torch.equal(first, second)


def padded(factor: Tensor, rank: int, dim: int) -> Tensor:
    """``factor`` with zeros up to ``rank`` along a dimension."""
    missing = rank - factor.shape[dim]
    if missing <= 0:
        return factor
    import torch

    shape = list(factor.shape)
    shape[dim] = missing
    return torch.cat([factor, factor.new_zeros(shape)], dim)


def module_scales(config: Mapping[str, Any], ranks: Mapping[str, int]) -> dict[str, float]:
    """The scale of every module by PEFT's rule.

    ``alpha_pattern`` overrides ``lora_alpha`` for the modules it matches; the rank is that of the
    tensor. ``scale = alpha / sqrt(r)`` with ``use_rslora``, else ``alpha / r``. A config without
    ``lora_alpha`` means a scale of 1.
    """
    alpha = config.get("lora_alpha")
    pattern = config.get("alpha_pattern") or {}
    rslora = bool(config.get("use_rslora"))
    scales = {}
    budget = Budget()
    for module, rank in ranks.items():
        module_alpha = match_pattern(pattern, module, alpha, budget)
        if module_alpha is None or rank == 0:
            scales[module] = 1.0
        else:
            scales[module] = float(module_alpha) / (math.sqrt(rank) if rslora else rank)
    return scales


def match_pattern(
    pattern: Mapping[str, Any], module: str, default: Any, budget: Budget | None = None
) -> Any:
    """The value of the first pattern that matches the end of a module's name, as PEFT matches.

    Raises:
        ParameterError: A pattern takes too long to match.
    """
    budget = budget or Budget()
    for key, value in pattern.items():
        if PLAIN.match(key):
            if matches_end(key, module):
                return value
            continue
        try:
            regex = bounded(rf"(.*\.)?({key})$", budget)
        except ParameterError:  # it is none
            budget.spend(0)  # which ends it where making them took too long
            continue
        if regex.matches(module, budget):
            return value
    return default


_KEY = re.compile(
    r"^(?:base_model\.model\.)?(?P<module>.+)\.lora_(?P<side>[AB])(?:\.\w+)?\.weight$"
)


def parse_state_dict(
    state_dict: Mapping[str, Tensor],
) -> tuple[dict[str, Tensor], dict[str, Tensor], list[str]]:
    """Group a PEFT state dict by module: ``(lora_a, lora_b, layer_names)``.

    Keys that belong to no linear module are left out here; `load_adapter` keeps them as rest
    tensors.

    Raises:
        AdapterError: A module has only one of its two factors (the first library drops it).
    """
    sides: dict[str, dict[str, Tensor]] = {"A": {}, "B": {}}
    for key, tensor in state_dict.items():
        match = _KEY.match(key)
        if match:
            sides[match["side"]][match["module"]] = tensor
    lonely = sorted(sides["A"].keys() ^ sides["B"].keys())
    if lonely:
        raise AdapterError(
            f"{len(lonely)} module(s) have only one of their two factors.",
            where=lonely[0],
            expected="lora_A and lora_B for every module",
            found="no lora_B" if lonely[0] in sides["A"] else "no lora_A",
        )
    return sides["A"], sides["B"], sorted(sides["A"])


def stack_lora_weights(adapters: Sequence[LoRAWeights], side: Side) -> dict[str, Tensor]:
    """Per module one row per adapter, the flattened factor of one side: (N, r * d).

    Raises:
        CollectionError: A module is missing in one adapter or its shapes differ; nothing is
            intersected away in silence.
        ParameterError: ``side`` is neither "a" nor "b" ("A" and "B" are the same).
    """
    import torch

    if side not in ("a", "b", "A", "B"):
        raise ParameterError("A side is 'a' or 'b'.", found=repr(side))
    of_a = side in ("a", "A")
    if not adapters:
        raise CollectionError("There are no adapters to stack.")
    factors = [adapter.lora_a if of_a else adapter.lora_b for adapter in adapters]
    for i, factor in enumerate(factors):
        difference = factors[0].keys() ^ factor.keys()
        if difference:
            raise CollectionError(
                "The adapters do not have the same modules.",
                where=f"adapter {i}, module {min(difference)!r}",
                remedy="stack only adapters of one module set",
            )
    stacked = {}
    for name in sorted(factors[0]):
        shapes = {tuple(factor[name].shape) for factor in factors}
        if len(shapes) > 1:
            raise CollectionError(
                f"Module {name!r} has different shapes.", found=str(sorted(shapes))
            )
        stacked[name] = torch.stack([factor[name].reshape(-1) for factor in factors])
    return stacked


def to_memory(source: AdapterSource) -> LoRAWeights:
    """``source`` with all its tensors read."""
    if isinstance(source, MemorySource):
        return source.weights
    pairs = {name: source.read(name) for name in source.modules}
    rest = source.read_rest()
    require_unchanged([source])
    return LoRAWeights(
        layer_names=list(pairs),
        lora_a={name: a for name, (a, _) in pairs.items()},
        lora_b={name: b for name, (_, b) in pairs.items()},
        rank=nominal_rank(source),
        metadata=dict(source.config),
        scales=dict(source.scales),
        rest=rest,
        shapes={name: s for name, s in source.modules.items() if s.kind != "linear"},
        source=None if source.path is None else str(source.path),
        stored_bytes=source.nbytes,
    )
