"""Check by headers alone whether a target takes an adapter."""

from __future__ import annotations

import math
import re
import shlex
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlora_engine.adapters.model import AdapterSource, ModuleShape
from vlora_engine.adapters.provenance import ABOUT_BYTES
from vlora_engine.errors import (
    AdapterError,
    MissingPathError,
    ParameterError,
    UnsupportedAdapterError,
    VLoRAError,
)
from vlora_engine.formats.base_model_config import find_base
from vlora_engine.formats.config import find_variant, shown, variant_error
from vlora_engine.formats.config_fields import unread
from vlora_engine.formats.gguf_architectures import (
    ARCHITECTURES,
    HEAD,
    Architecture,
    architecture_of,
)
from vlora_engine.formats.gguf_save import require_gguf
from vlora_engine.formats.rest_tensors import foreign_tensors, is_base_layer, is_foreign
from vlora_engine.quantization.dtypes import Q8_0, Q8_0_BLOCK, Q8_0_BYTES, STORAGE_DTYPES
from vlora_engine.targets.registry import Target
from vlora_engine.utils.file_names import ADAPTER_GGUF
from vlora_engine.utils.safetensors_file import ITEM_BYTES

if TYPE_CHECKING:
    from vlora_engine.formats.base_model_config import BaseConfig
    from vlora_engine.manifest.manifest import Manifest, TaskRecord

STORED = {"fp64": "F64", **STORAGE_DTYPES, "q8_0": Q8_0}  # what adapters may be stored in
_BYTES = {**ITEM_BYTES, Q8_0: Q8_0_BYTES / Q8_0_BLOCK}  # for a number


@dataclass(frozen=True)
class Facts:
    """The facts about an adapter that a target's rules need, from its headers.

    Args:
        modules: By name; a rank of 0 is one that only the data know.
        rest: How many tensors beside A and B act; ``example`` is one of them, if known. Copies of
            the base's own weights, which servers skip, are none.
        foreign: Those of them that ComfyUI alone puts into the base.
        elements: Numbers in all factors.
        name: What errors call it: a path, or a task.
    """

    modules: Mapping[str, ModuleShape]
    rest: int = 0
    example: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    elements: int = 0
    name: str | None = None
    foreign: tuple[str, ...] = ()

    @property
    def rank(self) -> int:
        """The largest rank of a module."""
        return max((shape.rank for shape in self.modules.values()), default=0)

    @property
    def base_model(self) -> str | None:
        """The base model that its config names."""
        name = self.config.get("base_model_name_or_path")
        return name if isinstance(name, str) and name else None


def facts_of(source: AdapterSource, name: str | None = None) -> Facts:
    """The facts of an adapter whose headers were read."""
    own = name or (None if source.path is None else str(source.path))
    live = foreign_tensors(source)
    rest = [key for key in source.rest if key in live or not is_foreign(key)]
    return facts_from(source.modules, rest, source.config, own)


def facts_from(
    modules: Mapping[str, ModuleShape],
    rest: Iterable[str],
    config: Mapping[str, Any],
    name: str | None,
    *,
    more: int = 0,
) -> Facts:
    """The facts of an adapter by its modules and the keys of its other tensors.

    Args:
        more: How many other tensors there are whose keys are not known.
    """
    acting = [key for key in rest if not is_base_layer(key)]
    elements = sum(s.rank * (s.d_in + s.d_out) for s in modules.values())
    foreign = tuple(key for key in acting if is_foreign(key))
    count, example = len(acting) + more, next(iter(acting), None)
    return Facts(modules, count, example, config, elements, name, foreign)


def facts_of_task(manifest: Manifest, task: TaskRecord) -> Facts:
    """The facts of a task of a subspace; the ranks of modules of its own are not in its index."""
    shared = [manifest.layers[i] for i in task.layers]
    modules = {
        layer.name: ModuleShape(rank, layer.d_in, layer.d_out, dtype, layer.kind)
        for layer, rank, dtype in zip(shared, task.ranks, task.dtypes, strict=True)
    }
    dtype = task.dtypes[0] if task.dtypes else "F32"
    modules.update(
        {outside.name: ModuleShape(0, 0, 0, dtype, outside.kind) for outside in task.own}
    )
    config = {"base_model_name_or_path": manifest.base_model, **task.config}
    return Facts(modules, task.rest, None, config, task.factor_elements, task.id)


