"""``doctor env``: this machine as jobs and the interface find it."""

from __future__ import annotations

from vlora_engine.doctor import SEVERITIES
from vlora_tui.cli.environment import facts, remarks
from vlora_tui.cli.output import Output


def show_environment(out: Output, fail_on: str) -> bool:
    """Print what is here and what gets in the way; whether anything is as grave as ``fail_on``."""
    known, found = facts(), remarks()
    out.json("doctor-env", {"facts": known, "findings": [f.as_dict() for f in found]})
    width = max(map(len, known))
    for name, value in known.items():
        out.text(f"{name:<{width}}  {value if value not in ('', None) else '-'}")
    if found:
        out.text()
    for finding in found:
        out.text(f"{finding.severity:<8} {finding.code}: {finding.what}")
        if finding.remedy:
            out.text(f"         to mend it: {finding.remedy}")
        out.essence(f"{finding.severity} {finding.code}")
    if fail_on == "never":
        return False
    grave = SEVERITIES[: SEVERITIES.index(fail_on) + 1]
    return any(finding.severity in grave for finding in found)
