"""Recognise files of other tools that are not read, and refuse them with a remedy."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from vlora_engine.adapters.model import AdapterSource
from vlora_engine.errors import UnsupportedAdapterError
from vlora_engine.formats.base import Inspection, Probe
from vlora_engine.formats.config import shown

Keys = Iterable[str]
_LATER = "it is not read"


@dataclass(frozen=True)
class Foreign:
    """A format that is recognised but not read.

    ``marks`` says whether a file with these keys and metadata is of it; ``files`` are names whose
    presence in a directory settles it.
    """

    name: str
    label: str
    remedy: str
    marks: Callable[[Keys, Mapping[str, str]], bool] = lambda keys, metadata: False
    files: tuple[str, ...] = ()
    without_peft_type: bool = False

    def detect(self, probe: Probe) -> bool:
        """Whether this format recognises what lies there; see `Format`."""
        if any(name in probe.names for name in self.files):
            return not (self.without_peft_type and "peft_type" in probe.loose_config)
        if probe.file is None and probe.has_config:
            return False  # PEFT's own reader names what it finds under PEFT's names
        return bool(probe.keys) and self.marks(probe.keys, probe.contents.metadata)

    def inspect(self, probe: Probe, *, allow_unsupported: bool = False) -> Inspection:
        """Always refuses."""
        raise self.error(probe)

    def open(self, probe: Probe, *, allow_unsupported: bool = False) -> AdapterSource:
        """Always refuses."""
        raise self.error(probe)

    def error(self, probe: Probe) -> UnsupportedAdapterError:
        """The refusal of what lies there."""
        return foreign_error(self, probe.tensor_file or probe.path)


def recognise(keys: Keys, metadata: Mapping[str, str]) -> Foreign | None:
    """The format of a file with these tensor names, if it is one that is not read."""
    return next((kind for kind in FOREIGN if kind.marks(keys, metadata)), None)


def foreign_error(kind: Foreign, where: Path) -> UnsupportedAdapterError:
    """The refusal of ``kind``."""
    return UnsupportedAdapterError(
        f"This is {kind.label}: {_LATER}.",
        where=where,
        expected="a PEFT adapter (adapter_config.json, adapter_model.safetensors)",
        found=kind.label,
        remedy=kind.remedy,
        code="foreign-format",
    )


def _any_key(pattern: str) -> Callable[[Keys, Mapping[str, str]], bool]:
    compiled = re.compile(pattern)
    return lambda keys, metadata: any(compiled.search(key) for key in keys)


_AS_PEFT = "convert it to a PEFT directory with the tool that wrote it"
FOREIGN: tuple[Foreign, ...] = (
    Foreign(
        "mlx-npz",
        "an MLX-LM adapter of before 2024 (adapters.npz)",
        "load and save it with a newer MLX-LM: it writes adapters.safetensors, which is read",
        files=("adapters.npz",),
        without_peft_type=True,
    ),
    Foreign(
        "lycoris",
        "a LyCORIS adapter (LoHa or LoKr)",
        "it is no low-rank product of two factors; extract a plain LoRA of it with kohya's "
        "sd-scripts",
        _any_key(r"\.(hada|lokr)_w"),
    ),
    Foreign(
        "sam-lora",
        "a LoRA file with keys w_a_* and w_b_* (Sam_LoRA)",
        "save it as a PEFT directory: w_a is lora_A.weight, w_b is lora_B.weight, under the names "
        "of the modules they belong to",
        _any_key(r"^w_[ab]_\d+$"),
    ),
)


class UnknownTensors(Foreign):
    """The last format tried: a safetensors file whose tensor names belong to no other format."""

    def detect(self, probe: Probe) -> bool:
        """Whether this format recognises what lies there; see `Format`."""
        path = probe.tensor_file
        return path is not None and path.suffix == ".safetensors"

    def error(self, probe: Probe) -> UnsupportedAdapterError:
        """The refusal, which says whether the file is damaged or just no adapter."""
        contents = probe.contents  # a damaged file says so here
        names = sorted(contents.tensors)
        return UnsupportedAdapterError(
            "The file's tensors are not named like those of any adapter format known here.",
            where=contents.path,
            expected="keys such as base_model.model.<module>.lora_A.weight",
            found=", ".join(shown(name) for name in names[:3]) or "no tensors",
            remedy="save the adapter with PEFT's model.save_pretrained",
            code="unknown-format",
        )


UNKNOWN = UnknownTensors("unknown", "an unknown format", _AS_PEFT)
