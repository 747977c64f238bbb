"""Write adapters again as PEFT and servers read them: names, prefixes and target_modules repaired.

Nothing of the numbers changes: A, B and every other tensor are written bit for bit, and read back
before the output takes its place.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlora_engine.adapters.address import AdapterRef
from vlora_engine.adapters.model import LoRAWeights, same_bits
from vlora_engine.adapters.module_names import tidied
from vlora_engine.catalog.locate import existing_path
from vlora_engine.catalog.open import load_adapter, open_adapter
from vlora_engine.doctor.base_facts import BaseFacts
from vlora_engine.doctor.examine import Examined, Report, diagnose
from vlora_engine.errors import ParameterError, StorageError
from vlora_engine.formats.peft_save import write_peft
from vlora_engine.nn.base_modules import Reach, for_base
from vlora_engine.utils.naming import printable, slugs
from vlora_engine.utils.output_checks import SameThere, check_output, keep_same, require_apart


@dataclass(frozen=True)
class Repaired:
    """One adapter that was written again.

    Args:
        name: Of the adapter. path: Where it was read. output: Where it was written.
        renamed: How many of its modules have another name, or another key, than before.
        found: What the doctor finds about what was written.
        skipped: The same was there already, and stayed as it was.
    """

    name: str
    path: str
    output: Path
    renamed: int
    found: Report
    skipped: bool = False

    @property
    def reach(self) -> Reach | None:
        """How much PEFT applies of what was written."""
        return next((each.reach for each in self.found.examined), None)

    def as_dict(self) -> dict[str, Any]:
        """All of it as values for JSON."""
        return {
            "name": self.name,
            "path": printable(self.path),
            "output": printable(str(self.output)),
            "renamed": self.renamed,
            "skipped": self.skipped,
            "applies": None if self.reach is None else self.reach.as_dict(),
            "findings": [finding.as_json() for finding in self.found.all_findings],
        }


def repair(
    examined: Sequence[Examined],
    out: Path,
    *,
    base: BaseFacts | None = None,
    target: str | None = None,
    read_tensors: bool = True,
    force: bool = False,
) -> list[Repaired]:
    """Write adapters that the doctor has looked at again, under the names that PEFT looks for.

    Of several, those that are there already and the same are left as they are.

    Args:
        examined: Out of a `Report`.
        out: The directory to make; of several adapters the one that holds a directory for each.
        base: The model whose names its modules get; without it they lose what wrappers left.
        target: As for `diagnose`, which looks at what was written.
        read_tensors: As for `diagnose`.
        force: Replace what is there.

    Raises:
        ParameterError: A subspace is among them, the base has none of an adapter's modules, or an
            output is an input.
        AdapterError: One cannot be read.
        OutputExistsError: An output is there, of several another one, and not ``force``.
        StorageError: It cannot be written, or does not read back bit for bit.
    """
    for each in examined:
        if each.kind == "subspace":
            raise ParameterError(
                "A subspace is no adapter that can be written again.",
                where=each.path,
                remedy="export its tasks: vlora-tui export DIR --all -o OUT",
            )
    places = slugs([each.name for each in examined])
    outputs = [out] if len(examined) == 1 else [out / places[each.name] for each in examined]
    here = [existing_path(AdapterRef.parse(each.path)) for each in examined]
    require_apart(outputs, here)
    for output in outputs:
        check_output(output, force=force or len(outputs) > 1)
    for path in here:
        open_adapter(path, allow_unsupported=True)  # what cannot be read is said before all writing
    there = {output for output in outputs if not force and os.path.lexists(output)}
    repaired: dict[Path, Repaired] = {}
    for each, path, output in sorted(
        zip(examined, here, outputs, strict=True), key=lambda one: one[2] not in there
    ):
        count, skipped = _write(path, output, base, force=force, there=output in there)
        found = diagnose(output, target=target, base=base, read_tensors=read_tensors)
        repaired[output] = Repaired(each.name, each.path, output, count, found, skipped)
    return [repaired[output] for output in outputs]


def _write(
    path: Path, output: Path, base: BaseFacts | None, *, force: bool, there: bool
) -> tuple[int, bool]:
    """Write one adapter; how many modules have another name or key then, and if it was there."""
    source = open_adapter(path, allow_unsupported=True)
    odd: frozenset[str] = getattr(source, "odd", frozenset())
    weights = load_adapter(path, allow_unsupported=True)
    named = tidied(weights)
    if base is not None and weights.layer_names:
        named, reach = for_base(weights, base.name)
        if not reach.unknown and not reach.names:
            raise ParameterError(
                "The base has none of the adapter's modules, under any name: nothing was written.",
                where=path,
                expected=f"modules of {base.name}",
                found=weights.layer_names[0],
                remedy="name the base that it was trained on with --base",
            )

    def check(made: Path) -> None:
        _require_same_bits(named, made)
        if there:
            keep_same(made, output)

    skipped = False
    try:
        write_peft(named, output, force=force or there, check=check)
    except SameThere:
        skipped = True
    return len(odd | (source.modules.keys() - named.lora_a.keys())), skipped


def _require_same_bits(meant: LoRAWeights, made: Path) -> None:
    written = load_adapter(made, allow_unsupported=True)
    pairs = [(meant.lora_a, written.lora_a), (meant.lora_b, written.lora_b)]
    for one, other in [*pairs, (meant.rest, written.rest)]:
        lost = [name for name in one if name not in other or not same_bits(one[name], other[name])]
        if lost or len(one) != len(other):
            raise StorageError(
                "What was written does not read back bit for bit; it was deleted again.",
                where=made,
                found=lost[0] if lost else f"{len(other)} tensors instead of {len(one)}",
                remedy="check the disk, then run the same again",
            )
