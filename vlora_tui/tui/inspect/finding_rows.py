"""What was found wrong, as rows: by headers, by spectra jobs, by the doctor, for a target.

Each is told once: what the doctor says of an adapter, with the command that mends it, takes the
place of what was found under the same code before.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlora_engine.adapters.address import is_address
from vlora_engine.errors import VLoRAError
from vlora_engine.findings import finding_of
from vlora_tui.tui.inspect.data import task_place
from vlora_tui.tui.text import clean

if TYPE_CHECKING:
    from vlora_tui.tui.core.session import Session

SEVERITIES = ("error", "warning", "note")


@dataclass(frozen=True)
class Remark:
    """One finding, as a row.

    Args:
        about: The adapter's name.
        fix: The exact command that mends it, where there is one.
        path: Where the adapter lies, as the commands take it; empty where that is not known.
        target: The program that it is about, empty for all.
        rule: The doctor's rule, where it says more than ``what``.
    """

    severity: str
    about: str
    what: str
    where: str = ""
    remedy: str = ""
    code: str = ""
    fix: str = ""
    path: str = ""
    target: str = ""
    rule: str = ""

    @property
    def key(self) -> str:
        """What tells it from the others."""
        return "\n".join((self.path or self.about, self.code, self.what, self.target))

    @property
    def text(self) -> str:
        """All of it, for the clipboard."""
        head = f"{self.severity}: {self.about}: {self.what}"
        return "\n  ".join(part for part in (head, self.where, self.remedy, self.fix) if part)


def remarks_of(session: Session, told: Sequence[Remark] = ()) -> list[Remark]:
    """What headers and spectra jobs have found, and what was ``told`` since, the gravest first."""
    about = names_of(session)
    known = [_renamed(remark, about) for remark in told]
    told_of = {(r.path, word) for r in known if r.path and not r.target for word in _words(r)}
    older = [r for r in _found(session, about) if not told_of & {(r.path, w) for w in _words(r)}]
    found: dict[tuple[str, str], Remark] = {}
    for remark in (*older, *known):
        found.setdefault((remark.about, remark.what), remark)
    return sorted(found.values(), key=lambda r: (SEVERITIES.index(r.severity), r.about))


def _words(remark: Remark) -> set[str]:
    """By what the doctor is known to say it again: the code; of errors that it is one."""
    return {remark.code} | ({"error"} if remark.severity == "error" else set())


def names_of(session: Session) -> dict[str, str]:
    """The names of all that is open, by place."""
    names = {str(path): info.name for path, info in session.infos.items()}
    spectra, manifest = session.spectra, session.manifest
    if spectra is not None:
        names |= {task.path: task.name for task in spectra.tasks if task.path is not None}
    if manifest is not None:
        names |= {task_place(manifest.path, task): task for task in manifest.tasks}
        names[str(manifest.path)] = manifest.path.name
    return names


def _found(session: Session, about: Mapping[str, str]) -> Iterable[Remark]:
    """What headers and spectra say."""
    for path, info in session.infos.items():
        if info.error is not None:
            yield _from_row(finding_of(info.error).as_dict(), about, str(path))
        for finding in info.findings:
            yield _from_row(finding.as_dict(), about, str(path))
    if session.spectra is not None:
        for row in session.spectra.skipped:
            yield _from_row({**row, "severity": "error"}, about)
        for row in session.spectra.findings:
            yield _from_row(row, about)


def _renamed(remark: Remark, about: Mapping[str, str]) -> Remark:
    """Under the name that the adapter has on the screen."""
    return replace(remark, about=clean(about.get(remark.path, remark.about)))


def _from_row(
    row: Mapping[str, Any], about: Mapping[str, str], path: str = "", target: str = ""
) -> Remark:
    """A finding or an error in its JSON form."""
    where = str(row.get("where") or "")
    path = path or _place_of(where, about)
    found = f" Found: {row['found']}." if row.get("found") else ""
    severity = str(row.get("severity"))
    return Remark(
        severity=severity if severity in SEVERITIES else "note",
        about=clean(about.get(path) or _leaf(path or where)),
        what=clean(str(row.get("what") or "") + found),
        where=clean(where),
        remedy=clean(row.get("remedy") or ""),
        code=clean(row.get("code") or row.get("error") or ""),
        fix=clean(row.get("fix") or ""),
        path=path,
        target=target,
    )


def _place_of(where: str, about: Mapping[str, str]) -> str:
    """The longest known place that ``where`` is, or lies in; empty where there is none."""
    inside = [p for p in about if where == p or where.startswith((p + ":", p + "/"))]
    return max(inside, key=len, default="")


def _leaf(where: str) -> str:
    head = where.partition(": ")[0]
    return Path(head).name if "/" in head else head


# the doctor and the targets


def places_to_look_at(session: Session, *, tasks: bool) -> list[str]:
    """What the doctor is asked about: the tasks' subspace, else what is marked, else all found.

    What lies on the Hub would have to be fetched first, and is left out.
    """
    if tasks and session.manifest is not None:
        return [str(session.manifest.path)]
    paths = [str(info.path) for info in session.kept] or [str(path) for path in session.infos]
    return [path for path in paths if not is_address(path)]


def places_to_judge(session: Session, *, tasks: bool) -> list[str]:
    """The same for a target, which is asked task by task."""
    if tasks and session.manifest is not None:
        return [task_place(session.manifest.path, task) for task in session.manifest.tasks]
    return places_to_look_at(session, tasks=False)


def doctor_arguments(places: Sequence[str]) -> list[str]:
    """The command that reads every tensor and says what is wrong."""
    return ["doctor", *places, "--fail-on", "never"]


def doctor_remarks(answer: Mapping[str, Any]) -> list[Remark]:
    """From the JSON of ``vlora-tui doctor``."""
    rows = [
        replace(_from_row(finding, {}, str(patient["path"])), about=clean(patient["name"]))
        for patient in answer["adapters"]
        for finding in patient["findings"]
    ]
    about = {str(patient["path"]): str(patient["name"]) for patient in answer["adapters"]}
    return _with_rules(rows + [_from_row(finding, about) for finding in answer["findings"]])


def target_remarks(
    places: Sequence[str], target: str, cancelled: Callable[[], bool] = lambda: False
) -> list[Remark]:
    """What ``target`` will refuse or silently get wrong, from headers alone."""
    from vlora_engine.doctor import verdict

    rows: list[Remark] = []
    for place in places:
        if cancelled():
            break
        try:
            found = [finding.as_dict() for finding in verdict(place, target)]
        except VLoRAError as error:
            found = [finding_of(error).as_dict()]
        rows += [_from_row(row, {}, place, target) for row in found]
    return _with_rules(rows)


def _with_rules(rows: Iterable[Remark]) -> list[Remark]:
    """With the sentences of the rules that found them."""
    from vlora_engine.doctor import all_rules

    sentences = {rule.code: rule.what for rule in all_rules()}
    return [
        replace(row, rule="" if (rule := sentences.get(row.code, "")) in row.what else rule)
        for row in rows
    ]


def module_in(remark: Remark, modules: Iterable[str]) -> str | None:
    """The module that a finding names, the longest of those whose names it contains."""
    text = f"{remark.where} {remark.what}"
    named = [name for name in modules if name in text and _stands_alone(name, text)]
    return max(named, key=len, default=None)


def _stands_alone(name: str, text: str) -> bool:
    """Whether ``name`` is no part of a longer word: ``h.1`` is not in ``h.12``."""
    return re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text) is not None
