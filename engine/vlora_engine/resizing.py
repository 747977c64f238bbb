"""Another rank for an adapter: what dW loses least by, or, upwards, nothing.

Cutting a module to rank k keeps the k largest singular directions of its dW, which no other change
of rank k comes nearer to (Eckart, Young 1936). They follow from QR of both factors and the SVD of
a core of r x r (`canonical_svd`), never from a d_out x d_in matrix. Raising a rank adds rows and
columns of zeros: dW stays as it is, bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vlora_engine.adapters.model import (
    AdapterSource,
    LoRAWeights,
    ModuleShape,
    as_source,
    nominal_rank,
)
from vlora_engine.analysis.similarity import not_finite
from vlora_engine.errors import ParameterError
from vlora_engine.formats.peft_save import peft_config
from vlora_engine.linalg.low_rank import canonical_svd, delta_error2, delta_norm2
from vlora_engine.targets.registry import RANK_LIMITS
from vlora_engine.utils.progress import CancelCheck, ProgressCallback
from vlora_engine.utils.ranking import worst
from vlora_engine.utils.run_context import RunContext

STOPPED = "Stopped as asked; nothing of this adapter was written."


@dataclass(frozen=True)
class ResizedModule:
    """What one module became.

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
    """

    modules: dict[str, ResizedModule] = field(default_factory=dict)
    error: float = 0.0
    kept: float = 1.0
    short: str = ""

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
        """The same, for JSON."""
        worst, worst_error = self.worst
        return {
            "error": self.error,
            "kept": self.kept,
            "ranks": list(self.ranks),
            "former_ranks": list(self.former_ranks),
            "worst_module": worst or None,
            "worst_error": worst_error,
            "short": self.short or None,
            "modules": {name: asdict(module) for name, module in self.modules.items()},
        }


def resize(
    adapter: LoRAWeights | AdapterSource,
    *,
    rank: int | None = None,
    energy: float | None = None,
    dynamic: tuple[str, float] | None = None,
    target: str | None = None,
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
            or rsLoRA; no larger rank than it takes as it starts (vLLM: 16), or than ``rank``.
        progress: Told of every module.
        cancelled: Asked between two modules.

    Returns:
        The new adapter, whose config says its ranks (``rank_pattern`` where they differ), and
        the report. A module whose rank stays keeps its A and B bit for bit.

    Raises:
        ParameterError: No rule or more than one, or a value out of range.
        AdapterError: NaN or infinity in a factor.
        Cancelled: ``cancelled`` said so.
    """
    run, sizing = RunContext(progress, cancelled), Sizing(rank, energy, dynamic, target)
    source = as_source(adapter)
    spectra = {} if sizing.is_plain else _spectra(source, run)
    ranks, short = sizing.ranks(source.modules, spectra)
    uniform = one_scale(source.scales.values()) if sizing.is_uniform else None
    made: dict[str, _Made] = {}
    for done, name in enumerate(source.modules, start=1):
        run.stop_if_asked(STOPPED)
        made[name] = _resized(source, name, ranks[name], uniform, spectra.get(name))
        run.report("resize", done, len(source.modules), name)
    return _assembled(source, made, target), _reported(made, short)


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
    missing = rank - a.shape[0]
    a = torch.cat([a, a.new_zeros(missing, a.shape[1])])
    b = torch.cat([b, b.new_zeros(b.shape[0], missing)], dim=1)
    return a.contiguous(), b.contiguous(), S


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
        rest=source.read_rest(),
        shapes=_shapes(source.modules, ranks),
        source=None if source.path is None else str(source.path),
    )
    written = peft_config(weights)
    rank = written.get("r")
    return replace(weights, metadata=written, rank=rank if type(rank) is int else weights.rank)


def _shapes(modules: Mapping[str, ModuleShape], ranks: Mapping[str, int]) -> dict[str, ModuleShape]:
    """How modules that are not plain linear maps lie on disk, at their new rank."""
    return {
        name: replace(
            shape,
            rank=ranks[name],
            shape_a=(ranks[name], *shape.shape_a[1:]),
            shape_b=(shape.shape_b[0], ranks[name], *shape.shape_b[2:]),
        )
        for name, shape in modules.items()
        if shape.kind != "linear"
    }


DYNAMIC = ("sv_ratio", "sv_fro", "sv_cumulative")


MAX_RANK = 1 << 16


_ROUNDING = 1e-12  # a share that is reached but for rounding is reached


