"""Another rank for an adapter: what dW loses least by, or, upwards, nothing.

Cutting a module to rank k keeps the k largest singular directions of its dW, which no other change
of rank k comes nearer to (Eckart, Young 1936). They follow from QR of both factors and the SVD of
a core of r x r (`canonical_svd`), never from a d_out x d_in matrix. Raising a rank adds rows and
columns of zeros: dW stays as it is, bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

from torch import Tensor

from vlora_engine.adapters.model import (
    AdapterSource,
    LoRAWeights,
    as_source,
    nominal_rank,
    padded,
    provenance_of,
)
from vlora_engine.adapters.unchanged import require_unchanged
from vlora_engine.analysis.similarity import not_finite
from vlora_engine.errors import AdapterError
from vlora_engine.formats.peft_save import peft_config
from vlora_engine.linalg.low_rank import canonical_svd, delta_error2, delta_norm2
from vlora_engine.targets.fit import check_config
from vlora_engine.targets.registry import find_target
from vlora_engine.targets.shape import rescaled_biases
from vlora_engine.targets.sizing import Sizing
from vlora_engine.utils.naming import percent_text
from vlora_engine.utils.progress import CancelCheck, ProgressCallback
from vlora_engine.utils.ranking import worst
from vlora_engine.utils.run_context import RunContext

STOPPED = "Stopped as asked; nothing of this adapter was written."


@dataclass(frozen=True)
class ResizedModule:
    """The rank of one module before and after, and what that lost.

    Args:
        rank: Its rank before.
        new_rank: Its rank now.
        kept: The share of ||dW||^2 that is left.
        error: ||dW - dW^|| / ||dW||, measured on what is stored.
        sv_ratio: The largest singular value over the smallest that was kept; None where the
            singular values were not needed.
        sv_fro: The square root of ``kept``, as kohya has it.
        sv_cumulative: The kept share of the sum of singular values.
    """

    rank: int
    new_rank: int
    kept: float = 1.0
    error: float = 0.0
    sv_ratio: float | None = None
    sv_fro: float = 1.0
    sv_cumulative: float = 1.0


@dataclass
class ResizeReport:
    """What `resize` did; errors are those of dW, after rounding to the stored dtype.

    Args:
        error: sqrt(sum ||dW - dW^||^2 / sum ||dW||^2) over all modules.
        kept: The share of the whole ||dW||^2 that the kept directions hold, before rounding.
        short: Why less was kept than was asked for; empty if nothing is missing.
        target: The server that it was made for.
    """

    modules: dict[str, ResizedModule] = field(default_factory=dict)
    error: float = 0.0
    kept: float = 1.0
    short: str = ""
    target: str | None = None

    @property
    def worst(self) -> tuple[str, float]:
        """The module with the largest error, and that error; no name where no module errs."""
        errors = {name: module.error for name, module in self.modules.items()}
        name = worst(errors)
        return ("", 0.0) if name is None or not errors[name] else (name, errors[name])

    @property
    def ranks(self) -> tuple[int, int]:
        """The smallest and the largest new rank."""
        ranks = [module.new_rank for module in self.modules.values()]
        return min(ranks, default=0), max(ranks, default=0)

    @property
    def former_ranks(self) -> tuple[int, int]:
        """The smallest and the largest rank before."""
        ranks = [module.rank for module in self.modules.values()]
        return min(ranks, default=0), max(ranks, default=0)

    def as_dict(self) -> dict[str, Any]:
        """All of it as values for JSON."""
        worst, worst_error = self.worst
        return {
            "error": self.error,
            "kept": self.kept,
            "ranks": list(self.ranks),
            "former_ranks": list(self.former_ranks),
            "worst_module": worst or None,
            "worst_error": worst_error,
            "short": self.short or None,
            "target": self.target,
            "modules": {name: asdict(module) for name, module in self.modules.items()},
        }


def resize(
    adapter: LoRAWeights | AdapterSource,
    *,
    rank: int | None = None,
    energy: float | None = None,
    dynamic: tuple[str, float] | None = None,
    target: str | None = None,
    max_error: float | None = None,
    progress: ProgressCallback | None = None,
    cancelled: CancelCheck | None = None,
) -> tuple[LoRAWeights, ResizeReport]:
    """``adapter`` at another rank, with its scales, config and rest tensors; and what it cost.

    Args:
        adapter: In memory, or a source that is read one module at a time.
        rank: The rank of every module; with ``energy`` or ``dynamic`` the largest one allowed.
        energy: The share of the adapter's ||dW||^2 to keep, with as few numbers as it takes;
            the error of dW is then sqrt(1 - energy) at most. Ranks differ between modules.
        dynamic: One of kohya's rules and its value, applied to each module by itself:
            ``("sv_ratio", 10)``, ``("sv_fro", 0.97)``, ``("sv_cumulative", 0.95)``.
        target: A server: one rank and one scale for all modules, in a config without patterns
            or rsLoRA. The rank is the largest there is; only what is above the server's limit
            (vLLM: 512), or above ``rank``, is cut.
        max_error: The most by which dW may change: ||dW - dW^|| / ||dW||. By default 0.01 where a
            target is named and no rank, else any, and the report says how much it was.
        progress: Told of every module.
        cancelled: Asked between two modules.

    Returns:
        The new adapter, whose config says its ranks (``rank_pattern`` where they differ), and
        the report. A module whose rank stays keeps its A and B bit for bit.

    Raises:
        ParameterError: No rule or more than one, or a value out of range.
        AdapterError: NaN or infinity in a factor, or dW would change by more than is allowed.
        UnsupportedAdapterError: Its config has a field that acts and the target does not read.
        Cancelled: ``cancelled`` said so.
    """
    sizing = Sizing(rank, energy, dynamic, target, max_error)
    run, source = RunContext(progress, cancelled), as_source(adapter)
    if target is not None:
        check_config(find_target(target), source.config, str(source.path or "the adapter"))
    spectra = _spectra(source, run) if sizing.needs_spectra else {}
    ranks, short = sizing.ranks(source.modules, spectra)
    uniform = one_scale(source.scales.values()) if sizing.is_uniform else None
    made: dict[str, _Made] = {}
    for done, name in enumerate(source.modules, start=1):
        run.stop_if_asked(STOPPED)
        made[name] = _resized(source, name, ranks[name], uniform, spectra.get(name))
        run.report("resize", done, len(source.modules), name)
    require_unchanged([source])
    report = replace(_reported(made, short), target=target)
    _require_allowed(sizing, report, source)
    step = {"rank": rank, "energy": energy, "dynamic": dynamic, "target": target}
    known = provenance_of(source).then("resize", **step, error=report.error)
    return replace(_assembled(source, made, target), provenance=known), report


def _require_allowed(sizing: Sizing, report: ResizeReport, source: AdapterSource) -> None:
    """Refuse a cut that costs more of dW than is allowed."""
    allowed = sizing.allowed_error
    if allowed is None or report.error <= allowed:
        return
    most = report.ranks[1]
    remedy = f"name the rank and take the loss: --rank {most}; or allow it: --max-error"
    if sizing.target is not None:
        remedy += "; or serve it where any rank is taken (sglang, tgi, lorax)"
    raise AdapterError(
        f"At rank {most} dW would change by {percent_text(report.error)}; nothing was written.",
        where=source.path,
        expected=f"a change of at most {100 * allowed:g} %",
        found=f"rank {report.former_ranks[1]}; the worst module, {report.worst[0]}, would change "
        f"by {percent_text(report.worst[1])}",
        remedy=remedy,
    )


def at_rank(a: Tensor, b: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor | None]:
    """A (r, d_in) and B (d_out, r) as factors of ``rank``, the nearest to B @ A that there are.

    Equal to r: the same tensors. Above: zeros added. Below: ``B = U sqrt(S)``,
    ``A = sqrt(S) V^T``, both of one size, in their own dtypes, and all the singular values.
    """
    if rank == a.shape[0]:
        return a, b, None
    S = None
    if rank < a.shape[0]:
        U, S, V = canonical_svd(a, b)
        root = S[:rank].sqrt()
        a, b = (V[:, :rank] * root).T.to(a.dtype), (U[:, :rank] * root).to(b.dtype)
    return padded(a, rank, 0).contiguous(), padded(b, rank, 1).contiguous(), S


def one_scale(scales: Iterable[float]) -> float:
    """The scale for all modules: the one that they have, or the most common that is not zero."""
    usable = [scale for scale in scales if scale]
    return max(sorted(set(usable)), key=usable.count, default=1.0)


def _spectra(source: AdapterSource, run: RunContext) -> dict[str, Tensor]:
    """The singular values of every module's dW."""
    spectra = {}
    for done, name in enumerate(source.modules):
        run.stop_if_asked(STOPPED)
        a, b = _read(source, name)
        spectra[name] = canonical_svd(a, b, source.scales[name])[1]
        run.report("spectra", done + 1, len(source.modules), name)
    return spectra


