"""The one family of exceptions: what is wrong, where, what was expected and found, what to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_ADDED = ("code", "adapter", "file", "module", "tensor")  # beside what --json has always told


class VLoRAError(Exception):
    """Base of every error that this package raises on purpose.

    Args:
        what: One sentence that names the fault.
        where: The file, directory, tensor or task at fault, in words; without it, what the four
            below come to.
        expected: What would have been right.
        found: What was there instead.
        remedy: The command or change that mends it.
        code: A stable word for programs, where one is needed: `doctor` tells faults apart by it.
        adapter: The adapter or subspace at fault, as commands take it.
        file: The file at fault. module, tensor: What in it.
    """

    exit_code = 1
    kind = ""  # the name that programs are told, where it is not the class's own

    def __init__(
        self,
        what: str,
        *,
        where: str | Path | None = None,
        expected: str | None = None,
        found: str | None = None,
        remedy: str | None = None,
        code: str = "",
        adapter: str | Path = "",
        file: str | Path = "",
        module: str = "",
        tensor: str = "",
    ) -> None:
        self.what = what
        self.adapter, self.file = str(adapter), str(file)
        self.module, self.tensor = module, tensor
        place = place_words(self.adapter, self.file, module, tensor) or None
        self.where = place if where is None else str(where)
        self.expected = expected
        self.found = found
        self.remedy = remedy
        self.code = code
        super().__init__(what)

    def lines(self) -> list[str]:
        """The message as lines: the fault first, then each known detail under its own label."""
        details = {
            "where": self.where,
            "expected": self.expected,
            "found": self.found,
            "fix": self.remedy,
        }
        return [self.what, *(f"  {label}: {text}" for label, text in details.items() if text)]

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def as_dict(self) -> dict[str, Any]:
        """All of it as values for JSON."""
        return {
            "error": self.kind or type(self).__name__,
            "what": self.what,
            "where": self.where,
            "expected": self.expected,
            "found": self.found,
            "remedy": self.remedy,
        }

    def as_json(self) -> dict[str, Any]:
        """All of it, as files and events keep it: `as_dict`, and the fields that are known."""
        return {**self.as_dict(), **{name: v for name in _ADDED if (v := getattr(self, name))}}


class InputError(VLoRAError, ValueError):
    """The input or the request is at fault; nothing was written."""

    exit_code = 2


class NotFoundError(InputError):
    """A path, task or module that was named does not exist."""


class MissingPathError(NotFoundError, FileNotFoundError):
    """A file or directory that was named is not there, or holds nothing of what was meant."""

    kind = "NotFoundError"


class UnknownTaskError(NotFoundError, KeyError):
    """A task that was named is not in the subspace."""

    kind = "NotFoundError"


class ParameterError(InputError):
    """A parameter is outside what it may be (k of 0, an unknown method, two names alike)."""


class TargetError(InputError):
    """A target (bytes, error, variance) that no choice of k can meet."""


class AdapterError(InputError):
    """An adapter that cannot be used: half a pair, shapes that do not multiply, NaN."""


class CorruptFileError(AdapterError):
    """A file whose bytes are not what its format says: truncated, altered, a Git LFS pointer."""


class FileKindError(InputError, OSError):
    """No file that can be read: something else in its place, a broken link, or far too large."""

    def __str__(self) -> str:
        return "\n".join(self.lines())


class UnsupportedAdapterError(AdapterError):
    """An adapter that is sound but of a kind this engine refuses (DoRA, another peft_type...)."""


class CollectionError(InputError):
    """Adapters that are sound one by one but cannot be compressed together, or several bad ones."""

    def __init__(self, what: str, *, errors: Sequence[VLoRAError] = (), **details: Any) -> None:
        super().__init__(what, **details)
        self.errors = tuple(errors)

    def lines(self) -> list[str]:
        each = [enumerate(error.lines()) for error in self.errors]
        nested = [f"    {line}" if i else f"  - {line}" for lines in each for i, line in lines]
        head, *rest = super().lines()
        return [head, *nested, *rest]

    def as_dict(self) -> dict[str, Any]:
        return {**super().as_dict(), "errors": [error.as_dict() for error in self.errors]}

    def as_json(self) -> dict[str, Any]:
        return {**super().as_json(), "errors": [error.as_json() for error in self.errors]}


class SubspaceError(InputError):
    """A subspace directory or object that cannot be used as asked."""


class ModelStateError(SubspaceError, RuntimeError):
    """A model that cannot do this as it is: merged, not merged, or of quantized weights."""

    kind = "SubspaceError"


class OutputExistsError(InputError):
    """The output is already there and ``--force`` was not given."""


class ConflictError(InputError):
    """Another command is changing the directory, or has changed it since it was opened."""


class DependencyError(VLoRAError, ImportError):
    """A library of an extra is not installed; the remedy names the extra."""

    def __str__(self) -> str:
        return "\n".join(self.lines())


class StorageError(VLoRAError, OSError):
    """The operating system refused to read or write: disk full, read-only, no permission."""

    def __str__(self) -> str:
        return "\n".join(self.lines())


class MemoryLimitError(VLoRAError, MemoryError):
    """The least that a step can do needs more memory than it may take, or than there is."""

    def __str__(self) -> str:
        return "\n".join(self.lines())


class HubError(VLoRAError):
    """The Hugging Face Hub gave no answer that could be used."""


class HubOfflineError(HubError):
    """The Hub cannot be reached, or is switched off here, and the cache does not have it."""


class HubAccessError(InputError):
    """The Hub knows the place and does not let this token, or nobody without one, in."""


class Cancelled(VLoRAError):
    """The work was asked to stop and did, between two layers."""

    exit_code = 130


def told(error: Mapping[str, Any]) -> dict[str, Any]:
    """An error that a file or an event keeps (`VLoRAError.as_json`), as ``--json`` tells it."""
    row = {name: value for name, value in error.items() if name not in _ADDED}
    if isinstance(row.get("errors"), list):
        row["errors"] = [told(inside) for inside in row["errors"] if isinstance(inside, dict)]
    return row


def place_words(adapter: str, file: str, module: str, tensor: str) -> str:
    """A place in words: the file or else the adapter, and the tensor in it."""
    place = ": ".join(part for part in (file or adapter, tensor) if part)
    return place or module
