"""Compare a merged checkpoint with base + adapter, module by module, from the files alone.

Every matrix that the adapter changes is judged by `merged_matrix`; every tensor that it does not
change has to be the base's. One part of one matrix is in memory at a time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vlora_engine.adapters.model import AdapterSource, ModuleShape
from vlora_engine.adapters.module_names import PREFIX
from vlora_engine.doctor.base_facts import CONV1D
from vlora_engine.doctor.checkpoint import Checkpoint, row_blocks, row_width
from vlora_engine.doctor.merged_matrix import judge, known_factors, measure, roundoff, square_sum
from vlora_engine.doctor.merged_report import SEVERITY, MergedReport, ModuleVerdict
from vlora_engine.errors import UnsupportedAdapterError
from vlora_engine.utils.progress import CancelCheck, ProgressCallback
from vlora_engine.utils.run_context import RunContext
from vlora_engine.utils.safetensors_file import torch_dtype

NUMBERS = ("F64", "F32", "F16", "BF16")  # 8-bit floats stand beside a scale of their own


def check_merged(
    adapter: AdapterSource,
    base: Checkpoint,
    merged: Checkpoint,
    *,
    progress: ProgressCallback | None = None,
    cancelled: CancelCheck | None = None,
) -> MergedReport:
    """Compare every matrix that the adapter changes with base + adapter, all others with the base.

    Args:
        adapter: Read module by module.
        base: The model that it was trained on (`read_checkpoint`).
        merged: What a merge made of the two.
        progress: Told of every module.
        cancelled: Asked between two.

    Raises:
        UnsupportedAdapterError: A DoRA adapter: its change depends on the base's norms.
        Cancelled: ``cancelled`` said so.
    """
    if adapter.config.get("use_dora"):
        raise UnsupportedAdapterError(
            "What a DoRA adapter adds to a base is no product of A and B.",
            where=adapter.path,
            remedy="compare the outputs instead: eval, on the merged model and on base and adapter",
        )
    run = RunContext(progress, cancelled)
    report = MergedReport(str(adapter.path or "the adapter"), str(base.path), str(merged.path))
    touched: set[str] = set()
    copies, saved = _whole_tensors(adapter, base, merged)
    rest = adapter.read_rest() if copies or saved else {}
    total = len(adapter.modules) + len(saved)
    for done, (module, shape) in enumerate(adapter.modules.items()):
        run.stop_if_asked("Stopped as asked; nothing was changed.")
        run.report("compare", done, total, module)
        copy = rest[copies[module]] if module in copies else None
        report.modules.append(_judge_module(adapter, module, shape, base, merged, touched, copy))
    for key, name in saved.items():
        report.modules.append(_judge_saved(key, name, rest[key], base, merged))
        touched.add(name)
    _compare_others(report, base, merged, touched, run)
    order = list(SEVERITY)
    report.modules.sort(
        key=lambda row: (order.index(row.verdict), -round(row.error or 0.0, 6), row.module)
    )
    run.report("compare", total, total, "")
    return report


# ---- one matrix that the adapter changes --------------------------------------------------------


def _judge_module(
    adapter: AdapterSource,
    module: str,
    shape: ModuleShape,
    base: Checkpoint,
    merged: Checkpoint,
    touched: set[str],
    copy: Tensor | None,
) -> ModuleVerdict:
    """Compare one matrix; ``copy`` is the base's that the adapter brings along, where it does."""
    tied = base.tied_to(module)
    name = tied or base.weight_of(module)
    if name is None:
        what = f"The base has no matrix of the module {module}: the adapter does nothing there."
        return ModuleVerdict(module, "", "unknown", what=what)
    own = merged.weight_of(module)
    there = own or (merged.tied_to(module) if tied else None)
    if there is None:
        touched.add(name)
        return ModuleVerdict(module, name, "absent", what="The merged checkpoint lacks its matrix.")
    touched |= {there} if tied and own else {name, there}
    size = base.shape(name) if copy is None else tuple(copy.shape)
    if reason := _incomparable(base, name, merged, there, size):
        return ModuleVerdict(module, there, "unknown", what=reason)
    a, b = adapter.read(module)
    transposed = _is_transposed(shape, base, size, adapter.config)
    sides = (a.T, b.T) if transposed else (b, a)
    if (sides[0].shape[0], sides[1].shape[1]) != (size[0], row_width(size)):
        what = f"dW is {shape.d_out} x {shape.d_in}, the base's matrix {_by(size)}."
        return ModuleVerdict(module, there, "unknown", what=what)
    scale = adapter.scales[module]

    def before(first: int, count: int) -> Tensor:
        if copy is None:
            return base.rows(name, first, count)
        return copy.reshape(size[0], -1)[first : first + count]

    def after(first: int, count: int) -> Tensor:
        return merged.rows(there, first, count)

    sums = measure(sides, scale, size, before, after)
    found = judge(module, there, sums, merged.dtype(there), known_factors(scale, shape.rank))
    shares = there == merged.embedding and not merged.has_head and not base.has_head
    meant = bool(adapter.config.get("ensure_weight_tying"))
    if shares and not meant and found.verdict in ("right", "rounded"):
        other = "the embedding" if tied else "the head"
        what = f"Its change is in the one matrix that {other} uses, too: there it was not trained."
        return ModuleVerdict(
            module, there, "shared", found.error, found.factor, found.rounding, what
        )
    return found