def _read(source: AdapterSource, module: str) -> tuple[Tensor, Tensor]:
    a, b = source.read(module)
    if not (bool(a.isfinite().all()) and bool(b.isfinite().all())):
        raise not_finite(source, 0, module)
    return a, b


class _Made(NamedTuple):
    """One module as it is going to be stored, and its share of the whole adapter's figures.

    ``lost2``, ``norm2`` and ``cut2`` are the squared norms of the error, of dW, and of what was
    cut, which is the error before rounding.
    """

    a: Tensor
    b: Tensor
    scale: float
    figures: ResizedModule
    lost2: float
    norm2: float
    cut2: float


def _resized(
    source: AdapterSource, name: str, rank: int, uniform: float | None, values: Tensor | None
) -> _Made:
    """One module at ``rank``, its scale folded into B where all get one.

    Args:
        values: The singular values of its dW, where they are known already.
    """
    a, b = _read(source, name)
    scale = source.scales[name]
    new_a, new_b, found = at_rank(a, b, rank)
    exact = found is None  # zeros were added, or nothing at all
    values = values if found is None else abs(scale) * found
    new_scale = scale if uniform is None else uniform
    if new_scale != scale:
        new_b = (new_b.double() * (scale / new_scale)).to(new_b.dtype)
        exact = False
    old, new = (a, scale * b.double()), (new_a, new_scale * new_b.double())
    norm2 = float(delta_norm2(*old))
    lost2 = 0.0 if exact else float(delta_error2(*old, *new))
    figures = ResizedModule(a.shape[0], rank, error=_share(lost2, norm2))
    cut2 = 0.0
    if values is not None and len(values):
        kept, cut2 = values[:rank], float(values[rank:].square().sum())
        share = float(kept.square().sum() / values.square().sum())
        figures = replace(
            figures,
            kept=share,
            sv_ratio=float(values[0] / kept[-1]),
            sv_fro=math.sqrt(share),
            sv_cumulative=float(kept.sum() / values.sum()),
        )
    return _Made(new_a, new_b, new_scale, figures, lost2, norm2, cut2)


