"""``doctor``: what is wrong with adapters, what a target will make of them, and the fix."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vlora_engine.errors import ParameterError
from vlora_engine.findings import SEVERITIES
from vlora_tui.cli import options as o
from vlora_tui.cli.declare import argument, option
from vlora_tui.cli.errors import FOUND
from vlora_tui.cli.hub_inputs import on_disk
from vlora_tui.cli.output import Output
from vlora_tui.utils.formatting import listed, plural, printable

if TYPE_CHECKING:
    from vlora_engine.doctor import Repaired, Report
    from vlora_engine.findings import Finding

FAIL_ON = ("error", "warning", "note", "never")
ENVIRONMENT, TABLE = "env", "rules"  # words that are no paths; ./env names a folder


def doctor(
    out: Output,
    paths: Annotated[
        list[str],
        argument(
            "Adapters, folders of them, subspaces; or env: this machine; or rules: the table.",
            metavar="PATHS",
        ),
    ],
    target: Annotated[
        str | None,
        option(
            "--target",
            "The target to check for: vllm, sglang, tgi, lorax, llamacpp, ollama, peft, portable.",
        ),
    ] = None,
    base: Annotated[
        str | None,
        option("--base", "The base model's folder, or its config.json.", metavar="MODEL"),
    ] = None,
    merged: Annotated[
        str | None,
        option(
            "--merged",
            "A checkpoint that ADAPTER was merged into: compare it with --base + ADAPTER.",
            metavar="MODEL",
        ),
    ] = None,
    fail_on: Annotated[
        str, option("--fail-on", "Exit 3 from this severity on: error, warning, note or never.")
    ] = "error",
    headers: Annotated[
        bool, option("--headers", "Read headers only: fast, values are not checked.")
    ] = False,
    fix: Annotated[
        bool,
        option("--fix", "Write a copy to -o under the names that PEFT expects."),
    ] = False,
    output: Annotated[
        str | None, option("-o", "--output", "Where --fix writes.", metavar="DIR")
    ] = None,
    force: o.Force = False,
) -> None:
    """Find what is wrong with adapters, and say what mends it; --fix mends names in a copy.

    With --base it says how many modules PEFT applies to that model. Exit code 3 if anything as
    grave as --fail-on is found; with --fix, if it is found in what was written.
    """
    from vlora_tui.cli.environment import show_environment

    if fail_on not in FAIL_ON:
        raise ParameterError("Unknown value for --fail-on.", expected=", ".join(FAIL_ON))
    if fix != (output is not None) or (fix and paths in ([ENVIRONMENT], [TABLE])):
        raise ParameterError(
            "--fix needs -o: it writes a repaired copy.",
            remedy="vlora-tui doctor ADAPTER --fix -o OUT",
        )
    if fix and merged is not None:
        raise ParameterError(
            "--fix and --merged are both given: the one writes a copy, the other compares.",
            expected="one of them",
        )
    if merged is not None:
        from vlora_tui.cli.doctor_merged import compare_merged

        failed = compare_merged(out, paths, base, merged, fail_on)
    elif paths == [ENVIRONMENT]:
        failed = show_environment(out, fail_on)
    elif paths == [TABLE]:
        failed = False
        show_rules(out, target)
    else:
        report = _examine(out, paths, target, base, headers)
        repaired = _repaired(report, Path(output), base, target, headers, force) if output else []
        more = {"fixed": [each.as_dict() for each in repaired]} if fix else {}
        out.json("doctor", report.as_dict() | more)
        show_report(out, report)
        for each in repaired:
            _show_repaired(out, each)
        failed = any(each.fails(fail_on) for each in [r.found for r in repaired] or [report])
    if failed:
        raise typer.Exit(FOUND)


def show_report(out: Output, report: Report) -> None:
    """Findings, the gravest first; what several adapters share stands there once."""
    alike: dict[tuple[str, str, str, str], list[tuple[str, str, Finding]]] = {}
    findings = [(p.name, p.path, finding) for p in report.examined for finding in p.findings]
    findings += [("", "", finding) for finding in report.findings]
    for name, path, finding in findings:
        key = (finding.severity, finding.code, finding.what, finding.remedy)
        alike.setdefault(key, []).append((name, path, finding))
        out.essence(f"{finding.severity} {finding.code} {finding.where}")
    for severity in SEVERITIES:
        for key, same in alike.items():
            if key[0] == severity:
                _show(out, same)
    applied: dict[str, list[str]] = {}
    for adapter in report.examined:
        if adapter.reach is not None:
            words = str(adapter.reach) if report.base else adapter.reach.unknown
            applied.setdefault(words, []).append(adapter.name)
    for words, named in applied.items():
        line = words if report.base else f"modules that apply: cannot tell: {words}"
        out.text(line if len(report.examined) == 1 else f"{line}: {listed(named)}")
    sound = [adapter.name for adapter in report.examined if not adapter.findings]
    if sound:
        out.text(f"nothing found in {plural(len(sound), 'adapter')}: {listed(sound)}")
    total = plural(len(report.examined), "adapter")
    out.note(f"{total} looked at: {_counted(report.all_findings) or 'nothing found'}")


def _show_repaired(out: Output, repaired: Repaired) -> None:
    """Where a copy went, how many names changed, and what is still to be said of it."""
    names = plural(repaired.renamed, "module")
    how = "skipped, the same is there already:" if repaired.skipped else "written to"
    out.text(f"{how} {printable(str(repaired.output))}: {names} renamed, all bits the same")
    show_report(out, repaired.found)


def show_rules(out: Output, target: str | None) -> None:
    """The table of rules, with what each of them is believed on."""
    from vlora_engine.doctor import all_rules, check_target

    if target is not None:
        check_target(target)
    rules = [rule for rule in all_rules() if target is None or target in rule.targets]
    out.json("doctor-rules", {"rules": [rule.as_dict() for rule in rules]})
    out.table(
        ("code", "severity", "target", "what", "source", "read at"),
        [
            (r.code, r.severity, ", ".join(r.targets) or "-", r.what, r.source, r.since)
            for r in rules
        ],
    )
    for rule in rules:
        out.essence(rule.code)


def _repaired(
    report: Report, output: Path, base: str | None, target: str | None, headers: bool, force: bool
) -> list[Repaired]:
    from vlora_engine.doctor import read_base
    from vlora_engine.doctor.repairs import repair

    facts = None if base is None else read_base(base)
    repaired: list[Repaired] = repair(
        report.examined, output, base=facts, target=target, read_tensors=not headers, force=force
    )
    return repaired


def _examine(
    out: Output, paths: Sequence[str], target: str | None, base: str | None, headers: bool
) -> Report:
    from vlora_engine.doctor import check_target, diagnose, read_base
    from vlora_tui.cli.execute import stop_on_signals
    from vlora_tui.cli.look import expand
    from vlora_tui.cli.progress import Watcher

    if target is not None:
        check_target(target)
    facts = None if base is None else read_base(base)
    fetched = on_disk(out, *expand(paths))
    with Watcher(out) as watcher, stop_on_signals(out) as stop:
        return diagnose(
            fetched,
            target=target,
            base=facts,
            read_tensors=not headers,
            progress=watcher.on_progress,
            cancelled=stop.is_set,
        )


def _show(out: Output, same: Sequence[tuple[str, str, Finding]]) -> None:
    _, path, finding = same[0]
    out.text(f"{finding.severity:<8} {finding.code}: {finding.what}")
    names = list(dict.fromkeys(name for name, _, _ in same if name))
    where = _below(finding.where, path) if len(names) < 2 else ""
    if names or where:
        out.text(f"         where: {listed(names)}{': ' if names and where else ''}{where}")
    if finding.remedy:
        out.text(f"         fix: {finding.remedy}")
    if finding.fix:
        more = f"  (same for the other {len(same) - 1})" if len(same) > 1 else ""
        out.text(f"         command: {finding.fix}{more}")


def _below(where: str, path: str) -> str:
    """A place by its path below the adapter; empty for the adapter itself."""
    if path and where.startswith(path):
        return where[len(path) :].lstrip(os.sep + ": ")
    return where


def _counted(findings: Iterable[Finding]) -> str:
    severities = [finding.severity for finding in findings]
    counts = [(severity, severities.count(severity)) for severity in SEVERITIES]
    return ", ".join(plural(number, severity) for severity, number in counts if number)
