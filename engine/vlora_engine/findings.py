"""What a check found: a `Finding`, and how grave it is. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any, Literal, get_args

from vlora_engine.errors import VLoRAError, place_words

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = get_args(Severity)  # the gravest first

PLACES = ("adapter", "file", "place")  # the fields that hold paths or addresses
ADDED = ("adapter", "file", "module", "tensor", "rule")  # beside what --json has always told


@dataclass(frozen=True)
class Finding:
    """One thing that was found, as fields: whoever shows it reads them and takes no text apart.

    Args:
        code: A stable word for programs, such as ``rank-disagrees``.
        severity: ``error`` (cannot be used), ``warning`` (usable, but look), ``note``.
        what: One sentence.
        remedy: What to do, empty when there is nothing to do.
        fix: The exact command that does it, where there is one.
        adapter: The adapter or subspace that it is about, as commands take it.
        file: The file that it is about, or the directory.
        module: The module that it is about, or the first of several.
        tensor: The tensor's key in the file.
        rule: The sentence of the doctor's rule that found it.
        place: What texts call the place, where that is not the file and what is in it.
    """

    code: str
    severity: Severity
    what: str
    remedy: str = ""
    fix: str = ""
    _: KW_ONLY
    adapter: str = ""
    file: str = ""
    module: str = ""
    tensor: str = ""
    rule: str = ""
    place: str = ""

    @property
    def where(self) -> str:
        """Where it was found, in words."""
        return self.place or place_words(self.adapter, self.file, self.module, self.tensor)

    def as_dict(self) -> dict[str, Any]:
        """What commands tell with ``--json``."""
        return {
            "severity": self.severity,
            "code": self.code,
            "where": self.where,
            "what": self.what,
            "remedy": self.remedy,
            "fix": self.fix,
        }

    def as_json(self) -> dict[str, Any]:
        """All of it, as files and events keep it: `as_dict`, and the fields that are known."""
        return {**self.as_dict(), **{name: v for name in ADDED if (v := getattr(self, name))}}

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Finding:
        """The inverse; what an earlier version wrote has no fields for the place.

        An error in its JSON form is taken, too (`VLoRAError.as_json`). What is no text counts as
        not said, a severity that there is not as a note.
        """
        texts = {name: value for name, value in row.items() if isinstance(value, str)}
        severity: Any = texts.get("severity", "error" if "error" in texts else "note")
        where = texts.get("where", "")
        parts = {name: texts.get(name, "") for name in ADDED}
        if "fix" not in row and not (parts["adapter"] or parts["file"]):
            parts |= _parts_of_old(where)  # what `as_json` writes always has a fix
        return cls(
            code=texts.get("code") or texts.get("error", ""),
            severity=severity if severity in SEVERITIES else "note",
            what=with_found(texts.get("what", ""), texts.get("found")),
            remedy=texts.get("remedy", ""),
            fix=texts.get("fix", ""),
            **parts,
        ).called(where)

    def called(self, where: str) -> Finding:
        """The same, its place called ``where`` in texts."""
        words = place_words(self.adapter, self.file, self.module, self.tensor)
        return replace(self, place="" if where == words else where)


def as_text(finding: Finding, about: str = "") -> str:
    """A finding as text: how grave it is, what it is about, then place, remedy and command."""
    head = ": ".join(part for part in (finding.severity, about, finding.what) if part)
    return "\n  ".join(p for p in (head, finding.where, finding.remedy, finding.fix) if p)


def finding_of(error: VLoRAError, adapter: str = "") -> Finding:
    """A refusal as a finding, under its own code or as ``unreadable``.

    Args:
        adapter: What could not be read, where the error does not know.
    """
    parts = {name: getattr(error, name) for name in ("file", "module", "tensor")}
    known = error.adapter or adapter
    found = Finding(
        error.code or "unreadable",
        "error",
        with_found(error.what, error.found),
        error.remedy or "",
        adapter=known,
        **parts,
    )
    return found.called(error.where or known)


def with_found(what: str, found: str | None) -> str:
    """The sentence, with what was found unless it says so itself."""
    return what if not found or found in what else f"{what.rstrip('.')}: {found}."


def _parts_of_old(where: str) -> dict[str, str]:
    """The place that earlier versions wrote as a text: PATH, PATH: KEY and the like."""
    head, _, inside = where.partition(": ")
    if "/" not in head:
        return {}
    if inside.startswith("module "):
        return {"file": head, "module": inside.removeprefix("module ")}
    return {"file": head, "tensor": inside.removeprefix("tensor ")}
