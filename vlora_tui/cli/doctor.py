"""``doctor``: what is wrong with adapters, what a target will make of them, and the fix."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from vlora_engine.errors import ParameterError
from vlora_engine.findings import SEVERITIES
from vlora_tui.cli.declare import argument, option
from vlora_tui.cli.errors import FOUND
from vlora_tui.cli.hub_inputs import on_disk
from vlora_tui.cli.output import Output
from vlora_tui.utils.formatting import listed, plural

if TYPE_CHECKING:
    from vlora_engine.doctor import Report
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
            "Who is to load them: vllm, sglang, tgi, lorax, llamacpp, ollama, peft, portable.",
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
        str, option("--fail-on", "error, warning, note or never: what exits with 3.")
    ] = "error",
    headers: Annotated[
        bool, option("--headers", "Read headers alone: fast, no numbers are looked at.")
    ] = False,
) -> None:
    """Find what is wrong with adapters, and say what mends it; change nothing.

    Exit code 3 if anything as grave as --fail-on is found.
    """
    from vlora_tui.cli.environment import show_environment

    if fail_on not in FAIL_ON:
        raise ParameterError("--fail-on knows no such word.", expected=", ".join(FAIL_ON))
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
        out.json("doctor", report.as_dict())
        show_report(out, report)
        failed = report.fails(fail_on)
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
    sound = [adapter.name for adapter in report.examined if not adapter.findings]
    if sound:
        out.text(f"nothing found in {plural(len(sound), 'adapter')}: {listed(sound)}")
    total = plural(len(report.examined), "adapter")
    out.note(f"{total} looked at: {_counted(report.all_findings) or 'nothing found'}")


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
        out.text(f"         to mend it: {finding.remedy}")
    if finding.fix:
        more = f"  (and so for the other {len(same) - 1})" if len(same) > 1 else ""
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