def check_fit(
    target: Target,
    facts: Facts,
    *,
    drop_rest: bool = False,
    dtype: str | None = None,
    base: str | Path | None = None,
    out: Path | None = None,
) -> None:
    """Refuse an adapter that ``target`` would refuse, or load as something else.

    Args:
        drop_rest: Tensors besides A and B are left out.
        dtype: What A and B are to be stored in ("fp16"); None keeps their own where it may.
        base: The base model's folder or config.json, for GGUF.
        out: Where it is going to be written, for the command that a remedy names.

    Raises:
        UnsupportedAdapterError: It has what the target does not take; the error says why.
        ParameterError: The dtype is none of the target's.
        NotFoundError: GGUF, and the base model's config is not found.
        DependencyError: GGUF, and the package ``gguf`` is not installed.
    """
    _check_dtype(target, dtype)
    for misfit in misfits(target, facts, drop_rest=drop_rest, base=base, out=out):
        raise misfit
    if target.form == "gguf":
        require_gguf()


def check_config(target: Target, config: Mapping[str, Any], name: str | None = None) -> None:
    """Refuse an adapter whose config makes it something that ``target`` does not serve.

    Raises:
        UnsupportedAdapterError: A kind of LoRA, or a field that the target does not read.
    """
    for misfit in _config_misfits(target, Facts({}, config=config, name=name)):
        raise misfit


def misfits(
    target: Target,
    facts: Facts,
    *,
    drop_rest: bool = False,
    base: str | Path | None = None,
    out: Path | None = None,
) -> Iterator[VLoRAError]:
    """Everything for which ``target`` would refuse an adapter, or load it as something else.

    The one judge of it: `check_fit` raises the first, the doctor tells them all by their codes.
    """
    if target.name == "peft":
        if facts.foreign and not drop_rest:
            yield _foreign_error(facts)
        return
    if not facts.modules:
        yield AdapterError(
            "The adapter has no A and B to serve.", where=facts.name, remedy="export to peft",
            code="no-pairs",
        )  # fmt: skip
        return
    yield from _config_misfits(target, facts)
    yield from _kind_misfits(target, facts)
    if facts.rest and target.no_rest and not drop_rest:
        yield _rest_error(target, facts)
    yield from _rank_misfits(target, facts)
    if target.every_layer:
        yield from _layer_misfits(target, facts, _layers_of(base))
    if target.form == "gguf":
        yield from _gguf_misfits(facts, base, out)


def target_bytes(target: Target, facts: Facts, dtype: str | None = None) -> int:
    """Estimate the bytes of an export to a target that takes A and B alone."""
    shapes = [shape for shape in facts.modules.values() if shape.rank]
    elements = sum(s.rank * (s.d_in + s.d_out) for s in shapes)
    rank = facts.rank
    padded = sum(rank * (s.d_in + s.d_out) for s in shapes) if target.uniform else elements
    stored = shapes[0].dtype if shapes else "F32"
    item = _BYTES[STORED[dtype] if dtype in STORED else _default_dtype(target, stored)]
    payload = round((padded + max(0, facts.elements - elements)) * item)
    return payload + 2 * _HEADER_BYTES * len(facts.modules) + _CONFIG_BYTES


_HEADER_BYTES = 100  # for a tensor, in safetensors and in GGUF, about
_CONFIG_BYTES = 600 + ABOUT_BYTES


def _default_dtype(target: Target, stored: str) -> str:
    return stored if stored in target.dtypes else target.dtypes[0]


def _check_dtype(target: Target, dtype: str | None) -> None:
    if dtype is not None and STORED.get(dtype, dtype) not in target.dtypes:
        words = {stored: word for word, stored in STORED.items()}
        raise ParameterError(
            f"{target.label} is not stored in this dtype.",
            expected=", ".join(words[name] for name in target.dtypes),
            found=dtype,
        )


