"""``doctor ADAPTER --base B --merged M``: a merged checkpoint beside base + adapter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vlora_engine.catalog.open import open_adapter
from vlora_engine.doctor.checkpoint import read_checkpoint
from vlora_engine.errors import ParameterError
from vlora_tui.cli.execute import stop_on_signals
from vlora_tui.cli.hub_inputs import fetch_first
from vlora_tui.cli.output import Output
from vlora_tui.cli.progress import Watcher
from vlora_tui.utils.formatting import listed, percent, plural

if TYPE_CHECKING:
    from vlora_engine.doctor.merged_report import MergedReport

SHOWN = 20  # modules that are printed


def compare_merged(
    out: Output, paths: Sequence[str], base: str | None, merged: str, fail_on: str
) -> bool:
    """Say which modules are merged right; returns whether anything is as grave as ``fail_on``."""
    if len(paths) != 1:
        raise ParameterError(
            "--merged compares one adapter.",
            expected="ADAPTER --base B --merged M",
            found=plural(len(paths), "adapter"),
            remedy="of several that were merged together make one first: vlora-tui merge",
        )
    if base is None:
        raise ParameterError(
            "A merged checkpoint is compared with base + adapter.",
            expected="the model that was merged onto: --base MODEL",
        )
    from vlora_engine.doctor.merged_check import check_merged

    (adapter,) = fetch_first(out, paths[0])
    with Watcher(out) as watcher, stop_on_signals(out) as stop:
        report = check_merged(
            open_adapter(adapter),
            read_checkpoint(base),
            read_checkpoint(merged),
            progress=watcher.on_progress,
            cancelled=stop.is_set,
        )
    out.json("doctor-merged", report.as_dict())
    show_merged(out, report)
    return report.fails(fail_on)


def show_merged(out: Output, report: MergedReport) -> None:
    """The sentence, then what is not right, the worst first."""
    out.text(report.summary)
    rows = [row for row in report.modules if row.severity is not None]
    if rows:
        out.text()
        out.table(
            ("module", "verdict", "error of dW", "dW in it", "rounding at most"),
            [
                (
                    row.module,
                    row.verdict,
                    "-" if row.error is None else percent(row.error),
                    "-" if row.factor is None else f"{row.factor:.3g} times",
                    "-" if row.rounding is None else percent(row.rounding),
                )
                for row in rows[:SHOWN]
            ],
        )
    if len(rows) > SHOWN:
        out.text(f"the first {SHOWN} of {plural(len(rows), 'module')}; --json has all")
    places: dict[tuple[str, str], list[str]] = {}
    for finding in report.findings:
        where = finding.module or finding.tensor
        places.setdefault((finding.what, finding.remedy), []).append(where)
        out.essence(f"{finding.severity} {finding.code} {where}")
    for (what, remedy), names in places.items():
        out.text(f"{listed(names)}: {what}")
        if remedy:
            out.text(f"    fix: {remedy}")
