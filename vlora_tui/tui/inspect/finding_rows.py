"""Findings as rows: from headers, spectra jobs, the doctor, and for a target.

Each is told once: what the doctor says of an adapter, with the command that mends it, takes the
place of what was found under the same code before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from vlora_engine.adapters.address import is_address
from vlora_engine.doctor import verdict
from vlora_engine.errors import VLoRAError
from vlora_engine.findings import SEVERITIES, Finding, as_text, finding_of
from vlora_engine.utils.json_reader import JsonObject
from vlora_tui.tui.core.session import Session, path_of
from vlora_tui.tui.core.subcommand import read_answer
from vlora_tui.tui.inspect.data import task_ref
from vlora_tui.tui.text import clean


@dataclass(frozen=True)
class Remark:
    """One finding, as a row.

    Args:
        about: The adapter's name.
        path: Where the adapter lies, as the commands take it; empty where that is not known.
        target: The program that it is about, empty for all.
    """

    finding: Finding
    about: str
    path: str = ""
    target: str = ""

    @cached_property
    def shown(self) -> Finding:
        """The finding with its texts made harmless."""
        texts: dict[str, Any] = {name: clean(value) for name, value in vars(self.finding).items()}
        return replace(self.finding, **texts)

    @property
    def severity(self) -> str:
        return self.finding.severity

    @property
    def what(self) -> str:
        return self.shown.what

    @property
    def rule(self) -> str:
        """The doctor's rule, where it says more than ``what``."""
        return "" if self.finding.rule in self.what else self.shown.rule

    @property
    def key(self) -> str:
        """What tells it from the others."""
        return "\n".join((self.path or self.about, self.shown.code, self.what, self.target))

    @property
    def text(self) -> str:
        """All of it, for the clipboard."""
        return as_text(self.shown, self.about)


def remarks_in(session: Session, answers: Sequence[Remark] = ()) -> list[Remark]:
    """What headers, spectra jobs and the later ``answers`` have found, the gravest first."""
    about = names_of(session)
    renamed = [_renamed(remark, about) for remark in answers]
    reported = {(r.path, word) for r in renamed if r.path and not r.target for word in _words(r)}
    older = [r for r in _found(session, about) if not reported & {(r.path, w) for w in _words(r)}]
    found: dict[tuple[str, str], Remark] = {}
    for remark in (*older, *renamed):
        found.setdefault((remark.about, remark.what), remark)
    return sorted(found.values(), key=lambda r: (SEVERITIES.index(r.finding.severity), r.about))


def _words(remark: Remark) -> set[str]:
    """By what the doctor is known to say it again: the code; of errors that it is one."""
    return {remark.shown.code} | ({"error"} if remark.severity == "error" else set())


def names_of(session: Session) -> dict[str, str]:
    """The names of all that is open, by place."""
    names = {str(path): info.name for path, info in session.infos.items()}
    spectra, manifest = session.spectra, session.manifest
    if spectra is not None:
        names |= {task.path: task.name for task in spectra.tasks if task.path is not None}
    if manifest is not None:
        names |= {task_ref(manifest.path, task): task for task in manifest.tasks}
        names[str(manifest.path)] = manifest.path.name
    return names


def _found(session: Session, about: Mapping[str, str]) -> Iterable[Remark]:
    """What headers and spectra say."""
    for path, info in session.infos.items():
        if info.error is not None:
            yield _row(finding_of(info.error), about, str(path))
        for finding in info.findings:
            yield _row(finding, about, str(path))
    if session.spectra is not None:
        for error in session.spectra.skipped:
            yield _row(_of_skipped(error), about)
        for finding in session.spectra.findings:
            yield _row(finding, about)


def _of_skipped(error: Mapping[str, Any]) -> Finding:
    """The error of an adapter that was left out; what was found stands behind the sentence."""
    found = error.get("found")
    finding = Finding.from_json({**error, "severity": "error", "found": None})
    return replace(finding, what=f"{finding.what} Found: {found}.") if found else finding


def _renamed(remark: Remark, about: Mapping[str, str]) -> Remark:
    """Under the name that the adapter has on the screen."""
    return replace(remark, about=clean(about.get(remark.path, remark.about)))


def _row(finding: Finding, about: Mapping[str, str], path: str = "", target: str = "") -> Remark:
    """A finding as a row, of the adapter at ``path`` or else of the one that it names."""
    path = path or path_of(finding, about)
    name = about.get(path) or _leaf(path or finding.adapter or finding.file or finding.where)
    return Remark(finding, clean(name), path, target)


def _leaf(path: str) -> str:
    return Path(path).name if "/" in path else path


# the doctor and the targets


def paths_for_doctor(session: Session, *, tasks: bool) -> list[str]:
    """What the doctor is asked about: the tasks' subspace, else what is marked, else all found.

    What lies on the Hub would have to be fetched first, and is left out.
    """
    if tasks and session.manifest is not None:
        return [str(session.manifest.path)]
    paths = [str(info.path) for info in session.included] or [str(path) for path in session.infos]
    return [path for path in paths if not is_address(path)]


def refs_for_target(session: Session, *, tasks: bool) -> list[str]:
    """The same for a target, which is asked task by task."""
    if tasks and session.manifest is not None:
        return [task_ref(session.manifest.path, task) for task in session.manifest.tasks]
    return paths_for_doctor(session, tasks=False)


def doctor_findings(answer: Mapping[str, Any]) -> list[Remark]:
    """From the JSON of ``vlora-tui doctor``."""
    report = read_answer(answer)
    rows, about = [], {}
    for value in report["adapters"].items():
        adapter = value.object()
        path, name = adapter["path"].text(), adapter["name"].text()
        about[path] = name
        rows += [_row(finding, {path: name}, path) for finding in _findings(adapter)]
    return rows + [_row(finding, about) for finding in _findings(report)]


def _findings(row: JsonObject) -> list[Finding]:
    return [Finding.from_json(value.raw_object()) for value in row["findings"].items()]


def target_findings(
    refs: Sequence[str], target: str, cancelled: Callable[[], bool] = lambda: False
) -> list[Remark]:
    """What ``target`` will refuse or silently get wrong, from headers alone."""
    rows: list[Remark] = []
    for ref in refs:
        if cancelled():
            break
        try:
            found = verdict(ref, target)
        except VLoRAError as error:
            found = [finding_of(error)]
        rows += [_row(finding, {}, ref, target) for finding in found]
    return rows


def module_in(remark: Remark, modules: Iterable[str]) -> str | None:
    """The module that a finding is about, where it is one of these."""
    return remark.finding.module if remark.finding.module in modules else None
