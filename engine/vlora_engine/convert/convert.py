"""From one format to another: what the target cannot hold is said first, what was written is read.

Adapters become PEFT, MLX-LM or GGUF directories, one each. Subspaces become ours or a peer's: bases
and loadings as they are where the target has the same ones, else computed anew, exactly.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlora_engine.adapters.model import (
    AdapterSource,
    LoRAWeights,
    MemorySource,
    provenance_of,
    to_memory,
)
from vlora_engine.catalog.read import is_subspace, read_manifest
from vlora_engine.convert.formats import ADAPTER_FORMATS, GGUF, PEFT, format_named
from vlora_engine.convert.losses import Loss, losses, outline_of, outlines_of
from vlora_engine.errors import ParameterError, VLoRAError
from vlora_engine.formats.mlx_save import save_mlx
from vlora_engine.interop.names import LORASHARE, VLORA_DEV
from vlora_engine.manifest.manifest import Manifest, TaskRecord
from vlora_engine.targets import check_fit, facts_of, facts_of_task, find_target
from vlora_engine.targets.names import name_notes, named_for_base
from vlora_engine.targets.save import save_adapter
from vlora_engine.targets.shape import without_foreign
from vlora_engine.targets.verify import require_alike, verify_adapter
from vlora_engine.utils.files import directory_bytes, discard
from vlora_engine.utils.naming import slugs
from vlora_engine.utils.output_checks import SameThere, check_output, keep_same, require_apart
from vlora_engine.utils.outputs import MadeCheck, new_directory
from vlora_engine.utils.progress import CancelCheck, Progress, ProgressCallback
from vlora_engine.utils.run_context import RunContext

if TYPE_CHECKING:
    from vlora_engine.shared_subspace import SharedSubspace

METHODS = {VLORA_DEV: "flat", LORASHARE: "columns"}
STAGE = "convert"
STOPPED = "Stopped as asked; nothing of the conversion was left."


@dataclass
class Conversion:
    """What is to be converted into what.

    Args:
        to: The format. adapters: By name. whole: The directory of a subspace that is converted as
            a whole; then there are no adapters.
        outputs: By name the directory that each adapter goes to; a subspace has one, under "".
        base, dtype: As `save_adapter` has them, for GGUF.
        names: Of the adapters or tasks.
        losses: What the format cannot hold.
        how: One sentence on how a subspace's bases are come by.
    """

    to: str
    adapters: dict[str, AdapterSource]
    outputs: dict[str, Path]
    whole: Path | None = None
    k: int | None = None
    base: str | None = None
    dtype: str | None = None
    names: list[str] = field(default_factory=list)
    losses: list[Loss] = field(default_factory=list)
    how: str = ""

    def as_dict(self) -> dict[str, Any]:
        """All of it as values for JSON."""
        return {
            "to": self.to,
            "from": None if self.whole is None else str(self.whole),
            "tasks": self.names,
            "outputs": [str(path) for path in self.outputs.values()],
            "losses": [{"what": loss.what, "serious": loss.serious} for loss in self.losses],
            "how": self.how or None,
        }


@dataclass(frozen=True)
class Converted:
    """One directory that was written and read again.

    Args:
        error: The largest relative error of dW of what was read against what was meant.
        notes: Remarks on names, or from computing its bases.
        skipped: The same was there already, and stayed as it was.
    """

    name: str
    path: Path
    nbytes: int
    error: float
    notes: tuple[str, ...] = ()
    skipped: bool = False


def plan(
    to: str,
    out: Path,
    *,
    adapters: Mapping[str, AdapterSource] | None = None,
    whole: Path | None = None,
    k: int | None = None,
    base: str | None = None,
    dtype: str | None = None,
) -> Conversion:
    """Say what would be written where, and what would be lost; writes nothing.

    Args:
        to: One of the formats.
        out: The directory to make; of several adapters the one that holds a directory for each.
        adapters: What is converted, by name; or ``whole``, the directory of a subspace.
        k: Where bases are recomputed: how many directions; by default all, which is exact.
        base: For GGUF and PEFT: the base model's folder or config.json.
        dtype: For GGUF: fp32, fp16, bf16 or q8_0; by default an adapter's own.

    Raises:
        ParameterError: The target makes no sense for what is given, or is what is read.
        UnsupportedAdapterError: It cannot hold a kind of module.
        NotFoundError: GGUF, and the base model's config is not found.
    """
    to, given = format_named(to), dict(adapters or {})
    if whole is not None:
        outlines = outlines_of(whole)
    else:
        outlines = [outline_of(name, source) for name, source in given.items()]
    names = [outline.name for outline in outlines]
    conversion = Conversion(to, given, {"": out}, whole, k, base, dtype, names)
    require_use(to, base, dtype)
    if to in ADAPTER_FORMATS:
        conversion.outputs = _folders(names, out, single=whole is None and len(names) == 1)
    else:
        require_sense(to, names, whole, k)
        conversion.how = _how(conversion)
    own = [whole, *(source.path for source in given.values())]
    require_apart([*conversion.outputs.values()], [path for path in own if path])
    conversion.losses = losses(to, outlines)
    if to == GGUF:
        check_gguf(given, whole, names, base=base, dtype=dtype)
    return conversion


def require_use(to: str, base: str | None, dtype: str | None) -> None:
    """Refuse what the format has no use for.

    Raises:
        ParameterError: It has none.
    """
    uses = {"base": (base, (GGUF, PEFT)), "dtype": (dtype, (GGUF,))}
    for name, (value, formats) in uses.items():
        if value is not None and to not in formats:
            raise ParameterError(
                f"The format {to} has no use for a {name}.",
                expected=f"{name} with {' or '.join(formats)}",
            )


def check_gguf(
    adapters: Mapping[str, AdapterSource],
    whole: Path | None,
    tasks: Sequence[str],
    *,
    base: str | None,
    dtype: str | None,
) -> None:
    """Refuse by headers what llama.cpp has no place for; tensors besides A and B are losses.

    Raises:
        UnsupportedAdapterError, AdapterError, ParameterError, NotFoundError, DependencyError: As
            `check_fit`.
    """
    target = find_target("llamacpp")
    if whole is None:
        known = [facts_of(adapters[name], name) for name in tasks]
    else:
        manifest = read_manifest(whole)
        known = [facts_of_task(manifest, manifest.task(name)) for name in tasks]
    for facts in known:
        check_fit(target, facts, drop_rest=True, dtype=dtype, base=base)


def convert(
    conversion: Conversion,
    *,
    allow_loss: bool = False,
    force: bool = False,
    progress: ProgressCallback | None = None,
    cancelled: CancelCheck | None = None,
) -> list[Converted]:
    """Write what was planned, read it again, and compare its dW with what was meant.

    Of several adapters, those that are there already and the same are left as they are.

    Raises:
        ParameterError: Something serious would be lost, and not ``allow_loss``.
        OutputExistsError: An output is there, of several another one, and not ``force``.
        StorageError: What was written does not read back as what was meant.
        Cancelled: ``cancelled()`` became true between two adapters; nothing is left of them.
    """
    run = RunContext(progress, cancelled, force=force)
    refuse_losses(conversion, allow_loss)
    several = len(conversion.outputs) > 1
    for path in conversion.outputs.values():
        check_output(path, force=force or several)
    if conversion.to not in ADAPTER_FORMATS:
        return [_subspace(conversion, run)]
    source = _opened(conversion)
    written: list[Converted] = []
    new = [path for path in conversion.outputs.values() if not os.path.lexists(path)]
    old_first = sorted(conversion.outputs.items(), key=lambda item: item[1] in new)
    try:
        for done, (name, path) in enumerate(old_first):
            run.stop_if_asked(STOPPED)
            run.report(STAGE, done, len(conversion.outputs), name)
            weights = source.reconstruct(name) if source else to_memory(conversion.adapters[name])
            if source:  # its index does not name the tensors beside A and B
                found = losses_of(conversion.to, {name: MemorySource(weights)})
                refuse_losses(replace(conversion, losses=found), allow_loss)
            there = path not in new and not force
            check = partial(keep_same, final=path) if there else None
            try:
                made = write_adapter(
                    conversion.to, weights, name, path, force=force or there, check=check,
                    base=conversion.base, dtype=conversion.dtype,
                )  # fmt: skip
            except SameThere:
                made = Converted(name, path, directory_bytes(path), 0.0, skipped=True)
            written.append(made)
    except (VLoRAError, OSError):
        _take_back([one.path for one in written if one.path in new])
        raise
    order = list(conversion.outputs)
    return sorted(written, key=lambda one: order.index(one.name))


def _take_back(paths: Sequence[Path]) -> None:
    """Delete what was just written, and the folder that holds it if nothing else is in there."""
    for path in paths:
        discard(path)
    with suppress(OSError):
        for folder in {path.parent for path in paths}:
            folder.rmdir()


def losses_of(
    to: str,
    adapters: Mapping[str, AdapterSource],
    whole: Path | None = None,
    tasks: Sequence[str] = (),
) -> list[Loss]:
    """What the format ``to`` cannot hold of these adapters, or of tasks of a subspace.

    Raises:
        UnsupportedAdapterError: It has no place for a kind of module.
    """
    if whole is None:
        return losses(to, [outline_of(name, source) for name, source in adapters.items()])
    return losses(to, [outline for outline in outlines_of(whole) if outline.name in tasks])


def refuse_losses(conversion: Conversion, allow_loss: bool) -> None:
    """Raise if something serious would be lost, and not ``allow_loss``."""
    serious = [loss.what for loss in conversion.losses if loss.serious]
    if serious and not allow_loss:
        raise ParameterError(
            f"The format {conversion.to} cannot hold all of this; nothing was written.",
            found=" ".join(serious),
            remedy="choose a format that can (peft holds every adapter, subspace every task), or "
            "leave it out with --allow-loss",
        )


# ---- adapters


def _folders(names: Sequence[str], out: Path, *, single: bool) -> dict[str, Path]:
    if single:
        return {names[0]: out}
    places = slugs(names)
    return {name: out / places[name] for name in names}


def write_adapter(
    to: str,
    weights: LoRAWeights,
    name: str,
    path: Path,
    *,
    force: bool = False,
    check: MadeCheck | None = None,
    base: str | None = None,
    dtype: str | None = None,
) -> Converted:
    """Write one adapter in a format of `ADAPTER_FORMATS`, read back before it takes its place.

    Args:
        base, dtype: As `save_adapter` has them; the dtype for GGUF.
        check: Is shown the directory once it reads back right; if it raises, nothing is written.

    Raises:
        OutputExistsError, StorageError, UnsupportedAdapterError: As `save_adapter`.
    """
    error = 0.0
    weights = without_foreign(weights)  # as `losses_of` has told
    notes: list[str] = []
    if to == PEFT:
        given = weights
        weights, reach = named_for_base(given, base)
        notes = name_notes(given, weights, reach)

    def verify(made: Path) -> None:
        nonlocal error
        meant = weights if to == PEFT else replace(weights, rest={})
        error = verify_adapter(meant, made, final=path)
        if check is not None:
            check(made)

    weights = replace(weights, provenance=provenance_of(weights).then("convert", to=to))
    if to == "mlx":
        save_mlx(weights, path, force=force, check=verify)
    elif to == GGUF:
        save_adapter(
            weights, path, target="llamacpp", drop_rest=True,
            force=force, check=verify, base=base, dtype=dtype,
        )  # fmt: skip
    else:
        save_adapter(weights, path, force=force, check=verify)
    return Converted(name, path, directory_bytes(path), error, tuple(notes))


# ---- subspaces


def require_sense(to: str, names: Sequence[str], whole: Path | None, k: int | None) -> None:
    """Refuse to convert to a format of subspaces what makes none in it.

    Args:
        to: The format.
        names: Of the adapters, where there is no ``whole`` subspace.

    Raises:
        ParameterError: It is of the format already, or too few adapters for it, or k is below 1.
    """
    if to == "subspace" and whole is None:
        raise ParameterError(
            "Adapters become a subspace by compressing them.",
            remedy="vlora-tui compress ADAPTERS -o DIR",
        )
    if whole is not None and (read_manifest(whole).peer or "subspace") == to:
        raise ParameterError(f"This is a subspace of the format {to} already.", where=whole)
    if whole is None and to == VLORA_DEV and len(names) < 2:
        raise ParameterError(
            "A subspace of vlora-dev needs two adapters or more.",
            found=", ".join(names),
            remedy="name them all in one command",
        )
    if k is not None and k < 1:
        raise ParameterError("k is at least 1.", found=str(k))


def _how(conversion: Conversion) -> str:
    """Whether bases and loadings can stay as they are."""
    if conversion.to == "subspace":
        return ""
    kept = f"bases of method {METHODS[conversion.to]} are recomputed"
    how_many = "all directions, which is exact" if conversion.k is None else f"k = {conversion.k}"
    anew = f"{kept} ({how_many})"
    if conversion.whole is None or conversion.k is not None:
        return anew
    manifest = read_manifest(conversion.whole)
    keeps = _keeps_bases(conversion.to, manifest, list(manifest.tasks.values()))
    return "bases and loadings stay as they are" if keeps else anew


def _keeps_bases(to: str, shared: Manifest | SharedSubspace, records: Sequence[TaskRecord]) -> bool:
    """Whether a peer's format can hold bases and loadings as they are.

    lorashare shares every module. vlora-dev has one mean for all tasks and no scale, and every
    task has every layer; one scale for all can go into B.
    """
    if any(record.own for record in records):
        return False
    if to == LORASHARE:
        return shared.method in ("columns", "delta")
    every = all(len(record.layers) == len(shared.layers) for record in records)
    return shared.method == "flat" and every and len({r.scales for r in records}) <= 1


def _opened(conversion: Conversion) -> SharedSubspace | None:
    """The subspace that is converted as a whole, if it is one."""
    from vlora_engine.shared_subspace import SharedSubspace

    return None if conversion.whole is None else SharedSubspace.load(conversion.whole, lazy=True)


def _subspace(conversion: Conversion, run: RunContext) -> Converted:
    from vlora_engine.interop.write import share_names, write_lorashare, write_vlora_dev
    from vlora_engine.subspace.save import save

    out = conversion.outputs[""]
    source = _opened(conversion)
    names: dict[str, str] = {}
    error = 0.0

    def check(made: Path) -> None:
        nonlocal error
        error = _verified(conversion, built, made, names)

    if conversion.to == "subspace":
        assert source is not None  # noqa: S101  (`require_sense`)
        built = source
        save(built.space, out, force=run.force, check=check)
    else:
        built = _held(conversion, source, run)
        with new_directory(out, job="convert", force=run.force, check=check) as partial:
            if conversion.to == VLORA_DEV:
                write_vlora_dev(built, partial)
            else:
                names |= share_names(built.tasks)
                write_lorashare(built, partial, names=names)
    return Converted("", out, directory_bytes(out), error, tuple(built.notes))


def _held(conversion: Conversion, source: SharedSubspace | None, run: RunContext) -> SharedSubspace:
    """A subspace that the target's format can hold."""
    from vlora_engine.compress.build import build_whole
    from vlora_engine.shared_subspace import SharedSubspace

    as_it_is = source is not None and conversion.k is None
    if as_it_is and source and _keeps_bases(conversion.to, source, source.tasks.records()):
        return source
    meant = {name: MemorySource(w) for name, w in _meant(conversion, source)}

    def progress(step: Progress) -> None:
        run.stop_if_asked(STOPPED)
        if run.progress is not None:
            run.progress(step)

    shown = replace(run, progress=progress)
    return SharedSubspace(build_whole(meant, METHODS[conversion.to], shown, conversion.k))


