"""What a rule of the doctor is, and the one table of all of them. No torch.

A rule is a frozen row (code, severity, targets, what, remedy, source, since) and a function from a
`Subject` to what it found there. The rows say why they are believed; the functions say where.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vlora_engine.errors import place_words
from vlora_engine.findings import SEVERITIES, Finding, Severity
from vlora_engine.formats.rest_tensors import is_foreign
from vlora_engine.targets.fit import facts_from, misfits
from vlora_engine.targets.registry import find_target
from vlora_engine.utils.file_names import ADAPTER_CONFIG

if TYPE_CHECKING:
    from torch import Tensor

    from vlora_engine.adapters.check import AdapterCheck
    from vlora_engine.adapters.model import ModuleShape
    from vlora_engine.doctor.base_facts import BaseFacts
    from vlora_engine.errors import VLoRAError
    from vlora_engine.nn.base_modules import Reach

Stage = Literal["reading", "headers", "base", "target", "tensors", "together"]
TARGETS = ("vllm", "sglang", "tgi", "lorax", "llamacpp", "ollama", "peft", "portable")
PEFT = "https://github.com/huggingface/peft"
ENGINE = "vlora_engine"


@dataclass(frozen=True)
class Rule:
    """One row of the table.

    Args:
        code: A stable word for programs.
        severity: ``error`` (refused, or wrong in silence), ``warning`` (look), ``note``.
        what: The rule in one sentence.
        remedy: What mends it, where it is the same every time.
        source: Where it was read or tried: an address, or a module of this engine.
        since: The version, or the time, at which the source was read.
        targets: The targets that it is about; none for all adapters.
        stage: What it takes to judge.
    """

    code: str
    severity: Severity
    what: str
    remedy: str = ""
    source: str = ENGINE
    since: str = "vlora-tui 0.1"
    targets: tuple[str, ...] = ()
    stage: Stage = "headers"

    def as_dict(self) -> dict[str, Any]:
        """All of it as values for JSON."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


@dataclass(frozen=True)
class Hit:
    """What a rule's function found; the rest of the finding is the rule's own.

    The fields are those of `Finding`.
    """

    what: str
    remedy: str = ""
    fix: str = ""
    _: KW_ONLY
    adapter: str = ""
    file: str = ""
    module: str = ""
    tensor: str = ""
    place: str = ""

    @classmethod
    def of(cls, finding: Finding, **changed: str) -> Hit:
        """What another check found, or what a rule makes of it."""
        known = {field.name: getattr(finding, field.name) for field in fields(cls)}
        return cls(**{**known, **changed})

    def as_finding(self, row: Rule, adapter: str) -> Finding:
        """The finding under the rule's code, on this adapter."""
        found = Finding(
            row.code,
            row.severity,
            self.what,
            self.remedy or row.remedy,
            self.fix,
            adapter=adapter or self.adapter,
            file=self.file,
            module=self.module,
            tensor=self.tensor,
            rule=row.what,
        )
        place = place_words(self.adapter or adapter, self.file, self.module, self.tensor)
        return found.called(self.place or place)


@dataclass(frozen=True)
class Subject:
    """One adapter as far as it is known.

    ``format`` is the name of the one that recognised it. ``modules`` is None where its headers
    could not be read. ``tensors`` holds dtype and shape of
    every tensor under its key in the file, where there is such a file. ``target`` is who is to
    load it, where that is asked for. ``more_rest`` counts tensors like those of ``rest`` that no
    header names, as of a task. ``reach`` says how much of it PEFT applies to ``base``.
    """

    path: Path
    format: str = "peft"
    config: Mapping[str, Any] = field(default_factory=dict)
    modules: Mapping[str, ModuleShape] | None = None
    scales: Mapping[str, float] = field(default_factory=dict)
    rest: Mapping[str, tuple[str, tuple[int, ...]]] = field(default_factory=dict)
    tensors: Mapping[str, tuple[str, tuple[int, ...]]] = field(default_factory=dict)
    weights: Path | None = None
    files: frozenset[str] = frozenset()
    remarks: tuple[Finding, ...] = ()
    error: VLoRAError | None = None
    base: BaseFacts | None = None
    reach: Reach | None = None
    facts: TensorFacts | None = None
    target: str | None = None
    more_rest: int = 0

    @property
    def at_config(self) -> str:
        """The place of its config, for findings."""
        return str(self.path / ADAPTER_CONFIG) if self.path.is_dir() else str(self.path)

    @property
    def at_weights(self) -> str:
        """The place of its tensors, for findings."""
        return str(self.weights or self.path)

    @cached_property
    def misfits(self) -> tuple[VLoRAError, ...]:
        """Why an export to the target would refuse it: the doctor has no judge of its own."""
        if self.target is None or not self.modules:
            return ()  # of what cannot be read the reader has told
        name = str(self.path)
        zero = frozenset() if self.facts is None else self.facts.zero
        rest = [key for key in self.rest if key not in zero]
        facts = facts_from(self.modules, rest, self.config, name, more=self.more_rest)
        base = None if self.base is None else self.base.name
        out = Path(f"{name}-{self.target}")
        return tuple(misfits(find_target(self.target), facts, base=base, out=out))

    def remarked(self, code: str) -> list[Finding]:
        """What reading its headers remarked under this code."""
        return [finding for finding in self.remarks if finding.code == code]

    def command(self, name: str, *flags: str, suffix: str) -> str:
        """A command of this program on this adapter that writes beside it."""
        out = f"{str(self.path).replace(':', '-')}-{suffix}"
        return shlex.join(["vlora-tui", name, str(self.path), "-o", out, *flags])


