"""The benchmarks: ours, each peer's and the limit, in one run.

``python -m tests.benchmarks.run [SECTION ...] [--quick] [--big] [--json FILE]``
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tests.benchmarks.measure import ROOT, Bench, ChildFailed

SECTIONS = (
    "start",
    "first_paint",
    "build",
    "memory",
    "error",
    "noticed",
    "coder",
    "export",
    "reports",
    "growth",
    "merge",
    "merge_gap",
    "compare",
    "choose_key",
    "terminal",
    "switch",
    "training",
)
PACKAGES = ("vlora-tui", "vlora-dev", "lorashare", "torch", "numpy", "numba")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the chosen sections and print their tables as each is done."""
    options = parser().parse_args(arguments)
    options.data.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {"schema": "vlora-bench", "version": 1, "machine": machine()}
    report |= {"quick": options.quick, "threads": options.threads, "sections": {}}
    print(" | ".join(f"{name} {value}" for name, value in report["machine"].items()), end="\n\n")
    print(
        "Whole processes, measured from outside; a peak below this process's own cannot be seen.\n"
    )
    failed = False
    with tempfile.TemporaryDirectory(prefix="vlora-bench-", dir=options.scratch) as scratch:
        bench = Bench(
            quick=options.quick,
            big=options.big,
            data=options.data,
            scratch=Path(scratch),
            threads=options.threads,
            adapters=options.adapters,
        )
        for name in options.sections or SECTIONS:
            start = time.perf_counter()
            try:
                bench.settle()
                tables = importlib.import_module(f"tests.benchmarks.{name}").section(bench)
            except ChildFailed as error:
                failed = True
                print(f"{name}: {error}\n", flush=True)
                report["sections"][name] = {"failed": str(error)}
                continue
            for table in tables:
                print(table.text(), flush=True)
            seconds = round(time.perf_counter() - start, 1)
            print(f"({name} took {seconds} s)\n", flush=True)
            report["sections"][name] = {
                "seconds": seconds,
                "tables": [table.as_dict() for table in tables],
            }
    if options.json:
        options.json.write_text(json.dumps(report, indent=1, allow_nan=False) + "\n")
    return 1 if failed else 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.run", description=__doc__)
    parser.add_argument(
        "sections", nargs="*", metavar="SECTION", type=section_name, help=", ".join(SECTIONS)
    )
    parser.add_argument("--quick", action="store_true", help="smaller sizes, about two minutes")
    parser.add_argument("--big", action="store_true", help="also 1,000 adapters of 8 MB, ours only")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    parser.add_argument(
        "--data", type=Path, default=cache(), metavar="DIR", help="where made adapters are kept"
    )
    parser.add_argument("--scratch", type=Path, metavar="DIR", help="where outputs go meanwhile")
    parser.add_argument(
        "--threads", type=int, default=1, metavar="N", help="threads of a linear-algebra call"
    )
    named = os.environ.get("VLORA_TEST_ADAPTERS")
    parser.add_argument(
        "--adapters",
        type=Path,
        default=Path(named) if named else ROOT.parent / "shared" / "adapters",
        metavar="DIR",
        help="the real adapters (default: VLORA_TEST_ADAPTERS, ../shared/adapters)",
    )
    return parser


def section_name(text: str) -> str:
    """``text`` if it names a section."""
    if text not in SECTIONS:
        raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(SECTIONS)}")
    return text


def cache() -> Path:
    """Where made adapters are kept by default: the XDG cache."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "vlora-tui-bench"


def machine() -> dict[str, str]:
    """What the figures were measured on and with."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return {**found, "cores": str(os.cpu_count()), "system": platform.system()}


if __name__ == "__main__":
    sys.exit(main())