def _reported(made: Mapping[str, _Made], short: str) -> ResizeReport:
    lost2, norm2, cut2 = (
        math.fsum(getattr(one, sum_of) for one in made.values())
        for sum_of in ("lost2", "norm2", "cut2")
    )
    return ResizeReport(
        {name: one.figures for name, one in made.items()},
        error=_share(lost2, norm2),
        kept=1 - cut2 / norm2 if norm2 else 1.0,
        short=short,
    )


def _share(lost2: float, norm2: float) -> float:
    return math.sqrt(lost2 / norm2) if norm2 else 0.0


def _assembled(source: AdapterSource, made: Mapping[str, _Made], target: str | None) -> LoRAWeights:
    ranks = {name: one.a.shape[0] for name, one in made.items()}
    config = dict(source.config)
    if target is not None:  # what no server reads differently
        config |= {"rank_pattern": {}, "alpha_pattern": {}, "use_rslora": False}
        config |= {"r": None, "lora_alpha": None}  # follow from ranks and scales
    if target == "sglang":  # which knows modules by their leaf names alone
        config["target_modules"] = sorted({name.rpartition(".")[2] for name in made})
    weights = LoRAWeights(
        layer_names=list(made),
        lora_a={name: one.a for name, one in made.items()},
        lora_b={name: one.b for name, one in made.items()},
        rank=max(ranks.values(), default=nominal_rank(source)),
        metadata=config,
        scales={name: one.scale for name, one in made.items()},
        rest=rescaled_biases(
            source.read_rest(), source.scales, {name: one.scale for name, one in made.items()}
        ),
        shapes={n: s.at_rank(ranks[n]) for n, s in source.modules.items() if s.kind != "linear"},
        source=None if source.path is None else str(source.path),
    )
    written = peft_config(weights)
    rank = written.get("r")
    return replace(weights, metadata=written, rank=rank if type(rank) is int else weights.rank)