def _config_misfits(target: Target, facts: Facts) -> Iterator[VLoRAError]:
    variant = find_variant(facts.config)
    if variant is not None:
        found = f'"{variant.field}": {shown(facts.config.get(variant.field))}'
        yield variant_error(variant, found, facts.name or target.name)
    for unread_field in unread(facts.config, target.carries):
        name = unread_field.name
        yield UnsupportedAdapterError(
            f"{target.label} does not read {name[:80]}: {unread_field.without}.",
            where=facts.name,
            expected=f"an adapter without {name[:80]}",
            found=f"{name[:80]}: {shown(facts.config[name])}",
            remedy="export to peft, which keeps the config as it is",
            code="unread-field",
        )


def _kind_misfits(target: Target, facts: Facts) -> Iterator[VLoRAError]:
    if not target.linear_only:
        return
    for kind, noun in _KINDS.items():
        others = [name for name, shape in facts.modules.items() if shape.kind == kind]
        if others:
            yield UnsupportedAdapterError(
                f"{target.label} takes no LoRA on {noun}: {target.linear_only}.",
                where=facts.name,
                expected="linear modules alone",
                found=f"{len(others)} other(s), such as {others[0]}",
                remedy="export to peft and merge it there, or train without that module",
                code=noun,
            )


_KINDS = {"conv2d": "convolutions", "embedding": "embeddings"}


def _foreign_error(facts: Facts) -> VLoRAError:
    ends = sorted({f".{key.rpartition('.')[2]}" for key in facts.foreign})
    return UnsupportedAdapterError(
        f"PEFT does not read tensors that ComfyUI adds to the base ({', '.join(ends)}): a part of "
        "the change would be lost.",
        where=facts.name,
        expected="an adapter of A and B, heads and biases",
        found=f"{len(facts.foreign)} of them, such as {facts.foreign[0]}",
        remedy="use the file in ComfyUI, or leave them out with --drop-rest",
        code="foreign",
    )


def _rest_error(target: Target, facts: Facts) -> VLoRAError:
    example = f", such as {facts.example}" if facts.example else ""
    return UnsupportedAdapterError(
        f"{target.label} takes no tensors besides A and B: {target.no_rest}.",
        where=facts.name,
        expected="an adapter of A and B alone",
        found=f"{facts.rest} of them{example}",
        remedy="leave them out (export --drop-rest) if the model does without, or export to peft",
        code="heads",
    )


def _rank_misfits(target: Target, facts: Facts) -> Iterator[VLoRAError]:
    limit = target.max_rank
    if limit is not None and facts.rank > limit:
        whose = "vLLM's" if target.name == "portable" else f"{target.label}'s"
        yield UnsupportedAdapterError(
            f"The rank is above {whose} largest.",
            where=facts.name,
            expected=f"at most {limit}",
            found=str(facts.rank),
            remedy="lower it first: resize --target vllm; or export to sglang",
            code="rank",
        )


def _layers_of(base: str | Path | None) -> int:
    """How many layers the base model has, where it is named and says so; else 0."""
    if base is None:
        return 0
    try:
        return find_base(base, None).layers
    except VLoRAError:
        return 0


def _layer_misfits(target: Target, facts: Facts, count: int) -> Iterator[VLoRAError]:
    """A kind of module has to be there in every layer that the model has, from the first on."""
    layers: dict[tuple[str, str], set[int]] = defaultdict(set)
    for module in facts.modules:
        match = re.match(r"(.*?\.)?(\d+)\.(.+)", module)
        if match:
            layers[match[1] or "", match[3]].add(int(match[2]))
    blocks: dict[str, int] = defaultdict(int)
    for (stack, _), found in layers.items():
        blocks[stack] = max(blocks[stack], count - 1, *found)
    for (stack, leaf), found in sorted(layers.items()):
        missing = sorted(set(range(min(blocks[stack] + 1, 100_000))) - found)
        if missing:
            whose = "TGI and LoRAX drop" if target.name == "portable" else f"{target.label} drops"
            yield UnsupportedAdapterError(
                f"{whose} a kind of module everywhere if one layer lacks it.",
                where=facts.name,
                expected=f"{leaf} in every layer",
                found=f"none at {stack}{missing[0]}",
                remedy="export to vllm, sglang or peft",
                code="missing-layer",
            )
            return


