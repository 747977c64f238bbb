"""Fail when a test that CI relies on was skipped or not run at all.

    python .ci/check_required.py junit.xml

Required are the tests listed in required-tests.txt and, where the real adapters are at hand,
every test that uses them. tests/conftest.py puts node ids and markers into the report.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[1]
_REAL = re.compile(r"\breal_adapters\b(?!\.py)|mark\.real")  # the fixture, or the mark


class Case(NamedTuple):
    """One test of the report; `trouble` is None where it passed."""

    nodeid: str
    real: bool
    trouble: str | None


def read_report(path: Path) -> list[Case]:
    """The tests that ran. Files skipped while being collected hold no test and are left out."""
    cases = []
    for element in ElementTree.parse(path).iter("testcase"):
        found = {p.get("name", ""): p.get("value", "") for p in element.iter("property")}
        if "nodeid" not in found:
            continue
        troubles = [c for c in element if c.tag in ("skipped", "failure", "error")]
        trouble = f"{troubles[0].tag}: {troubles[0].get('message')}" if troubles else None
        cases.append(Case(found["nodeid"], "real" in found, trouble))
    return cases


def required_parts() -> list[str]:
    lines = (ROOT / ".ci" / "required-tests.txt").read_text("utf-8").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]


def complaints_about_listed(cases: list[Case]) -> list[str]:
    complaints = []
    for part in required_parts():
        matching = [case for case in cases if part in case.nodeid]
        if not matching:
            complaints.append(f"{part}: no test of this name ran")
        complaints += [f"{case.nodeid}: {case.trouble}" for case in matching if case.trouble]
    return complaints


def complaints_about_real(cases: list[Case]) -> list[str]:
    complaints = [f"{case.nodeid}: {case.trouble}" for case in cases if case.real and case.trouble]
    # A file that was skipped or deselected as a whole left no trace in the report: ask the source.
    ran = {case.nodeid.partition("::")[0] for case in cases if case.real}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        name, source = path.relative_to(ROOT).as_posix(), path.read_text("utf-8")
        if _REAL.search(source) and name not in ran:
            complaints.append(f"{name}: none of its tests on real adapters ran")
    return complaints


def main(report: str) -> int:
    """Print every complaint; 0 where there is none."""
    cases = read_report(Path(report))
    complaints = complaints_about_listed(cases)
    adapters_at_hand = (
        "VLORA_TEST_ADAPTERS" in os.environ or (ROOT.parent / "shared" / "adapters").is_dir()
    )
    if adapters_at_hand:
        complaints += complaints_about_real(cases)
    for complaint in dict.fromkeys(complaints):
        print(f"required but not passed: {complaint}", file=sys.stderr)
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