@dataclass(frozen=True)
class Sizing:
    """One request: see `vlora_engine.resizing.resize` for what its parts mean.

    Raises:
        ParameterError: No rule or more than one, or a value out of range.
    """

    rank: int | None = None
    energy: float | None = None
    dynamic: tuple[str, float] | None = None
    target: str | None = None

    def __post_init__(self) -> None:
        if all(v is None for v in (self.rank, self.energy, self.dynamic, self.target)):
            raise ParameterError(
                "It is not said what to resize to.",
                expected="a rank, an energy, a dynamic rule or a target",
                remedy="--rank 16, --energy 0.99, --dynamic sv_fro 0.97 or --for vllm",
            )
        given = [n for n in ("energy", "dynamic", "target") if getattr(self, n) is not None]
        if len(given) > 1:
            raise ParameterError(
                f"{given[0]} and {given[1]} are both given.", expected="one of them"
            )
        if self.rank is not None and not 1 <= self.rank <= MAX_RANK:
            raise ParameterError(
                "A rank is a positive whole number.",
                expected=f"1 to {MAX_RANK:,}",
                found=str(self.rank),
            )
        if self.energy is not None and not 0 < self.energy <= 1:
            raise _share_error("energy", self.energy)
        self._check_dynamic()
        self._check_target()

    @property
    def is_uniform(self) -> bool:
        """Whether all modules get one rank and one scale."""
        return self.target is not None

    @property
    def is_plain(self) -> bool:
        """Whether every module gets the rank that was named."""
        return self.energy is None and self.dynamic is None and self.target is None

    def ranks(
        self, modules: Mapping[str, Any], spectra: Mapping[str, Any]
    ) -> tuple[dict[str, int], str]:
        """The new rank of every module, and why less is kept than was asked for (or nothing).

        Args:
            modules: Their shapes, with ``rank``, ``d_in``, ``d_out``.
            spectra: Per module its singular values, descending, numerically zero ones left out.
        """
        if self.is_plain:
            return dict.fromkeys(modules, self.rank or 1), ""
        values = {name: [float(s) for s in spectra[name]] for name in modules}
        if self.target is not None:
            return self._for_target(values)
        if self.energy is not None:
            wanted = cheapest(modules, values, self.energy)
        else:
            rule, limit = self.dynamic or ("", 0.0)
            wanted = {name: dynamic_rank(rule, limit, s) for name, s in values.items()}
        cap = MAX_RANK if self.rank is None else self.rank
        ranks = {name: min(rank, cap) for name, rank in wanted.items()}
        cut = sum(ranks[name] < wanted[name] for name in ranks)
        return ranks, f"rank {cap} is the most, and {cut} modules need more" if cut else ""

    def _for_target(self, values: Mapping[str, Sequence[float]]) -> tuple[dict[str, int], str]:
        """One rank for all: the smallest that loses nothing, or the most that is allowed.

        With ``rank``: that rank, where the server takes any.
        """
        limit = RANK_LIMITS[str(self.target)]
        needed = max((len(s) for s in values.values()), default=0) or 1
        if not limit.choices:
            return dict.fromkeys(values, self.rank or needed), ""
        most = self.rank or limit.default
        allowed = [rank for rank in limit.choices if rank <= most]
        rank = next((r for r in allowed if r >= needed), max(allowed))
        return dict.fromkeys(values, rank), ""

    def _check_dynamic(self) -> None:
        if self.dynamic is None:
            return
        rule, value = self.dynamic
        if rule not in DYNAMIC:
            raise ParameterError(
                f"There is no rule {rule!r}.", expected=", ".join(DYNAMIC), found=repr(rule)
            )
        if rule == "sv_ratio":
            if not 1 <= value < math.inf:
                raise ParameterError(
                    "sv_ratio is the largest singular value over the smallest to keep.",
                    expected="a number of at least 1",
                    found=str(value),
                )
        elif not 0 < value <= 1:
            raise _share_error(rule, value)

    def _check_target(self) -> None:
        if self.target is None:
            return
        limit = RANK_LIMITS.get(self.target)
        if limit is None:
            raise ParameterError(
                f"There is no server {self.target!r}.",
                expected=", ".join(RANK_LIMITS),
                found=self.target,
            )
        if self.rank is not None and limit.choices and self.rank not in limit.choices:
            raise ParameterError(
                f"{self.target} cannot be started with this largest rank.",
                expected=", ".join(map(str, limit.choices)),
                found=str(self.rank),
            )


def cheapest(
    modules: Mapping[str, Any], values: Mapping[str, Sequence[float]], energy: float
) -> dict[str, int]:
    """Ranks that keep a share of all modules' energy with few numbers stored.

    Directions are taken by their energy per number stored (d_in + d_out each) until the share is
    reached: within one direction of the fewest numbers that can do it. At least one a module.
    """
    offers = sorted(
        (-s * s / (modules[name].d_in + modules[name].d_out), name, j, s * s)
        for name, own in values.items()
        for j, s in enumerate(own)
    )
    # Summed as they are taken: where all is asked for, all of it is reached by the last one.
    total = math.fsum(offer[3] for offer in offers)
    ranks = dict.fromkeys(values, 1)
    taken = math.fsum(own[0] ** 2 for own in values.values() if own)
    for _, name, j, gain in offers:
        if taken >= energy * total * (1 - _ROUNDING) and energy < 1:
            break
        if j:
            ranks[name] = j + 1
            taken += gain
    return ranks


def dynamic_rank(rule: str, limit: float, values: Sequence[float]) -> int:
    """How many singular values kohya's ``rule`` keeps; at least one."""
    if not values:
        return 1
    if rule == "sv_ratio":
        return max(1, sum(s * limit >= values[0] * (1 - _ROUNDING) for s in values))
    power = 2 if rule == "sv_fro" else 1
    wanted = limit**power * math.fsum(s**power for s in values) * (1 - _ROUNDING)
    kept = 0.0
    for count, s in enumerate(values, start=1):
        kept += s**power
        if kept >= wanted:
            return count
    return len(values)


def _share_error(name: str, value: float) -> ParameterError:
    return ParameterError(f"{name} is a share.", expected="above 0 and at most 1", found=str(value))
