"""The unit of work: a TOML file that names inputs, what to make of them, and where it goes.

A `Recipe` is plain data. `Recipe.to_toml` writes one that reads back equal, `resolve` turns globs
and ``~`` into the adapters that are really there. Reading and checking files is the work of
`vlora_tui.recipe.reader`; what may stand in one is written down here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vlora_engine.adapters.address import AdapterRef
from vlora_engine.compression_target import BASIS_METHODS, CompressionTarget
from vlora_engine.errors import ParameterError
from vlora_engine.merging.methods import DEFAULT_METHOD
from vlora_engine.quantization.packing import (
    BLOCK_SIZE,
    DOUBLE_QUANT,
    Quantization,
    named_quantization,
    quantization,
)

MEASURED = (*BASIS_METHODS, "codec")  # what spectra hold; names their place in the cache
CACHE = "cache"
COMPRESS_KEYS = (  # of the table, as they are written: what to compress to, and on what
    *("method", "k", "k_a", "k_b", "variance", "adaptive", "max_error", "mean_error", "budget"),
    *("layers", "dtype", "device", "spectra", "quantize", "block_size", "double_quant", "refine"),
)

_PAIR = re.compile(r"\[\n\s*(\d+),\n\s*(\d+),\n\]")  # k_a and k_b of a layer, a line each


@dataclass(frozen=True)
class AdapterInput:
    """A path or pattern to adapters, and the task name when it is given."""

    path: str
    name: str | None = None

    @property
    def ref(self) -> AdapterRef:
        """The place that the path or pattern means, as far as that can be said without a disk."""
        return AdapterRef.parse(self.path)


@dataclass(frozen=True)
class Input:
    """Where the work starts: adapters, or a subspace that is there already."""

    adapters: tuple[AdapterInput, ...] = ()
    subspace: str | None = None
    skip_bad: bool = False


@dataclass(frozen=True)
class Compress:
    """What to compress to, and on what: where spectra are, which device works."""

    target: CompressionTarget = field(default_factory=CompressionTarget)
    device: str = "auto"
    spectra: str | None = None


@dataclass(frozen=True)
class Quantize:
    """How to pack the subspace: that of the input, or what compression made of the adapters."""

    method: str = "symmetric"
    bits: int = 8
    block_size: int = BLOCK_SIZE
    loadings: bool = False
    double_quant: bool = False

    @classmethod
    def named(
        cls, name: str, *, block_size: int = BLOCK_SIZE, double_quant: bool = DOUBLE_QUANT
    ) -> Quantize:
        """The packing that a short name (``int8``, ``int4``, ``nf4``) stands for.

        Raises:
            ParameterError: No such name, or ``none``.
        """
        packed = named_quantization(name, block_size=block_size, double_quant=double_quant)
        if packed is None:
            raise ParameterError(
                "There is nothing to pack.", expected="int8, int4 or nf4", found=name
            )
        basis = packed.basis
        return cls(
            basis.method, basis.bits, basis.block_size, packed.loadings is not None,
            basis.double_quant,
        )  # fmt: skip

    def quantization(self) -> Quantization:
        """What the engine makes of it.

        Raises:
            ParameterError: Bits, method or block size out of range.
        """
        return quantization(
            self.method,
            self.bits,
            block_size=self.block_size,
            double_quant=self.double_quant,
            loadings=self.loadings,
        )


@dataclass(frozen=True)
class Export:
    """Adapters to write for who loads them; ``{task}`` in the path stands for the task's file name.

    Without ``tasks`` all of them: names are no patterns, so no pattern stands for all.

    Args:
        source: ``input`` or ``subspace``; empty is the subspace where there is one.
        drop_rest: Leave out tensors besides A and B.
        base: The base model: its folder or config.json, which GGUF may need, or the name to write.
        base_model: The name to write, whatever ``base`` is.
    """

    path: str
    tasks: tuple[str, ...] = ()
    target: str = "peft"
    verify: bool = True
    dtype: str | None = None
    alpha: float | None = None
    base_model: str | None = None
    target_modules: tuple[str, ...] | None = None
    drop_rest: bool = False
    base: str | None = None
    source: str = ""

    @property
    def base_folder(self) -> str | None:
        """Where the base model lies on this machine, if that is what ``base`` says."""
        return self.base if self.base is not None and is_base_place(self.base) else None

    @property
    def base_name(self) -> str | None:
        """The base model's name to write; None where the adapter's own stays."""
        if self.base_model or self.base is None or self.base_folder is not None:
            return self.base_model
        return self.base.removeprefix("hf://")  # as the config and the server call it


@dataclass(frozen=True)
class Merge:
    """Adapters to merge into one; ``parameters`` are those of the method.

    Args:
        layers: By pattern other weights, or a table of weights and parameters.
        normalize: None is what the method does.
        dialect: ``peft`` for that package's arithmetic.
        energy: The share of its energy that a cut of the rank leaves.
    """

    adapters: tuple[str, ...]
    path: str
    source: str = "input"
    method: str = DEFAULT_METHOD
    weights: tuple[float, ...] | None = None
    layers: Mapping[str, Any] = field(default_factory=dict)
    normalize: bool | None = None
    scale: float = 1.0
    space: str = "delta"
    dialect: str | None = None
    rank: int | None = None
    energy: float | None = None
    dtype: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Resize:
    """Adapters to write at another rank; `vlora_engine.resizing` says what the rules mean.

    ``{task}`` in the path stands for the task's file name; ``dynamic`` is a rule and its value;
    ``max_error`` is how much dW may change.
    """

    path: str
    tasks: tuple[str, ...] = ()
    rank: int | None = None
    energy: float | None = None
    dynamic: tuple[str, float] | None = None
    target: str | None = None
    max_error: float | None = None
    verify: bool = True


@dataclass(frozen=True)
class Convert:
    """Adapters or the subspace in the format of another tool.

    Args:
        to: A format out of `vlora_engine.convert`.
        path: Where it goes. Of several adapters each goes to a folder of its own in it, or to
            where ``{task}`` says.
        tasks: Names or patterns; without them all, and a subspace as a whole.
        source: ``input`` or ``subspace``; empty is the subspace where there is one.
        k: Directions, where bases are recomputed; None is all, which is exact.
        allow_loss: Leave out what the format cannot hold.
        base: For GGUF: the base model's folder or config.json.
        dtype: For GGUF: fp32, fp16, bf16 or q8_0.
    """

    to: str
    path: str
    tasks: tuple[str, ...] = ()
    source: str = ""
    k: int | None = None
    allow_loss: bool = False
    base: str | None = None
    dtype: str | None = None


@dataclass(frozen=True)
class Push:
    """What to publish on the Hub, last of all. The token is never part of a recipe.

    Args:
        repo: ``org/name``.
        path: A subspace, an adapter or a folder of adapters, which the recipe may write; None is
            the recipe's subspace.
        adapters: Push tasks of the subspace as PEFT adapters, a folder each.
        tasks: Only these; names or patterns.
        private: Of a repository that is new.
        revision: The branch; None is the main one.
        message: Commit message.
        force: Replace files of an earlier push.
    """

    repo: str
    path: str | None = None
    adapters: bool = False
    tasks: tuple[str, ...] = ()
    private: bool = False
    revision: str | None = None
    message: str | None = None
    force: bool = False

    @property
    def address(self) -> AdapterRef:
        """The repository, and its branch if one is named.

        Raises:
            ParameterError: ``repo`` is no repository's name.
        """
        asked = AdapterRef.whole_repository(self.repo)
        return AdapterRef.of_repo(asked.repo, self.revision or asked.revision)


@dataclass(frozen=True)
class Recipe:
    """The whole: every table but ``input`` may be missing.

    Args:
        max_memory: Bytes that its process may hold.
    """

    input: Input
    compress: Compress | None = None
    output: str | None = None
    exports: tuple[Export, ...] = ()
    merges: tuple[Merge, ...] = ()
    quantize: Quantize | None = None
    resizes: tuple[Resize, ...] = ()
    converts: tuple[Convert, ...] = ()
    pushes: tuple[Push, ...] = ()
    max_memory: int | None = None

    @property
    def written(self) -> tuple[Export | Merge | Resize | Convert, ...]:
        """The steps that write beside the subspace, each to its ``path``."""
        return (*self.exports, *self.merges, *self.resizes, *self.converts)

    @property
    def steps(self) -> tuple[object, ...]:
        """All that is to be done with the inputs, in order; empty where that is nothing."""
        made = (self.compress, self.quantize)
        return (*(step for step in made if step is not None), *self.written, *self.pushes)

    @property
    def subspace(self) -> str | None:
        """The subspace that the later steps work on: the one that is made, or the input."""
        return self.output or self.input.subspace

    def to_toml(self) -> str:
        """The recipe as a file that `load_recipe` reads back equal."""
        import tomli_w

        text = tomli_w.dumps(as_tables(self), multiline_strings=False)
        return _PAIR.sub(r"[\1, \2]", text)  # no text of TOML's has a line break in it here


def as_tables(recipe: Recipe) -> dict[str, Any]:
    """The recipe as nested tables, defaults left out."""
    tables: dict[str, Any] = {"input": _input_table(recipe.input)}
    if recipe.max_memory is not None:
        tables = {"max_memory": recipe.max_memory, **tables}
    if recipe.compress is not None:
        tables["compress"] = _compress_table(recipe.compress)
    if recipe.quantize is not None:
        tables["quantize"] = _changed(recipe.quantize, Quantize(), always=("method", "bits"))
    if recipe.output is not None:
        tables["output"] = {"subspace": recipe.output}
    if recipe.exports:
        tables["export"] = [
            _changed(e, Export(path=""), always=("target", "path")) for e in recipe.exports
        ]
    if recipe.merges:
        tables["merge"] = [_merge_table(m) for m in recipe.merges]
    if recipe.resizes:
        tables["resize"] = [_changed(r, Resize(path=""), always=("path",)) for r in recipe.resizes]
    if recipe.converts:
        tables["convert"] = [
            _changed(c, Convert(to="", path=""), always=("to", "path")) for c in recipe.converts
        ]
    if recipe.pushes:
        tables["push"] = [_changed(p, Push(repo=""), always=("repo",)) for p in recipe.pushes]
    return tables


def absolute(recipe: Recipe, base: Path) -> Recipe:
    """The recipe with every path absolute, relative ones taken from ``base``; ``~`` expands."""

    def whole(text: str) -> str:
        return absolute_path(text, base)

    compress = recipe.compress
    if compress is not None and compress.spectra not in (None, CACHE):
        compress = replace(compress, spectra=whole(str(compress.spectra)))
    source = recipe.input
    return replace(
        recipe,
        input=replace(
            source,
            adapters=tuple(replace(a, path=whole(a.path)) for a in source.adapters),
            subspace=None if source.subspace is None else whole(source.subspace),
        ),
        compress=compress,
        output=None if recipe.output is None else whole(recipe.output),
        exports=tuple(
            replace(e, path=whole(e.path), base=absolute_base(e.base, base)) for e in recipe.exports
        ),
        merges=tuple(
            replace(
                m,
                path=whole(m.path),
                adapters=tuple(whole(a) if is_path(a) else a for a in m.adapters),
            )
            for m in recipe.merges
        ),
        resizes=tuple(replace(r, path=whole(r.path)) for r in recipe.resizes),
        converts=tuple(
            replace(c, path=whole(c.path), base=None if c.base is None else whole(c.base))
            for c in recipe.converts
        ),
        pushes=tuple(
            replace(p, path=None if p.path is None else whole(p.path)) for p in recipe.pushes
        ),
    )


def absolute_path(text: str, base: Path) -> str:
    """A path made absolute from ``base``; a place on the Hub stays as it is."""
    ref = AdapterRef.parse(text)
    return os.path.normpath(base / ref.expanded) if ref.is_local else str(ref)


def is_base_place(text: str) -> bool:
    """Whether a base model is named by its place on this machine, and not by a name (``org/m``)."""
    return text.startswith(("/", ".", "~")) or text.endswith(".json") or os.path.exists(text)


def absolute_base(text: str | None, base: Path) -> str | None:
    """A base model's place made absolute from ``base``; its name stays as it is."""
    if text is None or not (is_base_place(text) or os.path.exists(base / text)):
        return text
    return absolute_path(text, base)


