"""Which rank each module gets: a request for another rank, checked, and its rules worked out.

Plain arithmetic on singular values; `vlora_engine.resizing.resize` does the cutting. No torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vlora_engine.errors import ParameterError
from vlora_engine.targets.registry import RANK_LIMITS

MAX_ERROR = 0.01  # of dW, where a server's limit is the reason to cut and no rank is named
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
    max_error: float | None = None

    def __post_init__(self) -> None:
        if all(v is None for v in (self.rank, self.energy, self.dynamic, self.target)):
            raise ParameterError(
                "It is not said what to resize to.",
                expected="a rank, an energy, a dynamic rule or a target",
                remedy="--rank 16, --energy 0.99, --dynamic sv_fro 0.97 or --target vllm",
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
        if self.max_error is not None and not 0 <= self.max_error < math.inf:
            raise ParameterError(
                "max_error is a share of dW.", expected="0 or more", found=str(self.max_error)
            )
        self._check_dynamic()
        self._check_target()

    @property
    def is_uniform(self) -> bool:
        """Whether all modules get one rank and one scale."""
        return self.target is not None

    @property
    def needs_spectra(self) -> bool:
        """Whether the ranks follow from singular values."""
        return self.energy is not None or self.dynamic is not None

    @property
    def allowed_error(self) -> float | None:
        """How much dW may change; None where that is only said."""
        by_server_alone = self.target is not None and self.rank is None
        return MAX_ERROR if self.max_error is None and by_server_alone else self.max_error

    def ranks(
        self, modules: Mapping[str, Any], spectra: Mapping[str, Any]
    ) -> tuple[dict[str, int], str]:
        """The new rank of every module, and why less is kept than was asked for (or nothing).

        Args:
            modules: Their shapes, with ``rank``, ``d_in``, ``d_out``.
            spectra: Per module its singular values, descending, numerically zero ones left out.
        """
        if self.target is not None:
            return dict.fromkeys(modules, self._for_target(modules)), ""
        if not self.needs_spectra:
            return dict.fromkeys(modules, self.rank or 1), ""
        values = {name: [float(s) for s in spectra[name]] for name in modules}
        if self.energy is not None:
            wanted = cheapest(modules, values, self.energy)
        else:
            rule, limit = self.dynamic or ("", 0.0)
            wanted = {name: dynamic_rank(rule, limit, s) for name, s in values.items()}
        cap = MAX_RANK if self.rank is None else self.rank
        ranks = {name: min(rank, cap) for name, rank in wanted.items()}
        cut = sum(ranks[name] < wanted[name] for name in ranks)
        return ranks, f"rank {cap} is the most, and {cut} modules need more" if cut else ""

    def _for_target(self, modules: Mapping[str, Any]) -> int:
        """One rank for all: the largest that there is, unless the server or ``rank`` has less."""
        largest = max((shape.rank for shape in modules.values()), default=0) or 1
        most = max(RANK_LIMITS[str(self.target)].choices, default=MAX_RANK)
        return min(largest, most, self.rank or MAX_RANK)

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
        most = max(limit.choices, default=MAX_RANK)
        if self.rank is not None and self.rank > most:
            raise ParameterError(
                f"{self.target} takes no rank as large as this.",
                expected=f"at most {most}",
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
