"""``doctor env``: this machine as jobs and the interface find it."""

from __future__ import annotations

from vlora_tui.cli.output import Output


def show_environment(out: Output, fail_on: str) -> bool:
    """Print what is here and what gets in the way; whether anything is as grave as ``fail_on``."""
    from vlora_engine.doctor import SEVERITIES
    from vlora_tui.cli.environment import environment_findings, facts

    environment, findings = facts(), environment_findings()
    out.json("doctor-env", {"facts": environment, "findings": [f.as_dict() for f in findings]})
    width = max(map(len, environment))
    for name, value in environment.items():
        out.text(f"{name:<{width}}  {value if value not in ('', None) else '-'}")
    if findings:
        out.text()
    for finding in findings:
        out.text(f"{finding.severity:<8} {finding.code}: {finding.what}")
        if finding.remedy:
            out.text(f"         to mend it: {finding.remedy}")
        out.essence(f"{finding.severity} {finding.code}")
    if fail_on == "never":
        return False
    grave = SEVERITIES[: SEVERITIES.index(fail_on) + 1]
    return any(finding.severity in grave for finding in findings)
