"""The coding of a collection as subspace.json records it. No torch, no numpy."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vlora_engine.utils.json_reader import JsonObject

KINDS = {"k": "klt", "d": "delta", "-": ""}
_GROUP = re.compile(r"[0-9]{1,5}")
LETTERS = {kind: letter for letter, kind in KINDS.items()}


@dataclass(frozen=True)
class Coding:
    """The settings that a collection was coded with.

    Args:
        step: Of new adapters, relative to their ||dW||. target: What it was coded for, by name.
        modes: Per group number one letter a layer: ``k`` (klt), ``d`` (delta) or ``-``.
    """

    step: float
    target: Mapping[str, float] = field(default_factory=dict)
    modes: Mapping[int, str] = field(default_factory=dict)

    def units(self) -> list[tuple[int, int]]:
        """(layer, group) of everything shared, in the order of the file."""
        layers, numbers = len(next(iter(self.modes.values()), "")), sorted(self.modes)
        return [(i, n) for i in range(layers) for n in numbers if self.kind(i, n)]

    def kind(self, layer: int, number: int) -> str:
        """The transform of a group on a layer: ``klt``, ``delta`` or nothing."""
        return KINDS[self.modes[number][layer]]

    def as_json(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "target": dict(self.target),
            "modes": {str(number): text for number, text in sorted(self.modes.items())},
        }


def parse_coding(row: JsonObject, layers: int) -> Coding:
    """Parse and check the coding of a subspace.json.

    Raises:
        CorruptFileError: It makes no sense.
    """
    modes: dict[int, str] = {}
    for number, value in row["modes"].object().items():
        if not _GROUP.fullmatch(number) or int(number) >= 1 << 16:
            raise value.error("the number of a group as its name", ascii(number[:80]))
        text = value.text()
        if len(text) != layers or set(text) - KINDS.keys():
            raise value.error(f"{layers} letters of {', '.join(KINDS)}")
        modes[int(number)] = text
    step = row["step"].number()
    if step < 0:
        raise row["step"].error("a number from 0 on")
    target = {key: value.number() for key, value in row["target"].object().items()}
    if "budget" in target:  # bytes
        target["budget"] = int(target["budget"])
    return Coding(step, target, modes)
