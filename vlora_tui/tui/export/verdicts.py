"""What headers say of Export's items, and what the doctor says of them for a target.

Every item is read once; no tensor is, and torch is not needed.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from vlora_engine.adapters.address import is_address
from vlora_engine.catalog.subspace_tasks import inspection_of
from vlora_engine.doctor import subject_at, verdict
from vlora_engine.errors import NotFoundError, VLoRAError
from vlora_engine.findings import Finding, finding_of
from vlora_engine.targets import Facts, Target, facts_of_task
from vlora_engine.utils.file_names import ADAPTER_GGUF
from vlora_tui.tui.export.settings import Item

if TYPE_CHECKING:
    from vlora_engine.manifest.manifest import Manifest

OF_SAFETENSORS = frozenset({"ollama-safetensors"})  # no matter to an export that writes GGUF


class Opinion(NamedTuple):
    """What the doctor says, for one target.

    Args:
        stays: What holds of the files that are going to be written too.
        fixed: What holds of the adapter as it lies, and the export mends.
    """

    stays: tuple[Finding, ...] = ()
    fixed: tuple[Finding, ...] = ()


class Headers:
    """The headers of adapters, or of the tasks of a subspace."""

    def __init__(self, manifest: Manifest | None = None) -> None:
        self.manifest = manifest
        self._facts: dict[str, Facts | None] = {}
        self._found: dict[tuple[str, str], tuple[Finding, ...]] = {}

    def facts(self, item: Item) -> Facts | None:
        """What a target's limits are held against; None where only reading the tensors tells.

        Raises:
            VLoRAError: It cannot be read.
        """
        if item.name not in self._facts:
            self._facts[item.name] = self._read_facts(item)
        return self._facts[item.name]

    def opinion(self, item: Item, target: Target) -> Opinion:
        """What ``target`` will make of an item that fits it, before and after an export.

        An export writes whatever the target reads rightly, or it is refused; so of what fits all
        errors are mended by it, and what only deserves a look stays.
        """
        found = self._findings(item, target.name)
        no_matter = OF_SAFETENSORS if target.form == "gguf" else frozenset()
        fixed = [f for f in found if f.severity == "error" or f.code in no_matter]
        return Opinion(tuple(f for f in found if f not in fixed), tuple(fixed))

    def of_refused(self, item: Item, target: Target) -> Opinion:
        """What the doctor says of an item that ``target`` does not take: nothing is mended."""
        no_matter = OF_SAFETENSORS if target.form == "gguf" else frozenset()
        try:
            found = self._findings(item, target.name)
            return Opinion(tuple(f for f in found if f.code not in no_matter))
        except VLoRAError:
            return Opinion()  # why it cannot be read is told already

    def _read_facts(self, item: Item) -> Facts | None:
        if self.manifest is not None:
            return facts_of_task(self.manifest, self.manifest.task(item.name))
        if item.path is None or is_address(item.path):
            return None
        seen = subject_at(item.path)
        if seen.error is not None:
            raise seen.error
        if seen.modules is None:
            return None
        elements = sum(s.rank * (s.d_in + s.d_out) for s in seen.modules.values())
        example = next(iter(seen.rest), None)
        return Facts(seen.modules, len(seen.rest), example, seen.config, elements, item.name)

    def _findings(self, item: Item, target: str) -> tuple[Finding, ...]:
        key = (item.name, target)
        if key not in self._found:
            self._found[key] = tuple(self._ask(item, target))
        return self._found[key]

    def _ask(self, item: Item, target: str) -> list[Finding]:
        if self.manifest is not None:
            of_task: list[Finding] = verdict(inspection_of(self.manifest, item.name), target)
            return of_task
        if item.path is None or is_address(item.path):
            return []
        of_file: list[Finding] = verdict(item.path, target)
        return of_file


def written_opinion(path: Path, target: str) -> Opinion:
    """What the doctor says of files that an export has written."""
    try:
        found = verdict(path, target)
    except NotFoundError:
        return Opinion()  # moved away since
    except VLoRAError as error:
        return Opinion((finding_of(error, str(path)).called(str(path)),))
    if (path / ADAPTER_GGUF).exists():
        found = [finding for finding in found if finding.code not in OF_SAFETENSORS]
    return Opinion(tuple(found))