Find = Callable[[Subject], Iterable[Hit]]
RULES: dict[str, tuple[Rule, Find]] = {}


def add_rule(rule: Rule, find: Find) -> None:
    """Put a row into the table; two of one code are a fault of the program."""
    if rule.code in RULES:
        raise ValueError(f"two rules are called {rule.code!r}")
    RULES[rule.code] = (rule, find)


def rule(code: str, severity: Severity, what: str, **row: Any) -> Callable[[Find], Find]:
    """Register the decorated function under a new row; it may stand under several."""

    def register(find: Find) -> Find:
        add_rule(Rule(code, severity, what, **row), find)
        return find

    return register


def applied(subject: Subject, stages: Sequence[Stage], target: str | None) -> Iterator[Finding]:
    """The findings of every rule of these stages that concerns ``target``, gravest first."""
    subject = replace(subject, target=target)
    found = [
        hit.as_finding(row, str(subject.path))
        for row, find in RULES.values()
        if row.stage in stages and (not row.targets or target in row.targets)
        for hit in find(subject)
    ]
    yield from sorted(found, key=lambda finding: SEVERITIES.index(finding.severity))


FP16_MOST = 65504.0


_ENOUGH = 256  # entries of A by which a distribution is told


_SIGMAS = 5.0


@dataclass
class TensorFacts:
    """What one pass over an adapter's tensors found.

    Args:
        check: The verdict of `vlora_engine.adapters.check`: norms, digest, what is not finite.
        idle: Modules whose B or A is zero in every entry.
        fresh: Modules whose A is still spread as PEFT initialises it.
        large: Modules with entries that fp16 cannot hold.
        zero: Tensors beside the factors that are zero in every entry.
        of_base: Whether a tensor beside the factors is the base's own, where that was looked at.
    """

    check: AdapterCheck | None = None
    idle: list[str] = field(default_factory=list)
    fresh: list[str] = field(default_factory=list)
    large: list[str] = field(default_factory=list)
    zero: set[str] = field(default_factory=set)
    of_base: dict[str, bool] = field(default_factory=dict)

    def observe_rest(self, key: str, tensor: Tensor) -> None:
        """Look at one tensor that is no factor."""
        if is_foreign(key) and not bool(tensor.any()):
            self.zero.add(key)

    def observe(self, module: str, a: Tensor, b: Tensor) -> None:
        """Look at one module's A (r, d_in) and B (d_out, r)."""
        if not bool(a.float().any()) or not bool(b.float().any()):
            self.idle.append(module)
        if is_fresh(a):
            self.fresh.append(module)
        if max(float(a.float().abs().amax()), float(b.float().abs().amax())) > FP16_MOST:
            self.large.append(module)


def is_fresh(a: Tensor) -> bool:
    """Whether A is spread as PEFT's default leaves it: uniform up to 1 / sqrt(d_in).

    Training moves some entry beyond the bound almost at once. The spread must be that of the
    uniform distribution too, so that merely small entries do not count.
    """
    values = a.float()
    bound = 1 / math.sqrt(a.shape[1])
    if a.numel() < _ENOUGH or float(values.abs().amax()) > bound * 1.004:  # bf16 rounds by 0.4 %
        return False
    # The deviation of n uniform entries is off by 0.45 / sqrt(n) of itself (kurtosis 1.8).
    near = max(0.02, _SIGMAS * 0.45 / math.sqrt(a.numel()))
    return abs(float(values.std()) / (bound / math.sqrt(3)) - 1) < near
