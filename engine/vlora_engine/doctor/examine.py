"""The doctor's round: every adapter at some places, looked at alone, then together.

Headers come first and need no torch; tensors are read one adapter at a time, one module in memory.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlora_engine.adapters.address import AdapterRef
from vlora_engine.catalog.locate import existing_path
from vlora_engine.catalog.open import FORMATS, open_adapter, task_of_subspace
from vlora_engine.catalog.read import read_manifest
from vlora_engine.catalog.scanner import scan
from vlora_engine.catalog.subspace_tasks import inspect_task
from vlora_engine.doctor import (  # noqa: F401  (importing them fills the table)
    base_rules,
    header_rules,
    program_rules,
    provenance_rules,
    reading_rules,
    server_rules,
    tensor_rules,
)
from vlora_engine.doctor.collection_rules import together
from vlora_engine.doctor.rules import RULES, TARGETS, Rule, Stage, Subject, applied
from vlora_engine.doctor.subspace_check import check_subspace
from vlora_engine.doctor.tensor_rules import read_facts
from vlora_engine.errors import ParameterError, UnsupportedAdapterError, VLoRAError
from vlora_engine.findings import SEVERITIES, Finding, Severity, finding_of
from vlora_engine.formats.base import Inspection, Probe
from vlora_engine.nn.base_modules import Reach, keys_of, reach
from vlora_engine.utils.naming import printable
from vlora_engine.utils.progress import CancelCheck, ProgressCallback
from vlora_engine.utils.run_context import RunContext

if TYPE_CHECKING:
    from vlora_engine.catalog.scanner import AdapterInfo
    from vlora_engine.doctor.base_facts import BaseFacts

Places = str | Path | AdapterRef | Iterable[str | Path | AdapterRef]

_HEADERS: tuple[Stage, ...] = ("reading", "headers", "base", "target")


@dataclass(frozen=True)
class Examined:
    """One adapter, or one subspace, and what was found about it, gravest first."""

    name: str
    path: str
    kind: str
    findings: tuple[Finding, ...]
    reach: Reach | None = None  # of an adapter whose modules are known

    def as_dict(self) -> dict[str, Any]:
        """All of it as values for JSON."""
        return {
            "name": self.name,
            "path": printable(self.path),
            "kind": self.kind,
            "applies": None if self.reach is None else self.reach.as_dict(),
            "findings": [finding.as_json() for finding in self.findings],
        }


@dataclass
class Report:
    """What the doctor found: one by one, and about all of them together."""

    examined: list[Examined] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    target: str | None = None
    base: str | None = None

    @property
    def all_findings(self) -> list[Finding]:
        """Every finding of every adapter, and those on several together."""
        return [f for adapter in self.examined for f in adapter.findings] + self.findings

    def count(self, severity: Severity) -> int:
        """How many findings are of this severity."""
        return sum(finding.severity == severity for finding in self.all_findings)

    def fails(self, limit: str) -> bool:
        """Whether anything is as grave as ``limit`` (``never``: nothing is)."""
        if limit == "never":
            return False
        worst = SEVERITIES[: SEVERITIES.index(limit) + 1]
        return any(finding.severity in worst for finding in self.all_findings)

    def as_dict(self) -> dict[str, Any]:
        """All of it as values for JSON."""
        return {
            "target": self.target,
            "base": self.base,
            "counts": {severity: self.count(severity) for severity in SEVERITIES},
            "adapters": [adapter.as_dict() for adapter in self.examined],
            "findings": [finding.as_json() for finding in self.findings],
        }


def verdict(
    adapter: Inspection | AdapterInfo | str | Path | AdapterRef, target: str
) -> list[Finding]:
    """What ``target`` will refuse of an adapter or silently get wrong, from headers alone.

    An adapter that cannot be read at all has that as its one finding, one that is still on the Hub
    has none. No torch is imported, so a screen may ask.

    Args:
        adapter: An inspection, an entry of the catalog, or a path (``DIR:TASK`` too).
        target: One of `TARGETS`.

    Raises:
        ParameterError: There is no such target.
        NotFoundError: There is nothing at the path.
    """
    check_target(target)
    if isinstance(adapter, Inspection):
        subject = subject_of(adapter)
    elif isinstance(adapter, str | Path | AdapterRef):
        subject = subject_at(adapter)
    elif isinstance(adapter.path, AdapterRef):
        return []  # told of when it is here
    elif adapter.error is not None:
        subject = Subject(adapter.path, error=adapter.error)
    else:
        subject = subject_at(adapter.path)
    findings = applied(subject, ("reading", "target"), target)
    about_target = {code for code, (row, _) in RULES.items() if row.stage == "target"}
    refusals = reading_rules.REFUSALS  # remarks are no business of it
    return [finding for finding in findings if finding.code in {*about_target, *refusals}]


def diagnose(
    paths: Places,
    *,
    target: str | None = None,
    base: BaseFacts | None = None,
    read_tensors: bool = True,
    progress: ProgressCallback | None = None,
    cancelled: CancelCheck | None = None,
) -> Report:
    """Look at every adapter and subspace at or below ``paths``.

    Args:
        paths: Places, as `vlora_engine.scan` takes them; what is on the Hub is fetched.
        target: Who is to load them; adds what that program refuses or gets wrong.
        base: The model that they are meant for (`vlora_engine.doctor.base_facts.read_base`).
        read_tensors: Whether to look at the numbers too, and at the bytes of subspaces.
        progress: Told of every adapter.
        cancelled: Asked between two.

    Raises:
        NotFoundError: A path does not exist, or there is no adapter at any of them.
        ParameterError: An unknown target, or a path that is no local one.
        Cancelled: ``cancelled`` said so.
    """
    run = RunContext(progress, cancelled)
    if target is not None:
        check_target(target)
    catalog = scan(_on_disk(paths))
    report = Report(target=target, base=None if base is None else base.name)
    subjects: dict[str, Subject] = {}
    total = len(catalog.adapters) + len(catalog.subspaces)
    for info in catalog.adapters:
        _step(run, len(report.examined), total, info.name)
        subject = replace(subject_at(info.here, entry=info), base=base)
        if read_tensors and (subject.modules or subject.error is None):
            subject = _with_facts(info.name, subject)
        subject = with_reach(subject)
        subjects[info.name] = subject
        stages = (*_HEADERS, "tensors")
        findings = tuple(applied(subject, stages, target))
        report.examined.append(
            Examined(info.name, str(info.path), info.format, findings, subject.reach)
        )
    for place in catalog.subspaces:
        _step(run, len(report.examined), total, place.name)
        here = place if isinstance(place, Path) else existing_path(place)
        report.examined.append(_subspace(here, target, base, read_tensors))
    report.findings = [*catalog.findings, *together(subjects)]
    report.findings = [_with_rule(f) for f in report.findings if f.code != "subspace"]
    return report


def _on_disk(places: Places) -> list[AdapterRef]:
    """The places with those on the Hub fetched into its cache."""
    given = [places] if isinstance(places, str | Path | AdapterRef) else places
    refs = [AdapterRef.parse(place) for place in given]
    return [AdapterRef.at(existing_path(ref), ref.task) if ref.is_hub else ref for ref in refs]


def subject_at(path: str | Path | AdapterRef, *, entry: AdapterInfo | None = None) -> Subject:
    """What the headers of an adapter tell; a refusal is part of it, not an error.

    Args:
        entry: What a catalog found there, where it has looked already.

    Raises:
        NotFoundError: There is nothing there.
    """
    task = task_of_subspace(path)
    if task is not None:
        return subject_of(inspect_task(*task))
    place = Path(path)
    error = None if entry is None else entry.error
    try:
        probe = Probe(place)
        form = FORMATS.find(probe)
        if form is None:
            return Subject(place, "unknown", error=error)
        if error is not None:
            raise error
        return replace(subject_of(form.inspect(probe), probe), format=form.name)
    except UnsupportedAdapterError as refused:
        # Refused, yet readable: what else is remarkable can be said all the same.
        return replace(_despite(place, refused), error=refused)
    except VLoRAError as refused:
        config, files = _config_at(place), _names(place)
        return Subject(place, _format_at(place), config, files=files, error=refused)


def subject_of(seen: Inspection, probe: Probe | None = None) -> Subject:
    """An inspection as the rules want it; of tensors that are not understood they get none."""
    contents: Any = None
    if seen.opaque:
        seen = replace(seen, modules=None, rest={})
    if probe is not None and seen.modules is not None and probe.tensor_file is not None:
        contents = probe.contents.tensors
    return Subject(
        path=seen.path,
        config=seen.config,
        modules=seen.modules,
        scales=seen.scales,
        rest=seen.rest,
        tensors=contents or {},
        weights=seen.weights,
        files=probe.names if probe is not None else frozenset(),
        remarks=seen.findings,
    )


def with_reach(subject: Subject) -> Subject:
    """The same, with how much of it PEFT applies to its base."""
    modules = subject.modules or {}
    if not modules:
        return subject
    if subject.base is None:
        unknown = Reach(len(modules), unknown="no base model is named (--base)")
        return replace(subject, reach=unknown)
    tensors = {key: shape for key, (_, shape) in subject.tensors.items()}
    config = subject.config
    if subject.format != "peft" or not tensors:
        tensors = keys_of(modules) | {key: shape for key, (_, shape) in subject.rest.items()}
    if subject.format not in ("", "peft"):  # its ranks stand in the tensors alone
        ranks = {name: shape.rank for name, shape in modules.items()}
        config = {**config, "rank_pattern": ranks, "target_modules": list(modules)}
    return replace(subject, reach=reach(modules, config, tensors, subject.base.name))


def all_rules() -> list[Rule]:
    """Every row of the table of rules, in order; this module has loaded those that fill it."""
    return [row for row, _ in RULES.values()]


def check_target(target: str) -> None:
    """Raise ParameterError unless there are rules for ``target``."""
    if target not in TARGETS:
        raise ParameterError(
            f"There is no target {target!r}.", expected=", ".join(TARGETS), found=target
        )


def _despite(place: Path, refused: VLoRAError) -> Subject:
    try:
        probe = Probe(place)
        form = FORMATS.find(probe)
        if form is not None and probe.has_config:
            seen = form.inspect(probe, allow_unsupported=True)
            return replace(subject_of(seen, probe), format=form.name)
    except VLoRAError:
        pass
    config, files = _config_at(place), _names(place)
    return Subject(place, _format_at(place), config, files=files, error=refused)


def _format_at(place: Path) -> str:
    try:
        form = FORMATS.find(Probe(place))
    except VLoRAError:
        form = None
    return "unknown" if form is None else form.name


def _config_at(place: Path) -> dict[str, Any]:
    try:
        return dict(Probe(place).loose_config)
    except VLoRAError:
        return {}


def _names(place: Path) -> frozenset[str]:
    try:
        return frozenset(os.listdir(place)) if place.is_dir() else frozenset()
    except OSError:
        return frozenset()


def _with_facts(name: str, subject: Subject) -> Subject:
    """The same with its tensors looked at; a kind that is refused is read as it is.

    Of a pickle only now is known what is in it.
    """
    try:
        source = open_adapter(subject.path, allow_unsupported=subject.error is not None)
    except VLoRAError as error:
        return replace(subject, error=subject.error or error)
    facts = read_facts(name, source, subject.base)
    fault = facts.check.error if facts.check is not None else None
    if fault is not None and fault.code != "not-finite":
        return replace(subject, error=subject.error or fault)
    if subject.modules is None:
        remarks = {*subject.remarks, *getattr(source, "findings", ())}
        subject = replace(
            subject,
            modules=source.modules,
            scales=source.scales,
            rest=source.rest,
            remarks=tuple(sorted(remarks, key=lambda f: tuple(f.as_dict().values()))),
        )
    return replace(subject, facts=facts)


def _subspace(
    place: Path, target: str | None, base: BaseFacts | None, read_tensors: bool
) -> Examined:
    """A subspace's own health, and what every task of it would meet at the target."""
    findings = list(check_subspace(place)) if read_tensors else []
    try:
        tasks: Sequence[str] = list(read_manifest(place).tasks)
    except VLoRAError as error:
        findings = findings or [finding_of(error, str(place)).called(str(place))]
        tasks = []
    for task in tasks if target is not None or base is not None else ():
        subject = with_reach(replace(subject_of(inspect_task(place, task)), base=base))
        findings += applied(subject, ("base", "target"), target)
    ordered = sorted(
        map(_with_rule, findings), key=lambda finding: SEVERITIES.index(finding.severity)
    )
    return Examined(place.name, str(place), "subspace", tuple(ordered))


def _with_rule(finding: Finding) -> Finding:
    """With the sentence of the rule of this code, where there is one."""
    row, _ = RULES.get(finding.code, (None, None))
    return finding if row is None or finding.rule else replace(finding, rule=row.what)


def _step(run: RunContext, done: int, total: int, name: str) -> None:
    run.stop_if_asked("Stopped as asked; nothing was changed.")
    run.report("diagnose", done, total, name)