def _is_transposed(
    shape: ModuleShape, base: Checkpoint, size: Sequence[int], config: Mapping[str, Any]
) -> bool:
    """Whether the matrix lies as (d_in, d_out): embeddings, and Conv1D of GPT-2."""
    rows, columns = size[0], row_width(size)
    if shape.kind == "embedding":
        return True
    if rows != columns:
        return (rows, columns) == (shape.d_in, shape.d_out)
    if base.config:
        return base.config.get("model_type") in CONV1D
    return bool(config.get("fan_in_fan_out"))


def _by(size: Sequence[int]) -> str:
    return " x ".join(map(str, size))


def _incomparable(
    base: Checkpoint, name: str, merged: Checkpoint, there: str, size: tuple[int, ...]
) -> str:
    for one, key in ((base, name), (merged, there)):
        if one.dtype(key) not in NUMBERS:
            return f"Its matrix is packed ({one.dtype(key)}): only numbers can be compared."
    if size != merged.shape(there):
        found = _by(merged.shape(there))
        return f"Its matrix is {_by(size)} in the base and {found} in the merged checkpoint."
    return ""


# ---- matrices that the adapter replaces, and all others -----------------------------------------


def _whole_tensors(
    adapter: AdapterSource, base: Checkpoint, merged: Checkpoint
) -> tuple[dict[str, str], dict[str, str]]:
    """The adapter's whole tensors, by what they are for.

    Returns:
        By module the key of the base's matrix that PEFT keeps beside A and B (base_layer), and by
        key the model's name of what replaces a tensor of it (modules_to_save).
    """
    copies, saved = {}, {}
    for key in adapter.rest:
        name = key.removeprefix(PREFIX).replace(".base_layer.", ".")
        module, _, leaf = name.rpartition(".")
        if module in adapter.modules and leaf == "weight":
            copies[module] = key
        elif name in merged.headers or name in base.headers:
            saved[key] = name
        elif leaf == "weight" and (other := merged.weight_of(module) or base.weight_of(module)):
            saved[key] = other
    return copies, saved


