"""The result of an Export job: per output, and in one line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vlora_engine.targets import Served, start_lines
from vlora_tui.jobs import JobView
from vlora_tui.pipeline import events
from vlora_tui.tui.key_names import key
from vlora_tui.tui.text import advice, clean, plural
from vlora_tui.utils.formatting import percent, size

EXACT = 1e-12  # below that it is the rounding of the comparison itself


@dataclass(frozen=True)
class Outcome:
    """What a job has told so far, by path.

    Args:
        written: Bytes of what is in its place; None where they are not known.
        verified: The relative error of dW when it was read back.
        reports: What a merge or a resize said of itself.
    """

    written: Mapping[str, int | None] = field(default_factory=dict)
    verified: Mapping[str, float] = field(default_factory=dict)
    reports: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    exported: Mapping[str, events.Exported] = field(default_factory=dict)

    @classmethod
    def of(cls, view: JobView | None) -> Outcome:
        """From the events of a job; nothing where there is none."""
        if view is None:
            return cls()
        exported = {e.path: e for e in view.all(events.Exported)}
        written: dict[str, int | None] = {path: e.nbytes for path, e in exported.items()}
        reports: dict[str, Mapping[str, Any]] = {}
        others: list[events.Merged | events.Resized] = [*view.all(events.Merged)]
        for event in [*others, *view.all(events.Resized)]:
            written[event.path] = event.nbytes or None
            reports[event.path] = event.report
        verified = {e.path: e.error for e in view.all(events.Verified)}
        for converted in view.all(events.Converted):  # each is read back as it is written
            written[converted.path] = converted.nbytes
            verified[converted.path] = converted.error
        return cls(written, verified, reports, exported)

    def start_line(self, path: str) -> str:
        """How a server is started with one output; empty where no line says it."""
        exported = self.exported.get(path)
        if exported is None:
            return ""
        lines = start_lines(
            exported.target, [Served(exported.task, exported.path, exported.rank, exported.base)]
        )
        return clean(lines[0]) if lines else ""


def off(error: float) -> str:
    """What reading back has shown."""
    return "the same" if error < EXACT else f"off by {percent(error)}"


def result(view: JobView) -> tuple[str, bool]:
    """How the job stands, in a line, and whether that is bad."""
    if view.error is not None:
        what, where, remedy = (str(view.error.get(k) or "") for k in ("what", "where", "remedy"))
        words = clean(" ".join(part for part in (what, where, advice(remedy)) if part))
        return f"{words} {key('step.run')} shows its log.", True
    outcome = Outcome.of(view)
    words = f"{len(outcome.written)} written"
    merged = view.last(events.Merged)
    if merged is not None:
        words = f"merged: rank {merged.rank}, {plural(merged.modules, 'module')}"
    nbytes = sum(n for n in outcome.written.values() if n is not None)
    words += f", {size(nbytes)}" if nbytes else ""
    if outcome.verified:
        many = "" if merged is not None else f"{len(outcome.verified)} "
        words += f", {many}read back, {off(max(outcome.verified.values()))}"
    if not view.state.is_over:
        return f"{view.state}: {words}. {key('step.run')} shows the job.", False
    if str(view.state) != "finished":
        return f"The job was {view.state}: {words}. {key('step.run')} shows it.", True
    opens = f"{key('export.open')} opens it, {key('step.run')} shows the result."
    return f"Done: {words}. {opens}{_start(outcome)}", False


def _start(outcome: Outcome) -> str:
    """How to serve what was written, where a line says it."""
    exported = list(outcome.exported.values())
    served = [Served(e.task, e.path, e.rank, e.base) for e in exported]
    lines = start_lines(exported[0].target, served) if exported else []
    more = f" (and {len(lines) - 1} more alike)" if len(lines) > 1 else ""
    return f" Start it with: {clean(lines[0])}{more}" if lines else ""