def _meant(
    conversion: Conversion, source: SharedSubspace | None
) -> Iterator[tuple[str, LoRAWeights]]:
    """Every adapter as the target is to hold it."""
    if source is not None:
        weights = ((name, source.reconstruct(name)) for name in source.tasks)
    else:
        weights = ((name, to_memory(own)) for name, own in conversion.adapters.items())
    if conversion.to != VLORA_DEV:
        yield from weights
        return
    known = list(weights)
    every = {
        module: (own.lora_a[module].shape[1], own.lora_b[module].shape[0])
        for _, own in known
        for module in own.layer_names
    }
    for name, own in known:
        yield name, _for_vlora_dev(own, every)


def _for_vlora_dev(weights: LoRAWeights, every: Mapping[str, tuple[int, int]]) -> LoRAWeights:
    """The scale in B, and a dW of zero for every module that the adapter lacks."""
    import torch

    lora_a, lora_b = {}, {}
    for name, (d_in, d_out) in every.items():
        if name in weights.lora_a:
            lora_a[name] = weights.lora_a[name].float()
            lora_b[name] = (weights.scales[name] * weights.lora_b[name].double()).float()
        else:
            rank = max(1, weights.rank)
            lora_a[name], lora_b[name] = torch.zeros(rank, d_in), torch.zeros(d_out, rank)
    return LoRAWeights(
        layer_names=sorted(every),
        lora_a=lora_a,
        lora_b=lora_b,
        rank=weights.rank,
        metadata={"peft_type": "LORA", "r": weights.rank},
        scales=dict.fromkeys(every, 1.0),
    )


def _verified(
    conversion: Conversion, built: SharedSubspace, made: Path, names: Mapping[str, str]
) -> float:
    """Read what was written; the largest error of a task against what went in.

    Raises:
        StorageError: It differs from what was built by more than rounding.
    """
    from vlora_engine.shared_subspace import SharedSubspace

    written = SharedSubspace.load(made, lazy=True)
    exact = conversion.k is None
    source = _opened(conversion)
    worst = 0.0
    for name in built.tasks:
        back = written.reconstruct(names.get(name, name))
        if source is not None:
            meant = source.reconstruct(name)
        else:
            meant = to_memory(conversion.adapters[name])
        if conversion.to == VLORA_DEV:
            meant = replace(meant, rest={})
        out = conversion.outputs[""]
        worst = max(worst, require_alike(meant, back, out, name, exact=exact))
    return worst


def is_whole_subspace(places: Sequence[str | Path]) -> bool:
    """Whether what is named is one subspace as a whole."""
    return len(places) == 1 and is_subspace(Path(places[0]))