def _judge_saved(
    key: str, name: str, saved: Tensor, base: Checkpoint, merged: Checkpoint
) -> ModuleVerdict:
    """Whether a matrix that the adapter brings as a whole is the merged checkpoint's."""
    if name not in merged.headers:
        what = "The adapter brings this matrix as a whole, and the merged checkpoint lacks it."
        return ModuleVerdict(key, name, "absent", what=what)
    if merged.shape(name) != tuple(saved.shape):
        found = _by(merged.shape(name))
        what = f"The adapter brings {_by(saved.shape)}, the merged checkpoint has {found}."
        return ModuleVerdict(key, name, "off", what=what)
    stored = torch_dtype(merged.dtype(name))
    wanted = saved.reshape(saved.shape[0] if saved.dim() else 1, -1).double()
    error2 = bound2 = size2 = 0.0
    is_base = name in base.headers and base.shape(name) == merged.shape(name)
    for first, count in row_blocks(tuple(saved.shape)):
        m = merged.rows(name, first, count).double()
        part = wanted[first : first + count]
        error2 += square_sum(m - part)
        size2 += square_sum(part)
        bound2 += square_sum(
            roundoff(stored) * part.abs() if stored.is_floating_point else part * 0
        )
        if is_base:
            w = base.rows(name, first, count).double()
            is_base = bool(((m - w).abs() <= 2 * roundoff(stored) * w.abs()).all())
    error = math.sqrt(error2 / size2) if size2 else math.sqrt(error2)
    if error2 <= bound2:
        return ModuleVerdict(key, name, "right", error)
    if is_base:
        what = "The adapter brings this matrix as a whole; the merged checkpoint has the base's."
        return ModuleVerdict(key, name, "not-merged", error, what=what)
    what = f"The adapter brings this matrix as a whole; the merged one is off by {error:.2g} of it."
    return ModuleVerdict(key, name, "off", error, what=what)


def _compare_others(
    report: MergedReport,
    base: Checkpoint,
    merged: Checkpoint,
    touched: set[str],
    run: RunContext,
) -> None:
    """Compare every tensor that the adapter leaves alone with the base's."""
    for name in sorted(base.headers.keys() - touched):
        run.stop_if_asked("Stopped as asked; nothing was changed.")
        other = _same_tensor(name, merged)
        if other is None:
            if not _is_spare_head(name, base, merged):
                report.missing.append(name)
        elif _is_same(base, name, merged, other):
            report.same += 1
        else:
            report.changed.append(other)
        if other is not None:
            touched.add(other)
    for name in sorted(merged.headers.keys() - touched - base.headers.keys()):
        tied = base.tied_to(name.removesuffix(".weight"))
        if tied is None:
            report.added.append(name)
        elif _is_same(base, tied, merged, name):  # untied, and still the embedding
            report.same += 1
        else:
            report.changed.append(name)


def _same_tensor(name: str, merged: Checkpoint) -> str | None:
    """The merged checkpoint's name of a base's tensor, also behind another wrapper."""
    if name in merged.headers:
        return name
    module, _, leaf = name.rpartition(".")
    return merged.weight_of(module) if leaf == "weight" else None


def _is_spare_head(name: str, base: Checkpoint, merged: Checkpoint) -> bool:
    """Whether a missing matrix is a head that is the embedding, which may be left out."""
    module = name.removesuffix(".weight")
    tied, embedding = merged.tied_to(module), base.embedding
    if tied is None or embedding is None or base.shape(name) != base.shape(embedding):
        return False
    return _is_same(base, name, base, embedding)


def _is_same(base: Checkpoint, name: str, merged: Checkpoint, other: str) -> bool:
    """Whether two tensors are the same but for a change of dtype."""
    if base.shape(name) != merged.shape(other):
        return False
    exact = base.dtype(name) == merged.dtype(other)
    stored = torch_dtype(merged.dtype(other))
    for first, count in row_blocks(base.shape(name)):
        w, m = base.rows(name, first, count), merged.rows(other, first, count)
        if exact and torch.equal(w.reshape(-1).view(torch.uint8), m.reshape(-1).view(torch.uint8)):
            continue
        if not (w.is_floating_point() and m.is_floating_point()):
            return False
        w, m = w.double(), m.double()
        info = torch.finfo(stored)
        allowed = roundoff(stored) * w.abs() + float(info.smallest_normal) * float(info.eps)
        if not bool(((m - w).abs() <= allowed).all()):
            return False
    return True