def named_inputs(paths: Sequence[str], names: Sequence[str] = ()) -> tuple[AdapterInput, ...]:
    """Entries for paths with the names that were given, one for each.

    Raises:
        ParameterError: There are more or fewer names than paths.
    """
    if names and len(names) != len(paths):
        raise ParameterError(
            "There must be one name for each adapter.",
            expected=f"{len(paths)} {'name' if len(paths) == 1 else 'names'}",
            found=f"{len(names)}",
            remedy="--names a b c, in the order of the adapters",
        )
    if any(not name.strip() for name in names):
        raise ParameterError("A task needs a name.", found=repr(list(names)))
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ParameterError(f"Two adapters are both named {twice!r}.")
    task_names: Sequence[str | None] = names or [None] * len(paths)
    return tuple(AdapterInput(path, name) for path, name in zip(paths, task_names, strict=True))


def is_path(text: str) -> bool:
    """Whether ``text`` names a path and not a task: a ``/`` in it, or a leading ``.`` or ``~``."""
    return "/" in text or text.startswith((".", "~"))


def startable(text: str | AdapterRef) -> AdapterRef:
    """The place that a text means, where work can start from it: a search on the Hub is none.

    Raises:
        ParameterError: It is none, or ill written.
    """
    ref = AdapterRef.parse(text)
    if ref.kind == "search":
        raise ParameterError(
            "A search is for looking, not for working on what it happens to find.",
            where=str(ref),
            remedy="name the adapters that were found: hf://org/name",
        )
    return ref


def _input_table(source: Input) -> dict[str, Any]:
    table: dict[str, Any] = {}
    if source.subspace is not None:
        table["subspace"] = source.subspace
    if source.adapters:
        table["adapters"] = [
            a.path if a.name is None else {"path": a.path, "name": a.name} for a in source.adapters
        ]
    if source.skip_bad:
        table["skip_bad"] = True
    return table


def _compress_table(compress: Compress) -> dict[str, Any]:
    table = _changed(compress.target, CompressionTarget(), always=("method",))
    table |= _changed(compress, Compress(), always=())
    return {name: table[name] for name in COMPRESS_KEYS if name in table}


def _merge_table(merge: Merge) -> dict[str, Any]:
    table = _changed(merge, Merge(adapters=(), path=""), always=("adapters", "method", "path"))
    table.pop("parameters", None)
    return {**table, **merge.parameters}


def _changed(value: Any, default: Any, *, always: tuple[str, ...]) -> dict[str, Any]:
    """The fields that differ from the default; TOML has no null, so None is left out."""
    table = {}
    for name in value.__dataclass_fields__:
        item = getattr(value, name)
        if name in always or (item is not None and item != getattr(default, name)):
            table[name] = list(item) if isinstance(item, tuple) else item
    return table
