"""What a check found: a `Finding` with its severity."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from vlora_engine.errors import VLoRAError


Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True, order=True)
class Finding:
    """One remark.

    Args:
        severity: ``error`` (cannot be used), ``warning`` (usable, but look), ``note``.
        code: A stable word for programs, such as ``rank-disagrees``.
        where: File, tensor, module or task.
        what: One sentence.
        remedy: What to do, empty when there is nothing to do.
        fix: The exact command that does it, where there is one.
    """

    severity: Severity
    code: str
    where: str
    what: str
    remedy: str = ""
    fix: str = ""

    def as_dict(self) -> dict[str, Any]:
        """The same, for JSON."""
        return asdict(self)


def finding_of(error: VLoRAError, where: str = "") -> Finding:
    """A refusal as a finding, under its own code or as ``unreadable``."""
    told = not error.found or error.found in error.what
    what = error.what if told else f"{error.what.rstrip('.')}: {error.found}."
    code = error.code or "unreadable"
    return Finding("error", code, where or error.where or "", what, error.remedy or "")