# GGUF


def _gguf_misfits(facts: Facts, base: str | Path | None, out: Path | None) -> Iterator[VLoRAError]:
    try:
        architecture_for(facts, find_base(base, facts.base_model), out)
    except MissingPathError as error:
        error.code = error.code or "no-base"
        yield error
    except VLoRAError as error:
        error.code = error.code or "wrong-base"
        yield error


def architecture_for(facts: Facts, base: BaseConfig, out: Path | None = None) -> Architecture:
    """The architecture that an adapter of ``base`` is written for, its modules checked.

    Raises:
        UnsupportedAdapterError: It is none of those written here, or a module has no place in it.
        AdapterError: A module is none of this base model's.
    """
    architecture = architecture_of(base.model_type, base.class_name)
    if architecture is None:
        raise _other_architecture(facts, base, out)
    for module, shape in facts.modules.items():
        if module in HEAD and (base.tied or module not in architecture.head):
            raise _tied_head(facts, module)
        name = architecture.gguf_name(module)
        if name is None:
            leaf_names = ", ".join(architecture.leaves)
            raise UnsupportedAdapterError(
                f"llama.cpp has no module of this name in a model of {architecture.name}.",
                where=facts.name,
                expected=f"{architecture.block.format('N')} and one of {leaf_names}",
                found=module,
                remedy="is this the base model that the adapter was trained on? --base names it",
                code="modules",
            )
        block = architecture.block_of(module)
        if block is not None and block >= base.layers:
            raise _wrong_base(facts, base, f"{base.layers} layers", f"a module {module}")
        rotated = architecture.rotation_of(name)
        if rotated is not None and shape.d_out:
            rows = (base.heads if rotated == "q" else base.kv_heads) * base.head_dim
            if shape.d_out != rows or base.head_dim % 2:
                raise _wrong_base(facts, base, f"{module} with {rows} rows", f"{shape.d_out} rows")
    return architecture


def _tied_head(facts: Facts, module: str) -> VLoRAError:
    return UnsupportedAdapterError(
        "In this base model the output layer is the embedding; llama.cpp has no tensor to put its "
        "update on.",
        where=facts.name,
        found=module,
        remedy="train without lm_head, or export to peft and merge it there",
        code="modules",
    )


def _wrong_base(facts: Facts, base: BaseConfig, expected: str, found: str) -> VLoRAError:
    return AdapterError(
        "The adapter was not trained on a model of this config.",
        where=base.path,
        expected=expected,
        found=found if facts.name is None else f"{found} in {facts.name}",
        remedy="name the model that it was trained on: --base DIR",
        code="wrong-base",
    )


def _other_architecture(facts: Facts, base: BaseConfig, out: Path | None) -> VLoRAError:
    directory = out or Path("OUT")
    portable = directory.with_name(f"{directory.name}-portable")
    words = ["python", "convert_lora_to_gguf.py", str(portable), "--base", str(base.path.parent)]
    words += ["--outfile", str(directory / ADAPTER_GGUF)]
    models = sorted(kind for architecture in ARCHITECTURES.values() for kind in architecture.models)
    return UnsupportedAdapterError(
        "GGUF adapters of this architecture are not written here.",
        where=facts.name,
        expected=f"a base model of type {', '.join(models)}",
        found=f"{base.class_name or base.model_type} in {base.path}",
        remedy=f"export it with --target portable -o {shlex.quote(str(portable))}, then with "
        f"llama.cpp's own converter: {shlex.join(words)}",
        code="architecture",
    )


def used_alpha(scales: Mapping[str, float], ranks: Mapping[str, int]) -> float:
    """The one ``alpha`` of a GGUF file under which most modules keep their B: scale * rank.

    llama.cpp takes an alpha of 0 as a scale of 1, so it is never 0.
    """
    counts: dict[float, int] = defaultdict(int)
    for module, rank in ranks.items():
        alpha = scales[module] * rank
        if alpha and math.isfinite(alpha):
            counts[alpha] += 1
    return max(counts, key=lambda alpha: (counts[alpha], alpha), default=1.0)
