"""What a merged checkpoint has of base + adapter: a verdict on every matrix, and all of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from vlora_engine.findings import SEVERITIES, Finding, Severity

Verdict = Literal[
    "right", "rounded", "lost", "not-merged", "scaled", "transposed", "off", "shared", "absent",
    "unknown",
]  # fmt: skip


SEVERITY: Mapping[Verdict, Severity | None] = {
    "off": "error",
    "absent": "error",
    "transposed": "error",
    "not-merged": "error",
    "scaled": "error",
    "shared": "error",
    "lost": "warning",
    "unknown": "warning",
    "rounded": "note",
    "right": None,
}


@dataclass(frozen=True)
class ModuleVerdict:
    """What the merged checkpoint has of one matrix that the adapter changes.

    Args:
        module: As the adapter calls it; of a saved matrix its key.
        tensor: Its name in the merged checkpoint.
        verdict: One of `Verdict`.
        error: ``||M - W - dW|| / ||dW||``; None where it cannot be told.
        factor: How many times dW is in it.
        rounding: The most that rounding alone can make of ``error``.
        what: The verdict in words.
    """

    module: str
    tensor: str
    verdict: Verdict
    error: float | None = None
    factor: float | None = None
    rounding: float | None = None
    what: str = ""

    @property
    def severity(self) -> Severity | None:
        """How grave it is; None where it is right."""
        return SEVERITY[self.verdict]


@dataclass
class MergedReport:
    """A merged checkpoint beside base + adapter.

    Args:
        adapter: Where the adapter lies; and so on.
        modules: Every matrix that the adapter changes, the worst first.
        changed: Tensors that differ from the base's though the adapter leaves them alone.
        missing: Tensors of the base that the merged checkpoint lacks.
        added: Tensors that only the merged checkpoint has.
        same: How many tensors are the base's, as they should be.
    """

    adapter: str
    base: str
    merged: str
    modules: list[ModuleVerdict] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    added: list[str] = field(default_factory=list)
    same: int = 0

    @property
    def right(self) -> int:
        """How many modules are merged right."""
        return sum(row.verdict in ("right", "rounded") for row in self.modules)

    @property
    def summary(self) -> str:
        """The one sentence that answers the question."""
        total = len(self.modules)
        counts: dict[str, int] = {}
        for row in self.modules:
            if row.verdict not in ("right", "rounded"):
                counts[row.verdict] = counts.get(row.verdict, 0) + 1
        text = f"merged right: {self.right} of {total} modules"
        wrong = ", ".join(f"{count} {_WORDS[word]}" for word, count in counts.items())
        text += f" ({wrong})" if wrong else ""
        strays = [(len(self.changed), "changed"), (len(self.missing), "missing"),
                  (len(self.added), "added")]  # fmt: skip
        others = ", ".join(f"{count} {word}" for count, word in strays if count)
        rest = f"of the other tensors {others}" if others else "no other tensor changed"
        return f"{text}; {rest}"

    @property
    def findings(self) -> list[Finding]:
        """What is wrong, the gravest first, for `fails` and for JSON."""
        found = [
            Finding(
                f"merged-{row.verdict}", row.severity, row.what, _REMEDY.get(row.verdict, ""),
                file=self.merged, module=row.module,
            )
            for row in self.modules
            if row.severity is not None
        ]  # fmt: skip
        for code, names, what in (
            ("merged-changed", self.changed, "The adapter does not touch it, yet it differs from "
             "the base's."),
            ("merged-missing", self.missing, "The base has it, the merged checkpoint does not."),
        ):  # fmt: skip
            remedy = "merge again onto this base, or name the base that was merged onto"
            found += [
                Finding(code, "error", what, remedy, file=self.merged, tensor=n) for n in names
            ]
        what = "Only the merged checkpoint has it."
        found += [
            Finding("merged-added", "note", what, file=self.merged, tensor=n) for n in self.added
        ]
        return sorted(found, key=lambda finding: SEVERITIES.index(finding.severity))

    def fails(self, limit: str) -> bool:
        """Whether anything is as grave as ``limit`` (``never``: nothing is)."""
        worst = SEVERITIES[: SEVERITIES.index(limit) + 1] if limit != "never" else ()
        return any(finding.severity in worst for finding in self.findings)

    def as_dict(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return {
            "adapter": self.adapter,
            "base": self.base,
            "merged": self.merged,
            "summary": self.summary,
            "right": self.right,
            "modules": [{**asdict(row), "severity": row.severity} for row in self.modules],
            "others": {
                "same": self.same,
                "changed": self.changed,
                "missing": self.missing,
                "added": self.added,
            },
            "findings": [finding.as_json() for finding in self.findings],
        }


_WORDS: Mapping[str, str] = {
    "off": "off",
    "absent": "absent",
    "transposed": "transposed",
    "not-merged": "not merged",
    "scaled": "with another scale",
    "shared": "in a matrix that two modules share",
    "lost": "lost in rounding",
    "unknown": "unknown",
}


_REMEDY: Mapping[str, str] = {
    "off": "merge again, onto this base",
    "absent": "merge again; the checkpoint lacks this matrix",
    "transposed": "merge with a program that heeds fan_in_fan_out",
    "not-merged": "merge again with a program that knows this module's name",
    "scaled": "merge again, once, with the scale of the adapter's config",
    "shared": "untie the head before merging (tie_word_embeddings: false), or merge nothing",
    "lost": "merge in fp32 and keep that, or serve the adapter beside the base",
}
