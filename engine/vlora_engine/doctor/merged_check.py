"""Compare a merged checkpoint with base + adapter, module by module, from the files alone.

Of each matrix W of the base, its change dW and the merged matrix M three figures tell what happened
(docs/mathematics.md#a-merged-checkpoint):

- ``error``, ``||M - W - dW|| / ||dW||``;
- ``factor``, ``<M - W, dW> / ||dW||^2``: 1 where dW is in M once, 0 where it is not, 2 where twice.
  Rounding hardly moves it, since it is not aligned with dW, so it tells even a dW that is smaller
  than the rounding of W;
- the bound on what rounding alone can do: per entry with unit roundoff u of M's dtype
  ``u (|W| + |W + dW| + 2 |dW| + (2 + sqrt(r)) s |B| |A|)``: W read in that dtype, A and B in it,
  their product rounded, the sum rounded.

Every tensor that the adapter does not change has to be the base's. One part of one matrix is in
memory at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from vlora_engine.adapters.model import AdapterSource, ModuleShape
from vlora_engine.adapters.module_names import PREFIX
from vlora_engine.doctor.checkpoint import Checkpoint, row_blocks, row_width
from vlora_engine.errors import UnsupportedAdapterError
from vlora_engine.findings import SEVERITIES, Finding, Severity
from vlora_engine.utils.progress import CancelCheck, ProgressCallback
from vlora_engine.utils.run_context import RunContext
from vlora_engine.utils.safetensors_file import torch_dtype

Verdict = Literal[
    "right", "rounded", "lost", "not-merged", "scaled", "transposed", "off", "shared", "absent",
    "unknown",
]  # fmt: skip
SEVERITY: Mapping[Verdict, Severity | None] = {
    "off": "error",
    "absent": "error",
    "transposed": "error",
    "not-merged": "error",
    "scaled": "error",
    "shared": "error",
    "lost": "warning",
    "unknown": "warning",
    "rounded": "note",
    "right": None,
}
Rows = Callable[[int, int], Tensor]  # the first row and their number -> rows of a matrix
COARSE = "BF16"  # what a merge may have been computed in whatever it was stored in
NUMBERS = ("F64", "F32", "F16", "BF16")  # 8-bit floats stand beside a scale of their own
SAME_FACTOR = 0.02  # factors closer than this, and than what rounding does to them, are one
SURVIVES = 0.5  # the share of dW that has to survive rounding for a merge to be told from none


@dataclass(frozen=True)
class ModuleVerdict:
    """What the merged checkpoint has of one matrix that the adapter changes.

    Args:
        module: As the adapter calls it; of a saved matrix its key.
        tensor: Its name in the merged checkpoint.
        verdict: One of `Verdict`.
        error: ``||M - W - dW|| / ||dW||``; None where it cannot be told.
        factor: How many times dW is in it.
        rounding: The most that rounding alone can make of ``error``.
        what: The verdict in words.
    """

    module: str
    tensor: str
    verdict: Verdict
    error: float | None = None
    factor: float | None = None
    rounding: float | None = None
    what: str = ""

    @property
    def severity(self) -> Severity | None:
        """How grave it is; None where it is right."""
        return SEVERITY[self.verdict]


@dataclass
class MergedReport:
    """A merged checkpoint beside base + adapter.

    Args:
        adapter: Where the adapter lies; and so on.
        modules: Every matrix that the adapter changes, the worst first.
        changed: Tensors that differ from the base's though the adapter leaves them alone.
        missing: Tensors of the base that the merged checkpoint lacks.
        added: Tensors that only the merged checkpoint has.
        same: How many tensors are the base's, as they should be.
    """

    adapter: str
    base: str
    merged: str
    modules: list[ModuleVerdict] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    added: list[str] = field(default_factory=list)
    same: int = 0

    @property
    def right(self) -> int:
        """How many modules are merged right."""
        return sum(row.verdict in ("right", "rounded") for row in self.modules)

    @property
    def summary(self) -> str:
        """The one sentence that answers the question."""
        total = len(self.modules)
        counts: dict[str, int] = {}
        for row in self.modules:
            if row.verdict not in ("right", "rounded"):
                counts[row.verdict] = counts.get(row.verdict, 0) + 1
        text = f"merged right: {self.right} of {total} modules"
        wrong = ", ".join(f"{count} {_WORDS[word]}" for word, count in counts.items())
        text += f" ({wrong})" if wrong else ""
        strays = [(len(self.changed), "changed"), (len(self.missing), "missing"),
                  (len(self.added), "added")]  # fmt: skip
        told = ", ".join(f"{count} {word}" for count, word in strays if count)
        return (
            f"{text}; of the other tensors {told}" if told else f"{text}; no other tensor changed"
        )

    @property
    def findings(self) -> list[Finding]:
        """What is wrong, the gravest first, for `fails` and for JSON."""
        found = [
            Finding(
                f"merged-{row.verdict}", row.severity, row.what, _REMEDY.get(row.verdict, ""),
                file=self.merged, module=row.module,
            )
            for row in self.modules
            if row.severity is not None
        ]  # fmt: skip
        for code, names, what in (
            ("merged-changed", self.changed, "The adapter does not touch it, yet it differs from "
             "the base's."),
            ("merged-missing", self.missing, "The base has it, the merged checkpoint does not."),
        ):  # fmt: skip
            remedy = "merge anew onto this base, or name the base that was merged onto"
            found += [
                Finding(code, "error", what, remedy, file=self.merged, tensor=n) for n in names
            ]
        what = "Only the merged checkpoint has it."
        found += [
            Finding("merged-added", "note", what, file=self.merged, tensor=n) for n in self.added
        ]
        return sorted(found, key=lambda finding: SEVERITIES.index(finding.severity))

    def fails(self, limit: str) -> bool:
        """Whether anything is as grave as ``limit`` (``never``: nothing is)."""
        worst = SEVERITIES[: SEVERITIES.index(limit) + 1] if limit != "never" else ()
        return any(finding.severity in worst for finding in self.findings)

    def as_dict(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return {
            "adapter": self.adapter,
            "base": self.base,
            "merged": self.merged,
            "summary": self.summary,
            "right": self.right,
            "modules": [{**asdict(row), "severity": row.severity} for row in self.modules],
            "others": {
                "same": self.same,
                "changed": self.changed,
                "missing": self.missing,
                "added": self.added,
            },
            "findings": [finding.as_json() for finding in self.findings],
        }


_WORDS: Mapping[str, str] = {
    "off": "off",
    "absent": "absent",
    "transposed": "transposed",
    "not-merged": "not merged",
    "scaled": "with another scale",
    "shared": "in a matrix that two modules share",
    "lost": "lost in rounding",
    "unknown": "cannot be told",
}
_REMEDY: Mapping[str, str] = {
    "off": "merge anew, onto this base",
    "absent": "merge anew; the checkpoint lacks this matrix",
    "transposed": "merge with a program that heeds fan_in_fan_out",
    "not-merged": "merge anew with a program that knows this module's name",
    "scaled": "merge anew, once, with the scale of the adapter's config",
    "shared": "untie the head before merging (tie_word_embeddings: false), or merge nothing",
    "lost": "merge in fp32 and keep that, or serve the adapter beside the base",
}


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

    sums = _measure(sides, scale, size, before, after)
    found = _verdict(module, there, sums, merged.dtype(there), _known_factors(scale, shape.rank))
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
        return base.config.get("model_type") in _CONV1D
    return bool(config.get("fan_in_fan_out"))


_CONV1D = ("gpt2", "openai-gpt", "imagegpt")


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


@dataclass
class _Sums:
    """Sums over the entries of one matrix, with D = M - W.

    Args:
        change2: ``||dW||^2``.
        moved2: ``||D||^2``.
        along: ``<D, dW>``.
        error2: ``||D - dW||^2``.
        rounding2: The square of the bound on rounding in M's dtype.
        coarse2: The same in bf16.
        kept2: The square of the bound for a matrix that only changed its dtype.
        noise2: ``||tau dW||^2``, what rounding may do to ``along``.
        survives: ``<round(W + dW) - W, dW>``.
        across: ``<D, dW^T>`` of a square matrix.
    """

    change2: float = 0.0
    moved2: float = 0.0
    along: float = 0.0
    error2: float = 0.0
    rounding2: float = 0.0
    coarse2: float = 0.0
    kept2: float = 0.0
    noise2: float = 0.0
    survives: float = 0.0
    across: float = 0.0

    def beside(self, factor: float) -> float:
        """``||D - factor dW||``."""
        square = self.moved2 - 2 * factor * self.along + factor**2 * self.change2
        return math.sqrt(max(0.0, square))

    def beside_transpose(self) -> float:
        """``||D - dW^T||``."""
        return math.sqrt(max(0.0, self.moved2 - 2 * self.across + self.change2))


def _measure(
    sides: tuple[Tensor, Tensor],
    scale: float,
    size: Sequence[int],
    before: Rows,
    after: Rows,
) -> _Sums:
    """Sum over one matrix, some rows at a time; ``dW = scale * left @ right``.

    Args:
        sides: left (rows, r) and right (r, columns).
        scale: Of the module.
        size: Of the matrix.
        before: Rows of the base's matrix, from their first and number.
        after: The same of the merged one.
    """
    stored = after(0, 0).dtype
    kind = torch.float64 if stored.itemsize > 2 else torch.float32
    left, right = sides[0].to(kind) * scale, sides[1].to(kind)
    sums, u, coarse = _Sums(), _roundoff(stored), _roundoff(torch_dtype(COARSE))
    tiny = float(torch.finfo(stored).smallest_normal) * float(torch.finfo(stored).eps)
    products = 2 + math.sqrt(left.shape[1])
    square = left.shape[0] == right.shape[1]
    for first, count in row_blocks(size):
        rows = slice(first, first + count)
        w, m = before(first, count).to(kind), after(first, count).to(kind)
        change = left[rows] @ right
        d, total = m - w, w + change
        product = left[rows].abs() @ right.abs()
        tau = w.abs() + total.abs() + 2 * change.abs() + products * product
        sums.change2 += _square(change)
        sums.moved2 += _square(d)
        sums.along += _inner(d, change)
        sums.error2 += _square(d - change)
        sums.rounding2 += _square(u * tau + tiny)
        sums.coarse2 += _square(max(u, coarse) * tau + tiny)
        sums.kept2 += _square(u * w.abs() + tiny)
        sums.noise2 += _square((u * tau + tiny) * change)
        sums.survives += _inner(total.to(stored).to(kind) - w, change)
        if square:
            sums.across += _inner(d, (left @ right[:, rows]).T)
    return sums


def _known_factors(scale: float, rank: int) -> dict[str, float]:
    """Factors that a well-known mistake leaves, and its name."""
    known = {"twice": 2.0, "subtracted, -1 times": -1.0}
    if scale:
        known["with a scale of 1, without alpha / r"] = 1 / scale
    known["as if it were rsLoRA, sqrt(r) times"] = math.sqrt(rank)
    known["as if it were no rsLoRA, 1 / sqrt(r) times"] = 1 / math.sqrt(max(1, rank))
    return known


def _verdict(
    module: str, there: str, sums: _Sums, dtype: str, known: Mapping[str, float]
) -> ModuleVerdict:
    """What the sums of one matrix mean; the order of the questions matters."""
    if not math.isfinite(sums.moved2):
        return ModuleVerdict(module, there, "off", what="NaN or infinity in its merged matrix.")
    rounding = math.sqrt(sums.rounding2)
    if not sums.change2:
        if math.sqrt(sums.moved2) <= rounding:
            return ModuleVerdict(module, there, "right", 0.0, None, None, "dW is zero here.")
        what = "The adapter changes nothing here, yet its matrix is not the base's."
        return ModuleVerdict(module, there, "off", None, None, None, what)
    size = math.sqrt(sums.change2)
    factor, survives = sums.along / sums.change2, sums.survives / sums.change2
    error = math.sqrt(sums.error2) / size
    slack = max(SAME_FACTOR, 4 * math.sqrt(sums.noise2) / sums.change2)

    def told(verdict: Verdict, what: str) -> ModuleVerdict:
        return ModuleVerdict(module, there, verdict, error, factor, rounding / size, what)

    within = math.sqrt(sums.error2) <= rounding
    if within and survives < SURVIVES and abs(factor - survives) <= max(slack, SAME_FACTOR):
        return told(
            "lost",
            f"dW is below the rounding of {dtype}: {max(0.0, survives):.0%} of it survives there, "
            "so a merge can hardly be told from none.",
        )
    if within and abs(factor - survives) <= slack:
        return told("right", "")
    if math.sqrt(sums.moved2) <= math.sqrt(sums.kept2) and abs(factor) <= slack:
        return told("not-merged", "It is the base's matrix: dW is not in it.")
    limit = rounding * max(1.0, abs(factor))
    if sums.beside(factor) <= limit and abs(factor - 1) > slack:
        return told("scaled", f"dW is in it {_times(factor, known)}.")
    if sums.beside_transpose() <= rounding:
        return told("transposed", "dW is in it transposed (fan_in_fan_out).")
    coarse = math.sqrt(sums.coarse2)
    if abs(factor - 1) <= SAME_FACTOR and math.sqrt(sums.error2) <= coarse:
        return told("rounded", f"It is right up to the rounding of {COARSE}, stored as {dtype}.")
    if sums.beside(factor) <= coarse * max(1.0, abs(factor)) and abs(factor - 1) > SAME_FACTOR:
        return told(
            "scaled", f"dW is in it {_times(factor, known)}, up to the rounding of {COARSE}."
        )
    if abs(factor - 1) <= SAME_FACTOR:
        return told(
            "off",
            f"dW is in it, but the rest is not this base's (off by {error:.2g} of dW): was it "
            "merged onto a quantized base, or another one?",
        )
    return told("off", f"It is off by {error:.2g} of dW; dW is in it {_times(factor, known)}.")


def _times(factor: float, known: Mapping[str, float]) -> str:
    """How often dW is in a matrix, in words."""
    words = [w for w, value in known.items() if abs(factor - value) <= SAME_FACTOR * abs(value)]
    return ", or ".join(words) or f"{factor:.3g} times"


def _roundoff(dtype: torch.dtype) -> float:
    return float(torch.finfo(dtype).eps) / 2


def _square(x: Tensor) -> float:
    return float(x.double().square().sum()) if x.dtype == torch.float64 else float(
        x.square().sum(dtype=torch.float64)
    )  # fmt: skip


def _inner(x: Tensor, y: Tensor) -> float:
    return float((x * y).sum(dtype=torch.float64))


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
        error2 += _square(m - part)
        size2 += _square(part)
        bound2 += _square(_roundoff(stored) * part.abs() if stored.is_floating_point else part * 0)
        if is_base:
            w = base.rows(name, first, count).double()
            is_base = bool(((m - w).abs() <= 2 * _roundoff(stored) * w.abs()).all())
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
        allowed = _roundoff(stored) * w.abs() + float(info.smallest_normal) * float(info.eps)
        if not bool(((m - w).abs() <= allowed).all()):
            return False
    return True
